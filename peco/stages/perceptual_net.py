"""Stage `perceptual_net`: the network whose features the perceptual loss compares.

`source: train` trains a vision transformer by MoCo v3 on the user's own shards; `source: timm` and `source: path` use an existing
network. The result is a timm model folder, and a kNN score next to that of the same network at random initialisation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from peco.core import artifacts, config, workfiles
from peco.core.errors import PecoError
from peco.data import views
from peco.data.loader import Fields, eval_batches
from peco.data.order import SECOND_VIEW, VIEW, sample_rng
from peco.data.samples import CenterView
from peco.data.shards import Sample, open_shards
from peco.networks import timm_nets
from peco.perceptual.moco import MoCo
from peco.probes import knn
from peco.probes.features import extract
from peco.probes.labeled import labeled_splits
from peco.runtime import model_card, paths
from peco.runtime.fit import publish_metrics, seed_everything, train_loader
from peco.runtime.stage import Skipped, StageRun, run_stage
from peco.training.distributed import Dist
from peco.training.loop import Task, train

PARAMS = (
    "seed",
    "loader",
    "perceptual_net.source",
    "perceptual_net.path",
    "perceptual_net.timm",
    "perceptual_net.image_size",
    "perceptual_net.vit",
    "perceptual_net.moco",
    "perceptual_net.optim",
)
SCORE_HOLDOUT, SCORE_KNN = 0.1, config.Knn(neighbors=(5, 10, 20), temperature=0.07)
EVAL_BATCH = 128


@dataclass(frozen=True)
class TwoViews:
    """Transform of a sample to two independent views."""

    seed: int
    distribution: config.ViewDistribution
    size: int

    def __call__(self, sample: Sample, epoch: int) -> Fields:
        image = sample.open()
        fields: Fields = {"index": sample.index}
        for name, purpose in (("image_1", VIEW), ("image_2", SECOND_VIEW)):
            rng = sample_rng(self.seed, epoch, sample.index, purpose)
            view = views.draw(rng, self.distribution, image.width, image.height)
            fields[name] = partial(views.apply, image, view, self.size)
        return fields


class MocoTask(Task):
    """MoCo v3 on pairs of views."""

    def __init__(self, moco: MoCo) -> None:
        super().__init__()
        self.moco = moco

    def forward(self, batch: dict[str, Tensor], step: int, total: int) -> tuple[Tensor, dict[str, Tensor]]:
        loss, scalars = self.moco(batch["image_1"], batch["image_2"])
        return loss, scalars

    def after_step(self, step: int, total: int) -> None:
        self.moco.update_momentum(step, total)


def vit_args(vit: config.Vit, image_size: int, pool: str = "token") -> dict[str, Any]:
    """Arguments of `timm.create_model` for a plain ViT of this size."""
    return {
        "img_size": image_size,
        "patch_size": vit.patch_size,
        "embed_dim": vit.embed_dim,
        "depth": vit.depth,
        "num_heads": vit.num_heads,
        "mlp_ratio": vit.mlp_ratio,
        "global_pool": pool,
    }


def main(run: StageRun) -> None:
    cfg, size = run.config.perceptual_net, run.config.loader.image_size
    dist = Dist.init()
    images = open_shards(paths.SHARDS, "train")
    if cfg.source != "train":
        if dist.rank == 0:
            seed_everything(run.config.seed)  # for `pretrained: false`
            net, source, commit = existing(run)
            publish(net, existing_args(net), source, origin(net, cfg), commit)
            paths.PLOTS.joinpath(run.name).mkdir(parents=True, exist_ok=True)
            scores = score(run, dist)
            model_card.write(paths.PERCEPTUAL_NET, model_card.Facts(model_card.shard_data(paths.SHARDS), scores))
            run.metrics(scores)
        return

    crop = cfg.moco.crop_size or size
    with torch.device("meta"):
        build_vit(cfg.vit, crop, cfg.moco.pool)  # reports a wrong architecture before any work
    seed_everything(run.config.seed)
    moco = MoCo(
        lambda: build_vit(cfg.vit, crop, cfg.moco.pool),
        cfg.moco,
        gather=dist.all_gather,
        mean_over_ranks=dist.mean_with_grad,
        rank=dist.rank,
    )
    task = MocoTask(moco)
    transform = TwoViews(run.config.seed, cfg.moco.view, crop)
    work = run.work([paths.SHARDS], dist.share)
    loader = train_loader(run, images, transform, cfg.optim, dist)
    logs = train(task, loader, name=run.name, optim=cfg.optim, seed=run.config.seed, dist=dist, work=work)
    if dist.rank == 0:
        encoder: Any = task.moco.encoder
        encoder.set_input_size((size, size))  # resamples the position embedding
        publish(encoder, vit_args(cfg.vit, size, cfg.moco.pool), "MoCo v3", model_card.SELF_SUPERVISED)
        scores = score(run, dist)
        training = model_card.Training(cfg.optim, len(images))
        facts = model_card.Facts(model_card.shard_data(paths.SHARDS), scores, training, run.config.seed)
        model_card.write(paths.PERCEPTUAL_NET, facts)
        publish_metrics(run, logs, scores)
        workfiles.mark_finished(work)


def build_vit(vit: config.Vit, image_size: int, pool: str) -> VisionTransformer:
    """A plain ViT without head, at random initialisation.

    Raises:
        PecoError: timm has no such architecture, or it is another kind of network.
    """
    key = f"perceptual_net.vit.arch: {vit.arch!r} is not allowed"
    if not timm.is_model(vit.arch):
        raise PecoError(f"{key}: timm has no such model; take a plain ViT, such as vit_small_patch16_224")
    try:
        net = timm.create_model(vit.arch, num_classes=0, **vit_args(vit, image_size, pool))
    except (TypeError, ValueError, RuntimeError, AssertionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise PecoError(f"{key} with perceptual_net.vit ({reason}); take vit_small_patch16_224") from error
    if not isinstance(net, VisionTransformer):
        raise PecoError(f"{key}: it is a {type(net).__name__}; take a plain ViT, such as vit_small_patch16_224")
    return net


def existing(run: StageRun) -> tuple[nn.Module, str, str | None]:
    """The existing network that the parameters name, its origin in words, and the hub commit of its weights, if known."""
    cfg = run.config.perceptual_net
    size = cfg.image_size or run.config.loader.image_size
    if cfg.source == "path":
        path = Path(cfg.path)
        net = timm_nets.by_path(path, cfg.timm.model, size)
        known = artifacts.own_part(path) if path.is_dir() else {}
        return net, known.get("source", cast(Any, net).pretrained_cfg["architecture"]), None
    net = timm_nets.by_name(cfg.timm, size)
    commit = timm_nets.hub_commit(net) if cfg.timm.pretrained else None
    if commit and not cfg.timm.revision:
        print(f"{run.name}: weights of commit {commit}; perceptual_net.timm.revision pins it", flush=True)
    return net, cfg.timm.model, commit


def existing_args(net: nn.Module) -> dict[str, Any]:
    """Arguments of `timm.create_model`, without the architecture, that rebuild an existing network."""
    known = dict(getattr(net, "_model_args", {}))  # a model of the hub may bring some
    known.pop("num_classes", None)
    embed: Any = getattr(net, "patch_embed", None)
    return known | ({"img_size": embed.img_size[0]} if getattr(embed, "strict_img_size", False) else {})


def origin(net: nn.Module, cfg: config.PerceptualNet) -> Mapping[str, str]:
    """Licence of an existing network's weights and the labels that they have seen, as far as they are known."""
    from_hub = cfg.source == "timm" and cfg.timm.pretrained
    found = model_card.weights_origin(cast(Any, net).pretrained_cfg, from_hub=from_hub)
    if cfg.source == "path" and (path := Path(cfg.path)).is_dir():
        known = artifacts.own_part(path)
        found |= {key: known[key] for key in found if key in known}
    return found


