"""TorchX's own command line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from harness import Client, wait_for
from objects import CLAIM, ROOT, VOLUME
from project import Project


def test_torchx_starts_a_stage(project: Project, client: Client) -> None:
    """From the tester's machine: TorchX looks at its jobs in a way that needs more rights than a step has."""
    settings = client.cluster.settings
    command = [
        "run", "--workspace=", "-s", "kubernetes",
        "-cfg", f"namespace={settings.namespace},queue={settings.namespace},service_account=peco-job",
        "pipelines/components.py:stage", "--name", "tokenizer", "--cpu", "1", "--memMB", "2000",
        "--image", settings.image, "--folder", project.folder, "--mounts", f"type=volume,src={CLAIM},dst={VOLUME}",
    ]  # fmt: skip
    done = subprocess.run(
        [Path(sys.executable).parent / "torchx", *command], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    [job] = client.cluster.find_all("jobs.batch.volcano.sh")
    wait_for(lambda: client.cluster.phase(job["metadata"]["name"]) == "Completed", "the job is complete", 300)
    client.sh(f"cat {project.folder}/metrics/tokenizer.json")
