"""A stage as a Slurm job: submitted once, found again, followed, cancelled; with stand-ins that really run the script."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import slurm_commands

from peco.errors import PecoError
from peco.resources import Resources
from pipelines import components
from pipelines.cluster import job as cluster
from pipelines.cluster import slurm
from pipelines.graph import Stage
from pipelines.logs import Screen

NAME = "peco-tokenizer-key1"
ONE = Resources(threads=1, cpu=2, memory="2Gi", time_limit="90s", queue="batch")
TORCHRUN = """\
#!/bin/sh
echo "[$NODE]: hello"
if [ "$NODE" = 1 ] && [ -e fail ]; then
  echo "[1]: ValueError: no" >&2
  echo "E1 failed (exitcode: 3) local_rank: 0 (pid: 7)" >&2
  printf 'Root Cause (first observed failure):\\n  rank      : 1 (local_rank: 0)\\n' >&2
  exit 1
fi
if [ -e fail ]; then sleep 30; fi
"""
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The repository and Slurm's state, in one folder."""
    commands = tmp_path / "bin"
    commands.mkdir()
    slurm_commands.install(commands)
    (commands / "torchrun").write_text(TORCHRUN)
    (commands / "torchrun").chmod(0o755)
    (commands / "python").symlink_to(sys.executable)
    package = tmp_path / "peco/stages"
    package.mkdir(parents=True)
    for folder in (package, package.parent):
        (folder / "__init__.py").touch()
    for name in [name for name in os.environ if name.startswith("PECO_")]:
        monkeypatch.delenv(name)
    for name, value in {
        "PATH": f"{commands}:{os.environ['PATH']}",
        "FAKE_SLURM": str(tmp_path),
        "PECO_SCHEDULER": "slurm",
        "PECO_JOB_KEY": "key1",
        "PECO_GRACE_SECONDS": "5",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(slurm, "POLL_SECONDS", 0.05)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for job in slurm_commands.jobs():
        for pid in (job / "tasks").read_text().split() if (job / "tasks").exists() else ():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)


@pytest.fixture
def run(root: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a stage; `beside` is called again and again meanwhile, and true from it is a stop. Status, stdout, stderr."""

    def start(
        given: Resources = ONE, source: str = "print('done')", beside: Callable[[], bool] = lambda: False
    ) -> tuple[int, str, str]:
        (root / "peco/stages/tokenizer.py").write_text(source)
        stage = Stage("tokenizer", ("x",), (), (), (), {}, generated=False)
        over = threading.Event()

        def watch() -> None:
            deadline = time.monotonic() + 25
            while not over.wait(0.05):
                if beside() or time.monotonic() > deadline:
                    os.kill(os.getpid(), signal.SIGTERM)
                    return

        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            status = cluster.run(stage, components.tokenizer, given, Screen(), os.environ)
        finally:
            over.set()
            watcher.join()
        return status, *capsys.readouterr()

    return start


def test_lines_and_status_come_back(root: Path, run: Run) -> None:
    status, out, err = run(source="import os\nprint('of', os.environ['PECO_THREADS'])")
    assert (status, out, err) == (0, "of 1\n", f"tokenizer: job 101 ({NAME}) submitted\n")
    [group] = eval((root / "101/options").read_text())
    expected = {"job-name": f"{NAME}-0", "partition": "batch", "time": "2", "cpus-per-task": "2", "mem": "2048"}
    assert expected.items() <= group.items()
    assert "no-requeue" in group  # only the step starts a job again


def test_two_nodes_are_one_job_and_their_ranks_are_labelled(root: Path, run: Run) -> None:
    status, out, _ = run(Resources(nodes=2, threads=1))
    assert status == 0
    assert sorted(out.splitlines()) == ["[0] hello", "[1] hello"]
    assert len(slurm_commands.jobs()) == 1


def test_a_failed_rank_ends_the_job_and_its_lines_say_why(root: Path, run: Run) -> None:
    (root / "fail").touch()
    status, _, err = run(Resources(nodes=2, threads=1))
    assert status == 1
    assert "rank 1 of job 101, node 1 failed with status 3" in err
    assert "  ValueError: no" in err.splitlines()


def test_what_a_user_can_mend_is_one_line_and_status_2(run: Run) -> None:
    status, out, err = run(source="import sys\nprint('error: data: missing', file=sys.stderr)\nsys.exit(2)")
    assert status == 2
    assert (out + err).count("error: ") == 1


def test_a_second_attempt_follows_the_job_that_runs(
    root: Path, run: Run, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = "import time\nfrom pathlib import Path\nprint('begun', flush=True)\nwhile not Path('go').exists(): time.sleep(0.02)"
    monkeypatch.setattr(slurm, "PATIENCE_SECONDS", 0.0)

    def lose_sight() -> bool:
        if (root / "101/tasks").exists():
            slurm_commands.away("squeue", "sacct")
        return False

    with pytest.raises(PecoError, match="job 101 is left as it is"):
        run(source=source, beside=lose_sight)
    slurm_commands.away()
    capsys.readouterr()
    looks = len(slurm_commands.calls("squeue"))

    def let_go() -> bool:
        if len(slurm_commands.calls("squeue")) > looks + 1:  # the second attempt has found it, and follows
            (root / "go").touch()
        return False

    status, out, err = run(source=source, beside=let_go)
    assert (status, out) == (0, "begun\n")
    assert f"job 101 ({NAME}) is there already (RUNNING): following it" in err
    assert len(slurm_commands.jobs()) == 1


def test_a_job_that_has_ended_is_not_followed(root: Path, run: Run) -> None:
    assert run(source="raise SystemExit(1)")[0] == 1
    assert run()[0] == 0
    assert len(slurm_commands.jobs()) == 2


def test_a_stop_lets_the_job_save_its_work(root: Path, run: Run) -> None:
    source = """
import signal, sys, time
from pathlib import Path
def stop(number, frame):
    print("saved", flush=True)
    sys.exit(143)
signal.signal(signal.SIGTERM, stop)
Path("ready").touch()
time.sleep(60)
"""
    status, out, err = run(source=source, beside=(root / "ready").exists)
    assert (status, out) == (143, "saved\n")
    assert "stopping job 101" in err
    assert (root / "101/cancelled").read_text() == "TERM\n"


def test_a_stop_takes_a_waiting_job_from_the_queue(root: Path, run: Run) -> None:
    (root / "full").touch()
    status, _, _ = run(beside=(root / "101").exists)
    assert status == 143
    assert (root / "101/state").read_text() == "CANCELLED"


def test_a_preempted_job_says_that_it_goes_on(root: Path, run: Run) -> None:
    (root / "full").touch()

    def preempt() -> bool:
        if (root / "101/options").exists():
            slurm_commands.turn(root / "101", "PREEMPTED")
        return False

    status, _, err = run(beside=preempt)
    assert status == 1
    assert "was preempted; run again, it goes on from the last checkpoint" in err


def test_without_slurm_it_is_one_line(root: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(root))
    with pytest.raises(PecoError, match="squeue: not found"):
        run()
