"""The size of Argo's status of a run of a compiled pipeline, as Kubeflow Pipelines 2.17.0 and Argo Workflows 4.0.5 write it.

The status is a list of nodes. Each repeats what Kubeflow's drivers receive and make: a task's driver its component, task, container
and settings of Kubernetes (twice), and the patch of the step's pod (six times, and once more for each further attempt). All of this
is computed from the pipeline; the rest of a node, such as names and times, is a number of bytes for each kind of node.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

# Bytes of a node without the texts below, less the length of the stage's name and of the list of its children.
RETRY, DAG, EXECUTOR, POD, DRIVER, DRIVER_POD = 914, 980, 1003, 1045, 1240, 1316
ROOT = 337 + 421 + 443 + 517 + 1237 + 1310
CHILD = 24
WITHOUT_LABEL = 140  # of the four nodes of a step, for a pod without a label of its own
WITHOUT_RETRIES = 876  # of a step that names no number of retries
RUN = "00000000-0000-0000-0000-000000000000"
STORE = "minio://mlpipeline/v2/artifacts"
EXECUTOR_LOGS = {"artifactType": {"schemaTitle": "system.Artifact"}}


def text(value: object) -> str:
    """JSON as Kubeflow writes it."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


def size(value: object) -> int:
    """The bytes of a value in the status: a text is JSON in JSON, and each of its quotes has a backslash."""
    return len(json.dumps(value if isinstance(value, str) else text(value), ensure_ascii=False).encode())


def status_bytes(
    ir: Mapping[str, Any],
    platform: Mapping[str, Any],
    parameters: Mapping[str, Any],
    outputs: Mapping[tuple[str, str], Any] | None = None,
    attempts: int = 1,
) -> int:
    """Bytes of the nodes of a run that succeeded.

    Args:
        ir: the compiled pipeline.
        platform: its settings of Kubernetes.
        parameters: those of the run.
        outputs: values of the parameters that tasks output, by the names of task and parameter.
        attempts: how often each step was started, its own pod being lost before the last one.
    """
    tasks = ir["root"]["dag"]["tasks"]
    total = ROOT + 2 * size(text(ir["root"])) + 2 * size(text({"parameterValues": dict(parameters)}))
    for name, task in tasks.items():
        followers = sum(name in other.get("dependentTasks", ()) for other in tasks.values())
        label = ir["components"][task["componentRef"]["name"]]["executorLabel"]
        settings = _executor(platform, label)
        patch = size(text(pod_patch(ir, platform, name, parameters, outputs or {})))
        fixed = RETRY + DAG + EXECUTOR + attempts * POD + DRIVER + DRIVER_POD + 10 * len(name) + CHILD * followers
        fixed -= 0 if "podMetadata" in settings else 4 * WITHOUT_LABEL
        fixed -= 0 if "retryPolicy" in task else WITHOUT_RETRIES
        component = ir["components"][task["componentRef"]["name"]]
        container = ir["deploymentSpec"]["executors"][label]["container"]
        total += fixed + 2 * sum(size(text(part)) for part in (component, task, container, settings))
        total += (5 + attempts) * patch
    return total


