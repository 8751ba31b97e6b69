"""Codebook evaluation: measures against independent references, and the stage from folders to metrics and pictures."""

from __future__ import annotations

import dataclasses
import io
import json
import math
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.cluster.vq
import scipy.linalg
import scipy.stats
import skimage.metrics
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from peco.core import config, numbers, schema
from peco.core.errors import PecoError
from peco.core.params import parse_params
from peco.evaluate.codebook import measures as codebook
from peco.evaluate.codebook import stage as evaluate_codebook
from peco.evaluate.codebook.frechet import frechet_distance
from peco.runtime import paths
from peco.runtime.stage import Skipped, StageRun
from peco.sources.base import Ignored, RawSample
from peco.sources.shard_writer import write_shards
from peco.stages import perceptual_net
from peco.tokenizer import image_metrics
from peco.tokenizer import storage as tokenizer_storage
from peco.tokenizer.image_metrics import psnr
from peco.tokenizer.model import PerceptualTokenizer
from peco.tokenizer.quantizer import nearest, usage_and_perplexity
from pipelines.workflow.compose import compose_params

CFG = parse_params(compose_params("smoke", ["evaluate.codebook.images=24"]))
CODES, SIZE = CFG.tokenizer.quantizer.codes, CFG.tokenizer.image_size


