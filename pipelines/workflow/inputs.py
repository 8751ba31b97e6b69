"""The user's images as a tracked input under `data/`.

`inspect` finds out what a folder, archive, pattern, list or address holds, and refuses what the `shards` stage couldn't read; it
writes nothing. `import_data` then imports it: images and tars into DVC's cache (`dvc add`), so that another machine can fetch them
by hash; a list of addresses as a small file for Git.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from peco.core import config
from peco.core.errors import PecoError
from peco.core.progress import tracked, waiting
from peco.files.archives import FolderArchive, open_archive
from peco.files.tar_archive import is_compressed
from peco.sources.detect import detect_source, matching_tars
from peco.sources.imagefolder import check_headers, layout_of
from peco.sources.open import open_source
from peco.sources.parquet import ParquetImages, is_parquet
from peco.sources.webdataset.tars import find_tars, is_address

DATA = Path("data")
SCENES = DATA / "scenes.yaml"
_LARGE_TAR = 1 << 30  # bytes
_HEADERS_READ = 2000  # images that are opened before a run


@dataclass(frozen=True)
class Input:
    """An input that was inspected.

    Attributes:
        source: `dataset.source`.
        path: `dataset.path`, relative to the repository.
        content: a file or folder for DVC, files for DVC by their path below `path`, the text of a list, or None if there is
            nothing left to import.
        origin: the user's own file or folder, None if the input is at `path` already.
    """

    source: str
    path: Path
    content: Path | dict[str, Path] | str | None
    origin: Path | None = None

    @property
    def overrides(self) -> list[str]:
        """Hydra overrides that select this input."""
        return dataset_overrides(self.source, self.path.as_posix())


def dataset_overrides(source: str, path: str) -> list[str]:
    """Hydra overrides that select a data set."""
    quoted = path.replace("\\", "\\\\").replace("'", "\\'")
    return [f"dataset={source}", f"dataset.path='{quoted}'"]


def inspect(data: str) -> Input:
    """The input that `data` names: `scenes`, a path, a pattern or an address. Writes nothing.

    Raises:
        PecoError: it doesn't exist or can't be read, or other data has its name.
    """
    if data == "scenes":
        return Input("scenes", SCENES, None)
    if is_address(data):
        find_tars(data)  # refuses braces that don't match
        name = re.split(r"[?#]", data)[0].rsplit("/", 1)[-1]
        return _list_input(_safe_name(re.sub(r"[^A-Za-z0-9]+", "-", name)) + ".txt", data + "\n", data)
    expanded = Path(data).expanduser()
    path = Path(os.path.abspath(expanded))
    require_pulled(path)
    if not path.exists() and re.search(r"[*?[{]", data):
        return _pattern_input(data)
    if Path().resolve().is_relative_to(path.resolve()):
        raise PecoError(f"{data}: holds this project itself; name the folder of the images")
    kind = detect_source(expanded)
    source = "webdataset" if kind == "list" else kind
    home = Path(os.path.abspath(DATA))
    copies = _files_to_copy(path) if path.is_dir() else None
    if path.is_relative_to(home):
        if copies is not None:
            raise PecoError(
                f"{data}: DVC can't store its links to folders or its names; move it out of {DATA}, and name it there"
            )
        tracked_path = DATA / path.relative_to(home)
        imported = kind == "list" or tracked_by(tracked_path) is not None
        return Input(source, tracked_path, None if imported else path)
    if kind == "list":
        return _list_input(*_portable_list(path, data), data)
    target = DATA / _safe_name(path.name)
    content = path if copies is None else copies
    return Input(source, target, None if _is_imported(target, content, data) else content, path)


def check_images(found: Input, dataset: config.Dataset) -> None:
    """Read the names of the images as the `shards` stage will, and print how. Of small sets, the headers are read too.

    Args:
        found: the input.
        dataset: the parameters that go with it.

    Raises:
        PecoError: the stage would refuse it.
    """
    path = found.origin or found.path
    if dataset.source == "webdataset" and not isinstance(found.content, str):
        _check_tars(path, dataset)
    if dataset.source != "images" or not path.exists():
        return
    with tempfile.TemporaryDirectory(prefix="peco-") as work:
        if is_parquet(path):
            ParquetImages(dataclasses.replace(dataset, path=str(path)))
            return
        if path.stat().st_size > _LARGE_TAR and is_compressed(path):
            return  # unpacking it takes as long as the stage itself, which checks it first
        archive = open_archive(path, Path(work))
        layout = layout_of(archive, path, dataset)
        check_headers(archive, layout, path, dataset, _HEADERS_READ)
    splits = ", ".join(f"{split} {len(images)}" for split, images in layout.splits.items())
    first, *notes = layout.notes
    counts = f"{splits}, {len(layout.classes) or 'no'} classes"
    print("; ".join([f"{path}: {first}: {counts}", *notes]), file=sys.stderr)


def _check_tars(path: Path, dataset: config.Dataset) -> None:
    """Read headers and labels of local tars as the `shards` stage will, and print what was found."""
    files = [Path(url) for url in find_tars(str(path)).urls if not is_address(url)]
    if any(file.stat().st_size > _LARGE_TAR and is_compressed(file) for file in files):
        return
    with tempfile.TemporaryDirectory(prefix="peco-") as work:
        source = open_source(dataclasses.replace(dataset, path=str(path)), Path(work))
    if source.total is not None:
        notes = "".join(f"; {note}" for note in source.notes)
        print(f"{path}: {source.total} images, {len(source.classes) or 'no'} classes{notes}", file=sys.stderr)


def _files_to_copy(folder: Path) -> dict[str, Path] | None:
    """The files of a folder if they must be copied one by one: DVC follows no links to folders and stores only UTF-8 names."""
    archive = FolderArchive(folder, Path())
    return None if archive.plain else archive.files


def input_paths(parameters: config.Config) -> dict[str, Path]:
    """The inputs by parameter; also those that aren't used, such as data of an evaluation that is off, since DVC looks for them."""
    evaluate = parameters.evaluate
    return {
        "dataset.path": Path(parameters.dataset.path),
        "perceptual_net.path": Path(parameters.perceptual_net.path),
        "tokenizer.init.path": Path(parameters.tokenizer.init.path),
        "pretrain.init.path": Path(parameters.pretrain.init.path),
        "evaluate.reference.path": Path(evaluate.reference.path),
        "evaluate.segmentation.path": Path(evaluate.segmentation.path),
        "evaluate.detection.path": Path(evaluate.detection.path),
        "evaluate.agreement.path": Path(evaluate.agreement.path),
    }


