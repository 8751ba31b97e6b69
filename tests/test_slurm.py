"""A stage as a Slurm job: submitted once, found again, followed, cancelled; with stand-ins that really run the script."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import slurm_commands

from peco.core import stopping
from peco.core.errors import PecoError
from peco.core.resources import Resources
from peco.core.stage_name import StageName
from pipelines.jobs import backend, cluster, slurm
from pipelines.jobs.logs import Screen
from pipelines.workflow.graph import Stage

NAME = "peco-tokenizer-key1"
MEMORY_ADVICE = "raise memory (resources in params.yaml, or PECO_MEMORY) and run again\n"
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
    monkeypatch.setattr(slurm.Slurm, "poll_seconds", 0.05)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for job in slurm_commands.jobs():
        for pid in (job / "tasks").read_text().split() if (job / "tasks").exists() else ():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)


class Clock:
    """Time as the workflow sees it: waiting takes none, and runs what a test has planned for that time."""

    def __init__(self) -> None:
        self.now = 0.0  # seconds
        self._planned: list[tuple[float, Callable[[], object]]] = []
        self._reads = 0

    def at(self, seconds: float, *actions: Callable[[], object]) -> None:
        self._planned += [(seconds, action) for action in actions]

    def monotonic(self) -> float:
        self._reads += 1
        assert self._reads < 100, "it loops without a pause"
        return self.now

    def sleep(self, seconds: float) -> None:
        self._reads = 0
        self.now = round(self.now + max(seconds, 0.001), 3)
        while self._planned and self._planned[0][0] <= self.now:
            self._planned.pop(0)[1]()


@pytest.fixture
def clock(root: Path, monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Slurm is full, so a job does only what the test plans; it is submitted, or searched for, at 0."""
    found = Clock()
    for module in (slurm, backend, stopping):
        monkeypatch.setattr(module, "time", found)
    monkeypatch.setattr(slurm.Slurm, "poll_seconds", 5.0)
    (root / "full").touch()
    return found


def turn(state: str) -> Callable[[], object]:
    """The one job changes to this state."""
    return lambda: slurm_commands.turn(slurm_commands.root() / "101", state)


def lose(*commands: str) -> Callable[[], object]:
    """Only these commands don't reach Slurm."""
    return lambda: slurm_commands.away(*commands)


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)


