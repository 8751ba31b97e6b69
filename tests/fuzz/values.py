"""Mutations of plain data (JSON, YAML) and of text."""

from __future__ import annotations

import copy
import datetime
import json
from collections.abc import Callable
from random import Random
from typing import Any

import yaml

LONG = "n" * 5000
ODD_TEXTS = (
    "",
    " ",
    "\0",
    "a\nb",
    "a\tb",
    LONG,
    "../../x",
    "/",
    "-1",
    "1e400",
    "nan",
    "u\u0308",
    "\U0001f4f7",
    "\x1b[31m",
)
_INTEGERS = (0, -1, 1, 3, 255, 65536, 2**31, 2**63, 10**30, -(10**30))
ODD_FLOATS = (0.5, 1e308, float("inf"), float("-inf"), float("nan"))
ODD_NUMBERS = (*_INTEGERS, *ODD_FLOATS)
_YAML_TAILS = (
    *(
        "a: &a [*a]\n",
        "x: !!python/object:os.system {}\n",
        "? [1, 2]\n: 3\n",
        "<<: 5\n",
        "d: 2020-13-45\n",
        "---\n{}\n",
    ),
)
_XML_HEADS = (
    '<?xml version="1.0" encoding="utf-7"?>',
    '<?xml version="1.0" encoding="nothing"?>',
    '<?xml version="1.1" encoding="utf-16"?>',
    '<!DOCTYPE a [<!ENTITY b "c"><!ENTITY d "&b;&b;&b;&b;">]>',
    '<!DOCTYPE a SYSTEM "file:///etc/passwd">',
)
# Texts that `_unfold` replaces by what the writers of JSON and YAML can't express.
_DEEP, _DIGITS = "@deep@", "@digits@"
_ODD: tuple[Any, ...] = (
    *(None, True, False, [], {}, [[]], [None], {"": None}, [0, 0, 0, 0], ["a", 1], _DEEP, _DIGITS),
    *ODD_TEXTS,
    *ODD_NUMBERS,
)


def odd(rng: Random) -> Any:
    """A value that few readers expect."""
    return copy.deepcopy(rng.choice(_ODD))


def mutate_tree(tree: Any, rng: Random) -> Any:
    """Change one place of plain data: the value, its key, or the list that it is in."""
    tree = copy.deepcopy(tree)
    places = list(_places(tree))
    if not places:
        return odd(rng)
    parent, key = rng.choice(places)
    value = parent[key]
    change = rng.randrange(10)
    if change < 4:
        parent[key] = odd(rng)
    elif change == 4:
        del parent[key]
    elif change == 5 and isinstance(parent, dict):
        parent[rng.choice([str(key).upper(), f"{key} ", *ODD_TEXTS])] = parent.pop(key)
    elif change == 6:
        parent[key] = _other_type(value, rng)
    elif change == 7 and isinstance(parent, list):
        parent[key:key] = [value] * rng.choice([1, 2, 300])
    elif change == 8:
        other, place = rng.choice(places)
        parent[key] = copy.deepcopy(other[place])
    elif isinstance(value, int | float) and not isinstance(value, bool):
        parent[key] = rng.choice([value + 1, value - 1, -value, value * 10**6, value / 3, float(value), value * 0])
    elif isinstance(value, str):
        parent[key] = mutate_text(value, rng)
    else:
        parent[key] = [value]
    return tree


def _places(tree: Any) -> list[tuple[Any, Any]]:
    """Container and key of each value."""
    found: list[tuple[Any, Any]] = []
    keys = list(tree) if isinstance(tree, dict) else range(len(tree)) if isinstance(tree, list) else []
    for key in keys:
        found += [(tree, key), *_places(tree[key])]
    return found


def _other_type(value: Any, rng: Random) -> Any:
    if isinstance(value, dict):
        return rng.choice([list(value), list(value.values()), str(value)])
    if isinstance(value, list):
        return rng.choice([{str(i): item for i, item in enumerate(value)}, str(value), value[:1] and value[0]])
    return rng.choice([str(value), [value], {"value": value}])


def json_mutant(data: bytes, rng: Random) -> bytes:
    if rng.random() < 0.15:
        return text_mutant(data, rng)
    text = json.dumps(mutate_tree(json.loads(data), rng))
    if rng.random() < 0.1 and (first := text.find('"')) >= 0 and text.startswith("{"):
        end = text.find(":", first)
        text = "{" + text[first:end] + ": " + rng.choice(["null", "[]", "1e999"]) + ", " + text[first:]
    return _unfold(text, rng)