def publish(
    net: nn.Module, model_args: dict[str, Any], source: str, origin: Mapping[str, str], commit: str | None = None
) -> None:
    """Write the network as the stage's result; `origin` and `commit` are licence, labels and hub commit of its weights."""
    mean, std = (t.flatten().tolist() for t in artifacts.normalization(net))
    extra = {"kind": "perceptual_net", "source": source, **origin} | ({"hub_commit": commit} if commit else {})
    arch = cast(Any, net).pretrained_cfg["architecture"]
    artifacts.save_timm(paths.PERCEPTUAL_NET, net, arch=arch, model_args=model_args, mean=mean, std=std, extra=extra)


def score(run: StageRun, dist: Dist) -> dict[str, float]:
    """kNN accuracy of the published network and of the same at random initialisation; empty if there are no labels."""
    try:
        train, val = labeled_splits()
    except Skipped as reason:
        print(f"{run.name}: kNN score skipped: {reason}", flush=True)
        return {}
    scores: dict[str, float] = {}
    for prefix, model in (
        ("", artifacts.load_timm(paths.PERCEPTUAL_NET)),
        ("random_", artifacts.random_like(paths.PERCEPTUAL_NET, seed=run.config.seed)),
    ):
        size = run.config.perceptual_net.image_size or run.config.loader.image_size
        center = CenterView(timm_nets.whole_patches(model, size))
        train_features, val_features = (
            extract(
                model.to(dist.device),
                eval_batches(
                    split,
                    center,
                    batch_size=EVAL_BATCH,
                    workers=run.workers,
                    device=dist.device,
                    label=f"{run.name}: features of {split.split}",
                ),
            )
            for split in (train, val)
        )
        scores[f"{prefix}knn_accuracy"] = knn.probe_knn(
            train_features, val_features, SCORE_KNN, SCORE_HOLDOUT, dist.device
        ).accuracy
    return scores


if __name__ == "__main__":
    run_stage(Path(__file__).stem, PARAMS, main)
