"""The environment of a step in its pod: defaults, secrets, certificates, umask; and the command that starts a step."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from peco.core.errors import PecoError
from pipelines.kfp import pod
from pipelines.workflow import environment

ROOT = Path(__file__).parents[1]
KUBEFLOW = {"KFP_POD_NAME": "peco-8h77p-1", "KFP_POD_UID": "u1"}


@pytest.fixture(autouse=True)
def umask() -> Iterator[None]:
    """Restore this process's umask."""
    before = os.umask(0o077)
    yield
    os.umask(before)


@pytest.fixture(autouse=True)
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder in which secrets, certificates and the namespace are mounted."""
    for name in ("STORAGE_FOLDER", "STEP_FOLDER"):
        monkeypatch.setattr(pod, name, str(tmp_path / name))
    monkeypatch.setattr(environment, "CA_FOLDER", str(tmp_path / "ca"))
    monkeypatch.setattr(pod, "NAMESPACE_FILE", tmp_path / "namespace")
    (tmp_path / "namespace").write_text("team")
    return tmp_path


def test_a_pod_has_what_its_settings_leave_out() -> None:
    env = dict(KUBEFLOW)
    pod.enter(env)
    assert env == {
        **KUBEFLOW,
        "PECO_SCHEDULER": "kubernetes",
        "PECO_SERVICE_ACCOUNT": "peco-job",
        "PECO_PULL_POLICY": "IfNotPresent",
        "PECO_VOLUME_CLAIM": "peco",
        "PECO_VOLUME_PATH": "/peco",
        "PECO_WORKSPACES": "/peco/workspaces",
        "PECO_CACHE": "/peco/cache",
        "PECO_GIT_CREDENTIALS": "/etc/peco/git",
        "PECO_POD_NAME": "peco-8h77p-1",
        "PECO_POD_UID": "u1",
        "PECO_NAMESPACE": "team",
        "HOME": "/tmp",
        "DVC_SITE_CACHE_DIR": "/tmp/dvc",
    }


def test_what_is_set_wins_over_the_defaults() -> None:
    env = {"PECO_VOLUME_PATH": "/data", "PECO_CACHE": "/cache", "PECO_SERVICE_ACCOUNT": "mine"}
    pod.enter(env)
    assert (env["PECO_WORKSPACES"], env["PECO_CACHE"]) == ("/data/workspaces", "/cache")
    assert env["PECO_SERVICE_ACCOUNT"] == "mine"


def test_the_keys_of_secrets_become_variables(folders: Path) -> None:
    for name, key, value in (
        ("STORAGE_FOLDER", "AWS_ACCESS_KEY_ID", "id"),
        ("STEP_FOLDER", "HTTPS_PROXY", "http://proxy:3128\n"),  # as of `--from-file`
        ("STEP_FOLDER", "not-a-name", "x"),
        ("STEP_FOLDER", "PECO_REMOTE", "s3://other"),
    ):
        (folders / name).mkdir(exist_ok=True)
        (folders / name / key).write_text(value)
    env = {"PECO_REMOTE": "s3://b"}
    pod.enter(env)
    assert (env["AWS_ACCESS_KEY_ID"], env["HTTPS_PROXY"], env["PECO_REMOTE"]) == ("id", "http://proxy:3128", "s3://b")
    assert "not-a-name" not in env


def test_certificates_are_trusted_by_git_python_and_the_clients_of_buckets(folders: Path) -> None:
    env: dict[str, str] = {}
    pod.enter(env)
    assert not set(environment.CA_VARIABLES) & set(env)
    (folders / "ca").mkdir()
    pod.enter(env)
    assert {name: env[name] for name in environment.CA_VARIABLES} == environment.CA_VARIABLES
    assert {"GIT_SSL_CAINFO", "AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE", "SSL_CERT_FILE"} <= set(env)


@pytest.mark.parametrize(("given", "mode"), [("", 0o755), ("002", 0o775), ("0077", 0o700)])
def test_folders_on_the_volume_are_not_open_to_everyone(tmp_path: Path, given: str, mode: int) -> None:
    os.umask(0)  # as Argo starts containers
    pod.enter({"PECO_UMASK": given} if given else {})
    (tmp_path / "made").mkdir()
    assert (tmp_path / "made").stat().st_mode & 0o777 == mode


@pytest.mark.parametrize("given", ["22", "888", "u=rwx", "1022"])
def test_a_wrong_umask_is_refused(given: str) -> None:
    with pytest.raises(PecoError, match=r"PECO_UMASK: .* is not allowed; expected three octal digits, such as 022"):
        pod.enter({"PECO_UMASK": given})


@pytest.mark.parametrize("way", ["a function that Kubeflow names", "a command"])
def test_the_command_of_a_task_runs_the_step(tmp_path: Path, way: str) -> None:
    given = {
        "inputs": {"parameterValues": {"run": "first", "stage": "shards"}},
        "outputs": {"outputFile": str(tmp_path / "out" / "output.json")},
    }
    function = ["--executor_input", json.dumps(given), "--function_to_execute", "run_stage"]
    command = ["stage_command", "shards"] if way == "a command" else ["components", *function]
    done = subprocess.run(
        [sys.executable, "-m", f"pipelines.kfp.{command[0]}", *command[1:]],
        cwd=ROOT,
        env={**os.environ, "PECO_WORKSPACES": str(tmp_path / "workspaces"), "PECO_RUN": "first"},
        capture_output=True,
        text=True,
        check=False,
    )
    folder = tmp_path / "runs/first"
    why = (
        f"error: shards: {folder}/parameters.json: no such file; the run's folder was deleted, so submit the run again"
    )
    assert done.returncode == 2 and done.stderr.splitlines()[-1] == why
