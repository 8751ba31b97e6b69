"""`make repro`: the checks and lines around `dvc repro`, and the status."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from cheap_project import ROOT, left_over, wait_for

from pipelines import repro
from pipelines.workflow.compose import compose_params, render


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with an input, and a `dvc` that only records its arguments. PECO_WORK is empty, which equals unset."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PECO_WORK", "")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "params.yaml").write_text(render(compose_params("smoke", [])))
    (tmp_path / "dvc.yaml").write_text("stages: {}\n")
    (tmp_path / "data").mkdir()
    (tmp_path / "data/scenes.yaml").write_text("x")
    (tmp_path / "dvc.py").write_text(
        "import sys\nfrom pathlib import Path\nPath('called').write_text(' '.join(sys.argv[1:]))"
    )
    return tmp_path


def test_the_report_is_named_if_it_exists_and_no_target_was_given(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert repro.main(["-v"]) == 0
    assert (project / "called").read_text() == "repro -v"
    assert "report.html" not in capsys.readouterr().out
    (project / "reports").mkdir()
    (project / "reports/report.html").touch()
    assert repro.main([]) == 0
    assert "The report is in reports/report.html" in capsys.readouterr().out
    assert repro.main(["tokenizer"]) == 0
    assert "report.html" not in capsys.readouterr().out


def test_times_of_this_run_are_shown_without_unreadable_lines(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (project / ".work").mkdir()
    lines = ["{", "3", "{}", json.dumps({"stage": "tokens", "seconds": 1.5})]
    (project / ".work/times.jsonl").write_text('{"stage": "before", "seconds": 1}\n{\n')
    (project / "dvc.py").write_text(f"open('.work/times.jsonl', 'a').write({chr(10).join(lines)!r})")
    assert repro.main([]) == 0
    out = capsys.readouterr().out
    assert "tokens" in out and "1.5 s" in out and "before" not in out


def test_finished_working_files_are_removed_after_success(project: Path) -> None:
    (project / ".work/pretrain-1").mkdir(parents=True)
    (project / ".work/pretrain-1/finished").touch()
    (project / ".work/pretrain-2").mkdir()
    (project / "dvc.py").write_text("raise SystemExit(5)")
    assert repro.main([]) == 5
    assert (project / ".work/pretrain-1").exists()
    (project / "dvc.py").write_text("")
    assert repro.main([]) == 0
    assert [path.name for path in (project / ".work").iterdir()] == ["pretrain-2"]


def test_a_missing_data_set_is_one_line_and_status_2(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (project / "data/scenes.yaml").unlink()
    (project / "data/scenes.yaml.dvc").touch()
    assert repro.main([]) == 2
    assert "`dvc pull data/scenes.yaml.dvc` fetches it" in capsys.readouterr().err
    (project / "data/scenes.yaml.dvc").unlink()
    assert repro.main([]) == 2
    assert "dataset.path: data/scenes.yaml does not exist" in capsys.readouterr().err


def test_missing_data_of_an_evaluation_is_reported_at_the_start(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (project / "params.yaml").write_text(render(compose_params("smoke", ["evaluate.detection.path=data/coco"])))
    assert repro.main([]) == 2
    assert capsys.readouterr().err == (
        "error: evaluate.detection.path: data/coco does not exist; copy yours there and `dvc add data/coco`\n"
    )
    assert repro.main(["tokenizer"]) == 0  # which doesn't need them
    (project / "called").unlink()
    (project / "data/coco.dvc").write_text("outs:\n- path: coco\n")
    assert repro.main([]) == 2
    assert "`dvc pull data/coco.dvc` fetches it" in capsys.readouterr().err
    assert not (project / "called").exists()
    (project / "params.yaml").unlink()
    assert repro.main([]) == 2
    assert not (project / "called").exists()


def test_an_empty_lock_and_unknown_architectures_are_reported_at_the_start(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (project / "dvc.lock").touch()
    assert repro.main([]) == 2
    assert capsys.readouterr().err.startswith("error: dvc.lock: is empty; `git checkout dvc.lock` restores")
    (project / "dvc.lock").unlink()
    (project / "params.yaml").write_text(render(compose_params("smoke", ["pretrain.vit.arch=beit_nonsense"])))
    assert repro.main([]) == 2
    assert capsys.readouterr().err.startswith("error: pretrain.vit.arch: 'beit_nonsense' is not allowed")
    assert not (project / "called").exists()


def test_dvc_runs_stages_with_this_python(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (project / "dvc.py").write_text("import shutil\nopen('called', 'w').write(shutil.which('python'))")
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    assert repro.main([]) == 0
    assert (project / "called").read_text() == str(Path(sys.executable).parent / "python")


@pytest.mark.parametrize("status", [7, 0])
def test_a_stop_reaches_dvc_as_ctrl_c_and_shows_in_the_status(
    project: Path, status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    (project / "dvc.py").write_text(
        "import os, signal, sys, time\n"
        f"signal.signal(signal.SIGINT, lambda *_: sys.exit({status}))\n"
        f"os.kill({os.getpid()}, signal.SIGTERM)\ntime.sleep(30)"
    )
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    assert repro.main([]) == 128 + signal.SIGTERM
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)] == before
    assert "`make repro` resumes from there" in capsys.readouterr().err


def test_a_killed_dvc_shows_in_the_status(project: Path) -> None:
    (project / "dvc.py").write_text("import os\nos.kill(os.getpid(), 9)")
    assert repro.main([]) == 137


def test_a_killed_client_takes_dvc_and_the_launcher_with_it(project: Path) -> None:
    """Also where a shell between the two doesn't replace itself by its command."""
    (project / "dvc.py").write_text("import subprocess\nsubprocess.run(['sh', '-c', 'touch running; sleep 60; true'])")
    command = [sys.executable, "-m", "pipelines.repro"]
    with subprocess.Popen(command, env={**os.environ, "PYTHONPATH": f"{project}{os.pathsep}{ROOT}"}) as client:
        wait_for((project / "running").exists)
        client.kill()
    wait_for(lambda: not left_over(project))


@pytest.mark.parametrize(("holder", "kept"), [("this process", True), ("a zombie", False), ("an ended process", False)])
def test_locks_of_a_dvc_that_was_killed_are_removed(project: Path, holder: str, kept: bool) -> None:
    child = subprocess.Popen(["true"])
    if holder == "an ended process":
        child.wait()
    else:
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # it has ended, and its parent has not noticed
    pid = os.getpid() if holder == "this process" else child.pid
    lock = project / ".dvc/tmp/rwlock"
    lock.parent.mkdir(parents=True)
    lock.write_text(json.dumps({"metrics/shards.json": {"write": {"pid": pid, "cmd": "dvc repro"}}, "x": {"read": []}}))
    assert repro.main([]) == 0
    assert lock.exists() == kept
    child.wait()
