"""WebDataset tars for tests: their members, the sources that read them, and what those give."""

from __future__ import annotations

import io
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from peco.core.errors import PecoError
from peco.sources.base import RawSample
from peco.sources.webdataset.source import WebDatasetSource

Members = Sequence[tuple[str, bytes]]
KEYS = ("0000", "0001", "0002", "0003")
IN_TURN = {key: str(i % 2) for i, key in enumerate(KEYS)}  # the classes of `samples(KEYS)`
SHOTS = [f"2023-01-0{day} 1{hour}.{minute}0.22" for day in (5, 6) for hour in (0, 1) for minute in range(3)]


def packed(members: Members) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


def write(folder: Path, tars: dict[str, bytes | Members]) -> Path:
    for name, content in tars.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content if isinstance(content, bytes) else packed(content))
    return folder


def source(path: Path | str, **options: Any) -> WebDatasetSource:
    arguments: dict[str, Any] = {"val_fraction": 0.0, "seed": 0, "work": Path(tempfile.gettempdir()), **options}
    return WebDatasetSource(str(path), **arguments)


def images(found: WebDatasetSource) -> dict[str, str | None]:
    """Class of each image by its content."""
    return {s.encoded.decode(): None if s.label < 0 else found.classes[s.label] for s in read(found)}


def read(found: WebDatasetSource) -> list[RawSample]:
    samples = list(found.samples())
    assert len({sample.name for sample in samples}) == len(samples)
    return samples


def refusal(path: Path | str, **options: Any) -> str:
    with pytest.raises(PecoError) as error:
        list(source(path, **options).samples())
    assert "\n" not in str(error.value)
    return str(error.value)


def sample(key: str, label: str | None, image: str = "jpg", where: str = "cls") -> list[tuple[str, bytes]]:
    """An image, which holds its key, and its label."""
    return [(f"{key}.{image}", key.encode()), *([(f"{key}.{where}", label.encode())] if label is not None else [])]


def samples(keys: Sequence[str], *, image: str = "jpg", where: str = "cls") -> list[tuple[str, bytes]]:
    """Samples of the classes 0 and 1 in turn."""
    return [member for i, key in enumerate(keys) for member in sample(key, str(i % 2), image, where)]


def views(first: str, second: str, label: str | None = "cls") -> Members:
    """Two images of a sample each, with one label for both."""
    return [
        member
        for i, key in enumerate(KEYS)
        for member in [
            (f"{key}.{first}", f"{key} {first}".encode()),
            (f"{key}.{second}", f"{key} {second}".encode()),
            *([(f"{key}.{label}", str(i % 2).encode())] if label else []),
        ]
    ]
