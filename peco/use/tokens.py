"""`peco tokenize`, `peco reconstruct` and `peco info`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from peco.core import artifacts
from peco.core.errors import PecoError
from peco.data import views
from peco.data.images import open_picture
from peco.tokenizer import storage
from peco.tokenizer.image_metrics import psnr
from peco.tokenizer.model import PerceptualTokenizer


def tokenize(model: str, images: Sequence[str], size: int | None) -> None:
    """Print a JSON line per image: its path and token grid."""
    tokenizer, size = open_tokenizer(model, size)
    for path, x_BCHW in load_images(images, size):
        print(json.dumps({"image": path, "tokens": tokenizer.tokenize(x_BCHW)[0].tolist()}), flush=True)


def reconstruct(model: str, images: Sequence[str], size: int | None, output: str) -> None:
    """Write a PNG per image, the original next to its reconstruction from tokens, and print the PSNR."""
    tokenizer, size = open_tokenizer(model, size)
    folder = Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    for out in (folder / name for name in png_names(images)):
        if any(out.exists() and Path(image).exists() and out.samefile(image) for image in images):
            raise PecoError(f"{out}: is one of the images and would be overwritten; choose another folder (-o)")
    for name, (_, x_BCHW) in zip(png_names(images), load_images(images, size), strict=True):
        decoded_BCHW = tokenizer.reconstruct(x_BCHW)
        (decibels,) = psnr(decoded_BCHW, x_BCHW).tolist()
        both_HWC = torch.cat([x_BCHW, decoded_BCHW], dim=3)[0].permute(1, 2, 0).mul(255).round().byte()
        Image.fromarray(both_HWC.numpy()).save(folder / name)
        print(f"{folder / name}  PSNR {decibels:.1f} dB", flush=True)


def info(folder: str) -> None:
    """Print the content of a model folder."""
    config = artifacts.describe(folder)
    parts = [part for part in (config.get("peco"), config.get("model_args")) if isinstance(part, dict)]
    notes = {name: value for part in parts for name, value in part.items()}
    if "skipped" in notes:
        artifacts.section(folder, notes["kind"])
    tensors = artifacts.load_tensors(Path(folder) / artifacts.WEIGHTS)
    print(f"{folder}: {notes.pop('kind', config.get('architecture', 'model'))}")
    print(f"  weights     {sum(t.numel() for t in tensors.values()):,} numbers in {len(tensors)} tensors")
    for name, value in notes.items():
        print(f"  {name:<11} {value}".encode("utf-8", "backslashreplace").decode())


def open_tokenizer(folder: str, size: int | None) -> tuple[PerceptualTokenizer, int]:
    """Read a tokenizer and the side in pixels of its images.

    Args:
        folder: of the tokenizer.
        size: value of `--size`; None for that of its training.

    Raises:
        PecoError: the folder is missing, damaged or of another kind; the size does not divide into tokens.
    """
    tokenizer = storage.load(folder)
    if size is None:
        size = storage.image_size(folder)
    if size < 1 or size % tokenizer.factor:
        raise PecoError(f"--size: {size} is not allowed; expected a multiple of {tokenizer.factor}")
    return tokenizer, size


def load_images(paths: Sequence[str], size: int) -> Iterator[tuple[str, Tensor]]:
    """Read the evaluation view of each image: its path, and float32 (1, 3, size, size) in [0, 1].

    Raises:
        PecoError: a file is missing or not an image.
    """
    for path in paths:
        try:
            image = open_picture(Path(path).read_bytes())
            pixels = views.apply(image, views.center(image.width, image.height), size)
        except (OSError, PecoError) as error:
            reason = (error.strerror or error) if isinstance(error, OSError) else error
            raise PecoError(f"{path}: can't be read as an image: {reason}") from None
        yield path, torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float().div_(255)


def png_names(paths: Sequence[str]) -> list[str]:
    """File names of the PNGs: the stem of each path, with a number if it is already taken."""
    names: list[str] = []
    for path in paths:
        stem, number = Path(path).stem, 1
        name = f"{stem}.png"
        while name in names:
            number += 1
            name = f"{stem}-{number}.png"
        names.append(name)
    return names
