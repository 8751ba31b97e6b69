"""Two ranks in two pods."""

from __future__ import annotations

import pytest
from harness import Client, find
from project import LONG_SECONDS, Project


@pytest.mark.core
def test_two_ranks_in_two_pods_give_the_results_of_two_processes_in_one(project: Project, client: Client) -> None:
    other = Project(client, f"{project.folder}-one-pod", f"{project.key}1")
    client.sh(f"cp -a {project.folder} {other.folder}")
    locks = []
    for each, processes in ((other, {"PECO_NPROC": "2", "PECO_THREADS": "1"}), (project, {"PECO_NODES": "2"})):
        status, lines = each.repro(**processes).end(LONG_SECONDS)
        assert status == 0, lines
        find(lines, r"\[0\] tokenizer  step \d+/.*")
        locks.append(each.lock())
    assert locks[0] == locks[1]
