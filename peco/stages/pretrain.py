"""Stage `pretrain`: masked image modelling as in BEiT, with the perceptual tokens as targets.

With `pretrain.target: pixels` the targets are the pixels of the same views under the same masks. With `pretrain.init` the backbone
starts from given weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from peco.core import artifacts, config, schema, workfiles
from peco.core.errors import PecoError
from peco.data import views
from peco.data.loader import Fields
from peco.data.order import MASK, VIEW, sample_rng
from peco.data.shards import Sample, open_shards
from peco.data.tokens import TokenStore
from peco.mim import start, storage
from peco.mim.masking import block_mask
from peco.mim.model import MaskedImageModel, build_backbone, mim_loss, pixel_loss
from peco.runtime import model_card, paths
from peco.runtime.fit import publish_metrics, seed_everything, train_loader
from peco.runtime.stage import StageRun, run_stage
from peco.tokenizer import storage as tokenizer_storage
from peco.tokenizer.model import PerceptualTokenizer
from peco.training.distributed import Dist
from peco.training.loop import Frozen, Task, train

PARAMS = ("seed", "loader", "tokens", "pretrain")


@dataclass(frozen=True)
class MaskedView:
    """Transform of a sample to a view, the numbers of its masked patches and its stored tokens.

    If no tokens are stored, it has the view at the tokenizer's size instead, or neither without a tokenizer.
    """

    seed: int
    distribution: config.ViewDistribution
    size: int
    grid: int
    masking: config.Masking
    store: TokenStore
    tokenizer_size: int | None

    def __call__(self, sample: Sample, epoch: int) -> Fields:
        image = sample.open()
        mask = block_mask(sample_rng(self.seed, epoch, sample.index, MASK), self.grid, self.grid, self.masking)
        fields: Fields = {"index": sample.index, "masked": np.flatnonzero(mask)}
        if self.store.views:
            view, fields["tokens"] = self.store.get(sample.index, epoch % self.store.views)
        else:
            rng = sample_rng(self.seed, epoch, sample.index, VIEW)
            view = views.draw(rng, self.distribution, image.width, image.height)
            if self.tokenizer_size is not None:
                fields["image_tokenizer"] = partial(views.apply, image, view, self.tokenizer_size)
        fields["image"] = partial(views.apply, image, view, self.size)
        return fields


class TokenTask(Task):
    """Predict the tokens of masked patches. A tokenizer for online targets is frozen and not part of the state."""

    def __init__(self, model: MaskedImageModel, tokenizer: PerceptualTokenizer | None) -> None:
        super().__init__()
        self.model = model
        self._tokenizer = Frozen(tokenizer)

    def forward(self, batch: dict[str, Tensor], step: int, total: int) -> tuple[Tensor, dict[str, Tensor]]:
        masked_BM = batch["masked"]
        loss, accuracy = mim_loss(self.model(batch["image"], masked_BM), self.targets(batch), masked_BM)
        return loss, {"accuracy": accuracy}

    def targets(self, batch: dict[str, Tensor]) -> Tensor:
        """Tokens of all patches, int64 (B, L): the stored ones, or those of the view, computed in fp32 like the stored ones."""
        tokenizer = self._tokenizer.value
        if tokenizer is None:
            return batch["tokens"]
        x_BCHW = batch["image_tokenizer"]
        with torch.autocast(x_BCHW.device.type, enabled=False):
            return tokenizer.tokenize(x_BCHW).flatten(1)


class PixelTask(Task):
    """Predict the normalised pixels of masked patches."""

    def __init__(self, model: MaskedImageModel, patch: int) -> None:
        super().__init__()
        self.model, self.patch = model, patch

    def forward(self, batch: dict[str, Tensor], step: int, total: int) -> tuple[Tensor, dict[str, Tensor]]:
        image, masked_BM = batch["image"], batch["masked"]
        return pixel_loss(self.model(image, masked_BM), image, masked_BM, self.patch), {}


def main(run: StageRun) -> None:
    cfg, seed, size = run.config.pretrain, run.config.seed, run.config.loader.image_size
    dist = Dist.init()
    images = open_shards(paths.SHARDS, "train")
    store = TokenStore(paths.TOKENS, images)
    grid = size // cfg.vit.patch_size
    if store.grid != grid:
        raise PecoError(
            f"{paths.TOKENS}: grid of {store.grid}x{store.grid} tokens, but pretrain.vit has {grid}x{grid} patches; "
            "`dvc repro tokens` makes them again"
        )
    given = start.read(cfg.init, size)
    seed_everything(seed)
    backbone, arch, model_args = build_backbone(
        cfg.vit,
        size,
        cfg.layer_scale,
        cfg.drop_path,
        position_embedding=given is not None and given.position_embedding,
    )
    task: TokenTask | PixelTask
    tokenizer_size = None
    if cfg.target == "pixels":
        task = PixelTask(MaskedImageModel(backbone, 3 * cfg.vit.patch_size**2), cfg.vit.patch_size)
    else:
        tokenizer_size = tokenizer_storage.image_size(paths.TOKENIZER)
        tokenizer = None if store.views else tokenizer_storage.load(paths.TOKENIZER).to(dist.device)
        task = TokenTask(MaskedImageModel(backbone, store.codes), tokenizer)
    if given is not None:
        line = start.load(task.model, given, cfg.vit, head=cfg.init.head)
        if dist.rank == 0:
            print(f"{run.name}: {line}", flush=True)
    transform = MaskedView(seed, run.config.tokens.view, size, grid, cfg.masking, store, tokenizer_size)
    inputs = [paths.SHARDS, paths.TOKENIZER, paths.TOKENS]
    work = run.work([*inputs, *([Path(cfg.init.path)] if cfg.init.source == "path" else [])], dist.share)
    loader = train_loader(run, images, transform, cfg.optim, dist)
    logs = train(task, loader, name=run.name, optim=cfg.optim, seed=seed, dist=dist, work=work)
    if dist.rank == 0:
        extra = {"masking": schema.to_dict(cfg.masking)}
        if cfg.target == "tokens":
            extra |= model_card.lineage_of(paths.TOKENIZER)
        storage.save(paths.BACKBONE, task.model, target=cfg.target, arch=arch, model_args=model_args, extra=extra)
        summary: dict[str, float] = {name: logs.latest[name] for name in ("loss", "accuracy") if name in logs.latest}
        training = model_card.Training(cfg.optim, len(images), _described(cfg.init))
        model_card.write(paths.BACKBONE, model_card.Facts(model_card.shard_data(paths.SHARDS), summary, training, seed))
        publish_metrics(run, logs, summary)
        workfiles.mark_finished(work)


def _described(init: config.BackboneInit) -> str:
    """The start in words, for the model card."""
    if init.source != "path":
        return "random weights" if init.source == "random" else f"timm's {init.model}"
    known = artifacts.own_part(path) if (path := Path(init.path)).is_dir() else {}
    facts = [f"{key}: {known[key]}" for key in ("licence", "labels") if key in known]
    return f"given weights ({'; '.join(facts) or 'licence and labels are not known'})"


if __name__ == "__main__":
    run_stage(Path(__file__).stem, PARAMS, main)
