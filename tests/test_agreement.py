"""Perceptual agreement: distances, scores and intervals agree with independent computations; the stage runs on any images."""

import dataclasses
import io
import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.stats
import skimage.metrics
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from benchmarks import agreement as benchmark
from peco.core import numbers, schema
from peco.core.errors import PecoError
from peco.core.params import parse_params
from peco.evaluate.agreement import scores as agreement
from peco.evaluate.agreement import stage as evaluate_agreement
from peco.evaluate.agreement.triplets import PAIRS, TwoAfc, generate
from peco.perceptual.distance import PerceptualDistance
from peco.perceptual.features import FeatureNet
from peco.runtime import paths
from peco.runtime.stage import Skipped, StageRun
from peco.sources.base import Ignored, RawSample
from peco.sources.shard_writer import write_shards
from peco.stages import perceptual_net
from peco.tokenizer import storage as tokenizer_storage
from peco.tokenizer.model import PerceptualTokenizer
from pipelines.workflow.compose import compose_params

CFG = parse_params(compose_params("smoke", []))
SIZE = CFG.tokenizer.image_size
CPU = torch.device("cpu")


def blobs(size: int, seed: int) -> np.ndarray:
    """A smooth picture, float64 CSS."""
    small = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    image = Image.fromarray(small).resize((size, size), Image.Resampling.BICUBIC)
    return np.asarray(image).transpose(2, 0, 1) / 255


def tokenizer() -> PerceptualTokenizer:
    torch.manual_seed(0)
    return PerceptualTokenizer(CFG.tokenizer.autoencoder, CFG.tokenizer.quantizer).eval()


def network(normalize: str = "channel") -> agreement.NetworkDistances:
    torch.manual_seed(0)
    vit = perceptual_net.build_vit(CFG.perceptual_net.vit, SIZE, "avg")
    return agreement.NetworkDistances(FeatureNet(vit, [1, 2]), normalize)  # type: ignore[arg-type]


def all_methods() -> list[agreement.Method]:
    return [agreement.pixel_distances, agreement.TokenDistances(tokenizer()), network().between]


IMAGES = [blobs(SIZE, seed) for seed in range(4)]


# --- distances


def test_identical_views_have_no_distance() -> None:
    found = agreement.distances(all_methods(), [IMAGES[0], IMAGES[0].copy()], [(0, 1), (1, 1)], CPU)
    assert list(found) == list(evaluate_agreement.NAMES)
    for values in found.values():
        np.testing.assert_allclose(values, 0, atol=1e-12)


def test_distances_are_symmetric_and_independent_of_other_images() -> None:
    forward = agreement.distances(all_methods(), IMAGES, [(0, 1), (2, 3)], CPU)
    backward = agreement.distances(all_methods(), IMAGES, [(3, 2), (1, 0)], CPU)
    single = agreement.distances(all_methods(), [IMAGES[2], IMAGES[3]], [(0, 1)], CPU)
    for name, values in forward.items():
        assert values.min() > 0
        np.testing.assert_allclose(backward[name][::-1], values, rtol=1e-6)
        np.testing.assert_allclose(single[name], values[1:], rtol=1e-4)


def test_pixels_and_ssim_agree_with_scikit_image() -> None:
    rng = np.random.default_rng(0)
    images = [rng.random((3, 37, 41)) for _ in range(3)]
    pairs = [(0, 1), (1, 2), (0, 0)]
    found = agreement.distances([agreement.pixel_distances], images, pairs, CPU)
    for place, (a, b) in enumerate(pairs):
        similarity = skimage.metrics.structural_similarity(
            images[a], images[b], channel_axis=0, data_range=1, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
        )  # fmt: skip
        error = skimage.metrics.mean_squared_error(images[a], images[b])
        assert found["ssim"][place] == pytest.approx(1 - similarity, abs=1e-6)
        assert found["pixels"][place] == pytest.approx(error, abs=1e-12)


def test_token_distances_are_those_of_the_grids() -> None:
    model = tokenizer()
    found = agreement.distances([agreement.TokenDistances(model)], IMAGES, [(0, 1), (2, 3)], CPU)
    tokens = model.tokenize(torch.from_numpy(np.stack(IMAGES)).float()).flatten(1).numpy()
    codes = model.quantizer.codebook_KD.double().numpy()[tokens]
    for place, (a, b) in enumerate([(0, 1), (2, 3)]):
        differing = [x != y for x, y in zip(tokens[a], tokens[b], strict=True)]
        squares = [np.linalg.norm(x - y) ** 2 for x, y in zip(codes[a], codes[b], strict=True)]
        assert found["tokens_hamming"][place] == pytest.approx(sum(differing) / len(differing))
        assert found["tokens_embedded"][place] == pytest.approx(sum(squares) / len(squares), rel=1e-6)


