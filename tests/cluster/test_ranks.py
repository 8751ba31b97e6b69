"""Two ranks in two pods: their results, and a rank that fails."""

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


def test_the_rank_that_raises_is_named_with_its_last_lines(project: Project, client: Client) -> None:
    """torchrun stops the other one."""
    module = f"{project.folder}/peco/stages/tokenizer.py"
    client.sh(f"""printf 'import os\nif os.environ["RANK"] == "1":\n    raise ValueError("no")\n' > {module}""")
    status, lines = project.launch(PECO_NODES="2", PECO_RETRIES="1").end()
    assert status == 1
    find(
        lines,
        rf"error: tokenizer: rank 1 of pod {project.job}-tokenizer-1-0 failed with status 1; its last line: ValueError: no",
    )
    assert lines[-1] == "  ValueError: no"
    assert lines.count(project.created) == 1
