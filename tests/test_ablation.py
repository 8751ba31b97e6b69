"""`make ablation`: a grid runs once, whatever interrupts it, and a variant that fails does not stop the others."""

from __future__ import annotations

import argparse
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from unittest.mock import MagicMock

import psutil
import pytest
from cheap_project import FILES, ROOT, left_over, make_project, wait_for

from peco.core import stopping
from peco.core.errors import PecoError
from peco.core.params import parse_params
from pipelines import ablation
from pipelines.experiments import command, grids, page, run, single
from pipelines.experiments.grids import Variant
from pipelines.experiments.plan import Experiment, Snapshot
from pipelines.experiments.results import finished
from pipelines.experiments.run import Runner
from pipelines.workflow.compose import compose_params, render
from pipelines.workflow.environment import EXPERIMENTS

COMMAND = [sys.executable, "-m", "pipelines.ablation", "adversarial", "--seeds", "0"]


def snapshot(preset: str = "tiny", *overrides: str, changes: str = "") -> Snapshot:
    return Snapshot("c0", "c0", changes, render(compose_params(preset, list(overrides))))


@pytest.mark.parametrize("preset", ["smoke", "tiny", "cifar"])
def test_every_variant_of_every_grid_is_valid(preset: str) -> None:
    for name in grids.ABLATIONS:
        given = ["pretrain.init.source=path", "pretrain.init.path=data/backbone"] if name == "start" else []
        planned = ablation.plan_grid(name, snapshot(preset, *given), [3], [])
        assert sum(each.is_current for each in planned.values()) <= 1
        assert all(each.config.seed == 3 for each in planned.values())
        assert all(name.isascii() and "_" not in name and "/" not in name for name in planned)


def test_a_group_becomes_the_values_in_which_it_differs() -> None:
    cfg = parse_params(compose_params("tiny", []))
    settings = {variant.key: variant.settings for variant in grids.ABLATIONS["perceptual_net"].variants(cfg)}
    assert settings["current"] == ()
    assert settings["resnet50"] == (
        "perceptual_net.source=timm", "perceptual_net.blocks=[2,3,4,5]", "perceptual_net.timm.model=resnet50.tv_in1k",
        "perceptual_net.timm.pretrained=true", "perceptual_net.timm.revision=78f3ecfdb38e06d9b8397f662e7ab8fee96026fa",
    )  # fmt: skip
    cfg = parse_params(compose_params("tiny", ["perceptual_net=resnet50"]))
    settings = {variant.key: variant.settings for variant in grids.ABLATIONS["perceptual_net"].variants(cfg)}
    assert settings["resnet50"] == ()
    assert settings["vgg16"] == (
        "perceptual_net.blocks=[1,2,3,4,5]", "perceptual_net.timm.model=vgg16.tv_in1k",
        "perceptual_net.timm.revision=b8d8aa2dd860af9233c8c67385a8097fd6c35d3f",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("override", "name", "message"),
    [
        ("seed=0", "wait", "NAME=wait: there is no such ablation"),
        ("tokenizer.pixel=none", "weight", "0: tokenizer.perceptual.weight: 0.0 is not allowed"),
        ("pretrain.masking.min_block=20", "masking", "0.2: pretrain.masking.min_block: 20 is not allowed"),
        ("tokens.views=0", "online", "NAME=online: with the current params.yaml all its variants are equal"),
        ("tokenizer.objective=vqkd", "target", "tokenizer.objective: vqkd in params.yaml or SET"),
        ("seed=0", "start", "pretrain.init.source: random; NAME=start compares with given weights"),
    ],
)
def test_a_grid_that_can_not_run_is_reported_in_one_line(override: str, name: str, message: str) -> None:
    with pytest.raises(PecoError) as caught:
        ablation.plan_grid(name, snapshot("tiny", override), [0], [])
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_settings_are_checked_like_parameters() -> None:
    with pytest.raises(PecoError, match=r"tokenizer\.objective: vqkd in params\.yaml or SET"):
        ablation.plan_grid("target", snapshot(), [0], ["tokenizer.objective=vqkd"])


