"""`make pipeline-submit` and `make pipeline-compile`: requests to Kubeflow, checks before anything is created, following of runs.

Kubeflow is a server on this machine that checks each request against the published API (tests/kfp_api.py).
"""

from __future__ import annotations

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
from kfp_answers import failed_pod, moment, pod_name, waiting_pod
from kfp_api import KfpApi, serve
from kfp_contract import DOCUMENT, Contract
from urllib3.util import retry

from pipelines import submit
from pipelines.kfp import follow, revision, step
from pipelines.kfp.parameters import Parameters
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
    meta: {retries: 2}
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
    "PECO_REMOTE_ENDPOINT", "SWEEP_LIMIT", "PECO_NAMESPACE",
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
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    shutil.copytree(template, tmp_path / "home")
    monkeypatch.chdir(tmp_path / "home" / "clone")
    return Project(tmp_path / "home" / "clone")


@pytest.fixture(scope="module")
def compiled() -> Callable[..., str]:
    """The compiler, which compiles each graph once."""
    compile, pipelines = submit.compiled, dict[str, str]()

    def remembered(graph: Graph, env: Mapping[str, str], defaults: Parameters | None = None) -> str:
        if str(graph) not in pipelines:
            pipelines[str(graph)] = compile(graph, env, defaults)
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
    compiled: Callable[..., str],
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


def parameters_of(run: dict[str, Any]) -> Parameters:
    return Parameters(**run["runtime_config"]["parameters"])


def params_of(run: dict[str, Any], project: Project) -> str:
    """The params.yaml that the run's steps make."""
    parameters = parameters_of(run)
    return parameters.params(project.git("show", f"{parameters.revision}:params.yaml") + "\n")


def spec_of(run: dict[str, Any], api: KfpApi) -> dict[str, Any]:
    """The pipeline of the version that the run refers to."""
    wanted = run["pipeline_version_reference"]
    [version] = [item for item in api.versions if item["pipeline_version_id"] == wanted["pipeline_version_id"]]
    spec: dict[str, Any] = version["pipeline_spec"]["pipeline_spec"]
    return spec


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
        "repository": "../peco.git", "revision": head, "preset": "smoke", "seed": 0, "overrides": "", "experiment": name,
    }  # fmt: skip
    assert params_of(made, project) == (project.path / "params.yaml").read_text()
    tasks = spec_of(made, api)["root"]["dag"]["tasks"]
    assert set(tasks) == {"shards", "tokenizer", "evaluate-knn", "evaluate-linear", "collect"}
    assert set(api.tokens) == {None}


