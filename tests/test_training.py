"""The training loop and its parts: schedules, exact resume, failures, several ranks, published files."""

from __future__ import annotations

import errno
import io
import json
import math
import os
import re
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import timm
import torch
import torch.multiprocessing
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from peco.core.config import Optim
from peco.core.errors import Interrupted, PecoError
from peco.training import checkpoint
from peco.training.distributed import Dist
from peco.training.loop import Task, train
from peco.training.metrics import MetricLog
from peco.training.optim import Ema, lr_at, param_groups
from peco.training.progress import Progress

SAMPLES, BATCH, STEPS = 20, 8, 13
OPTIM = Optim(
    epochs=STEPS * BATCH / SAMPLES,
    batch_size=BATCH,
    lr=1e-2,
    min_lr=1e-4,
    warmup_epochs=1.0,
    weight_decay=0.05,
    betas=(0.9, 0.95),
    clip_grad=1.0,
    layer_decay=1.0,
    ema=0.9,
    accumulate=1,
    precision="fp32",
    compile=False,
)


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run outside any repository, without the caller's environment variables."""
    monkeypatch.chdir(tmp_path)
    for key in [key for key in os.environ if key.startswith("PECO_")]:
        monkeypatch.delenv(key)


class Toy(Task):
    """Regression with all that makes a resume hard: dropout, a momentum copy, statistics collected over an epoch.

    `live` has the state at the end of a training, before the averaged weights replace it.
    """

    live: dict[str, Tensor]

    def __init__(self, dropout: float = 0.2) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Dropout(dropout), nn.Linear(16, 3))
        self.teacher = nn.Linear(16, 3).requires_grad_(False)
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, batch: dict[str, Tensor], step: int, total: int) -> tuple[Tensor, dict[str, Tensor]]:
        out = self.net(batch["x"])
        loss = (out - batch["y"]).square().mean()
        return loss, {"size": out.detach().abs().mean()}

    def after_step(self, step: int, total: int) -> None:
        with torch.no_grad():
            for slow, fast in zip(self.teacher.parameters(), self.net[3].parameters(), strict=True):
                slow.lerp_(fast, 0.1)
        self.seen += 1

    def epoch_metrics(self) -> dict[str, float]:
        steps = float(self.seen)
        self.seen.zero_()
        return {"steps_in_epoch": steps}

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        self.live = {name: value.clone() for name, value in self.state_dict().items()}
        return super().load_state_dict(*args, **kwargs)


class Stopping(Toy):
    """Calls a function at one step, for the tests that interrupt."""

    def __init__(self, at: int, action: Callable[[], None]) -> None:
        super().__init__()
        self.at, self.action = at, action

    def forward(self, batch: dict[str, Tensor], step: int, total: int) -> tuple[Tensor, dict[str, Tensor]]:
        if step == self.at:
            self.action()
        return super().forward(batch, step, total)


class Crash(Exception):
    pass


class ToyLoader:
    """Random batches, drawn from a generator that is seeded by the step."""

    samples = SAMPLES

    def __init__(self, rank: int = 0, world: int = 1) -> None:
        self.rank, self.world = rank, world

    def batches(self, start_step: int, stop_step: int) -> Iterator[dict[str, Tensor]]:
        for step in range(start_step, stop_step):
            generator = torch.Generator().manual_seed(step)
            x, y = torch.randn(BATCH, 6, generator=generator), torch.randn(BATCH, 3, generator=generator)
            yield {"x": x.chunk(self.world)[self.rank], "y": y.chunk(self.world)[self.rank]}


def train_toy(task: Task, work: Path, optim: Optim = OPTIM, dist: Dist | None = None) -> MetricLog:
    dist = dist or Dist()
    loader = ToyLoader(dist.rank, dist.world)
    return train(task, loader, name="toy", optim=optim, seed=7, dist=dist, work=work)