def require_exists(key: str, path: Path) -> None:
    """Check that the data that a parameter names exists here or is tracked by DVC.

    Raises:
        PecoError: neither is the case.
    """
    if path.exists() or tracked_by(path) is not None:
        return
    if path == SCENES:
        remedy = f"`git checkout {path}` restores it"
    elif key == "dataset.path":
        remedy = "`make repro DATA=folder-or-tar` imports your images"
    else:
        remedy = f"copy yours there and `dvc add {path}`"
    raise PecoError(f"{key}: {path} does not exist; {remedy}")


def require_pulled(path: Path) -> None:
    """Check that a tracked input is here, not only its `.dvc` file.

    Raises:
        PecoError: it must be fetched first.
    """
    pointer = None if path.exists() else tracked_by(path)
    if pointer is not None:
        raise PecoError(f"{os.path.relpath(path)}: not here yet; `dvc pull {os.path.relpath(pointer)}` fetches it")


def tracked_by(path: Path) -> Path | None:
    """The `.dvc` file of this path or of a folder above."""
    return next((_pointer(p) for p in (path, *path.parents) if p.name and _pointer(p).is_file()), None)


def import_data(found: Input) -> None:
    """Bring an input under `data/`. If that fails, nothing of it stays there.

    Raises:
        PecoError: a file can't be copied, or DVC refuses.
    """
    content, target = found.content, found.path
    if content is None:
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, str):
        target.write_text(content, encoding="utf-8")
        return
    pointer = _pointer(target)
    existed, was_tracked = target.exists(), pointer.exists()
    try:
        if isinstance(content, dict):
            _copy(content, target)
        if isinstance(content, dict) or existed:
            _dvc_add([str(target)], target)
        else:
            _dvc_add([str(content.resolve()), "--out", str(target)], target)
    except BaseException:
        if not existed:
            shutil.rmtree(target) if target.is_dir() else target.unlink(missing_ok=True)
        if not was_tracked:
            pointer.unlink(missing_ok=True)
        raise


def _copy(files: dict[str, Path], target: Path) -> None:
    size = sum(file.stat().st_size for file in files.values())
    print(f"Copying {len(files)} files, {size / 1e9:.1f} GB", file=sys.stderr)
    try:
        for name, file in tracked(files.items(), "Copying", len(files), "files"):
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target / name)
    except OSError as error:
        raise PecoError(f"{error.filename or target}: can't be copied ({error.strerror})") from None


