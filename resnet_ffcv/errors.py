"""The two errors that a command turns into one line and an exit code."""


class UsageError(ValueError):
    """What was asked for cannot be meant: exit code 2. Says what, where, what to do."""


class FailureError(RuntimeError):
    """What was asked for could not be done: exit code 1. Says what, where, what to do."""
