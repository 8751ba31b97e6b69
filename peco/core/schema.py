"""Plain data to typed parameters and back: validation by the annotations of frozen dataclasses.

The parameters themselves are in `peco/core/config.py`. Every error is one line that names the key, the value and what is allowed.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re
import types
import typing
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from operator import attrgetter
from typing import Annotated, Any, Literal, Protocol, TypeVar, cast, runtime_checkable

from peco.core.errors import PecoError
from peco.core.parsing import shown

Group = TypeVar("Group")
_LONGEST_KEY = 100  # characters of an unknown key in a message
COMPLETE = "`make params` writes a complete params.yaml"


@dataclass(frozen=True)
class Range:
    """Closed interval of allowed numbers; `None` leaves a side open."""

    low: float | None = None
    high: float | None = None

    def __str__(self) -> str:
        if self.high is None:
            return f"at least {self.low:g}"
        return f"from {self.low:g} to {self.high:g}" if self.low is not None else f"at most {self.high:g}"


@dataclass(frozen=True)
class Pattern:
    """Allowed form of a text, as a regular expression and in words."""

    expression: str
    words: str


# Numbers as YAML 1.2 has them. DVC writes YAML 1.2, where `1e-05` is a number; PyYAML reads YAML 1.1, where it is a text.
_NUMBER = re.compile(r"[-+]?(\.\d+|\d+(\.\d*)?)([eE][-+]?\d+)?")

Count = Annotated[int, Range(1)]
Natural = Annotated[int, Range(0)]
Positive = Annotated[float, Range(1e-12)]
NonNegative = Annotated[float, Range(0)]
Fraction = Annotated[float, Range(0, 1)]


def build(kind: Any, value: object, key: str = "") -> Any:
    """Convert plain data to an annotated type.

    Args:
        kind: a dataclass, or the type of a field of one.
        value: plain data, as YAML gives it.
        key: dotted name of the value, for messages.

    Raises:
        PecoError: a key, type or value is wrong.
    """
    origin = typing.get_origin(kind)
    if dataclasses.is_dataclass(kind):
        return _build_dataclass(cast(type, kind), value, key)
    if origin is Annotated:
        base, limit = typing.get_args(kind)
        if isinstance(limit, Pattern):
            text = build(base, value, key)
            require(re.fullmatch(limit.expression, text) is not None, key, value, limit.words)
            return text
        number = build(base, value, key)
        inside = (limit.low is None or number >= limit.low) and (limit.high is None or number <= limit.high)
        require(inside, key, value, f"a number {limit}")
        return number
    if origin is types.UnionType or origin is typing.Union:
        inner = next(arm for arm in typing.get_args(kind) if arm is not type(None))
        return None if value is None else build(inner, value, key)
    if origin is Literal:
        allowed = typing.get_args(kind)
        known = any(value == a and type(value) is type(a) for a in allowed)
        require(known, key, value, "one of " + ", ".join(map(str, allowed)))
        return value
    if origin is tuple:
        return _build_tuple(typing.get_args(kind), value, key)
    if kind is float:
        if isinstance(value, str) and _NUMBER.fullmatch(value):
            value = float(value)
        require(isinstance(value, int | float) and not isinstance(value, bool), key, value, "a number")
        try:
            number = float(cast(float, value))
        except OverflowError:  # an integer of hundreds of digits
            number = math.inf
        require(math.isfinite(number), key, value, "a finite number")
        return number
    names = {int: "an integer", bool: "true or false", str: "text"}
    require(type(value) is kind, key, value, names[kind])
    require(not isinstance(value, int) or abs(value) < 2**63, key, value, "an integer below 2**63")
    return value


def _build_dataclass(kind: type, value: object, key: str) -> Any:
    if not isinstance(value, Mapping):
        raise PecoError(f"{key or 'params.yaml'}: {shown(value)} is not allowed; expected a group of parameters")
    hints = typing.get_type_hints(kind, include_extras=True)
    prefix = f"{key}." if key else ""
    for name in value:
        if name not in hints:
            short = name if len(str(name)) <= _LONGEST_KEY else f"{str(name)[:_LONGEST_KEY]}…"
            raise PecoError(f"{prefix}{short}: unknown parameter; allowed: {', '.join(hints)}")
    for name in hints:
        if name not in value:
            raise PecoError(f"{prefix}{name}: missing; {COMPLETE}")
    return kind(**{name: build(hint, value[name], prefix + name) for name, hint in hints.items()})


def _build_tuple(arms: tuple[Any, ...], value: object, key: str) -> tuple[Any, ...]:
    if not isinstance(value, list | tuple):
        raise PecoError(f"{key}: {shown(value)} is not allowed; expected a list")
    if arms[-1] is Ellipsis:
        require(len(value) > 0, key, value, "a list with at least one item")
        arms = arms[:1] * len(value)
    require(len(value) == len(arms), key, value, f"a list of {len(arms)} items")
    return tuple(build(arm, item, f"{key}[{i}]") for i, (arm, item) in enumerate(zip(arms, value, strict=True)))


def require(ok: bool, key: str, value: object, allowed: str) -> None:
    """Refuse the value of a parameter unless `ok`.

    Raises:
        PecoError: naming the key, the value and what is allowed.
    """
    if not ok:
        raise PecoError(f"{key}: {shown(value)} is not allowed; expected {allowed}")


def require_all(group: object, key: str, *rules: tuple[str, bool, str]) -> None:
    """Refuse the first value of a group that breaks its rule.

    Args:
        group: a group of parameters.
        key: its dotted name, empty for the whole config.
        rules: for each, the dotted name of a parameter within the group, True if its value is allowed, and the allowed values.

    Raises:
        PecoError: as in `require`.
    """
    for name, ok, allowed in rules:
        value = to_dict(attrgetter(name)(group))
        require(ok, f"{key}.{name}" if key else name, value, allowed)


@runtime_checkable
class Checked(Protocol):
    """A group of parameters with checks across its fields."""

    def check(self, key: str) -> None: ...


def check_groups(group: object, key: str = "", unused: Collection[str] = ()) -> None:
    """Call `check` with its dotted name on each group that has it, inner groups first, except the `unused` ones (dotted names).

    Raises:
        PecoError: naming the first wrong parameter.
    """
    for name, part in vars(group).items():
        inner = f"{key}.{name}" if key else name
        if dataclasses.is_dataclass(part) and inner not in unused:
            check_groups(part, inner, unused)
    if isinstance(group, Checked):
        group.check(key)


def to_dict(value: Any) -> Any:
    """Plain data (dicts, lists, scalars) of a config or a part of it."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_dict(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, _Restricted):
        return {name: to_dict(item) for name, item in vars(value).items() if name != "_owner"}
    return [to_dict(item) for item in value] if isinstance(value, tuple) else value


class _Restricted:
    """The declared part of a config group; reading anything else raises AttributeError."""

    def __init__(self, owner: str) -> None:
        self._owner = owner

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"{self._owner}{name}: not among the parameters this stage declares")


def restrict(config: Group, names: Iterable[str]) -> Group:
    """Leave only the parameters in `names` (dotted, `evaluate.knn`); reading another one raises AttributeError."""
    root = _Restricted("")
    for name in names:
        source: Any = config
        target: Any = root
        *groups, leaf = name.split(".")
        for depth, group in enumerate(groups):
            source = getattr(source, group)
            if group not in vars(target):
                setattr(target, group, _Restricted(".".join(groups[: depth + 1]) + "."))
            target = vars(target)[group]
        setattr(target, leaf, getattr(source, leaf))
    return cast(Group, root)


def fingerprint(value: Any) -> str:
    """Short hash of a config or a part of it, equal for equal values."""
    text = json.dumps(to_dict(value), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
