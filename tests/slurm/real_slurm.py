"""The Slurm that the tests run on: its jobs, nodes and controller."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import psutil
import pytest

disposable = pytest.mark.skipif(
    os.environ.get("DISPOSABLE") != "1", reason="set DISPOSABLE=1 where nodes and the controller may be stopped"
)


def settings(**more: str) -> dict[str, str]:
    """The environment of a launcher whose jobs are small, find this Python, and have a name of their own."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    found = {"PATH": path, "PECO_SCHEDULER": "slurm", "PECO_CPU": "1", "PECO_RETRIES": "0"}
    queue = os.environ.get("PECO_QUEUE")
    return found | ({"PECO_QUEUE": queue} if queue else {}) | {"PECO_JOB_KEY": uuid.uuid4().hex[:16], **more}


def call(*command: str) -> str:
    """Output of a command, which must succeed."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
    return done.stdout.strip()


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.5)


def job(env: Mapping[str, str], stage: str = "tokenizer") -> str | None:
    """Id of the job of a launcher with this environment, while it waits or runs."""
    found = call("squeue", "--noheader", "--me", f"--name=peco-{stage}-{env['PECO_JOB_KEY']}-0", "--format=%i")
    return found.split("+")[0] or None


def node(number: str) -> str:
    """The node on which a job runs."""
    return call("squeue", "--noheader", f"--jobs={number}", "--format=%N")


def node_count() -> int:
    """Number of nodes of the tests' partition."""
    queue = os.environ.get("PECO_QUEUE")
    listed = call("sinfo", "--noheader", "--Node", "--format=%N", *([f"--partition={queue}"] if queue else []))
    return len(set(listed.split()))


def has_checkpoint(folder: Path) -> Callable[[], bool]:
    """True once the tokenizer's training in this folder has written a checkpoint."""
    return lambda: any((folder / ".work").glob("tokenizer-*/checkpoint.pt"))


def preempt(number: str) -> None:
    """Have an urgent job take the node of this one for a few seconds."""
    partition = os.environ["URGENT"]
    command = ("--exclusive", f"--nodelist={node(number)}", "--output=/dev/null", "--wrap=sleep 3")
    call("sbatch", "--parsable", f"--partition={partition}", *command)


def lose_node(number: str) -> None:
    """Take the node of a job down for a few seconds."""
    name = node(number)
    call("scontrol", "update", f"nodename={name}", "state=down", "reason=test")
    time.sleep(3)
    # Some return by themselves as soon as their daemon reports; then this is refused.
    subprocess.run(["scontrol", "update", f"nodename={name}", "state=resume"], capture_output=True, check=False)
    wait_until(
        lambda: call("sinfo", "--noheader", f"--nodes={name}", "--format=%t").startswith(("idle", "mix", "alloc"))
    )


@contextlib.contextmanager
def controller_away() -> Iterator[None]:
    """The controller doesn't answer in this block."""
    found = [process for process in psutil.process_iter(["name"]) if process.info["name"] == "slurmctld"]
    if len(found) != 1:
        pytest.skip("the controller does not run on this machine")
    found[0].send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        found[0].send_signal(signal.SIGCONT)
