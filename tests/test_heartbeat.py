"""The heartbeat of a job: silence as an observer counts it, the file that is touched, a training that nobody follows any more."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import prepared
import pytest
from hypothesis import given
from hypothesis import strategies as st

from peco.core import heartbeat
from peco.core.errors import PecoError
from peco.core.heartbeat import INTERVAL_SECONDS, SILENCE_SECONDS, Silence, beating

MOST = 2 * INTERVAL_SECONDS  # that one observation counts


@dataclass
class Clock:
    now: float = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture(scope="module")
def clock() -> Iterator[Clock]:
    found = Clock()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(heartbeat, "time", found)
        yield found


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("work") / "job.alive"


def touch(path: Path, stamp: int) -> None:
    path.touch()
    os.utime(path, ns=(stamp, stamp))


@given(st.lists(st.tuples(st.floats(0, 100), st.booleans())))
def test_silence_is_the_observed_time_since_the_last_change(
    clock: Clock, path: Path, observations: list[tuple[float, bool]]
) -> None:
    touch(path, 0)
    silence = Silence(path)
    expected = 0.0
    for stamp, (pause, touched) in enumerate(observations, start=1):
        clock.now += pause
        if touched:
            touch(path, stamp)
        expected = 0.0 if touched else expected + min(pause, MOST)
        assert silence.observe() == pytest.approx(expected)


@given(st.lists(st.floats(0, 1e6), max_size=int(SILENCE_SECONDS / MOST) - 1))
def test_pauses_of_the_observer_alone_never_stop_a_job(clock: Clock, path: Path, pauses: list[float]) -> None:
    """As when its process is suspended, or the volume hangs: too few observations are no silence, however long they take."""
    touch(path, 0)
    silence = Silence(path)
    for pause in pauses:
        clock.now += pause
        assert silence.observe() < SILENCE_SECONDS


def test_a_clock_of_the_file_server_that_differs_does_not_matter(clock: Clock, path: Path) -> None:
    touch(path, 10**18)
    silence = Silence(path)
    clock.now += 3
    assert silence.observe() == 3
    touch(path, 5)  # set back
    clock.now += 3
    assert silence.observe() == 0


def test_a_file_that_is_missing_is_silent_and_one_that_appears_is_not(clock: Clock, path: Path) -> None:
    path.unlink(missing_ok=True)
    silence = Silence(path)
    clock.now += 3
    assert silence.observe() == 3
    touch(path, 1)
    assert silence.observe() == 0
    path.unlink()
    path.with_name("other").touch()
    path.with_name("other").rename(path)  # a new follower may make it again
    assert silence.observe() == 0


def test_the_file_is_touched_while_the_block_runs_and_gone_afterwards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heartbeat, "INTERVAL_SECONDS", 0.01)
    path = tmp_path / "work/job.alive"
    with beating(path):
        seen = {path.stat().st_mtime_ns}
        while len(seen) < 4:
            seen.add(path.stat().st_mtime_ns)
        path.unlink()
        while not path.exists():  # somebody has tidied up
            time.sleep(0.01)
    assert list(path.parent.iterdir()) == []


def test_a_heartbeat_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "work").touch()
    with (
        pytest.raises(PecoError, match=r"PECO_WORK: .*work/job.alive can't be written"),
        beating(tmp_path / "work/job.alive"),
    ):
        pass


STAGE = """\
import runpy
from peco.core import heartbeat
heartbeat.INTERVAL_SECONDS, heartbeat.SILENCE_SECONDS = 0.1, 1.0
runpy.run_module("peco.stages.tokenizer", run_name="__main__")
"""


def test_a_training_that_nobody_follows_saves_a_checkpoint_and_ends(tmp_path: Path) -> None:
    """It trains on as long as the file is touched, however long the follower is silent otherwise."""
    folder = prepared.prepare(tmp_path, steps=30_000)
    alive = tmp_path / "job.alive"
    alive.touch()
    env = os.environ | {
        "PECO_HEARTBEAT": str(alive),
        "PYTHONPATH": str(prepared.ROOT),
        "PECO_CHECKPOINT_SECONDS": "1000",
    }
    process = subprocess.Popen(
        [sys.executable, "-c", STAGE], cwd=folder, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    try:
        assert process.stdout
        steps = 0
        for line in process.stdout:
            alive.touch()
            steps += " step " in line
            if steps == 3:
                break
        _, err = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 128 + signal.SIGTERM
    first, second = err.splitlines()
    assert first == "tokenizer: nobody has followed this job for 1 s: it saves its work and ends"
    assert second.startswith("tokenizer: stopped at step ") and second.endswith("of 30000; run it again to resume")
    assert [path.name for path in folder.glob(".work/tokenizer-*/checkpoint.pt")] == ["checkpoint.pt"]
