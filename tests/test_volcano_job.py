"""The pod of a Volcano job: the settings in which clusters differ."""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator
from pathlib import Path

import cluster_launcher
import pytest
from cluster_launcher import NAME, Json, Launch, complete
from kubernetes_api import KubernetesApi

from peco.core.resources import Resources


@pytest.fixture
def api(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[KubernetesApi]:
    with cluster_launcher.served(tmp_path, monkeypatch) as server:
        yield server


@pytest.fixture
def start(api: KubernetesApi, capsys: pytest.CaptureFixture[str]) -> Launch:
    return functools.partial(cluster_launcher.launch, api, capsys)


def pods_of(api: KubernetesApi, start: Launch, resources: Resources) -> Json:
    """Specification of the pods of a job."""
    assert start(resources, lambda: complete(api))[0] == 0
    spec: Json = copy.deepcopy(api.created[NAME]["spec"]["tasks"][0]["template"]["spec"])
    return spec


@pytest.mark.parametrize("policy", ["", "Always"])
def test_the_pull_policy_reaches_the_jobs_pods(
    api: KubernetesApi, start: Launch, monkeypatch: pytest.MonkeyPatch, policy: str
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
    api: KubernetesApi, start: Launch, resources: Resources, amounts: dict[str, str]
) -> None:
    [container] = pods_of(api, start, resources)["containers"]
    assert container["resources"]["limits"] == {"cpu": "1", "memory": "4Gi"} | amounts
    assert container["resources"]["requests"] == container["resources"]["limits"]


@pytest.mark.parametrize("capabilities", ["", "NET_BIND_SERVICE"])
def test_capabilities_are_added_to_none(api: KubernetesApi, start: Launch, capabilities: str) -> None:
    [container] = pods_of(api, start, Resources(capabilities=capabilities))["containers"]
    added = {"add": [capabilities]} if capabilities else {}
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]} | added


def test_private_certificates_reach_the_jobs_pods(
    api: KubernetesApi, start: Launch, monkeypatch: pytest.MonkeyPatch
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
