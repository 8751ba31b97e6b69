"""Errors that a user can fix. Every command prints them as one line, without a traceback."""

# Characters that are kept of a longer message: where the fault is, and what to do. With the name of a stage a line has at most 500.
_BEGINNING, _END = 290, 170


class PecoError(Exception):
    """An error that the user can fix. The message is one line: what is wrong and what to do.

    Characters that can't be printed (names of files may have them) are escaped, and the middle of a very long message is left out.
    """

    def __init__(self, message: str) -> None:
        line = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in " ".join(message.split()))
        if len(line) > _BEGINNING + _END:
            line = f"{line[:_BEGINNING]} … {line[-_END:]}"
        super().__init__(line)


class Interrupted(PecoError):
    """The run was stopped (SIGTERM, Ctrl-C) after saving its state; the next run resumes from it."""