def randoms(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


# Reconstructions


def test_psnr_agrees_with_its_formula() -> None:
    x = randoms(3, 3, 8, 8)
    y = x + torch.tensor([0.1, 0.01, 0.0]).view(-1, 1, 1, 1)
    assert psnr(x, y).tolist() == pytest.approx([20, 40, 100], abs=1e-3)  # the last one is the ceiling


@settings(max_examples=20, deadline=None)
@given(st.integers(11, 40), st.integers(11, 40), st.floats(0, 1), st.integers(0, 1000))
def test_ssim_agrees_with_scikit_image(height: int, width: int, noise: float, seed: int) -> None:
    x, other = randoms(2, 3, height, width, seed=seed), randoms(2, 3, height, width, seed=seed + 1)
    y = (1 - noise) * x + noise * other
    expected = [
        skimage.metrics.structural_similarity(
            a.double().numpy(),
            b.double().numpy(),
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
            data_range=1,
            channel_axis=0,
        )
        for a, b in zip(x, y, strict=True)
    ]
    assert image_metrics.ssim(x, y).tolist() == pytest.approx(expected, abs=1e-6)


def test_ssim_refuses_images_smaller_than_its_window() -> None:
    with pytest.raises(PecoError, match="SSIM: images of 10x32 pixels; give at least 11 per side"):
        image_metrics.ssim(torch.zeros(1, 3, 10, 32), torch.zeros(1, 3, 10, 32))


# Fréchet distance


@pytest.mark.parametrize(("samples", "width"), [(200, 8), (50, 30), (20, 40)])  # the last has singular covariances
def test_frechet_agrees_with_scipys_matrix_root(samples: int, width: int) -> None:
    a, b = randoms(samples, width), randoms(samples + 7, width, seed=1) @ randoms(width, width, seed=2) / 3
    x, y = a.double().numpy(), b.double().numpy()
    cov_x, cov_y = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    root = scipy.linalg.sqrtm(cov_x @ cov_y).real
    expected = ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(cov_x + cov_y - 2 * root)
    assert frechet_distance(a, b) == pytest.approx(expected, abs=1e-6, rel=1e-6)
    assert frechet_distance(b, a) == pytest.approx(expected, abs=1e-6, rel=1e-6)


def test_frechet_of_equal_sets_is_zero_and_of_shifted_ones_the_shift() -> None:
    a = randoms(100, 16)
    assert frechet_distance(a, a.flip(0)) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(a, a + 0.5) == pytest.approx(16 * 0.25, abs=1e-6)
    assert frechet_distance(2 * a, a) == pytest.approx(  # deviations s and 2 s: the distance is s^2 in each direction
        float((a.mean(0) ** 2).sum() + a.var(0).sum()), abs=1e-5
    )


def test_frechet_needs_two_samples() -> None:
    with pytest.raises(PecoError, match=r"a covariance of 1 sample\(s\); give at least 2 images"):
        frechet_distance(randoms(5, 3), randoms(1, 3))


# Tokens as features


def some_tokens(images: int = 12, side: int = 6, codes: int = 20, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(0, codes, (images, side, side)))


@given(st.lists(st.integers(0, 50), min_size=1, max_size=40).filter(any))
def test_usage_and_perplexity_agree_with_their_definitions(counts: list[int]) -> None:
    usage, perplexity = usage_and_perplexity(np.array(counts))
    assert usage == pytest.approx(sum(count > 0 for count in counts) / len(counts))
    assert perplexity == pytest.approx(np.exp(scipy.stats.entropy(counts)))


def test_without_tokens_usage_and_perplexity_are_zero() -> None:
    assert usage_and_perplexity(np.zeros(4)) == (0, 0)


def test_features_of_tokens_agree_with_their_definitions() -> None:
    tokens, vectors = some_tokens(), randoms(20, 5, seed=3)
    histogram = codebook.histogram_features(tokens, 20)
    grid = codebook.grid_features(tokens, vectors).view(12, 5, 4, 4)
    for image, found in zip(tokens.numpy(), histogram, strict=True):
        np.testing.assert_allclose(found, np.bincount(image.ravel(), minlength=20) / 36, atol=1e-6)
    embedded = vectors[tokens]  # (12, 6, 6, 5)
    torch.testing.assert_close(codebook.mean_features(tokens, vectors), embedded.mean(dim=(1, 2)))
    torch.testing.assert_close(grid[:, :, 0, 0], embedded[:, :2, :2].mean(dim=(1, 2)))  # 6 positions, 4 cells
    torch.testing.assert_close(grid[:, :, 3, 1], embedded[:, 4:, 1:3].mean(dim=(1, 2)))


def test_a_small_grid_keeps_its_positions() -> None:
    tokens, vectors = some_tokens(side=3), randoms(20, 5)
    torch.testing.assert_close(
        codebook.grid_features(tokens, vectors), vectors[tokens].permute(0, 3, 1, 2).flatten(start_dim=1)
    )


# Class-specific codes


def information(presence: np.ndarray, labels: np.ndarray) -> float:
    """Mutual information in bits, by its definition."""
    total = 0.0
    for there in (False, True):
        for label in np.unique(labels):
            p = np.mean((presence == there) & (labels == label))
            if p:
                total += p * math.log2(p / (np.mean(presence == there) * np.mean(labels == label)))
    return total


def test_information_agrees_with_its_definition_minus_chance() -> None:
    tokens, labels = some_tokens(60, 3, 30), torch.arange(60) % 4
    found = codebook.class_information(tokens, labels, codes=30, classes=4, seed=7)
    shufflings, rng = [], np.random.default_rng(7)
    for _ in range(codebook.SHUFFLES):
        shufflings.append(labels.numpy()[rng.permutation(60)])
    for code in range(30):
        presence = (tokens.numpy() == code).any(axis=(1, 2))
        chance = np.mean([information(presence, shuffled) for shuffled in shufflings])
        assert float(found.bits_K[code]) == pytest.approx(information(presence, labels.numpy()) - chance, abs=1e-9)
        assert int(found.images_K[code]) == presence.sum()
        shares = [np.mean(labels.numpy()[presence] == y) for y in range(4)] if presence.any() else [0] * 4
        assert found.share_KY[code].tolist() == pytest.approx(shares)


def test_noise_has_no_class_specific_codes() -> None:
    tokens = some_tokens(100, 4, 64)
    ranked = [
        codebook.class_information(tokens, torch.from_numpy(labels), codes=64, classes=5, seed=0).ranked
        for labels in np.random.default_rng(1).integers(0, 5, (40, 100))
    ]
    assert sum(bool(codes) for codes in ranked) <= 3  # expected: one in a hundred


def test_classes_of_one_image_each_have_no_class_specific_codes() -> None:
    found = codebook.class_information(some_tokens(40), torch.arange(40), codes=20, classes=40, seed=0)
    assert found.ranked == []


def test_a_code_that_occurs_with_one_class_is_found() -> None:
    tokens, labels = some_tokens(200, 4, 50), torch.arange(200) % 4
    tokens[tokens == 7] = 8
    tokens[labels == 2, 0, 0] = 7  # in every image of class 2 and in no other
    found = codebook.class_information(tokens, labels, codes=50, classes=4, seed=0)
    assert found.ranked[0] == 7
    assert found.share_KY[7].tolist() == [0, 0, 1, 0]
    assert float(found.bits_K[7]) == pytest.approx(0.811, abs=0.02)  # the entropy of 1/4 and 3/4, minus chance


# Codes of raw patches


@settings(max_examples=20, deadline=None)
@given(st.sampled_from([1, 2, 4]), st.integers(1, 3), st.integers(1, 3), st.integers(1, 3))
def test_images_of_known_patches_are_reconstructed(factor: int, images: int, h: int, w: int) -> None:
    book = codebook.PatchCodebook(randoms(9, 3 * factor**2), factor)
    tokens = torch.from_numpy(np.random.default_rng(0).integers(0, 9, (images, h, w)))
    x = book.decode(tokens)
    assert x.shape == (images, 3, h * factor, w * factor)
    torch.testing.assert_close(book.tokenize(x), tokens)
    torch.testing.assert_close(
        codebook.patches_of(x, factor).view(images, h, w, 3, factor, factor)[0, -1, 0],
        x[0, :, (h - 1) * factor :, :factor],  # the last row's first patch
    )


def test_kmeans_agrees_with_scipy() -> None:
    patches = randoms(400, 12).double()
    start = patches.numpy()[np.random.default_rng(5).permutation(400)[:10]]
    expected, labels = scipy.cluster.vq.kmeans2(patches.numpy(), start, iter=codebook.KMEANS_ITERATIONS, minit="matrix")
    book = codebook.fit_patches(patches, 10, 2, seed=5)
    np.testing.assert_allclose(book.vectors_KD, expected, atol=1e-9)
    changed = (nearest(patches, book.vectors_KD).numpy() != labels).mean()
    assert changed < 0.02  # scipy's labels are those before its last update


def test_kmeans_works_with_fewer_patches_than_codes() -> None:
    patches = randoms(3, 12)
    book = codebook.fit_patches(patches, 8, 2, seed=0)
    assert sorted(set(nearest(patches, book.vectors_KD).tolist())) == [0, 1, 2]
    assert book.vectors_KD.isfinite().all()


@given(st.integers(1, 200), st.integers(1, 20))
def test_indices_are_evenly_spaced(count: int, limit: int) -> None:
    found = numbers.evenly_spaced(count, limit)
    assert len(found) == min(count, limit) and found[0] == 0
    assert found == sorted(set(found)) and (limit == 1 or found[-1] == count - 1)
    steps = np.diff(found)
    assert len(steps) == 0 or steps.max() - steps.min() <= 1


# The stage


@dataclass
class Stripes:
    """Images of stripes that run across or down, in random colours; unlabelled without classes."""

    splits: dict[str, int]
    classes: tuple[str, ...]
    total: int | None = None
    ignored: Ignored = field(default_factory=Ignored)
    notes: list[str] = field(default_factory=list)

    def samples(self) -> Iterator[RawSample]:
        for number, (split, count) in enumerate(self.splits.items()):
            for i in range(count):
                rng = np.random.default_rng([number, i])
                pixels = np.repeat(rng.integers(0, 256, (10, 1, 3)), 4, axis=0) + rng.integers(-9, 9, (40, 40, 3))
                pixels = pixels.clip(0, 255).astype(np.uint8)
                out = io.BytesIO()
                Image.fromarray(pixels.swapaxes(0, 1) if i % 2 else pixels).save(out, "PNG")
                yield RawSample(split, f"{split}/{i}.png", out.getvalue(), i % 2 if self.classes else -1)


def make_folder(root: Path, splits: dict[str, int], classes: tuple[str, ...] = ("across", "down")) -> Path:
    """Shards, and models at random initialisation."""
    write_shards(Stripes(splits, classes), root / paths.SHARDS, CFG.dataset, work=root / "work", workers=1)
    torch.manual_seed(0)
    cfg = CFG.tokenizer
    tokenizer = PerceptualTokenizer(cfg.autoencoder, cfg.quantizer)
    extra = {"image_size": SIZE}
    tokenizer_storage.save(root / paths.TOKENIZER, tokenizer, cfg.autoencoder, cfg.quantizer, extra)
    return root


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("made"), {"train": 40, "val": 30})


