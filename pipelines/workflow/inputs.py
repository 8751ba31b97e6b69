"""The user's images as a tracked input under `data/`.

`look` tells what a folder, an archive, a pattern, a list or an address holds, and refuses what the `shards` stage couldn't
read; it writes nothing. `take` then brings it in: images and tars into DVC's cache (`dvc add`), so that another machine can fetch
them by hash; a list of addresses as a small file for Git.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from peco.core import config
from peco.core.errors import PecoError
from peco.sources.archives import DAMAGE, StrictTarInfo, is_hidden
from peco.sources.base import IMAGE_EXTENSIONS, extension
from peco.sources.webdataset import find_tars

DATA = Path("data")
SCENES = DATA / "scenes.yaml"
TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz")  # of WebDataset tars; archives of images are told by content
EXPECTED = (
    "expected a folder, tar or zip of images, WebDataset tars (a folder, a pattern, addresses or a list of these)"
)
FIRST_MEMBERS = 256  # of a tar that are looked at for labels


@dataclass(frozen=True)
class Input:
    """What is to be tracked.

    Attributes:
        source: `dataset.source`.
        path: `dataset.path`, relative to the repository.
        content: a file or folder for DVC, files for DVC by their place below `path`, the text of a list, or None where all is
            in place already.
    """

    source: str
    path: Path
    content: Path | dict[str, Path] | str | None

    @property
    def overrides(self) -> list[str]:
        """What selects it when composing."""
        return choose(self.source, self.path.as_posix())


def choose(source: str, path: str) -> list[str]:
    """Hydra overrides that select a data set."""
    quoted = path.replace("\\", "\\\\").replace("'", "\\'")
    return [f"dataset={source}", f"dataset.path='{quoted}'"]


def look(data: str, root: Path = Path()) -> Input:
    """Tell what `data` is: `scenes`, a path, a pattern or an address. Writes nothing.

    Raises:
        PecoError: there is nothing there, it can't be read, or another input has its name.
    """
    if data == "scenes":
        return Input("scenes", SCENES, None)
    if _is_address(data):
        find_tars(data)  # refuses braces that don't match
        name = re.split(r"[?#]", data)[0].rsplit("/", 1)[-1]
        return _list(_safe_name(re.sub(r"[^A-Za-z0-9]+", "-", name)) + ".txt", data + "\n", data, root)
    path = Path(os.path.abspath(Path(data).expanduser()))
    require_present(path, root)
    if not path.exists():
        if not re.search(r"[*?[{]", data):
            raise PecoError(f"{data}: no such file or folder; {EXPECTED}")
        return _pattern(data, root)
    if root.resolve().is_relative_to(path.resolve()):
        raise PecoError(f"{data}: holds this project itself; name the folder of the images")
    home = Path(os.path.abspath(root / DATA))
    source = _kind(path, data)
    listed = source == "list"
    if path.is_relative_to(home):
        place = DATA / path.relative_to(home)
        there = listed or tracked_by(root / place) is not None
        return Input("webdataset" if listed else source, place, None if there else path)
    if listed:
        return _list(*_portable_list(path, data), data, root)
    target = DATA / _safe_name(path.name)
    return Input(source, target, None if _is_there(target, path, data, root) else path)


def tracked(parameters: config.Config) -> dict[str, Path]:
    """What stages read below `data/`, by parameter: also what an evaluation that is off would read, since DVC looks for it."""
    evaluate = parameters.evaluate
    return {
        "dataset.path": Path(parameters.dataset.path),
        "evaluate.segmentation.path": Path(evaluate.segmentation.path),
        "evaluate.detection.path": Path(evaluate.detection.path),
        "evaluate.agreement.path": Path(evaluate.agreement.path),
    }


def require_there(key: str, path: Path) -> None:
    """Check that what a parameter names is there, or tracked.

    Raises:
        PecoError: it isn't.
    """
    if path.exists() or tracked_by(path) is not None:
        return
    if path == SCENES:
        remedy = f"`git checkout {path}` brings it back"
    elif key == "dataset.path":
        remedy = "`make repro DATA=folder-or-tar` takes your images in"
    else:
        remedy = f"copy yours there and `dvc add {path}`"
    raise PecoError(f"{key}: {path} does not exist; {remedy}")


def require_present(path: Path, root: Path = Path()) -> None:
    """Check that a tracked input is not merely known by its `.dvc` file.

    Raises:
        PecoError: it is to be fetched first.
    """
    pointer = None if path.exists() else tracked_by(path)
    if pointer is not None:
        shown = os.path.relpath(pointer, root)
        raise PecoError(f"{os.path.relpath(path, root)}: not here yet; `dvc pull {shown}` fetches it")


def take(found: Input, root: Path = Path()) -> None:
    """Bring an input under `data/`; if that fails, nothing of it stays there.

    Raises:
        PecoError: a file can't be copied, or DVC refuses.
    """
    target = root / found.path
    if found.content is None:
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(found.content, str):
        target.write_text(found.content, encoding="utf-8")
        return
    pointer = _pointer(target)
    in_place, known = target.exists(), pointer.exists()
    try:
        if isinstance(found.content, dict):
            _copy(found.content, target)
            _dvc_add([str(found.path)], found.path, root)
        elif in_place:
            _dvc_add([str(found.path)], found.path, root)
        else:
            _dvc_add([str(found.content.resolve()), "--out", str(found.path)], found.path, root)
    except BaseException:
        if not in_place:
            shutil.rmtree(target) if target.is_dir() else target.unlink(missing_ok=True)
        if not known:
            pointer.unlink(missing_ok=True)
        raise


def _copy(files: dict[str, Path], target: Path) -> None:
    size = sum(file.stat().st_size for file in files.values())
    print(f"Copying {len(files)} files, {size / 1e9:.1f} GB", file=sys.stderr)
    try:
        for place, file in files.items():
            (target / place).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target / place)
    except OSError as error:
        raise PecoError(f"{error.filename or target}: can't be copied ({error.strerror})") from None


def _dvc_add(arguments: list[str], path: Path, root: Path) -> None:
    """`dvc add`, with DVC's own progress on a terminal: large inputs take their time."""
    terminal = sys.stderr.isatty()
    print(f"Taking {path} into DVC; every file is read once", file=sys.stderr)
    command = [sys.executable, "-m", "dvc", "add", *arguments]
    pipe = None if terminal else subprocess.PIPE
    result = subprocess.run(
        command, cwd=root, stdout=pipe, stderr=pipe, text=True, errors="backslashreplace", check=False
    )
    if result.returncode:
        lines = [line for line in (result.stderr or "").splitlines() if line.startswith("ERROR: ")]
        reason = "; ".join(line.removeprefix("ERROR: ") for line in lines)
        raise PecoError(f"{path}: DVC can't take it: {reason or 'its reason stands above'}")


