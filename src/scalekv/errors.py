"""Errors that a user's own input can cause.

Every message is one sentence (or two) that names what was wrong, what was expected and how to mend it. The command
line turns each of these into exit code 2 without a traceback; anything else that escapes is a bug of ours.
"""

from __future__ import annotations


class InvalidInput(ValueError):
    """Something the user supplied cannot be used; the message says what, and how to mend it."""


class BudgetError(InvalidInput):
    """A budget that cannot be read, or that no plan of the chosen policy can meet."""


class ScheduleError(InvalidInput):
    """A size, aspect ratio or list of segments that does not describe a next-scale schedule."""


class ProfileError(InvalidInput):
    """A calibration profile that is damaged, of another version, or made for another model or schedule."""


class CheckpointError(InvalidInput):
    """A checkpoint that is missing, truncated, of another architecture, or that does not fit its partner."""
