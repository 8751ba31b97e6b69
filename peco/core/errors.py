"""Errors that a user can fix. Every command prints them as one line, without a traceback."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

# Characters that are kept of a longer message: where the fault is, and what to do. With the name of a stage a line has at most 500.
_BEGINNING, _END = 290, 170
_WORD = 100  # characters that are kept of a word, such as a path, before the middle of the message is left out


class PecoError(Exception):
    """An error that the user can fix. The message is one line: what is wrong and what to do.

    Characters that can't be printed (names of files may have them) are escaped. Of a very long message the middle of long words is
    left out, or that of the message.
    """

    def __init__(self, message: str) -> None:
        line = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in " ".join(message.split()))
        if len(line) > _BEGINNING + _END:
            line = " ".join(w if len(w) <= _WORD else f"{w[: _WORD // 2]}…{w[-_WORD // 2 :]}" for w in line.split(" "))
        if len(line) > _BEGINNING + _END:
            line = f"{line[:_BEGINNING]} … {line[-_END:]}"
        super().__init__(line)


class Interrupted(PecoError):
    """The run was stopped (SIGTERM, Ctrl-C) after saving its state; the next run resumes from it."""


def exit_status(action: Callable[[], None], interrupted: str = "") -> int:
    """Run a command: status 0, 2 for an error the user can fix, 1 if nothing reads its output, 130 if interrupted.

    Args:
        action: the command.
        interrupted: line to print after Ctrl-C.
    """
    try:
        action()
    except PecoError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader has left; nothing remains to flush
        return 1
    except OSError as error:
        print(f"error: {error.filename or 'output'}: {error.strerror or error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        if interrupted:
            print(interrupted, file=sys.stderr)
        return 130
    return 0
