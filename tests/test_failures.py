"""A failed evaluation takes neither the others nor the report with it, and the next run tries it again. With DVC itself."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines import launch, repro
from pipelines.experiments import single
from pipelines.experiments.results import finished
from pipelines.jobs.logs import Line, Screen
from pipelines.workflow import failures
from pipelines.workflow.compose import compose_params, render
from pipelines.workflow.git import git
from pipelines.workflow.graph import load_graph

ROOT = Path(__file__).parents[1]
# Records that it ran; fails as the launcher does while `bad/NAME` exists; the report shows what the evaluations left.
STAGE = """\
import json, os, sys
from pathlib import Path
from pipelines.workflow import failures
from pipelines.workflow.graph import load_graph
name = sys.argv[1]
with open(os.environ["RAN"], "a") as file:
    file.write(name + "\\n")
if Path("bad", name).exists():
    if name.startswith("evaluate@"):
        failures.record(load_graph()[name], f"error: {name}: broken; fix it")
    sys.exit(2)
if name == "train":
    Path("model").write_text("m")
elif name == "report":
    texts = [path.read_text() for path in sorted(Path("metrics/evaluate").glob("*.json"))]
    Path("report.txt").write_text("\\n".join(texts))
else:
    task = name.partition("@")[2]
    Path("metrics/evaluate").mkdir(parents=True, exist_ok=True)
    Path(f"metrics/evaluate/{task}.json").write_text(json.dumps({"score": 1}))
    Path("scores").mkdir(exist_ok=True)
    Path(f"scores/{task}.json").write_text(json.dumps({task: 1}))
    Path(f"metrics/pictures/{task}").mkdir(parents=True)
"""
GRAPH = """\
stages:
  train:
    cmd: {python} stage.py train
    deps: [stage.py]
    outs: [model]
  evaluate:
    foreach: [a, b, c]
    do:
      cmd: {python} stage.py evaluate@${{item}}
      deps: [model]
      outs: ["metrics/evaluate/${{item}}.json", "metrics/pictures/${{item}}"]
      metrics: ["scores/${{item}}.json"]
  report:
    cmd: {python} stage.py report
    deps: [metrics/evaluate/a.json, metrics/evaluate/b.json, metrics/evaluate/c.json, metrics/pictures/a, metrics/pictures/b]
    outs: [report.txt]
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("DVC_SITE_CACHE_DIR", str(tmp_path / ".site"))
    monkeypatch.setenv("RAN", str(tmp_path / "ran"))
    for role in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{role}_NAME", "t")
        monkeypatch.setenv(f"GIT_{role}_EMAIL", "t@t")
    monkeypatch.delenv("PECO_WORK", raising=False)
    (tmp_path / "params.yaml").write_text(render(compose_params("smoke", [])))
    (tmp_path / "stage.py").write_text(STAGE)
    (tmp_path / "dvc.yaml").write_text(GRAPH.format(python=sys.executable))
    (tmp_path / "data").mkdir()
    (tmp_path / "data/scenes.yaml").write_text("x")
    (tmp_path / "bad").mkdir()
    for command in (["git", "init", "-q"], [sys.executable, "-m", "dvc", "init", "-q"]):
        subprocess.run(command, check=True)
    return tmp_path


def ran(project: Path) -> list[str]:
    """The stages that ran since the last call."""
    path = project / "ran"
    names = path.read_text().split() if path.exists() else []
    path.unlink(missing_ok=True)
    return names


