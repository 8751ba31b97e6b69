"""`peco`: use what the workflow has made, without DVC or parameters.

peco info artifacts/backbone
peco tokenize photo.jpg
peco reconstruct photo.jpg -o reconstructions
peco embed photo.jpg > embeddings.jsonl
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from peco.errors import PecoError

TOKENIZER, BACKBONE = "artifacts/tokenizer", "artifacts/backbone"


def load_images(paths: list[str], size: int) -> Iterator[tuple[str, Any]]:
    """The evaluation view of each image: its path, and float32 (1, 3, size, size) in [0, 1].

    Raises:
        PecoError: a file is missing or no image.
    """
    import torch

    from peco.data import views
    from peco.data.shards import decode

    for path in paths:
        try:
            image = decode(Path(path).read_bytes())
        except OSError as error:
            raise PecoError(f"{path}: can't be read as an image ({error.strerror or error})") from None
        except ValueError as error:
            raise PecoError(f"{path}: can't be read as an image ({error})") from None
        pixels = views.apply(image, views.center(image.width, image.height), size)
        yield path, torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float().div_(255)


def tokenize(args: argparse.Namespace) -> None:
    """A JSON line an image: its path and the grid of token numbers."""
    tokenizer, size = open_tokenizer(args)
    for path, x_BCHW in load_images(args.images, size):
        print(json.dumps({"image": path, "tokens": tokenizer.tokenize(x_BCHW)[0].tolist()}))


def reconstruct(args: argparse.Namespace) -> None:
    """A PNG an image: the original beside what its tokens decode to, with the PSNR on the terminal."""
    import torch
    from PIL import Image

    tokenizer, size = open_tokenizer(args)
    folder = Path(args.output)
    folder.mkdir(parents=True, exist_ok=True)
    for number, (path, x_BCHW) in enumerate(load_images(args.images, size)):
        decoded_BCHW = tokenizer.reconstruct(x_BCHW)
        psnr = -10 * math.log10(max(1e-10, float((decoded_BCHW - x_BCHW).square().mean())))
        both_HWC = torch.cat([x_BCHW, decoded_BCHW], dim=3)[0].permute(1, 2, 0).mul(255).round().byte()
        target = folder / f"{Path(path).stem}.png"
        if target.exists() and number and target.name in {f"{Path(p).stem}.png" for p in args.images[:number]}:
            target = folder / f"{Path(path).stem}-{number}.png"
        Image.fromarray(both_HWC.numpy()).save(target)
        print(f"{target}  PSNR {psnr:.1f} dB")


def embed(args: argparse.Namespace) -> None:
    """A JSON line an image: its path and the mean patch token of a block."""
    from peco import artifacts, load_backbone

    model = load_backbone(args.model)
    size = int(model.pretrained_cfg["input_size"][1])
    depth = len(model.blocks)
    block = depth if args.block is None else args.block
    if not 1 <= block <= depth:
        raise PecoError(f"--block: {block} is not allowed; expected from 1 to {depth}")
    from peco.downstream.features import extract

    artifacts.section(args.model, "backbone")
    import torch

    for path, x_BCHW in load_images(args.images, size):
        found, _ = extract(model, [{"image": x_BCHW, "label": torch.zeros(1, dtype=torch.int64)}], [block])
        vector = [round(v, 6) for v in found[str(block)][0].tolist()]
        print(json.dumps({"image": path, "block": block, "embedding": vector}))


def info(args: argparse.Namespace) -> None:
    """What a model folder holds."""
    from peco import artifacts

    config = artifacts.describe(args.folder)
    tensors = artifacts.load_tensors(Path(args.folder) / artifacts.WEIGHTS)
    print(f"{args.folder}: {config.get('peco', {}).get('kind', config.get('architecture', 'model'))}")
    print(f"  weights     {sum(t.numel() for t in tensors.values()):,} numbers in {len(tensors)} tensors")
    for name, value in {**config.get("peco", {}), **config.get("model_args", {})}.items():
        if name != "kind":
            print(f"  {name:<11} {value}")


def open_tokenizer(args: argparse.Namespace) -> tuple[Any, int]:
    """The tokenizer and the side in pixels of its images.

    Raises:
        PecoError: the folder is missing, damaged or no tokenizer's; the size does not divide into tokens.
    """
    from peco import artifacts, load_tokenizer

    tokenizer = load_tokenizer(args.model)
    size = args.size or int(artifacts.section(args.model, "tokenizer")["image_size"])
    if size % tokenizer.factor:
        raise PecoError(f"--size: {size} is not allowed; expected a multiple of {tokenizer.factor}")
    return tokenizer, size


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(
        prog="peco", description="Use tokenizers and backbones that the peco workflow has made."
    )
    commands = top.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: Any, model: str | None, text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.set_defaults(run=run)
        if model:
            sub.add_argument("images", nargs="+", metavar="IMG", help="image file")
            sub.add_argument("-m", "--model", default=model, help="model folder (default: %(default)s)")
        return sub

    for name, run, text in (
        ("tokenize", tokenize, "print the token grid of images, a JSON line each"),
        ("reconstruct", reconstruct, "write each image beside its reconstruction from tokens"),
    ):
        sub = command(name, run, TOKENIZER, text)
        sub.add_argument("-s", "--size", type=int, help="side in pixels to work at (default: that of the training)")
    commands.choices["reconstruct"].add_argument(
        "-o", "--output", required=True, metavar="DIR", help="folder for the PNGs"
    )
    sub = command("embed", embed, BACKBONE, "print an embedding of images, a JSON line each")
    sub.add_argument("-b", "--block", type=int, help="block to take the features of, from 1 (default: the last)")
    command("info", info, None, "say what a model folder holds").add_argument("folder", metavar="DIR")
    return top


def main(argv: list[str] | None = None) -> int:
    args = parser().parse_args(argv)
    try:
        args.run(args)
    except PecoError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (KeyboardInterrupt, BrokenPipeError):
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