def _kind(path: Path, data: str) -> str:
    """`images`, `webdataset`, or `list` for a file that lists tars."""
    try:
        if path.is_dir():
            return _folder_kind(path, data)
        with path.open("rb") as file:
            start = file.read(8)
        if start.startswith(b"PK"):
            with zipfile.ZipFile(path) as archive:
                return _images_only(archive.namelist(), data)
    except DAMAGE as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise PecoError(f"{data}: can't be read ({reason}); {EXPECTED}") from None
    try:
        return _tar_kind(path, data)
    except DAMAGE as error:
        if path.name.endswith(TAR_SUFFIXES):
            raise PecoError(f"{data}: not a readable tar ({error}); fetch or write it anew") from None
    try:
        path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise PecoError(f"{data}: neither a folder, a tar, a zip nor a list of tars; {EXPECTED}") from None
    return "list"


def _folder_kind(path: Path, data: str) -> str:
    found = {"images": False, "webdataset": False}
    for name in _walk(path):
        if extension(name) in IMAGE_EXTENSIONS:
            found["images"] = True
        elif name.endswith(TAR_SUFFIXES):
            found["webdataset"] = True
        if all(found.values()):
            raise PecoError(f"{data}: holds both images and tars; keep one kind, or name the tars by a pattern")
    if not any(found.values()):
        raise PecoError(f"{data}: no image and no tar in this folder; {EXPECTED}")
    return next(kind for kind, there in found.items() if there)


def _walk(path: Path) -> Iterator[str]:
    def fail(error: OSError) -> None:
        raise error

    for folder, folders, files in os.walk(path, onerror=fail):
        folders[:] = [name for name in folders if not is_hidden(name)]
        below = Path(folder).relative_to(path)
        yield from ((below / name).as_posix() for name in files if not is_hidden(name))


def _images_only(names: list[str], data: str) -> str:
    if not any(extension(n) in IMAGE_EXTENSIONS for n in names if not any(map(is_hidden, n.split("/")))):
        raise PecoError(f"{data}: no image in this archive; {EXPECTED}")
    return "images"


def _tar_kind(path: Path, data: str) -> str:
    """`webdataset` where an image has a label of its name beside it (`0001.jpg` and `0001.cls`), else `images`."""
    images, labels, number = set(), set(), 0
    with tarfile.open(path, tarinfo=StrictTarInfo) as archive:
        for member in archive:
            if not member.isfile() or is_hidden(member.name.rpartition("/")[2]):
                continue
            folder, slash, file = member.name.rpartition("/")
            key, ending = folder + slash + file.partition(".")[0], extension(file)
            if ending in IMAGE_EXTENSIONS:
                images.add(key)
            elif ending in ("cls", "json"):
                labels.add(key)
            number += 1
            if images and (images & labels or number >= FIRST_MEMBERS):
                break
    if not images:
        raise PecoError(f"{data}: no image in this archive; {EXPECTED}")
    if images & labels and not path.name.endswith(TAR_SUFFIXES):
        raise PecoError(f"{data}: WebDataset tars must be named {', '.join(TAR_SUFFIXES)}; rename it")
    return "webdataset" if images & labels else "images"