@pytest.mark.parametrize("normalize", ["channel", "token", "none"])
def test_the_networks_distance_is_the_tokenizers_perceptual_loss(normalize: str) -> None:
    net = network(normalize)
    found = agreement.distances([net.between], IMAGES, [(0, 1), (2, 3)], CPU)["perceptual"]
    loss = PerceptualDistance(net.net, net.normalize)
    x = torch.from_numpy(np.stack(IMAGES)).float()
    expected = [float(loss(x[a : a + 1], x[b : b + 1])) for a, b in ((0, 1), (2, 3))]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


# --- answers

lengths = st.lists(st.tuples(st.floats(0, 2), st.floats(0, 2)), min_size=1, max_size=20)


@given(lengths)
def test_the_order_of_the_views_does_not_matter(pairs: list[tuple[float, float]]) -> None:
    first, second = np.array(pairs).T
    assert (agreement.preferred_pair(first, second) + agreement.preferred_pair(second, first) == 1).all()
    votes = np.linspace(0, 1, len(first))
    np.testing.assert_allclose(agreement.two_afc(first, second, votes), agreement.two_afc(second, first, 1 - votes))


def test_the_shorter_distance_is_chosen_and_a_tie_is_half() -> None:
    first, second = np.array([1.0, 2.0, 0.0, 1.0, 1.0]), np.array([2.0, 1.0, 0.0, 1 + 1e-9, 1.001])
    assert agreement.preferred_pair(first, second).tolist() == [1, 0, 0.5, 0.5, 1]


def test_the_2afc_score_agrees_with_its_definition() -> None:
    rng = np.random.default_rng(0)
    p0, p1 = rng.integers(0, 6, (2, 300)) / 6  # many ties
    votes = rng.integers(0, 6, 300) / 5
    plain = []
    for d0, d1, vote in zip(p0, p1, votes, strict=True):
        if d0 == d1:
            plain.append(0.5)
        elif d1 < d0:
            plain.append(vote)
        else:
            plain.append(1 - vote)
    np.testing.assert_allclose(agreement.two_afc(p0, p1, votes), plain, atol=1e-12)


def test_pixels_are_at_chance_by_construction() -> None:
    for index, image in enumerate(IMAGES):
        answers = agreement.answers(generate(image, index), [agreement.pixel_distances], CPU)["pixels"]
        assert set(answers[np.isfinite(answers)]) == {0.5}


def test_each_answer_belongs_to_its_own_triplet() -> None:
    triplets = generate(IMAGES[0], 0)
    triplets.damaged.pop("rotation_noise")
    liked = triplets.damaged["crop_blocking"]

    def judge(x_NCHW: Tensor, pairs_P2: Tensor) -> dict[str, Tensor]:
        """One damaged view is nearest to everything, all moved ones come next."""
        near = [np.array_equal(x, liked) for x in x_NCHW.numpy()]
        moved = [any(np.array_equal(x, y) for y in triplets.moved.values()) for x in x_NCHW.numpy()]
        distance = 2.0 - torch.tensor(moved).double() - 2 * torch.tensor(near).double()
        return {"judge": distance[pairs_P2[:, 1]]}

    answers = dict(zip(PAIRS, agreement.answers(triplets, [judge], CPU)["judge"], strict=True))
    assert np.isnan(answers.pop("rotation_noise"))
    assert answers.pop("crop_blocking") == 0
    assert set(answers.values()) == {1.0}


def test_2afc_items_are_scored_one_by_one(bapps: Path, tmp_path: Path) -> None:
    items = TwoAfc(bapps, tmp_path / "work")
    found = agreement.score_two_afc(items, SIZE, all_methods(), CPU)
    assert found.categories == ("easy", "easy", "easy")  # the others have no votes
    for place in range(3):
        images = items.images(place, SIZE)
        for name, (d0, d1) in agreement.distances(all_methods(), images, [(0, 1), (0, 2)], CPU).items():
            vote = items.items[place].judge
            assert vote is not None
            assert found.scores[name][place] == pytest.approx(0.5 if d0 == d1 else vote if d1 < d0 else 1 - vote)
    summary = agreement.summarize_two_afc(items, found)
    assert (summary["items"], summary["judged"]) == (4, 3)
    assert summary["pixels_score"] == pytest.approx(found.scores["pixels"].mean())
    assert summary["categories"]["hard"] == {"items": 1, "judged": 0}  # type: ignore[index]


# --- intervals


