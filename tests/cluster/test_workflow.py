"""The whole workflow as Volcano jobs."""

from __future__ import annotations

import pytest
from harness import CHECKOUT, FOLDER, Client
from project import LONG_SECONDS


@pytest.mark.core
def test_smoke_gives_the_dvc_lock_of_one_machine(client: Client) -> None:
    """Both run at the same time. Afterwards at most one job is left: one whose log was read late, which Kubernetes removes."""
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
    left = client.cluster.find_all("jobs.batch.volcano.sh")
    assert len(left) <= 1, [(job["metadata"], job.get("status")) for job in left]
    assert all(job["spec"]["ttlSecondsAfterFinished"] for job in left)