def run(task: Toy, work: Path, optim: Optim = OPTIM, dist: Dist | None = None) -> dict[str, Any]:
    """Train, publish, and return all that must be reproducible."""
    logs = train_toy(task, work, optim, dist)
    logs.publish(work / "out" / "toy.json", work / "out" / "plots", {"last_loss": logs.latest["loss"]})
    return {
        "task": task.live,
        "ema": {name: value.clone() for name, value in task.state_dict().items()},
        "files": {str(p.relative_to(work)): p.read_bytes() for p in sorted((work / "out").rglob("*")) if p.is_file()},
    }


def assert_same(left: dict[str, Any], right: dict[str, Any]) -> None:
    assert left["files"] == right["files"]
    for part in ("task", "ema"):
        assert left[part].keys() == right[part].keys()
        for name, value in left[part].items():
            assert torch.equal(value, right[part][name]), name


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A training without interruption."""
    return run(Toy(), tmp_path_factory.mktemp("reference"))


# Schedule, groups, averages


@given(
    steps=st.integers(1, 300),
    warmup=st.floats(0, 1),
    lr=st.floats(1e-5, 1),
    share=st.floats(0, 1),
)
def test_lr_rises_linearly_then_falls_to_the_minimum(steps: int, warmup: float, lr: float, share: float) -> None:
    warm, low = int(warmup * steps), share * lr
    rates = [lr_at(step, steps, warm, lr, low) for step in range(steps)]
    assert all(0 < rate <= lr * (1 + 1e-9) for rate in rates)
    assert rates[:warm] == pytest.approx([lr * (i + 1) / (warm + 1) for i in range(warm)])
    if warm < steps:
        assert rates[warm] == pytest.approx(lr)
        assert all(a >= b - 1e-12 for a, b in pairwise(rates[warm:]))
        assert rates[-1] >= low * (1 - 1e-9)
    assert lr_at(steps, steps + 1, 0, lr, low) == pytest.approx(
        low + (lr - low) / 2 * (1 + math.cos(math.pi * steps / (steps + 1)))
    )


def named(module: nn.Module, groups: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    names = {id(p): name for name, p in module.named_parameters()}
    return {names[id(p)]: group for group in groups for p in group["params"]}


class Wrapped(Task):
    def __init__(self) -> None:
        super().__init__()
        self.net = timm.create_model(
            "vit_tiny_patch16_224", img_size=32, embed_dim=24, num_heads=2, depth=3, num_classes=5
        )
        self.head = nn.Linear(5, 2)
        self.frozen = nn.Linear(2, 2).requires_grad_(False)


def test_vectors_and_what_the_model_exempts_are_not_decayed() -> None:
    task = Wrapped()
    groups = named(task, param_groups(task, OPTIM))
    assert groups.keys() == {name for name, p in task.named_parameters() if p.requires_grad}
    for name, group in groups.items():
        exempt = name.endswith(("bias", "norm1.weight", "norm2.weight", "norm.weight", "pos_embed", "cls_token"))
        assert group["weight_decay"] == (0 if exempt else OPTIM.weight_decay), name


def test_layer_decay_falls_geometrically_from_head_to_stem() -> None:
    task = Wrapped()
    groups = named(task, param_groups(task, replace(OPTIM, layer_decay=0.5)))
    assert groups.keys() == {name for name, p in task.named_parameters() if p.requires_grad}
    scale = {name: group.get("lr_scale", 1.0) for name, group in groups.items()}
    assert scale["head.weight"] == scale["net.head.weight"] == 1
    blocks = [scale[f"net.blocks.{i}.attn.qkv.weight"] for i in range(3)]
    assert [b / a for a, b in pairwise(blocks)] == [2, 2]
    assert scale["net.pos_embed"] == scale["net.patch_embed.proj.weight"] == blocks[0] / 2
    assert groups["net.pos_embed"]["weight_decay"] == 0 and groups["net.head.weight"]["weight_decay"] > 0


def test_layer_decay_without_layers_is_one_clear_error() -> None:
    with pytest.raises(PecoError, match="layer_decay"):
        param_groups(nn.Linear(2, 2), replace(OPTIM, layer_decay=0.5))


def test_ema_follows_its_formula() -> None:
    module = nn.Linear(1, 1, bias=False)
    ema = Ema(module, 0.5)
    expected = module.weight.item()
    for step in range(20):
        with torch.no_grad():
            module.weight.fill_(step)
        ema.update(step)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * step
    assert ema.averaged(module)["weight"].item() == pytest.approx(expected, rel=1e-5)


# Resume


@settings(max_examples=6, deadline=None)
@given(crash=st.integers(0, STEPS - 1), every=st.integers(1, 5))
def test_a_killed_run_ends_in_the_same_bits(reference: dict[str, Any], crash: int, every: int) -> None:
    def die() -> None:
        raise Crash

    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("PECO_CHECKPOINT_STEPS", str(every))
        with pytest.raises(Crash):
            run(Stopping(crash, die), Path(folder))
        assert_same(reference, run(Toy(), Path(folder)))


def test_running_a_finished_training_again_changes_nothing(reference: dict[str, Any], tmp_path: Path) -> None:
    run(Toy(), tmp_path)
    assert_same(reference, run(Toy(), tmp_path))


def test_sigterm_saves_a_checkpoint_and_the_next_run_resumes(reference: dict[str, Any], tmp_path: Path) -> None:
    script = (
        "import os, signal, sys; from pathlib import Path; from tests.test_training import *\n"
        "try: run(Stopping(5, lambda: os.kill(os.getpid(), signal.SIGTERM)), Path(sys.argv[1]))\n"
        "except Interrupted as error: print(error); sys.exit(3)"
    )
    root = Path(__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": str(root)},
    )
    assert done.returncode == 3, done.stderr
    assert f"toy: stopped at step 6 of {STEPS}" in done.stdout
    state = checkpoint.load(tmp_path / "checkpoint.pt")
    assert state is not None and state["step"] == 6
    assert_same(reference, run(Toy(), tmp_path))


@pytest.mark.parametrize("step", [0, STEPS - 1])
def test_ctrl_c_is_an_interruption_and_handlers_are_restored(step: int, tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(Interrupted):
        run(Stopping(step, lambda: signal.raise_signal(signal.SIGINT)), tmp_path)
    assert signal.getsignal(signal.SIGINT) is before
    assert checkpoint.load(tmp_path / "checkpoint.pt") is not None


# Failures


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_divergence_is_one_error_and_keeps_the_last_good_checkpoint(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Diverging(Toy):
        def forward(self, batch: dict[str, Tensor], step: int, total: int) -> tuple[Tensor, dict[str, Tensor]]:
            loss, scalars = super().forward(batch, step, total)
            if step == 4:
                bad = self.net[0].weight.sum().sub(self.net[0].weight.sum().detach()).abs().sqrt()  # 0, slope infinite
                loss = loss * math.inf if what == "loss" else loss + bad
            return loss, scalars

    monkeypatch.setenv("PECO_CHECKPOINT_STEPS", "1")
    task = Diverging()
    with pytest.raises(PecoError, match=rf"toy: not finite at step 5 of {STEPS} .*lower optim\.lr") as error:
        run(task, tmp_path)
    assert "\n" not in str(error.value)
    state = checkpoint.load(tmp_path / "checkpoint.pt")
    assert state is not None and state["step"] == 4
    assert all(torch.equal(value, task.state_dict()[name]) for name, value in state["task"].items())


def test_a_damaged_checkpoint_is_put_aside_with_a_warning(
    reference: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "checkpoint.pt"
    checkpoint.save(path, {"step": 3, "task": {"w": torch.randn(1000)}})
    path.write_bytes(path.read_bytes()[:-700])
    assert_same(reference, run(Toy(), tmp_path))
    warning = capsys.readouterr().err.splitlines()
    assert len(warning) == 1 and "damaged" in warning[0]
    assert (tmp_path / "checkpoint.pt.damaged").exists()


def test_a_checkpoint_of_another_model_is_one_error(tmp_path: Path) -> None:
    class Wider(Toy):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Dropout(0.2), nn.Linear(32, 3))

    run(Toy(), tmp_path)
    with pytest.raises(PecoError, match=r"net\.0\.\w+ is \(16.*needs \(32"):
        run(Wider(), tmp_path)


def test_a_full_disk_keeps_the_previous_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "checkpoint.pt"
    checkpoint.save(path, {"step": 1})

    class Full(io.BytesIO):
        def write(self, data: Any) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("builtins.open", lambda *args, **kwargs: Full())
    with pytest.raises(PecoError, match=r"disk full at .*free space"):
        checkpoint.save(path, {"step": 2, "w": torch.zeros(100)})
    monkeypatch.undo()
    assert checkpoint.load(path) == {"step": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint.pt"]


@pytest.mark.skipif(sys.platform != "linux", reason="sets a limit on the size of files")
def test_a_large_tensor_that_does_not_fit_is_one_error_too(tmp_path: Path) -> None:
    """Torch raises a RuntimeError for it."""
    code = """
