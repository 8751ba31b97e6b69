"""Errors that a user can fix. Every command prints them as one line, without a traceback."""


class PecoError(Exception):
    """An error that the user can fix. The message is one line: what is wrong and what to do."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))


class Interrupted(PecoError):
    """The run was stopped (SIGTERM, Ctrl-C) after saving its state; the next run resumes from it."""
