"""`make pipeline-submit`: requests to Kubeflow.

Kubeflow is a server on this machine that checks each request against the published API (tests/kfp_api.py).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from kfp_answers import moment
from kfp_api import KfpApi
from kfp_contract import DOCUMENT
from kfp_project import GRAPH, Project, between_requests, contract, run

from pipelines.kfp import revision, step
from pipelines.kfp.parameters import Parameters
from pipelines.workflow.git import without_secrets


def parameters_of(run: dict[str, Any]) -> Parameters:
    return Parameters(**run["runtime_config"]["parameters"])


def params_of(run: dict[str, Any], project: Project) -> str:
    """The params.yaml that the run's steps make."""
    parameters = parameters_of(run)
    return parameters.params(project.git("show", f"{parameters.revision}:params.yaml") + "\n")


def spec_of(run: dict[str, Any], kubeflow: KfpApi) -> dict[str, Any]:
    """The pipeline of the version that the run refers to."""
    wanted = run["pipeline_version_reference"]
    [version] = [item for item in kubeflow.versions if item["pipeline_version_id"] == wanted["pipeline_version_id"]]
    spec: dict[str, Any] = version["pipeline_spec"]["pipeline_spec"]
    return spec


def test_the_server_of_these_tests_refuses_requests_that_the_published_api_does_not_have() -> None:
    checks = contract()
    if checks is None:
        pytest.skip(f"PECO_TEST_SCHEMAS names no folder with {DOCUMENT}")
    operation = checks.operation("POST", "/apis/v2beta1/recurringruns")
    assert operation is not None
    good = {"display_name": "a", "max_concurrency": "1", "trigger": {"periodic_schedule": {"interval_second": "60"}}}
    assert not checks.faults(operation, {}, good)
    for bad in (
        {**good, "unknown": 1},
        {**good, "created_at": "2026-01-01T00:00:00Z"},  # only the server sets it
        {**good, "max_concurrency": 1},  # a long integer is a string
        {**good, "trigger": {"periodic_schedule": {"interval": "60"}}},
        {**good, "mode": "ON"},
        {"display_name": "a"},
        None,
    ):
        assert checks.faults(operation, {}, bad)
    assert checks.faults(operation, {"experiment": ["a"]}, good)
    assert checks.operation("PUT", "/apis/v2beta1/recurringruns") is None
    assert checks.operation("GET", "/apis/v1beta1/runs") is None


# Requests


def test_a_run_of_the_commit_is_started_and_its_address_printed(
    project: Project, kubeflow: KfpApi, capsys: pytest.CaptureFixture[str]
) -> None:
    run()
    head = project.git("rev-parse", "HEAD")
    assert [experiment["display_name"] for experiment in kubeflow.experiments] == ["peco"]
    [made] = kubeflow.runs
    name = f"run-{head[:7]}"
    assert capsys.readouterr().out == f"{name}: {kubeflow.address}/#/runs/details/{made['run_id']}\n"
    assert made["display_name"] == name and head in made["description"]
    assert made["runtime_config"]["parameters"] == {
        "repository": "../peco.git", "revision": head, "preset": "smoke", "seed": 0, "overrides": "", "experiment": name,
    }  # fmt: skip
    assert params_of(made, project) == (project.path / "params.yaml").read_text()
    tasks = spec_of(made, kubeflow)["root"]["dag"]["tasks"]
    assert set(tasks) == {"shards", "tokenizer", "evaluate-knn", "evaluate-linear", "collect"}
    assert set(kubeflow.tokens) == {None}


