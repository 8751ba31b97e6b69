"""Stopped and killed clients, and jobs that a person ends: nothing that was computed is lost."""

from __future__ import annotations

import signal
import time

import pytest
from harness import Client, find, wait_for
from project import STEPS, Project

RESUMES = rf"tokenizer  resumes from step \d+/{STEPS}"


@pytest.mark.core
def test_ctrl_c_stops_the_job_which_resumes_to_the_same_results(project: Project, lock: str) -> None:
    first = project.repro()
    project.wait_for_checkpoint()
    first.kill(signal.SIGINT)
    status, lines = first.end()
    assert status == 128 + signal.SIGINT
    assert f"tokenizer: stopping job {project.job}, which saves its work; a second signal ends the waiting" in lines
    find(lines, rf"tokenizer: stopped at step \d+ of {STEPS}; run it again to resume")
    assert project.running() == []

    status, lines = project.repro().end()
    assert status == 0
    find(lines, RESUMES)
    assert project.lock() == lock


def test_a_stop_during_the_imports_ends_the_job(project: Project, client: Client) -> None:
    """The stage has no handler of signals yet."""
    client.sh(f"echo 'import time; time.sleep(600)' > {project.folder}/peco/stages/tokenizer.py")
    process = project.launch()
    wait_for(project.starts, "the container has started")
    process.kill(signal.SIGTERM)
    status, _ = process.end()
    assert status == 128 + signal.SIGTERM
    assert project.running() == []  # it didn't wait to be killed


@pytest.mark.core
def test_a_killed_client_leaves_the_job_which_the_next_one_follows(project: Project) -> None:
    project.lengthen()
    first = project.repro()
    project.wait_for_checkpoint()
    [pod] = project.running()
    first.kill(signal.SIGKILL)
    assert first.end()[0] == -signal.SIGKILL

    second = project.repro()
    second.wait_for_line(f"tokenizer: job {project.job} already exists (Running): following it")
    second.wait_for_line("tokenizer  step ")
    assert project.running() == [pod]
    second.kill(signal.SIGINT)
    assert second.end()[0] == 128 + signal.SIGINT


def test_a_job_that_ended_without_its_client_is_not_trained_again(project: Project, lock: str) -> None:
    first = project.repro()
    project.wait_for_checkpoint()
    first.kill(signal.SIGKILL)
    wait_for(lambda: project.client.cluster.phase(project.job) == "Completed", "the job is complete")

    status, lines = project.repro().end()
    assert status == 0, lines
    assert not any(line.startswith("tokenizer  step ") for line in lines), lines
    assert project.lock() == lock


@pytest.mark.core
def test_the_job_of_a_killed_step_saves_a_checkpoint_and_ends(project: Project, client: Client) -> None:
    """The step is dead at once and its pod stays, so that Kubernetes doesn't remove the job; the next step resumes."""
    project.lengthen()
    step = project.launch(**client.owner())
    project.wait_for_checkpoint()
    [pod] = project.running()
    step.kill(signal.SIGKILL)
    wait_for(lambda: not project.running(), f"pod {pod} has ended", 75)
    lines = client.cluster.kubectl("logs", pod).splitlines()
    assert "tokenizer: nobody has followed this job for 40 s: it saves its work and ends" in lines
    find(lines, r"tokenizer: stopped at step \d+ of \d+; run it again to resume")

    step = project.launch(**client.owner())
    step.wait_for_line("tokenizer  resumes from step ")
    step.kill(signal.SIGTERM)
    assert step.end()[0] == 128 + signal.SIGTERM


def test_a_step_that_is_started_again_adopts_the_job(project: Project, client: Client) -> None:
    """The training isn't interrupted, though the step that started it is dead."""
    project.lengthen()
    first = project.launch(**client.owner())
    project.wait_for_checkpoint()
    [pod] = project.running()
    second = project.launch(**client.owner())
    second.wait_for_line(f"tokenizer: job {project.job} already exists (Running): following it")
    first.kill(signal.SIGKILL)
    time.sleep(60)
    assert project.running() == [pod]
    second.kill(signal.SIGTERM)
    assert second.end()[0] == 128 + signal.SIGTERM


def test_a_job_that_a_person_deletes_is_not_started_again(project: Project) -> None:
    process = project.launch(PECO_RETRIES="1")
    project.wait_for_checkpoint()
    project.client.cluster.delete("jobs.batch.volcano.sh", project.job)
    status, lines = process.end()
    assert status == 2
    find(lines, rf"error: tokenizer: job {project.job} was deleted by someone else; run again, .*")


def test_a_job_that_a_person_aborts_is_not_started_again(project: Project) -> None:
    process = project.launch(PECO_RETRIES="1")
    project.wait_for_checkpoint()
    project.client.cluster.abort(project.job)
    status, lines = process.end()
    assert status == 2
    find(lines, rf"error: tokenizer: job {project.job} was aborted by someone else; run again, .*")
