"""dvc.yaml as a graph: stages, edges, resources.

DVC itself is slow to import and its graph is internal, while a stage's launch and a pipeline's compilation need only names, paths
and resources. So this reads the part of dvc.yaml that the project uses: plain stages, `foreach` over a list or a mapping,
`${…}` from params.yaml, `${item…}` and `${key}`. A test compares names and edges with DVC's own.
"""

from __future__ import annotations

import dataclasses
import posixpath
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import yaml

from peco.core import schema
from peco.core.errors import PecoError
from peco.core.resources import Resources
from peco.core.stage_name import StageName

_EXPRESSION = re.compile(r"(?<!\\)\$\{([^}]*)\}")
_UNSUPPORTED = ("matrix", "vars")
SCORES = "scores"  # folder of the few numbers that `dvc metrics show` prints; they are in a stage's metrics too
DISTRIBUTED = ("train",)  # kinds of resources of stages that use several processes


@dataclass(frozen=True)
class Stage:
    """One stage as DVC runs it, everything interpolated. Paths are relative to the repository's root."""

    name: StageName
    commands: tuple[str, ...]
    deps: tuple[str, ...]
    params: tuple[str, ...]  # keys of params.yaml
    outs: tuple[str, ...]  # metrics and plots too
    meta: Mapping[str, Any]  # resources by name
    kind: str = ""  # of resources in params.yaml, if `meta` names one

    @property
    def distributed(self) -> bool:
        """True if it can use several processes and nodes: if its `meta` names the resources `train`."""
        return self.kind in DISTRIBUTED

    @property
    def resources(self) -> Resources:
        """The resources in `meta`; a missing key takes its default, such as one node. Other keys are ignored.

        Raises:
            PecoError: a value is wrong.
        """
        values = {field.name: self.meta.get(field.name, field.default) for field in dataclasses.fields(Resources)}
        return cast(Resources, schema.build(Resources, values, f"dvc.yaml: {self.name}: meta"))


@dataclass(frozen=True)
class Graph:
    """The stages of dvc.yaml and their dependencies."""

    stages: Mapping[str, Stage]  # in the order of dvc.yaml
    edges: frozenset[tuple[str, str]]  # (stage, stage it depends on)

    def __getitem__(self, name: str) -> Stage:
        """The stage of this name.

        Raises:
            PecoError: there is none.
        """
        if name not in self.stages:
            raise PecoError(f"{name}: no such stage; expected one of: {', '.join(self.stages)}")
        return self.stages[name]


def load_graph(root: Path | str = ".") -> Graph:
    """Read dvc.yaml and params.yaml of the repository at `root`.

    Raises:
        PecoError: a file is missing, can't be read or is not YAML, a `${…}` names no parameter, or dvc.yaml uses a feature that is
            not supported here.
    """
    params = read_params(root)
    stages: dict[str, Stage] = {}
    for name, entry in _read(Path(root) / "dvc.yaml").get("stages", {}).items():
        for stage in _expand(name, entry, params):
            stages[stage.name] = stage
    edges = {
        (stage.name, other.name)
        for stage in stages.values()
        for other in stages.values()
        if any(overlap(dep, out) for dep in stage.deps for out in other.outs)
    }
    return Graph(stages, frozenset(edges))


def read_params(root: Path | str = ".") -> dict[str, Any]:
    """params.yaml of the repository at `root`, as it is.

    Raises:
        PecoError: it is missing, can't be read or is not a YAML mapping.
    """
    return _read(Path(root) / "params.yaml")


def lookup(values: Any, key: str) -> Any:
    """The value of a dotted key such as `seed` or `tokenizer.optim.lr`; None where it is missing."""
    for part in key.split("."):
        values = values.get(part) if isinstance(values, Mapping) else None
    return values


def leaves(values: Any, prefix: str = "") -> dict[str, Any]:
    """The values of nested mappings by their dotted keys."""
    if not isinstance(values, Mapping):
        return {prefix: values}
    return {
        key: leaf
        for name, inner in values.items()
        for key, leaf in leaves(inner, f"{prefix}.{name}" if prefix else str(name)).items()
    }


