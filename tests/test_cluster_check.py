"""`make cluster-check`: its report, the pod that it makes, and the checks in the pods, which tests/cluster makes, too."""

from __future__ import annotations

import json
import subprocess
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
from moto.server import ThreadedMotoServer

from k8s import cluster_check
from k8s.check import violations
from k8s.check_pod import CheckPod
from k8s.check_report import Report
from peco.core.errors import PecoError
from pipelines import pod_check
from pipelines.kfp.target import Target

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def _settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("PECO_IMAGE", "example/peco:1")
    monkeypatch.setenv("KUBECONFIG", "/nonexistent")


# The report


def refuse() -> str:
    raise PecoError("it is too small; enlarge it")


def test_the_report_lists_what_is_right_and_what_is_not(capsys: pytest.CaptureFixture[str]) -> None:
    report = Report()
    report.section("cluster")
    assert report.run("namespace peco", lambda: "pod security restricted")
    assert not report.run("queue peco", refuse)
    report.skip("image", "correct the above first")
    assert report.end() == 2
    assert capsys.readouterr().out == (
        "\ncluster\n-------\n√ namespace peco: pod security restricted\n× queue peco\n    it is too small; enlarge it\n"  # noqa: RUF001
        "‼ image: not checked; correct the above first\n\n1 check failed ×\n"  # noqa: RUF001
    )
    assert Report().end() == 0
    assert capsys.readouterr().out == "\nAll is right √\n"


def test_without_a_cluster_nothing_else_is_checked(capsys: pytest.CaptureFixture[str]) -> None:
    assert cluster_check.main(["peco"]) == 2
    out = capsys.readouterr().out
    assert "× Kubernetes answers\n    no cluster: " in out and out.endswith("\n1 check failed ×\n")  # noqa: RUF001


def test_a_wrong_variable_is_one_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PECO_GPUS", "many")
    assert cluster_check.main(["peco"]) == 2
    assert capsys.readouterr().err.startswith("error: PECO_GPUS (environment): 'many'")
    monkeypatch.delenv("PECO_GPUS")
    monkeypatch.delenv("PECO_IMAGE")
    assert cluster_check.main(["peco"]) == 2
    assert capsys.readouterr().err == "error: PECO_IMAGE: not set; name the image of steps and jobs\n"


def test_the_rights_that_are_checked_are_those_of_the_manifests() -> None:
    rights = set(cluster_check._rules("peco-jobs"))
    assert {("create", "jobs.batch.volcano.sh", ""), ("get", "pods/log", "")} <= rights
    assert ("get", "configmaps", "kfp-launcher") in set(cluster_check._rules("peco-kubeflow"))


# The pod


class _Api:
    namespace = "vision"


def test_the_pod_is_valid_and_has_what_a_step_has() -> None:
    env = {
        "PECO_IMAGE": "example/peco:1", "PECO_VOLUME_CLAIM": "disk", "PECO_VOLUME_PATH": "/disk", "PECO_GPUS": "2",
        "PECO_STEP_SECRET": "proxies", "PECO_CA_CONFIGMAP": "certificates",
    }  # fmt: skip
    check = CheckPod(_Api(), None, Report(), Target.from_env(env), "runner")  # type: ignore[arg-type]
    pod = check.manifest({"git": "https://example/peco", "dvc": "", "job": "yes"})
    assert violations(pod, {}) == []
    spec = pod["spec"]
    [container] = spec["containers"]
    assert spec["serviceAccountName"] == "runner"
    assert (container["image"], container["imagePullPolicy"]) == ("example/peco:1", "IfNotPresent")
    assert json.loads(container["command"][-1])["git"] == "https://example/peco"
    values = {entry["name"]: entry.get("value") for entry in container["env"]}
    assert (values["PECO_NAMESPACE"], values["PECO_GPUS"]) == ("vision", "2")
    assert {mount["mountPath"] for mount in container["volumeMounts"]} == {
        "/disk", "/etc/peco/git", "/etc/peco/storage", "/etc/peco/step", "/etc/peco/ca",
    }  # fmt: skip
    assert {"name": "peco", "persistentVolumeClaim": {"claimName": "disk"}} in spec["volumes"]


