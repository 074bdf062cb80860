"""A profile as a map of layers and segments: in the terminal, and as a picture."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scalekv.errors import InvalidInput
from scalekv.files import replacing
from scalekv.planning import Budget, Profile
from scalekv.policies import ScaleKV
from scalekv.policies.roles import z_scores

_LEVELS = ((-1.0, "."), (0.0, "-"), (1.0, "+"))
_HIGHEST, _DRAFTER = "#", "D"


@dataclass(frozen=True)
class RoleMap:
    """What a profile says about every layer at every segment.

    Args:
        profile: with an ASI table.
        scores: z-score of the ASI, ``scores[segment][layer]``; low values spread their attention over history.
        drafters: layers by segment that ScaleKV would choose.
        budget: the budget they are chosen for.
    """

    profile: Profile
    scores: tuple[tuple[float, ...], ...]
    drafters: dict[int, tuple[int, ...]]
    budget: str

    @classmethod
    def of(cls, profile: Profile) -> RoleMap:
        """The map of a measured profile, drafters at ScaleKV's own budget."""
        from scalekv.calibration.stability import drafters_at

        scores = tuple(tuple(z_scores(row)) for row in profile.layer_table("asi"))
        budget = Budget.parse(ScaleKV().budget)
        return cls(profile, scores, drafters_at(profile, budget), str(budget))

    def text(self) -> list[str]:
        """One line per segment that has a history, one character per layer, and a legend."""
        width = max(len(str(segment)) for segment in self.profile.schedule)
        marks = "".join(str(layer // 10 % 10) if layer % 10 == 0 else " " for layer in range(self.profile.layers))
        lines = [f"{'':>{width}}  {marks}".rstrip()]
        for segment in self.profile.schedule.segments[1:]:
            row = "".join(self._mark(segment.index, layer) for layer in range(self.profile.layers))
            lines.append(f"{segment!s:>{width}}  {row}")
        legend = f"{_DRAFTER} drafter at {self.budget}   z-score of ASI: . below -1   - below 0   + below 1   # above"
        return [*lines, legend]

    def _mark(self, segment: int, layer: int) -> str:
        if layer in self.drafters.get(segment, ()):
            return _DRAFTER
        score = self.scores[segment][layer]
        return next((mark for limit, mark in _LEVELS if score < limit), _HIGHEST)


def save_profile(roles: RoleMap, path: Path) -> Path | None:
    """Write the profile and, as a PNG beside it, its map: both or neither.

    Returns:
        The path of the map; ``None`` if matplotlib is not installed.

    Raises:
        InvalidInput: the place cannot be written.
    """
    canvas = _canvas(roles)
    if canvas is None:
        roles.profile.save(path)
        return None
    picture, existed = path.with_suffix(".png"), path.exists()
    try:
        with replacing(picture) as temporary:
            canvas.print_png(temporary)
            roles.profile.save(path)
    except InvalidInput:
        if not existed:
            path.unlink(missing_ok=True)
        raise
    return picture


def _canvas(roles: RoleMap) -> Any:
    """The map as a canvas of matplotlib's; ``None`` if that is not installed."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        return None
    profile = roles.profile
    figure = Figure(figsize=(2.5 + 0.45 * len(profile.schedule), 2.0 + 0.16 * profile.layers), layout="constrained")
    axes = figure.add_subplot()
    table = [[row[layer] for row in roles.scores] for layer in range(profile.layers)]
    image = axes.imshow(table, cmap="RdBu_r", vmin=-3, vmax=3, aspect="auto", origin="lower", interpolation="nearest")
    figure.colorbar(image, ax=axes, label="z-score of ASI over layers")
    marks = [(segment, layer) for segment, layers in roles.drafters.items() for layer in layers]
    across, up = [segment for segment, _ in marks], [layer for _, layer in marks]
    axes.scatter(across, up, marker="s", s=28, facecolors="none", edgecolors="black")
    axes.set_xticks(range(len(profile.schedule)), [str(segment) for segment in profile.schedule], rotation=90)
    axes.set_xlabel("segment (tokens)")
    axes.set_ylabel("layer")
    axes.set_title(f"{profile.model}: drafters (squares) at {roles.budget}", fontsize="medium")
    return FigureCanvasAgg(figure)
