"""The check of the images before the first stage of a run, once for each content."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
from pathlib import Path

from peco.core import config, workfiles
from peco.core.progress import waiting
from peco.core.publishing import write_file
from peco.sources.webdataset.tars import TAR_SUFFIXES
from pipelines.workflow import inputs

_CHECKED = "checked_images"  # file of the work folder, with the key of what was checked last


def check_once(dataset: config.Dataset) -> None:
    """Check the images of these parameters, unless the last check was of the same ones. Only the files that are here are read.

    Raises:
        PecoError: the `shards` stage would refuse them.
    """
    path = Path(dataset.path)
    is_list = path.is_file() and not path.name.endswith(TAR_SUFFIXES)
    if dataset.source == "scenes" or not path.exists() or (dataset.source == "webdataset" and is_list):
        return
    file, key = workfiles.root() / _CHECKED, _key(dataset)
    with contextlib.suppress(OSError):
        if key and file.read_text(encoding="utf-8") == key:
            return
    with waiting(f"{path}: checking the images"):
        inputs.check_images(inputs.Input(dataset.source, path, None), dataset)
    remember(dataset)


def remember(dataset: config.Dataset) -> None:
    """Note that the images of these parameters were checked."""
    if key := _key(dataset):
        with contextlib.suppress(OSError):  # then they are checked again
            write_file(workfiles.root() / _CHECKED, key)


def _key(dataset: config.Dataset) -> str:
    """Hash of parameters and content; empty if DVC doesn't track the images, so that their content has no hash."""
    pointer = inputs.tracked_by(Path(dataset.path))
    if pointer is None:
        return ""
    values = json.dumps(dataclasses.asdict(dataset), sort_keys=True)
    return hashlib.sha256(pointer.read_bytes() + values.encode()).hexdigest()
