"""`make ablation`: a grid goes through DVC's queue once, whatever interrupts it, and one point's failure is not the others'."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import MagicMock

import psutil
import pytest
from cheap_project import FILES, ROOT, make

from peco.core.errors import PecoError
from peco.core.params import parse_params
from pipelines import ablation
from pipelines.experiments import expqueue, grids
from pipelines.experiments import page as comparison
from pipelines.experiments import run as experiments
from pipelines.workflow import processes
from pipelines.workflow.compose import compose_params, render

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
    cfg = parse_params(compose_params("tiny", []))
    points = {point.key: point.settings for point in grids.ABLATIONS["perceptual_net"].points(cfg)}
    assert points["stands"] == ()
    assert points["resnet50"] == (
        "perceptual_net.source=timm", "perceptual_net.blocks=[2,3,4,5]", "perceptual_net.timm.model=resnet50.tv_in1k",
        "perceptual_net.timm.pretrained=true", "perceptual_net.timm.revision=78f3ecfdb38e06d9b8397f662e7ab8fee96026fa",
    )  # fmt: skip
    standing = parse_params(compose_params("tiny", ["perceptual_net=resnet50"]))
    points = {point.key: point.settings for point in grids.ABLATIONS["perceptual_net"].points(standing)}
    assert points["resnet50"] == ()
    assert points["vgg16"] == (
        "perceptual_net.blocks=[1,2,3,4,5]", "perceptual_net.timm.model=vgg16.tv_in1k",
        "perceptual_net.timm.revision=b8d8aa2dd860af9233c8c67385a8097fd6c35d3f",
    )  # fmt: skip


def test_what_can_not_be_run_is_told_in_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(experiments, "changes", lambda: "")
    for override, name, told in (
        ("seed=0", "wait", "NAME=wait: there is no such ablation"),
        ("tokenizer.pixel=none", "weight", "0: tokenizer.perceptual.weight: 0.0 is not allowed"),
        ("pretrain.masking.min_block=20", "masking", "0.2: pretrain.masking.min_block: 20 is not allowed"),
        ("tokens.views=0", "online", "NAME=online: with the params.yaml that stands all its points come to the same"),
        ("tokenizer.objective=vqkd", "target", "tokenizer.objective: vqkd in params.yaml or SET"),
    ):
        (tmp_path / "params.yaml").write_text(render(compose_params("tiny", [override])))
        with pytest.raises(PecoError) as caught:
            ablation.plan(name, [0], [])
        assert str(caught.value).startswith(told)
        assert "\n" not in str(caught.value)
    (tmp_path / "params.yaml").write_text(render(compose_params("tiny", [])))
    with pytest.raises(PecoError, match=r"tokenizer\.objective: vqkd in params\.yaml or SET"):
        ablation.plan("target", [0], ["tokenizer.objective=vqkd"])


def test_points_are_of_the_parameters_with_the_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(experiments, "changes", lambda: "")
    (tmp_path / "params.yaml").write_text(render(compose_params("tiny", [])))
    settings = ["loader.image_size=128", "tokenizer.image_size=128"]
    planned = ablation.plan("masking", [0], settings)
    assert "40%, 102 of 256 patches" in {each.point.title for each in planned.values()}
    assert {each.config.pretrain.masking.count for each in planned.values()} == {51, 102, 154, 205}


def test_names_follow_parameters_and_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.yaml").write_text(render(compose_params("tiny", [])))
    monkeypatch.setattr(experiments, "changes", lambda: "")
    first = list(ablation.plan("weight", [0], []))
    assert first == list(ablation.plan("weight", [0], []))
    assert first[0].startswith("ablation-weight-tiny-0-0-")
    assert not set(first) & set(ablation.plan("weight", [0], ["pretrain.optim.epochs=1"]))
    monkeypatch.setattr(experiments, "changes", lambda: "diff --git a/peco/core/config.py …")
    assert not set(first) & set(ablation.plan("weight", [0], []))


def test_the_reason_of_a_failure_is_the_stage_s_own_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PECO_WORK", str(Path(".work").absolute()))  # as while experiments are run
    assert ablation._reason(
        ["error: all: first", "", "error: all: no such thing", "ERROR: failed to reproduce 'all'"]
    ) == ("error: all: no such thing")
    assert ablation._reason(["Traceback", "ERROR: failed", "KeyError"]) == "ERROR: failed"
    assert ablation._reason(["Killed", " "]) == "Killed"
    assert (
        ablation._reason([f"error: all: its logs are in {Path.cwd()}/.work/logs"])
        == "error: all: its logs are in .work/logs"
    )
    assert ablation._reason([]) == "it did not begin; the logs in .work/logs/queue may say why"


def planned(monkeypatch: pytest.MonkeyPatch, finished: set[str]) -> dict[str, experiments.Experiment]:
    """Two experiments of a commit, of which some are finished, in a queue that nobody else runs; nothing of it is real."""
    queue = MagicMock(**{f"{name}.return_value": set() for name in ("waiting", "running", "failed", "processes")})
    monkeypatch.setattr(expqueue, "Queue", lambda commit: queue)
    monkeypatch.setattr(experiments, "finished", lambda commit: finished)
    monkeypatch.setattr(experiments, "state", lambda: START)
    monkeypatch.setattr(experiments, "queue", lambda name, settings: None)
    cfg = parse_params(compose_params("tiny", []))
    points = [grids.Point("0", "none", ("tokenizer.adversarial.weight=0",)), grids.Point("1", "one")]
    return {point.key: experiments.Experiment(point, 0, (), cfg, point.key == "0") for point in points}


START = experiments.State("c0", "", b"")


def sleeper(seconds: int) -> Callable[..., subprocess.Popen[bytes]]:
    return lambda *_: subprocess.Popen(["sleep", str(seconds)])


def test_a_closed_terminal_does_not_keep_it_from_stopping(monkeypatch: pytest.MonkeyPatch) -> None:
    run = ablation.Run(planned(monkeypatch, set()), START, 1)
    gone = MagicMock(**{"write.side_effect": OSError(5, "Input/output error")})
    with monkeypatch.context() as patch, processes.handling(run._note):
        patch.setattr(sys, "stderr", gone)
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
    assert gone.write.called
    assert (run.stopped, run._asked) == (signal.SIGTERM, 2)


def test_what_was_not_foreseen_stops_what_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    run = ablation.Run(planned(monkeypatch, set()), START, 1)
    monkeypatch.setattr(expqueue, "start", sleeper(60))
    run.queue.waiting = MagicMock(side_effect=[set(), KeyError("odd")])  # type: ignore[method-assign]
    with pytest.raises(KeyError, match="odd"):
        run.run()
    assert run._workers[0].returncode == -signal.SIGTERM


def test_it_says_what_it_waits_for(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    run = ablation.Run(planned(monkeypatch, set()), START, 1)
    monkeypatch.setattr(expqueue, "start", sleeper(2))
    monkeypatch.setattr(ablation, "QUIET_SECONDS", 0)
    run.queue.log = MagicMock(return_value=["error: odd"])  # type: ignore[method-assign]
    run.run()
    assert "waiting for the worker of the queue, which has begun another experiment" in capsys.readouterr().out
    assert run.failed == {"0": "error: odd", "1": "error: odd"}


def test_an_edit_meanwhile_is_not_queued_under_the_old_name(monkeypatch: pytest.MonkeyPatch) -> None:
    run = ablation.Run(planned(monkeypatch, set()), START, 1)
    queued = []

    def queue(name: str, settings: list[str]) -> None:
        queued.append(name)
        monkeypatch.setattr(experiments, "state", lambda: START._replace(params=b"seed: 1"))

    monkeypatch.setattr(experiments, "queue", queue)
    with pytest.raises(PecoError, match=r"^params\.yaml or code changed since the start; run again$"):
        run.run()
    assert queued == ["0"]


def test_a_stop_after_the_last_point_leaves_the_tables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    both = planned(monkeypatch, {"0", "1"})
    monkeypatch.setenv("PECO_WORK", str(tmp_path))
    monkeypatch.setattr(ablation, "plan", lambda *_: both)
    monkeypatch.setattr(experiments, "check_inputs", lambda parameters: None)
    monkeypatch.setattr(experiments, "read_metrics", lambda name, commit: FILES)
    monkeypatch.setattr(ablation.Run, "run", lambda run: setattr(run, "stopped", signal.SIGINT))
    assert ablation.main(["adversarial"]) == 0
    assert "| one | 50.0 |" in capsys.readouterr().out
    monkeypatch.setattr(experiments, "finished", lambda commit: {"0"})
    assert ablation.main(["adversarial"]) == 130


def test_only_what_stands_is_marked_as_that(monkeypatch: pytest.MonkeyPatch) -> None:
    both = planned(monkeypatch, set())
    monkeypatch.setattr(experiments, "read_metrics", lambda name, commit: FILES)
    for failed, marked in (({}, ["none"]), ({"0": "error: odd"}, [])):
        run = SimpleNamespace(experiments=both, failed=failed, start=START)
        found = ablation.summarize("adversarial", [0], ["tokens.views=1"], run)  # type: ignore[arg-type]
        assert [row.title for row in found.tables[0].rows if row.ours] == marked
        told = comparison.markdown(found)
        assert ("What stands is not in these tables: budget and baselines are those of one." in told) == bool(failed)
        assert "seeds 0, tokens.views=1;" in told


def test_the_name_is_taken_from_the_command_line_only() -> None:
    for target, option in (("ablation", ""), ("pipeline-local", "--name ")):
        for arguments, there in (([], False), (["NAME=weight"], True)):
            result = subprocess.run(
                ["make", "-n", "-o", "setup", target, *arguments],
                cwd=ROOT, env={**os.environ, "NAME": "host"}, capture_output=True, text=True, check=True,
            )  # fmt: skip
            assert "host" not in result.stdout
            assert (re.search(rf"{option}'?weight", result.stdout) is not None) == there


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
    for info in (project / ".dvc" / "tmp" / "exps" / "run").rglob("*"):
        if info.suffix in (".run", ".json"):
            info.write_text("")  # as a power cut may leave it
    queue = expqueue.Queue(experiments.commit())
    queue.shut_down()  # an order that comes too late must not end the next worker
    assert queue.orders()
    assert "2 experiments: 1 finished before, 0 in the queue" in run(0)
    told = run(0)
    assert "2 experiments: 2 finished before, 0 in the queue" in told and "running" not in told
    assert "| 0.1 | 50.0 |" in told
    assert sorted((tmp_path / "ran").read_text().splitlines()) == ["0 0", "0 9", "0.1 0", "0.1 0"]
    assert "another" in experiments.finished(experiments.commit())  # what others have queued is run, too, and kept
    assert not left_over(project)


def test_it_goes_on_after_a_ctrl_c_a_kill_and_a_power_cut(project: Path, tmp_path: Path) -> None:
    hold, ran = tmp_path / "hold", tmp_path / "ran"
    hold.touch()
    ran.touch()
    commit = experiments.commit()

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

    experiments.queue("another", ["seed=9"])  # what others have queued is stopped with it, and put back
    assert interrupted(lambda process: os.killpg(process.pid, signal.SIGINT)) == 130
    assert "stopped: 0 of 2 are finished, the rest stays in the queue" in (tmp_path / "told").read_text()
    waiting = expqueue.Queue(commit).waiting()
    assert "another" in waiting and len(waiting) == 3 and ran.read_text() == "0 9\n"
    assert not expqueue.Queue(commit).failed()
    assert interrupted(lambda process: process.kill()) == -signal.SIGKILL
    assert ran.read_text() == "0 9\n0 9\n"
    assert interrupted(kill_all_in(project)) == -signal.SIGKILL
    assert expqueue.Queue(commit).running()  # as DVC sees it

    def meanwhile(process: subprocess.Popen[bytes]) -> None:
        subprocess.run(["git", "commit", "-qm", "meanwhile", "--allow-empty"], check=True)
        hold.unlink()

    assert interrupted(meanwhile) == 0
    told = (tmp_path / "told").read_text()
    assert "2 experiments: 0 finished before" in told
    assert "| 0.1 | 50.0 |" in told
    queue = expqueue.Queue(commit)
    assert not queue.waiting() and not queue.running()
    assert not list((project / ".dvc" / "tmp" / "exps").glob("tmp*"))
    assert not left_over(project)


def test_a_worker_that_has_ended_leaves_nobody_who_passes_for_it(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DVC sends reports of its use by a fork with the same command line, which waits for the answer."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("DVC_ANALYTICS_ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.delenv("DVC_NO_ANALYTICS")
        (tmp_path / "ran").touch()
        queue = expqueue.Queue(experiments.commit())
        experiments.queue("one", ["seed=1"])
        with expqueue.start(queue, 1) as worker:
            wait_for(lambda: "one" in experiments.finished(queue.commit))
            assert queue.processes()
            worker.terminate()
        assert not queue.processes()


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
