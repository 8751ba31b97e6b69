"""Stage `tokenizer`: train the perceptual codebook, a VQ-VAE whose reconstructions match the image in deep features.

With `tokenizer.objective: vqkd` the codebook is trained to predict deep features instead (BEiT v2's). With `tokenizer.init` the
training starts from a given tokenizer, or that one is the result as it is.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from peco.core import artifacts, config, workfiles
from peco.data.loader import eval_batches
from peco.data.samples import CenterView, RandomView
from peco.data.shards import open_evaluation_split, open_shards
from peco.perceptual.distance import PerceptualDistance
from peco.perceptual.features import FeatureNet
from peco.runtime import model_card, paths
from peco.runtime.fit import publish_metrics, seed_everything, train_loader
from peco.runtime.stage import StageRun, run_stage
from peco.tokenizer import storage
from peco.tokenizer.adversarial import PatchDiscriminator, adversarial_losses
from peco.tokenizer.image_metrics import psnr
from peco.tokenizer.loss import Distillation, FeatureDecoder, TokenizerLoss
from peco.tokenizer.model import PerceptualTokenizer
from peco.training.distributed import Dist
from peco.training.loop import Frozen, Task, train

PARAMS = ("seed", "loader", "perceptual_net.blocks", "perceptual_net.image_size", "tokenizer")
EVAL_BATCH = 64
VAL_IMAGES = 2000  # limit of images for the scores, up to a batch


class CodebookTask(Task):
    """A tokenizer in training: the updates and metrics of its codebook, for any objective."""

    def __init__(self, tokenizer: PerceptualTokenizer) -> None:
        super().__init__()
        self.tokenizer = tokenizer

    def after_step(self, step: int, total: int) -> None:
        self.tokenizer.quantizer.update()

    def epoch_metrics(self) -> dict[str, float]:
        usage, perplexity = self.tokenizer.quantizer.epoch_usage()
        return {"usage": usage, "perplexity": perplexity}


class ReconstructionTask(CodebookTask):
    """PeCo's objective: reconstruct views through the codebook; with a discriminator if `adversarial.weight` > 0."""

    def __init__(self, tokenizer: PerceptualTokenizer, loss: TokenizerLoss, adversarial: config.Adversarial) -> None:
        super().__init__(tokenizer)
        self._loss = Frozen(loss)  # it holds the perceptual network
        self.adversarial = adversarial
        self.discriminator = PatchDiscriminator(adversarial) if adversarial.weight else None

    def forward(self, batch: dict[str, Tensor], step: int, total: int) -> tuple[Tensor, dict[str, Tensor]]:
        reconstruction, quantized = self.tokenizer(batch["image"])
        loss, parts = self._loss.value(reconstruction, batch["image"], quantized)
        if self.discriminator is not None:
            generator, discriminator = adversarial_losses(self.discriminator, reconstruction, batch["image"])
            generator_active = step >= self.adversarial.start * total
            loss = loss + discriminator + (self.adversarial.weight * generator if generator_active else 0)
            parts |= {"generator": generator.detach(), "discriminator": discriminator.detach()}
        return loss, parts


class DistillationTask(CodebookTask):
    """BEiT v2's objective: predict the teacher's features from the codes. The pixel decoder is trained on detached codes."""

    def __init__(
        self, tokenizer: PerceptualTokenizer, decoder: FeatureDecoder, distillation: Distillation, loss: TokenizerLoss
    ) -> None:
        super().__init__(tokenizer)
        self.feature_decoder = decoder
        self._distillation = Frozen(distillation)  # it holds the teacher
        self._loss = loss

    def forward(self, batch: dict[str, Tensor], step: int, total: int) -> tuple[Tensor, dict[str, Tensor]]:
        x_BCHW = batch["image"]
        reconstruction, quantized = self.tokenizer(x_BCHW, detach=True)
        distance = self._distillation.value(self.feature_decoder(quantized.z_q_BDhw), x_BCHW)
        loss, parts = self._loss(reconstruction, x_BCHW, quantized)
        return loss + distance, {**parts, "distillation": distance.detach()}


def build_task(cfg: config.Tokenizer, tokenizer: PerceptualTokenizer, distance: PerceptualDistance) -> CodebookTask:
    """The task of the tokenizer's objective; `distance` holds the frozen perceptual network."""
    if cfg.objective == "peco":
        loss = TokenizerLoss(cfg.pixel, distance, cfg.perceptual.weight, cfg.commitment)
        return ReconstructionTask(tokenizer, loss, cfg.adversarial)
    decoder = FeatureDecoder(cfg.autoencoder, cfg.quantizer.dim, distance.net.channels[-1])
    loss = TokenizerLoss(cfg.pixel, None, 0, cfg.commitment)
    return DistillationTask(tokenizer, decoder, Distillation(distance.net), loss)