import resource, signal, sys, torch
from pathlib import Path
from peco.core.errors import PecoError
from peco.training import checkpoint
path = Path(sys.argv[1])
checkpoint.save(path, {"step": 1})
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
try:
    checkpoint.save(path, {"step": 2, "w": torch.zeros(1 << 20)})
except PecoError as error:
    print(error)
"""
    path = tmp_path / "checkpoint.pt"
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", code, str(path)], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert re.match(r"disk full at .*the last checkpoint is kept", done.stdout)
    assert checkpoint.load(path) == {"step": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint.pt"]


def test_a_batch_that_does_not_divide_is_refused_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(PecoError, match=r"optim\.batch_size: 8 .*1 processes x 3"):
        run(Toy(), tmp_path, replace(OPTIM, accumulate=3))
    assert not any(tmp_path.iterdir())


# Same result for any division of the batch


def assert_close(left: dict[str, Tensor], right: dict[str, Tensor]) -> None:
    for name, value in left.items():
        torch.testing.assert_close(value, right[name], rtol=1e-4, atol=1e-5, msg=name)


def test_accumulated_parts_give_the_gradient_of_the_whole_batch(tmp_path: Path) -> None:
    whole = run(Toy(dropout=0), tmp_path / "1")
    parts = run(Toy(dropout=0), tmp_path / "4", replace(OPTIM, accumulate=4))
    assert_close(whole["task"], parts["task"])


@pytest.mark.parametrize(("capability", "warns"), [("AVX2", True), ("DEFAULT", True), ("AVX512", False)])
def test_bf16_without_its_arithmetic_is_warned_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], capability: str, warns: bool
) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    run(Toy(), tmp_path / "bf16", replace(OPTIM, precision="bf16"))
    assert ("warning: no bf16 arithmetic here" in capsys.readouterr().out) == warns
    run(Toy(), tmp_path / "fp32")
    assert "warning" not in capsys.readouterr().out


def test_bf16_trains_close_to_fp32(tmp_path: Path) -> None:
    def last(optim: Optim, folder: str) -> float:
        return float(json.loads(run(Toy(dropout=0), tmp_path / folder, optim)["files"]["out/toy.json"])["last_loss"])

    assert last(replace(OPTIM, precision="bf16"), "bf16") == pytest.approx(last(OPTIM, "fp32"), rel=0.05)


class SharedMean(Toy):
    """A loss through the mean over all ranks: (mean over the batch of the output)^2."""

    def __init__(self, dist: Dist) -> None:
        super().__init__(dropout=0)
        self.mean = dist.mean_with_grad

    def forward(self, batch: dict[str, Tensor], step: int, total: int) -> tuple[Tensor, dict[str, Tensor]]:
        loss, scalars = super().forward(batch, step, total)
        return loss + self.mean(self.net(batch["x"]).mean(0)).square().sum(), scalars


def _rank(rank: int, world: int, folder: Path) -> None:
    os.chdir(folder)
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world), PECO_DEVICE="cpu")
    os.environ["TORCHELASTIC_RUN_ID"] = "test"
    torch.set_num_threads(1)
    dist = Dist.init()
    local = torch.tensor([[rank + 1.0, 2.0]])
    facts = {
        "sum": dist.all_reduce_sum(local),
        "gathered": dist.all_gather(local),
        "broadcast": dist.broadcast(local),
    }
    # With m the mean, rank r's loss is (r + 1) m^2: their sum has the slope 2 m (1 + ... + world) / world in each input.
    x = torch.tensor(rank + 1.0, requires_grad=True)
    ((rank + 1) * dist.mean_with_grad(x).square()).backward()
    facts["slope"] = x.grad
    even = run(SharedMean(dist), folder / "even", dist=dist)
    uneven = Stopping(6, lambda: signal.raise_signal(signal.SIGTERM) if rank == world - 1 else None)
    try:
        run(uneven, folder / "stopped", dist=dist)
    except Interrupted:
        facts["stopped"] = torch.tensor(1)
    resumed = run(Toy(), folder / "stopped", dist=dist)
    straight = run(Toy(), folder / "straight", dist=dist)
    dist.barrier()
    if rank == 0:
        assert_same(straight, resumed)
    torch.save({"facts": facts, "even": even["task"]}, folder / f"rank{rank}.pt")
    dist.close()


def test_two_processes_give_what_one_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Collectives, the differentiable mean, DDP compared with one process, and a stop signal for one rank only."""
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", _free_port())
    torch.multiprocessing.spawn(_rank, (2, tmp_path), nprocs=2)
    ranks = [torch.load(tmp_path / f"rank{r}.pt", weights_only=True) for r in range(2)]
    for rank in ranks:
        facts = rank["facts"]
        assert facts["sum"].tolist() == [[3, 4]]
        assert facts["gathered"].tolist() == [[1, 2], [2, 2]]
        assert facts["broadcast"].tolist() == [[1, 2]]
        assert facts["slope"].item() == pytest.approx(2 * 1.5 * (1 + 2) / 2)
        assert "stopped" in facts
    alone = run(SharedMean(Dist()), tmp_path / "alone")
    for rank in ranks:
        assert_close(alone["task"], rank["even"])


