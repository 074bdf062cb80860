"""What methods that plan by a profile say when there is none."""

from __future__ import annotations

import warnings


def warn_without_profile(method: str, consequence: str) -> None:
    """Warn that ``method`` runs uninformed.

    Args:
        method: its name for people.
        consequence: what it does instead, such as ``"every layer gets the same capacity"``.
    """
    warnings.warn(
        f"{method} runs without a profile, so {consequence}; "
        f"make one for this model and size with 'scalekv calibrate'.",
        stacklevel=3,
    )
