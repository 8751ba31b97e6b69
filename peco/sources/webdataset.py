"""Existing WebDataset tars as a source.

The tars are given by a folder, a glob, a brace pattern, an address (http(s), s3, `pipe:` and all others that webdataset opens), or
a file that lists these: text with one per line, or JSON, a list or `{"shards": [...], "classes": [...]}`. Class names come from
that JSON or from `classes.txt` (one per line) next to the tars; without them, the numbers are the names.

- Splits are found by a word `train`, `val…` or `test…` in the name of the file, else of its folder. `test` is used if there is no
  `val`. Without a val split, each sample goes to val with probability `val_fraction`, by a hash of its key.
- The image of a sample is its member with an image's extension. The label is in `cls` (a number or a class name) or in `json`
  under `label`; a sample may have none. Samples without an image are ignored and counted.
- Uncompressed local tars are read in shuffled order. If any tar is compressed or remote, random access is impossible: all tars are
  streamed once in their own order and should be shuffled already, as WebDataset tars usually are.
"""

from __future__ import annotations

import glob
import json
import re
import tarfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

from peco.core.errors import PecoError
from peco.sources.archives import DAMAGE, StrictTarInfo
from peco.sources.base import IMAGE_EXTENSIONS, SPLITS, RawSample, extension, hashed, shuffled

TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz")
_EXPECTED = "expected a folder of .tar files, a glob or brace pattern, an address, or a file that lists them"
# Meaning of curl's exit statuses.
_CURL = {
    6: "there is no such host",
    7: "the server can't be reached",
    22: "the server has no such file",
    28: "no answer in time",
}
_MAX_NUMBER = 1_000_000  # labels without class names must be smaller numbers


@dataclass(frozen=True)
class _Entry:
    """A sample found in a tar."""

    key: str
    encoded: bytes | tuple[int, int]  # the image file when streaming, else its offset and size in the tar
    label: str | None


