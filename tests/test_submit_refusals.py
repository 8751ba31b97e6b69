"""`make pipeline-submit` refuses what would fail in Kubeflow, in one line, before anything is created; `make pipeline-compile`."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from kfp_api import KfpApi
from kfp_project import GRAPH, OBJECT, POINTER, Project, compiled, foreign, run
from urllib3.util import retry

from pipelines import submit
from pipelines.workflow.compose import compose_params, render


def refused(kubeflow: KfpApi, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Run, check that nothing was created, and return the one line with the reason."""
    run(*arguments, status=2)
    captured = capsys.readouterr()
    assert not kubeflow.created and not captured.out
    [line] = captured.err.splitlines()
    assert line.startswith("error: ")
    return line.removeprefix("error: ")


def change(project: Project) -> None:
    project.write("params.yaml", "seed: 1\n")


def new_file(project: Project) -> None:
    project.write("data/more.yaml", "x")


def unpushed(project: Project) -> None:
    project.commit(push=False, extra="x")


def no_remote(project: Project) -> None:
    project.git("remote", "rename", "origin", "other")


def remote_away(project: Project) -> None:
    shutil.rmtree(project.path.parent / "peco.git")


def no_dvc_remote(project: Project) -> None:
    project.commit(**{".dvc/config": "[core]\n    analytics = false\n"})
    project.write(".dvc/config.local", "[core]\n    remote = mine\n['remote \"mine\"']\n    url = /tmp/mine\n")


def photos(project: Project) -> None:
    params = render(compose_params("smoke", ["dataset=images", "dataset.path=data/photos.tar"]))
    project.commit(**{"params.yaml": params, "data/photos.tar.dvc": POINTER})


def no_input(project: Project) -> None:
    photos(project)
    (project.path / "data/photos.tar.dvc").unlink()
    project.commit()


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (change, "params.yaml: not committed"),
        (new_file, "data/more.yaml: not committed"),
        (unpushed, "not on the git remote origin"),
        (no_remote, "git remote origin: no such remote"),
        (remote_away, "git remote origin (../peco.git): can't be reached"),
        (no_dvc_remote, "names no DVC remote"),
        (
            photos,
            "data/photos.tar: not on the DVC remote, from which the cluster fetches it; `dvc push data/photos.tar.dvc`",
        ),
        (no_input, "data/photos.tar: not in commit"),
    ],
)
def test_a_commit_or_input_that_the_cluster_could_not_fetch_is_refused(
    project: Project,
    kubeflow: KfpApi,
    capsys: pytest.CaptureFixture[str],
    prepare: Callable[[Project], None],
    message: str,
) -> None:
    prepare(project)
    assert message in refused(kubeflow, capsys)


