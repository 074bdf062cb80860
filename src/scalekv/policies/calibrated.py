"""What methods that plan by a profile say when there is none."""

from __future__ import annotations

import warnings


def warn_without_profile(method: str, consequence: str, lacks: str | None = None) -> None:
    """Warn that ``method`` runs uninformed.

    Args:
        method: its name for people.
        consequence: what it does instead, such as ``"every layer gets the same capacity"``.
        lacks: the model whose profile there is, if it lacks what the method plans by.
    """
    state = "runs without a profile" if lacks is None else f"finds none of its tables in the profile for {lacks}"
    warnings.warn(
        f"{method} {state}, so {consequence}; make one for this model and size with 'scalekv calibrate'.",
        stacklevel=3,
    )
