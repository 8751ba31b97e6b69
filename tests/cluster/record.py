"""Record what a real API server answers to the launcher: `python tests/cluster/record.py FOLDER [SITUATION…]`.

Variables as for `make test-cluster`. Each situation becomes a file of FOLDER with the answers that differ in more than times, ids
and log lines. tests/kubernetes_api.py gives answers of these shapes.
"""

from __future__ import annotations

import json
import re
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness import CHECKOUT, Client, Cluster, Process
from objects import Json, Settings
from project import LONG_SECONDS, Project, prepare

PORT = 7444
LOG_LINES = 3
LONG_PART = 300  # characters
# Times, versions and hashes.
VARYING = re.compile(r"\d{4}-\d\d-\d\dT[\d:.]+Z|sinceTime=[^&]*|\"resourceVersion\": \"\d+\"|[0-9a-f]{64}")


def wait(project: Project, process: Process) -> None:
    """Do nothing."""


def on_pod(*command: str) -> Callable[[Project, Process], None]:
    """Run kubectl on the job's pod, once it has written a checkpoint."""

    def act(project: Project, process: Process) -> None:
        project.wait_for_checkpoint()
        [pod] = project.running()
        project.client.cluster.kubectl(*command, pod)

    return act


def evict(project: Project, process: Process) -> None:
    project.wait_for_checkpoint()
    [pod] = project.running()
    project.client.cluster.evict(pod)


def abort(project: Project, process: Process) -> None:
    project.wait_for_checkpoint()
    project.client.cluster.abort(project.job)


def delete(project: Project, process: Process) -> None:
    project.wait_for_checkpoint()
    project.client.cluster.delete("jobs.batch.volcano.sh", project.job)


def stop(project: Project, process: Process) -> None:
    project.wait_for_checkpoint()
    process.kill(signal.SIGTERM)


def stop_waiting(project: Project, process: Process) -> None:
    process.wait_for_line("has been waiting for")
    process.kill(signal.SIGTERM)


@dataclass(frozen=True)
class Situation:
    """Variables of the launcher, the account it has, and what happens to its job."""

    act: Callable[[Project, Process], None] = wait
    account: str = "peco-step"
    variables: dict[str, str] = field(default_factory=dict)


SITUATIONS = {
    "success": Situation(),
    "stopped": Situation(stop),
    "aborted": Situation(abort),
    "job-deleted": Situation(delete),
    "pod-deleted": Situation(on_pod("delete", "pod")),
    "pod-deleted-by-force": Situation(on_pod("delete", "pod", "--force", "--grace-period=0")),
    "pod-evicted": Situation(evict),
    "out-of-memory": Situation(variables={"PECO_MEMORY": "96Mi", "PECO_SHARED_MEMORY": "32Mi"}),
    "time-limit": Situation(variables={"PECO_TIME_LIMIT": "5s"}),
    "image-missing": Situation(stop_waiting, variables={"PECO_IMAGE": "localhost/none:1", "PECO_PULL_POLICY": "Never"}),
    "no-room": Situation(stop_waiting, variables={"PECO_GPUS": "1", "PECO_GPU_RESOURCE": "example.com/none"}),
    "queue-missing": Situation(variables={"PECO_QUEUE": "no-such-queue"}),
    "queue-too-small": Situation(variables={"PECO_CPU": "500"}),
    "priority-missing": Situation(variables={"PECO_PRIORITY": "no-such-priority"}),
    "pod-security": Situation(variables={"PECO_CAPABILITIES": "IPC_LOCK"}),
    "no-rights": Situation(account="peco-job"),
}


def reduced(value: Any) -> Any:
    """The value without what differs in every cluster and every call."""
    if isinstance(value, dict):
        return {key: reduced(part) for key, part in value.items() if key != "managedFields"}
    return [reduced(part) for part in value] if isinstance(value, list) else value


def parsed(text: str) -> Any:
    """The JSON of a request or an answer; the first lines of a log."""
    try:
        return reduced(json.loads(text)) if text else None
    except ValueError:
        return text.splitlines()[:LOG_LINES]


def distinct(records: list[Json]) -> list[Json]:
    """The answers without repetitions: times, ids and versions don't count. A part such as a `spec` is given once."""
    found, seen = [], set()
    for record in records:
        answer = record | {"request": parsed(record["request"]), "answer": parsed(record["answer"])}
        shape = VARYING.sub("", json.dumps(answer))
        if shape not in seen:
            seen.add(shape)
            found.append(answer)
    parts: set[str] = set()
    return [entry | {key: brief(entry[key], parts) for key in ("request", "answer")} for entry in found]


def brief(value: Any, seen: set[str]) -> Any:
    """The value, in which long parts that were seen before are `"as before"`."""
    if isinstance(value, dict | list) and len(text := json.dumps(value)) > LONG_PART:
        if text in seen:
            return "as before"
        seen.add(text)
    if isinstance(value, dict):
        return {key: brief(part, seen) for key, part in value.items()}
    return [brief(part, seen) for part in value] if isinstance(value, list) else value


def record(client: Client, name: str, situation: Situation) -> list[Json]:
    """Run the launcher in a situation, with a proxy between it and the API, and return the answers."""
    project = Project.make(client, f"record-{name}")
    if situation != Situation():
        project.lengthen()
    folder = f"{project.folder}-answers"
    recorder = client.start(CHECKOUT, "python", f"{CHECKOUT}/tests/cluster/recorder.py", str(PORT), folder)
    recorder.wait_for_line("ready")
    kubeconfig = client.kubeconfig(
        f"{project.folder}-kubeconfig", account=situation.account, server=f"http://127.0.0.1:{PORT}"
    )
    variables = {"KUBECONFIG": kubeconfig, "KUBERNETES_SERVICE_HOST": "", "PECO_RETRIES": "0"} | situation.variables
    process = project.launch(**client.owner(), **variables)
    situation.act(project, process)
    status, lines = process.end(LONG_SECONDS)
    print(f"{name}: {status}", *lines[-1:], sep="\n  ", flush=True)
    recorder.kill(signal.SIGTERM)
    recorder.end()
    text = client.sh(f"cd {folder}; for file in *.json; do cat $file; echo; done")
    return distinct([json.loads(line) for line in text.splitlines() if line])


def main(folder: Path, *names: str) -> None:
    """Record the situations of these names, or all."""
    folder.mkdir(parents=True, exist_ok=True)
    cluster = Cluster(Settings.read())
    try:
        cluster.set_up()
        client = Client(cluster)
        client.set_up()
        prepare(client)
        for name in names or SITUATIONS:
            answers = record(client, name, SITUATIONS[name])
            (folder / f"{name}.json").write_text(json.dumps(answers, indent=1) + "\n")
    finally:
        cluster.remove()


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