def test_variants_are_computed_from_the_parameters_with_the_settings() -> None:
    settings = ["loader.image_size=128", "tokenizer.image_size=128"]
    planned = ablation.plan_grid("masking", snapshot(), [0], settings)
    assert "40%, 102 of 256 patches" in {each.variant.title for each in planned.values()}
    assert {each.config.pretrain.masking.count for each in planned.values()} == {51, 102, 154, 205}


def test_given_weights_are_compared_with_random_ones_at_two_lengths() -> None:
    given = [
        "pretrain.init.source=path",
        "pretrain.init.path=data/backbone",
        "pretrain.init.head=true",
        "pretrain.optim.epochs=9",
    ]
    planned = ablation.plan_grid("start", snapshot("tiny", *given), [0], [])
    found = {each.variant.title: each for each in planned.values()}
    inits = {title: each.config.pretrain.init for title, each in found.items()}
    assert {title: each.config.pretrain.optim.epochs for title, each in found.items()} == {
        "given weights (current)": 9,
        "random weights": 9,
        "given weights, a third as long": 3,
        "random weights, a third as long": 3,
    }
    assert all(
        (init.source == "random") == (not init.head) == title.startswith("random") for title, init in inits.items()
    )
    assert [title for title, each in found.items() if each.is_current] == ["given weights (current)"]


def test_names_follow_parameters_and_code() -> None:
    first = list(ablation.plan_grid("weight", snapshot(), [0], []))
    assert first == list(ablation.plan_grid("weight", snapshot(), [0], []))
    assert first[0].startswith("ablation-weight-tiny-0-0-")
    assert not set(first) & set(ablation.plan_grid("weight", snapshot(), [0], ["pretrain.optim.epochs=1"]))
    changed = snapshot(changes="diff --git a/peco/core/config.py …")
    assert not set(first) & set(ablation.plan_grid("weight", changed, [0], []))


def test_the_reason_of_a_failure_is_the_error_line_of_the_stage() -> None:
    lines = ["error: all: first", "", "error: all: no such thing", "ERROR: failed to reproduce 'all'"]
    assert run.error_line(lines) == "error: all: no such thing"
    assert run.error_line(["Traceback", "ERROR: failed", "KeyError"]) == "ERROR: failed"
    assert run.error_line(["Killed", " "]) == "Killed"
    assert run.error_line([f"error: its logs are in {Path.cwd()}/.work/logs"]) == "error: its logs are in .work/logs"
    assert run.error_line([]) == ""


def planned() -> dict[str, Experiment]:
    """Two experiments by name, the first of which has the current parameters."""
    cfg = parse_params(compose_params("tiny", []))
    variants = [Variant("0", "none", ("tokenizer.adversarial.weight=0",)), Variant("1", "one")]
    return {variant.key: Experiment(variant, 0, (), cfg, variant.key == "0") for variant in variants}


@pytest.fixture
def runner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Runner:
    """Runs the script `child.py` for each of two experiments."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PECO_WORK", str(tmp_path))
    monkeypatch.setattr(stopping, "SAME_STOP_SECONDS", 0.0)
    monkeypatch.setattr(run, "finished", lambda commit: set())
    start = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", lambda _, **kwargs: start([sys.executable, "child.py"], **kwargs))
    return Runner("ablation", planned(), snapshot(), 1)


def test_a_second_signal_reaches_what_runs_even_if_the_terminal_is_closed(
    tmp_path: Path, runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The child of the first experiment sends the signals, and notes those that it gets."""
    (tmp_path / "child.py").write_text(
        "import os, pathlib, signal, sys, time\n"
        "def note(*_):\n"
        "    with open('signals', 'a') as file: file.write('x')\n"
        "    if os.path.getsize('signals') == 2: sys.exit(1)\n"
        f"    os.kill({os.getpid()}, signal.SIGHUP)\n"
        f"signal.signal(signal.SIGTERM, note)\nos.kill({os.getpid()}, signal.SIGINT)\ntime.sleep(60)\n"
    )
    closed = MagicMock(**{"write.side_effect": OSError(5, "Input/output error")})
    monkeypatch.setattr(sys, "stderr", closed)
    runner.run()
    assert closed.write.called
    assert (runner.stop.first, runner.stop.second) == (signal.SIGINT, True)
    assert (tmp_path / "signals").read_text() == "xx"
    assert not runner.failed


