"""The code that each stage names in dvc.yaml: all that it imports, in folders of which it needs something."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

import grimp
import pytest
from test_dvc_yaml import GRAPH, STAGES

from pipelines.workflow.graph import Stage

ROOT = Path(__file__).parents[1]
IMPORTS = grimp.build_graph("peco", exclude_type_checking_imports=True, cache_dir=None)
MOST_BEYOND = 14


def file_of(module: str) -> str:
    path = PurePosixPath(*module.split("."))
    return f"{path}/__init__.py" if (ROOT / path).is_dir() else f"{path}.py"


def imported(stage: Stage) -> set[str]:
    """Files that running the stage's module imports; a module's packages are imported before it."""
    module = stage.name.module
    modules = {module, *IMPORTS.find_upstream_modules(module)}
    parts = [name.split(".") for name in modules]
    return {file_of(".".join(part[:length])) for part in parts for length in range(1, len(part) + 1)}


def named(stage: Stage) -> dict[str, set[str]]:
    """Python files by the dependency of the stage that names them."""
    code = [dep for dep in stage.deps if dep.startswith("peco")]
    return {
        dep: {path.relative_to(ROOT).as_posix() for path in (ROOT / dep).rglob("*.py")}
        if (ROOT / dep).is_dir()
        else {dep}
        for dep in code
    }


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_depends_on_all_that_it_imports(name: str) -> None:
    assert imported(GRAPH[name]) <= set().union(*named(GRAPH[name]).values())


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_imports_something_of_each_folder_that_it_depends_on(name: str) -> None:
    needed = imported(GRAPH[name])
    assert [dep for dep, files in named(GRAPH[name]).items() if not files & needed] == []


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_depends_on_few_files_that_it_does_not_import(name: str) -> None:
    beyond = sorted(set().union(*named(GRAPH[name]).values()) - imported(GRAPH[name]))
    print(f"{name}: {len(beyond)} files beyond its imports: {' '.join(beyond)}")
    assert len(beyond) <= MOST_BEYOND


@pytest.mark.parametrize("name", STAGES)
def test_no_file_is_named_twice(name: str) -> None:
    files = [file for dep in named(GRAPH[name]).values() for file in dep]
    assert len(files) == len(set(files))


@pytest.mark.parametrize("name", STAGES)
def test_folders_are_named_and_single_files_only_where_a_folder_holds_several_stages(name: str) -> None:
    single = {dep for dep in named(GRAPH[name]) if dep.endswith(".py")}
    assert single <= {
        "peco/__init__.py",
        "peco/stages/__init__.py",
        "peco/evaluate/__init__.py",
        "peco/evaluate/common.py",
        file_of(GRAPH[name].name.module),
    }
