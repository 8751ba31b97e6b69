"""Damage of archives as errors."""

from __future__ import annotations

import lzma
import re
import struct
import tarfile
import zipfile
import zlib

from peco.core.parsing import reason

# Exceptions of damaged archives, with any compression.
DAMAGE = (
    tarfile.TarError,
    zipfile.BadZipFile,
    lzma.LZMAError,
    zlib.error,
    struct.error,
    EOFError,
    OSError,
    ValueError,
    OverflowError,
    IndexError,
)


def damage_reason(error: BaseException) -> str:
    """The text of such an exception in one line. Of tarfile's report on all compressions that it tried, the part on plain tars."""
    text = reason(error)
    plain = re.search(r"method tar: \w+\(['\"](.*?)['\"]\)", text)
    return plain[1] if plain else text


_EXTENDED_HEADERS = (
    *(tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE),
    *(tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK),
)
_MAX_EXTENDED_HEADER = 16 << 20  # bytes; it is read into memory


class StrictTarInfo(tarfile.TarInfo):
    """Header that makes a damaged archive an error.

    tarfile itself takes a bad header for the end of the archive, returns to earlier bytes for a negative size, and reads an
    extended header of any size at once.
    """

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> StrictTarInfo:
        try:
            header = super().fromtarfile(archive)
        except (
            tarfile.InvalidHeaderError,  # type: ignore[attr-defined]
            tarfile.TruncatedHeaderError,  # type: ignore[attr-defined]
            ValueError,
            OverflowError,
            RecursionError,
        ) as error:
            raise tarfile.ReadError(f"{error} at byte {archive.offset}") from None
        if header.size < 0:  # by an extended header
            raise tarfile.ReadError(f"a negative size at byte {archive.offset}")
        return header

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> StrictTarInfo:
        header = super().frombuf(buf, encoding, errors)
        if header.size < 0 or (header.type in _EXTENDED_HEADERS and header.size > _MAX_EXTENDED_HEADER):
            raise tarfile.InvalidHeaderError("an impossible size")  # type: ignore[attr-defined]
        return header