def _free_port() -> str:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


# Written files


def test_published_files_hold_only_steps_and_values(reference: dict[str, Any]) -> None:
    files = {name: data.decode() for name, data in reference["files"].items()}
    curves = ["grad_norm", "loss", "lr", "size", "steps_in_epoch"]
    assert list(files) == [*(f"out/plots/{name}.tsv" for name in curves), "out/toy.json"]
    for name in curves:
        head, *rows = files[f"out/plots/{name}.tsv"].splitlines()
        assert head == f"step\t{name}"
        assert all(re.fullmatch(r"\d+\t[-+.e\d]+", row) for row in rows)
    assert json.loads(files["out/toy.json"]).keys() == {"last_loss"}
    # 20 samples in batches of 8: epochs end within the steps 3, 5, 8, 10, 13
    assert files["out/plots/steps_in_epoch.tsv"].split()[2:] == [
        "3",
        "3.0",
        "5",
        "2.0",
        "8",
        "3.0",
        "10",
        "2.0",
        "13",
        "3.0",
    ]


def test_long_trainings_log_window_means_of_at_most_200_points(tmp_path: Path) -> None:
    steps = 450
    run(Toy(), tmp_path, replace(OPTIM, epochs=steps * BATCH / SAMPLES))
    rows = (tmp_path / "out/plots/loss.tsv").read_text().splitlines()[1:]
    assert [int(row.split()[0]) for row in rows] == [*range(3, steps + 1, 3)]
    rates = [float(row.split()[1]) for row in (tmp_path / "out/plots/lr.tsv").read_text().splitlines()[1:]]
    warm = round(SAMPLES / BATCH)
    exact = [lr_at(step, steps, warm, OPTIM.lr, OPTIM.min_lr) for step in range(3)]
    assert rates[0] == pytest.approx(sum(exact) / 3, rel=1e-5)


