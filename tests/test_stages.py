"""Single stages on a few small images, in one process: results, exit status, working files."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import timm
import torch
import yaml
from prepared import Drawn
from torch import Tensor

from peco.convert import __main__ as convert
from peco.core import artifacts, config, device, schema, workfiles
from peco.core.errors import Interrupted, PecoError
from peco.core.params import parse_params
from peco.core.publishing import staging
from peco.data.loader import Fields, TrainLoader, collate, eval_batches, to_device
from peco.data.samples import CenterView
from peco.data.shards import Sample, open_shards
from peco.data.tokens import TokenStore, write_index
from peco.evaluate.finetune import stage as evaluate_finetune
from peco.evaluate.knn import stage as evaluate_knn
from peco.evaluate.linear import stage as evaluate_linear
from peco.mim import storage as mim_storage
from peco.mim.model import MaskedImageModel, build_backbone
from peco.perceptual.distance import PerceptualDistance
from peco.perceptual.features import FeatureNet
from peco.probes import inputs as probes
from peco.runtime import paths
from peco.runtime import stage as stage_module
from peco.runtime.stage import StageRun, run_stage
from peco.sources.shard_writer import write_shards
from peco.stages import perceptual_net, pretrain, report, tokenizer, tokens
from peco.tokenizer import storage as tokenizer_storage
from peco.tokenizer.model import PerceptualTokenizer
from pipelines.workflow.compose import compose_params

ROOT = Path(__file__).parents[1]
CFG = parse_params(compose_params("smoke", []))
SIZE = CFG.loader.image_size
COUNTS = {"train": 24, "val": 8}


def noise() -> Drawn:
    """Source of noise images in two classes."""
    return Drawn(("a", "b"), COUNTS, lambda rng, _: rng.integers(0, 256, (40, 36, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with shards, and models at random initialisation."""
    root = tmp_path_factory.mktemp("made")
    dataset = dataclasses.replace(CFG.dataset, samples_per_shard=10)
    write_shards(noise(), root / paths.SHARDS, dataset, work=root / "work", workers=1)
    torch.manual_seed(0)
    cfg = CFG.tokenizer
    tokenizer = PerceptualTokenizer(cfg.autoencoder, cfg.quantizer)
    tokenizer_storage.save(
        root / paths.TOKENIZER, tokenizer, cfg.autoencoder, cfg.quantizer, {"image_size": cfg.image_size}
    )
    backbone, arch, model_args = build_backbone(CFG.pretrain.vit, SIZE, CFG.pretrain.layer_scale, 0.0)
    model = MaskedImageModel(backbone, cfg.quantizer.codes)
    mim_storage.save(root / paths.BACKBONE, model, arch=arch, model_args=model_args)
    return root