class WebDatasetSource:
    """A `Source` over WebDataset tars, by the rules of this module.

    Raises:
        PecoError: no tar found, tars that can't be read or hold no image, or ambiguous splits or labels.
    """

    def __init__(self, path: str, *, val_fraction: float, seed: int) -> None:
        urls, names = find_tars(path)
        self._path, self._seed, self._val_fraction = path, seed, val_fraction
        self._splits = _assign_splits(urls, path)
        self._name(names or ())
        self.ignored: Counter[str] = Counter()
        self.total: int | None = None
        self._index: dict[str, list[tuple[str, _Entry]]] | None = None
        if all(_is_plain_tar(url) for url in urls):
            self._index = self._build_index()

    def samples(self) -> Iterator[RawSample]:
        if self._index is None:
            yield from self._stream()
            return
        for split, entries in self._index.items():
            for url, entry in shuffled(entries, split, self._seed):
                offset, size = cast(tuple[int, int], entry.encoded)
                try:
                    with _opened(url) as file:
                        file.seek(offset)
                        encoded = file.read(size)
                except OSError as error:
                    raise PecoError(f"{url}: can't be read ({error.strerror}); fix that and run again") from None
                yield RawSample(split, f"{Path(url).name}/{entry.key}", encoded, self._number(entry.label))

    def _build_index(self) -> dict[str, list[tuple[str, _Entry]]]:
        index: dict[str, list[tuple[str, _Entry]]] = {split: [] for split in SPLITS}
        for url, split in self._splits.items():
            for entry in self._entries(url, random_access=True):
                index[split or self._split_of(entry.key)].append((url, entry))
        found = {entry.label for entries in index.values() for _, entry in entries} - {None}
        if not self.classes:
            self._name(_class_names(cast(set[str], found), self._path))
        self.total = sum(map(len, index.values()))
        if self.total == 0:
            raise PecoError(
                f"{self._path}: no image in the {len(self._splits)} tar(s); expected members such as 0001.jpg with 0001.cls"
            )
        return {split: entries for split, entries in index.items() if entries}

    def _stream(self) -> Iterator[RawSample]:
        highest, any_image = -1, False
        for url, split in self._splits.items():
            for entry in self._entries(url, random_access=False):
                label = self._number(entry.label)
                highest, any_image = max(highest, label), True
                yield RawSample(
                    split or self._split_of(entry.key),
                    f"{_file_name(url)}/{entry.key}",
                    cast(bytes, entry.encoded),
                    label,
                )
        if not any_image:
            raise PecoError(
                f"{self._path}: no image in the {len(self._splits)} tar(s); expected members such as 0001.jpg with 0001.cls"
            )
        if not self.classes:
            self._name(tuple(map(str, range(highest + 1))))

    def _split_of(self, key: str) -> str:
        return "val" if hashed(key, self._seed) < self._val_fraction * 2**64 else "train"

    def _name(self, classes: tuple[str, ...]) -> None:
        self.classes = classes
        self._numbers = {name: i for i, name in enumerate(classes)}

    def _number(self, label: str | None) -> int:
        """The class index of a label (None: -1). A number that isn't a class name is an index already."""
        if label is None:
            return -1
        if label in self._numbers:
            return self._numbers[label]
        if label.isdecimal() and int(label) < (len(self.classes) or _MAX_NUMBER):
            return int(label)
        if self.classes:
            raise PecoError(
                f"{self._path}: label {label} is not among the {len(self.classes)} classes named for these tars; "
                "fix classes.txt (or `classes` in the list)"
            )
        raise PecoError(
            f"{self._path}: label {label} is not a class number, and streamed tars need all class names in advance; "
            'give them as "classes" in a JSON list of the tars'
        )

    def _entries(self, url: str, *, random_access: bool) -> Iterator[_Entry]:
        """Samples of one tar: consecutive members whose names agree up to the first dot of the file name."""
        try:
            with (
                _opened(url) as file,
                tarfile.open(fileobj=file, mode="r:" if random_access else "r|*", tarinfo=StrictTarInfo) as archive,
            ):
                key, members = "", dict[str, tuple[tarfile.TarInfo, bytes | None]]()
                for member in archive:
                    archive.members = []  # type: ignore[attr-defined]  # or tarfile keeps every header
                    if not member.isreg():
                        continue
                    member_key, kind = _key_and_kind(member.name)
                    if member_key != key:
                        yield from self._entry(url, key, members)
                        key, members = member_key, {}
                    wanted = kind in ("cls", "json") or (
                        not random_access and extension("x." + kind) in IMAGE_EXTENSIONS
                    )
                    members[kind] = member, cast(IO[bytes], archive.extractfile(member)).read() if wanted else None
                yield from self._entry(url, key, members)
                while not random_access and file.read(1 << 20):
                    pass  # read to the end, so that a program behind a pipe can finish, and its failure is noticed
        except PecoError:
            raise
        except Exception as error:
            # The clients of object stores have no common class of errors.
            if not (is_address(url) or isinstance(error, DAMAGE)):
                raise
            reason = _reason(error)
            raise PecoError(f"{url}: can't be read as a WebDataset tar ({reason}); fetch or write it again") from None

    def _entry(self, url: str, key: str, members: dict[str, tuple[tarfile.TarInfo, bytes | None]]) -> Iterator[_Entry]:
        images = [kind for kind in members if extension("x." + kind) in IMAGE_EXTENSIONS]
        if not images:
            self.ignored["sample without an image"] += bool(members)
            return
        # There may be further images, such as seg.png: the one with the simplest name is the sample's.
        kind = min(images, key=lambda kind: (kind.count("."), IMAGE_EXTENSIONS.index(extension("x." + kind))))
        member, encoded = members[kind]
        try:
            label = _read_label({kind: data for kind, (_, data) in members.items() if data is not None})
        except (ValueError, RecursionError):
            raise PecoError(
                f"{url}: the label of {key} can't be read; expected a number or a name in .cls or in .json"
            ) from None
        yield _Entry(key, (member.offset_data, member.size) if encoded is None else encoded, label)


def find_tars(path: str) -> tuple[list[str], tuple[str, ...] | None]:
    """Paths or addresses of the tars that a path, pattern, address or list names, and the class names if there are any.

    Raises:
        PecoError: there is no tar, or the list can't be read.
    """
    names = None
    local = Path(path)
    if is_address(path) or not local.exists():
        urls = _expand(path, Path())
    elif local.is_dir():
        urls = sorted(str(p) for p in local.rglob("*") if p.name.endswith(TAR_SUFFIXES) and p.name[0] != ".")
    elif path.endswith(TAR_SUFFIXES):
        urls = [path]
    else:
        entries, names = _read_list(local)
        urls = [url for entry in entries for url in _expand(entry, local.parent)]
    if not urls:
        raise PecoError(f"{path}: no tar found; {_EXPECTED}")
    file = (local if local.is_dir() else local.parent) / "classes.txt"
    if names is None and not is_address(path) and file.is_file():
        names = tuple(line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip())
    if names is not None and (len(set(names)) < len(names) or not names):
        raise PecoError(f"{path}: the class names are empty or not all different; name each class once")
    return urls, names


def _read_list(path: Path) -> tuple[list[str], tuple[str, ...] | None]:
    names = None
    try:
        text = path.read_text(encoding="utf-8")
        found: Any = [line.strip() for line in text.splitlines() if line.strip() and line.strip()[0] != "#"]
        if path.suffix == ".json":
            found = json.loads(text)
            if isinstance(found, dict):
                names = tuple(map(str, found["classes"])) if "classes" in found else None
                found = found["shards"]
        if not isinstance(found, list) or not all(isinstance(entry, str) for entry in found):
            raise ValueError
    except OSError as error:
        raise PecoError(f"{path}: can't be read ({error.strerror}); {_EXPECTED}") from None
    except (ValueError, KeyError, TypeError):
        raise PecoError(
            f'{path}: not a list of tars; expected text with one per line, or JSON: a list or {{"shards": [...], "classes": [...]}}'
        ) from None
    return found, names