def run_in(root: Path, monkeypatch: pytest.MonkeyPatch, cfg: config.Config = CFG) -> dict[str, Any]:
    monkeypatch.chdir(root)
    for name in ("PECO_WORK", "PECO_WORKERS", "RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    if not paths.PERCEPTUAL_NET.exists():
        torch.manual_seed(0)
        net, size = CFG.perceptual_net, CFG.loader.image_size
        perceptual_net.publish(
            perceptual_net.build_vit(net.vit, size, "avg"), perceptual_net.vit_args(net.vit, size, "avg"), "none", {}
        )
    run = StageRun("evaluate@codebook", schema.restrict(cfg, evaluate_codebook.PARAMS))
    evaluate_codebook.main(run)
    found: dict[str, Any] = json.loads((paths.METRICS / "evaluate/codebook.json").read_text())
    return found


BOTH = {"usage", "perplexity", "psnr", "ssim", "frechet"}
LABELED = {
    "telling_codes",
    "class_bits",
    *(f"token_{name}_{value}" for name in ("histogram", "mean", "grid") for value in ("accuracy", "l2")),
}
ALWAYS = {"codes", "images", "split", *BOTH, *(f"patches_{name}" for name in BOTH)}


def listed() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((evaluate_codebook.PICTURES / "details.json").read_text())
    return found


def test_both_codebooks_get_all_measures(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = shutil.copytree(made, tmp_path / "folder")
    metrics = run_in(root, monkeypatch)
    assert set(metrics) == ALWAYS | LABELED | {f"patches_{name}" for name in LABELED}
    assert (metrics["codes"], metrics["images"], metrics["split"]) == (CODES, 24, "val")
    assert metrics["patches_token_histogram_accuracy"] > 0.8  # stripes across or down are different patches
    assert metrics["patches_psnr"] > metrics["psnr"]  # the tokenizer is at random initialisation
    assert metrics["patches_frechet"] >= 0 and -1 <= metrics["ssim"] <= 1
    shares = [entry["share"] for entry in listed()["frequent"]]
    assert shares == sorted(shares, reverse=True)


def test_each_listed_code_has_a_picture(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_in(shutil.copytree(made, tmp_path / "folder"), monkeypatch)
    pictures = {path.name: Image.open(path) for path in evaluate_codebook.PICTURES.glob("*.png")}
    assert set(pictures) == {
        f"{kind}-{rank}.png" for kind in ("frequent", "telling") for rank in range(1, len(listed()[kind]) + 1)
    }
    for picture in pictures.values():
        assert picture.mode == "RGB" and picture.height >= evaluate_codebook.TILE
        assert picture.width % picture.height == 0 and picture.width <= evaluate_codebook.PATCHES * picture.height


def test_a_tile_shows_the_patch_in_its_faded_surroundings(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(made)
    split, _ = evaluate_codebook.train_and_scored()
    images = evaluate_codebook.Images(split, 1, SIZE, 0, torch.device("cpu"))
    factor, pixels = 8, images.pixels(0)
    tokens = torch.zeros(1, SIZE // factor, SIZE // factor, dtype=torch.int64)
    tokens[0, 1, 2] = 3
    tile = evaluate_codebook.gallery(tokens, 3, images, factor)
    assert tile.shape == (48, 48, 3)  # three patches, twice as large
    np.testing.assert_array_equal(tile[16:32:2, 16:32:2], pixels[8:16, 16:24])
    assert (tile[:16] >= 255 * evaluate_codebook.VEIL - 1).all()


def test_same_inputs_same_bytes(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = []
    for name in ("first", "second"):
        torch.rand(5)  # the state of global generators does not matter
        root = shutil.copytree(made, tmp_path / name)
        run_in(root, monkeypatch)
        files.append({p.relative_to(root): p.read_bytes() for p in (root / "metrics").rglob("*") if p.is_file()})
    assert files[0] == files[1]


def test_without_labels_the_rest_still_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    metrics = run_in(make_folder(tmp_path, {"train": 20, "val": 12}, classes=()), monkeypatch)
    assert set(metrics) == ALWAYS | {"linear_skipped", "classes_skipped"}
    assert metrics["linear_skipped"] == "train has no labels"
    assert metrics["classes_skipped"] == "fewer than two classes in the 12 images of val"
    assert all(path.name.startswith("frequent") for path in evaluate_codebook.PICTURES.glob("*.png"))


def test_one_image_has_no_frechet_distance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    metrics = run_in(make_folder(tmp_path, {"train": 9, "val": 1}, classes=()), monkeypatch)
    assert metrics["frechet_skipped"] == "one image has no covariance"
    assert "frechet" not in metrics and metrics["psnr"] > 0


def test_without_val_train_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    metrics = run_in(make_folder(tmp_path, {"train": 20}), monkeypatch)
    assert (metrics["split"], metrics["images"]) == ("train", 20)
    assert metrics["linear_skipped"] == "the data has no val split"
    assert "telling_codes" in metrics


def test_the_stage_can_be_switched_off(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tasks = dataclasses.replace(CFG.evaluate.tasks, codebook=False)
    cfg = dataclasses.replace(CFG, evaluate=dataclasses.replace(CFG.evaluate, tasks=tasks))
    with pytest.raises(Skipped, match="switched off"):
        run_in(made, monkeypatch, cfg)
