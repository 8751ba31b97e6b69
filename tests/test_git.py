"""The place of the project: at the top of a repository or in a folder of one, with or without a commit, or in none."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from peco.core.errors import PecoError
from pipelines import local, params, repro, submit
from pipelines.experiments.plan import take_snapshot
from pipelines.workflow import git
from pipelines.workflow.compose import compose_params, render

NONE = "no git repository here; `git init && git add -A && git commit -m PeCo` makes one of this folder"
EMPTY = "the git repository has no commit yet; `git add -A && git commit -m PeCo` makes one"


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    folder = tmp_path / "outer" / "project"
    (folder / "data").mkdir(parents=True)
    (folder / "data/scenes.yaml").write_text("x")
    (folder / "params.yaml").write_text(render(compose_params("smoke", [])))
    (folder / "dvc.yaml").write_text("stages: {}\n")
    monkeypatch.chdir(folder)
    return folder


def run(*command: str, cwd: Path) -> None:
    subprocess.run(["git", "-c", "user.name=t", "-c", "user.email=t@t", *command], cwd=cwd, check=True)


def submitted() -> None:
    submit.revision.published(None, "origin")


def compiled() -> None:
    submit.compile_pipeline(Path("pipeline.yaml"), "HEAD", [], {})


COMMANDS: dict[str, Callable[[], object]] = {
    "compare": take_snapshot,
    "pipeline-local": lambda: local._run("", "", ""),
    "pipeline-submit": submitted,
    "pipeline-compile REV=HEAD": compiled,
}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_that_needs_a_commit_says_what_to_type(project: Path, name: str) -> None:
    for expected in (NONE, EMPTY):
        with pytest.raises(PecoError) as refused:
            COMMANDS[name]()
        assert str(refused.value) == expected
        run("init", "-q", cwd=project)


@pytest.mark.parametrize(
    "main", [lambda: repro.main([]), lambda: params.main(["--data", "photos"])], ids=["repro", "params"]
)
def test_a_command_that_starts_dvc_says_what_to_type(
    project: Path, main: Callable[[], int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main() == 2
    assert capsys.readouterr().err == f"error: {NONE}\n"


@pytest.mark.parametrize("name", COMMANDS)
def test_in_a_folder_of_a_repository_only_what_runs_in_pods_is_refused(project: Path, name: str) -> None:
    run("init", "-q", cwd=project.parent)
    run("add", "-A", cwd=project.parent)
    run("commit", "-qm", "c", cwd=project.parent)
    if name == "compare":
        assert take_snapshot().commit == git.head()
        return
    with pytest.raises(PecoError, match="the project is the folder project/ of a git repository, but"):
        COMMANDS[name]()


def test_at_the_top_of_a_repository_all_is_well(project: Path) -> None:
    run("init", "-q", cwd=project)
    run("add", "-A", cwd=project)
    run("commit", "-qm", "c", cwd=project)
    git.require_top()
    assert len(git.head()) == 40
