"""The copy of dvc.lock: a lock that was cut while DVC wrote it is restored, any other is left alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from peco.core.errors import PecoError
from pipelines.workflow import lock_copy

STAGES = [f"stage{number}" for number in range(5)]


def lock(names: list[str], seed: int = 0) -> str:
    entries = {
        name: {
            "cmd": f"python -m pipelines.launch {name}",
            "deps": [{"path": "peco/core", "hash": "md5", "md5": f"{name}{seed}", "size": 100, "nfiles": 3}],
            "params": {"params.yaml": {"seed": seed, "rate": 0.1}},
            "outs": [{"path": f"artifacts/{name}", "hash": "md5", "md5": f"{name}{seed}.dir", "size": 7}],
        }
        for name in names
    }
    return yaml.safe_dump({"schema": "2.0", "stages": entries}, sort_keys=False)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PECO_WORK", raising=False)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, len(lock(STAGES)) - 1))
def test_no_stage_is_lost_wherever_dvc_stopped_writing(size: int) -> None:
    before, recorded = lock(STAGES), lock([*STAGES, "new"])
    lock_copy.LOCK.write_text(before)
    lock_copy.keep()
    lock_copy.LOCK.write_text(recorded[:size])
    lock_copy.keep()  # a stage that is launched by hand
    lock_copy.restore()
    assert set(yaml.safe_load(lock_copy.LOCK.read_text())["stages"]) >= set(STAGES)


@pytest.mark.parametrize(
    "own", [lock(STAGES), lock([*STAGES, "new"]), lock(STAGES, seed=1), lock(STAGES[:3], seed=1), lock(STAGES[2:])]
)
def test_a_whole_lock_is_left_alone(own: str) -> None:
    """Also one of another commit, which has fewer stages."""
    lock_copy.LOCK.write_text(lock(STAGES))
    lock_copy.keep()
    lock_copy.LOCK.write_text(own)
    lock_copy.restore()
    assert lock_copy.LOCK.read_text() == own


def test_a_lock_cut_while_dvc_wrote_it_for_the_first_time_is_removed() -> None:
    lock_copy.keep()
    lock_copy.LOCK.write_text(lock(["new"])[:30])
    lock_copy.restore()
    assert not lock_copy.LOCK.exists()


@pytest.mark.parametrize("content", ["", "\0\0\0", "schema: '2.0'\nstages:\n  a:\n", "stages: {a: {cmd: x, deps: [{"])
def test_a_damaged_lock_without_a_copy_is_refused(content: str) -> None:
    lock_copy.LOCK.write_text(lock(STAGES))
    lock_copy.keep()
    lock_copy.drop()
    lock_copy.LOCK.write_text(content)
    with pytest.raises(PecoError, match=r"^dvc\.lock: is empty or damaged; `git checkout dvc\.lock` restores"):
        lock_copy.restore()