@pytest.mark.parametrize(("right", "total"), [(0, 10), (3, 10), (57, 100), (100, 100)])
def test_share_interval_agrees_with_scipy(right: int, total: int) -> None:
    scores = np.array([1.0] * right + [np.nan] * 5 + [0.0] * (total - right))
    expected = scipy.stats.binomtest(right, total).proportion_ci(method="wilson")
    found = agreement.share_interval(scores)
    assert (found["low"], found["high"]) == pytest.approx((expected.low, expected.high), abs=1e-6)
    assert found["accuracy"] == right / total


def test_mean_interval_agrees_with_scipy() -> None:
    scores = np.random.default_rng(1).random((80, 1)) ** 2
    expected = scipy.stats.bootstrap((scores[:, 0],), np.mean, method="percentile", n_resamples=5000, rng=0)
    found = agreement.mean_interval(scores)
    interval = expected.confidence_interval
    assert (found["low"], found["high"]) == pytest.approx((interval.low, interval.high), abs=0.006)
    assert found == agreement.mean_interval(scores)


def test_answers_about_one_image_count_as_one_observation() -> None:
    column = np.random.default_rng(0).integers(0, 2, (50, 1)).astype(float)
    assert agreement.mean_interval(np.repeat(column, 12, axis=1)) == agreement.mean_interval(column)


def test_no_score_has_no_interval() -> None:
    assert agreement.mean_interval(np.full((3, 2), np.nan)) == agreement.share_interval(np.full(3, np.nan)) == {}


