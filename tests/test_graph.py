"""dvc.yaml read without DVC: the same stages and edges as DVC's own graph."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from peco.core.errors import PecoError
from peco.core.resources import Resources
from peco.core.stage_name import StageName
from pipelines.workflow.graph import Graph, load_graph

ROOT = Path(__file__).parent.parent


def graph_of(folder: Path, stages: dict[str, Any], params: dict[str, Any] | None = None) -> Graph:
    (folder / "dvc.yaml").write_text(yaml.safe_dump({"stages": stages}, sort_keys=False))
    (folder / "params.yaml").write_text(yaml.safe_dump(params or {}))
    return load_graph(folder)


def dvc_graph(folder: Path) -> tuple[set[str], set[tuple[str, str]]]:
    """Names of the stages in dvc.yaml, and edges between them, as DVC sees them."""
    from dvc.repo import Repo
    from dvc.stage import PipelineStage

    with Repo(str(folder), uninitialized=True) as repo:
        graph = repo.index.graph
        stages = {stage for stage in graph.nodes if isinstance(stage, PipelineStage)}
        return {stage.name for stage in stages}, {
            (a.name, b.name) for a, b in graph.edges if a in stages and b in stages
        }


def assert_as_dvc(folder: Path) -> None:
    graph = load_graph(folder)
    names, edges = dvc_graph(folder)
    assert (set(graph.stages), set(graph.edges)) == (names, edges)


def test_the_projects_graph_equals_dvcs() -> None:
    assert_as_dvc(ROOT)


PARAMS = {
    "names": ["x", "y"],
    "sizes": [{"n": 1}, {"n": 2}],
    "table": {"p": {"out": "o/p"}, "q": {"out": "o/q"}},
    "folder": "f",
    "on": True,
}
EXAMPLES: dict[str, dict[str, Any]] = {
    "files and folders overlap": {
        "a": {"cmd": "a", "outs": ["d/a"]},
        "b": {"cmd": "b", "outs": ["d/b", "db"], "metrics": [{"m/b.json": {"cache": False}}]},
        "c": {"cmd": ["c", "d"], "deps": ["d"], "plots": ["p"]},
        "e": {"cmd": "e", "deps": ["d/a/inner.txt", "m", "p/x.tsv"]},
        "f": {"cmd": "f", "deps": ["./db"]},
    },
    "working folders": {
        "a": {"cmd": "a", "wdir": "sub", "deps": ["../d/x"], "outs": ["o"]},
        "b": {"cmd": "b", "deps": ["in"], "outs": ["d/x"]},
        "c": {"cmd": "c", "wdir": ".", "deps": ["sub/o"], "outs": ["sub/c"]},
    },
    "list of parameters": {
        "a": {"foreach": "${names}", "do": {"cmd": "run ${item}", "outs": ["out/${item}"]}},
        "b": {"cmd": "b", "deps": ["out/x"]},
        "c": {"cmd": "c", "deps": ["out"]},
    },
    "list of groups is numbered": {
        "a": {"foreach": "${sizes}", "do": {"cmd": "run ${item.n}", "outs": ["${folder}/${item.n}"]}}
    },
    "mapping": {
        "a": {"foreach": "${table}", "do": {"cmd": "run ${key}", "outs": ["${item.out}"], "meta": {"on": "${on}"}}},
        "b": {
            "foreach": {"p": {"from": "${table.p.out}"}, "q": {"from": "${table.q.out}"}},
            "do": {"cmd": "b", "deps": ["${item.from}"]},
        },
        "c": {"cmd": "c ${on} ${names[0]}", "deps": ["o/p"]},
    },
    "numbers and switches name stages": {
        "a": {"foreach": [1, True, "z"], "do": {"cmd": "run ${item}", "outs": ["o${item}"]}}
    },
}


@pytest.mark.parametrize("stages", EXAMPLES.values(), ids=EXAMPLES)
def test_names_and_edges_equal_dvcs(tmp_path: Path, stages: dict[str, Any]) -> None:
    graph_of(tmp_path, stages, PARAMS)
    assert_as_dvc(tmp_path)


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(wanted=st.lists(st.sets(st.integers(0, 5), max_size=3), min_size=2, max_size=5))
def test_random_graphs_equal_dvcs(tmp_path_factory: pytest.TempPathFactory, wanted: list[set[int]]) -> None:
    folder = tmp_path_factory.mktemp("graph")
    stages = {
        f"s{i}": {
            "cmd": "run",
            "outs": [f"out/{i}"],
            "deps": [f"out/{j}/file" if j % 2 else f"out/{j}" for j in deps if j < i],
        }
        for i, deps in enumerate(wanted)
    }
    graph_of(folder, stages)
    assert_as_dvc(folder)


def test_commands_and_paths_are_interpolated_as_dvc_does(tmp_path: Path) -> None:
    from dvc.repo import Repo

    graph = graph_of(tmp_path, EXAMPLES["mapping"], PARAMS)
    with Repo(str(tmp_path), uninitialized=True) as repo:
        theirs = {stage.name: stage for stage in repo.index.stages}
        assert {name: stage.cmd for name, stage in theirs.items()} == {
            s.name: s.commands[0] for s in graph.stages.values()
        }
    assert graph["c"].commands == ("c true x",)


def test_meta_gives_resources_of_the_right_type(tmp_path: Path) -> None:
    train = {"nodes": 2, "processes": 4, "threads": 1, "workers": 3, "memory": "8Gi"}
    stages = {
        "a": {"cmd": "a", "meta": {"resources": "train", "gpus": 4, "nodes": "${n}", "team": "x"}},
        "b": {"cmd": "b"},
    }
    graph = graph_of(tmp_path, stages, {"n": 3, "resources": {"train": train}})
    assert graph["a"].resources == Resources(nodes=3, processes=4, threads=1, workers=3, memory="8Gi", gpus=4)
    assert graph["b"].resources == Resources()


def test_names_become_modules_roles_and_labels(tmp_path: Path) -> None:
    stage = graph_of(tmp_path, {"evaluate": {"foreach": ["knn"], "do": {"cmd": "x"}}})["evaluate@knn"]
    name = stage.name
    assert (name.module, name.role, name.label) == ("peco.evaluate.knn.stage", "evaluate_knn", "evaluate-knn")
    assert StageName("perceptual_net").module == "peco.stages.perceptual_net"


def test_params_are_the_keys_of_params_yaml(tmp_path: Path) -> None:
    stage = graph_of(
        tmp_path, {"a": {"cmd": "a", "params": ["seed", {"params.yaml": ["x.y"]}, {"other.yaml": ["z"]}]}}
    )["a"]
    assert stage.params == ("seed", "x.y")


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ({"a": {"cmd": "a", "deps": ["${no.such}"]}}, r"dvc\.yaml: a: \$\{no\.such\} is not in params\.yaml"),
        ({"a": {"matrix": {"x": [1]}, "cmd": "a"}}, "matrix is not supported"),
        ({"a": {"foreach": "${seed}", "do": {"cmd": "a"}}}, "expected a list or a mapping"),
    ],
)
def test_an_unsupported_dvc_yaml_is_one_line(tmp_path: Path, stages: dict[str, Any], message: str) -> None:
    with pytest.raises(PecoError, match=message):
        graph_of(tmp_path, stages, {"seed": 1})


def test_a_folder_in_place_of_params_yaml_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").mkdir()
    with pytest.raises(PecoError, match=r"params\.yaml: can't be read \(Is a directory\)"):
        load_graph(tmp_path)


def test_wrong_resources_and_unknown_stages_are_one_line(tmp_path: Path) -> None:
    graph = graph_of(tmp_path, {"a": {"cmd": "a", "meta": {"nodes": 0}}})
    with pytest.raises(PecoError, match=r"a: meta\.nodes: 0 is not allowed; expected a number at least 1"):
        _ = graph["a"].resources
    with pytest.raises(PecoError, match="b: no such stage; expected one of: a"):
        graph["b"]
    (tmp_path / "dvc.yaml").unlink()
    with pytest.raises(PecoError, match=r"dvc\.yaml: no such file"):
        load_graph(tmp_path)