def jsonl_mutant(data: bytes, rng: Random) -> bytes:
    lines = data.splitlines()
    if not lines or rng.random() < 0.2:
        return text_mutant(data, rng)
    i = rng.randrange(len(lines))
    lines[i] = json_mutant(lines[i], rng).replace(b"\n", b" ")
    return b"\n".join(lines) + b"\n"


def yaml_mutant(data: bytes, rng: Random) -> bytes:
    if rng.random() < 0.2:
        return text_mutant(data, rng)
    tree = mutate_tree(yaml.safe_load(data), rng)
    if rng.random() < 0.05 and isinstance(tree, dict):
        tree[rng.choice([1, None, 2.5, datetime.date(2020, 1, 1), True])] = odd(rng)
    text = yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)
    return _unfold(text + (rng.choice(_YAML_TAILS) if rng.random() < 0.1 else ""), rng)


def _unfold(text: str, rng: Random) -> bytes:
    depth = rng.choice([50, 2000, 100_000])
    text = text.replace(f'"{_DEEP}"', "[" * depth + "]" * depth).replace(f"'{_DEEP}'", "[" * depth + "]" * depth)
    digits = "9" * rng.choice([20, 400, 5000])
    text = text.replace(f'"{_DIGITS}"', digits).replace(f"'{_DIGITS}'", digits)
    return text.encode("utf-8", "surrogatepass")


def mutate_text(text: str, rng: Random) -> str:
    """Change a few letters, a word or a line."""
    change = rng.randrange(8)
    lines = text.split("\n")
    i = rng.randrange(len(lines))
    if change == 0:
        del lines[i]
    elif change == 1:
        lines.insert(i, rng.choice([lines[rng.randrange(len(lines))], *ODD_TEXTS]))
    elif change in (2, 3):
        words = lines[i].split(" ")
        words[rng.randrange(len(words))] = rng.choice([*ODD_TEXTS, *map(str, ODD_NUMBERS)])
        lines[i] = " ".join(words)
    elif change == 4:
        at = rng.randint(0, len(lines[i]))
        lines[i] = (
            lines[i][:at]
            + rng.choice(['"', "'", ",", "\t", ":", "{", "[", "\\", "\r", "%", "#", "\0", "é"])
            + lines[i][at:]
        )
    elif change == 5:
        lines[i] = lines[i][: rng.randint(0, len(lines[i]))]
    elif change == 6:
        lines[i] += rng.choice([" 1", ",1", "\t1", " " + LONG, "x" * 200_000])
    else:
        rng.shuffle(lines)
    return "\n".join(lines)


def text_mutant(data: bytes, rng: Random) -> bytes:
    """As `mutate_text`, also with other encodings and line endings."""
    text = mutate_text(data.decode("utf-8", "replace"), rng)
    encode: Callable[[str], bytes] = rng.choice(
        [
            *[lambda t: t.encode("utf-8", "surrogatepass")] * 6,
            lambda t: t.encode("utf-8-sig", "replace"),
            lambda t: t.encode("utf-16", "replace"),
            lambda t: t.encode("latin-1", "replace") + b"\xfc\xe9",
            lambda t: t.replace("\n", "\r\n").encode("utf-8", "replace"),
            lambda t: t.replace("\n", "\r").encode("utf-8", "replace"),
        ]
    )
    return encode(text)


def xml_mutant(data: bytes, rng: Random) -> bytes:
    text = data.decode("utf-8", "replace")
    tags = [i for i, letter in enumerate(text) if letter == "<" and text[i + 1 : i + 2].isalpha()]
    if not tags or rng.random() < 0.2:
        return text_mutant(data, rng)
    start = rng.choice(tags)
    end = text.find(">", start) + 1
    name = text[start + 1 : end - 1]
    closing = text.find(f"</{name}>", end)
    change = rng.randrange(6)
    if change < 2 and closing > 0:
        value = rng.choice([*map(str, ODD_NUMBERS), "", "x" * 5000, "&amp;", "&unknown;", "<a/>"])
        text = text[:end] + value + text[closing:]
    elif change == 2 and closing > 0:
        text = text[:start] + text[closing + len(name) + 3 :]
    elif change == 3 and closing > 0:
        text = text[:closing] + f"</{name}>" + text[start : closing + len(name) + 3] + text[closing + len(name) + 3 :]
    elif change == 4:
        depth = rng.choice([100, 5000])
        text = text[:start] + "<d>" * depth + "</d>" * depth + text[start:]
    else:
        text = rng.choice(_XML_HEADS) + text
    return text.encode("utf-8", "replace")