def _expand(entry: str, folder: Path) -> list[str]:
    from braceexpand import UnbalancedBracesError, braceexpand  # type: ignore[attr-defined]  # comes with webdataset

    if entry.startswith("pipe:"):
        return [entry]  # braces are the shell's
    try:
        patterns = list(braceexpand(entry))
    except UnbalancedBracesError:
        raise PecoError(f"{entry}: the braces don't match; expected a pattern such as train-{{000..012}}.tar") from None
    urls: list[str] = []
    for pattern in patterns:
        if is_address(pattern):
            urls.append(pattern)
            continue
        file = str(folder / pattern)
        found = [file] if Path(file).is_file() else sorted(glob.glob(file, recursive=True))
        if not found:
            raise PecoError(f"{file}: no such file; {_EXPECTED}")
        urls += found
    return urls


def _assign_splits(urls: list[str], path: str) -> dict[str, str | None]:
    """Split of each tar; None: by the keys of its samples."""
    found = {url: _named_split(url) for url in urls}
    kinds = set(found.values())
    if kinds == {None} or kinds == {"train"}:
        return dict.fromkeys(urls)
    for url, split in found.items():
        if split is None:
            raise PecoError(
                f"{path}: {url} names no split, but others do; name all tars train…, val… or test…, or none of them"
            )
    if "train" not in kinds:
        raise PecoError(f"{path}: there are tars for {' and '.join(sorted(map(str, kinds)))}, but none for train")
    held_out = "val" if "val" in kinds else "test"
    return {url: "train" if split == "train" else "val" for url, split in found.items() if split in ("train", held_out)}


def _named_split(url: str) -> str | None:
    folder, file = ["", *re.split(r"[?#]", url)[0].split("/")][-2:]
    match = re.search(r"(?:^|[^a-z])(train|val|test)", file.lower())
    if match is None:
        match = re.fullmatch(r"(train|val|test)(?:ing|idation)?", folder.lower())
    return match[1] if match else None


def _class_names(labels: set[str], path: str) -> tuple[str, ...]:
    """Class names for labels without a list of names: all numbers up to the highest, or the names found."""
    if not all(label.isdecimal() for label in labels):
        return tuple(sorted(labels))
    highest = max(map(int, labels), default=-1)
    if highest >= _MAX_NUMBER:
        raise PecoError(f"{path}: label {highest} is not a class number; list the classes in classes.txt")
    return tuple(map(str, range(highest + 1)))


def _read_label(members: dict[str, bytes]) -> str | None:
    value: Any = None
    if "cls" in members:
        value = members["cls"].decode("utf-8").strip()
    elif "json" in members:
        value = json.loads(members["json"])
        value = value.get("label") if isinstance(value, dict) else None
    if value is None or value in ("", -1, "-1"):
        return None
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise ValueError
    text = str(value)
    return str(int(text)) if text.isdecimal() else text


def _key_and_kind(name: str) -> tuple[str, str]:
    folder, slash, file = name.rpartition("/")
    stem, _, kind = file.partition(".")
    return folder + slash + stem, kind.lower()


def is_address(text: str) -> bool:
    """True if tars are read from this text as an address rather than a path."""
    return text.startswith("pipe:") or "://" in text


def _is_plain_tar(url: str) -> bool:
    if is_address(url) or not url.endswith(".tar"):
        return False
    try:
        with open(url, "rb") as file:
            return not file.read(6).startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ"))
    except OSError as error:
        raise PecoError(f"{url}: can't be read ({error.strerror}); check its permissions") from None


def _file_name(url: str) -> str:
    return re.split(r"[?#]", url)[0].split("/")[-1]


def _opened(url: str) -> IO[bytes]:
    if not is_address(url):
        return open(url, "rb")
    scheme = url.split(":")[0]
    from webdataset.gopen import gopen, gopen_schemes

    if scheme in gopen_schemes:
        return cast(IO[bytes], gopen(url, "rb"))
    import fsspec  # type: ignore[import-untyped]  # webdataset has no s3

    return cast(IO[bytes], fsspec.open(url, "rb").open())


def _reason(error: Exception) -> str:
    """The reason of an error in one line. webdataset reads http by curl and reports only curl's exit status."""
    text = " ".join(str(error).split()) or type(error).__name__
    status = re.search(r"'curl'.* exit (\d+)", text)
    return _CURL.get(int(status[1]), f"curl ended with status {status[1]}") if status else text
