"""`make repro`: the checks and lines around `dvc repro`, and the status."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from cheap_project import ROOT, left_over, wait_for
from dvc.rwlock import SCHEMA as DVC_LOCK

from pipelines import repro
from pipelines.workflow import processes
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
    subprocess.run(["git", "init", "-q"], check=True)
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
    assert [path.name for path in (project / ".work").iterdir() if path.is_dir()] == ["pretrain-2"]


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
    assert capsys.readouterr().err.startswith("error: dvc.lock: is empty or damaged; `git checkout dvc.lock` restores")
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
    holder_info = {"pid": pid, "cmd": "dvc repro"}
    content = {"write": {"metrics/shards.json": holder_info}, "read": {"data": [holder_info], "peco": []}}
    assert DVC_LOCK(content) == content
    lock.write_text(json.dumps(content))
    assert repro.main([]) == 0
    assert lock.exists() == kept
    child.wait()


def test_a_file_of_locks_that_a_kill_has_cut_is_removed(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """DVC refuses to run with it."""
    monkeypatch.setattr(processes, "KILLED_SECONDS", 0.3)
    lock = project / ".dvc/tmp/rwlock"
    lock.parent.mkdir(parents=True)
    lock.write_text('{"write": {"metrics/sha')
    assert repro.main([]) == 0
    assert not lock.exists()


def test_temporary_files_of_a_dvc_that_was_killed_are_removed(project: Path) -> None:
    """In its run-cache DVC would take the newest one for a record of the stage."""
    temporary = ".tn1Zs7Jx0Qw-Hk_3cVbM9A.tmp"
    (project / ".dvc").mkdir()
    (project / ".dvc/config").write_text("[cache]\n    dir = ../store\n")
    (project / "dvc.yaml").write_text("stages: {a: {cmd: x, outs: [artifacts/a]}}\n")
    places = [project / path for path in ("store/runs/aa/aab", "store/files/md5/cc", "store/files/md5", "artifacts")]
    for place in places:
        place.mkdir(parents=True, exist_ok=True)
        for name in (temporary, ".a.tmp", "kept"):
            (place / name).touch()
            os.utime(place / name, (0, 0))
    (project / "store/runs/bb/bbc").mkdir(parents=True)  # an empty folder, with which DVC fails in every later run
    os.utime(project / "store/runs/bb/bbc", (0, 0))
    assert repro.main([]) == 0
    assert not (project / "store/runs/bb/bbc").exists()
    for place in places:
        assert sorted(path.name for path in place.iterdir() if path.is_file()) == [".a.tmp", "kept"]


def test_a_work_folder_that_cannot_be_written_is_one_line_before_anything_runs(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PECO_WORK", "/proc/work")
    assert repro.main([]) == 2
    assert re.fullmatch(
        r"error: /proc/work: can't be written to \(.*\); fix that, or name another work folder in PECO_WORK\n",
        capsys.readouterr().err,
    )
    assert not (project / "called").exists()


def test_a_full_disk_below_dvcs_cache_or_the_results_is_named(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """DVC prints the cause alone. A stage that fails by itself names its disk, so nothing is added to its line."""
    (project / "dvc.yaml").write_text("stages: {a: {cmd: x, outs: [artifacts/a, metrics/a/x, metrics/a.json]}}\n")
    monkeypatch.setattr(repro, "full_folders", lambda folders: [str(f) for f in folders if str(f) != "artifacts"])
    (project / ".work").mkdir()
    (project / "dvc.py").write_text("raise SystemExit(255)")
    assert repro.main([]) == 255
    assert "disk full" not in capsys.readouterr().err
    entry = json.dumps({"stage": "a", "seconds": 1})
    (project / "dvc.py").write_text(
        f"with open('.work/times.jsonl', 'a') as file:\n    file.write({entry!r})\nraise SystemExit(255)"
    )
    assert repro.main([]) == 255
    assert "error: .dvc/cache, metrics: disk full, so DVC can't record results; free space" in capsys.readouterr().err
