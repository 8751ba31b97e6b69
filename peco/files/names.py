"""Names of files in one spelling, however they were packed."""

from __future__ import annotations

import hashlib
import unicodedata
from collections import Counter
from collections.abc import Iterable
from pathlib import PurePosixPath

# Of files that are read, the simplest first.
IMAGE_EXTENSIONS = (
    *("jpg", "jpeg", "jpe", "png", "webp", "bmp", "gif", "tif", "tiff", "ppm", "pgm"),
    *("jfif", "jfi", "jif", "pjpeg", "pjp", "mpo", "apng", "dib", "pbm", "pnm"),
    *("avif", "jp2", "j2k", "j2c", "jpc", "jpf", "jpx", "tga", "heic", "heif", "hif"),
)
# Of images that can't be read: they count as rejected.
UNREADABLE_EXTENSIONS = (
    *("dng", "cr2", "cr3", "crw", "nef", "nrw", "arw", "srf", "sr2", "orf", "rw2", "raf", "pef", "srw", "x3f", "3fr"),
    *("rwl", "iiq", "erf", "mef", "mos", "kdc", "dcr", "mrw", "fff", "gpr", "bpg", "qoi", "sgi", "ras", "icns", "cur"),
    *("jxl", "jxr", "wdp", "hdp", "jls", "pcd", "fits", "heics", "avifs", "psd", "exr", "hdr", "svg", "eps", "ico"),
    *("xcf", "pcx", "dds"),
)
_ANY_IMAGE = frozenset((*IMAGE_EXTENSIONS, *UNREADABLE_EXTENSIONS))
_HIDDEN = (
    *("__MACOSX", "@eaDir", "#recycle", "@Recycle", "$RECYCLE.BIN", "System Volume Information", "lost+found"),
    *("Thumbs.db", "desktop.ini"),
)


def is_hidden(part: str) -> bool:
    """True for the names of files and folders that operating systems add and hide."""
    return part.startswith(".") or part in _HIDDEN


def is_mac_metadata(name: str) -> bool:
    """True for what macOS adds to archives: `__MACOSX/…` and `._photo.jpg`, which is no image."""
    parts = name.split("/")
    return "__MACOSX" in parts or parts[-1].startswith("._") or parts[-1] == ".DS_Store"


def tidy(name: str) -> str:
    """A path within a source: forward slashes, no leading slash, `.` or `dir/..`, text in composed form (NFC).

    Bytes that are not UTF-8 are read as Latin-1, so that every name can be printed and written.
    """
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        name = name.encode("utf-8", "surrogateescape").decode("latin-1")
    parts: list[str] = []
    for part in unicodedata.normalize("NFC", name).replace("\\", "/").split("/"):
        if part == ".." and parts and parts[-1] != "..":
            parts.pop()
        elif part not in ("", "."):
            parts.append(part)
    return "/".join(parts)


def by_tidy_name(names: list[str]) -> dict[str, str]:
    """The tidy name of each name. Where two would be equal, the later ones get a number: nothing is lost."""
    found: dict[str, str] = {}
    for name in names:
        short = first = tidy(name)
        number = 2
        while short in found:
            path = PurePosixPath(first)
            short = str(path.with_name(f"{path.stem}-{number}{path.suffix}"))
            number += 1
        found[short] = name
    return found


def folder_of(name: str) -> str:
    """The folder of a path within a source, empty at the top. (`PurePosixPath` takes minutes for a million names.)"""
    return name.rpartition("/")[0]


def without_extension(name: str) -> str:
    """The path without the last ending of the file's name."""
    ending = extension(name)
    return name[: -len(ending) - 1] if ending else name


def stem(name: str) -> str:
    """The name of the file without its folders and its last ending."""
    return without_extension(name.rpartition("/")[2])


def extension(name: str) -> str:
    """Extension of a file name in lower case, without the dot."""
    base = name.rpartition("/")[2]
    dot = base.rfind(".")
    return base[dot + 1 :].lower() if 0 < dot < len(base) - 1 else ""


def is_image_name(name: str) -> bool:
    """True for the names of images, also of those that can't be read."""
    return extension(name) in _ANY_IMAGE


def capital_twins(names: Iterable[str]) -> list[str]:
    """The names that differ from others in their capitals only: `Cat` and `cat`."""
    ordered = sorted(names)
    counts = Counter(map(str.casefold, ordered))
    return [name for name in ordered if counts[name.casefold()] > 1]


def hashed(name: str, seed: int) -> int:
    """A pseudorandom number in [0, 2**64) that depends on name and seed only."""
    text = f"{seed}/{name}".encode("utf-8", "surrogateescape")
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "big")
