"""The short form of `make chaos`: a training killed while it publishes and while DVC records it, and full and read-only disks."""

from __future__ import annotations

import pytest
from chaos.disks import separate_mounts, spoil_disks
from chaos.kills import kill_repeatedly
from chaos.moments import Kill, Moment
from chaos.project import Project

STAGE = "perceptual_net"
PUBLISHING = Moment(
    "publishing", {"role": "stage", "event": r"^os\.rename$", "path": f"{STAGE}$", "skip": 0, "calls": 1}
)
RECORD = Moment("record", {"role": "dvc", "event": "^open$", "path": r"^dvc\.lock$", "skip": 0, "calls": 2000})


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return Project(tmp_path_factory.mktemp("chaos"), STAGE)


def test_kills_in_publishing_and_in_the_record_lose_nothing(project: Project) -> None:
    kills = [Kill(PUBLISHING, "SIGKILL", "stage", at_once=True), Kill(RECORD, "SIGKILL", "all", at_once=False)]
    outcome = kill_repeatedly(project, STAGE, kills, print)
    assert (len(outcome.kills), outcome.faults) == (2, [])


def test_full_and_read_only_disks_are_one_line_and_lose_nothing(project: Project) -> None:
    if reason := separate_mounts():
        pytest.skip(reason)
    outcomes = spoil_disks(project, STAGE, 0, print, places=("work",))
    assert [(outcome.fault, outcome.ends, outcome.faults) for outcome in outcomes] == [
        ("full", "one line", []), ("read-only", "one line", []),
    ]  # fmt: skip