def _pattern(data: str, root: Path) -> Input:
    """Local tars by a pattern: they keep their places relative to the folder that holds them all."""
    matches, _ = find_tars(str(Path(data).expanduser()))
    files = [Path(os.path.abspath(file)) for file in dict.fromkeys(matches)]
    common = Path(os.path.commonpath([file.parent for file in files]))
    for file in files:
        if not file.name.endswith(TAR_SUFFIXES):
            raise PecoError(
                f"{data}: {file.name} is no tar; a pattern must match files named {', '.join(TAR_SUFFIXES)}"
            )
        try:
            _tar_kind(file, str(file))
        except DAMAGE as error:
            raise PecoError(f"{file}: not a readable tar ({error}); fetch or write it anew") from None
    content = {file.relative_to(common).as_posix(): file for file in files}
    classes = next((f for f in (d / "classes.txt" for d in (common, *(f.parent for f in files))) if f.is_file()), None)
    if classes is not None:
        content["classes.txt"] = classes
    target = DATA / _safe_name(common.name)
    return Input("webdataset", target, None if _is_there(target, content, data, root) else content)


def _portable_list(path: Path, data: str) -> tuple[str, str]:
    """Name and text under which a list of addresses serves on any machine."""
    urls, classes = find_tars(str(path))
    local = next((url for url in urls if not _is_address(url)), None)
    if local is not None:
        raise PecoError(
            f"{data}: lists tars of this machine ({local}); name their folder or a pattern such as 'shards/*.tar'"
        )
    if path.suffix != ".json" and classes is not None:  # from classes.txt beside it
        return _safe_name(path.stem) + ".json", json.dumps({"shards": urls, "classes": classes}, indent=1) + "\n"
    return _safe_name(path.name), path.read_text(encoding="utf-8")


def _list(name: str, text: str, data: str, root: Path) -> Input:
    target = root / DATA / name
    if not target.exists():
        return Input("webdataset", DATA / name, text)
    if target.is_file() and target.read_bytes() == text.encode():
        return Input("webdataset", DATA / name, None)
    raise PecoError(f"{data}: {DATA / name} is another list; `rm {DATA / name}` if it is not needed, or rename it")


def _is_there(target: Path, content: Path | dict[str, Path], data: str, root: Path) -> bool:
    """Whether the content lies at `target` already.

    Raises:
        PecoError: something else has this name.
    """
    pointer = _pointer(target)
    if (root / pointer).exists():
        if not _is_tracked_content(root / pointer, content):
            raise PecoError(
                f"{data}: {pointer} tracks other content of this name; `dvc remove --outs {pointer}`, or rename the source"
            )
        return (root / target).exists()
    if (root / target).exists():
        raise PecoError(f"{data}: {target} is there already; name that one (DATA={target}), or rename the source")
    return False


def _is_tracked_content(pointer: Path, content: Path | dict[str, Path]) -> bool:
    """Whether a `.dvc` file describes this content, by DVC's hashes: MD5 of a file, or of a folder's listing."""
    try:
        (out,) = yaml.safe_load(pointer.read_text(encoding="utf-8"))["outs"]
        if isinstance(content, Path) and content.is_file():
            return bool(out["md5"] == _md5(content))
        files = content if isinstance(content, dict) else {p: content / p for p in _every_file(content)}
        if out["size"] != sum(file.stat().st_size for file in files.values()):
            return False
        listing = [{"md5": _md5(files[place]), "relpath": place} for place in sorted(files)]
        return bool(out["md5"] == hashlib.md5(json.dumps(listing, sort_keys=True).encode()).hexdigest() + ".dir")
    except OSError as error:
        raise PecoError(f"{error.filename}: can't be read ({error.strerror})") from None
    except (yaml.YAMLError, KeyError, TypeError, ValueError):
        return False


def _every_file(folder: Path) -> Iterator[str]:
    for parent, _, files in os.walk(folder):
        yield from ((Path(parent) / name).relative_to(folder).as_posix() for name in files)


def _md5(file: Path) -> str:
    with file.open("rb") as stream:
        digest: Any = hashlib.file_digest(stream, "md5")
    return str(digest.hexdigest())


def _pointer(path: Path) -> Path:
    return path.with_name(path.name + ".dvc")


def tracked_by(path: Path) -> Path | None:
    """The `.dvc` file of this path or of a folder above."""
    return next((_pointer(p) for p in (path, *path.parents) if p.name and _pointer(p).is_file()), None)


def _is_address(text: str) -> bool:
    return text.startswith("pipe:") or "://" in text


def _safe_name(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", name).strip("-.") or "images"
