"""Stage `evaluate@finetune`: fine-tune the whole backbone, its random initialisation and the reference with BEiT's recipe.

The model fine-tuned from pre-trained weights is a result, `artifacts/classifier`.

The score is that of the last step: nothing is chosen, so no third split is needed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from peco.core import artifacts, config, workfiles
from peco.core.errors import PecoError
from peco.core.publishing import staging
from peco.data.loader import Fields, eval_batches
from peco.data.order import AUGMENT
from peco.data.samples import CenterView
from peco.data.shards import Sample
from peco.evaluate.common import reference_inputs, require_task, starts, write_details
from peco.evaluate.finetune import storage
from peco.evaluate.finetune.model import augment, build_classifier, evaluate_classifier, rand_augment
from peco.evaluate.finetune.task import FinetuneTask
from peco.networks import timm_nets
from peco.probes.holdout import share_of_classes
from peco.probes.labeled import labeled_splits
from peco.runtime import model_card, paths
from peco.runtime.fit import train_loader
from peco.runtime.stage import StageRun, run_stage
from peco.training.distributed import Dist
from peco.training.loop import train

PARAMS = ("seed", "loader", "evaluate.reference", "evaluate.tasks.finetune", "evaluate.finetune")
PICTURES = paths.PICTURES / "finetune"
EVAL_BATCH = 128


@dataclass(frozen=True)
class AugmentedView:
    """A training view of a sample and its label."""

    seed: int
    size: int
    cfg: config.Finetune

    def __call__(self, sample: Sample, epoch: int) -> Fields:
        key = (self.seed, epoch, sample.index, AUGMENT)
        pixels = augment(sample.open(), key, self.size, self.cfg)
        return {"index": sample.index, "label": sample.label, "image": pixels}


def main(run: StageRun) -> None:
    require_task(run, "finetune")
    cfg, seed = run.config.evaluate.finetune, run.config.seed
    dist = Dist.init()
    require_pairs(cfg, dist.world)
    train_split, val = labeled_splits()
    train_split = train_split.take(share_of_classes(train_split.labels, cfg.labels))
    backbone_size = artifacts.input_size(paths.BACKBONE)
    if cfg.rand_augment is not None:
        rand_augment(cfg.rand_augment, backbone_size)  # a wrong notation is reported here, not by a loader process
    metrics: dict[str, Any] = {}
    details: dict[str, Any] = {}  # accuracy by class
    reference = run.config.evaluate.reference
    work = run.work([paths.SHARDS, paths.BACKBONE, *reference_inputs(reference)], dist.share)
    for start in starts(reference, seed):
        model = build_classifier(start.make, len(train_split.classes), cfg)
        size = timm_nets.whole_patches(model, backbone_size)
        loader = train_loader(run, train_split, AugmentedView(seed, size, cfg), cfg.optim, dist)
        task = FinetuneTask(model, len(train_split.classes), cfg)
        name = f"finetune_{start.name}"
        logs = train(task, loader, name=name, optim=cfg.optim, seed=seed, dist=dist, work=work / name)
        batches = eval_batches(
            val,
            CenterView(size),
            batch_size=EVAL_BATCH,
            rank=dist.rank,
            world=dist.world,
            workers=run.workers,
            device=dist.device,
            label=f"{name}: scoring",
        )
        metrics[f"{start.prefix}accuracy"], by_class = evaluate_classifier(model, batches, dist.all_reduce_sum)
        details[f"{start.prefix}accuracy"] = dict(zip(train_split.classes, by_class, strict=True))
        if start.is_result and dist.rank == 0:
            extra = model_card.lineage_of(paths.BACKBONE)
            storage.save(paths.CLASSIFIER, model, paths.BACKBONE, train_split.classes, extra)
        logs.close()
    if dist.rank == 0:
        training = model_card.Training(cfg.optim, len(train_split), "the backbone")
        facts = model_card.Facts(model_card.shard_data(paths.SHARDS), metrics, training, seed)
        model_card.write(paths.CLASSIFIER, facts)
        with staging(PICTURES) as folder:
            write_details(folder, details)
        run.metrics(metrics)
        workfiles.mark_finished(work)


def require_pairs(cfg: config.Finetune, world: int) -> None:
    """Check that the images of a step, divided among processes and accumulated parts, can be mixed in pairs.

    Raises:
        PecoError: the number of images in a part is odd.
    """
    batch, parts = cfg.optim.batch_size, world * cfg.optim.accumulate
    if (cfg.mixup or cfg.cutmix) and batch % (2 * parts):
        raise PecoError(
            f"evaluate.finetune.optim.batch_size: {batch} is not allowed; mixup and cutmix need pairs: expected a multiple of "
            f"2 x {world} processes x {cfg.optim.accumulate} accumulated parts"
        )


if __name__ == "__main__":
    run_stage("evaluate@finetune", PARAMS, main)
