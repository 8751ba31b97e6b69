"""Fine-tuning: augmentation is a function of its key, mixing and losses follow their definitions, classifiers learn."""

import dataclasses
import itertools
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from peco.core import artifacts, config
from peco.core.errors import PecoError
from peco.data.images import Picture
from peco.evaluate.finetune import model as finetune
from peco.evaluate.finetune.task import FinetuneTask
from peco.mim.model import build_backbone
from peco.networks.backbones import at_random, pretrained

VIT = config.Vit("beit_base_patch16_224", patch_size=8, embed_dim=32, depth=3, num_heads=2, mlp_ratio=2)
OPTIM = config.Optim(
    epochs=1, batch_size=8, lr=1e-3, min_lr=0, warmup_epochs=0, weight_decay=0.05, betas=(0.9, 0.999), clip_grad=None,
    layer_decay=0.5, ema=None, accumulate=1, precision="fp32", compile=False,
)  # fmt: skip
FINETUNE = config.Finetune(
    labels=1.0, drop_path=0.1, mixup=0.8, cutmix=1.0, label_smoothing=0.1, rand_augment="rand-m9-mstd0.5-inc1",
    crop_scale=(0.3, 1.0), random_erase=0.25, optim=OPTIM,
)  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    model, arch, model_args = build_backbone(VIT, 32, 0.1, 0.0)
    artifacts.save_timm(tmp_path / "m", model, arch=arch, model_args=model_args, mean=(0.5,) * 3, std=(0.5,) * 3)
    return tmp_path / "m"


def photo(width: int = 60, height: int = 40) -> Picture:
    return Picture(np.random.default_rng(1).integers(0, 256, (height, width, 3), dtype=np.uint8))


@given(st.integers(1, 80), st.integers(1, 80), st.integers(0, 1000))
@settings(max_examples=25, deadline=None)
def test_augmentation_is_a_function_of_its_key(width: int, height: int, sample: int) -> None:
    image = photo(width, height)
    first = finetune.augment(image, (0, 1, sample, 3), 32, FINETUNE)
    random.seed(5)
    np.random.seed(5)
    state = random.getstate(), np.random.get_state()[1].tolist()
    again = finetune.augment(image, (0, 1, sample, 3), 32, FINETUNE)
    assert first.shape == (32, 32, 3) and first.dtype == np.uint8
    assert (first == again).all()
    assert (random.getstate(), np.random.get_state()[1].tolist()) == state


def test_augmentations_vary_with_epoch_and_can_be_switched_off() -> None:
    views = [finetune.augment(photo(), (0, epoch, 7, 3), 32, FINETUNE).tobytes() for epoch in range(8)]
    assert len(set(views)) == 8
    plain = dataclasses.replace(FINETUNE, rand_augment=None, random_erase=0.0, crop_scale=(1.0, 1.0))
    flat = Picture(np.full((40, 50, 3), (10, 200, 30), np.uint8))
    assert (finetune.augment(flat, (0, 1, 7, 3), 32, plain) == np.array([10, 200, 30])).all()
    assert (
        len({finetune.augment(photo(), (0, epoch, 7, 3), 32, plain).tobytes() for epoch in range(8)}) > 1
    )  # crop and flip


def test_every_operation_of_rand_augment_runs_at_every_strength() -> None:
    for strength in ("rand-m10-mstd0.5-inc1", "rand-m9-mstd0.5-inc1", "rand-m0", "rand-m10"):
        for op in finetune.rand_augment(strength, 32).ops:  # type: ignore[attr-defined]
            op.prob = 1.0
            for _ in range(5):
                assert op(photo(32, 32).to_pil()).size == (32, 32)
    finetune.rand_augment.cache_clear()


def test_an_unknown_rand_augment_notation_is_a_one_line_error() -> None:
    with pytest.raises(PecoError, match=r"evaluate\.finetune\.rand_augment: 'augmix-m3' is not allowed"):
        finetune.rand_augment("augmix-m3", 32)


def test_erasing_changes_one_rectangle() -> None:
    pixels = np.full((32, 32, 3), 7, dtype=np.uint8)
    for seed in range(20):
        changed = (finetune._erase(pixels, np.random.default_rng(seed)) != 7).any(axis=2)
        rows, columns = np.flatnonzero(changed.any(1)), np.flatnonzero(changed.any(0))
        area = (np.ptp(rows) + 1) * (np.ptp(columns) + 1)
        assert changed.sum() > 0.95 * area  # noise may be 7 by chance
        assert 0.01 * 1024 < area < 0.45 * 1024


