"""The checks of `make cluster-check` that only pods can make."""

from __future__ import annotations

import json

from harness import CHECKOUT, Client, wait_for


def test_the_job_of_the_check_runs_and_is_removed(client: Client) -> None:
    """In the client's pod, as in the pod that `make cluster-check` makes. Ranks on other nodes share the volume, too."""
    settings = json.dumps({"git": "", "dvc": "", "job": "yes"})
    command = ("env", f"PYTHONPATH={CHECKOUT}", "python", "-m", "pipelines.pod_check", "step", settings)
    status, lines = client.start(CHECKOUT, *command, **client.owner()).end()
    results = [json.loads(line) for line in lines if line.startswith("{")]
    states = {result["title"]: result["state"] for result in results if result["state"] != "note"}
    assert (status, set(states.values())) == (0, {"right"}), lines
    assert {
        "the image has the packages",
        "the volume at /peco",
        "rank 0 is reached by rank 1",
        "rank 1 finds rank 0 by its name",
        "both pods see the same volume",
        "a Volcano job of two pods",
    } <= set(states)
    wait_for(lambda: not client.cluster.find_all("jobs.batch.volcano.sh"), "removal of the job", 30)
