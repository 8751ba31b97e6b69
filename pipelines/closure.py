"""Code dependencies of the stages: the import closure of each stage's module.

    python -m pipelines.closure --check    says what dvc.yaml lacks or has too much of (status 1)
    python -m pipelines.closure --write    puts it right, comments kept

A module's closure is every file of this repository that importing it can run, found in the syntax trees: its imports at any depth,
those inside functions too, and the `__init__.py` of each package on the way. What only type checkers import is left out, and so is
what a package's `__getattr__` imports on demand, unless a name is taken from that package.
"""

from __future__ import annotations

import argparse
import ast
import posixpath
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from peco.errors import PecoError
from pipelines.graph import Stage, load_graph

SLOTS = 8  # code dependencies of a `foreach` are listed in multiples of it


def closure(module: str, root: Path | str = ".") -> set[Path]:
    """Files, relative to `root`, that importing `module` (dotted) can run; only what lies below `root`.

    Raises:
        PecoError: there is no such module, or a file is not valid Python.
    """
    root = Path(root)
    if _file(module, root) is None:
        raise PecoError(f"{module}: no such module below {root.resolve()}")
    found: set[Path] = set()
    # A module, and whether names are taken from it that it may import on demand.
    pending = [(module, True)]
    visited: set[tuple[str, bool]] = set()
    while pending:
        name, demanded = pending.pop()
        path = _file(name, root)
        if path is None or (name, demanded) in visited:
            continue
        visited.add((name, demanded))
        found.add(path.relative_to(root))
        if "." in name:
            pending.append((name.rpartition(".")[0], False))
        pending.extend(_imports(name, path, root, demanded=demanded))
    return found


def _file(module: str, root: Path) -> Path | None:
    """The source of a module or package of the repository, None for any other."""
    base = root.joinpath(*module.split("."))
    return next((path for path in (base / "__init__.py", base.with_name(base.name + ".py")) if path.is_file()), None)


