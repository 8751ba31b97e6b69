"""WebDataset tars as others write them: each kind is read right, packed or streamed."""

from __future__ import annotations

import gzip
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from webdataset_cases import (
    IN_TURN,
    KEYS,
    SHOTS,
    Members,
    images,
    packed,
    refusal,
    sample,
    samples,
    source,
    views,
    write,
)

from peco.core.environment import ALLOW_PIPE

FORK = b"\0\5\x16\7\0\2\0\0Mac OS X        " + bytes(100)


@dataclass(frozen=True)
class Case:
    """A tar, and how it is read.

    Attributes:
        members: names and contents, in order.
        classes: class of each image, by its content.
        notes: parts of the notes that the summary must have.
    """

    members: Members
    classes: dict[str, str | None]
    options: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


READ = {
    "plain": Case(samples(KEYS), IN_TURN),
    "names with ./": Case([(f"./{name}", data) for name, data in samples(KEYS)], IN_TURN),
    "names with ../": Case([(f"../{name}", data) for name, data in samples(KEYS)], IN_TURN),
    "capitals in the endings": Case(samples(KEYS, image="JPEG", where="CLS"), IN_TURN),
    "dots in folders": Case(samples(["v1.0/a", "v1.0/b"]), {"v1.0/a": "0", "v1.0/b": "1"}),
    "dots in keys": Case(
        samples(SHOTS),
        {key: str(i % 2) for i, key in enumerate(SHOTS)},
        notes=("keys of samples are the names up to the last dot",),
    ),
    "dots in keys, one image for each first part": Case(
        samples(["a 10.30", "b 11.30"]), {"a 10.30": "0", "b 11.30": "1"}
    ),
    "dots in keys, no labels": Case(
        [(f"{key}.jpg", key.encode()) for key in SHOTS],
        dict.fromkeys(SHOTS),
        notes=("keys of samples are the names up to the last dot", "no labels found in cls"),
    ),
    "dots in keys, labels in cls.txt": Case(
        samples(SHOTS, where="cls.txt"),
        {key: str(i % 2) for i, key in enumerate(SHOTS)},
        notes=("labels are read from cls.txt (12)",),
    ),
    "one prefix with a dot for all": Case(
        samples(["set.v2.a", "set.v2.b", "set.v2.c"]), {"set.v2.a": "0", "set.v2.b": "1", "set.v2.c": "0"}
    ),
    "a version beside some": Case(
        [*samples(["a", "b", "c", "d", "e"]), *sample("a.2", "1")],
        {"a": "0", "b": "1", "c": "0", "d": "1", "e": "0", "a.2": "1"},
    ),
    "an image and a mask": Case(
        views("jpg", "seg.png"),
        {f"{key} jpg": label for key, label in IN_TURN.items()},
        notes=("the image of a sample is its member jpg; not used: seg.png",),
    ),
    "two images, one chosen": Case(
        views("rgb.png", "depth.png"),
        {f"{key} rgb.png": label for key, label in IN_TURN.items()},
        options={"image_field": "rgb.png"},
    ),
    "two images, both chosen": Case(
        views("left.png", "right.png"),
        {f"{key} {side}.png": label for key, label in IN_TURN.items() for side in ("left", "right")},
        options={"image_field": "all"},
    ),
    "two images, each with a label": Case(
        samples([f"{key}.{side}" for key in KEYS for side in ("left", "right")]),
        {f"{key}.{side}": label for key in KEYS for side, label in (("left", "0"), ("right", "1"))},
    ),
    "images with another ending": Case(samples(KEYS, image="img"), IN_TURN, options={"image_field": "img"}),
    "raw photos beside JPEG": Case([*samples(KEYS), *((f"{key}.dng", b"raw") for key in KEYS)], IN_TURN),
    "images first, then labels": Case(sorted(samples(KEYS), key=lambda m: m[0][-3:], reverse=True), IN_TURN),
    "labels first": Case(sorted(samples(KEYS), key=lambda m: m[0][-3:]), IN_TURN),
    "macOS": Case([m for name, data in samples(KEYS) for m in ((f"./._{name}", FORK), (f"./{name}", data))], IN_TURN),
    "__MACOSX": Case([*samples(KEYS), *((f"__MACOSX/._{key}.jpg", FORK) for key in KEYS)], IN_TURN),
    "keys that come again": Case(
        [("a.jpg", b"1"), ("a.cls", b"0"), ("b.jpg", b"2"), ("b.cls", b"1"), ("a.jpg", b"3"), ("a.cls", b"1")],
        {"1": "0", "2": "1", "3": "1"},
        notes=("1 of 3 samples have a key that came before in their tar",),
    ),
    "cls.txt": Case(samples(KEYS, where="cls.txt"), IN_TURN, notes=("labels are read from cls.txt (4)",)),
    "label": Case(samples(KEYS, where="label"), IN_TURN, notes=("labels are read from label (4)",)),
    "txt": Case(
        samples(KEYS, where="txt"), IN_TURN, options={"label_field": "txt"}, notes=("labels are read from txt (4)",)
    ),
    "index": Case(samples(KEYS, where="index"), IN_TURN, options={"label_field": "index"}),
    "txt by default": Case(
        samples(KEYS, where="txt"),
        dict.fromkeys(KEYS),
        notes=(
            "no labels found in cls, cls.txt, class, class.txt, label, label.txt or json (label); the samples hold txt (4)",
        ),
    ),
    "json with other names": Case(
        [m for key in KEYS for m in sample(key, json.dumps({"category": {"id": IN_TURN[key]}}), where="json")],
        IN_TURN,
        options={"label_field": "json.category.id"},
    ),
    "json with other names by default": Case(
        [m for key in KEYS for m in sample(key, '{"category": "cat", "width": 3}', where="json")],
        dict.fromkeys(KEYS),
        notes=("keys in json: category (4), width (4): dataset.label_field names one",),
    ),
    "a list, an object and fractions": Case(
        [
            *sample("a", "[1, 2]"),
            *sample("b", "0.5"),
            *sample("c", '{"label": [0, 1]}', where="json"),
            *sample("d", '{"label": {"x": 1}}', where="json"),
            *sample("e", "1 0 1"),
        ],
        dict.fromkeys("abcde"),
        notes=("samples without a label, since cls holds a list (2), cls holds a number with a fraction (1)",),
    ),
    "numbers as pandas writes them": Case(
        [*sample("a", "1.0"), *sample("b", '{"label": 0.0}', where="json"), *sample("c", "[1]")],
        {"a": "1", "b": "0", "c": "1"},
    ),
    "a byte order mark": Case([*sample("a", "\ufeff0\r\n"), *sample("b", "1")], {"a": "0", "b": "1"}),
    "truth values": Case([*sample("a", '{"label": true}', where="json")], {"a": "true"}),
    "some without label": Case(
        [*sample("a", "0"), *sample("b", ""), *sample("c", "-1"), *sample("d", None)],
        {"a": "0", "b": None, "c": None, "d": None},
    ),
    "no labels wanted": Case(samples(KEYS), dict.fromkeys(KEYS), options={"labels": "none"}),
    "folders that are classes": Case(
        [("dog/1.jpg", b"1"), ("dog/2.jpg", b"2"), ("cat/1.jpg", b"3")],
        {"1": "dog", "2": "dog", "3": "cat"},
        notes=("the folders in the names are the classes",),
    ),
    "numbered folders": Case(
        [("000/1.jpg", b"1"), ("001/1.jpg", b"2")], {"1": None, "2": None}, notes=("no labels found in cls",)
    ),
    "numbered folders that are classes": Case(
        [("set/0/1.jpg", b"1"), ("set/1/1.jpg", b"2")], {"1": "0", "2": "1"}, options={"labels": "folders"}
    ),
    "numbers with gaps": Case(
        [*sample("a", "0"), *sample("b", "701")],
        {"a": "0", "b": "701"},
        notes=("labels are numbers up to 701, of which 2 occur: 702 classes",),
    ),
    "numbers that are ids": Case(
        [*sample("a", "100000"), *sample("b", "300000")],
        {"a": "100000", "b": "300000"},
        options={"class_numbers": "id"},
    ),
    "labels as JSON in cls": Case([*sample("a", '"cat"'), *sample("b", '["dog"]')], {"a": "cat", "b": "dog"}),
    "an object in cls": Case(
        [*sample("a", '{"label": 0}'), *sample("b", "[0 1 0]"), *sample("c", "two\nlines")],
        {"a": None, "b": None, "c": None},
        notes=("cls holds a list (1), cls holds an object (1), cls holds several lines (1)",),
    ),
    "UTF-16, as PowerShell writes it": Case(
        [("a.jpg", b"a"), ("a.cls", "0".encode("utf-16")), *sample("b", "1")], {"a": "0", "b": "1"}
    ),
    "damaged JSON where no label is": Case(
        [*sample("a", '{"caption": "x"}', where="json"), *sample("b", "{", where="json")],
        {"a": None, "b": None},
        notes=("json holds damaged JSON (1)",),
    ),
    "names not UTF-8": Case([("caf\udce9.jpg", b"1"), ("caf\udce9.cls", b"0")], {"1": "0"}),
    "names of webdataset's own": Case([("__meta__/x.jpg", b"-"), *samples(KEYS)], IN_TURN),
}


@pytest.mark.parametrize("packing", ["tar", "tgz", "streamed"])
@pytest.mark.parametrize("case", READ.values(), ids=READ)
def test_a_tar_is_read_right(case: Case, packing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = packed(case.members)
    path: Path | str = write(
        tmp_path / "set", {"a-000.tgz": gzip.compress(data)} if packing == "tgz" else {"a-000.tar": data}
    )
    if packing == "streamed":
        if (
            any(label and not label.isdecimal() for label in case.classes.values())
            or case.options.get("labels") == "folders"
        ):
            pytest.skip("local tars only")
        monkeypatch.setenv(ALLOW_PIPE.name, "1")
        path = f"pipe:cat {path}/a-000.tar"
        if case.options.get("class_numbers") == "id":
            assert "streamed tars need all class names" in refusal(path, **case.options)
            return
    found = source(path, **case.options)
    assert images(found) == case.classes
    for note in case.notes:
        assert [text for text in found.notes if note in text], found.notes
