"""`make pipeline-submit` and `make pipeline-compile`: requests to Kubeflow, checks before anything is created, following of runs.

Kubeflow is a server on this machine that checks each request against the published API (tests/kfp_api.py).
"""

from __future__ import annotations

import base64
import contextlib
import http.server
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from kfp_api import DOCUMENT, Contract, KfpApi, moment, serve, task
from urllib3.util import retry

from pipelines import submit
from pipelines.kfp import follow, revision, step
from pipelines.workflow.compose import compose_params, render
from pipelines.workflow.git import without_secrets
from pipelines.workflow.graph import Graph

GRAPH = """\
stages:
  shards:
    cmd: python -m pipelines.launch shards
    deps: ["${dataset.path}"]
    params: [dataset]
    outs: [artifacts/shards]
  tokenizer:
    cmd: python -m pipelines.launch tokenizer
    deps: [artifacts/shards]
    params: [seed, tokenizer]
    outs: [artifacts/tokenizer]
  evaluate:
    foreach: [knn, linear]
    do:
      cmd: python -m pipelines.launch evaluate@${item}
      deps: [artifacts/shards, artifacts/tokenizer]
      metrics: ["metrics/evaluate/${item}.json"]
"""
OBJECT = "d3b07384d113edec49eaa6238ad5ff00"
POINTER = f"outs:\n- md5: {OBJECT}\n  size: 4\n  hash: md5\n  path: photos.tar\n"
VARIABLES = (
    "KFP_HOST", "KFP_NAMESPACE", "KFP_TOKEN", "KFP_SERVICE_ACCOUNT", "KF_PIPELINES_SA_TOKEN_PATH", "GIT_REMOTE", "PECO_REMOTE",
    "PECO_REMOTE_ENDPOINT", "SWEEP_LIMIT",
)  # fmt: skip


class Project:
    """A clone whose commits are on its remote, in the current directory."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.store = path.parent / "store"

    def git(self, *arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments], cwd=self.path, check=True, capture_output=True, text=True
        ).stdout.strip()

    def commit(self, push: bool = True, **files: str) -> str:
        """Commit files (named with `__` for `/`) and return the commit."""
        for name, content in files.items():
            path = self.path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)
        self.git("add", "-A")
        self.git("commit", "-q", "-m", "change")
        if push:
            self.git("push", "-q", "origin", "main")
        return self.git("rev-parse", "HEAD")

    def write(self, name: str, content: str) -> None:
        (self.path / name).parent.mkdir(parents=True, exist_ok=True)
        (self.path / name).write_text(content)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone `clone` of a bare repository `peco.git`, with a DVC remote `store`."""
    home = tmp_path_factory.mktemp("template")
    clone = home / "clone"
    files = {
        "dvc.yaml": GRAPH,
        "params.yaml": render(compose_params("smoke", [])),
        "data/scenes.yaml": "scenes: 1\n",
        ".dvc/config": "[core]\n    remote = store\n['remote \"store\"']\n    url = ../../store\n",
        ".dvc/.gitignore": "/config.local\n/tmp\n/cache\n",
        ".gitignore": "/pipeline.yaml\n",
    }
    for name, content in files.items():
        (clone / name).parent.mkdir(parents=True, exist_ok=True)
        (clone / name).write_text(content)
    for command in (
        ["init", "-q", "--bare", "-b", "main", "../peco.git"],
        ["init", "-q", "-b", "main"],
        ["config", "user.name", "t"],
        ["config", "user.email", "t@t"],
        ["remote", "add", "origin", "../peco.git"],
        ["add", "-A"],
        ["commit", "-q", "-m", "start"],
        ["push", "-q", "-u", "origin", "main"],
    ):
        subprocess.run(["git", *command], cwd=clone, check=True, capture_output=True)
    return home


