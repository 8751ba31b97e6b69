"""The whole workflow as Volcano jobs."""

from __future__ import annotations

import pytest
from harness import CHECKOUT, FOLDER, Client, wait_for
from project import LONG_SECONDS


@pytest.mark.core
def test_smoke_gives_the_dvc_lock_of_one_machine(client: Client) -> None:
    """Both run at the same time; afterwards each job has been removed."""
    processes = {}
    for scheduler in ("local_cwd", "kubernetes"):
        folder = f"{FOLDER}/smoke-{scheduler}"
        client.sh(f"cp -a {CHECKOUT} {folder}; cd {folder}; python -m pipelines.params --preset smoke")
        processes[folder] = client.start(folder, "python", "-m", "pipelines.repro", PECO_SCHEDULER=scheduler)
    for process in processes.values():
        status, lines = process.end(LONG_SECONDS)
        assert status == 0, lines
    here, cluster = (client.sh(f"cat {folder}/dvc.lock") for folder in processes)
    assert cluster == here
    # Removed in the foreground: the last job is there until its pod is gone.
    left = client.cluster.find_all("jobs.batch.volcano.sh")
    kept = [(job["metadata"]["name"], job["status"]) for job in left if "deletionTimestamp" not in job["metadata"]]
    assert not kept
    wait_for(lambda: not client.cluster.find_all("jobs.batch.volcano.sh"), "removal of the last job", 30)
