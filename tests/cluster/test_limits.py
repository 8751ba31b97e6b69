"""Jobs that would fail again are not started again: too little memory or time, an image that isn't there."""

from __future__ import annotations

import pytest
from harness import Client, find
from project import Project


@pytest.mark.core
def test_out_of_memory(project: Project) -> None:
    status, lines = project.launch(PECO_MEMORY="96Mi", PECO_SHARED_MEMORY="32Mi", PECO_RETRIES="1").end()
    assert status == 2
    find(
        lines,
        rf"error: tokenizer: pod {project.job}-tokenizer-0-0 ran out of memory and was killed; raise memory 96Mi "
        r"\(resources in params\.yaml, or PECO_MEMORY\), or lower workers, and run again",
    )
    assert lines.count(project.created) == 1
    assert project.client.cluster.find_all("jobs.batch.volcano.sh") == []


def test_time_limit(project: Project) -> None:
    """It also ends a stage that is still importing its packages."""
    project.lengthen()
    status, lines = project.launch(PECO_TIME_LIMIT="3s", PECO_RETRIES="1").end()
    assert status == 2
    find(
        lines,
        rf"error: tokenizer: pod {project.job}-tokenizer-0-0 reached time_limit 3s; raise it \(resources in params\.yaml, or "
        r"PECO_TIME_LIMIT\) and run again, it resumes from the last checkpoint",
    )
    assert lines.count(project.created) == 1
    assert not any(line.startswith("tokenizer  step ") for line in lines), lines


def test_an_image_that_is_not_there(project: Project, client: Client) -> None:
    """The job's pods have the pull policy of PECO_PULL_POLICY."""
    process = project.launch(PECO_IMAGE="localhost/none:1", PECO_PULL_POLICY="Never")
    process.wait_for_line(project.created)
    [task] = client.cluster.get("jobs.batch.volcano.sh", project.job)["spec"]["tasks"]
    assert task["template"]["spec"]["containers"][0]["imagePullPolicy"] == "Never"
    status, lines = process.end()
    assert status == 2
    find(lines, rf"error: tokenizer: job {project.job} can't start: its image can't be pulled \(.*localhost/none:1.*")
