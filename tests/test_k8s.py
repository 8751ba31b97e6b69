"""The manifests of k8s/ and their check: strict validation offline, least privilege, alerts on existing metrics."""

from __future__ import annotations

import functools
import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from k8s import check as k8s_check
from k8s.pod_security import restricted_violations
from peco.core.errors import PecoError
from peco.training import prometheus

ROOT = Path(__file__).parent.parent
K8S = ROOT / "k8s"
PLACES = ["overlays/trial", "overlays/production", "monitoring"]
SCHEMAS = os.environ.get("PECO_TEST_SCHEMAS", "")
needs_schemas = pytest.mark.skipif(not SCHEMAS, reason="PECO_TEST_SCHEMAS names no folder of CRDs")

Json = dict[str, Any]


@functools.cache
def objects(place: str) -> list[Json]:
    return [manifest.object for manifest in k8s_check.load(str(K8S / place))]


def of_kind(kind: str, place: str = "overlays/production") -> list[Json]:
    return [item for item in objects(place) if item["kind"] == kind]


def named(kind: str, name: str, place: str = "overlays/production") -> Json:
    return next(item for item in of_kind(kind, place) if item["metadata"]["name"] == name)


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """A copy of the manifests, to be changed."""
    return Path(shutil.copytree(K8S, tmp_path / "k8s"))


def change(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1))


# The check