def test_scores_are_sorted_rounded_and_finite(tmp_path: Path) -> None:
    logs = MetricLog("toy", tmp_path / "curves")
    logs.publish(tmp_path / "m.json", tmp_path / "plots", {"b": 1 / 3, "a": 2.0})
    assert (tmp_path / "m.json").read_text() == '{\n  "a": 2.0,\n  "b": 0.333333\n}\n'
    with pytest.raises(PecoError, match="c is nan"):
        logs.publish(tmp_path / "m.json", tmp_path / "plots", {"c": math.nan})


def test_curves_are_tables_that_dvc_plots_read(tmp_path: Path) -> None:
    logs = MetricLog("toy", tmp_path / "curves")
    logs.log(1, {"loss": 0.5, "val/top1": 12.0})
    logs.log(2, {"loss": 1e-7, "val/top1": math.nan})
    logs.publish(tmp_path / "m.json", tmp_path / "plots", {})
    assert (tmp_path / "plots/loss.tsv").read_text() == "step\tloss\n1\t0.5\n2\t1e-07\n"
    assert (tmp_path / "plots/val/top1.tsv").read_text() == "step\ttop1\n1\t12.0\n2\tnan\n"


def test_prometheus_serves_the_live_values(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PECO_METRICS_PORT", _free_port())
    busy = MetricLog("other", tmp_path / "other")
    try:
        logs = train_toy(Toy(), tmp_path)
        page = urllib.request.urlopen(f"http://127.0.0.1:{logs.exporter.port}/metrics", timeout=10).read().decode()
        logs.close()
    finally:
        busy.close()
    assert logs.exporter.port != busy.exporter.port and "is in use, serving on" in capsys.readouterr().err
    values = dict(re.findall(r'^(peco_\w+)\{stage="toy"\} (\S+)$', page, re.MULTILINE))
    assert float(values["peco_steps_done"]) == float(values["peco_steps_planned"]) == STEPS
    for name in (
        "samples_per_second", "step_seconds", "data_wait_seconds", "loss", "gradient_norm", "learning_rate",
        "steps_in_epoch", "checkpoint_age_seconds", "restarts",
    ):  # fmt: skip
        assert f"peco_{name}" in values


def test_progress_is_one_line_of_a_fixed_form(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    form = r"toy  step 2/2  loss 3\.21  lr 1\.2e-3  \S+ img/s  eta 0:00"

    def show(visible: bool = True) -> str:
        progress = Progress("toy", 0, 2, BATCH, MetricLog("toy", Path("work")).exporter, visible)
        for done in (1, 2):
            progress.update(done, {"loss": 3.2149, "lr": 1.2e-3}, wait=0.0)
        progress.close()
        captured = capsys.readouterr()
        return captured.err or captured.out

    assert re.fullmatch(form + "\n", show())
    monkeypatch.setenv("PECO_PROGRESS", "bar")
    assert re.fullmatch("\r" + form + "\n", show())
    monkeypatch.delenv("PECO_PROGRESS")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert re.fullmatch("\r" + form + re.escape("\x1b[K") + "\n", show())
    assert show(visible=False) == ""


def test_slow_checkpoints_are_rarer_unless_an_interval_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(checkpoint.time, "monotonic", lambda: now)
    monkeypatch.delenv("PECO_CHECKPOINT_SECONDS", raising=False)

    def interval(write_seconds: float) -> float:
        """Seconds from the end of one checkpoint, which took `write_seconds` to write, to the next."""
        nonlocal now
        schedule, began = checkpoint.CheckpointSchedule(), now
        schedule.saved(write_seconds)
        while not schedule.due(1):
            now += 1
        return now - began

    assert interval(0.1) == 120
    assert interval(10) == 500  # two percent
    monkeypatch.setenv("PECO_CHECKPOINT_SECONDS", "30")
    assert interval(10) == 30


@pytest.mark.parametrize(
    ("key", "value"),
    [("PECO_CHECKPOINT_SECONDS", "soon"), ("PECO_CHECKPOINT_STEPS", "-1"), ("PECO_METRICS_PORT", "http")],
)
def test_a_wrong_environment_variable_is_named(
    key: str, value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(key, value)
    with pytest.raises(PecoError, match=f"{key}: '{value}' is not allowed"):
        run(Toy(), tmp_path)