def test_the_pipeline_is_registered_with_a_version_per_commit(
    project: Project, kubeflow: KfpApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = project.git("rev-parse", "--short=7", "HEAD")
    run()
    run("--set", "seed=1")
    run("--schedule", "6h")
    [pipeline], [version] = kubeflow.pipelines, kubeflow.versions
    assert pipeline["name"] == "peco" and version["name"].startswith(f"{first}-")
    reference = {"pipeline_id": pipeline["pipeline_id"], "pipeline_version_id": version["pipeline_version_id"]}
    assert all(made["pipeline_version_reference"] == reference for made in kubeflow.runs + kubeflow.schedules)
    second = project.commit(**{"dvc.yaml": GRAPH.replace("linear", "finetune")})[:7]
    run()
    assert len(kubeflow.pipelines) == 1 and kubeflow.versions[-1]["name"].startswith(f"{second}-")
    assert len(kubeflow.versions) == 2


def test_a_run_started_in_kubeflow_has_the_parameters_of_the_commit(project: Project, kubeflow: KfpApi) -> None:
    run("--set", "seed=3", "report.images=2")
    head = project.git("rev-parse", "HEAD")
    inputs = spec_of(kubeflow.runs[0], kubeflow)["root"]["inputDefinitions"]["parameters"]
    defaults = {name: each.get("defaultValue") for name, each in inputs.items()}
    assert defaults == {
        "repository": "../peco.git", "revision": head, "preset": "smoke", "seed": 0, "overrides": "",
        "experiment": f"run-{head[:7]}",
    }  # fmt: skip


def test_a_version_whose_answer_was_lost_is_found_and_not_registered_twice(kubeflow: KfpApi) -> None:
    kubeflow.lost = 3  # of the experiment, the pipeline and its version
    run()
    assert len(kubeflow.pipelines) == len(kubeflow.versions) == len(kubeflow.runs) == 1


def test_the_token_of_the_user_goes_with_every_request(kubeflow: KfpApi, monkeypatch: pytest.MonkeyPatch) -> None:
    kubeflow.token = "secret"
    monkeypatch.setenv("KFP_TOKEN", "secret")
    run()
    assert len(kubeflow.runs) == 1 and set(kubeflow.tokens) == {"Bearer secret"}


def test_in_a_pod_the_token_is_read_from_its_file_each_time(
    kubeflow: KfpApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "token"
    monkeypatch.setenv("KF_PIPELINES_SA_TOKEN_PATH", str(file))
    kubeflow.token = "old"
    file.write_text("old\n")
    kubeflow.script = [moment("RUNNING"), moment("SUCCEEDED")]

    def renew() -> None:
        kubeflow.token = "new"
        file.write_text("new")

    between_requests(monkeypatch, renew)
    run("--wait")
    assert kubeflow.tokens[0] == "Bearer old" and kubeflow.tokens[-1] == "Bearer new"


def test_a_run_goes_to_the_namespace_and_the_service_account_that_are_named(
    kubeflow: KfpApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    kubeflow.namespaces = {"team"}
    monkeypatch.setenv("KFP_NAMESPACE", "team")
    monkeypatch.setenv("KFP_SERVICE_ACCOUNT", "peco-step")
    run()
    assert kubeflow.experiments[0]["namespace"] == "team" and kubeflow.runs[0]["service_account"] == "peco-step"


def test_settings_change_params_as_dvc_does_and_name_the_run(project: Project, kubeflow: KfpApi) -> None:
    run("--set", "tokenizer.perceptual.weight=0", "pretrain.optim.epochs=3")
    [made] = kubeflow.runs
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


def test_a_name_that_is_too_long_or_has_other_characters_ends_in_a_hash(project: Project, kubeflow: KfpApi) -> None:
    run(
        "--set",
        "perceptual_net.timm.model='vit m9/x'",
        *(f"{part}.optim.lr=0.000125" for part in ("tokenizer", "pretrain")),
    )
    name = kubeflow.runs[0]["display_name"]
    assert len(name) <= 100
    project.git("check-ref-format", f"refs/exps/ab/cd/{name}")
    step.check_name(name)


def test_a_sweep_is_a_run_for_each_point(project: Project, kubeflow: KfpApi) -> None:
    run("--set", "report.images=2", "--sweep", "tokenizer.perceptual.weight=0,1", "seed=0,1,2")
    values = [yaml.safe_load(params_of(made, project)) for made in kubeflow.runs]
    points = {(value["tokenizer"]["perceptual"]["weight"], value["seed"]) for value in values}
    assert points == {(weight, seed) for weight in (0, 1) for seed in (0, 1, 2)}
    assert all(value["report"]["images"] == 2 for value in values)
    names = {made["display_name"] for made in kubeflow.runs}
    assert len(names) == 6 and all("seed-" in name and "weight-" in name for name in names)
    assert len(kubeflow.experiments) == 1
    assert sorted(parameters_of(made).seed for made in kubeflow.runs) == [0, 0, 1, 1, 2, 2]
    assert all("seed" not in parameters_of(made).overrides for made in kubeflow.runs)


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
    kubeflow: KfpApi, capsys: pytest.CaptureFixture[str], text: str, trigger: dict[str, Any], printed: str
) -> None:
    run("--schedule", text)
    [made] = kubeflow.schedules
    assert made["trigger"] == trigger and made["mode"] == "ENABLE" and made["no_catchup"] is True
    assert made["runtime_config"]["parameters"]["experiment"] == made["display_name"]
    address = f"{kubeflow.address}/#/recurringrun/details/{made['recurring_run_id']}"
    assert capsys.readouterr().out == f"{made['display_name']}, {printed}: {address}\n"
    run("--schedule", text)
    assert "is already scheduled" in capsys.readouterr().out and len(kubeflow.schedules) == 1
    assert not kubeflow.runs


def test_another_commit_is_submitted_with_its_own_files(project: Project, kubeflow: KfpApi) -> None:
    first = project.git("rev-parse", "HEAD")
    before = (project.path / "params.yaml").read_text()
    project.commit(
        **{"params.yaml": before.replace("seed: 0", "seed: 5", 1), "dvc.yaml": GRAPH.replace("linear", "finetune")}
    )
    project.write("params.yaml", "uncommitted changes do not matter")
    run("--rev", first[:10])
    [made] = kubeflow.runs
    assert params_of(made, project) == before and parameters_of(made).revision == first
    tasks = spec_of(made, kubeflow)["root"]["dag"]["tasks"]
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
    kubeflow: KfpApi, capsys: pytest.CaptureFixture[str]
) -> None:
    run()
    run("--set", "seed=0")  # its value in params.yaml
    assert len(kubeflow.runs) == 1
    assert f"was already submitted: {kubeflow.address}/#/runs/details/run-0" in capsys.readouterr().out
    kubeflow.runs[0]["state"] = "SUCCEEDED"
    run()
    assert len(kubeflow.runs) == 1 and "has already succeeded" in capsys.readouterr().out
    run("--set", "seed=1")
    assert len(kubeflow.runs) == 2


def test_a_run_that_failed_or_was_archived_is_submitted_again(kubeflow: KfpApi) -> None:
    run()
    kubeflow.runs[0]["state"] = "FAILED"
    run()
    kubeflow.runs[1]["storage_state"] = "ARCHIVED"
    run()
    assert len(kubeflow.runs) == 3


def test_force_submits_again_under_a_new_name(project: Project, kubeflow: KfpApi) -> None:
    run()
    run("--force")
    first, second = (made["display_name"] for made in kubeflow.runs)
    assert second == f"{first}-2"
    assert kubeflow.runs[1]["runtime_config"]["parameters"]["experiment"] == second


def test_a_name_of_an_experiment_on_the_remote_is_not_used_again(project: Project, kubeflow: KfpApi) -> None:
    head = project.git("rev-parse", "HEAD")
    project.git("push", "-q", "origin", f"HEAD:refs/exps/{head[:2]}/{head[2:]}/run-{head[:7]}")
    run()
    assert kubeflow.runs[0]["display_name"] == f"run-{head[:7]}-2"


def test_a_run_whose_answer_was_lost_is_found_and_not_started_twice(
    kubeflow: KfpApi, capsys: pytest.CaptureFixture[str]
) -> None:
    run()
    kubeflow.lost = 1
    run("--set", "seed=1")
    assert len(kubeflow.runs) == 2
    assert f"{kubeflow.address}/#/runs/details/run-1" in capsys.readouterr().out
