"""Imports run one way through the rooms of the package, as docs/architecture.md says."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Each room may import those before it.
ROOMS = (
    "errors", "schema", "resources", "collectives", "device", "publishing", "workfiles", "artifacts", "consistency", "config",
    "data", "perceptual", "tokenizer", "mim", "training", "downstream", "report", "stages", "cli",
)  # fmt: skip


def imported(node: ast.AST) -> Iterator[str]:
    """Modules that are imported anywhere below, but for the eyes of type checkers alone."""
    if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
        return
    if isinstance(node, ast.ImportFrom):
        yield from (f"{node.module}.{alias.name}" for alias in node.names)
    elif isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    for child in ast.iter_child_nodes(node):
        yield from imported(child)


def modules(room: str) -> list[Path]:
    single = ROOT / "peco" / f"{room}.py"
    return [single] if single.exists() else sorted((ROOT / "peco" / room).rglob("*.py"))


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_rooms_below_it(room: str) -> None:
    allowed = {f"peco.{name}" for name in ROOMS[: ROOMS.index(room) + 1]}
    for path in modules(room):
        found = {".".join(name.split(".")[:2]) for name in imported(ast.parse(path.read_text()))}
        ours = {name for name in found if name.startswith(("peco.", "pipelines"))}
        assert ours <= allowed, path


def test_every_room_is_listed() -> None:
    found = {path.stem for path in (ROOT / "peco").iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert found - {"__init__", "conf"} == set(ROOMS)


@pytest.mark.parametrize("room", ["data", "perceptual", "tokenizer", "mim", "downstream"])
def test_what_models_are_made_of_knows_nothing_of_processes(room: str) -> None:
    for path in modules(room):
        assert not [name for name in imported(ast.parse(path.read_text())) if name.startswith("torch.distributed")], (
            path
        )