def test_the_pipeline_is_registered_with_a_version_per_commit(
    project: Project, api: KfpApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = project.git("rev-parse", "--short=7", "HEAD")
    run()
    run("--set", "seed=1")
    run("--schedule", "6h")
    [pipeline], [version] = api.pipelines, api.versions
    assert pipeline["name"] == "peco" and version["name"].startswith(f"{first}-")
    reference = {"pipeline_id": pipeline["pipeline_id"], "pipeline_version_id": version["pipeline_version_id"]}
    assert all(made["pipeline_version_reference"] == reference for made in api.runs + api.schedules)
    second = project.commit(**{"dvc.yaml": GRAPH.replace("linear", "finetune")})[:7]
    run()
    assert len(api.pipelines) == 1 and api.versions[-1]["name"].startswith(f"{second}-")
    assert len(api.versions) == 2


def test_a_run_started_in_kubeflow_has_the_parameters_of_the_commit(project: Project, api: KfpApi) -> None:
    run("--set", "seed=3", "report.images=2")
    head = project.git("rev-parse", "HEAD")
    inputs = spec_of(api.runs[0], api)["root"]["inputDefinitions"]["parameters"]
    defaults = {name: each.get("defaultValue") for name, each in inputs.items()}
    assert defaults == {
        "repository": "../peco.git", "revision": head, "preset": "smoke", "seed": 0, "overrides": "",
        "experiment": f"run-{head[:7]}",
    }  # fmt: skip


def test_a_version_whose_answer_was_lost_is_found_and_not_registered_twice(api: KfpApi) -> None:
    api.lost = 3  # of the experiment, the pipeline and its version
    run()
    assert len(api.pipelines) == len(api.versions) == len(api.runs) == 1


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
    before, after = (project.path / "params.yaml").read_text(), params_of(made, project)
    assert before.splitlines()[0] == after.splitlines()[0]  # the comment
    expected = yaml.safe_load(before)
    expected["tokenizer"]["perceptual"]["weight"] = 0
    expected["pretrain"]["optim"]["epochs"] = 3
    assert yaml.safe_load(after) == expected
    head = project.git("rev-parse", "--short=7", "HEAD")
    assert made["display_name"] == f"run-{head}-pretrain.optim.epochs-3-tokenizer.perceptual.weight-0"
    parameters = parameters_of(made)
    assert parameters.overrides == "pretrain.optim.epochs=3 tokenizer.perceptual.weight=0" and parameters.seed == 0


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


def test_a_sweep_is_a_run_for_each_point(project: Project, api: KfpApi) -> None:
    run("--set", "report.images=2", "--sweep", "tokenizer.perceptual.weight=0,1", "seed=0,1,2")
    values = [yaml.safe_load(params_of(made, project)) for made in api.runs]
    points = {(value["tokenizer"]["perceptual"]["weight"], value["seed"]) for value in values}
    assert points == {(weight, seed) for weight in (0, 1) for seed in (0, 1, 2)}
    assert all(value["report"]["images"] == 2 for value in values)
    names = {made["display_name"] for made in api.runs}
    assert len(names) == 6 and all("seed-" in name and "weight-" in name for name in names)
    assert len(api.experiments) == 1
    assert sorted(parameters_of(made).seed for made in api.runs) == [0, 0, 1, 1, 2, 2]
    assert all("seed" not in parameters_of(made).overrides for made in api.runs)


@pytest.mark.parametrize(
    ("text", "trigger", "printed"),
    [
        ("0 3 * * *", {"cron_schedule": {"cron": "0 0 3 * * *"}}, "at 0 3 * * *"),
        (
            "30 */15 9-17 ? JAN,jul mon-fri",
            {"cron_schedule": {"cron": "30 */15 9-17 ? JAN,jul mon-fri"}},
            "at 30 */15 9-17 ? JAN,jul mon-fri",
        ),
        ("6h", {"periodic_schedule": {"interval_second": "21600"}}, "every 6 h"),
    ],
)
def test_a_schedule_makes_a_recurring_run(
    api: KfpApi, capsys: pytest.CaptureFixture[str], text: str, trigger: dict[str, Any], printed: str
) -> None:
    run("--schedule", text)
    [made] = api.schedules
    assert made["trigger"] == trigger and made["mode"] == "ENABLE" and made["no_catchup"] is True
    assert made["runtime_config"]["parameters"]["experiment"] == made["display_name"]
    address = f"{api.address}/#/recurringrun/details/{made['recurring_run_id']}"
    assert capsys.readouterr().out == f"{made['display_name']}, {printed}: {address}\n"
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
    assert params_of(made, project) == before and parameters_of(made).revision == first
    tasks = spec_of(made, api)["root"]["dag"]["tasks"]
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

POD = pod_name("root(0).tokenizer(0).executor(0)")


def changes(api: KfpApi, capsys: pytest.CaptureFixture[str]) -> tuple[list[str], str]:
    """What was printed of the run after its address, without times and name, and the error without the name."""
    name, captured = api.runs[0]["display_name"], capsys.readouterr()
    lines = [line.partition(name)[2].strip(" :") for line in captured.out.splitlines()[1:]]
    return lines, captured.err.removeprefix(f"error: {name}: ").rstrip("\n")


def test_waiting_prints_each_change_of_a_stage_once_and_the_command_that_fetches_the_results(
    api: KfpApi, capsys: pytest.CaptureFixture[str]
) -> None:
    done = dict.fromkeys(["shards", "tokenizer", "evaluate-knn", "evaluate-linear", "collect"], "SUCCEEDED")
    api.script = [
        moment("PENDING"),
        moment("RUNNING", driver="PENDING"),
        moment("RUNNING", {"shards": "PENDING"}),
        moment("RUNNING", {"shards": "RUNNING"}),
        moment("RUNNING", {"shards": "SUCCEEDED", "tokenizer": "SUCCEEDED", "evaluate-knn": "RUNNING"}),
        moment("SUCCEEDED", {**done, "evaluate-linear": "SUCCEEDED"}),
    ]
    run("--wait")
    lines, _ = changes(api, capsys)
    assert lines[:-1] == [
        "shards: running", "shards: succeeded", "tokenizer: succeeded", "evaluate@knn: running", "evaluate@knn: succeeded",
        "evaluate@linear: succeeded", "collect: succeeded", "succeeded",
    ]  # fmt: skip
    assert lines[-1] == "` fetches the results."


def test_a_success_names_the_stages_of_which_kubeflow_reported_no_end(
    api: KfpApi, capsys: pytest.CaptureFixture[str]
) -> None:
    """Kubeflow reports no more tasks of a run whose record is too large."""
    api.script = [moment("SUCCEEDED", {"shards": "SUCCEEDED", "tokenizer": "RUNNING"})]
    run("--wait")
    lines, _ = changes(api, capsys)
    unseen = "collect, evaluate@knn, evaluate@linear, tokenizer"
    assert lines[2] == f"succeeded (Kubeflow has not reported the end of {unseen})"


@pytest.mark.parametrize(
    ("pods", "logs"),
    [
        ({POD: failed_pod("the volume is full")}, {}),
        ({POD: failed_pod()}, {POD: "step tokenizer\nerror: tokenizer: the volume is full\nError: exit status 1\n"}),
        (
            {},
            {
                POD: "error: tokenizer: the volume is full\nERROR: failed to reproduce 'tokenizer'\n"
                "error: tokenizer: not finished; see the reason above. Fix it and retry: the stage resumes\n"
            },
        ),
    ],
    ids=["in the pod", "in its log", "in the log that the API server has"],
)
def test_a_failed_run_ends_with_the_step_and_its_reason(
    api: KfpApi, capsys: pytest.CaptureFixture[str], pods: dict[str, Any], logs: dict[str, str]
) -> None:
    api.pods, api.logs = pods, logs
    failed = {"shards": "SUCCEEDED", "tokenizer": "FAILED", "evaluate-knn": "OMITTED", "collect": "OMITTED"}
    api.script = [moment("FAILED", failed)]
    run("--wait", status=1)
    assert changes(api, capsys)[1] == "step tokenizer failed: the volume is full"


def test_where_the_reason_can_not_be_read_the_command_and_the_page_are_printed(
    api: KfpApi, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PECO_NAMESPACE", "team")
    api.script = [moment("FAILED", {"tokenizer": "FAILED"})]
    run("--wait", status=1)
    page = f"{api.address}/#/runs/details/run-0"
    assert changes(api, capsys)[1] == f"step tokenizer failed; `kubectl -n team logs {POD} -c main` or {page} shows why"


def test_a_pod_that_failed_is_reported_before_kubeflow_ends_the_run(
    api: KfpApi, capsys: pytest.CaptureFixture[str]
) -> None:
    api.pods = {POD: failed_pod("the volume is full")}
    failing = moment("RUNNING", {"shards": "SUCCEEDED", "tokenizer": "FAILING"})
    api.script = [
        moment("RUNNING", {"tokenizer": "RUNNING"}),
        failing,
        failing,
        moment("FAILED", {"tokenizer": "FAILED"}),
    ]
    run("--wait", status=1)
    assert changes(api, capsys)[0] == [
        "tokenizer: running", "shards: succeeded", "tokenizer: its pod failed: the volume is full", "tokenizer: failed",
    ]  # fmt: skip


def test_the_tasks_of_a_run_that_has_just_failed_are_read_again(
    api: KfpApi, capsys: pytest.CaptureFixture[str]
) -> None:
    api.pods = {POD: failed_pod("the volume is full")}
    before, after = ({"shards": "SUCCEEDED", "tokenizer": state} for state in ("RUNNING", "FAILED"))
    api.script = [moment("FAILED", before), moment("FAILED", after)]
    run("--wait", status=1)
    assert changes(api, capsys)[1] == "step tokenizer failed: the volume is full"


def test_a_failed_run_of_which_kubeflow_reports_no_failed_step_names_its_page(
    api: KfpApi, capsys: pytest.CaptureFixture[str]
) -> None:
    api.script = [moment("FAILED", {"tokenizer": "RUNNING"})]
    run("--wait", status=1)
    page = f"{api.address}/#/runs/details/run-0"
    assert changes(api, capsys)[1] == f"failed, but Kubeflow does not report which step; see its page: {page}"


def test_a_terminated_run_is_reported_as_terminated(api: KfpApi, capsys: pytest.CaptureFixture[str]) -> None:
    """Kubeflow calls it failed, and so each of its steps that was running or had not begun."""
    failed = moment("FAILED", {"shards": "SUCCEEDED", "tokenizer": "FAILED"}, history="PENDING RUNNING CANCELING")
    canceling = moment("CANCELING", {"shards": "SUCCEEDED", "tokenizer": "RUNNING"}, history="PENDING RUNNING")
    api.script = [canceling, canceling, failed]
    run("--wait", status=1)
    lines, error = changes(api, capsys)
    assert lines[-2:] == ["is being terminated; waiting for its steps to end", "tokenizer: failed"]
    assert error == "was terminated; finished work is kept, and the same command submits it again"


@pytest.mark.parametrize(
    ("script", "pod", "what"),
    [
        (
            moment("FAILED", driver="FAILED"),
            pod_name("root-driver(0)", "system-dag-driver"),
            "Kubeflow's driver of the run failed, before the first step",
        ),
        (
            moment("FAILED", {"shards": "SUCCEEDED", "tokenizer": "DRIVER FAILED"}),
            pod_name("root(0).tokenizer-driver(0)", "system-container-driver"),
            "Kubeflow's driver of step tokenizer failed",
        ),
    ],
)
def test_a_failed_driver_of_kubeflow_is_reported_with_what_to_look_at(
    api: KfpApi, capsys: pytest.CaptureFixture[str], script: dict[str, Any], pod: str, what: str
) -> None:
    advice = "; check `defaultPipelineRoot` in the ConfigMap kfp-launcher, and Kubeflow's bucket and its keys"
    api.script = [script]
    run("--wait", status=1)
    page = f"{api.address}/#/runs/details/run-0"
    assert changes(api, capsys)[1] == f"{what}; `kubectl -n kubeflow logs {pod} -c main` or {page} shows why{advice}"


def test_a_pod_that_does_not_start_is_reported_with_what_it_waits_for(
    api: KfpApi, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(follow, "START_SECONDS", 0.0)
    api.pods = {POD: waiting_pod("ErrImagePull", "no such image")}
    waiting = moment("RUNNING", {"tokenizer": "PENDING"})
    api.script = [waiting, waiting, moment("SUCCEEDED", {"tokenizer": "SUCCEEDED"})]
    run("--wait")
    assert changes(api, capsys)[0][:2] == ["tokenizer: running", "tokenizer: waits: ErrImagePull: no such image"]


def test_a_pod_that_does_not_start_and_can_not_be_read_is_named(
    api: KfpApi, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(follow, "START_SECONDS", 0.0)
    waiting = moment("RUNNING", {"tokenizer": "PENDING"})
    api.script = [waiting, waiting, moment("SUCCEEDED", {"tokenizer": "SUCCEEDED"})]
    run("--wait")
    why = f"waits: its pod has not started; `kubectl -n kubeflow describe pod {POD}` shows why"
    assert changes(api, capsys)[0][1] == f"tokenizer: {why}"


def test_a_sweep_has_failed_when_one_of_its_runs_has(api: KfpApi, capsys: pytest.CaptureFixture[str]) -> None:
    api.script = [moment("FAILED", {"shards": "FAILED"}), moment("SUCCEEDED", {"shards": "SUCCEEDED"})]
    run("--wait", "--sweep", "seed=0,1", status=1)
    captured = capsys.readouterr()
    assert "seed-0: step shards failed" in captured.err and "seed-1: succeeded" in captured.out


def test_waiting_outlasts_a_lost_connection(api: KfpApi) -> None:
    api.script = [moment("RUNNING", {"shards": "RUNNING"}), moment("SUCCEEDED")]
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
    compiled: Callable[..., str],
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