def main(run: StageRun) -> None:
    cfg, seed = run.config.tokenizer, run.config.seed
    dist = Dist.init()
    images = open_shards(paths.SHARDS, "train")
    given = Path(cfg.init.path) if cfg.init.source == "path" else None
    weights = storage.load_given(cfg) if given else None
    seed_everything(seed)
    tokenizer = PerceptualTokenizer(
        cfg.autoencoder,
        cfg.quantizer,
        all_reduce=dist.all_reduce_sum,
        broadcast=dist.broadcast,
        gather=dist.all_gather,
        seed=seed,
    )
    if weights is not None:
        artifacts.fill(tokenizer, weights, f"tokenizer.init.path: {given}")
        if dist.rank == 0:
            print(f"{run.name}: {'starts from' if cfg.init.train else 'is'} {given}", flush=True)
    given_net = run.config.perceptual_net
    net = FeatureNet(artifacts.load_timm(paths.PERCEPTUAL_NET), given_net.blocks, given_net.image_size)
    distance = PerceptualDistance(net, cfg.perceptual.normalize)
    distance = distance.to(dist.device)
    if not cfg.init.train:
        if dist.rank == 0:
            publish(run, tokenizer.to(dist.device))
            paths.PLOTS.joinpath(run.name).mkdir(parents=True, exist_ok=True)
            scores = score(tokenizer.eval(), distance, cfg.image_size, dist.device, run.workers)
            model_card.write(paths.TOKENIZER, model_card.Facts(model_card.shard_data(paths.SHARDS), scores))
            run.metrics(scores)
        return
    task = build_task(cfg, tokenizer, distance)
    transform = RandomView(seed, cfg.view, cfg.image_size)
    work = run.work([paths.SHARDS, paths.PERCEPTUAL_NET, *([given] if given else [])], dist.share)
    loader = train_loader(run, images, transform, cfg.optim, dist)
    logs = train(task, loader, name=run.name, optim=cfg.optim, seed=seed, dist=dist, work=work)
    if dist.rank == 0:
        publish(run, tokenizer)
        summary = score(tokenizer.eval(), distance, cfg.image_size, dist.device, run.workers)
        summary |= {name: logs.latest[name] for name in ("usage", "perplexity")}
        training = model_card.Training(cfg.optim, len(images), "a given tokenizer" if given else "random weights")
        model_card.write(
            paths.TOKENIZER, model_card.Facts(model_card.shard_data(paths.SHARDS), summary, training, seed)
        )
        publish_metrics(run, logs, summary)
        workfiles.mark_finished(work)


def publish(run: StageRun, tokenizer: PerceptualTokenizer) -> None:
    """Write the tokenizer as the stage's result."""
    cfg = run.config.tokenizer
    lineage: dict[str, Any] = {}
    if not cfg.init.train:
        lineage = model_card.lineage_of(Path(cfg.init.path))
    elif cfg.objective == "vqkd" or cfg.perceptual.weight:
        lineage = model_card.lineage_of(paths.PERCEPTUAL_NET)
    extra = {"image_size": cfg.image_size, **lineage}
    storage.save(paths.TOKENIZER, tokenizer, cfg.autoencoder, cfg.quantizer, extra)


@torch.no_grad()
def score(
    tokenizer: PerceptualTokenizer, distance: PerceptualDistance, size: int, device: torch.device, workers: int
) -> dict[str, float]:
    """Scores of reconstructions of the val split (else of train): PSNR in dB, L1 on [0, 1], perceptual distance."""
    split = open_evaluation_split(paths.SHARDS)
    count, l1, perceptual, decibels = 0, 0.0, 0.0, 0.0
    for batch in eval_batches(
        split, CenterView(size), batch_size=EVAL_BATCH, workers=workers, device=device, label="tokenizer: scoring"
    ):
        if count >= VAL_IMAGES:
            break
        x_BCHW = batch["image"]
        reconstruction_BCHW = tokenizer.reconstruct(x_BCHW)
        decibels += float(psnr(reconstruction_BCHW, x_BCHW).sum())
        l1 += float((reconstruction_BCHW - x_BCHW).abs().mean(dim=(1, 2, 3)).sum())
        perceptual += float(distance(reconstruction_BCHW, x_BCHW)) * len(x_BCHW)
        count += len(x_BCHW)
    return {"val_psnr": decibels / count, "val_l1": l1 / count, "val_perceptual": perceptual / count}


if __name__ == "__main__":
    run_stage(Path(__file__).stem, PARAMS, main)
