"""Probes on frozen features: every score agrees with an independent computation, every choice is made without val."""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import scipy.optimize
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st

from peco.core import artifacts, config
from peco.core.errors import PecoError
from peco.mim.model import build_backbone
from peco.probes import features, knn, linear
from peco.probes.holdout import holdout_split, share_of_classes, skip_reason

VIT = config.Vit("beit_base_patch16_224", patch_size=8, embed_dim=32, depth=3, num_heads=2, mlp_ratio=2)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    model, arch, model_args = build_backbone(VIT, 32, 0.1, 0.0)
    artifacts.save_timm(tmp_path / "m", model, arch=arch, model_args=model_args, mean=(0.5,) * 3, std=(0.5,) * 3)
    return tmp_path / "m"


def blobs(n: int, classes: int, dim: int, spread: float, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Points around one centre per class; the centres are the same for every seed."""
    centers = torch.randn(classes, dim, generator=torch.Generator().manual_seed(99))
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, classes, (n,), generator=generator)
    return centers[labels] + spread * torch.randn(n, dim, generator=generator), labels


# --- splits


@given(st.integers(2, 500), st.floats(0.01, 0.5))
def test_the_holdout_is_the_end_of_train(n: int, fraction: float) -> None:
    fit, held = holdout_split(np.zeros(n, np.int64), fraction)
    assert np.concatenate([fit, held]).tolist() == list(range(n))
    assert len(fit) and len(held)
    assert abs(len(held) - fraction * n) <= 1


@given(st.integers(2, 10), st.integers(10, 30))
def test_the_holdout_has_all_classes_when_samples_are_sorted_by_class(classes: int, each: int) -> None:
    labels = np.repeat(np.arange(classes), each)
    fit, held = holdout_split(labels, 0.2)
    assert set(labels[held]) == set(labels[fit]) == set(range(classes))
    assert sorted([*fit, *held]) == list(range(len(labels))) and len(held) == round(0.2 * len(labels))


@given(st.lists(st.integers(0, 4), min_size=1, max_size=60), st.sampled_from([0.01, 0.1, 0.25, 0.3, 1.0]))
def test_a_share_of_the_labels_has_that_share_of_each_class(values: list[int], share: float) -> None:
    labels = np.array(values)
    chosen = share_of_classes(labels, share)
    assert len(set(chosen.tolist())) == len(chosen) and chosen.tolist() == sorted(chosen.tolist())
    for label in set(values):
        exact = share * values.count(label)
        assert exact - 1e-6 <= np.count_nonzero(labels[chosen] == label) < exact + 1


def test_one_sample_cannot_be_split() -> None:
    with pytest.raises(PecoError, match="at least 2"):
        holdout_split(np.zeros(1, np.int64), 0.2)


@dataclass(frozen=True)
class Split:
    labels: np.ndarray
    classes: tuple[str, ...] = ("cat", "dog", "owl")


@pytest.mark.parametrize(
    ("train", "val", "reason"),
    [
        ([0, 1, 0, 1], [0, 1], None),
        ([0, 1, 0, 1], [1, 2], None),
        ([0, 0, 1, 1], [2, 2], "share no class"),
        ([0, 0, 0, 0], [0, 0], "one class only (cat)"),
        ([-1, -1], [0], "train has no labels"),
        ([0, 1, 0, 1], [-1], "val has no labels"),
        ([0, 1, -1, 1], [0], "1 of the 4 images of train"),
        ([], [0], "train has no images"),
        ([0, 1, 0, 1], [], "val has no images"),
        ([0, 1], [0], "only 2 images"),
    ],
)
def test_an_impossible_labeled_evaluation_has_a_reason(train: list[int], val: list[int], reason: str | None) -> None:
    found = skip_reason(Split(np.array(train, dtype=np.int64)), Split(np.array(val, dtype=np.int64)))
    assert found is None if reason is None else found is not None and reason in found


def test_classes_are_compared_by_name() -> None:
    train = Split(np.array([0, 1, 0, 1]), ("cat", "dog"))
    assert skip_reason(train, Split(np.array([0]), ("eel",))) == "train and val share no class"
    assert skip_reason(train, Split(np.array([0]), ("dog",))) is None


# --- features


def test_features_are_means_over_the_patches_of_each_block(folder: Path) -> None:
    model = artifacts.load_timm(folder)
    images, labels = torch.rand(5, 3, 32, 32), torch.arange(5)
    batches = [{"image": images[:3], "label": labels[:3]}, {"image": images[3:], "label": labels[3:]}]
    model.train()  # extract switches it back to eval mode
    found, found_labels = features.extract(model, batches, (3, 1))
    assert list(found) == ["1", "3", features.NORM] and torch.equal(found_labels, labels)
    captured: dict[str, torch.Tensor] = {}
    for name, module in (("1", model.blocks[0]), ("3", model.blocks[2]), (features.NORM, model.norm)):
        module.register_forward_hook(lambda _, __, out, name=name: captured.update({name: out}))
    model(2 * images - 1)
    for name, tokens in captured.items():
        torch.testing.assert_close(found[name], tokens[:, 1:].mean(1))
        assert found[name].dtype == torch.float32


def test_features_of_a_plain_vit_and_wrong_blocks() -> None:
    model = timm.create_model(
        "vit_tiny_patch16_224", img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=2, num_classes=0
    )
    batch = {"image": torch.rand(2, 3, 32, 32), "label": torch.zeros(2, dtype=torch.int64)}
    found, _ = features.extract(model, [batch], (2,))
    assert {name: f.shape for name, f in found.items()} == {"2": (2, 32), "norm": (2, 32)}
    with pytest.raises(PecoError, match="blocks 1 to 2"):
        features.extract(model, [batch], (3,))
    with pytest.raises(PecoError, match="no image"):
        features.extract(model, [], (1,))


# --- nearest neighbours


def vote(train: np.ndarray, labels: np.ndarray, query: np.ndarray, k: int, temperature: float) -> int:
    """kNN by its definition, for one query."""
    similarity = [float(query @ x / np.linalg.norm(query) / np.linalg.norm(x)) for x in train]
    votes = np.zeros(labels.max() + 1)
    for i in sorted(range(len(train)), key=lambda i: -similarity[i])[:k]:
        votes[labels[i]] += math.exp(similarity[i] / temperature)
    return int(votes.argmax())


@pytest.mark.parametrize("temperature", [0.07, 1.0])
def test_knn_agrees_with_the_definition(temperature: float) -> None:
    (train, labels), (queries, _) = blobs(80, 4, 6, 2.0, 0), blobs(300, 4, 6, 2.0, 1)
    got = knn.classify(train, labels, queries, (1, 7, 200), temperature)
    for k, predictions in got.items():
        want = [vote(train.double().numpy(), labels.numpy(), q, k, temperature) for q in queries.double().numpy()]
        assert predictions.tolist() == want


def test_knn_weights_do_not_overflow() -> None:
    train, labels = blobs(20, 2, 3, 0.1, 0)
    assert knn.classify(train, labels, train, (5,), 1e-4)[5].tolist() == labels.tolist()


def two_blocks(n: int, seed: int) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Features of two blocks: noise, and one that separates the classes."""
    good, labels = blobs(n, 3, 8, 0.8, seed)
    noise = torch.randn(n, 8, generator=torch.Generator().manual_seed(seed + 100))
    return {"1": noise, "2": good}, labels


def test_knn_chooses_the_block_that_separates_the_classes() -> None:
    train, val = two_blocks(200, 0), two_blocks(100, 1)
    result = knn.probe_knn(train, val, config.Knn((1, 10), 0.07), 0.2)
    assert result.block == "2" and result.accuracy > 0.9
    assert result.holdout_accuracy == max(max(row.values()) for row in result.tried.values())
    # The score is that of the choice, with all of train as neighbours.
    predicted = knn.classify(train[0]["2"], train[1], val[0]["2"], (result.neighbors,), 0.07)[result.neighbors]
    assert result.accuracy == pytest.approx((predicted == val[1]).float().mean().item())


@pytest.mark.parametrize(
    "evaluate",
    [
        lambda train, val: knn.probe_knn(train, val, config.Knn((1, 10), 0.07), 0.2),
        lambda train, val: linear.probe_linear(train, val, config.Linear((0.1, 0.001), 50), 0.2),
    ],
)
def test_choices_never_touch_val(evaluate: object) -> None:
    train, val = two_blocks(200, 0), two_blocks(100, 1)
    swapped = ({"1": val[0]["2"], "2": val[0]["1"]}, val[1])  # on this val the other block would be the better choice
    honest, tempted = evaluate(train, val), evaluate(train, swapped)  # type: ignore[operator]
    for key in ("block", "holdout_accuracy", "tried"):
        assert getattr(honest, key) == getattr(tempted, key)
    assert tempted.accuracy < honest.accuracy
    assert evaluate(train, val) == honest  # type: ignore[operator]


# --- linear probe


def reference(x: np.ndarray, y: np.ndarray, classes: int, l2: float) -> np.ndarray:
    """Class probabilities at the minimum of the same objective, found by scipy without shared code."""
    x = (x - x.mean(0)) / x.std(0)

    def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
        theta = flat.reshape(-1, classes)
        logits = x @ theta[:-1] + theta[-1]
        p = np.exp(logits - scipy.special.logsumexp(logits, axis=1, keepdims=True))
        error = (p - np.eye(classes)[y]) / len(x)
        loss = -np.log(p[np.arange(len(x)), y]).mean() + l2 / 2 * (theta[:-1] ** 2).sum()
        return loss, np.concatenate([x.T @ error + l2 * theta[:-1], error.sum(0)[None]]).ravel()

    start = np.zeros((x.shape[1] + 1) * classes)
    assert scipy.optimize.check_grad(lambda f: objective(f)[0], lambda f: objective(f)[1], start + 0.1) < 1e-5
    solution = scipy.optimize.minimize(
        objective, start, jac=True, method="BFGS", options={"gtol": 1e-8, "maxiter": 5000}
    )
    theta = solution.x.reshape(-1, classes)
    return scipy.special.softmax(x @ theta[:-1] + theta[-1], axis=1)


@pytest.mark.parametrize("l2", [0.3, 1e-2])
def test_logistic_regression_agrees_with_scipy(l2: float) -> None:
    x, y = blobs(150, 4, 5, 1.5, 3)
    x = x * torch.tensor([1.0, 100.0, 0.01, 1.0, 1.0]) + 7  # standardisation makes scale and place irrelevant
    model = linear.fit(x, y, 4, l2, 500)
    probabilities = (((x.double() - model.mean) * model.scale) @ model.weight + model.bias).softmax(1)
    np.testing.assert_allclose(probabilities.numpy(), reference(x.double().numpy(), y.numpy(), 4, l2), atol=2e-4)


def test_slices_of_rows_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = blobs(100, 3, 4, 1.0, 0)
    whole = linear.fit(x, y, 3, 0.01, 100)
    monkeypatch.setattr(linear, "ROWS_AT_ONCE", 17)
    sliced = linear.fit(x, y, 3, 0.01, 100)
    torch.testing.assert_close(sliced.weight, whole.weight, atol=1e-6, rtol=1e-6)
    assert torch.equal(sliced.predict(x), whole.predict(x))


def test_constant_columns_and_absent_classes_are_harmless() -> None:
    x, y = blobs(60, 2, 3, 0.3, 0)
    x = torch.cat([x, torch.full((60, 1), 5.0)], dim=1)
    model = linear.fit(x, y, 7, 1e-3, 200)
    assert model.accuracy(x, y) == 1.0
    assert torch.isfinite(model.weight).all() and model.weight[3].abs().max() == 0


def test_regularization_is_chosen_on_the_holdout_and_the_score_is_that_of_a_refit() -> None:
    noise = torch.randn(60, 100, generator=torch.Generator().manual_seed(5))
    signal, labels = blobs(60, 2, 2, 1.0, 0)
    train = ({"1": torch.cat([signal, noise], 1)}, labels)
    val_signal, val_labels = blobs(100, 2, 2, 1.0, 1)
    val = (
        {"1": torch.cat([val_signal, torch.randn(100, 100, generator=torch.Generator().manual_seed(6))], 1)},
        val_labels,
    )
    cfg = config.Linear((1e-6, 1e-2, 1.0, 1e5), 200)
    result = linear.probe_linear(train, val, cfg, 0.3)
    assert set(result.tried["1"]) == set(cfg.l2)
    assert result.tried["1"][result.l2] == max(result.tried["1"].values())
    refit = linear.fit(train[0]["1"], labels, 2, result.l2, 200)
    assert result.accuracy == refit.accuracy(val[0]["1"], val_labels)


def test_the_choice_uses_some_of_many_rows_and_the_score_all_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    train, val = (blobs(n, 3, 6, 1.5, seed) for n, seed in ((100, 1), (40, 2)))
    named = [({"1": features}, labels) for features, labels in (train, val)]
    rows = []
    monkeypatch.setattr(linear, "CHOICE_ROWS", 30)
    monkeypatch.setattr(
        linear, "fit", lambda x, y, *more, fit=linear.fit, **named: (rows.append(x), fit(x, y, *more, **named))[1]
    )
    result = linear.probe_linear(*named, config.Linear((0.1, 0.01), 50), 0.1)
    assert all(
        torch.equal(x, train[0][:90:3]) for x in rows[:2]
    )  # spread over the whole split, which may be sorted by class
    assert torch.equal(rows[2], train[0])
    assert result.accuracy == linear.fit(*train, 3, result.l2, 50).accuracy(*val)


def test_color_histogram_counts_joint_colors() -> None:
    images = np.zeros((2, 4, 4, 3), dtype=np.uint8)
    images[0, :2] = (255, 0, 0)
    histogram = linear.color_histogram(images, bins=2)
    assert histogram.shape == (2, 8) and histogram.dtype == torch.float32
    assert histogram[0].tolist() == [0.5, 0, 0, 0, 0.5, 0, 0, 0]
    assert histogram[1].tolist() == [1, 0, 0, 0, 0, 0, 0, 0]


def test_raw_pixels_are_block_means() -> None:
    images = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)
    pixels = linear.raw_pixels(images, side=2)
    assert pixels.shape == (3, 12)
    assert pixels[1, 0].item() == pytest.approx(images[1, :4, :4, 0].mean() / 255)
    assert pixels[1, -1].item() == pytest.approx(images[1, 4:, 4:, 2].mean() / 255)
    assert linear.raw_pixels(images, side=32).shape == (3, 192)