def _imports(module: str, path: Path, root: Path, *, demanded: bool) -> Iterator[tuple[str, bool]]:
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (SyntaxError, UnicodeDecodeError) as error:
        raise PecoError(f"{path}: not valid Python: {error}") from None
    is_package = path.name == "__init__.py"
    for node in _walk(tree, skip_getattr=is_package and not demanded):
        if isinstance(node, ast.Import):
            yield from ((alias.name, False) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            # One dot is the package itself, each further one its parent.
            parents = module.split(".")[: None if is_package and node.level == 1 else (is_package - node.level)]
            base = ".".join((parents if node.level else []) + ([node.module] if node.module else []))
            submodules = [_file(f"{base}.{alias.name}", root) is not None for alias in node.names]
            yield base, not all(submodules)
            yield from ((f"{base}.{alias.name}", False) for alias in node.names)


def _walk(node: ast.AST, *, skip_getattr: bool) -> Iterator[ast.AST]:
    """All nodes but those below `if TYPE_CHECKING:` and, if asked, below the module's own `__getattr__`."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and _is_type_checking(child.test):
            for other in child.orelse:
                yield other
                yield from _walk(other, skip_getattr=False)
        elif not (skip_getattr and isinstance(child, ast.FunctionDef) and child.name == "__getattr__"):
            yield child
            yield from _walk(child, skip_getattr=False)


def _is_type_checking(test: ast.expr) -> bool:
    return (isinstance(test, ast.Name) and test.id == "TYPE_CHECKING") or (
        isinstance(test, ast.Attribute) and test.attr == "TYPE_CHECKING"
    )


def differences(stage: Stage, root: Path | str = ".") -> tuple[list[str], list[str]]:
    """What the stage's deps lack of its closure, and what code they name beyond it. A folder stands for all its .py files.

    Raises:
        PecoError: the stage has no module, or a file is not valid Python.
    """
    root = Path(root)
    needed = _needed(stage, root)
    named = {name for dep in stage.deps for name in _code(dep, root)}
    return sorted(needed - named), sorted(named - needed)


def write(root: Path | str = ".") -> list[str]:
    """Put the code deps in dvc.yaml right and return the names of the stages that changed.

    Stages of a `foreach` share their list of deps. What all of them import stands there; what is left goes to the list `code` of
    each item, which `do` names entry by entry, `${item.code[0]}` and so on: DVC can't insert a list. Shorter ones are filled up
    with their last entry, since a path that is named twice counts once.
    """
    from ruamel.yaml import YAML

    root = Path(root)
    path = root / "dvc.yaml"
    yaml = YAML()
    yaml.preserve_quotes = True
    yaml.width = 140
    yaml.indent(mapping=2, sequence=4, offset=2)
    document: Any = yaml.load(path)
    changed: list[str] = []
    stages = load_graph(root).stages
    wrong = [stage for stage in stages.values() if any(differences(stage, root))]
    for name in dict.fromkeys(stage.name.partition("@")[0] for stage in wrong if stage.generated):
        family = {key: stage for key, stage in stages.items() if key.startswith(f"{name}@")}
        _write_family(document["stages"][name], family, root)
        changed += family
    for stage in wrong:
        if stage.generated:
            continue
        changed.append(stage.name)
        needed = _needed(stage, root)
        deps = document["stages"][stage.name].setdefault("deps", [])
        named: set[str] = set()
        for index, dep in reversed(list(enumerate(stage.deps))):
            if (code := _code(dep, root)) <= needed:
                named |= code
            else:
                del deps[index]
        deps.extend(sorted(needed - named))
    if changed:
        yaml.dump(document, path)
    return changed


def _write_family(entry: Any, family: Mapping[str, Stage], root: Path) -> None:
    """Put the code deps of the stages of one `foreach` right."""
    needed = {name: _needed(stage, root) for name, stage in family.items()}
    shared = set.intersection(*needed.values())
    own = {name: _folded(code - shared, root) for name, code in needed.items()}
    # DVC's run-cache counts repetitions, so that one more file of one stage would have all the others run again: there is room.
    slots = -(-max(map(len, own.values())) // SLOTS) * SLOTS
    deps = entry["do"]["deps"]
    plain = [dep for dep in deps if "item.code[" not in dep and ("${" in dep or not _code(dep, root))]
    deps[:] = [*plain, *(f"${{item.code[{slot}]}}" for slot in range(slots)), *sorted(shared)]
    for name, code in own.items():
        item = entry["foreach"][name.partition("@")[2]]
        item["code"] = _on_one_line([*code, *code[-1:] * (slots - len(code))])


def _on_one_line(items: list[str]) -> Any:
    """A YAML sequence in brackets."""
    from ruamel.yaml.comments import CommentedSeq

    sequence = CommentedSeq(items)
    sequence.fa.set_flow_style()
    return sequence


def _folded(code: set[str], root: Path) -> list[str]:
    """The files, those of a whole package by its folder's name."""
    found = set(code)
    for package in {posixpath.dirname(name) for name in code}:
        if (files := _code(package, root)) <= code:
            found = (found - files) | {package}
    return sorted(found)


def _needed(stage: Stage, root: Path) -> set[str]:
    return {path.as_posix() for path in closure(stage.module, root)}


def _code(dep: str, root: Path) -> set[str]:
    """The Python files that a dep stands for: none unless it lies in one of the repository's packages."""
    if not (root / dep.split("/")[0] / "__init__.py").is_file():
        return set()
    if not (root / dep).is_dir():
        return {dep}
    return {path.relative_to(root).as_posix() for path in (root / dep).rglob("*.py")}


def main(argv: Sequence[str] | None = None) -> int:
    """Check or update dvc.yaml in the current directory; status 1 where code deps are wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m pipelines.closure", description="Code dependencies of the stages in dvc.yaml."
    )
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--check", action="store_true", help="say what is wrong (the default)")
    mode.add_argument("--write", action="store_true", help="put them right")
    arguments = parser.parse_args(argv)
    try:
        if arguments.write:
            for name in write():
                print(f"{name}: updated")
        wrong = 0
        for stage in load_graph().stages.values():
            missing, superfluous = differences(stage)
            parts = [
                f"{word} {', '.join(names)}"
                for word, names in (("missing", missing), ("not imported", superfluous))
                if names
            ]
            if parts:
                wrong += 1
                print(f"error: dvc.yaml: {stage.name}: {'; '.join(parts)}", file=sys.stderr)
    except PecoError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
