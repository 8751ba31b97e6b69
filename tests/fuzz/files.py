"""Inputs as files by name, their mutation, and writing them to a folder."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from random import Random

from . import values
from .archives import ODD_NAMES, tar_mutant, zip_mutant
from .binary import bytes_mutant, checkpoint_mutant, image_mutant, npy_mutant, parquet_mutant, safetensors_mutant

Files = dict[str, bytes]  # by path; a name that ends in LINK is a symbolic link, its content the target
LINK = "\0link"
IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".gif", ".webp", ".heic", ".avif", ".tga")


def content_mutant(name: str, data: bytes, rng: Random) -> bytes:
    """The content of a file changed as its name suggests."""
    ending = os.path.splitext(name)[1].lower()
    by_ending: dict[str, Callable[[bytes, Random], bytes]] = {
        ".json": values.json_mutant,
        ".jsonl": values.jsonl_mutant,
        ".yaml": values.yaml_mutant,
        ".xml": values.xml_mutant,
        ".npy": npy_mutant,
        ".safetensors": safetensors_mutant,
        ".parquet": parquet_mutant,
        ".pth": checkpoint_mutant,
        **dict.fromkeys((".txt", ".csv", ".tsv", ".cls", ".names"), values.text_mutant),
        **dict.fromkeys(IMAGES, image_mutant),
    }
    if ending in (".tar", ".gz"):
        return tar_mutant(data, rng, content_mutant)
    if ending == ".zip":
        return zip_mutant(data, rng, content_mutant)
    return by_ending.get(ending, bytes_mutant)(data, rng)


def mutate(files: Files, rng: Random, below: str) -> Files:
    """Change one to three things of the files whose path begins with `below`: contents, names, missing and additional files."""
    files = dict(files)
    for round_ in range(rng.choice([1, 1, 1, 2, 3])):
        names = sorted(name for name in files if name.startswith(below) and not name.endswith(LINK))
        if not names:
            break
        # Single descriptions count as much as many images.
        texts = [name for name in names if not name.lower().endswith(IMAGES)]
        name = rng.choice(texts if texts and rng.random() < 0.7 else names)
        if len(names) > 1 and rng.random() < 0.2:
            _change_names(files, name, rng, below)
            continue
        try:
            files[name] = content_mutant(name, files[name], rng)
        except Exception:
            if not round_:
                raise
            files[name] = bytes_mutant(files[name], rng)  # the round before has broken its structure
    return files


def _change_names(files: Files, name: str, rng: Random, below: str) -> None:
    folder = name.rpartition("/")[0]
    change = rng.randrange(8)
    if change == 0:
        del files[name]
    elif change == 1:
        files[f"{folder}/{rng.choice(ODD_NAMES)}"] = files.pop(name)
    elif change == 2:
        files[f"{folder}/{rng.choice(ODD_NAMES)}"] = files[name]
    elif change == 3:
        files[name] = b""
    elif change == 4:
        data = files.pop(name)
        files[f"{name}/{name.rpartition('/')[2]}"] = data  # a folder of the file's name
    elif change == 5:
        other = rng.choice(sorted(f for f in files if f.startswith(below)))
        targets = [
            name.rpartition("/")[2],
            "nothing",
            ".",
            "..",
            "/",
            other.removesuffix(LINK).rpartition("/")[2],
            "x" * 3000,
        ]
        files[f"{folder}/{rng.choice(['link', 'link.png', 'train', 'val'])}{LINK}"] = rng.choice(targets).encode()
    elif change == 6:
        upper = name.rpartition("/")
        files[f"{upper[0]}/{upper[2].upper()}"] = files[name]
    else:
        for other in [f for f in files if f.startswith(f"{folder}/") and folder.startswith(below)]:
            files[f"{below}{rng.choice(['train', 'x', 'images'])}/{other[len(folder) + 1 :]}"] = files.pop(other)


def write(files: Files, root: Path) -> None:
    """Write files; names that the file system refuses are left out."""
    for name, data in files.items():
        path = root / name.removesuffix(LINK)
        with contextlib.suppress(OSError, ValueError):
            if not os.path.abspath(path).startswith(f"{root}/"):
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            if name.endswith(LINK):
                path.symlink_to(os.fsdecode(data))
            else:
                path.write_bytes(data)
