"""A step of pre-training, compared with BEiT of Hugging Face's transformers at equal size, as markdown tables.

    python -m benchmarks.mim_step [--presets tiny imagenet_vit_b] [--rounds 9] [--compile]

Both have the same sizes, images, masks and targets, a relative position bias in each block, cross entropy at the masked patches,
clipping and fused AdamW, in fp32 with as many threads as torch has. transformers is measured with each of its attentions.
`--compile` adds both compiled by torch.compile, whose first step is not counted. Matrix products of as many FLOPs as our step show
how near the machine's limit it is. The last table has the share of each operation of ours.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.interleaved import measure, operations, products, table, training_step
from peco.core import config
from peco.core.device import plain_attention
from peco.core.params import parse_params
from peco.mim.masking import block_mask
from peco.mim.model import MaskedImageModel, build_backbone, mim_loss
from peco.plan.measure import count
from peco.plan.networks import networks
from pipelines.workflow.compose import compose_params

OURS = "peco"
IMAGES = {"tiny": 32}  # in a step; 8 for the others
PRODUCTS = "matrix products of the same FLOPs"


class Batch:
    """Images, masked patches and their codes, at random."""

    def __init__(self, cfg: config.Config, images: int) -> None:
        size, grid = cfg.loader.image_size, cfg.loader.image_size // cfg.pretrain.vit.patch_size
        generator = torch.Generator().manual_seed(0)
        masks = [block_mask(np.random.default_rng(i), grid, grid, cfg.pretrain.masking) for i in range(images)]
        self.x_BCHW = torch.rand(images, 3, size, size, generator=generator)
        self.mask_BL = torch.from_numpy(np.stack(masks)).flatten(1)
        self.masked_BM = self.mask_BL.nonzero()[:, 1].view(images, -1)
        self.tokens_BL = torch.randint(cfg.tokenizer.quantizer.codes, (images, grid**2), generator=generator)


Made = tuple[nn.Module, Callable[[], Tensor]]
Maker = Callable[[config.Config, Batch], Made]


def ours(cfg: config.Config, batch: Batch) -> Made:
    """The model of the stage `pretrain`, and its loss on the batch."""
    vit, size = cfg.pretrain.vit, cfg.loader.image_size
    backbone, _, _ = build_backbone(vit, size, cfg.pretrain.layer_scale, 0.0)
    model = MaskedImageModel(backbone, cfg.tokenizer.quantizer.codes)
    plain_attention(model)
    return model, lambda: mim_loss(model(batch.x_BCHW, batch.masked_BM), batch.tokens_BL, batch.masked_BM)[0]


def theirs(cfg: config.Config, batch: Batch, attention: str) -> Made:
    """BEiT of transformers at the same size, and its loss on the batch."""
    import transformers

    vit = cfg.pretrain.vit
    settings = transformers.BeitConfig(
        vocab_size=cfg.tokenizer.quantizer.codes,
        hidden_size=vit.embed_dim,
        num_hidden_layers=vit.depth,
        num_attention_heads=vit.num_heads,
        intermediate_size=int(vit.embed_dim * vit.mlp_ratio),
        image_size=cfg.loader.image_size,
        patch_size=vit.patch_size,
        use_mask_token=True,
        use_relative_position_bias=True,
        layer_scale_init_value=cfg.pretrain.layer_scale or 0.0,
        drop_path_rate=0.0,
        attn_implementation=attention,
    )
    model: Any = transformers.BeitForMaskedImageModeling(settings)
    labels = batch.tokens_BL[batch.mask_BL]
    pixels = 2 * batch.x_BCHW - 1
    return model, lambda: model(pixels, bool_masked_pos=batch.mask_BL, labels=labels).loss


def compare(preset: str, rounds: int, makers: Mapping[str, Maker], *, compiled: bool) -> str:
    """The tables of a preset."""
    cfg = parse_params(compose_params(preset, []))
    batch = Batch(cfg, IMAGES.get(preset, 8))
    steps = {}
    for name, make in makers.items():
        steps[name] = training_step(*make(cfg, batch))
        if compiled:
            model, loss = make(cfg, batch)
            model.compile()
            steps[f"{name}, compiled"] = training_step(model, loss)
    images = len(batch.x_BCHW)
    steps[PRODUCTS] = products(images * count(networks(cfg)["mim"]).flops)
    title = f"Preset {preset}, {images} images a step, {torch.get_num_threads()} threads"
    return "\n\n".join([title, table(measure(steps, rounds), OURS, images, "images/s"), operations(steps[OURS])])


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--presets", nargs="+", default=["tiny", "imagenet_vit_b"], metavar="PRESET")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--compile", action="store_true", help="add compiled models")
    arguments = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    makers: dict[str, Maker] = {OURS: ours}
    if importlib.util.find_spec("transformers"):
        makers |= {f"transformers, {name}": partial(theirs, attention=name) for name in ("sdpa", "eager")}
    else:
        print("transformers is not installed; its rows are left out")
    for preset in arguments.presets:
        print(f"\n{compare(preset, arguments.rounds, makers, compiled=arguments.compile)}", flush=True)


if __name__ == "__main__":
    main()