@pytest.fixture
def project(template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DVC_SITE_CACHE_DIR", str(tmp_path / "site"))
    shutil.copytree(template, tmp_path / "home")
    monkeypatch.chdir(tmp_path / "home" / "clone")
    return Project(tmp_path / "home" / "clone")


@pytest.fixture(scope="module")
def compiled() -> Callable[[Graph, Mapping[str, str]], str]:
    """The compiler, which compiles each graph once."""
    compile, pipelines = submit.compiled, dict[str, str]()

    def remembered(graph: Graph, env: Mapping[str, str]) -> str:
        if str(graph) not in pipelines:
            pipelines[str(graph)] = compile(graph, env)
        return pipelines[str(graph)]

    return remembered


@pytest.fixture(scope="module")
def contract() -> Contract | None:
    """The checks of requests, if the document is available."""
    path = Path(os.environ.get("PECO_TEST_SCHEMAS") or os.devnull) / DOCUMENT
    return Contract(path) if path.is_file() else None


@pytest.fixture
def api(
    contract: Contract | None,
    project: Project,
    compiled: Callable[[Graph, Mapping[str, str]], str],
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[KfpApi]:
    """A Kubeflow that the environment names. Waiting for it takes no time, and each graph is compiled once."""
    monkeypatch.setattr(follow, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(submit, "SETTLE_SECONDS", 0.0)
    monkeypatch.setattr(submit, "compiled", compiled)
    with serve(KfpApi(contract)) as server:
        monkeypatch.setenv("KFP_HOST", server.address)
        monkeypatch.setenv("PECO_IMAGE", "registry.example.com/peco:1234567")
        yield server


@contextlib.contextmanager
def foreign(status: int, headers: dict[str, str], body: bytes) -> Iterator[str]:
    """The address of a server that gives this answer to all requests."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def run(*arguments: str, status: int = 0) -> None:
    assert submit.main(["submit", *arguments]) == status


def between_requests(monkeypatch: pytest.MonkeyPatch, action: Callable[[], None]) -> None:
    """Call the action between requests while a run is followed, instead of waiting."""
    clock = SimpleNamespace(sleep=lambda seconds: action(), monotonic=time.monotonic, strftime=time.strftime)
    monkeypatch.setattr(follow, "time", clock)


def params_of(run: dict[str, Any]) -> str:
    return base64.b64decode(run["runtime_config"]["parameters"]["params"]).decode()


def test_the_server_of_these_tests_refuses_requests_that_the_published_api_does_not_have(
    contract: Contract | None,
) -> None:
    if contract is None:
        pytest.skip(f"PECO_TEST_SCHEMAS names no folder with {DOCUMENT}")
    operation = contract.operation("POST", "/apis/v2beta1/recurringruns")
    assert operation is not None
    good = {"display_name": "a", "max_concurrency": "1", "trigger": {"periodic_schedule": {"interval_second": "60"}}}
    assert not contract.faults(operation, {}, good)
    for bad in (
        {**good, "unknown": 1},
        {**good, "created_at": "2026-01-01T00:00:00Z"},  # only the server sets it
        {**good, "max_concurrency": 1},  # a long integer is a string
        {**good, "trigger": {"periodic_schedule": {"interval": "60"}}},
        {**good, "mode": "ON"},
        {"display_name": "a"},
        None,
    ):
        assert contract.faults(operation, {}, bad)
    assert contract.faults(operation, {"experiment": ["a"]}, good)
    assert contract.operation("PUT", "/apis/v2beta1/recurringruns") is None
    assert contract.operation("GET", "/apis/v1beta1/runs") is None


# Requests


def test_a_run_of_the_commit_is_started_and_its_address_printed(
    project: Project, api: KfpApi, capsys: pytest.CaptureFixture[str]
) -> None:
    run()
    head = project.git("rev-parse", "HEAD")
    assert [experiment["display_name"] for experiment in api.experiments] == ["peco"]
    [made] = api.runs
    name = f"run-{head[:7]}"
    assert capsys.readouterr().out == f"{name}: {api.address}/#/runs/details/{made['run_id']}\n"
    assert made["display_name"] == name and head in made["description"]
    assert made["runtime_config"]["parameters"] == {
        "repository": "../peco.git", "revision": head, "experiment": name,
        "params": made["runtime_config"]["parameters"]["params"],
    }  # fmt: skip
    assert params_of(made) == (project.path / "params.yaml").read_text()
    tasks = made["pipeline_spec"].get("pipeline_spec", made["pipeline_spec"])["root"]["dag"]["tasks"]
    assert {"shards", "tokenizer", "evaluate-knn", "evaluate-linear"} <= set(tasks)
    assert set(api.tokens) == {None}


def test_the_token_of_the_user_goes_with_every_request(api: KfpApi, monkeypatch: pytest.MonkeyPatch) -> None:
    api.token = "secret"
    monkeypatch.setenv("KFP_TOKEN", "secret")
    run()
    assert len(api.runs) == 1 and set(api.tokens) == {"Bearer secret"}


def test_in_a_pod_the_token_is_read_from_its_file_each_time(
    api: KfpApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "token"
    monkeypatch.setenv("KF_PIPELINES_SA_TOKEN_PATH", str(file))
    api.token = "old"
    file.write_text("old\n")
    api.script = [moment("RUNNING"), moment("SUCCEEDED")]

    def renew() -> None:
        api.token = "new"
        file.write_text("new")

    between_requests(monkeypatch, renew)
    run("--wait")
    assert api.tokens[0] == "Bearer old" and api.tokens[-1] == "Bearer new"


def test_a_run_goes_to_the_namespace_and_the_service_account_that_are_named(
    api: KfpApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    api.namespaces = {"team"}
    monkeypatch.setenv("KFP_NAMESPACE", "team")
    monkeypatch.setenv("KFP_SERVICE_ACCOUNT", "peco-step")
    run()
    assert api.experiments[0]["namespace"] == "team" and api.runs[0]["service_account"] == "peco-step"


def test_settings_change_params_as_dvc_does_and_name_the_run(project: Project, api: KfpApi) -> None:
    run("--set", "tokenizer.perceptual.weight=0", "pretrain.optim.epochs=3")
    [made] = api.runs
    before, after = (project.path / "params.yaml").read_text(), params_of(made)
    assert before.splitlines()[0] == after.splitlines()[0]  # the comment
    expected = yaml.safe_load(before)
    expected["tokenizer"]["perceptual"]["weight"] = 0
    expected["pretrain"]["optim"]["epochs"] = 3
    assert yaml.safe_load(after) == expected
    head = project.git("rev-parse", "--short=7", "HEAD")
    assert made["display_name"] == f"run-{head}-pretrain.optim.epochs-3-perceptual.weight-0"


def test_a_name_that_is_too_long_or_has_other_characters_ends_in_a_hash(project: Project, api: KfpApi) -> None:
    run(
        "--set",
        "perceptual_net.timm.model='vit m9/x'",
        *(f"{part}.optim.lr=0.000125" for part in ("tokenizer", "pretrain")),
    )
    name = api.runs[0]["display_name"]
    assert len(name) <= 100
    project.git("check-ref-format", f"refs/exps/ab/cd/{name}")
    step.check_name(name)


def test_a_sweep_is_a_run_for_each_point(api: KfpApi) -> None:
    run("--set", "report.images=2", "--sweep", "tokenizer.perceptual.weight=0,1", "seed=0,1,2")
    values = [(yaml.safe_load(params_of(made))) for made in api.runs]
    points = {(value["tokenizer"]["perceptual"]["weight"], value["seed"]) for value in values}
    assert points == {(weight, seed) for weight in (0, 1) for seed in (0, 1, 2)}
    assert all(value["report"]["images"] == 2 for value in values)
    names = {made["display_name"] for made in api.runs}
    assert len(names) == 6 and all("seed-" in name and "weight-" in name for name in names)
    assert len(api.experiments) == 1


@pytest.mark.parametrize(
    ("text", "trigger"),
    [
        ("0 3 * * *", {"cron_schedule": {"cron": "0 0 3 * * *"}}),
        ("30 */15 9-17 ? JAN,jul mon-fri", {"cron_schedule": {"cron": "30 */15 9-17 ? JAN,jul mon-fri"}}),
        ("6h", {"periodic_schedule": {"interval_second": "21600"}}),
    ],
)
def test_a_schedule_makes_a_recurring_run(
    api: KfpApi, capsys: pytest.CaptureFixture[str], text: str, trigger: dict[str, Any]
) -> None:
    run("--schedule", text)
    [made] = api.schedules
    assert made["trigger"] == trigger and made["mode"] == "ENABLE" and made["no_catchup"] is True
    assert made["runtime_config"]["parameters"]["experiment"] == made["display_name"]
    assert f"{api.address}/#/recurringrun/details/{made['recurring_run_id']}" in capsys.readouterr().out
    run("--schedule", text)
    assert "is already scheduled" in capsys.readouterr().out and len(api.schedules) == 1
    assert not api.runs


def test_another_commit_is_submitted_with_its_own_files(project: Project, api: KfpApi) -> None:
    first = project.git("rev-parse", "HEAD")
    before = (project.path / "params.yaml").read_text()
    project.commit(
        **{"params.yaml": before.replace("seed: 0", "seed: 5", 1), "dvc.yaml": GRAPH.replace("linear", "finetune")}
    )
    project.write("params.yaml", "uncommitted changes do not matter")
    run("--rev", first[:10])
    [made] = api.runs
    assert params_of(made) == before and made["runtime_config"]["parameters"]["revision"] == first
    tasks = made["pipeline_spec"].get("pipeline_spec", made["pipeline_spec"])["root"]["dag"]["tasks"]
    assert "evaluate-linear" in tasks and "evaluate-finetune" not in tasks


@pytest.mark.parametrize(
    ("address", "sent"),
    [
        ("https://jane:secret@example.com:8443/team/peco.git", "https://example.com:8443/team/peco.git"),
        ("git@example.com:team/peco.git", "git@example.com:team/peco.git"),
        ("ssh://git@example.com/team/peco.git", "ssh://git@example.com/team/peco.git"),
        ("ssh://jane:secret@example.com/team/peco.git", "ssh://jane@example.com/team/peco.git"),
    ],
)
def test_a_password_in_the_address_of_the_repository_is_not_sent(address: str, sent: str) -> None:
    assert without_secrets(address) == sent
    assert revision.Revision("0" * 40, "origin", sent, frozenset()).repository == "peco"


# Submitting twice


def test_a_run_that_is_running_or_has_succeeded_is_not_submitted_again(
    api: KfpApi, capsys: pytest.CaptureFixture[str]
) -> None:
    run()
    run("--set", "seed=0")  # its value in params.yaml
    assert len(api.runs) == 1
    assert f"was already submitted: {api.address}/#/runs/details/run-0" in capsys.readouterr().out
    api.runs[0]["state"] = "SUCCEEDED"
    run()
    assert len(api.runs) == 1 and "has already succeeded" in capsys.readouterr().out
    run("--set", "seed=1")
    assert len(api.runs) == 2


def test_a_run_that_failed_or_was_archived_is_submitted_again(api: KfpApi) -> None:
    run()
    api.runs[0]["state"] = "FAILED"
    run()
    api.runs[1]["storage_state"] = "ARCHIVED"
    run()
    assert len(api.runs) == 3


def test_force_submits_again_under_a_new_name(project: Project, api: KfpApi) -> None:
    run()
    run("--force")
    first, second = (made["display_name"] for made in api.runs)
    assert second == f"{first}-2"
    assert api.runs[1]["runtime_config"]["parameters"]["experiment"] == second


def test_a_name_of_an_experiment_on_the_remote_is_not_used_again(project: Project, api: KfpApi) -> None:
    head = project.git("rev-parse", "HEAD")
    project.git("push", "-q", "origin", f"HEAD:refs/exps/{head[:2]}/{head[2:]}/run-{head[:7]}")
    run()
    assert api.runs[0]["display_name"] == f"run-{head[:7]}-2"


def test_a_run_whose_answer_was_lost_is_found_and_not_started_twice(
    api: KfpApi, capsys: pytest.CaptureFixture[str]
) -> None:
    run()
    api.lost = 1
    run("--set", "seed=1")
    assert len(api.runs) == 2
    assert f"{api.address}/#/runs/details/run-1" in capsys.readouterr().out


# Following


def test_waiting_prints_each_change_of_a_stage_once_and_the_command_that_fetches_the_results(
    api: KfpApi, capsys: pytest.CaptureFixture[str]
) -> None:
    api.script = [
        moment("PENDING"),
        moment("RUNNING", task("root", "RUNNING"), task("shards", "RUNNING")),
        moment(
            "RUNNING", task("shards", "SUCCEEDED"), task("evaluate-knn", "RUNNING"), task("shards-driver", "SUCCEEDED")
        ),
        moment("SUCCEEDED", task("shards", "SUCCEEDED"), task("evaluate-knn", "SUCCEEDED")),
    ]
    run("--wait")
    lines = capsys.readouterr().out.splitlines()
    name = api.runs[0]["display_name"]
    changes = [line.partition(name)[2].strip(" :") for line in lines[1:-1]]
    assert changes == [
        "shards: running", "shards: succeeded", "evaluate@knn: running", "evaluate@knn: succeeded", "succeeded",
    ]  # fmt: skip
    assert lines[-1].startswith(f"`dvc exp pull origin {name}`")


def test_a_failed_run_ends_with_the_step_and_its_error(api: KfpApi, capsys: pytest.CaptureFixture[str]) -> None:
    api.script = [
        moment(
            "FAILED",
            task("shards", "SUCCEEDED"),
            task("tokenizer", "FAILED", "child failed", task_id="t"),
            task("executor", "FAILED", "main: Error (exit code 2)", task_id="e", parent="t"),
            error="the run failed",
        )
    ]
    run("--wait", status=1)
    errors = capsys.readouterr().err.splitlines()
    name = api.runs[0]["display_name"]
    assert errors == [f"error: {name}: step tokenizer failed: main: Error (exit code 2)"]


def test_a_sweep_has_failed_when_one_of_its_runs_has(api: KfpApi, capsys: pytest.CaptureFixture[str]) -> None:
    api.script = [moment("CANCELED"), moment("SUCCEEDED", task("shards", "SUCCEEDED"))]
    run("--wait", "--sweep", "seed=0,1", status=1)
    captured = capsys.readouterr()
    assert "seed-0: cancelled" in captured.err and "seed-1: succeeded" in captured.out


def test_waiting_outlasts_a_lost_connection(api: KfpApi) -> None:
    api.script = [moment("RUNNING", task("shards", "RUNNING")), moment("SUCCEEDED")]
    api.break_off = 5
    run("--wait")


def test_waiting_ends_when_the_token_is_no_longer_valid(
    api: KfpApi, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    api.token = "secret"
    monkeypatch.setenv("KFP_TOKEN", "secret")
    api.script = [moment("RUNNING")]
    between_requests(monkeypatch, lambda: setattr(api, "token", "other"))
    run("--wait", status=2)
    assert "the token was refused" in capsys.readouterr().err


def test_after_ctrl_c_the_run_continues_and_the_same_command_follows_again(
    api: KfpApi, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    api.script = [moment("RUNNING"), moment("SUCCEEDED")]
    with monkeypatch.context() as context:
        between_requests(context, interrupt)
        run("--wait", status=130)
    error = capsys.readouterr().err
    assert f"still running: {api.address}/#/runs/details/run-0" in error and "The same command follows again" in error
    assert not any("terminate" in request for request in api.requests)
    run("--wait")
    assert len(api.runs) == 1


# Refusals


def refused(api: KfpApi, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Run, check that nothing was created, and return the one line with the reason."""
    run(*arguments, status=2)
    captured = capsys.readouterr()
    assert not api.created and not captured.out
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
    api: KfpApi,
    capsys: pytest.CaptureFixture[str],
    prepare: Callable[[Project], None],
    message: str,
) -> None:
    prepare(project)
    assert message in refused(api, capsys)


def test_a_tracked_input_that_was_pushed_is_accepted(
    project: Project, api: KfpApi, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    photos(project)
    for store in (project.store, tmp_path / "other"):
        (store / "files/md5" / OBJECT[:2]).mkdir(parents=True)
        (store / "files/md5" / OBJECT[:2] / OBJECT[2:]).write_text("foo\n")
    run()
    shutil.rmtree(project.store)
    monkeypatch.setenv("PECO_REMOTE", str(tmp_path / "other"))
    run("--set", "seed=1")
    assert len(api.runs) == 2


def test_a_commit_that_others_have_built_on_is_on_the_remote(project: Project, api: KfpApi) -> None:
    head = project.git("rev-parse", "HEAD")
    later = project.commit(extra="x")
    project.git("reset", "-q", "--hard", head)
    project.git("update-ref", "refs/remotes/origin/main", head)
    project.git("reflog", "expire", "--expire=now", "--all")
    project.git("gc", "-q", "--prune=now")
    assert later not in project.git("rev-list", "--all")
    run()
    assert len(api.runs) == 1


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
    api: KfpApi, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert message in refused(api, capsys, *arguments)


@pytest.mark.parametrize("cron", ["60 3 * * *", "0 3 * * 7", "0 5-3 * * *", "*/0 3 * * *"])
def test_a_cron_expression_that_kubeflow_refuses_is_reported_in_one_line(
    api: KfpApi, capsys: pytest.CaptureFixture[str], cron: str
) -> None:
    run("--schedule", cron, status=2)
    captured = capsys.readouterr()
    [line] = captured.err.splitlines()
    assert line.startswith("error: SCHEDULE: ") and line.endswith("Schedule cron is not a supported format")
    assert not captured.out and not api.schedules and not api.runs


def test_a_large_sweep_is_started_when_asked_for(
    api: KfpApi, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SWEEP_LIMIT", "1")
    assert "SWEEP_LIMIT=2 allows them" in refused(api, capsys, "--sweep", "seed=0,1")
    monkeypatch.setenv("SWEEP_LIMIT", "2")
    run("--sweep", "seed=0,1")
    assert len(api.runs) == 2


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
    api: KfpApi,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    environment: dict[str, str],
    message: str,
) -> None:
    api.token, api.namespaces = "secret", {"team"}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    waits: list[float] = []  # seconds, between the attempts of the client
    monkeypatch.setattr(retry, "time", SimpleNamespace(sleep=waits.append))
    assert message in refused(api, capsys)
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
    compiled: Callable[[Graph, Mapping[str, str]], str],
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
