"""A stage on a real Slurm: the same bytes as on this machine, and each end of a job with its line and its status."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from prepared import ROOT, launch, prepare, running, wait_for
from real_slurm import (
    call,
    controller_away,
    disposable,
    has_checkpoint,
    job,
    lose_node,
    node_count,
    preempt,
    settings,
    wait_until,
)
from test_chain import Checkout

STEPS = 250  # of the tokenizer, about 5 s
RESUME = "run again, it resumes from the last checkpoint"
Results = dict[str, bytes]


def results(folder: Path) -> Results:
    """All published files of the tokenizer."""
    parts = [folder / "artifacts/tokenizer", folder / "metrics"]
    return {str(p.relative_to(folder)): p.read_bytes() for part in parts for p in part.rglob("*") if p.is_file()}


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare(tmp_path_factory.mktemp("slurm") / "prepared", steps=STEPS)


@pytest.fixture(scope="session")
def expected(prepared: Path) -> Results:
    """The results of the training on this machine, in one process."""
    folder = Path(shutil.copytree(prepared, prepared.parent / "here"))
    assert launch(folder, PECO_NPROC="1")[0] == 0
    return results(folder)


@pytest.fixture
def folder(prepared: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(prepared, tmp_path / "copy"))


def trained(folder: Path, during: Callable[[str], object], env: dict[str, str]) -> tuple[int, str, str]:
    """Launch the training, call `during` with its job's id after the first checkpoint; status, stdout, stderr."""
    with running(folder, PECO_CHECKPOINT_STEPS="5", **env) as process:
        wait_for(has_checkpoint(folder), process)
        number = job(env)
        assert number
        during(number)
        out, err = process.communicate(timeout=240)
    return process.returncode, out, err


def resumed(folder: Path, env: dict[str, str]) -> Results:
    """Launch again, and return the results."""
    status, out, err = launch(folder, **env)
    assert status == 0, err
    assert "resumes from step" in out
    return results(folder)


# The ends of a job


@pytest.mark.core
def test_ctrl_c_lets_the_job_save_its_work(folder: Path, expected: Results) -> None:
    env = settings()
    with running(folder, PECO_CHECKPOINT_STEPS="5", **env) as process:
        wait_for(has_checkpoint(folder), process)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=90)
    assert process.returncode == 128 + signal.SIGINT
    assert re.search(r"stopping job \d+, which saves its work", err)
    assert job(env) is None
    assert resumed(folder, env) == expected


def test_a_cancelled_job_is_reported_and_resumes(folder: Path, expected: Results) -> None:
    env = settings(PECO_RETRIES="1")  # a job that someone has cancelled is not started again
    status, _, err = trained(folder, lambda number: call("scancel", number), env)
    assert status == 2
    assert re.search(rf"error: tokenizer: job \d+ was cancelled by someone else; {RESUME}\n$", err)
    assert resumed(folder, env) == expected


@pytest.mark.core
@pytest.mark.skipif(
    not os.environ.get("URGENT"), reason="set URGENT to a partition whose jobs preempt those of PECO_QUEUE"
)
def test_a_preempted_job_is_started_again(folder: Path, expected: Results) -> None:
    status, out, err = trained(folder, preempt, settings(PECO_RETRIES="1"))
    assert status == 0, err
    assert re.search(r"^tokenizer: job \d+ was preempted; retry 1 of 1 in 10 s$", err, re.MULTILINE)
    assert "resumes from step" in out
    assert results(folder) == expected


@disposable
def test_a_lost_node_is_reported_when_no_retry_is_left(folder: Path, expected: Results) -> None:
    env = settings()
    status, _, err = trained(folder, lose_node, env)
    assert status == os.EX_TEMPFAIL
    assert re.search(rf"error: tokenizer: job \d+ lost a node; {RESUME}\n$", err)
    assert resumed(folder, env) == expected


@pytest.mark.core
def test_a_killed_client_leaves_the_job_and_the_next_one_follows_it(folder: Path, expected: Results) -> None:
    env = settings()
    with running(folder, PECO_CHECKPOINT_STEPS="5", **env) as process:
        wait_for(has_checkpoint(folder), process)
        number = job(env)
        process.kill()
    status, _, err = launch(folder, **env)
    assert status == 0, err
    assert (
        f"tokenizer: job {number} (peco-tokenizer-{env['PECO_JOB_KEY']}) already exists (RUNNING): following it" in err
    )
    assert results(folder) == expected