def test_an_unforeseen_error_stops_what_runs(tmp_path: Path, runner: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "child.py").write_text("import os, time; open('pid', 'w').write(str(os.getpid())); time.sleep(60)")

    def copy(*_: object) -> None:
        wait_for(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text() != "")
        raise KeyError("odd")

    monkeypatch.setattr(run, "_copy", copy)
    with pytest.raises(KeyError, match="odd"):
        runner.run()
    assert not psutil.pid_exists(int((tmp_path / "pid").read_text()))


def test_an_experiment_that_writes_nothing_is_named_with_its_status(tmp_path: Path, runner: Runner) -> None:
    (tmp_path / "child.py").write_text("raise SystemExit(3)")
    runner.run()
    assert runner.failed["1"] == "status 3; its log is " + str(tmp_path / "logs/experiments/1.log")


def test_processes_of_a_killed_call_are_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(run, "finished", lambda commit: {"0", "1"})
    clone = tmp_path / single.CLONES / "ablation-weight"
    clone.mkdir(parents=True)
    runner = Runner("ablation", planned(), snapshot(), 1)
    with subprocess.Popen(["sleep", "1"], env={**os.environ, EXPERIMENTS.name: f"ablation in {tmp_path}"}) as left:
        runner.run()
        assert left.poll() == 0
    assert f"waiting for process {left.pid} of an earlier call to end" in capsys.readouterr().out
    assert not clone.exists()


def test_a_stop_after_the_last_experiment_leaves_the_tables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ablation, "take_snapshot", snapshot)
    monkeypatch.setattr(ablation, "plan_grid", lambda *_: planned())
    monkeypatch.setattr(command, "check_inputs", lambda parameters: None)
    monkeypatch.setattr(command, "read_metrics", lambda name, commit: FILES)
    monkeypatch.setattr(Runner, "run", lambda runner: setattr(runner.stop, "first", signal.SIGINT))
    monkeypatch.setattr(command, "finished", lambda commit: {"0", "1"})
    assert ablation.main(["adversarial"]) == 0
    assert "| one | 50.0 |" in capsys.readouterr().out
    monkeypatch.setattr(command, "finished", lambda commit: {"0"})
    assert ablation.main(["adversarial"]) == 130
    assert capsys.readouterr().err == "stopped: 1 of 2 are finished; the same command resumes\n"


@pytest.mark.parametrize(("names", "marked"), [(["0", "1"], ["none"]), (["1"], [])])
def test_only_the_current_parameters_are_marked(names: list[str], marked: list[str]) -> None:
    measured = [(each, FILES) for name, each in planned().items() if name in names]
    found = page.describe(page.Heading("Ablation", "adversarial", ""), measured, [0], ["tokens.views=1"])
    assert [row.title for row in found.tables[0].rows if row.is_current] == marked
    text = page.markdown(found)
    missing = "The current parameters are not in these tables: budget and baselines are those of one."
    assert (missing in text) == (not marked)
    assert "seeds 0, tokens.views=1;" in text


def test_fewer_than_one_experiment_at_a_time_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(MagicMock(), argparse.Namespace(jobs=0)) == 2
    assert capsys.readouterr().err == "error: JOBS=0: not allowed; expected an integer, at least 1\n"


def test_the_name_is_taken_from_the_command_line_only() -> None:
    for target, option in (("ablation", ""), ("pipeline-local", "--name ")):
        for arguments, expected in (([], False), (["NAME=weight"], True)):
            result = subprocess.run(
                ["make", "-n", "-o", "setup", target, *arguments],
                cwd=ROOT, env={**os.environ, "NAME": "host"}, capture_output=True, text=True, check=True,
            )  # fmt: skip
            assert "host" not in result.stdout
            assert (re.search(rf"{option}'?weight", result.stdout) is not None) == expected


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return make_project(tmp_path / "project", monkeypatch)


def ablate(status: int, *arguments: str) -> str:
    result = subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, check=False, timeout=120)
    assert result.returncode == status, result.stdout + result.stderr
    return result.stdout + result.stderr