@pytest.fixture
def here(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of these artifacts, as current directory."""
    shutil.copytree(made / "artifacts", tmp_path / "artifacts")
    monkeypatch.chdir(tmp_path)
    for name in ("PECO_WORK", "PECO_WORKERS", "PECO_METRICS_PORT", "RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def run_of(stage: ModuleType, cfg: config.Config = CFG) -> StageRun:
    """A run of the stage, with the parameters that it declares and no others."""
    _, kind, name, *_ = stage.__name__.split(".")
    return StageRun(f"evaluate@{name}" if kind == "evaluate" else name, schema.restrict(cfg, stage.PARAMS))


def metrics(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((paths.METRICS / f"{name}.json").read_text())
    return found


def change(cfg: config.Config, key: str, **values: Any) -> config.Config:
    """`cfg` with other values in the group `key`."""

    def changed(group: Any, path: list[str]) -> Any:
        if not path:
            return dataclasses.replace(group, **values)
        return dataclasses.replace(group, **{path[0]: changed(getattr(group, path[0]), path[1:])})

    return changed(cfg, key.split("."))


# An existing perceptual network


def existing(model: str, image_size: int = SIZE) -> config.Config:
    cfg = change(CFG, "perceptual_net", source="timm")
    cfg = change(cfg, "perceptual_net.timm", model=model, pretrained=False)
    return change(cfg, "loader", image_size=image_size)


@pytest.mark.parametrize(
    ("model", "image_size", "built_for"),
    [
        ("vit_tiny_patch16_224", SIZE, SIZE),
        ("vit_tiny_patch16_224.augreg_in21k", 40, 48),  # whole patches
        ("test_vit.r160_in1k", SIZE, SIZE),  # takes any size
        ("resnet18", SIZE, SIZE),
        ("test_efficientnet.r160_in1k", SIZE, SIZE),  # its blocks are not those of a transformer
    ],
)
def test_any_timm_network_is_published_at_its_size_and_scored(
    here: Path, model: str, image_size: int, built_for: int
) -> None:
    perceptual_net.main(run_of(perceptual_net, existing(model, image_size)))
    assert set(metrics("perceptual_net")) == {"knn_accuracy", "random_knn_accuracy"}
    net = FeatureNet(artifacts.load_timm(paths.PERCEPTUAL_NET), [1, 2])
    assert net.size in (None, (built_for, built_for))
    assert all(f.isfinite().all() for f in net(torch.rand(1, 3, SIZE, SIZE)))
    assert artifacts.describe(paths.PERCEPTUAL_NET)["architecture"] == model.partition(".")[0]


def test_a_converted_network_sees_larger_images_and_its_origin_is_reported(here: Path) -> None:
    torch.manual_seed(0)
    torch.save(timm.create_model("test_resnet", num_classes=0).state_dict(), "net.pth")
    origin = ["--licence", "apache-2.0", "--labels", "yes: ImageNet-1k"]
    assert convert.main(["net.pth", "--model", "test_resnet", "-o", "data/net", *origin]) == 0
    cfg = change(CFG, "perceptual_net", source="path", path="data/net", image_size=2 * SIZE, blocks=(2, 3))
    cfg = change(cfg, "perceptual_net.timm", model="test_resnet")
    perceptual_net.main(run_of(perceptual_net, cfg))
    shutil.rmtree(paths.TOKENIZER)
    tokenizer.main(run_of(tokenizer, cfg))
    found = artifacts.own_part(paths.TOKENIZER)["perceptual_net"]
    assert found["licence"] == "apache-2.0" and found["labels"] == "yes: ImageNet-1k"
    note = report.perceptual_net(cfg, {}, found)["perceptual_note"]
    assert note.startswith("An existing network: net. Labels that its weights have seen: yes: ImageNet-1k.")
    # The distance is that of the enlarged images.
    net = FeatureNet(artifacts.load_timm(paths.PERCEPTUAL_NET), cfg.perceptual_net.blocks, 2 * SIZE)
    loss = PerceptualDistance(net, cfg.tokenizer.perceptual.normalize)
    expected = tokenizer.score(tokenizer_storage.load(paths.TOKENIZER), loss, SIZE, device.CPU, 0)
    assert metrics("tokenizer")["val_perceptual"] == pytest.approx(expected["val_perceptual"], rel=1e-6)


def test_a_random_network_is_the_same_each_time(here: Path) -> None:
    run = run_of(perceptual_net, existing("test_resnet"))
    weights = []
    for draws in (0, 5):
        torch.rand(draws)
        perceptual_net.main(run)
        weights.append((paths.PERCEPTUAL_NET / artifacts.WEIGHTS).read_bytes())
    assert weights[0] == weights[1]


@pytest.mark.parametrize("arch", ["vit_of_my_dreams", "resnet18", "beit_base_patch16_224"])
def test_an_architecture_that_is_not_a_plain_vit_is_named(here: Path, arch: str) -> None:
    cfg = change(CFG, "perceptual_net.vit", arch=arch)
    with pytest.raises(PecoError, match=rf"perceptual_net\.vit\.arch: '{arch}' is not allowed"):
        perceptual_net.main(run_of(perceptual_net, cfg))


# Tokens


def test_tokens_computed_online_are_those_that_would_be_stored(here: Path) -> None:
    """For the same view, also under the loop's bf16 autocast."""
    cfg, views = CFG.pretrain, 2
    tokens.main(run_of(tokens, change(CFG, "tokens", views=views)))
    train = open_shards(paths.SHARDS, "train")
    (here / "none").mkdir()
    grid, codes = CFG.tokenizer.grid, CFG.tokenizer.quantizer.codes
    write_index(here / "none", train, views=0, grid=grid, codes=codes)
    stored, online = (
        pretrain.MaskedView(CFG.seed, CFG.tokens.view, SIZE, grid, cfg.masking, TokenStore(folder, train), SIZE)
        for folder in (paths.TOKENS, here / "none")
    )
    backbone, _, _ = build_backbone(cfg.vit, SIZE, None, 0.0)
    model = MaskedImageModel(backbone, codes)
    task = pretrain.TokenTask(model, tokenizer_storage.load(paths.TOKENIZER))
    for epoch in range(views):
        for sample in train.read(0, len(train)):
            computed, expected = (to_device([collate([view(sample, epoch)])], device.CPU) for view in (online, stored))
            for name in ("image", "masked"):
                np.testing.assert_array_equal(computed[name], expected[name])
            with torch.autocast("cpu", torch.bfloat16):
                targets_BL = task.targets(computed)
            np.testing.assert_array_equal(targets_BL, expected["tokens"])


# Pre-training


@pytest.mark.parametrize("views", [0, 2])
def test_pixels_are_regressed_from_the_same_views_without_a_tokenizer(here: Path, views: int) -> None:
    cfg = change(CFG, "tokens", views=views)
    tokens.main(run_of(tokens, cfg))
    cfg = change(cfg, "pretrain", target="pixels")
    pretrain.main(run_of(pretrain, cfg))
    assert set(metrics("pretrain")) == {"loss"}
    model = mim_storage.load(paths.BACKBONE)
    assert model.head.out_features == 3 * cfg.pretrain.vit.patch_size**2
    assert artifacts.section(paths.BACKBONE, mim_storage.KIND)["target"] == "pixels"
    evaluate_knn.main(run_of(evaluate_knn))  # the backbone can be evaluated like any other
    assert "accuracy" in metrics("evaluate/knn")


# Evaluation


@pytest.mark.parametrize("stage", [evaluate_knn, evaluate_linear])
def test_probes_score_backbone_and_random_initialization(here: Path, stage: ModuleType) -> None:
    run = run_of(stage)
    stage.main(run)
    task = run.name.removeprefix("evaluate@")
    found, details = metrics(f"evaluate/{task}"), metrics(f"pictures/{task}/details")
    assert {"accuracy", "random_accuracy", "block", "random_block"} <= set(found)
    for prefix in ("", "random_"):  # the chosen block is the best on the holdout
        scores = details[f"{prefix}holdout_accuracy"]
        assert max(scores[found[f"{prefix}block"]].values()) == max(max(by.values()) for by in scores.values())


def test_trainings_of_one_stage_serve_their_metrics_on_one_port(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as probe:
        probe.bind(("", 0))
        port = probe.getsockname()[1]
    monkeypatch.setenv("PECO_METRICS_PORT", str(port))
    evaluate_finetune.main(run_of(evaluate_finetune))
    scores, by_class = metrics("evaluate/finetune"), metrics("pictures/finetune/details")
    assert set(scores) == set(by_class) == {"accuracy", "random_accuracy"}
    assert set(by_class["accuracy"]) == set(open_shards(paths.SHARDS, "train").classes)
    assert "is in use" not in capsys.readouterr().err
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(("", port))


def test_fine_tuning_learns_from_the_given_share_of_the_labels(here: Path) -> None:
    cfg = change(CFG, "evaluate.finetune", labels=0.25)
    cfg = change(cfg, "evaluate.finetune.optim", epochs=1, batch_size=16, warmup_epochs=0)
    evaluate_finetune.main(run_of(evaluate_finetune, cfg))
    labels = open_shards(paths.SHARDS, "train").labels
    used = sum(math.ceil(count / 4) for count in np.bincount(labels) if count)
    assert f"| images seen | {16 * math.ceil(used / 16)} |" in (paths.CLASSIFIER / "README.md").read_text()


@pytest.mark.parametrize(("batch", "accumulate", "world"), [(9, 1, 1), (24, 4, 2), (8, 1, 8)])
def test_images_that_cannot_be_paired_are_refused_before_any_work(batch: int, accumulate: int, world: int) -> None:
    cfg = change(CFG.evaluate.finetune, "optim", batch_size=batch, accumulate=accumulate)
    evaluate_finetune.require_pairs(cfg, world)  # nothing is mixed
    for mixing in ({"mixup": 0.8}, {"cutmix": 1.0}):
        with pytest.raises(PecoError, match=rf"optim\.batch_size: {batch} is not allowed.*2 x {world} processes"):
            evaluate_finetune.require_pairs(dataclasses.replace(cfg, **mixing), world)


# Device, loader processes, exit status, working files


def test_the_cpu_is_used_despite_a_gpu_if_the_environment_says_so(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.delenv("PECO_DEVICE", raising=False)
    assert [device.uses_cuda(), device.select_device()] == [True, torch.device("cuda", 0)]
    with pytest.raises(PecoError, match="process 1 of this machine has no GPU"):
        device.select_device(1)
    monkeypatch.setenv("PECO_DEVICE", "tpu")
    with pytest.raises(PecoError, match="PECO_DEVICE: 'tpu' is not allowed"):
        device.select_device()
    monkeypatch.setenv("PECO_DEVICE", "cpu")
    assert [device.uses_cuda(), device.select_device()] == [False, torch.device("cpu")]
    model = artifacts.random_like(paths.BACKBONE, seed=0).to(device.select_device())
    found, _ = probes.backbone_features(model, open_shards(paths.SHARDS, "val"), workers=0)
    assert len(found["norm"]) == COUNTS["val"]


@dataclasses.dataclass(frozen=True)
class Broken:
    """Transform that fails at one sample: by an error for the user, or by the death of the process."""

    at: int
    fatal: bool = False

    def __call__(self, sample: Sample, epoch: int) -> Fields:
        if sample.index == self.at:
            if self.fatal:
                os.kill(os.getpid(), signal.SIGKILL)
            raise PecoError(f"sample {sample.index} is broken; fix it")
        return {"index": sample.index}


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_in_a_loader_process_arrives_as_it_is(here: Path, workers: int) -> None:
    train = open_shards(paths.SHARDS, "train")
    found: list[int] = []

    def read(batches: Iterator[dict[str, Tensor]]) -> None:
        for batch in batches:
            found.extend(batch["index"].tolist())

    with pytest.raises(PecoError, match=r"^sample 9 is broken; fix it$"):
        read(eval_batches(train, Broken(9), batch_size=4, workers=workers))
    assert found == list(range(8))  # the batches before it are complete
    loader = TrainLoader(train, Broken(9), batch_size=8, seed=0, lanes=8, buffer=4, workers=workers)
    with pytest.raises(PecoError, match=r"^sample 9 is broken; fix it$"):
        read(loader.batches(0, 3))


@pytest.fixture
def run_to_end(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Callable[[Callable[[StageRun], None]], tuple[int, list[str]]]]:
    """Function that runs a stage in this process and returns its exit status and its lines on stderr."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests themselves run in the background
    threads = torch.get_num_threads()

    class Exit(BaseException):
        pass

    def leave(code: int) -> None:
        raise Exit(code)

    def run(main: Callable[[StageRun], None]) -> tuple[int, list[str]]:
        (here / "params.yaml").write_text(yaml.safe_dump(schema.to_dict(CFG)))
        monkeypatch.setattr(stage_module.os, "_exit", leave)
        try:
            with pytest.raises(Exit) as caught:
                run_stage("stage", ("seed",), main)
        finally:
            monkeypatch.undo()
            for number, handler in before.items():
                signal.signal(number, handler)
        return caught.value.args[0], capsys.readouterr().err.splitlines()

    yield run
    torch.use_deterministic_algorithms(False)
    torch.set_num_threads(threads)


FILES = "error: stage: too many open files: raise the limit (`ulimit -n 4096`) or lower PECO_WORKERS, and run again"


def raising(error: BaseException) -> Callable[[StageRun], None]:
    def main(run: StageRun) -> None:
        raise error

    return main


def test_a_stage_ends_with_a_line_and_a_status(run_to_end: Any) -> None:
    assert run_to_end(lambda run: None) == (0, [])


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (PecoError("lr: too high;\n lower it"), 2, "error: stage: lr: too high; lower it"),
        (Interrupted("stopped at step 3"), 143, "stage: stopped at step 3"),
        (KeyboardInterrupt(), 143, "stage: interrupted; run it again to resume"),
        (OSError(28, "No space", "x.tar"), 2, "error: stage: disk full while writing x.tar: free space and run again"),
        (OSError(24, "Too many open files", "x"), 2, FILES),
        (RuntimeError("Too many open files. Communication with the workers is no longer possible."), 2, FILES),
    ],
)
def test_an_error_that_the_user_can_fix_is_one_line(
    run_to_end: Any, error: BaseException, status: int, line: str
) -> None:
    assert run_to_end(raising(error)) == (status, [line])


def test_a_defect_shows_its_traceback(run_to_end: Any) -> None:
    status, lines = run_to_end(raising(RuntimeError("boom")))
    assert (status, lines[-1]) == (1, "RuntimeError: boom")
    assert lines[0].startswith("Traceback")


def test_a_killed_loader_process_is_one_line(run_to_end: Any) -> None:
    def main(run: StageRun) -> None:
        list(eval_batches(open_shards(paths.SHARDS, "train"), Broken(9, fatal=True), batch_size=4, workers=1))

    status, lines = run_to_end(main)
    assert (status, len(lines)) == (2, 1)
    assert "lower PECO_WORKERS" in lines[0]


@pytest.mark.parametrize("name", ["PECO_WORKERS", "PECO_THREADS"])
def test_a_wrong_number_in_the_environment_is_one_line(
    run_to_end: Any, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, "many")
    status, lines = run_to_end(lambda run: print(run.workers))
    assert (status, lines) == (2, [f"error: stage: {name}: 'many' is not allowed; expected an integer, at least 0"])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_removes_unfinished_results_and_cannot_be_swallowed(run_to_end: Any, number: signal.Signals) -> None:
    def main(run: StageRun) -> None:
        with staging(Path("out")) as folder:
            (folder / "half").touch()
            try:
                os.kill(os.getpid(), number)
                time.sleep(10)
            except Exception:
                return
            finally:
                os.kill(os.getpid(), number)  # the same stop arrives a second time
                time.sleep(0.05)

    assert run_to_end(main) == (143, ["stage: interrupted; run it again to resume"])
    assert not {"out", ".out.tmp"} & set(os.listdir())


def test_a_rank_that_fails_because_its_peers_were_stopped_is_interrupted(run_to_end: Any) -> None:
    def main(run: StageRun) -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(10)
        except KeyboardInterrupt:
            raise RuntimeError("Connection closed by peer") from None

    assert run_to_end(main) == (143, ["stage: interrupted; run it again to resume"])


def test_a_shards_stage_that_is_stopped_leaves_no_files_behind(tmp_path: Path) -> None:
    cfg = compose_params("smoke", ["dataset.scenes.train=100000"])
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(cfg))
    shutil.copytree(ROOT / "data", tmp_path / "data")
    process = subprocess.Popen(
        [sys.executable, "-m", "peco.stages.shards"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PECO_WORK": ".work"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 60
    while not (tmp_path / "artifacts/.shards.tmp").exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.terminate()
    _, stderr = process.communicate(timeout=30)
    assert (process.returncode, stderr) == (143, "shards: interrupted; run it again to resume\n")
    assert list((tmp_path / "artifacts").iterdir()) == []


def test_working_files_are_kept_by_parameters_and_inputs(here: Path) -> None:
    run = run_of(tokens)
    assert run.work([paths.SHARDS]) == run.work([paths.SHARDS])
    assert run.work([paths.SHARDS]) != run.work([paths.TOKENIZER])
    assert run.work([paths.SHARDS]) != run_of(tokens, change(CFG, "tokens", views=9)).work([paths.SHARDS])


@pytest.mark.parametrize("end", ["killed", "finished", "removed"])
def test_equal_runs_take_turns_in_the_folder_of_their_working_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    work = tmp_path / "tokenizer-1"
    monkeypatch.setenv("PECO_WORK", str(tmp_path))
    code = """
import sys, time
from pathlib import Path
from peco.core import workfiles
work = Path(sys.argv[1])
while not workfiles.acquire(work):
    time.sleep(0.05)
assert workfiles.acquire(work)
print("in", flush=True)
for line in sys.stdin:
    workfiles.mark_finished(work)
    print("finished", flush=True)
"""

    def start() -> subprocess.Popen[str]:
        pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        return subprocess.Popen([sys.executable, "-c", code, str(work)], **pipes, text=True, cwd=ROOT)

    with start() as first:
        assert first.stdin is not None and first.stdout is not None and first.stdout.readline() == "in\n"
        second = start()
        assert second.stdout is not None
        assert second.stdout.readline().startswith(f"another process (process {first.pid} of ")
        (work / "checkpoint.pt").touch()
        if end == "killed":
            first.kill()
        else:
            first.stdin.write("\n")
            first.stdin.flush()
        if end == "removed":  # as by the launcher at the next stage: before or after the second one locks it
            workfiles.remove_finished()
        assert second.stdout.readline() == "in\n"
        workfiles.remove_finished()  # not while the second one holds it
        assert not (work / workfiles.MARK).exists()
        assert (work / "checkpoint.pt").exists() or end == "removed"
        assert (work / workfiles.LOCK).read_text().startswith(f"process {second.pid} of ")
        second.communicate(timeout=10)
        first.communicate(timeout=10)


def test_working_files_are_kept_by_the_code_of_the_stage(here: Path) -> None:
    shutil.copytree(ROOT / "peco", here / "peco", ignore=shutil.ignore_patterns("__pycache__"))
    stage = here / "peco/stages/shards.py"
    text = stage.read_text()

    def code_hash(comment: str = "") -> str:
        run = "run_stage(Path(__file__).stem, PARAMS, main)"
        shown = text.replace(run, "from peco.runtime.fingerprint import code_hash; print(code_hash())")
        assert shown != text
        stage.write_text(shown + comment)
        command = [sys.executable, "-m", "peco.stages.shards"]
        env = {**os.environ, "PYTHONPATH": str(here)}
        return subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout

    first = code_hash()
    (here / "peco/cli.py").write_text("# not imported by the stage")
    assert code_hash() == first
    assert code_hash("# changed") != first


def test_a_finished_stage_that_was_not_recorded_gives_the_same_bytes_without_its_work(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens.main(run_of(tokens))
    first = {path.name: path.read_bytes() for path in paths.TOKENS.iterdir()}
    first_metrics = metrics("tokens")
    [mark] = workfiles.root().glob("tokens-*/finished")
    shutil.rmtree(paths.TOKENS)  # as DVC does before a stage
    monkeypatch.setattr(tokens, "write_shard", None)
    tokens.main(run_of(tokens))
    assert {path.name: path.read_bytes() for path in paths.TOKENS.iterdir()} == first
    assert metrics("tokens") == first_metrics
    workfiles.remove_finished(keep="tokens")
    assert mark.exists()
    workfiles.remove_finished(keep="pretrain")
    assert not mark.parent.exists()


def test_files_of_other_processes_are_waited_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokens, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(tokens, "NOTICE_SECONDS", 0.0)
    files = [tmp_path / "a", tmp_path / "b"]
    files[0].touch()
    timer = threading.Timer(0.2, files[1].touch)
    timer.start()
    tokens.wait_for(files, visible=True)
    assert files[1].exists()
    assert "tokens  1/2 shards are complete" in capsys.readouterr().out


@pytest.mark.parametrize("index", ["{}", "[]", '{"views": 1, "grid": [], "codes": 2, "samples": 3}', "{"])
def test_token_targets_with_another_index_are_one_line(here: Path, index: str) -> None:
    paths.TOKENS.mkdir(parents=True)
    (paths.TOKENS / "index.json").write_text(index)
    with pytest.raises(PecoError, match="no readable token targets"):
        TokenStore(paths.TOKENS, open_shards(paths.SHARDS, "train"))


def test_an_empty_file_of_token_targets_is_one_line(here: Path) -> None:
    tokens.main(run_of(tokens))
    for file in paths.TOKENS.glob("*.npy"):
        file.write_bytes(b"")
    with pytest.raises(PecoError, match=r"not readable .*`dvc repro tokens`"):
        TokenStore(paths.TOKENS, open_shards(paths.SHARDS, "train")).get(0, 0)


def test_evaluation_views_come_in_order(here: Path) -> None:
    val = open_shards(paths.SHARDS, "val")
    for workers in (0, 2):
        found = [batch["index"] for batch in eval_batches(val, CenterView(SIZE), batch_size=3, workers=workers)]
        assert torch.cat(found).tolist() == list(range(len(val)))