def _read(path: Path) -> dict[str, Any]:
    try:
        data = yaml.load(path.read_text(encoding="utf-8"), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except FileNotFoundError:
        raise PecoError(f"{path}: no such file; run this from the root of the repository") from None
    except OSError as error:
        raise PecoError(f"{path}: can't be read ({error.strerror}); fix that and run again") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise PecoError(f"{path}: not valid YAML: {error}") from None
    if not isinstance(data, dict):
        raise PecoError(f"{path}: expected a mapping at the top")
    return data


def _expand(name: str, entry: Mapping[str, Any], params: Mapping[str, Any]) -> Iterator[Stage]:
    """The stages of one entry: itself, or one for each item of its `foreach`."""
    for key in _UNSUPPORTED:
        if key in entry or key in entry.get("do", {}):
            raise PecoError(f"dvc.yaml: {name}: {key} is not supported here; use foreach and params.yaml")
    if "foreach" not in entry:
        yield _stage(name, entry, params)
        return
    items = _resolve(entry["foreach"], params, name)
    if isinstance(items, Mapping):
        for key, item in items.items():
            yield _stage(f"{name}@{_text(key)}", entry["do"], {**params, "key": _text(key), "item": item})
        return
    if not isinstance(items, list):
        raise PecoError(f"dvc.yaml: {name}: foreach: {items!r} is not allowed; expected a list or a mapping")
    # DVC names the stages by their items, or by number if an item is not a plain value.
    numbered = any(isinstance(item, list | dict) for item in items)
    for index, item in enumerate(items):
        yield _stage(f"{name}@{index if numbered else _text(item)}", entry["do"], {**params, "item": item})


def _stage(name: str, entry: Mapping[str, Any], scope: Mapping[str, Any]) -> Stage:
    data = _resolve({key: value for key, value in entry.items() if key != "desc"}, scope, name)
    command, folder = data.get("cmd", ()), data.get("wdir", "")
    outs = [path for key in ("outs", "metrics", "plots") for path in _keys(data.get(key, ()))]
    return Stage(
        name=StageName(name),
        commands=(command,) if isinstance(command, str) else tuple(command),
        deps=tuple(dict.fromkeys(posixpath.normpath(posixpath.join(folder, dep)) for dep in data.get("deps", ()))),
        params=tuple(dict.fromkeys(_params(data.get("params", ())))),
        outs=tuple(dict.fromkeys(posixpath.normpath(posixpath.join(folder, out)) for out in outs)),
        kind=str(data.get("meta", {}).get("resources", "")),
        meta=_meta(data.get("meta", {}), scope, name),
    )


def _meta(meta: Mapping[str, Any], scope: Mapping[str, Any], stage: str) -> dict[str, Any]:
    """`resources: train` inserts `resources.train` of params.yaml; other keys of `meta` override it."""
    own = dict(meta)
    if "resources" not in own:
        return own
    return {**_lookup(f"resources.{own.pop('resources')}", scope, stage), **own}


def _keys(entries: list[Any]) -> Iterator[str]:
    """The paths of outs; an entry is a path, or a mapping from a path to its options."""
    for entry in entries:
        yield from entry if isinstance(entry, Mapping) else (entry,)


def _params(entries: list[Any]) -> Iterator[str]:
    """Keys of params.yaml; an entry is a key, or a mapping from a file to keys (other files are ignored)."""
    for entry in entries:
        if isinstance(entry, Mapping):
            yield from entry.get("params.yaml") or ()
        else:
            yield entry


def overlap(a: str, b: str) -> bool:
    """True if two paths are the same, or one is a folder that holds the other."""
    return a == b or a.startswith(b + "/") or b.startswith(a + "/")


def _resolve(value: Any, scope: Mapping[str, Any], stage: str) -> Any:
    """Replace every `${…}`; a text that consists of one expression becomes the value itself, of any type."""
    if isinstance(value, Mapping):
        return {_resolve(key, scope, stage): _resolve(item, scope, stage) for key, item in value.items()}
    if isinstance(value, list):
        return [_resolve(item, scope, stage) for item in value]
    if not isinstance(value, str):
        return value
    if match := _EXPRESSION.fullmatch(value):
        return _lookup(match[1], scope, stage)
    return _EXPRESSION.sub(lambda match: _text(_lookup(match[1], scope, stage)), value).replace("\\${", "${")


def _lookup(expression: str, scope: Mapping[str, Any], stage: str) -> Any:
    """The value of `a.b[0].c`."""
    value: Any = scope
    for part in expression.strip().replace("[", ".").replace("]", "").split("."):
        try:
            value = value[int(part)] if isinstance(value, list) else value[part]
        except (KeyError, IndexError, TypeError, ValueError):
            raise PecoError(f"dvc.yaml: {stage}: ${{{expression}}} is not in params.yaml") from None
    return value


def _text(value: Any) -> str:
    return ("false", "true")[value] if isinstance(value, bool) else str(value)
