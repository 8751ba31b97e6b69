"""Errors that a user can act on. Whoever runs peco prints them as one line, without a traceback."""


class PecoError(Exception):
    """Something the user can fix: the message is one line that says what is wrong and what to do."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))


class Interrupted(PecoError):
    """The run was asked to stop (SIGTERM, Ctrl-C) and has saved what it had; running it again goes on."""