@pytest.mark.core
def test_out_of_memory_is_an_error_that_the_user_can_fix(folder: Path) -> None:
    """By Slurm's own watch over memory or by a control group, whichever this Slurm has."""
    status, _, err = launch(folder, **settings(PECO_MEMORY="200Mi", PECO_RETRIES="1"))
    if status == 0:
        pytest.skip("this Slurm doesn't limit memory")
    assert status == 2
    advice = "raise memory (resources in params.yaml, or PECO_MEMORY) and run again"
    assert re.search(rf"error: tokenizer: job \d+ ran out of memory and was killed; {re.escape(advice)}\n$", err)


def test_the_time_limit_is_an_error_that_the_user_can_fix(folder: Path) -> None:
    """Slurm counts in minutes, so a job of one minute is shortened while it runs."""
    env = settings(PECO_TIME_LIMIT="1m", PECO_RETRIES="1")
    status, _, err = trained(folder, lambda number: call("scancel", "--signal=STOP", number), env)
    assert status == 2
    assert re.search(r"error: tokenizer: job \d+ reached time_limit 1m; raise it and ", err)


def test_an_input_that_is_missing_is_one_line(folder: Path) -> None:
    shutil.rmtree(folder / "artifacts/perceptual_net")
    status, out, err = launch(folder, **settings(PECO_RETRIES="1"))
    assert status == 2
    assert (out + err).count("error: ") == 1 and "perceptual_net" in out + err
    assert "retry" not in err


# Several ranks


@pytest.mark.core
def test_two_ranks_give_the_bytes_of_two_ranks_on_this_machine(prepared: Path, tmp_path: Path) -> None:
    """On two nodes, or where the partition has only one, in two processes."""
    shape = {"PECO_NODES": "2", "PECO_NPROC": "1"} if node_count() > 1 else {"PECO_NPROC": "2"}
    folders = [Path(shutil.copytree(prepared, tmp_path / name)) for name in ("slurm", "here")]
    status, _, err = launch(folders[0], **settings(**shape, PECO_CPU="2"))
    assert status == 0, err
    status, _, err = launch(folders[1], **shape)
    assert status == 0, err
    assert results(folders[0]) == results(folders[1])


# Daemons that are away


@disposable
def test_a_controller_that_is_away_while_the_job_ends_is_waited_for(folder: Path, expected: Results) -> None:
    env = settings()
    with contextlib.ExitStack() as away:
        back = threading.Timer(45.0, away.close)

        def stop_controller(_: str) -> None:
            away.enter_context(controller_away())
            back.start()

        status, _, err = trained(folder, stop_controller, env)
        back.cancel()
    assert status == 0, err
    assert re.search(r"^tokenizer: Slurm doesn't answer \(.*\); retrying for up to 300 s$", err, re.MULTILINE)
    assert results(folder) == expected


# The whole workflow


@pytest.mark.chain
def test_smoke_gives_the_lock_of_one_machine_although_its_client_was_killed(tmp_path: Path) -> None:
    here, there = (Checkout(tmp_path / name) for name in ("here", "slurm"))
    here.python("pipelines.repro")
    env = {key: value for key, value in settings().items() if key != "PECO_JOB_KEY"}
    client = there.start(**env)
    wait_for(lambda: "shards" in there.ran(), client)
    client.kill()
    client.wait()
    there.python("pipelines.repro", **env)
    assert set(there.ran()) == set(here.ran())
    assert (there.path / "dvc.lock").read_bytes() == (here.path / "dvc.lock").read_bytes()


# TorchX's own command


def test_torchx_starts_a_stage(folder: Path, expected: Results) -> None:
    queue = os.environ.get("PECO_QUEUE")
    options = ["-cfg", f"partition={queue}"] if queue else []
    component = [f"{ROOT}/pipelines/components.py:stage", "--name", "tokenizer", "--threads", "1"]
    done = subprocess.run(
        [sys.executable, "-m", "torchx.cli.main", "run", "-s", "slurm", *options, *component],
        cwd=folder, env={**os.environ, **settings(), "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    # TorchX then asks for the job's state, and can't read the answer of Slurm 22.05: its status is not checked.
    found = re.search(r"launched app: `slurm://torchx/(\d+)", done.stderr)
    assert found, done.stderr
    wait_until(lambda: not call("squeue", "--noheader", "--me", "--name=tokenizer-0", "--format=%i"))
    assert results(folder) == expected, (folder / f"slurm-{found[1]}-tokenizer-0.err").read_text()
