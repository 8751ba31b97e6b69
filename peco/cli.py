"""`peco`: use trained tokenizers and backbones, without DVC or parameters.

peco info artifacts/backbone
peco tokenize photo.jpg
peco reconstruct photo.jpg -o reconstructions
peco embed photo.jpg > embeddings.jsonl
"""

# Slow imports are in the functions that need them, so that `peco --help` is fast.

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peco.core.errors import PecoError

if TYPE_CHECKING:
    from torch import Tensor

    from peco.tokenizer.model import PerceptualTokenizer

TOKENIZER, BACKBONE = "artifacts/tokenizer", "artifacts/backbone"


def tokenize(args: argparse.Namespace) -> None:
    """Print a JSON line per image: its path and token grid."""
    tokenizer, size = open_tokenizer(args.model, args.size)
    for path, x_BCHW in load_images(args.images, size):
        print(json.dumps({"image": path, "tokens": tokenizer.tokenize(x_BCHW)[0].tolist()}), flush=True)


def reconstruct(args: argparse.Namespace) -> None:
    """Write a PNG per image, the original next to its reconstruction from tokens, and print the PSNR."""
    import torch
    from PIL import Image

    from peco.core.image_metrics import psnr

    tokenizer, size = open_tokenizer(args.model, args.size)
    folder = Path(args.output)
    folder.mkdir(parents=True, exist_ok=True)
    for out in (folder / name for name in png_names(args.images)):
        if any(out.exists() and Path(image).exists() and out.samefile(image) for image in args.images):
            raise PecoError(f"{out}: is one of the images and would be overwritten; choose another folder (-o)")
    for name, (_, x_BCHW) in zip(png_names(args.images), load_images(args.images, size), strict=True):
        decoded_BCHW = tokenizer.reconstruct(x_BCHW)
        (decibels,) = psnr(decoded_BCHW, x_BCHW).tolist()
        both_HWC = torch.cat([x_BCHW, decoded_BCHW], dim=3)[0].permute(1, 2, 0).mul(255).round().byte()
        Image.fromarray(both_HWC.numpy()).save(folder / name)
        print(f"{folder / name}  PSNR {decibels:.1f} dB", flush=True)


def embed(args: argparse.Namespace) -> None:
    """Print a JSON line per image: its path and the mean patch token of a block."""
    import torch

    from peco.core import artifacts
    from peco.probes.features import extract

    artifacts.section(args.model, "backbone")
    model: Any = artifacts.load_timm(args.model)
    depth = len(model.blocks)
    block = depth if args.block is None else args.block
    if not 1 <= block <= depth:
        raise PecoError(f"--block: {block} is not allowed; expected from 1 to {depth}")
    for path, x_BCHW in load_images(args.images, int(model.pretrained_cfg["input_size"][1])):
        features, _ = extract(model, [{"image": x_BCHW, "label": torch.zeros(1, dtype=torch.int64)}], [block])
        vector = [round(value, 6) for value in features[str(block)][0].tolist()]
        print(json.dumps({"image": path, "block": block, "embedding": vector}), flush=True)


def info(args: argparse.Namespace) -> None:
    """Print the content of a model folder."""
    from peco.core import artifacts

    config = artifacts.describe(args.folder)
    tensors = artifacts.load_tensors(Path(args.folder) / artifacts.WEIGHTS)
    parts = [part for part in (config.get("peco"), config.get("model_args")) if isinstance(part, dict)]
    notes = {name: value for part in parts for name, value in part.items()}
    print(f"{args.folder}: {notes.pop('kind', config.get('architecture', 'model'))}")
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
    from peco.tokenizer import storage

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
    import torch

    from peco.data import views
    from peco.data.images import decode

    for path in paths:
        try:
            image = decode(Path(path).read_bytes())
        except (OSError, PecoError) as error:
            reason = (error.strerror or error) if isinstance(error, OSError) else error
            raise PecoError(f"{path}: can't be read as an image: {reason}") from None
        pixels = views.apply(image, views.center(image.width, image.height), size)
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


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(prog="peco", description="Use tokenizers and backbones trained by the peco workflow.")
    commands = top.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: Any, text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.set_defaults(run=run)
        return sub

    def images(sub: argparse.ArgumentParser, model: str) -> None:
        sub.add_argument("images", nargs="+", metavar="IMG", help="image file")
        sub.add_argument("-m", "--model", default=model, metavar="DIR", help="model folder (default: %(default)s)")

    tokens = command("tokenize", tokenize, "print the token grid of each image as a JSON line")
    pictures = command("reconstruct", reconstruct, "write each image next to its reconstruction from tokens")
    for sub in (tokens, pictures):
        images(sub, TOKENIZER)
        sub.add_argument("-s", "--size", type=int, help="side of the images in pixels (default: that of the training)")
    pictures.add_argument("-o", "--output", required=True, metavar="DIR", help="folder for the PNGs")
    vectors = command("embed", embed, "print an embedding of each image as a JSON line")
    images(vectors, BACKBONE)
    vectors.add_argument("-b", "--block", type=int, help="block of the features, from 1 (default: the last)")
    command("info", info, "print the content of a model folder").add_argument("folder", metavar="DIR")
    return top


def main(argv: list[str] | None = None) -> int:
    """Run the command line: status 0, 2 for an error the user can fix, 130 if interrupted."""
    args = parser().parse_args(argv)
    try:
        args.run(args)
    except PecoError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader has left; nothing remains to flush
        return 1
    except OSError as error:
        print(f"error: {error.filename or 'output'}: {error.strerror or error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