def test_a_tracked_input_that_was_pushed_is_accepted(
    project: Project, kubeflow: KfpApi, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    photos(project)
    for store in (project.store, tmp_path / "other"):
        (store / "files/md5" / OBJECT[:2]).mkdir(parents=True)
        (store / "files/md5" / OBJECT[:2] / OBJECT[2:]).write_text("foo\n")
    run()
    shutil.rmtree(project.store)
    monkeypatch.setenv("PECO_REMOTE", str(tmp_path / "other"))
    run("--set", "seed=1")
    assert len(kubeflow.runs) == 2


def test_a_commit_that_others_have_built_on_is_on_the_remote(project: Project, kubeflow: KfpApi) -> None:
    head = project.git("rev-parse", "HEAD")
    later = project.commit(extra="x")
    project.git("reset", "-q", "--hard", head)
    project.git("update-ref", "refs/remotes/origin/main", head)
    project.git("reflog", "expire", "--expire=now", "--all")
    project.git("gc", "-q", "--prune=now")
    assert later not in project.git("rev-list", "--all")
    run()
    assert len(kubeflow.runs) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rev", "nothing"], "REV=nothing: no such commit here"),
        (["--set", "tokenizer.nothing=1"], "nothing"),
        (["--set", "seed=x"], "seed: 'x' is not allowed; expected an integer"),
        (["--set", "seed=-1"], "seed: -1 is not allowed"),
        (["--set", "loader.lanes=7"], "a multiple of loader.lanes (7)"),
        (["--set", "seed"], "SET=seed: expected key=value"),
        (["--set", "seed=1,2"], "SWEEP=seed=1,2 runs each"),
        (["--set", "seed=3", "--sweep", "seed=0,1"], "seed is set twice"),
        (["--sweep", "seed=range(0,101)"], "SWEEP_LIMIT="),
        (["--sweep", "seed=range(0,11)", "report.images=range(1,12)"], "SWEEP: 121 points"),
        (["--sweep", "tokenizer.perceptual.weight=0,-1"], "tokenizer.perceptual.weight: -1 is not allowed"),
        (["--schedule", "tomorrow"], "SCHEDULE: 'tomorrow' is not allowed"),
        (["--schedule", "0 3 * *"], "SCHEDULE: '0 3 * *' is not allowed"),
        (["--schedule", "0h"], "SCHEDULE: '0h' is not allowed"),
        (["--schedule", "6h", "--wait"], "a recurring run has no end to wait for"),
    ],
)  # fmt: skip
def test_a_wrong_argument_is_refused(
    kubeflow: KfpApi, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert message in refused(kubeflow, capsys, *arguments)


@pytest.mark.parametrize("cron", ["60 3 * * *", "0 3 * * 7", "0 5-3 * * *", "*/0 3 * * *"])
def test_a_cron_expression_that_kubeflow_refuses_is_reported_in_one_line(
    kubeflow: KfpApi, capsys: pytest.CaptureFixture[str], cron: str
) -> None:
    run("--schedule", cron, status=2)
    captured = capsys.readouterr()
    [line] = captured.err.splitlines()
    assert line.startswith("error: SCHEDULE: ") and line.endswith("Schedule cron is not a supported format")
    assert not captured.out and not kubeflow.schedules and not kubeflow.runs


def test_a_large_sweep_is_started_when_asked_for(
    kubeflow: KfpApi, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SWEEP_LIMIT", "1")
    assert "SWEEP_LIMIT=2 allows them" in refused(kubeflow, capsys, "--sweep", "seed=0,1")
    monkeypatch.setenv("SWEEP_LIMIT", "2")
    run("--sweep", "seed=0,1")
    assert len(kubeflow.runs) == 2


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"PECO_IMAGE": ""}, "PECO_IMAGE: not set; name the image"),
        ({"KFP_HOST": ""}, "KFP_HOST=: give the address"),
        ({"KFP_HOST": "kubeflow.example.com"}, "KFP_HOST=kubeflow.example.com: give the address"),
        ({"KFP_HOST": "http://127.0.0.1:9"}, "KFP_HOST=http://127.0.0.1:9: can't be reached"),
        ({"KFP_TOKEN": "wrong"}, "the token was refused"),
        ({"KF_PIPELINES_SA_TOKEN_PATH": "/nothing"}, "/nothing: the token can't be read"),
        ({"KFP_TOKEN": "secret"}, "KFP_NAMESPACE: not set"),
        ({"KFP_TOKEN": "secret", "KFP_NAMESPACE": "nobody"}, "KFP_NAMESPACE=nobody: no such namespace"),
    ],
)
def test_a_kubeflow_that_does_not_answer_or_gives_no_access_is_refused(
    kubeflow: KfpApi,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    environment: dict[str, str],
    message: str,
) -> None:
    kubeflow.token, kubeflow.namespaces = "secret", {"team"}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    waits: list[float] = []  # seconds, between the attempts of the client
    monkeypatch.setattr(retry, "time", SimpleNamespace(sleep=waits.append))
    assert message in refused(kubeflow, capsys)
    assert sum(waits) < 10


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ((302, {"Location": "https://login.example.com/dex"}, b""), "redirects to https://login.example.com/dex"),
        ((200, {"Content-Type": "text/html"}, b"<html>hello</html>"), "the answer is not from Kubeflow Pipelines"),
        ((404, {}, b"not here"), "404: not here"),
        ((403, {}, b"RBAC: access denied"), "this token has no rights here: RBAC: access denied"),
    ],
)
def test_another_server_at_the_address_is_recognized(
    project: Project,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    answer: tuple[int, dict[str, str], bytes],
    message: str,
) -> None:
    with foreign(*answer) as address:
        monkeypatch.setenv("KFP_HOST", address)
        monkeypatch.setenv("PECO_IMAGE", "peco:1234567")
        run(status=2)
    [line] = capsys.readouterr().err.splitlines()
    assert message in line


# Compiling


def test_compile_writes_the_pipeline_of_the_working_tree_or_of_a_commit(
    project: Project,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(submit, "compiled", compiled)
    project.write("dvc.yaml", GRAPH.replace("linear", "finetune"))
    assert submit.main(["compile"]) == 0
    assert capsys.readouterr().out == "pipeline.yaml: 4 stages\n"
    assert "evaluate-finetune" in (project.path / "pipeline.yaml").read_text()
    assert submit.main(["compile", "--rev", "HEAD", "--out", "other.yaml"]) == 0
    assert "evaluate-linear" in (project.path / "other.yaml").read_text()
    assert submit.main(["compile", "--set", "seed=x"]) == 2
    assert submit.main(["compile", "--out", "no/such/folder.yaml"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 2
