"""What can go wrong, by whose fault.

A `UserError` is a mistake that its maker can mend: one clear message with the place, the value and the cure, exit
code 2. A `TrainingFailedError` is a run that broke: exit code 3. A `PreemptedError` is no error: the run was asked to
leave and has saved, exit code 75. A `LostProcessError` is one of several processes that was killed or hangs: exit
code 4. Anything else that escapes is a bug of ours.
"""

from __future__ import annotations


class WmtpError(Exception):
    """Base of every error that wmtp raises on purpose."""

    exit_code = 1


class UserError(WmtpError):
    """A mistake of the user's. The message names the place, the value and the cure."""

    exit_code = 2


class SettingsError(UserError):
    """A recipe or config that is not valid; the message lists every problem at once."""


class DataError(UserError):
    """Data that can't be read or used; names file and line."""


class ModelError(UserError):
    """A model that can't be loaded or used as asked."""


class CheckpointError(UserError):
    """A checkpoint that is damaged, of another recipe, or in use by another process."""


class TrainingFailedError(WmtpError):
    """Training broke (a non-finite loss or gradient); nothing was updated with it."""

    exit_code = 3


class LostProcessError(WmtpError):
    """Another process of the run died or hangs; what was done since the last checkpoint is lost with it."""

    exit_code = 4

    def __init__(self, message: str, missing: tuple[int, ...] = ()) -> None:
        """`missing`: the ranks of those that are lost, where that is known."""
        super().__init__(message)
        self.missing = missing


class PreemptedError(WmtpError):
    """A signal asked the run to leave; a checkpoint has been saved. 75 is EX_TEMPFAIL: try again."""

    exit_code = 75
