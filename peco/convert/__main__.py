"""Convert a checkpoint of a vision network to a timm folder.

    python -m peco.convert dino_deitsmall16_pretrain_full_checkpoint.pth -o data/dino_vit_s

It takes checkpoints of DINO, MAE, BEiT, MoCo v3 and timm, of wrappers such as DDP, plain state dicts and safetensors, in any
precision. Heads are left out. The folder holds float32 safetensors and timm's config.json.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from peco.convert import network
from peco.convert.read import find, read
from peco.core import artifacts
from peco.core.errors import PecoError
from peco.networks import timm_nets


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(prog="python -m peco.convert", description="Convert a checkpoint to a timm folder.")
    top.add_argument("checkpoint", type=Path, help="file of PyTorch (read without running its code) or safetensors")
    top.add_argument("-o", "--output", type=Path, required=True, metavar="DIR", help="folder to write: data/NAME")
    top.add_argument("--entry", help="state dict to take, such as student (default: printed)")
    top.add_argument(
        "--prefix", help="prefix of the network's names, such as module.momentum_encoder. (default: printed)"
    )
    top.add_argument("--model", help="timm's name of the network (default: a plain ViT or BEiT, by its shapes)")
    top.add_argument(
        "--by-order",
        action="store_true",
        help="names differ from those of --model with its head, but number, order and shapes are the same: check the result",
    )
    top.add_argument("--heads", type=int, help="attention heads of a ViT (default: the usual number of its width)")
    top.add_argument(
        "--statistics",
        choices=network.STATISTICS,
        help="mean and std of its images: imagenet, or half (0.5) (default: the model's; imagenet for a ViT by its shapes)",
    )
    top.add_argument("--licence", help="of the weights, for model cards and the report")
    top.add_argument("--labels", help='that the weights have seen, such as "yes: ImageNet-1k" or "none", for the same')
    return top


def convert(arguments: argparse.Namespace) -> str:
    """Convert, and return a report of a few lines.

    Raises:
        PecoError: the checkpoint can't be read, is of no known network, or the folder can't be written.
    """
    source, target = arguments.checkpoint, arguments.output
    if arguments.by_order and arguments.model is None:
        raise PecoError("--by-order: needs --model, timm's name of the network")
    if arguments.by_order and source.suffix == ".safetensors":
        raise PecoError(
            f"--by-order: {source}: a safetensors file keeps no order; give the checkpoint that it was made of"
        )
    artifacts.require_replaceable(target, "converted checkpoint", _is_converted)
    stem = network.stem(arguments.model)
    found = find(read(source), source, arguments.entry, arguments.prefix, stem)
    made = network.build(
        found,
        str(source),
        name=arguments.model,
        heads=arguments.heads,
        statistics=arguments.statistics,
        by_order=arguments.by_order,
    )
    known = {key: value for key in ("licence", "labels") if (value := getattr(arguments, key))}
    artifacts.save_timm(
        target,
        made.model,
        arch=made.arch,
        model_args=made.model_args,
        mean=made.mean,
        std=made.std,
        extra={"kind": "network", "source": f"a checkpoint ({found.place})", **known},
    )
    lines = [f"{source}: {found.place}, {len(made.model.state_dict())} tensors"]
    if found.others:
        lines.append(f"not taken: {timm_nets.some_names(found.others)} (--entry, --prefix)")
    if made.left_out:
        lines.append(f"left out: {timm_nets.some_names(made.left_out)}")
    args = " ".join(f"{name}={value}" for name, value in made.model_args.items())
    lines.append(f"{target}: {made.arch} {args}, mean {list(made.mean)}, std {list(made.std)}")
    lines.append(
        f"`dvc add {target}`, then name it in perceptual_net.path, pretrain.init.path or evaluate.reference.path "
        "(docs/experiments.md)"
    )
    return "\n".join(lines)


def _is_converted(config: dict[str, Any]) -> bool:
    part = config.get("peco")
    return isinstance(part, dict) and part.get("kind") == "network"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; an error is one line on stderr and status 2."""
    try:
        print(convert(parser().parse_args(argv)))
    except PecoError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
