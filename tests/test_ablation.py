"""`make ablation`: a grid goes through DVC's queue once, whatever interrupts it, and one point's failure is not the others'."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from cheap_project import make

from peco import config
from peco.errors import PecoError
from pipelines import ablation, experiments, expqueue, grids
from pipelines.params import compose_params, render

COMMAND = [sys.executable, "-m", "pipelines.ablation", "adversarial", "--seeds", "0"]


@pytest.mark.parametrize("preset", ["smoke", "tiny", "cifar"])
def test_every_point_of_every_grid_is_valid(preset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(experiments, "changes", lambda: "")
    (tmp_path / "params.yaml").write_text(render(compose_params(preset, [])))
    for name in grids.ABLATIONS:
        planned = ablation.plan(name, [3], [])
        assert sum(each.stands for each in planned.values()) <= 1
        assert all(each.config.seed == 3 for each in planned.values())
        assert all(name.isascii() and "_" not in name and "/" not in name for name in planned)


def test_a_group_becomes_the_values_in_which_it_differs() -> None:
    cfg = config.parse(compose_params("tiny", []))
    points = {point.key: point.settings for point in grids.ABLATIONS["perceptual_net"].points(cfg)}
    assert points["stands"] == ()
    assert points["resnet50"] == (
        "perceptual_net.source=timm", "perceptual_net.blocks=[2,3,4,5]", "perceptual_net.timm.model=resnet50.tv_in1k",
        "perceptual_net.timm.pretrained=true",
    )  # fmt: skip
    standing = config.parse(compose_params("tiny", ["perceptual_net=resnet50"]))
    points = {point.key: point.settings for point in grids.ABLATIONS["perceptual_net"].points(standing)}
    assert points["resnet50"] == ()
    assert points["vgg16"] == ("perceptual_net.blocks=[1,2,3,4,5]", "perceptual_net.timm.model=vgg16.tv_in1k")


def test_what_can_not_be_run_is_told_in_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(experiments, "changes", lambda: "")
    for override, name, told in (
        ("seed=0", "wait", "NAME=wait: there is no such ablation"),
        ("tokenizer.pixel=none", "weight", "0: tokenizer.perceptual.weight: 0.0 is not allowed"),
        ("pretrain.masking.min_block=20", "masking", "0.2: pretrain.masking.min_block: 20 is not allowed"),
        ("tokens.views=0", "online", "NAME=online: with the params.yaml that stands all its points come to the same"),
        ("tokenizer.objective=vqkd", "target", "tokenizer.objective: vqkd in params.yaml"),
    ):
        (tmp_path / "params.yaml").write_text(render(compose_params("tiny", [override])))
        with pytest.raises(PecoError) as caught:
            ablation.plan(name, [0], [])
        assert str(caught.value).startswith(told)
        assert "\n" not in str(caught.value)


def test_names_follow_parameters_and_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.yaml").write_text(render(compose_params("tiny", [])))
    monkeypatch.setattr(experiments, "changes", lambda: "")
    first = list(ablation.plan("weight", [0], []))
    assert first == list(ablation.plan("weight", [0], []))
    assert first[0].startswith("ablation-tiny-weight-0-0-")
    assert not set(first) & set(ablation.plan("weight", [0], ["pretrain.optim.epochs=1"]))
    monkeypatch.setattr(experiments, "changes", lambda: "diff --git a/peco/config.py …")
    assert not set(first) & set(ablation.plan("weight", [0], []))


def test_the_reason_of_a_failure_is_the_stage_s_own_line() -> None:
    assert ablation._reason(
        ["error: all: first", "", "error: all: no such thing", "ERROR: failed to reproduce 'all'"]
    ) == ("error: all: no such thing")
    assert ablation._reason(["Traceback", "ERROR: failed", "KeyError"]) == "ERROR: failed"
    assert ablation._reason(["Killed", " "]) == "Killed"
    assert ablation._reason([]).startswith("it did not begin")


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return make(tmp_path / "project", monkeypatch)


def run(status: int) -> str:
    result = subprocess.run(COMMAND, capture_output=True, text=True, check=False, timeout=120)
    assert result.returncode == status, result.stdout + result.stderr
    return result.stdout + result.stderr


def test_a_point_that_fails_is_named_and_run_again_the_others_are_kept(project: Path, tmp_path: Path) -> None:
    (tmp_path / "bad").touch()
    experiments.queue("another", ["seed=9"])
    told = run(2)
    assert "[1 of 2, 0:00:" in told
    assert "0.1, seed 0: failed: error: all: no such thing" in told
    assert "error: 1 of 2 experiments failed" in told
    assert "| 0 (as it stands) | 50.0 |" in told and "| 0.1 |" not in told
    assert (
        "0.1, seed 0 failed: error: all: no such thing" in (project / "reports" / "ablation-adversarial.md").read_text()
    )
    assert sorted((tmp_path / "ran").read_text().splitlines()) == ["0 0", "0 9", "0.1 0"]
    (tmp_path / "bad").unlink()
    queue = expqueue.Queue(experiments.commit())
    queue.shut_down()  # an order that comes too late must not end the next worker
    assert queue.orders()
    assert "2 experiments: 1 finished before, 0 in the queue" in run(0)
    told = run(0)
    assert "2 experiments: 2 finished before, 0 in the queue" in told and "running" not in told
    assert "| 0.1 | 50.0 |" in told
    assert sorted((tmp_path / "ran").read_text().splitlines()) == ["0 0", "0 9", "0.1 0", "0.1 0"]
    assert "another" in experiments.finished()  # what others have queued is run, too, and kept
    assert not left_over(project)


def test_it_goes_on_after_a_ctrl_c_a_kill_and_a_power_cut(project: Path, tmp_path: Path) -> None:
    hold, ran = tmp_path / "hold", tmp_path / "ran"
    hold.touch()
    ran.touch()

    def interrupted(stop: Callable[[subprocess.Popen[bytes]], None]) -> int:
        """Start it, stop it in the midst of a stage, and return its status when no process is left."""
        before = ran.read_text()
        with (tmp_path / "told").open("wb") as file:
            process = subprocess.Popen(COMMAND, stdout=file, stderr=file, start_new_session=True)
        wait_for(lambda: ran.read_text() != before)
        stop(process)
        status = process.wait(60)
        if status >= 0:
            assert not left_over(project)
        wait_for(lambda: not left_over(project))
        return status

    assert interrupted(lambda process: os.killpg(process.pid, signal.SIGINT)) == 130
    assert "stopped: 0 of 2 are finished, the rest stays in the queue" in (tmp_path / "told").read_text()
    assert len(expqueue.Queue(experiments.commit()).waiting()) == 1 and ran.read_text() == "0 0\n"
    assert interrupted(lambda process: process.kill()) == -signal.SIGKILL
    assert interrupted(kill_all_in(project)) == -signal.SIGKILL
    assert expqueue.Queue(experiments.commit()).running()  # as DVC sees it
    hold.unlink()
    told = run(0)
    assert "2 experiments: 0 finished before" in told
    assert "| 0.1 | 50.0 |" in told
    queue = expqueue.Queue(experiments.commit())
    assert not queue.waiting() and not queue.running()
    assert not list((project / ".dvc" / "tmp" / "exps").glob("tmp*"))
    assert not left_over(project)


def left_over(project: Path) -> list[psutil.Process]:
    """Processes whose current directory is in the project."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.pid != os.getpid() and Path(process.cwd()).is_relative_to(project):
                found.append(process)
    return found


def kill_all_in(project: Path) -> Callable[[subprocess.Popen[bytes]], None]:
    def kill(_: subprocess.Popen[bytes]) -> None:
        processes = left_over(project)
        for process in processes:
            process.suspend()
        for process in processes:
            process.kill()

    return kill


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)