def pod_patch(
    ir: Mapping[str, Any],
    platform: Mapping[str, Any],
    name: str,
    parameters: Mapping[str, Any],
    outputs: Mapping[tuple[str, str], Any],
) -> dict[str, Any]:
    """The patch that makes the pod of a step, as Kubeflow's driver writes it."""
    task = ir["root"]["dag"]["tasks"][name]
    component = ir["components"][task["componentRef"]["name"]]
    container = ir["deploymentSpec"]["executors"][component["executorLabel"]]["container"]
    settings = _executor(platform, component["executorLabel"])
    folder = f"peco/{RUN}/{name}/{RUN}"
    artifacts = {**component.get("outputDefinitions", {}).get("artifacts", {}), "executor-logs": EXECUTOR_LOGS}
    made = {
        "artifacts": {
            key: {"artifacts": [{"name": key, "type": value["artifactType"], "uri": f"{STORE}/{folder}/{key}"}]}
            for key, value in sorted(artifacts.items())
        },
        "outputFile": f"/minio/mlpipeline/v2/artifacts/{folder}/output_metadata.json",
    }
    if own := component.get("outputDefinitions", {}).get("parameters"):
        made = {"parameters": {key: {"outputFile": f"/tmp/kfp/outputs/{key}"} for key in own}, **made}
    values = {
        key: _value(value, parameters, outputs) for key, value in task.get("inputs", {}).get("parameters", {}).items()
    }
    definitions = {**component.get("outputDefinitions", {}), "artifacts": artifacts}
    command = [
        "/kfp-launcher/launch", "--pipeline_name", "peco", "--run_id", RUN, "--execution_id", "10",
        "--executor_input", text({"inputs": {"parameterValues": values}, "outputs": made}),
        "--component_spec", text({**component, "outputDefinitions": definitions}),
        "--pod_name", "$(KFP_POD_NAME)", "--pod_uid", "$(KFP_POD_UID)",
        "--ml_pipeline_server_address", "ml-pipeline.peco.svc.cluster.local", "--ml_pipeline_server_port", "8887",
        "--mlmd_server_address", "metadata-grpc-service.peco.svc.cluster.local", "--mlmd_server_port", "8080",
        "--publish_logs", "true", "--publish_logs", "true", "--", *container["command"], *container.get("args", ()),
    ]  # fmt: skip
    claims, secrets = settings["pvcMount"], settings.get("secretAsVolume", ())
    resources = container["resources"]
    return {
        "volumes": [
            *({"name": each["constant"], "persistentVolumeClaim": {"claimName": each["constant"]}} for each in claims),
            *({"name": each["secretName"], "secret": {"secretName": each["secretName"], "optional": True}} for each in secrets),
        ],
        "containers": [
            {
                "name": "main",
                "image": container["image"],
                "command": command,
                "env": [*container.get("env", ()), *_references(settings)],
                "resources": {
                    "limits": {"cpu": resources["resourceCpuLimit"], "memory": resources["resourceMemoryLimit"]},
                    "requests": {"cpu": resources["resourceCpuRequest"], "memory": resources["resourceMemoryRequest"]},
                },
                "volumeMounts": [
                    *({"name": each["constant"], "mountPath": each["mountPath"]} for each in claims),
                    *({"name": each["secretName"], "mountPath": each["mountPath"]} for each in secrets),
                ],
                "imagePullPolicy": settings["imagePullPolicy"],
                "securityContext": {
                    "capabilities": {"drop": ["ALL"]}, "runAsUser": 10001, "runAsGroup": 10001, "runAsNonRoot": True,
                },
            }
        ],
        "activeDeadlineSeconds": int(settings["activeDeadlineSeconds"]),
    }  # fmt: skip


def _references(settings: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Environment variables whose values are keys of secrets, or fields of the pod."""
    for secret in settings.get("secretAsEnv", ()):
        for key in secret["keyToEnv"]:
            reference = {"name": secret["secretName"], "key": key["secretKey"], "optional": True}
            yield {"name": key["envVar"], "valueFrom": {"secretKeyRef": reference}}
    for each in settings.get("fieldPathAsEnv", ()):
        yield {"name": each["name"], "valueFrom": {"fieldRef": {"fieldPath": each["fieldPath"]}}}


def _executor(platform: Mapping[str, Any], label: str) -> Mapping[str, Any]:
    settings: Mapping[str, Any] = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"][label]
    return settings


def _value(source: Mapping[str, Any], parameters: Mapping[str, Any], outputs: Mapping[tuple[str, str], Any]) -> Any:
    """The value of a task's input. Kubeflow leaves placeholders of other inputs as they are."""
    if "componentInputParameter" in source:
        return parameters[source["componentInputParameter"]]
    if "taskOutputParameter" in source:
        output = source["taskOutputParameter"]
        return outputs[output["producerTask"], output["outputParameterKey"]]
    value = source["runtimeValue"]["constant"]
    return RUN if value == "{{$.pipeline_job_uuid}}" else value