def test_a_crash_is_reported_though_the_phase_follows_later(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server shows the end of the container first, and the phase `Failed` a second later."""
    state = {"terminated": {"exitCode": 1, "reason": "Error", "finishedAt": "2026-01-01T00:00:00Z"}}
    shown = [
        {"metadata": {"name": "check"}, "status": {"phase": phase, "containerStatuses": [{"state": state}]}}
        for phase in ("Running", "Running", "Failed")
    ]
    core = SimpleNamespace(
        read_namespaced_pod=lambda *_, **__: SimpleNamespace(data=json.dumps(shown.pop(0))),
        read_namespaced_pod_log=lambda *_, **__: SimpleNamespace(
            data=b"ModuleNotFoundError: No module named 'pipelines'\n"
        ),
    )
    api = SimpleNamespace(namespace="vision", core=core, call=lambda _, call: call())
    stops = SimpleNamespace(wait=lambda _: None, first=None)
    report = Report()
    CheckPod(api, stops, report, Target.from_env({"PECO_IMAGE": "example/peco:1"}), "runner")._follow("check")  # type: ignore[arg-type]
    assert report.end() == 2
    assert capsys.readouterr().out.startswith(
        "× the pod of a step runs to its end\n    it ended with status 1; the image is not of this commit"  # noqa: RUF001
    )


# The checks in the pods


def test_a_check_is_a_line_of_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert pod_check.run("the image", pod_check.image)
    assert not pod_check.run("the queue", refuse)
    image, queue = map(json.loads, capsys.readouterr().out.splitlines())
    assert image["state"] == "right" and image["text"].startswith("torch ")
    assert queue == {"title": "the queue", "state": "wrong", "text": "it is too small; enlarge it"}


def test_a_volume_is_used_as_dvc_uses_it(tmp_path: Path) -> None:
    assert "takes files and links" in pod_check.make_folder(tmp_path / "check")
    with pytest.raises(
        PecoError, match=r"user \d+ can't use it \(No such file or directory\); give its root to \d+:\d+"
    ):
        pod_check.make_folder(tmp_path / "missing/check")


def test_the_git_remote_is_read(tmp_path: Path) -> None:
    subprocess.run(["git", "init", "-q", "--bare", str(tmp_path / "there")], check=True)
    assert pod_check.read_git(str(tmp_path / "there")) == "can be read"
    with pytest.raises(PecoError, match=r"git ls-remote: .*; correct its address \(GIT_REMOTE\), the secret"):
        pod_check.read_git(str(tmp_path / "missing"))


def test_the_dvc_remote_is_written_to_and_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = "[core]\nremote = cluster\n['remote \"cluster\"']\nurl = {}\n"
    assert "can be written to and read" in pod_check.use_remote(config.format(tmp_path / "remote"))
    assert list((tmp_path / "remote").iterdir()) == []
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    server = ThreadedMotoServer(port=0)
    server.start()
    try:
        host, port = server.get_host_and_port()
        bucket = config.format("s3://missing/peco") + f"endpointurl = http://{host}:{port}\n"
        with pytest.raises(
            PecoError, match=r"; correct its address, the secret \(PECO_STORAGE_SECRET\), or the network"
        ):
            pod_check.use_remote(bucket)
    finally:
        server.stop()


def test_two_ranks_find_and_reach_each_other(tmp_path: Path) -> None:
    answers: list[str] = []
    file = tmp_path / "from-rank-0"
    rank0 = threading.Thread(target=lambda: answers.append(pod_check.serve(30, file)))
    rank0.start()
    assert pod_check.resolve_name("localhost", 5) == "localhost is 127.0.0.1"
    assert pod_check.reach("localhost", 30) == ""
    rank0.join()
    assert answers == ["from 127.0.0.1"]
    assert pod_check.same_volume(file) == ""
    with pytest.raises(PecoError, match="No such file or directory; the volume must be ReadWriteMany"):
        pod_check.same_volume(tmp_path / "other")


def test_a_rank_that_is_not_reached_names_the_policy(tmp_path: Path) -> None:
    with pytest.raises(PecoError, match=r"no connection in 0 s; the policy peco-ranks must be in the namespace"):
        pod_check.serve(0.1, tmp_path / "file")
    with pytest.raises(PecoError, match=r"not in 0 s \(.*refused\); the policy peco-ranks must be in the namespace"):
        pod_check.reach("localhost", 0)
    with pytest.raises(PecoError, match=r"unknown\.invalid: not found in 0 s; look at the cluster's DNS"):
        pod_check.resolve_name("unknown.invalid", 0)