@pytest.fixture
def run(root: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a stage; `meanwhile` is called repeatedly until it returns True, which stops the stage. Status, stdout, stderr."""

    def start(
        resources: Resources = ONE, source: str = "print('done')", meanwhile: Callable[[], bool] = lambda: False
    ) -> tuple[int, str, str]:
        (root / "peco/stages/tokenizer.py").write_text(source)
        stage = Stage(StageName("tokenizer"), ("x",), (), (), (), dataclasses.asdict(resources), "train")
        over = threading.Event()

        def watch() -> None:
            deadline = time.monotonic() + 120
            while not over.wait(0.05):
                if meanwhile() or time.monotonic() > deadline:
                    os.kill(os.getpid(), signal.SIGTERM)
                    return

        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            status = cluster.run(stage, Screen(), os.environ)
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


def test_two_nodes_are_one_job_and_their_ranks_are_labeled(root: Path, run: Run) -> None:
    status, out, _ = run(Resources(nodes=2, threads=1))
    assert status == 0
    assert sorted(out.splitlines()) == ["[0] hello", "[1] hello"]
    assert len(slurm_commands.jobs()) == 1


def test_a_failed_rank_ends_the_job_and_its_last_lines_are_shown(root: Path, run: Run) -> None:
    (root / "fail").touch()
    status, _, err = run(Resources(nodes=2, threads=1))
    assert status == 1
    assert "rank 1 of job 101, node 1 failed with status 3" in err
    assert "  ValueError: no" in err.splitlines()


def test_logs_of_the_last_five_runs_are_kept_local_ones_and_slurms(root: Path, run: Run) -> None:
    logs = root / ".work/logs/tokenizer"
    for number in range(1, 8):
        (logs / f"here{number}").mkdir(parents=True)
        os.utime(logs / f"here{number}", (number, number))
        for end in (".log", "-0.out", "-0.err", "-1.out", "-1.err"):
            (logs / f"slurm-{number}{end}").touch()
            os.utime(logs / f"slurm-{number}{end}", (number + 0.5, number + 0.5))
    (logs / "notes.txt").touch()
    assert run()[0] == 0
    kept = {path.name.split("-0")[0].split("-1.")[0].removesuffix(".log") for path in logs.iterdir()}
    assert kept == {"here6", "slurm-6", "here7", "slurm-7", "slurm-101", "notes.txt"}
    assert len(list(logs.glob("slurm-7*"))) == 5


def test_a_stop_removes_a_waiting_job_from_the_queue(root: Path, run: Run) -> None:
    (root / "full").touch()
    status, _, _ = run(meanwhile=(root / "101").exists)
    assert status == 143
    assert (root / "101/state").read_text() == "CANCELLED"


@pytest.mark.parametrize(
    ("state", "reason"),
    [("BOOT_FAIL", "got a node that didn't boot"), ("NODE_FAIL", "lost a node"), ("PREEMPTED", "was preempted")],
)
def test_a_job_that_the_cluster_ended_is_started_again_as_often_as_allowed(
    run: Run, clock: Clock, state: str, reason: str
) -> None:
    clock.at(10, turn(state))
    clock.at(40, lambda: slurm_commands.turn(slurm_commands.root() / "102", state))
    status, _, err = run(dataclasses.replace(ONE, retries=1))
    assert status == os.EX_TEMPFAIL
    assert err.splitlines() == [
        f"tokenizer: job 101 ({NAME}) submitted",
        f"tokenizer: job 101 {reason}; retry 1 of 1 in 10 s",
        f"tokenizer: job 102 ({NAME}) submitted",
        f"error: tokenizer: job 102 {reason}; no retry of 1 is left; run again, it resumes from the last checkpoint",
    ]


@pytest.mark.parametrize(
    "line",
    [
        "slurmstepd-node3: error: StepId=101.0 exceeded memory limit (433086464 > 209715200), being killed",
        "slurmstepd: error: Exceeded job memory limit",
        "slurmstepd: error: Detected 1 oom-kill event(s) in StepId=101.0. Some of your processes may have been killed.",
        "slurmstepd: error: Detected 1 oom_kill event in StepId=101.batch. Some of the step tasks have been OOM Killed.",
    ],
)
def test_slurms_line_about_memory_counts_where_the_job_has_only_failed(run: Run, line: str) -> None:
    status, _, err = run(source=f"import os, sys\nprint({line!r}, file=sys.stderr)\nos.kill(os.getpid(), 9)")
    assert status == 2
    assert err.endswith("error: tokenizer: job 101 ran out of memory and was killed; " + MEMORY_ADVICE)


def test_what_a_stage_prints_about_memory_does_not_count(run: Run) -> None:
    status, _, err = run(source="print('exceeded memory limit')\nraise SystemExit(1)")
    assert status == 1
    assert "ran out of memory" not in err


def test_without_slurm_it_is_one_line(root: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(root))
    with pytest.raises(PecoError, match="squeue: not found"):
        run()


# Daemons that are away


def test_a_controller_that_is_away_is_waited_for_while_accounting_knows_the_job(
    root: Path, run: Run, clock: Clock
) -> None:
    clock.at(10, turn("RUNNING"), lose("squeue"))
    clock.at(200, lose(), turn("COMPLETED"), (root / "purged").touch)
    status, _, err = run()
    assert status == 0
    _, note = err.splitlines()
    assert note.startswith("tokenizer: Slurm doesn't answer (squeue: slurm_load_jobs error: Unable to contact")


def test_a_job_that_ends_while_the_controller_is_away_has_ended(run: Run, clock: Clock) -> None:
    clock.at(10, turn("RUNNING"), lose("squeue"))
    clock.at(20, turn("TIMEOUT"))
    status, _, err = run()
    assert status == 2 and "reached time_limit" in err
    assert clock.now < 30


def test_a_job_of_two_nodes_has_ended_when_both_have(run: Run, clock: Clock) -> None:
    clock.at(10, turn("RUNNING"), lose("squeue"))
    clock.at(20, turn("COMPLETED RUNNING"))
    clock.at(60, turn("COMPLETED TIMEOUT"))
    status, _, err = run(Resources(nodes=2, threads=1))
    assert status == 2 and "reached time_limit" in err


def test_accounting_that_is_late_is_waited_for(root: Path, run: Run, clock: Clock) -> None:
    clock.at(10, turn("COMPLETED"), (root / "unaccounted").touch)
    clock.at(30, (root / "unaccounted").unlink)
    assert run()[0] == 0


def test_without_accounting_an_end_is_not_known(root: Path, run: Run, clock: Clock) -> None:
    """The time in which the controller was away before doesn't count."""
    clock.at(10, turn("RUNNING"), lose("squeue", "sacct"))
    clock.at(200, lose(), turn("COMPLETED"), (root / "unaccounted").touch)
    with pytest.raises(PecoError, match="job 101: neither squeue nor sacct knows it"):
        run()
    assert 230 < clock.now < 250


@pytest.mark.parametrize("commands", [("squeue",), ("squeue", "sacct")])
def test_a_controller_that_stays_away_leaves_the_job_as_it_is(
    run: Run, clock: Clock, commands: tuple[str, ...]
) -> None:
    clock.at(10, turn("RUNNING"), lose(*commands))
    status, _, err = run()
    assert status == os.EX_TEMPFAIL
    assert re.search(
        r"error: tokenizer: Slurm doesn't answer \(.*\); job 101 is left as it is: run again to follow it\n$", err
    )
    assert 310 < clock.now < 330
    assert slurm_commands.calls("scancel") == []


def test_a_retry_follows_the_same_job_once_the_controller_is_back(run: Run, clock: Clock) -> None:
    clock.at(10, turn("RUNNING"), lose("squeue", "sacct"))
    clock.at(400, lose(), turn("COMPLETED"))
    status, _, err = run(dataclasses.replace(ONE, retries=1))
    assert status == 0
    assert re.search(r"Slurm doesn't answer \(.*\); retry 1 of 1 in 10 s", err)
    assert len(slurm_commands.jobs()) == 1


@pytest.mark.parametrize(
    ("command", "reason"),
    [("squeue", "squeue: "), ("sbatch", "sbatch: error: Batch job submission failed: Unable to contact")],
)
def test_a_controller_that_is_away_at_the_start_is_waited_for(
    run: Run, clock: Clock, command: str, reason: str
) -> None:
    slurm_commands.away(command)
    clock.at(100, lose())
    clock.at(120, turn("COMPLETED"))
    status, _, err = run()
    assert status == 0
    assert f"Slurm doesn't answer ({reason}" in err and f"job 101 ({NAME}) submitted" in err
    assert len(slurm_commands.jobs()) == 1


def test_a_controller_that_stays_away_at_the_start_receives_no_job(run: Run, clock: Clock) -> None:
    slurm_commands.away("squeue")
    status, _, err = run()
    assert status == os.EX_TEMPFAIL
    assert re.search(r"error: tokenizer: Slurm doesn't answer \(squeue: .*\); nothing was submitted: run again\n$", err)
    assert clock.now > 300
    assert slurm_commands.jobs() == []


POLICY = (
    "sbatch: error: Batch job submission failed: Job violates accounting/QOS policy (job submit limit, user's size)"
)


@pytest.mark.parametrize("limit", ["QOSMaxSubmitJobPerUserLimit", "AssocGrpSubmitJobsLimit", "AssocMaxSubmitJobLimit"])
def test_a_limit_of_submitted_jobs_is_waited_for(root: Path, run: Run, clock: Clock, limit: str) -> None:
    (root / "refusal").write_text(f"sbatch: error: {limit}\n{POLICY}")
    clock.at(1000, (root / "refusal").unlink)
    clock.at(1020, turn("COMPLETED"))
    status, _, err = run()
    assert status == 0
    assert err.splitlines() == [
        f"tokenizer: sbatch: error: {limit} {POLICY}; waiting until other jobs have ended",
        f"tokenizer: job 101 ({NAME}) submitted",
    ]


def test_a_job_that_slurm_refuses_is_one_line(root: Path, run: Run) -> None:
    (root / "refusal").write_text("sbatch: error: invalid partition specified: batch\n")
    with pytest.raises(
        PecoError, match=r"Slurm refuses the job \(sbatch: error: invalid partition specified: batch\); "
    ):
        run()


def test_a_stop_before_the_controller_answers_submits_nothing(run: Run, clock: Clock) -> None:
    slurm_commands.away("squeue")
    clock.at(20, interrupt)
    assert run()[0] == 130
    assert slurm_commands.jobs() == []


def test_a_stop_reaches_a_job_when_the_controller_is_back(root: Path, run: Run, clock: Clock) -> None:
    clock.at(10, turn("RUNNING"))
    clock.at(20, lose("squeue", "scancel"), interrupt)
    clock.at(120, lose())
    clock.at(123, turn("FAILED"))
    status, _, err = run()
    assert status == 130
    assert (root / "101/cancelled").read_text() == "TERM\n"
    assert "may still run" not in err


def test_a_stop_that_cannot_be_forwarded_reports_how_to_end_the_job(root: Path, run: Run, clock: Clock) -> None:
    clock.at(10, turn("RUNNING"))
    clock.at(20, lose("squeue", "sacct", "scancel"), interrupt)
    status, _, err = run()
    assert status == 130
    assert 320 < clock.now < 340
    assert re.search(r"tokenizer: Slurm doesn't answer \(.*\): job 101 may still run; end it by `scancel 101`\n$", err)
    assert not (root / "101/cancelled").exists()


def test_a_second_signal_does_not_wait_for_the_controller(run: Run, clock: Clock) -> None:
    clock.at(10, turn("RUNNING"))
    clock.at(20, lose("squeue", "sacct", "scancel"), interrupt)
    clock.at(25, interrupt)
    status, _, err = run()
    assert status == 130
    assert clock.now < 26
    assert slurm_commands.calls("scancel")[-1] == "101"
    assert "job 101 may still run" in err


def test_slurm_is_polled_at_intervals_before_and_after_a_stop(
    root: Path, run: Run, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PECO_GRACE_SECONDS", "60")
    looks: list[int] = []
    clock.at(10, turn("RUNNING"))
    clock.at(100, lose("squeue"), lambda: looks.append(len(slurm_commands.calls("squeue"))), interrupt)
    assert run()[0] == 130
    assert 160 < clock.now < 163
    # The one at the start; one every half second up to 10 s, and at every twentieth of the job's age up to 100 s.
    assert looks[0] <= 1 + 20 + 48
    assert len(slurm_commands.calls("squeue")) - looks[0] <= 62  # 60 of one a second
    assert slurm_commands.calls("scancel") == ["--signal=TERM 101", "101"]
