"""The import closure, and the code dependencies in dvc.yaml that must equal it."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from peco.errors import PecoError
from pipelines import closure as subject
from pipelines.closure import closure, differences, write
from pipelines.graph import load_graph


@pytest.fixture
def package(tmp_path: Path):
    """Writes files of a package and returns the root: `package({"pkg/a.py": "import pkg.b"})`."""

    def build(files: dict[str, str]) -> Path:
        for name, text in files.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text)
            for folder in (tmp_path / name).relative_to(tmp_path).parents[:-1]:
                (tmp_path / folder / "__init__.py").touch()
        return tmp_path

    return build


def names(root: Path, module: str) -> set[str]:
    """The closure without the empty __init__.py files."""
    return {path.as_posix() for path in closure(module, root) if path.name != "__init__.py"}


@pytest.mark.parametrize(
    "statement",
    [
        "import pkg.sub.b",
        "import pkg.sub.b as other",
        "from pkg.sub import b",
        "from pkg.sub.b import value",
        "from .sub import b",
        "from .sub.b import value",
        "def f():\n    from pkg.sub import b",
        "class C:\n    def f(self):\n        import pkg.sub.b",
        "try:\n    import pkg.sub.b\nexcept ImportError:\n    pass",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import pkg.c\nelse:\n    import pkg.sub.b",
    ],
)
def test_every_form_of_import_is_followed(package, statement: str) -> None:
    root = package({"pkg/a.py": statement, "pkg/sub/b.py": "value = 1", "pkg/c.py": ""})
    assert closure("pkg.a", root) == {
        Path(p) for p in ("pkg/__init__.py", "pkg/a.py", "pkg/sub/__init__.py", "pkg/sub/b.py")
    }


def test_imports_are_followed_through_modules_and_cycles(package) -> None:
    root = package(
        {"pkg/a.py": "import pkg.b", "pkg/b.py": "from . import c", "pkg/c.py": "from pkg import a", "pkg/d.py": ""}
    )
    assert names(root, "pkg.a") == {"pkg/a.py", "pkg/b.py", "pkg/c.py"}


def test_relative_imports_climb(package) -> None:
    root = package({"pkg/sub/a.py": "from ..other import b", "pkg/other/b.py": "", "pkg/sub/b.py": ""})
    assert names(root, "pkg.sub.a") == {"pkg/sub/a.py", "pkg/other/b.py"}


def test_what_a_package_runs_on_import_belongs_to_its_modules(package) -> None:
    root = package({"pkg/__init__.py": "from .setup import x", "pkg/setup.py": "x = 1", "pkg/a.py": ""})
    assert names(root, "pkg.a") == {"pkg/a.py", "pkg/setup.py"}


def test_what_a_package_imports_on_demand_belongs_to_those_who_demand_it(package) -> None:
    lazy = "def __getattr__(name):\n    from pkg import heavy\n    return heavy.x"
    root = package(
        {
            "pkg/__init__.py": lazy,
            "pkg/heavy.py": "x = 1",
            "pkg/a.py": "import pkg.b",
            "pkg/b.py": "",
            "pkg/c.py": "from pkg import x",
        }
    )
    assert names(root, "pkg.a") == {"pkg/a.py", "pkg/b.py"}
    assert names(root, "pkg.c") == {"pkg/c.py", "pkg/heavy.py"}


def test_type_checking_and_foreign_imports_are_left_out(package) -> None:
    root = package(
        {"pkg/a.py": "import os, numpy\nimport typing as t\nif t.TYPE_CHECKING:\n    from pkg import b", "pkg/b.py": ""}
    )
    assert names(root, "pkg.a") == {"pkg/a.py"}


def test_an_unknown_module_and_broken_code_are_one_line(package) -> None:
    root = package({"pkg/a.py": "def"})
    with pytest.raises(PecoError, match=r"pkg\.b: no such module"):
        closure("pkg.b", root)
    with pytest.raises(PecoError, match="not valid Python"):
        closure("pkg.a", root)


DVC = """\
# a comment on top
stages:
  one:
    cmd: run one
    deps:
      - ${data}  # the images
      - peco/unused.py  # goes
      - peco/stages/one.py
    outs: [out]
  many:
    foreach:
      a: {input: images, code: [peco/stages/many_a.py, peco/rooms]}
      b: {input: words, code: [peco/stages/many_b.py, peco/used.py]}
    do:
      cmd: run ${key}
      deps:
        - ${item.input}
        - ${item.code[0]}
        - ${item.code[1]}
        - peco/__init__.py
        - peco/stages/__init__.py