def test_everything_renders_and_validates(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert k8s_check.main([]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert [line.split(":")[0].removeprefix("k8s/") for line in out.splitlines()] == [
        "overlays/production",
        "overlays/trial",
        "monitoring",
        "cluster-check.yaml",
    ]


def test_kinds_without_a_definition_are_reported(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PECO_TEST_SCHEMAS", raising=False)
    assert k8s_check.main([str(K8S / "monitoring")]) == 0
    assert "not checked, PECO_TEST_SCHEMAS has no definition: PodMonitor, PrometheusRule" in capsys.readouterr().out


INVALID = {
    "unknown key": (
        "overlays/trial",
        "base/accounts.yaml",
        "automountServiceAccountToken",
        "automountToken",
        "ServiceAccount/peco-job: automountToken: unknown key",
    ),
    "unknown key in metadata": (
        "overlays/trial",
        "base/accounts.yaml",
        "name: peco-step",
        "name: peco-step\n  label: {a: b}",
        "ServiceAccount/peco-step: metadata.label: unknown key",
    ),
    "wrong type": (
        "overlays/trial",
        "base/network.yaml",
        "policyTypes: [Ingress]",
        "policyTypes: Ingress",
        "NetworkPolicy/peco-ranks: spec.policyTypes: ",
    ),
    "no such kind": (
        "overlays/trial",
        "base/network.yaml",
        "networking.k8s.io/v1\n",
        "networking.k8s.io/v2\n",
        "NetworkPolicy/peco-ranks: kind: ",
    ),
    "duplicate key": (
        "overlays/trial",
        "base/accounts.yaml",
        "  name: peco-step\n",
        "  name: peco-step\n  name: peco\n",
        'line 6: found duplicate key "name"',
    ),
    "no such file": (
        "overlays/trial",
        "base/kustomization.yaml",
        "network.yaml",
        "networks.yaml",
        "can't be read",
    ),
    "duplicate object": (
        "overlays/trial",
        "base/accounts.yaml",
        "name: peco-job\n",
        "name: peco-step\n",
        "ServiceAccount/peco-step: defined twice",
    ),
    "subject without its namespace": (
        "overlays/trial",
        "overlays/trial/namespace/kubeflow.yaml",
        "    namespace: kubeflow\n",
        "",
        "RoleBinding/peco-jobs-kubeflow: subjects.0.namespace: missing",
    ),
    "queue in a namespace": (
        "overlays/trial",
        "overlays/trial/namespace/kustomization.yaml",
        "- volume.yaml",
        "- ../queue.yaml",
        "Queue/peco: metadata.namespace: this kind belongs to no namespace",
    ),
    "pod that runs as root": (
        "cluster-check.yaml",
        "cluster-check.yaml",
        "runAsUser: 10001",
        "runAsUser: 0",
        "Pod/peco-check-: spec.securityContext.runAsUser: must not be 0 (root)",
    ),
    "kustomization field it does not know": (
        "overlays/trial",
        "overlays/trial/namespace/kustomization.yaml",
        "resources:",
        "namePrefix: my-\nresources:",
        "namePrefix: unknown key; this check can't render it",
    ),
}
INVALID_CUSTOM = {
    "unknown key": ("queue.yaml", "reclaimable", "reclaim", "Queue/peco: spec.reclaim: unknown key"),
    "wrong type": ("queue.yaml", "weight: 1", "weight: much", "Queue/peco: spec.weight: "),
    "unknown key, deep": (
        "../../monitoring/rules.yaml",
        "for: 2m",
        "fore: 2m",
        "PrometheusRule/peco: spec.groups.0.rules.0.fore: unknown key",
    ),
    "monitor": (
        "../../monitoring/podmonitor.yaml",
        "interval: 15s",
        "interval: fast",
        "PodMonitor/peco: spec.podMetricsEndpoints.0.interval: ",
    ),
}


@pytest.mark.parametrize("case", INVALID)
def test_an_invalid_manifest_is_refused_in_one_line(
    case: str, copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place, file, old, new, expected = INVALID[case]
    change(copied / file, old, new)
    assert k8s_check.main([str(copied / place)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert expected in line
    assert str(copied) in line


@needs_schemas
@pytest.mark.parametrize("case", INVALID_CUSTOM)
def test_an_invalid_custom_resource_is_refused(case: str, copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, old, new, expected = INVALID_CUSTOM[case]
    change(copied / "overlays/production" / file, old, new)
    assert k8s_check.main([str(copied / "overlays/production")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert expected in line


def test_an_empty_folder_of_definitions_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(PecoError, match="expected a folder of CustomResourceDefinitions"):
        k8s_check.load_definitions(str(tmp_path))


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")
@pytest.mark.parametrize("place", PLACES)
def test_renders_as_kubectl_does(place: str) -> None:
    done = subprocess.run(["kubectl", "kustomize", str(K8S / place)], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"this kubectl can't render it: {done.stderr.splitlines()[-1]}")

    def ordered(items: list[Json]) -> list[Json]:
        return sorted(items, key=lambda item: json.dumps(item, sort_keys=True))

    assert ordered(objects(place)) == ordered(list(yaml.safe_load_all(done.stdout)))


# Pod security

GOOD: Json = {
    "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
    "containers": [
        {
            "name": "main",
            "image": "peco",
            "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
        }
    ],
    "volumes": [{"name": "shared", "persistentVolumeClaim": {"claimName": "peco"}}],
}


def test_a_pod_that_is_restricted_passes() -> None:
    assert restricted_violations(GOOD) == []


@pytest.mark.parametrize(
    ("pod", "container", "expected"),
    [
        ({"hostNetwork": True}, {}, ["hostNetwork: must be false"]),
        (
            {"volumes": [{"name": "disk", "hostPath": {"path": "/"}}]},
            {},
            ["volumes.disk.hostPath: no volume of this type is allowed"],
        ),
        ({}, {"securityContext": None}, ["allowPrivilegeEscalation", "capabilities.drop"]),
        ({"securityContext": None}, {}, ["runAsNonRoot", "seccompProfile.type"]),
        ({"securityContext": {**GOOD["securityContext"], "runAsNonRoot": False}}, {}, ["runAsNonRoot"]),
        ({"securityContext": {**GOOD["securityContext"], "seccompProfile": {"type": "Unconfined"}}}, {}, ["seccomp"]),
        ({"initContainers": [{"name": "first", "image": "x"}]}, {}, ["initContainers.first"] * 2),
        ({}, {"ports": [{"containerPort": 1, "hostPort": 1}]}, ["containers.main.ports.hostPort"]),
    ],
)
def test_violations_of_the_restricted_standard_are_named(pod: Json, container: Json, expected: list[str]) -> None:
    spec = {**GOOD, "containers": [{**GOOD["containers"][0], **container}], **pod}
    found = restricted_violations(spec)
    assert len(found) == len(expected)
    assert all(part in line for part, line in zip(expected, found, strict=True))


@pytest.mark.parametrize(
    ("context", "expected"),
    [
        ({"privileged": True}, "privileged: must be false"),
        ({"runAsUser": 0}, "runAsUser: must not be 0 (root)"),
        ({"runAsNonRoot": False}, "runAsNonRoot: must be true"),
        ({"procMount": "Unmasked"}, "procMount: must be Default"),
        ({"capabilities": {"drop": ["ALL"], "add": ["SYS_ADMIN"]}}, "capabilities.add: SYS_ADMIN is not allowed"),
        ({"seLinuxOptions": {"user": "root"}}, "seLinuxOptions"),
    ],
)
def test_a_containers_own_settings_are_checked(context: Json, expected: str) -> None:
    main = GOOD["containers"][0]
    spec = {**GOOD, "containers": [{**main, "securityContext": {**main["securityContext"], **context}}]}
    (line,) = restricted_violations(spec)
    assert line.startswith(f"containers.main.securityContext.{expected}")


def test_the_pods_of_a_volcano_job_are_checked() -> None:
    job = {
        "apiVersion": "batch.volcano.sh/v1alpha1",
        "kind": "Job",
        "metadata": {"name": "a"},
        "spec": {"tasks": [{"name": "b-0", "template": {"spec": {"containers": [{"name": "c", "image": "d"}]}}}]},
    }
    assert all(
        line.startswith("spec.tasks.0.template.spec.containers.c.")
        for line in k8s_check.violations(job, definitions={})
    )


# What the manifests grant

GRANTED = {
    "peco-jobs": {
        "batch.volcano.sh/jobs": {"create", "get", "patch", "delete"},
        "batch.volcano.sh/jobs/status": {"patch"},
        "/pods": {"get", "list"},
        "/pods/log": {"get"},
        "/events": {"list"},
    },
    # In the whole cluster.
    "peco-reader": {"scheduling.volcano.sh/queues": {"get"}, "/nodes": {"list"}},
    "peco-kubeflow": {
        "argoproj.io/workflowtaskresults": {"create", "patch"},
        "argoproj.io/workflows": {"get"},
        "/configmaps": {"get"},
        "/secrets": {"get"},
    },
}


@pytest.mark.parametrize("place", ["overlays/trial", "overlays/production"])
def test_rights_are_the_least_that_work(place: str) -> None:
    granted: dict[str, dict[str, set[str]]] = {}
    for role in (*of_kind("Role", place), *of_kind("ClusterRole", place)):
        for rule in role["rules"]:
            for group in rule["apiGroups"]:
                for resource in rule["resources"]:
                    granted.setdefault(role["metadata"]["name"], {})[f"{group}/{resource}"] = set(rule["verbs"])
                    if resource in ("secrets", "configmaps"):
                        assert rule["resourceNames"]
    assert granted == GRANTED


@pytest.mark.parametrize(("place", "namespace"), [("overlays/trial", "kubeflow"), ("overlays/production", "peco")])
def test_only_the_steps_account_reads_beyond_its_namespace(place: str, namespace: str) -> None:
    [binding] = of_kind("ClusterRoleBinding", place)
    assert (binding["roleRef"]["kind"], binding["roleRef"]["name"]) == ("ClusterRole", "peco-reader")
    assert binding["subjects"] == [{"kind": "ServiceAccount", "name": "peco-step", "namespace": namespace}]


@pytest.mark.parametrize("place", ["overlays/trial", "overlays/production"])
def test_training_pods_have_no_rights(place: str) -> None:
    assert named("ServiceAccount", "peco-job", place)["automountServiceAccountToken"] is False
    bindings = (*of_kind("RoleBinding", place), *of_kind("ClusterRoleBinding", place))
    assert "peco-job" not in {subject["name"] for item in bindings for subject in item["subjects"]}


@pytest.mark.parametrize(("place", "account"), [("trial", "pipeline-runner"), ("production", "default-editor")])
def test_kubeflows_own_account_may_start_jobs_and_no_more(place: str, account: str) -> None:
    bindings = of_kind("RoleBinding", f"overlays/{place}")
    assert {
        item["roleRef"]["name"] for item in bindings if account in {subject["name"] for subject in item["subjects"]}
    } == {"peco-jobs"}


def test_no_secret_is_in_the_manifests() -> None:
    assert not [item for place in PLACES for item in objects(place) if item["kind"] == "Secret"]


def test_the_production_namespace_enforces_restricted_pods() -> None:
    labels = named("Namespace", "peco")["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"


def test_one_line_of_the_overlay_moves_everything_to_another_namespace(copied: Path) -> None:
    folder = copied / "overlays/production"
    change(folder / "namespace/kustomization.yaml", "namespace: peco\n", "namespace: vision\n")
    change(folder / "namespace/kubeflow.yaml", "namespace: peco\n", "namespace: vision\n")
    text = json.dumps([m.object for m in k8s_check.render(folder)])
    assert '"namespace": "vision"' in text
    assert '"namespace": "peco"' not in text


def test_prometheus_may_reach_the_metrics_port_of_jobs() -> None:
    (rule,) = named("NetworkPolicy", "peco-metrics")["spec"]["ingress"]
    assert rule["ports"] == [{"protocol": "TCP", "port": 8001}]
    (endpoint,) = named("PodMonitor", "peco")["spec"]["podMetricsEndpoints"]
    assert endpoint["port"] == "metrics"


# Metrics

LOOP = {"loss", "lr", "grad_norm"}
STAGES = {
    "usage": "peco/stages/tokenizer.py",
    "perplexity": "peco/stages/tokenizer.py",
    "accuracy": "peco/stages/pretrain.py",
    "commitment": "peco/tokenizer/loss.py",
    "pixel": "peco/tokenizer/loss.py",
    "perceptual": "peco/tokenizer/loss.py",
    "generator": "peco/stages/tokenizer.py",
    "discriminator": "peco/stages/tokenizer.py",
    "distillation": "peco/stages/tokenizer.py",
}


def exported() -> set[str]:
    """Names of the exported metrics: those of the exporter, of the loop, and the scalars of stages."""
    for name, file in STAGES.items():
        assert f'"{name}"' in (ROOT / file).read_text()
    short = [prometheus._PROMETHEUS_NAMES.get(name, name) for name in (*LOOP, *STAGES)]
    return set(prometheus._HELP) | {f"peco_{name}" for name in short}


def queries() -> dict[str, str]:
    """Every expression of the alerts and of the dashboard, by the name of its alert or panel."""
    (group,) = named("PrometheusRule", "peco")["spec"]["groups"]
    dashboard = json.loads(named("ConfigMap", "peco-dashboard")["data"]["peco.json"])
    return {rule["alert"]: rule["expr"] for rule in group["rules"]} | {
        f"{panel['title']} {target['refId']}": target["expr"]
        for panel in dashboard["panels"]
        for target in panel["targets"]
    }


def test_there_is_an_alert_for_each_thing_that_goes_wrong() -> None:
    assert {name for name in queries() if name.startswith("Peco")} == {
        "PecoStalled",
        "PecoNotFinite",
        "PecoCodebookCollapse",
        "PecoDataBound",
        "PecoCheckpointTooOld",
    }


@pytest.mark.parametrize("query", queries())
def test_queries_are_about_metrics_that_are_exported(query: str) -> None:
    names = set(re.findall(r"\bpeco_\w+", queries()[query]))
    assert names
    assert names <= exported()


def test_the_page_on_metrics_lists_them_all_and_each_alert() -> None:
    page = (ROOT / "docs" / "metrics.md").read_text()
    assert set(re.findall(r"^\| `(peco_\w+)`", page, flags=re.MULTILINE)) == exported()
    assert {name for name in queries() if name.startswith("Peco")} <= set(re.findall(r"`(Peco\w+)`", page))


# The image


def test_the_image_holds_no_address_of_a_registry_and_does_not_run_as_root() -> None:
    lines = (K8S / "Dockerfile").read_text().splitlines()
    assert [line for line in lines if line.startswith("USER")] == ["USER 10001:10001"]
    assert not [line for line in lines if "://" in line]


def test_the_image_gets_every_file_it_copies() -> None:
    allowed = {line[1:] for line in (K8S / "Dockerfile.dockerignore").read_text().splitlines() if line[:1] == "!"}
    copied = {
        name
        for line in (K8S / "Dockerfile").read_text().splitlines()
        if line.startswith("COPY")
        for name in line.split()[1:-1]
    }
    assert copied == allowed
    assert all((ROOT / name).exists() for name in copied)