def test_a_variant_that_fails_is_named_and_run_again_the_others_are_kept(project: Path, tmp_path: Path) -> None:
    (tmp_path / "bad").touch()
    output = ablate(2)
    assert "Running stage 'all'" in output  # one at a time: the stage's lines are shown
    assert "[2 of 2, 0:00:" in output
    assert "0.1, seed 0: failed: error: all: no such thing" in output
    assert "error: 1 of 2 experiments failed" in output
    assert "| 0 (current) | 50.0 |" in output and "| 0.1 |" not in output
    report = (project / "reports" / "ablation-adversarial.md").read_text()
    assert "0.1, seed 0 failed: error: all: no such thing" in report
    assert (tmp_path / "ran").read_text() == "0 0\n0.1 0\n"
    (tmp_path / "bad").unlink()
    assert "2 experiments: 1 finished before" in ablate(0)
    output = ablate(0)
    assert "2 experiments: 2 finished before" in output and "running" not in output
    assert "| 0.1 | 50.0 |" in output
    assert (tmp_path / "ran").read_text() == "0 0\n0.1 0\n0.1 0\n"
    assert not left_over(project)


def test_it_resumes_after_a_ctrl_c_a_kill_and_a_power_cut(project: Path, tmp_path: Path) -> None:
    hold, ran, output = tmp_path / "hold", tmp_path / "ran", tmp_path / "output"
    hold.touch()
    ran.touch()

    def interrupted(stop: Callable[[subprocess.Popen[bytes]], None]) -> int:
        """Start it, stop it while a stage runs, and return its status when no process is left."""
        before = ran.read_text()
        with output.open("wb") as file:
            process = subprocess.Popen(COMMAND, stdout=file, stderr=file, start_new_session=True)
        wait_for(lambda: ran.read_text() != before)
        stop(process)
        status = process.wait(60)
        if status >= 0:
            assert not left_over(project)
        wait_for(lambda: not left_over(project))
        return status

    assert interrupted(lambda process: os.killpg(process.pid, signal.SIGINT)) == 130
    assert "stopped: 0 of 2 are finished; the same command resumes" in output.read_text()
    assert ran.read_text() == "0 0\n"
    assert interrupted(lambda process: process.kill()) == -signal.SIGKILL
    assert interrupted(kill_all_in(project)) == -signal.SIGKILL
    assert interrupted(lambda _: hold.unlink()) == 0
    assert ran.read_text() == "0 0\n" * 4 + "0.1 0\n"
    assert "2 experiments: 0 finished before" in output.read_text()
    assert "| 0.1 | 50.0 |" in output.read_text()
    assert not list((project / ".dvc" / "tmp" / "exps").iterdir())


def test_several_at_a_time_leave_the_workspace_alone_and_see_no_later_edit(project: Path, tmp_path: Path) -> None:
    hold, ran = tmp_path / "hold", tmp_path / "ran"
    hold.touch()
    ran.touch()
    (project / "data" / "scenes.yaml").write_text("changed and not committed\n")
    before = subprocess.run(["git", "status", "--porcelain"], check=True, capture_output=True).stdout
    commit = subprocess.run(["git", "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    process = subprocess.Popen([*COMMAND, "1", "--jobs", "2"], stdout=subprocess.PIPE, text=True)
    wait_for(lambda: len(ran.read_text().splitlines()) == 2)
    assert subprocess.run(["git", "status", "--porcelain"], check=True, capture_output=True).stdout == before
    (project / "values.json").write_text("{}")
    subprocess.run(["git", "commit", "-qam", "meanwhile"], check=True)
    hold.unlink()
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    assert sorted(ran.read_text().splitlines()) == ["0 0", "0 1", "0.1 0", "0.1 1"]
    assert "| 0.1 | 50.5 ± 0.7 |" in output
    assert "Running stage" not in output
    logs = re.findall(r"running; its log is (\S+)", output)
    assert len(logs) == 4 and all("Running stage 'all'" in Path(log).read_text() for log in logs)
    assert len(finished(commit)) == 4
    assert not subprocess.run(["git", "status", "--porcelain"], check=True, capture_output=True).stdout
    assert not subprocess.run(["git", "stash", "list"], check=True, capture_output=True).stdout


def kill_all_in(project: Path) -> Callable[[subprocess.Popen[bytes]], None]:
    def kill(_: subprocess.Popen[bytes]) -> None:
        processes = left_over(project)
        for process in processes:
            process.suspend()
        for process in processes:
            process.kill()

    return kill