def test_pretrained_and_random_classifiers_differ_in_the_backbone_only(folder: Path) -> None:
    trained, scratch = (finetune.build_classifier(make(folder, 3), 5, FINETUNE) for make in (pretrained, at_random))
    stored = artifacts.load_tensors(folder / artifacts.WEIGHTS)["blocks.0.attn.qkv.weight"]
    assert torch.equal(trained.blocks[0].attn.qkv.weight, stored)
    assert not torch.equal(scratch.blocks[0].attn.qkv.weight, stored)
    assert torch.equal(trained.head.weight, scratch.head.weight)
    x = torch.rand(2, 3, 32, 32)
    tokens = trained.forward_features(x)
    torch.testing.assert_close(trained(x), trained.head(tokens[:, 1:].mean(1)))
    assert trained.blocks[-1].drop_path1.drop_prob == pytest.approx(0.1)


def task(folder: Path, **changes: float) -> FinetuneTask:
    cfg = dataclasses.replace(FINETUNE, drop_path=0.0, **changes)
    return FinetuneTask(finetune.build_classifier(pretrained(folder), 4, cfg), 4, cfg)


def test_loss_without_mixing_is_smoothed_cross_entropy(folder: Path) -> None:
    tuned = task(folder, mixup=0.0, cutmix=0.0)
    batch = {"image": torch.rand(3, 3, 32, 32), "label": torch.tensor([0, 3, 1])}
    loss, _ = tuned(batch, 0, 10)
    logits = tuned.model(2 * batch["image"] - 1)
    torch.testing.assert_close(loss, torch.nn.functional.cross_entropy(logits, batch["label"], label_smoothing=0.1))


def test_mixing_follows_numpys_seed_and_leaves_the_batch_alone(folder: Path) -> None:
    tuned = task(folder)
    batch = {"image": torch.rand(4, 3, 32, 32), "label": torch.tensor([0, 3, 1, 2])}
    before = batch["image"].clone()
    losses = []
    for seed in (1, 1, 2):
        np.random.seed(seed)
        losses.append(tuned(batch, 0, 10)[0].item())
    assert losses[0] == losses[1] != losses[2]
    assert torch.equal(batch["image"], before)
    with pytest.raises(PecoError, match="pairs"):
        tuned({key: value[:3] for key, value in batch.items()}, 0, 10)


def test_learning_rates_decrease_from_head_to_stem(folder: Path) -> None:
    tuned = task(folder)
    scale = {id(p): group.get("lr_scale", 1.0) for group in tuned.param_groups(OPTIM) for p in group["params"]}
    model = tuned.model
    assert set(scale) == {id(p) for p in tuned.parameters()}
    ordered = [
        model.head.weight,
        *(block.mlp.fc1.weight for block in reversed(model.blocks)),
        model.patch_embed.proj.weight,
    ]
    scales = [scale[id(p)] for p in ordered]
    assert scales[0] == 1.0
    assert all(b <= 0.5 * a for a, b in itertools.pairwise(scales))


def test_fine_tuning_learns_and_is_scored(folder: Path) -> None:
    """Dark and bright images."""
    cfg = dataclasses.replace(FINETUNE, drop_path=0.0)
    tuned = FinetuneTask(finetune.build_classifier(pretrained(folder), 2, cfg), 2, cfg).train()
    optimizer = torch.optim.AdamW(tuned.param_groups(dataclasses.replace(OPTIM, layer_decay=1.0)), lr=2e-3)
    torch.manual_seed(0)
    label = torch.tensor([0, 1] * 8)
    image = (0.3 + 0.4 * label[:, None, None, None] + 0.2 * torch.rand(16, 3, 32, 32)).clamp(0, 1)
    for step in range(40):
        np.random.seed(step)
        loss, _ = tuned({"image": image, "label": label}, step, 40)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    batches = [{"image": image[:10], "label": label[:10]}, {"image": image[10:], "label": label[10:]}]
    assert finetune.evaluate_classifier(tuned.model, batches) == (1.0, [1.0, 1.0])
    wrong = [{"image": image, "label": torch.where(torch.arange(16) < 4, 1 - label, label)}]
    assert finetune.evaluate_classifier(tuned.model, wrong) == (0.75, [0.75, 0.75])
    assert finetune.evaluate_classifier(tuned.model, [{"image": image[:1], "label": label[:1]}]) == (1.0, [1.0, None])
    other = torch.tensor([[0.0, 4.0], [8.0, 8.0]])  # counts of another process
    assert finetune.evaluate_classifier(tuned.model, wrong, lambda counts: counts + other) == (0.5, [6 / 16, 10 / 16])
    with pytest.raises(PecoError, match="no image"):
        finetune.evaluate_classifier(tuned.model, [])