def test_the_others_and_the_report_are_made_and_the_next_run_tries_the_failed_ones_again(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (project / "bad/evaluate@a").touch()
    (project / "bad/evaluate@c").touch()
    assert repro.main([]) == 255
    assert ran(project) == ["train", "evaluate@a", "evaluate@b", "evaluate@c", "report"]
    captured = capsys.readouterr()
    assert "error: evaluate@a: broken; fix it\nerror: evaluate@c: broken; fix it\n" in captured.err
    assert "it shows evaluate@a, evaluate@c as failed" in captured.out
    assert json.loads((project / "metrics/evaluate/b.json").read_text()) == {"score": 1}
    shown = (project / "report.txt").read_text().splitlines()
    assert shown[:3] == ["{", '  "failed": "broken; fix it"', "}"]

    (project / "bad/evaluate@a").unlink()
    assert repro.main([]) == 255
    assert ran(project) == ["evaluate@a", "evaluate@c", "report"]
    assert "it shows evaluate@c as failed" in capsys.readouterr().out

    assert repro.main([]) == 255  # nothing but the failed one, and the same report
    assert ran(project) == ["evaluate@c"]

    (project / "bad/evaluate@c").unlink()
    assert repro.main([]) == 0
    assert ran(project) == ["evaluate@c", "report"]
    assert "failed" not in (project / "report.txt").read_text()
    assert repro.main([]) == 0
    assert ran(project) == []


def test_a_failure_elsewhere_ends_the_run_at_once(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (project / "bad/evaluate@a").touch()
    assert repro.main([]) == 255
    ran(project)
    (project / "bad/train").touch()
    (project / "stage.py").write_text(STAGE + "# changed\n")
    assert repro.main([]) == 255
    assert ran(project) == ["train"]
    assert "evaluate@a" not in capsys.readouterr().err.split("Not finished")[-1]


def test_with_arguments_dvc_alone_decides(project: Path) -> None:
    (project / "bad/evaluate@a").touch()
    assert repro.main(["evaluate@a", "evaluate@b"]) == 255
    assert ran(project) == ["train", "evaluate@a"]


def test_plain_dvc_tries_a_failed_evaluation_again(project: Path) -> None:
    dvc = [sys.executable, "-m", "dvc", "repro", "-q"]
    (project / "bad/evaluate@b").touch()
    assert subprocess.run([*dvc, "--keep-going"], check=False).returncode == 255
    assert sorted(ran(project)) == ["evaluate@a", "evaluate@b", "evaluate@c", "train"]
    assert subprocess.run([*dvc, "--single-item", "report"], check=False).returncode == 0
    assert '"failed": "broken; fix it"' in (project / "report.txt").read_text()
    ran(project)
    (project / "bad/evaluate@b").unlink()
    assert subprocess.run(dvc, check=False).returncode == 0
    assert ran(project) == ["evaluate@b", "report"]


def test_an_experiment_computes_its_other_evaluations_for_the_next_try(project: Path) -> None:
    def commit() -> str:
        subprocess.run(["git", "add", "-A"], check=True)
        subprocess.run(["git", "commit", "-qm", "state"], check=True)
        return git("rev-parse", "HEAD").strip()

    (project / "bad/evaluate@a").touch()
    (project / ".gitignore").write_text("/ran\n/.site\n")
    first = commit()
    assert single.main(["try", first, first, "seed=1"]) == 255
    assert sorted(ran(project)) == ["evaluate@a", "evaluate@b", "evaluate@c", "train"]
    assert not finished(first)  # without one of its evaluations it is no result to compare
    (project / "bad/evaluate@a").unlink()
    second = commit()
    assert single.main(["try", second, second, "seed=1"]) == 0
    assert ran(project) == ["evaluate@a", "report"]
    assert finished(second) == {"try"}


def test_results_of_an_earlier_run_are_not_overwritten_and_no_path_of_this_machine_is_recorded(project: Path) -> None:
    stage = load_graph()["evaluate@a"]
    failures.record(stage, "error: evaluate@a: its process was ended by SIGKILL; its logs are in /home/me/.work/logs/1")
    assert failures.failures(load_graph(), project) == {"evaluate@a": "its process was ended by SIGKILL"}
    assert (project / "metrics/pictures/a").is_dir()
    (project / "metrics/evaluate/a.json").write_text('{"score": 1}')
    failures.record(stage, "error: again")
    assert failures.failures(load_graph(), project) == {}


@pytest.mark.parametrize(("status", "recorded"), [(2, True), (1, True), (0, False), (130, False), (143, False)])
def test_the_launcher_records_failures_of_evaluations_but_no_stops(
    project: Path, monkeypatch: pytest.MonkeyPatch, status: int, recorded: bool
) -> None:
    def run(stage: object, screen: Screen) -> int:
        if status in (1, 2):
            screen.show([Line("Traceback", True, None), Line("error: evaluate@knn: no labels", True, None)])
        return status

    monkeypatch.setattr(launch.local, "run", run)
    dvc_yaml = (ROOT / "dvc.yaml").read_text()
    (project / "dvc.yaml").write_text(dvc_yaml)
    assert launch.main(["evaluate@knn"]) == status
    expected = {"evaluate@knn": "no labels"} if recorded else {}
    assert failures.failures(load_graph(), project) == expected
    assert launch.main(["tokenizer"]) == status
    assert not (project / "artifacts/tokenizer").exists()


def test_the_reason_is_the_first_error_or_else_the_last_line_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    screen = Screen()
    assert screen.reason == ""
    screen.show([Line("a warning", True, None), Line("output", False, None), Line("\rprogress", True, None)])
    assert screen.reason == "a warning"
    screen.show([Line("ValueError: no", True, None)])
    assert screen.reason == "ValueError: no"
    screen.note("error: knn: first\n  more")
    screen.show([Line("error: knn: second", True, "0"), Line("later", True, None)])
    assert screen.reason == "error: knn: first"
    capsys.readouterr()