def _dvc_add(arguments: list[str], path: Path) -> None:
    """Run `dvc add`. On a terminal it shows DVC's own progress, since large inputs take their time."""
    print(f"Adding {path} to DVC; every file is read once", file=sys.stderr)
    pipe = None if sys.stderr.isatty() else subprocess.PIPE
    command = [sys.executable, "-m", "dvc", "add", *arguments]
    with contextlib.nullcontext() if pipe is None else waiting(f"Adding {path} to DVC"):
        result = subprocess.run(command, stdout=pipe, stderr=pipe, text=True, errors="backslashreplace", check=False)
    if result.returncode:
        lines = [line for line in (result.stderr or "").splitlines() if line.startswith("ERROR: ")]
        reason = "; ".join(line.removeprefix("ERROR: ") for line in lines)
        raise PecoError(f"{path}: DVC can't add it: {reason or 'the reason is printed above'}")


def _pattern_input(data: str) -> Input:
    """Local tars by a pattern. They keep their paths relative to the folder that holds them all."""
    files = matching_tars(data)
    common = Path(os.path.commonpath([file.parent for file in files]))
    content = {file.relative_to(common).as_posix(): file for file in files}
    classes = next((f for f in (d / "classes.txt" for d in (common, *(f.parent for f in files))) if f.is_file()), None)
    if classes is not None:
        content["classes.txt"] = classes
    target = DATA / _safe_name(common.name)
    return Input(
        "webdataset", target, None if _is_imported(target, content, data) else content, Path(data).expanduser()
    )


def _portable_list(path: Path, data: str) -> tuple[str, str]:
    """Name and text under which a list of addresses works on any machine."""
    tars = find_tars(str(path))
    urls, classes = tars.urls, tars.classes
    local = next((url for url in urls if not is_address(url)), None)
    if local is not None:
        raise PecoError(
            f"{data}: lists tars of this machine ({local}); name their folder or a pattern such as 'shards/*.tar'"
        )
    if path.suffix != ".json" and classes is not None:  # from a classes.txt next to the list
        return _safe_name(path.stem) + ".json", json.dumps({"shards": urls, "classes": classes}, indent=1) + "\n"
    return _safe_name(path.name), path.read_text(encoding="utf-8")


def _list_input(name: str, text: str, data: str) -> Input:
    target = DATA / name
    if not target.exists():
        return Input("webdataset", target, text)
    if target.is_file() and target.read_bytes() == text.encode():
        return Input("webdataset", target, None)
    raise PecoError(f"{data}: {target} is another list; `rm {target}` if it is not needed, or rename it")


def _is_imported(target: Path, content: Path | dict[str, Path], data: str) -> bool:
    """True if this content is at `target` already.

    Raises:
        PecoError: other content has this name.
    """
    pointer = _pointer(target)
    if pointer.exists():
        if not _is_tracked_content(pointer, content):
            raise PecoError(
                f"{data}: {pointer} tracks other content of this name; `dvc remove --outs {pointer}`, or rename the source"
            )
        return target.exists()
    if target.exists():
        raise PecoError(f"{data}: {target} exists already; name that one (DATA={target}), or rename the source")
    return False


def _is_tracked_content(pointer: Path, content: Path | dict[str, Path]) -> bool:
    """True if a `.dvc` file describes this content, by DVC's hashes: MD5 of a file, or of a folder's listing."""
    try:
        (out,) = yaml.safe_load(pointer.read_text(encoding="utf-8"))["outs"]
        if isinstance(content, Path) and content.is_file():
            return bool(out["md5"] == _md5(content))
        if isinstance(content, Path):
            content = {p.relative_to(content).as_posix(): p for p in content.rglob("*") if p.is_file()}
        if out["size"] != sum(file.stat().st_size for file in content.values()):
            return False
        listing = [{"md5": _md5(content[name]), "relpath": name} for name in sorted(content)]
        return bool(out["md5"] == hashlib.md5(json.dumps(listing, sort_keys=True).encode()).hexdigest() + ".dir")
    except OSError as error:
        raise PecoError(f"{error.filename}: can't be read ({error.strerror})") from None
    except (yaml.YAMLError, KeyError, TypeError, ValueError):
        return False


def _md5(file: Path) -> str:
    with file.open("rb") as stream:
        digest: Any = hashlib.file_digest(stream, "md5")
    return str(digest.hexdigest())


def _pointer(path: Path) -> Path:
    return path.with_name(path.name + ".dvc")


def _safe_name(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", name).strip("-.") or "images"