"""


@pytest.fixture
def project(package) -> Path:
    return package(
        {
            "peco/used.py": "",
            "peco/unused.py": "",
            "peco/rooms/x.py": "",
            "peco/rooms/y.py": "",
            "peco/stages/one.py": "import peco.used",
            "peco/stages/many_a.py": "from peco.rooms import x, y",
            "peco/stages/many_b.py": "from peco import used\nimport peco.rooms.x",
            "params.yaml": "data: images\n",
            "dvc.yaml": DVC,
        }
    )


def test_differences_name_what_is_missing_and_what_is_too_much(project: Path) -> None:
    graph = load_graph(project)
    assert differences(graph["one"], project) == (
        ["peco/__init__.py", "peco/stages/__init__.py", "peco/used.py"],
        ["peco/unused.py"],
    )
    assert differences(graph["many@a"], project) == ([], [])  # the folder stands for all its files
    assert differences(graph["many@b"], project) == (["peco/rooms/__init__.py", "peco/rooms/x.py"], [])


def test_write_puts_plain_stages_right_and_keeps_the_rest(project: Path) -> None:
    (project / "peco/stages/many_b.py").write_text("from peco import used")
    assert write(project) == ["one"]
    assert (project / "dvc.yaml").read_text() == DVC.replace("      - peco/unused.py  # goes\n", "").replace(
        "      - peco/stages/one.py\n",
        "      - peco/stages/one.py\n      - peco/__init__.py\n      - peco/stages/__init__.py\n      - peco/used.py\n",
    )
    assert differences(load_graph(project)["one"], project) == ([], [])
    assert write(project) == []


def test_write_shares_out_the_code_of_a_family(project: Path) -> None:
    """What all import stands in `do`, the rest in each one's list; shorter lists repeat their last entry."""
    assert write(project) == ["many@a", "many@b", "one"]
    graph = load_graph(project)
    assert not any(any(differences(stage, project)) for stage in graph.stages.values())
    many = yaml.safe_load((project / "dvc.yaml").read_text())["stages"]["many"]
    lists = [item["code"] for item in many["foreach"].values()]
    assert [sorted(set(code)) for code in lists] == [
        ["peco/rooms/y.py", "peco/stages/many_a.py"],
        ["peco/stages/many_b.py", "peco/used.py"],
    ]
    assert {len(code) for code in lists} == {subject.SLOTS}, "one more file of one stage leaves the others' lists alone"
    assert many["do"]["deps"][:3] == ["${item.input}", "${item.code[0]}", "${item.code[1]}"]
    assert {"peco/rooms/__init__.py", "peco/rooms/x.py"} <= set(many["do"]["deps"])
    (project / "peco/stages/many_b.py").write_text("import peco.rooms.x")
    assert write(project) == ["many@a", "many@b"]
    assert graph["many@a"].deps[0] == "images"
    assert not any(any(differences(stage, project)) for stage in load_graph(project).stages.values())


def test_check_says_one_line_a_stage(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(project)
    assert subject.main(["--check"]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(":")[2].strip() for line in lines] == ["one", "many@b"]
    assert subject.main(["--write"]) == 0
    assert subject.main(["--check"]) == 0
