"""Standard output and error that can't be written: closed by a service manager, or a file on a full disk.

The work of a stage doesn't depend on them, so it continues without output, which one line on the other stream reports.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
from typing import TextIO


def tolerate_unwritable() -> None:
    """Replace `sys.stdout` and `sys.stderr`: a failed write drops all further output of that stream. A broken pipe still raises."""
    # A closed descriptor would be given to the next opened file, into which child processes would then write.
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(descriptor)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        elif not isinstance(stream, _Tolerant):
            setattr(sys, name, _Tolerant(stream, name))


class _Tolerant(io.TextIOBase):
    """Passes everything on to a stream until that can't be written."""

    def __init__(self, stream: TextIO, name: str) -> None:
        self._stream, self._name = stream, name

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._stream.encoding

    def fileno(self) -> int:
        return self._stream.fileno()

    def isatty(self) -> bool:
        return self._stream.isatty()

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except BrokenPipeError:
            raise
        except OSError as error:
            self._drop(error)
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except BrokenPipeError:
            raise
        except OSError as error:
            self._drop(error)

    def _drop(self, error: OSError) -> None:
        # Below Python's buffer too, which is written again at exit, and for child processes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())
        if self._name == "stdout":
            with contextlib.suppress(OSError):
                print(f"standard output can't be written ({error.strerror}); continuing without it", file=sys.stderr)
