"""Images and the settings of a data set of images, for tests of its sources."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from PIL import Image

from peco.core.config import Dataset, Scenes


def dataset(source: str, path: Path | str, **values: object) -> Dataset:
    """The settings of a source, in which no image may be rejected or ignored; `values` replace others."""
    defaults: dict[str, Any] = {
        "scenes": Scenes(12, 4, 32),
        "resize": None,
        "samples_per_shard": 10,
        "val_fraction": 0.25,
        "max_rejected": 0.0,
        "max_ignored": 0.0,
        "max_pixels": 89_478_485,
        "range_16bit": (0, 65535),
        "labels": "auto",
        "label_field": None,
        "image_field": None,
        "class_numbers": "auto",
        "seed": 0,
    }
    return Dataset(source=source, path=str(path), **(defaults | values))  # type: ignore[arg-type]


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    """An image file."""
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()
