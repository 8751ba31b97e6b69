"""The tars that a path names: a folder, a tar, a pattern, an address, or a file that lists these; and their class names."""

from __future__ import annotations

import glob
import json
import math
import os
import re
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from peco.core.environment import ALLOW_PIPE
from peco.core.errors import PecoError
from peco.files.links import walk_linked

TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz")
_OTHER_ARCHIVES = (".zip", ".rar", ".7z", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tzst")
_MOST_TARS = 100_000
_SCHEMES = ("http", "https", "ftps", "scp", "gs", "htgs", "ais", "hf")  # webdataset's own, besides fsspec's
_EXPECTED = "expected a folder of .tar files, a glob or brace pattern, an address, or a file that lists them"


@dataclass(frozen=True)
class Tars:
    """The tars of a source.

    Attributes:
        urls: their paths or addresses, each once.
        names: their names for people and for the search for splits and classes: paths below the folder, without the ending.
        classes: the class names in the order of their numbers, or None.
    """

    urls: tuple[str, ...]
    names: dict[str, str]
    classes: tuple[str, ...] | None


def find_tars(path: str) -> Tars:
    """The tars that a path, pattern, address or list names, and the class names if there are any.

    A folder or list gives its tars sorted or in its own order. Hidden files and folders are skipped.

    Raises:
        PecoError: there is no tar, the list or the class names can't be read, or an address runs a program that is not allowed.
    """
    classes = None
    local = Path(path)
    if is_address(path) or not _exists(local):
        urls = _expand(path, Path())
    elif local.is_dir():
        urls = sorted(_below(local))
    elif path.endswith(TAR_SUFFIXES):
        urls = [path]
    else:
        entries, classes = _read_list(local)
        try:
            urls = [url for entry in entries for url in _expand(entry, local.parent)]
        except PecoError as error:
            raise PecoError(f"{path}: {error}") from None
        if folder := next((url for url in urls if os.path.isdir(url)), None):
            raise PecoError(f"{path}: lists {folder}, a folder; list the tars in it")
    if not urls:
        raise PecoError(f"{path}: no tar found; {_EXPECTED}")
    urls = list(dict.fromkeys(urls))
    for url in urls:
        _check_address(url)
    if classes is None and not is_address(path):
        classes = _class_file(local if local.is_dir() else local.parent, urls)
    if classes is not None and (len(set(classes)) < len(classes) or not all(classes) or not classes):
        raise PecoError(f"{path}: the class names are empty or not all different; name each class once")
    return Tars(tuple(urls), _names(urls), classes)


def is_address(text: str) -> bool:
    """True if tars are read from this text as an address rather than a path."""
    return text.startswith("pipe:") or "://" in text


def file_name(url: str) -> str:
    """Last part of a path or address, without its query."""
    return re.split(r"[?#]", url)[0].split("/")[-1]


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # a name that is too long, or with a zero byte
        return False


def _below(folder: Path) -> list[str]:
    """Tars in a folder and its subfolders; links to folders are followed.

    Raises:
        PecoError: a folder can't be read, holds archives of other kinds, or a link leads out of it.
    """
    found: list[str] = []
    for place, folders, files in walk_linked(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        if packed := next(
            (name for name in sorted(files) if name[0] != "." and name.lower().endswith(_OTHER_ARCHIVES)), None
        ):
            raise PecoError(
                f"{os.path.join(place, packed)}: beside tars, and not read; write it as .tar or .tar.gz, or move it away"
            )
        found += [os.path.join(place, name) for name in files if name.endswith(TAR_SUFFIXES) and name[0] != "."]
    return found


def _names(urls: list[str]) -> dict[str, str]:
    """Paths below the folder that holds all tars, without the endings."""
    parts = {url: re.split(r"[?#]", url)[0].split("/") for url in urls}
    folders = [part[:-1] for part in parts.values()]
    shared = next(
        (i for i, level in enumerate(zip(*folders, strict=False)) if len(set(level)) > 1), min(map(len, folders))
    )
    return {url: re.sub(r"\.(tar|tar\.gz|tgz)$", "", "/".join(part[shared:])) for url, part in parts.items()}


def _check_address(url: str) -> None:
    """Refuse addresses that nothing here can open, and programs that the user has not allowed.

    Raises:
        PecoError: naming the address and the remedy.
    """
    if not is_address(url):
        return
    if url.startswith("pipe:"):
        if not ALLOW_PIPE.flag():
            raise PecoError(
                f"{url}: runs a program; if you trust it, allow that with {ALLOW_PIPE.name}=1 in the environment"
            )
        return
    from fsspec import available_protocols  # type: ignore[import-untyped]

    scheme = url.split("://")[0].rpartition("::")[2]
    if scheme not in _SCHEMES and scheme not in available_protocols():
        raise PecoError(
            f"{url}: can't be read as a WebDataset tar (nothing here opens {scheme}://); expected https://, s3://, gs://, hf:// …"
        )


def _read_list(path: Path) -> tuple[list[str], tuple[str, ...] | None]:
    classes = None
    try:
        text = path.read_text(encoding="utf-8-sig")
        found: Any = [line.strip() for line in text.splitlines() if line.strip() and line.strip()[0] != "#"]
        if path.suffix == ".json":
            found = json.loads(text)
            if isinstance(found, dict):
                classes = _named_classes(found["classes"]) if found.get("classes") is not None else None
                # `shardlist` is the key of an index of webdataset's own `wids`.
                found = found["shards"] if "shards" in found else [shard["url"] for shard in found["shardlist"]]
        if not isinstance(found, list) or not all(isinstance(entry, str) and "\0" not in entry for entry in found):
            raise ValueError
    except OSError as error:
        raise PecoError(f"{path}: can't be read ({error.strerror}); {_EXPECTED}") from None
    except (ValueError, KeyError, TypeError, RecursionError):
        raise PecoError(
            f'{path}: not a list of tars; expected text with one per line, or JSON: a list or {{"shards": [...], "classes": [...]}}'
        ) from None
    return found, classes


def _named_classes(found: Any) -> tuple[str, ...]:
    """Class names from JSON: a list, or a map from all numbers to names.

    Raises:
        ValueError, KeyError: it is neither.
    """
    if isinstance(found, dict):
        found = [found[str(i)] for i in range(len(found))]
    if not isinstance(found, list) or not all(isinstance(name, str | int) for name in found):
        raise ValueError
    return tuple(map(str, found))


def _class_file(folder: Path, urls: list[str]) -> tuple[str, ...] | None:
    """The names in `classes.txt` of this folder, else of the folders of the tars."""
    found: dict[tuple[str, ...], Path] = {}
    for places in ([folder], sorted({Path(url).parent for url in urls if not is_address(url)})):
        for file in (place / "classes.txt" for place in places):
            if file.is_file():
                found.setdefault(read_class_names(file), file)
        if len(found) > 1:
            first, second = list(found.values())[:2]
            raise PecoError(f"{second}: differs from {first}; keep one, next to the folders of the tars")
        if found:
            break
    return next(iter(found), None)


def read_class_names(path: Path) -> tuple[str, ...]:
    """Class names of a text file, one per line.

    A number before each name is left out if it is the line's own, counted from 0, or from 1: class 0 is then called 0.

    Raises:
        PecoError: it can't be read, is not UTF-8, or has an empty line between names.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise PecoError(f"{path}: is not UTF-8; save it as UTF-8 text with one class name per line") from None
    except OSError as error:
        raise PecoError(f"{path}: can't be read ({error.strerror}); check its permissions") from None
    lines = [line.strip() for line in text.strip().splitlines()]
    if "" in lines and text.strip():
        raise PecoError(
            f"{path}: line {lines.index('') + 1} is empty; name each class on a line, in the order of the numbers"
        )
    numbered = [re.fullmatch(r"(\d+)[\s,:;]\s*(\S.*)", line) for line in lines]
    for first in (0, 1):
        if lines and all(match is not None and int(match[1]) == i for i, match in enumerate(numbered, start=first)):
            return (*map(str, range(first)), *(match[2] for match in numbered if match is not None))
    return tuple(lines)


def _expand(entry: str, folder: Path) -> list[str]:
    from braceexpand import UnbalancedBracesError, braceexpand  # type: ignore[attr-defined]  # comes with webdataset

    if entry.startswith("pipe:"):
        return [entry]  # braces are the shell's
    spans = [abs(int(high) - int(low)) for low, high in re.findall(r"\{(-?\d{1,18})\.\.(-?\d{1,18})", entry)]
    choices = [group.count(",") for group in re.findall(r"\{([^{}]*)\}", entry)]
    patterns: list[str] = []
    try:
        if math.prod(count + 1 for count in (*spans, *choices)) <= _MOST_TARS:
            patterns = list(islice(braceexpand(entry), _MOST_TARS + 1))
    except (UnbalancedBracesError, ValueError, RecursionError):
        raise PecoError(f"{entry}: the braces don't match; expected a pattern such as train-{{000..012}}.tar") from None
    if not 0 < len(patterns) <= _MOST_TARS:
        raise PecoError(f"{entry}: the braces name more than {_MOST_TARS} tars; check the numbers")
    urls: list[str] = []
    for pattern in dict.fromkeys(patterns):
        if is_address(pattern):
            urls.append(pattern)
            continue
        file = str(folder / pattern)
        found = [file] if _exists(Path(file)) and Path(file).is_file() else sorted(glob.glob(file, recursive=True))
        if not found:
            raise PecoError(f"{file}: no such file; {_EXPECTED}")
        urls += found
    return urls
