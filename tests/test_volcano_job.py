"""The Volcano job of a stage: its name, its pods, their environment, and the settings in which clusters differ."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from cluster_launcher import NAME, ONE, Json, Launcher, complete, owner
from kubernetes_api import KubernetesApi

from peco.core.errors import PecoError
from peco.core.resources import Resources
from peco.core.stage_name import StageName
from pipelines.jobs import job
from pipelines.workflow.graph import Stage, load_graph

ROOT = Path(__file__).parent.parent
TWO_NODES = Resources(
    nodes=2,
    processes=4,
    workers=3,
    gpus=4,
    cpu=32,
    memory="64Gi",
    shared_memory="16Gi",
    node_selector="gpu=a100",
    tolerations="nvidia.com/gpu:NoSchedule",
    queue="training",
    priority="high",
    time_limit="2h",
)


def job_of(api: KubernetesApi, start: Launcher, resources: Resources) -> Json:
    """The job that the launcher creates."""
    assert start(resources, lambda: complete(api)) == (0, [])
    return api.created[NAME]


def pods_of(api: KubernetesApi, start: Launcher, resources: Resources) -> Json:
    """Specification of the pods of a job of one node."""
    [task] = job_of(api, start, resources)["spec"]["tasks"]
    spec: Json = task["template"]["spec"]
    return spec


# The job


def test_the_job_requests_the_stages_resources(
    api: KubernetesApi, start: Launcher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner(monkeypatch, "step-1")
    monkeypatch.setenv("PECO_SERVICE_ACCOUNT", "peco-job")
    monkeypatch.setenv("PECO_GRACE_SECONDS", "5")
    created = job_of(api, start, TWO_NODES)
    assert created["metadata"]["ownerReferences"] == [
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "name": "step-1",
            "uid": "uid-of-step-1",
            "controller": False,
            "blockOwnerDeletion": False,
        }
    ]
    spec = created["spec"]
    assert spec["ttlSecondsAfterFinished"] == 3600  # should the launcher be killed
    assert (spec["queue"], spec["priorityClassName"], spec["minAvailable"], spec["maxRetry"]) == (
        "training",
        "high",
        2,
        1,
    )
    assert spec["policies"] == [{"event": e, "action": "TerminateJob"} for e in ("PodFailed", "PodEvicted")]
    assert "--disable-network-policy" in spec["plugins"]["svc"]
    assert [task["name"] for task in spec["tasks"]] == ["tokenizer-0", "tokenizer-1"]
    for task in spec["tasks"]:
        pod = task["template"]["spec"]
        [container] = pod["containers"]
        amounts = {"cpu": "32", "memory": "64Gi", "nvidia.com/gpu": "4"}
        assert container["resources"] == {"requests": amounts, "limits": amounts}
        assert container["image"] == "registry.example/peco:1"
        assert container["workingDir"] == str(tmp_path)
        assert f"--rdzv_id {NAME} " in container["command"][-1].replace("'", "")
        assert {"name": "metrics", "containerPort": 8001} in container["ports"]
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        mounts = {mount["mountPath"]: volumes[mount["name"]] for mount in container["volumeMounts"]}
        assert mounts["/dev/shm"]["emptyDir"] == {"medium": "Memory", "sizeLimit": "16Gi"}
        assert mounts[str(tmp_path)]["persistentVolumeClaim"] == {"claimName": "peco"}
        assert pod["nodeSelector"] == {"gpu": "a100"}
        assert pod["tolerations"] == [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
        assert (pod["restartPolicy"], pod["activeDeadlineSeconds"]) == ("Never", 7200)
        assert pod["terminationGracePeriodSeconds"] > 5  # torchrun ends after its ranks
        assert (pod["serviceAccountName"], pod["automountServiceAccountToken"]) == ("peco-job", False)
        assert pod[
            "shareProcessNamespace"
        ]  # the stage is not process 1, which would ignore SIGTERM until it has a handler


def test_the_stage_receives_its_environment_and_no_secret(
    api: KubernetesApi, start: Launcher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PECO_CHECKPOINT_SECONDS", "30")
    monkeypatch.setenv("PECO_GRACE_SECONDS", "5")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hush")
    monkeypatch.setenv("PECO_JOB_SECRET", "bucket")
    pod = pods_of(api, start, Resources(processes=4, workers=3, cpu=32))
    [container] = pod["containers"]
    env = {entry["name"]: entry["value"] for entry in container["env"]}
    expected = {
        "PYTHONPATH": str(tmp_path),
        "PECO_WORK": str(tmp_path / ".work"),
        "PECO_WORKERS": "3",
        "PECO_THREADS": "8",  # 32 cores, 4 processes
        "PECO_METRICS_PORT": "8001",
        "PECO_CHECKPOINT_SECONDS": "30",
        "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "5",
    }
    assert expected.items() <= env.items()
    assert "hush" not in str(pod)
    assert container["envFrom"] == [{"secretRef": {"name": "bucket"}}]


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("PECO_NAMESPACE", "", "PECO_NAMESPACE: not set"),
        ("PECO_IMAGE", "", "PECO_IMAGE: not set"),
        ("PECO_VOLUME_PATH", "/elsewhere", "not on the shared volume"),
        ("PECO_WORK", "/tmp/elsewhere", "not on the shared volume"),
        ("PECO_POD_NAME", "step-1", "set both, or neither"),
        ("PECO_JOB_KEY", "A key", "PECO_JOB_KEY"),
        ("PECO_GRACE_SECONDS", "long", "PECO_GRACE_SECONDS"),
    ],
)
def test_a_wrong_environment_is_one_line_and_nothing_is_created(
    api: KubernetesApi, start: Launcher, monkeypatch: pytest.MonkeyPatch, name: str, value: str, message: str
) -> None:
    monkeypatch.setenv(name, value)
    status, [line] = start()
    assert (status, message in line) == (2, True)
    assert api.verbs() == []


# Names


@pytest.mark.parametrize("name", load_graph(ROOT).stages)
def test_every_stage_has_names_that_kubernetes_takes(name: str) -> None:
    found = load_graph(ROOT)[name]
    name_of_job = job.job_name(found, Resources(nodes=64), {"PECO_JOB_KEY": "0123456789abcdef"})
    pod = f"{name_of_job}-{re.sub('[^a-z0-9]', '', found.name.role)}-63-0"
    assert re.fullmatch(r"peco-[a-z]([-a-z0-9]*[a-z0-9])?", name_of_job)
    assert len(pod) <= 63
    app = job.build_app(found, Resources(), {})
    assert all("-" not in role.name for role in app.roles)


def test_a_name_follows_from_commit_changes_stage_and_parameters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def name(stage: str = "tokenizer") -> str:
        return job.job_name(Stage(StageName(stage), ("x",), (), ("seed",), (), {}, "train"), ONE, {})

    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.yaml").write_text("seed: 0\nother: 1\n")
    with pytest.raises(PecoError, match="PECO_JOB_KEY"):
        name()
    for command in ("init -q", "add .", "-c user.name=a -c user.email=a@b commit -qm x"):
        subprocess.run(["git", *command.split()], check=True)
    first = name()
    assert name() == first
    assert name("tokens") != first
    (tmp_path / "params.yaml").write_text("seed: 1\nother: 1\n")
    assert name() != first


# Settings in which clusters differ


@pytest.mark.parametrize("policy", ["", "Always"])
def test_the_pull_policy_reaches_the_jobs_pods(
    api: KubernetesApi, start: Launcher, monkeypatch: pytest.MonkeyPatch, policy: str
) -> None:
    monkeypatch.setenv("PECO_PULL_POLICY", policy)
    [container] = pods_of(api, start, Resources())["containers"]
    assert container["imagePullPolicy"] == (policy or "IfNotPresent")


@pytest.mark.parametrize(
    ("resources", "amounts"),
    [
        (Resources(gpus=2), {"nvidia.com/gpu": "2"}),
        (Resources(gpus=2, gpu_resource="amd.com/gpu"), {"amd.com/gpu": "2"}),
        (Resources(gpus=1, gpu_resource="nvidia.com/mig-1g.10gb"), {"nvidia.com/mig-1g.10gb": "1"}),
        (Resources(gpu_resource="amd.com/gpu"), {}),
        (Resources(devices="rdma/hca=1,vendor.example/nic=2"), {"rdma/hca": "1", "vendor.example/nic": "2"}),
    ],
)
def test_devices_have_the_names_of_the_cluster(
    api: KubernetesApi, start: Launcher, resources: Resources, amounts: dict[str, str]
) -> None:
    [container] = pods_of(api, start, resources)["containers"]
    assert container["resources"]["limits"] == {"cpu": "1", "memory": "4Gi"} | amounts
    assert container["resources"]["requests"] == container["resources"]["limits"]


@pytest.mark.parametrize("capabilities", ["", "NET_BIND_SERVICE"])
def test_capabilities_are_added_to_none(api: KubernetesApi, start: Launcher, capabilities: str) -> None:
    [container] = pods_of(api, start, Resources(capabilities=capabilities))["containers"]
    added = {"add": [capabilities]} if capabilities else {}
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]} | added


def test_private_certificates_reach_the_jobs_pods(
    api: KubernetesApi, start: Launcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PECO_CA_CONFIGMAP", "company-ca")
    pod = pods_of(api, start, Resources())
    [container] = pod["containers"]
    [volume] = [volume for volume in pod["volumes"] if "configMap" in volume]
    assert volume["configMap"] == {"name": "company-ca"}
    [mount] = [mount for mount in container["volumeMounts"] if mount["name"] == volume["name"]]
    assert (mount["mountPath"], mount["readOnly"]) == ("/etc/peco/ca", True)
    variables = {entry["name"]: entry["value"] for entry in container["env"]}
    trusted = {"SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "AWS_CA_BUNDLE", "GIT_SSL_CAINFO"}
    assert {variables[name] for name in trusted} == {"/etc/peco/ca/ca.crt"}
