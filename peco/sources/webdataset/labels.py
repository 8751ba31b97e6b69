"""Labels of samples: where they are, and which values are labels."""

from __future__ import annotations

import codecs
import json
import re
from collections import Counter
from collections.abc import Collection
from typing import Any

from peco.core.errors import PecoError

# Members that hold labels and nothing else. `index` and `txt` may hold them, but also a running number or a caption.
ENDINGS = ("cls", "cls.txt", "class", "class.txt", "label", "label.txt")
JSON_KEY = "label"  # in the member `json`
DAMAGED_JSON = "damaged JSON"
_LONGEST = 4096  # bytes of a member that holds only a label
_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


class LabelField:
    """The place of the labels, as `dataset.label_field` has it.

    The field is the ending of a member (`cls`, `label.txt`), or a member with JSON and a key in it (`json.category`,
    `meta.json.annotation.class`). None: the endings in ENDINGS, then JSON_KEY in `json`.
    """

    def __init__(self, field: str | None) -> None:
        self.field = field
        self.keys = [JSON_KEY]
        self.endings: tuple[str, ...] = (*ENDINGS, "json")
        if field is not None:
            parts = field.split(".")
            end = next((i + 1 for i, part in enumerate(parts) if part.lower() == "json"), len(parts))
            self.endings, self.keys = (".".join(parts[:end]).lower(),), parts[end:]

    @property
    def labels_only(self) -> tuple[str, ...]:
        """Those endings whose members certainly hold a label."""
        return self.endings if self.field is not None else ENDINGS

    def find(self, endings: Collection[str], image: str) -> list[str]:
        """The members of a sample that may hold its label, the likeliest first.

        With the image `10.30.jpg`, whose name holds dots, `10.30.cls` is one as well as `cls`.
        """
        inner = image.rpartition(".")[0]
        names = [f"{inner}.{ending}" for ending in self.endings if inner] + list(self.endings)
        return [name for name in names if name in endings]

    def read(self, ending: str, data: bytes) -> str | None:
        """The label in a member, or None for no label: empty, a negative number, or not there.

        Raises:
            NoLabel: what is there is no class.
            PecoError: it is no text; without the name of the tar.
        """
        if ending.endswith("json"):
            try:
                value = json.loads(data)
            except (ValueError, RecursionError):
                raise NoLabel(DAMAGED_JSON) from None
            return _as_label(_member_of(value, self.keys))
        if len(data) > _LONGEST:
            raise NoLabel("a long text")
        try:
            text = data.decode("utf-16" if data[:2] in _UTF16 else "utf-8-sig").strip()
        except ValueError:
            raise PecoError("expected a number or a name as UTF-8 text; dataset.labels=none reads no labels") from None
        return _as_label(_parsed(text))

    def __str__(self) -> str:
        return self.field or f"{', '.join(ENDINGS)} or json ({JSON_KEY})"


class NoLabel(Exception):
    """A value that is no class, such as a list. The argument names its kind."""


def _parsed(text: str) -> Any:
    """The value of a text that is JSON and no bare word or number; else the text itself."""
    try:
        return json.loads(text) if text[:1] in ("{", "[", '"') else text
    except (ValueError, RecursionError):
        return text


def _member_of(value: Any, keys: list[str]) -> Any:
    for key in keys:
        if isinstance(value, list) and key.isdecimal() and int(key) < len(value):
            value = value[int(key)]
        elif isinstance(value, dict):
            value = value.get(key)
        else:
            return None
    return value


def _as_label(value: Any) -> str | None:
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value == value // 1:
        value = int(value)
    if isinstance(value, float):
        raise NoLabel("a number with a fraction")
    if isinstance(value, list):
        raise NoLabel("a list")
    if isinstance(value, dict):
        raise NoLabel("an object")
    text = "" if value is None else str(value).strip()
    if re.fullmatch(r"\[.*\]|[-+]?\d+(\.\d+)?([\s,;]+[-+]?\d+(\.\d+)?)+", text, re.DOTALL):
        if match := re.fullmatch(r"\[\s*(\d+)\s*\]", text):
            return str(int(match[1]))
        raise NoLabel("a list")
    if re.fullmatch(r"[-+]?\d+\.0*", text):
        text = text.partition(".")[0]
    if re.fullmatch(r"[-+]?(\d+\.\d+|\d*\.?\d+[eE][-+]?\d+|nan|inf)", text):
        raise NoLabel("a number with a fraction")
    if not text or re.fullmatch(r"-\d+", text):
        return None
    if "\n" in text:
        raise NoLabel("several lines")
    if not text.isprintable():
        raise PecoError(f"{text[:20]!r} is no number or name as text; write it as text, or set dataset.labels=none")
    return str(int(text)) if re.fullmatch(r"\+?[0-9]{1,18}", text) else text


def json_keys(data: bytes) -> list[str]:
    """The keys of an object in JSON whose values could be labels."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return []
    if not isinstance(value, dict):
        return []
    return [str(key) for key, item in value.items() if isinstance(item, int | str) and len(str(item)) < 100]


def list_counts(counts: Counter[str], limit: int = 5) -> str:
    """The commonest items with their numbers, for messages: `txt (40), index (40)`."""
    shown = [
        f"{name} ({number})" for name, number in sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:limit]
    ]
    return ", ".join(shown) + (", …" if len(counts) > limit else "")
