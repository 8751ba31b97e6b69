"""The kind of a single tar: samples with labels, or a folder of images that was packed."""

from __future__ import annotations

import tarfile
from pathlib import Path
from typing import IO, cast

from peco.core.errors import PecoError
from peco.files.damage import DAMAGE, StrictTarInfo, damage_reason
from peco.files.names import is_hidden, is_image_name, tidy
from peco.sources.webdataset.keys import Rule
from peco.sources.webdataset.labels import ENDINGS, JSON_KEY, json_keys
from peco.sources.webdataset.tars import TAR_SUFFIXES

_JSON_READ = 20  # members with JSON that are looked into
_MAX_JSON = 8 << 20  # bytes of one
_COMPANIONS = ("txt", "index", "id", "text", "caption")  # may be labels, if `dataset.label_field` has them


class NoImages(PecoError):
    """A tar without images."""


def tar_kind(path: Path) -> str | None:
    """`webdataset` or `images`.

    It is a WebDataset if an image has a member with a label of the same key (`0001.jpg` and `0001.cls`, or `0001.json` with
    `label`), or if most images have a text of the same key and no folder. JSON without labels is what labelme or Takeout put beside
    photos.

    Returns:
        None for a file that is no tar, neither by its content nor by its name.

    Raises:
        PecoError: it is damaged, holds no image, or is a WebDataset with another ending than TAR_SUFFIXES.
    """
    try:
        with tarfile.open(path, tarinfo=StrictTarInfo, encoding="utf-8", errors="surrogateescape") as archive:
            kind = _kind(archive)
    except DAMAGE as error:
        if path.name.endswith(TAR_SUFFIXES):
            raise PecoError(f"{path}: not a readable tar ({damage_reason(error)}); fetch or write it again") from None
        return None
    if kind is None:
        raise NoImages(f"{path}: no image in this archive; expected a folder, tar or zip of images, or WebDataset tars")
    if kind == "webdataset" and not path.name.endswith(TAR_SUFFIXES):
        raise PecoError(f"{path}: WebDataset tars must be named {', '.join(TAR_SUFFIXES)}; rename it")
    return kind


def _kind(archive: tarfile.TarFile) -> str | None:
    rules = (Rule(endings=ENDINGS), Rule("last dot", endings=ENDINGS))
    images, labels, texts, folders, others = set[str](), set[str](), set[str](), set[str](), set[str]()
    number = jsons = 0
    for member in archive:
        archive.members = []  # type: ignore[attr-defined]  # or tarfile keeps every header
        name = tidy(member.name)
        if not (member.isreg() or member.islnk() or member.issym()) or any(map(is_hidden, name.split("/"))):
            continue
        label_in_json = False
        if is_image_name(name):
            number += 1
            folders.add(name.rpartition("/")[0])
        elif name.lower().endswith(".json") and jsons < _JSON_READ and member.isreg() and member.size <= _MAX_JSON:
            jsons += 1
            label_in_json = JSON_KEY in json_keys(cast(IO[bytes], archive.extractfile(member)).read())
        for rule in rules:
            key, ending = rule.divide(name)
            if is_image_name("x." + ending):
                images.add(key)
            elif ending in ENDINGS or label_in_json:
                labels.add(key)
            elif ending in _COMPANIONS:
                texts.add(key)
            elif ending != "json":
                others.add(key)
            if key in images and key in labels:
                return "webdataset"
    if not images:
        return "webdataset" if labels & others else None
    return "webdataset" if len(folders) == 1 and 2 * len(images & texts) > number else "images"
