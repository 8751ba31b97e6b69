"""A .npy file that grows by rows, so that a stopped run can go on."""

from __future__ import annotations

import io
from pathlib import Path
from typing import BinaryIO, Self

import numpy as np
from numpy.typing import NDArray

from peco.core.errors import PecoError
from peco.core.parsing import NPY_ERRORS, reason


class NpyRows:
    """Appends rows to a float32 .npy file. Its header gets the number of rows at the end.

    numpy pads a header so that the number of rows can grow in place.

    Args:
        path: the file; made with the first rows if it is missing.
        rows: rows to keep of an existing file; later ones, of a run that was killed, are overwritten.

    Raises:
        PecoError: the file has fewer rows.
    """

    def __init__(self, path: Path, rows: int) -> None:
        self._path, self._rows = path, rows
        self._file: BinaryIO | None = None
        self._shape: tuple[int, ...] = ()
        if not rows:
            return
        try:
            self._file = path.open("r+b")
            np.lib.format.read_magic(self._file)
            shape, _, dtype = np.lib.format.read_array_header_1_0(self._file)
        except NPY_ERRORS as error:
            raise PecoError(f"{path}: can't be read ({reason(error)}); remove the folder and run again") from None
        self._shape = shape[1:]
        end = self._file.tell() + rows * int(np.prod(self._shape)) * dtype.itemsize
        if self._file.seek(0, io.SEEK_END) < end:
            raise PecoError(f"{path}: has fewer rows than there are names; remove the folder and run again")
        self._file.truncate(end)
        self._file.seek(end)

    def append(self, rows: NDArray[np.float32]) -> None:
        """Add rows (B, …)."""
        if self._file is None:
            self._file, self._shape = self._path.open("w+b"), rows.shape[1:]
            self._write_header()
        self._file.write(np.ascontiguousarray(rows, dtype=np.float32).tobytes())
        self._file.flush()
        self._rows += len(rows)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.seek(0)
            self._write_header()
            self._file.close()

    def _write_header(self) -> None:
        assert self._file is not None
        header = {"descr": "<f4", "fortran_order": False, "shape": (self._rows, *self._shape)}
        np.lib.format.write_array_header_1_0(self._file, header)