@given(st.integers(1, 6), st.integers(0, 2**32))
@settings(max_examples=10, deadline=None)
def test_the_summary_counts_triplets_and_dropped_ones(references: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows = rng.choice([0, 0.5, 1, np.nan], (references, len(PAIRS)))
    found = agreement.summarize({"pixels": rows})
    assert found["triplets"] == np.isfinite(rows).sum()
    assert found["triplets"] + found["dropped"] == rows.size  # type: ignore[operator]
    for place, pair in enumerate(PAIRS):
        entry = found["pairs"][pair]  # type: ignore[index]
        there = rows[np.isfinite(rows[:, place]), place]
        assert (entry["triplets"], entry["dropped"]) == (len(there), references - len(there))
        assert entry.get("pixels_accuracy") == (pytest.approx(there.mean()) if len(there) else None)
    json.dumps(numbers.rounded(found), allow_nan=False)


# --- the stage


class Unlabeled:
    """Train only, no labels; one image is flat."""

    classes = ()
    total: int | None = None

    def __init__(self) -> None:
        self.ignored, self.notes = Ignored(), list[str]()

    def samples(self) -> Iterator[RawSample]:
        for i in range(6):
            yield RawSample("train", f"{i}.png", png(blobs(40, i) if i else np.full((3, 40, 40), 0.5)), -1)


def png(x: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.rint(x.transpose(1, 2, 0) * 255).astype(np.uint8)).save(out, "PNG")
    return out.getvalue()


@pytest.fixture
def bapps(tmp_path: Path) -> Path:
    """Three items with votes and one without."""
    root = tmp_path / "data" / "2afc"
    for item in range(4):
        category = root / ("easy" if item < 3 else "hard")
        for place, member in enumerate(("ref", "p0", "p1")):
            (category / member).mkdir(parents=True, exist_ok=True)
            (category / member / f"{item}.png").write_bytes(png(blobs(SIZE, 10 * item + place)))
        if item < 3:
            (category / "judge").mkdir(exist_ok=True)
            np.save(category / "judge" / f"{item}.npy", np.array([item / 4], dtype=np.float32))
    return root


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Current folder with shards and untrained models."""
    monkeypatch.chdir(tmp_path)
    for name in ("PECO_WORK", "PECO_WORKERS", "RANK"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PECO_DEVICE", "cpu")
    write_shards(Unlabeled(), paths.SHARDS, CFG.dataset, work=tmp_path / "work", workers=1)
    cfg = CFG.tokenizer
    tokenizer_storage.save(paths.TOKENIZER, tokenizer(), cfg.autoencoder, cfg.quantizer, {"image_size": SIZE})
    torch.manual_seed(0)
    vit = CFG.perceptual_net.vit
    net = perceptual_net.build_vit(vit, SIZE, "avg")
    perceptual_net.publish(net, perceptual_net.vit_args(vit, SIZE, "avg"), "none", {})
    return tmp_path


def run(**changes: object) -> None:
    group = dataclasses.replace(CFG.evaluate.agreement, **{"references": 5, **changes})  # type: ignore[arg-type]
    cfg = dataclasses.replace(CFG, evaluate=dataclasses.replace(CFG.evaluate, agreement=group))
    stage = StageRun("evaluate@agreement", schema.restrict(cfg, evaluate_agreement.PARAMS))
    evaluate_agreement.main(stage)


def results() -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(paths.METRICS.rglob("*")) if file.is_file()}


def test_the_stage_needs_no_labels_and_gives_the_same_bytes(workspace: Path) -> None:
    run()
    first = results()
    metrics = json.loads(first["agreement.json"])
    assert metrics["references"] == 5
    assert metrics["triplets"] + metrics["dropped"] == 5 * len(PAIRS)
    assert metrics["dropped"] >= len(PAIRS)  # the flat image
    assert metrics["pixels_accuracy"] == metrics["pixels_low"] == metrics["pixels_high"] == 0.5
    assert metrics["pixels_ties"] == 1
    for method in evaluate_agreement.NAMES:
        assert 0 <= metrics[f"{method}_low"] <= metrics[f"{method}_accuracy"] <= metrics[f"{method}_high"] <= 1
        assert f"{method}_accuracy" in json.loads(first["details.json"])["pairs"]["shift_noise"]
    assert "two_afc" not in metrics
    shown = set(first) - {"agreement.json", "details.json"}
    assert shown
    assert shown <= {f"{pair}.png" for pair in evaluate_agreement.SHOWN}
    run()
    assert results() == first


def test_the_stage_scores_2afc_items(workspace: Path, bapps: Path) -> None:
    run(source="bapps", path="data/2afc")
    found = json.loads((paths.METRICS / "evaluate" / "agreement.json").read_text())["two_afc"]
    assert (found["items"], found["judged"]) == (4, 3)
    details = json.loads((evaluate_agreement.PICTURES / "details.json").read_text())
    assert details["two_afc_categories"]["easy"]["judged"] == 3
    for method in evaluate_agreement.NAMES:
        assert 0 <= found[f"{method}_low"] <= found[f"{method}_score"] <= found[f"{method}_high"] <= 1


def test_a_missing_member_ends_the_stage_before_any_work(workspace: Path, bapps: Path) -> None:
    (bapps / "easy" / "p1" / "2.png").unlink()
    with pytest.raises(PecoError, match="data/2afc: triplet 2 of easy has no p1"):
        run(source="bapps", path="data/2afc")
    assert not paths.METRICS.exists()


def test_the_stage_can_be_switched_off(workspace: Path) -> None:
    tasks = dataclasses.replace(CFG.evaluate.tasks, agreement=False)
    cfg = SimpleNamespace(evaluate=SimpleNamespace(tasks=tasks))
    with pytest.raises(Skipped, match=r"switched off \(evaluate.tasks.agreement\)"):
        evaluate_agreement.main(StageRun("evaluate@agreement", cfg))  # type: ignore[arg-type]


def test_the_picture_shows_the_choice(workspace: Path) -> None:
    triplets = generate(blobs(SIZE, 3), 0)

    def colors(answer: float) -> set[tuple[int, int, int]]:
        row = np.full(len(PAIRS), answer)
        sheet = evaluate_agreement.picture(triplets, "shift_blur", {"pixels": row})
        below = sheet.crop((0, sheet.height - evaluate_agreement.LINE, sheet.width, sheet.height))
        return {color for _, color in below.getcolors(10_000) if len(set(color)) == 3 and max(color) - min(color) > 90}

    right, wrong, tie = colors(1), colors(0), colors(0.5)
    assert len(right) >= 1
    assert len(wrong) >= 1
    assert not right & wrong
    assert not tie


# --- the benchmark


def test_the_benchmark_compares_tokenizers(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos = workspace / "photos"
    photos.mkdir()
    for i in range(3):
        (photos / f"{i}.png").write_bytes(png(blobs(40, i + 1)))
    common_args = ["--perceptual", str(paths.PERCEPTUAL_NET), "--images", str(photos)]
    both = ["--tokenizer", f"first={paths.TOKENIZER}", "--tokenizer", f"second={paths.TOKENIZER}"]
    assert benchmark.main([*common_args, *both]) == 0
    out = capsys.readouterr().out
    assert f"3 images of {SIZE} pixels" in out
    header, *rows = out.partition("first minus second")[2].strip().splitlines()[2:]
    assert header == "| pair | tokens_hamming | tokens_embedded |"
    assert [row.split("|")[2:4] for row in rows[1:2]] == [[" 0.0 (0.0 to 0.0) "] * 2]
    assert len(rows) == 2 + len(PAIRS)


def test_the_benchmark_names_what_is_missing(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--tokenizer", "nowhere", "--perceptual", str(paths.PERCEPTUAL_NET), "--images", str(workspace)]
    assert benchmark.main(arguments) == 2
    assert capsys.readouterr().err.startswith("error: nowhere: no such model folder")
