"""WebDataset tars as others write them: each kind is read right, or refused in one line that names what to do."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from peco.core.environment import ALLOW_PIPE
from peco.core.errors import PecoError
from peco.sources.base import RawSample
from peco.sources.webdataset.kind import tar_kind
from peco.sources.webdataset.source import WebDatasetSource
from peco.sources.webdataset.tars import find_tars

Members = Sequence[tuple[str, bytes]]
FORK = b"\0\5\x16\7\0\2\0\0Mac OS X        " + bytes(100)


def packed(members: Members, **options: Any) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", **options) as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


def write(folder: Path, tars: dict[str, bytes | Members]) -> Path:
    for name, content in tars.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content if isinstance(content, bytes) else packed(content))
    return folder


def source(path: Path | str, **options: Any) -> WebDatasetSource:
    arguments: dict[str, Any] = {"val_fraction": 0.0, "seed": 0, "work": Path(path).parent / "work", **options}
    return WebDatasetSource(str(path), **arguments)


def images(found: WebDatasetSource) -> dict[str, str | None]:
    """Class of each image by its content."""
    return {s.encoded.decode(): None if s.label < 0 else found.classes[s.label] for s in read(found)}


def read(found: WebDatasetSource) -> list[RawSample]:
    samples = list(found.samples())
    assert len({sample.name for sample in samples}) == len(samples)
    return samples


def refusal(path: Path | str, **options: Any) -> str:
    with pytest.raises(PecoError) as error:
        list(source(path, **options).samples())
    assert "\n" not in str(error.value)
    return str(error.value)


def sample(key: str, label: str | None, image: str = "jpg", where: str = "cls") -> list[tuple[str, bytes]]:
    """An image, which holds its key, and its label."""
    return [(f"{key}.{image}", key.encode()), *([(f"{key}.{where}", label.encode())] if label is not None else [])]


def samples(keys: Sequence[str], *, image: str = "jpg", where: str = "cls") -> list[tuple[str, bytes]]:
    """Samples of the classes 0 and 1 in turn."""
    return [member for i, key in enumerate(keys) for member in sample(key, str(i % 2), image, where)]


KEYS = ("0000", "0001", "0002", "0003")
IN_TURN = {key: str(i % 2) for i, key in enumerate(KEYS)}
SHOTS = [f"2023-01-0{day} 1{hour}.{minute}0.22" for day in (5, 6) for hour in (0, 1) for minute in range(3)]
BOTH = "0000.depth.png and 0000.rgb.png are images of one sample"


def views(first: str, second: str, label: str | None = "cls") -> Members:
    """Two images of a sample each, with one label for both."""
    return [
        member
        for i, key in enumerate(KEYS)
        for member in [
            (f"{key}.{first}", f"{key} {first}".encode()),
            (f"{key}.{second}", f"{key} {second}".encode()),
            *([(f"{key}.{label}", str(i % 2).encode())] if label else []),
        ]
    ]


# Kind, members of one tar, parameters, class of each image, notes that the summary must have.
READ: list[tuple[str, Members, dict[str, Any], dict[str, str | None], tuple[str, ...]]] = [
    ("plain", samples(KEYS), {}, IN_TURN, ()),
    ("names with ./", [(f"./{name}", data) for name, data in samples(KEYS)], {}, IN_TURN, ()),
    ("names with ../", [(f"../{name}", data) for name, data in samples(KEYS)], {}, IN_TURN, ()),
    ("capitals in the endings", samples(KEYS, image="JPEG", where="CLS"), {}, IN_TURN, ()),
    ("dots in folders", samples(["v1.0/a", "v1.0/b"]), {}, {"v1.0/a": "0", "v1.0/b": "1"}, ()),
    (
        "dots in keys",
        samples(SHOTS),
        {},
        {key: str(i % 2) for i, key in enumerate(SHOTS)},
        ("keys of samples are the names up to the last dot",),
    ),
    (
        "dots in keys, one image for each first part",
        samples(["a 10.30", "b 11.30"]),
        {},
        {"a 10.30": "0", "b 11.30": "1"},
        (),
    ),
    (
        "dots in keys, no labels",
        [(f"{key}.jpg", key.encode()) for key in SHOTS],
        {},
        dict.fromkeys(SHOTS),
        ("keys of samples are the names up to the last dot", "no labels found in cls"),
    ),
    (
        "dots in keys, labels in cls.txt",
        samples(SHOTS, where="cls.txt"),
        {},
        {key: str(i % 2) for i, key in enumerate(SHOTS)},
        ("labels are read from cls.txt (12)",),
    ),
    (
        "one prefix with a dot for all",
        samples(["set.v2.a", "set.v2.b", "set.v2.c"]),
        {},
        {"set.v2.a": "0", "set.v2.b": "1", "set.v2.c": "0"},
        (),
    ),
    (
        "a version beside some",
        [*samples(["a", "b", "c", "d", "e"]), *sample("a.2", "1")],
        {},
        {"a": "0", "b": "1", "c": "0", "d": "1", "e": "0", "a.2": "1"},
        (),
    ),
    (
        "an image and a mask",
        views("jpg", "seg.png"),
        {},
        {f"{key} jpg": label for key, label in IN_TURN.items()},
        ("the image of a sample is its member jpg; not used: seg.png",),
    ),
    (
        "two images, one chosen",
        views("rgb.png", "depth.png"),
        {"image_field": "rgb.png"},
        {f"{key} rgb.png": label for key, label in IN_TURN.items()},
        (),
    ),
    (
        "two images, both chosen",
        views("left.png", "right.png"),
        {"image_field": "all"},
        {f"{key} {side}.png": label for key, label in IN_TURN.items() for side in ("left", "right")},
        (),
    ),
    (
        "two images, each with a label",
        samples([f"{key}.{side}" for key in KEYS for side in ("left", "right")]),
        {},
        {f"{key}.{side}": label for key in KEYS for side, label in (("left", "0"), ("right", "1"))},
        (),
    ),
    (
        "images with another ending",
        samples(KEYS, image="img"),
        {"image_field": "img"},
        IN_TURN,
        (),
    ),
    (
        "raw photos beside JPEG",
        [*samples(KEYS), *((f"{key}.dng", b"raw") for key in KEYS)],
        {},
        IN_TURN,
        (),
    ),
    ("images first, then labels", sorted(samples(KEYS), key=lambda m: m[0][-3:], reverse=True), {}, IN_TURN, ()),
    ("labels first", sorted(samples(KEYS), key=lambda m: m[0][-3:]), {}, IN_TURN, ()),
    (
        "macOS",
        [m for name, data in samples(KEYS) for m in ((f"./._{name}", FORK), (f"./{name}", data))],
        {},
        IN_TURN,
        (),
    ),
    ("__MACOSX", [*samples(KEYS), *((f"__MACOSX/._{key}.jpg", FORK) for key in KEYS)], {}, IN_TURN, ()),
    (
        "keys that come again",
        [("a.jpg", b"1"), ("a.cls", b"0"), ("b.jpg", b"2"), ("b.cls", b"1"), ("a.jpg", b"3"), ("a.cls", b"1")],
        {},
        {"1": "0", "2": "1", "3": "1"},
        ("1 of 3 samples have a key that came before in their tar",),
    ),
    ("cls.txt", samples(KEYS, where="cls.txt"), {}, IN_TURN, ("labels are read from cls.txt (4)",)),
    ("label", samples(KEYS, where="label"), {}, IN_TURN, ("labels are read from label (4)",)),
    ("txt", samples(KEYS, where="txt"), {"label_field": "txt"}, IN_TURN, ("labels are read from txt (4)",)),
    ("index", samples(KEYS, where="index"), {"label_field": "index"}, IN_TURN, ()),
    (
        "txt by default",
        samples(KEYS, where="txt"),
        {},
        dict.fromkeys(KEYS),
        (
            "no labels found in cls, cls.txt, class, class.txt, label, label.txt or json (label); the samples hold txt (4)",
        ),
    ),
    (
        "json with other names",
        [m for key in KEYS for m in sample(key, json.dumps({"category": {"id": IN_TURN[key]}}), where="json")],
        {"label_field": "json.category.id"},
        IN_TURN,
        (),
    ),
    (
        "json with other names by default",
        [m for key in KEYS for m in sample(key, '{"category": "cat", "width": 3}', where="json")],
        {},
        dict.fromkeys(KEYS),
        ("keys in json: category (4), width (4): dataset.label_field names one",),
    ),
    (
        "a list, an object and fractions",
        [
            *sample("a", "[1, 2]"),
            *sample("b", "0.5"),
            *sample("c", '{"label": [0, 1]}', where="json"),
            *sample("d", '{"label": {"x": 1}}', where="json"),
            *sample("e", "1 0 1"),
        ],
        {},
        dict.fromkeys("abcde"),
        ("samples without a label, since cls holds a list (2), cls holds a number with a fraction (1)",),
    ),
    (
        "numbers as pandas writes them",
        [*sample("a", "1.0"), *sample("b", '{"label": 0.0}', where="json"), *sample("c", "[1]")],
        {},
        {"a": "1", "b": "0", "c": "1"},
        (),
    ),
    ("a byte order mark", [*sample("a", "\ufeff0\r\n"), *sample("b", "1")], {}, {"a": "0", "b": "1"}, ()),
    ("truth values", [*sample("a", '{"label": true}', where="json")], {}, {"a": "true"}, ()),
    (
        "some without label",
        [*sample("a", "0"), *sample("b", ""), *sample("c", "-1"), *sample("d", None)],
        {},
        {"a": "0", "b": None, "c": None, "d": None},
        (),
    ),
    ("no labels wanted", samples(KEYS), {"labels": "none"}, dict.fromkeys(KEYS), ()),
    (
        "folders that are classes",
        [("dog/1.jpg", b"1"), ("dog/2.jpg", b"2"), ("cat/1.jpg", b"3")],
        {},
        {"1": "dog", "2": "dog", "3": "cat"},
        ("the folders in the names are the classes",),
    ),
    (
        "numbered folders",
        [("000/1.jpg", b"1"), ("001/1.jpg", b"2")],
        {},
        {"1": None, "2": None},
        ("no labels found in cls",),
    ),
    (
        "numbered folders that are classes",
        [("set/0/1.jpg", b"1"), ("set/1/1.jpg", b"2")],
        {"labels": "folders"},
        {"1": "0", "2": "1"},
        (),
    ),
    (
        "numbers with gaps",
        [*sample("a", "0"), *sample("b", "701")],
        {},
        {"a": "0", "b": "701"},
        ("labels are numbers up to 701, of which 2 occur: 702 classes",),
    ),
    (
        "numbers that are ids",
        [*sample("a", "100000"), *sample("b", "300000")],
        {"class_numbers": "id"},
        {"a": "100000", "b": "300000"},
        (),
    ),
    ("labels as JSON in cls", [*sample("a", '"cat"'), *sample("b", '["dog"]')], {}, {"a": "cat", "b": "dog"}, ()),
    (
        "an object in cls",
        [*sample("a", '{"label": 0}'), *sample("b", "[0 1 0]"), *sample("c", "two\nlines")],
        {},
        {"a": None, "b": None, "c": None},
        ("cls holds a list (1), cls holds an object (1), cls holds several lines (1)",),
    ),
    (
        "UTF-16, as PowerShell writes it",
        [("a.jpg", b"a"), ("a.cls", "0".encode("utf-16")), *sample("b", "1")],
        {},
        {"a": "0", "b": "1"},
        (),
    ),
    (
        "damaged JSON where no label is",
        [*sample("a", '{"caption": "x"}', where="json"), *sample("b", "{", where="json")],
        {},
        {"a": None, "b": None},
        ("json holds damaged JSON (1)",),
    ),
    ("names not UTF-8", [("caf\udce9.jpg", b"1"), ("caf\udce9.cls", b"0")], {}, {"1": "0"}, ()),
    ("names of webdataset's own", [("__meta__/x.jpg", b"-"), *samples(KEYS)], {}, IN_TURN, ()),
]


@pytest.mark.parametrize("packing", ["tar", "tgz", "streamed"])
@pytest.mark.parametrize(
    ("members", "options", "expected", "notes"), [row[1:] for row in READ], ids=[row[0] for row in READ]
)
def test_a_tar_is_read_right(
    members: Members,
    options: dict[str, Any],
    expected: dict[str, str | None],
    notes: tuple[str, ...],
    packing: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = packed(members)
    path = write(tmp_path / "set", {"a-000.tgz": gzip.compress(data)} if packing == "tgz" else {"a-000.tar": data})
    if packing == "streamed":
        classes = sorted({label for label in expected.values() if label})
        if (
            any(not label.isdecimal() for label in classes)
            or options.get("labels") == "folders"
            or "ids" in str(options)
        ):
            pytest.skip("local tars only")
        monkeypatch.setenv(ALLOW_PIPE.name, "1")
        path = f"pipe:cat {path}/a-000.tar"  # type: ignore[assignment]
    if packing == "streamed" and options.get("class_numbers") == "id":
        assert "streamed tars need all class names" in refusal(path, **options)
        return
    found = source(path, **options)
    assert images(found) == expected
    for note in notes:
        assert [text for text in found.notes if note in text], found.notes


# Kind, tars, parameters, the message.
CHOOSE = "choose by dataset.image_field: depth.png, rgb.png, or all"
REFUSED: list[tuple[str, dict[str, bytes | Members], dict[str, Any], str]] = [
    ("two images with names", {"a.tar": views("rgb.png", "depth.png")}, {}, f"{BOTH}; {CHOOSE}"),
    ("two images without label", {"a.tar": views("rgb.png", "depth.png", None)}, {}, f"{BOTH}; {CHOOSE}"),
    ("photo and map", {"a.tar": views("jpg", "png")}, {}, "0000.jpg and 0000.png are images of one sample; choose by"),
    (
        "one label for many images",
        {"a.tar": [("a.x.jpg", b"1"), ("a.y.jpg", b"2"), ("a.cls", b"0"), *samples(KEYS)]},
        {},
        "a.cls and a.y.jpg belong to one key, and neither the first nor the last dot",
    ),
    (
        "no image",
        {"a.tar": samples(KEYS, image="img")},
        {},
        "no image in the 1 tar(s); their members end in cls (4), img (4)",
    ),
    (
        "no member of this name",
        {"a.tar": samples(KEYS)},
        {"label_field": "lbl"},
        "no labels found in lbl (dataset.label_field)",
    ),
    (
        "damaged JSON among labels",
        {"a.tar": [*sample("a", "{", where="json"), *sample("b", '{"label": 1}', where="json")]},
        {},
        "a.tar/a.json is damaged JSON, and labels are read from there",
    ),
    (
        "a label of bytes",
        {"a.tar": [("a.jpg", b"1"), ("a.cls", (1).to_bytes(8, "little"))]},
        {},
        "is no number or name as text; write it as text, or set dataset.labels=none",
    ),
    (
        "another archive beside tars",
        {"a.tar": samples(KEYS), "b.zip": b"PK"},
        {},
        "b.zip: beside tars, and not read; write it as .tar or .tar.gz, or move it away",
    ),
    (
        "a label not UTF-8",
        {"a.tar": [("a.jpg", b"1"), ("a.cls", b"\xff\xfe\xe9")]},
        {},
        "the label of a can't be read (a.cls)",
    ),
    (
        "ids",
        {"a.tar": [*sample("a", "100000"), *sample("b", "300000")]},
        {},
        "label 300000 is not a class number, since only 2 numbers up to it occur; choose by dataset.class_numbers: id, each number "
        "that occurs is a class; index, all 300001 numbers are classes",
    ),
    (
        "a number far too large",
        {"a.tar": sample("a", "99999999")},
        {"class_numbers": "index"},
        "99999999 is not a class number",
    ),
    (
        "splits of some",
        {"train-0.tar": samples(KEYS), "b.tar": samples(KEYS)},
        {},
        "b.tar names no split, but others do",
    ),
    (
        "two splits",
        {"train-test.tar": samples(KEYS), "x.tar": samples(KEYS)},
        {},
        "train-test.tar names two splits (test and train)",
    ),
    (
        "no train",
        {"val/0.tar": samples(KEYS), "test/0.tar": samples(KEYS)},
        {},
        "there are tars for test and val, but none for train",
    ),
    (
        "tars without a class",
        {"0.tar": samples(KEYS), "1.tar": samples(KEYS)},
        {"labels": "tars"},
        "its name gives no class",
    ),
    (
        "images without a class",
        {"a.tar": [("a.jpg", b"1"), ("x/b.jpg", b"2")]},
        {"labels": "folders"},
        "a.jpg lies in no folder",
    ),
    (
        "two class files",
        {"x/a.tar": [], "y/b.tar": [], "x/classes.txt": b"a\nb", "y/classes.txt": b"b\na"},
        {},
        "differs from",
    ),
    ("a class file not UTF-8", {"a.tar": samples(KEYS), "classes.txt": b"caf\xe9\nb"}, {}, "classes.txt: is not UTF-8"),
    (
        "an empty line of a class file",
        {"a.tar": samples(KEYS), "classes.txt": b"a\n\nb\n"},
        {},
        "classes.txt: line 2 is empty",
    ),
    ("equal names of classes", {"a.tar": samples(KEYS), "classes.txt": b"a\na\n"}, {}, "empty or not all different"),
    ("too few class names", {"a.tar": samples(KEYS), "classes.txt": b"a\n"}, {}, "label 1 is not among the 1 classes"),
    (
        "names or positions",
        {"a.tar": samples(KEYS), "classes.txt": b"1\n0\n"},
        {},
        "label 0 may be the class 0 or the one at position 0; choose by dataset.class_numbers: id (the class) or index",
    ),
]


@pytest.mark.parametrize(("tars", "options", "expected"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED])
def test_what_could_be_read_in_two_ways_is_refused_before_the_first_image(
    tars: dict[str, bytes | Members], options: dict[str, Any], expected: str, tmp_path: Path
) -> None:
    write(tmp_path / "set", tars)
    with pytest.raises(PecoError) as error:
        source(tmp_path / "set", **options)
    assert expected in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("names", "splits"),
    [
        (["train/0", "valid/0"], ["train", "val"]),
        (["Training/part/0", "validation/part/0"], ["train", "val"]),
        (["set_train-000", "set_dev-000"], ["train", "val"]),
        (["train2017-0", "val2017-0"], ["train", "val"]),
        (["ImageNetTrain-0", "ImageNetVal-0"], ["train", "val"]),
        (["train/0", "valid/0", "test/0"], ["train", "val", None]),
        (["train-0", "test-0"], ["train", "val"]),
        (["test-set-train-0", "test-set-val-0"], ["train", "val"]),
        (["valley-000", "valley-001"], ["train", "train"]),
        (["trains-0", "trains-1"], ["train", "train"]),
        (["val/valley-000", "train/valley-000"], ["val", "train"]),
    ],
)
def test_splits_follow_from_words_in_the_path_or_name_of_a_tar(
    names: list[str], splits: list[str | None], tmp_path: Path
) -> None:
    found = source(
        write(tmp_path / "set", {f"{name}.tar": [("x.jpg", name.encode()), ("x.cls", b"0")] for name in names})
    )
    split = {s.encoded.decode(): s.split for s in read(found)}
    assert [split.get(name) for name in names] == splits
    unused = [(files.reason, files.by_rule, len(files.names)) for files in found.ignored]
    assert unused == ([("tar of the unused split test", True, 1)] if None in splits else [])


def test_the_name_of_the_folder_that_holds_all_tars_is_no_split(tmp_path: Path) -> None:
    found = source(write(tmp_path / "test", {"0.tar": samples(["a"]), "1.tar": samples(["b"])}))
    assert {s.split for s in read(found)} == {"train"}


def test_splits_in_the_names_of_members_count_if_tars_name_none(tmp_path: Path) -> None:
    members = [*samples(["train/a", "train/b", "val/c", "test/d"]), ("e.jpg", b"e")]
    found = source(write(tmp_path / "set", {"all.tar": members}))
    assert {s.encoded.decode(): s.split for s in read(found)} == {
        "train/a": "train",
        "train/b": "train",
        "val/c": "val",
    }
    assert [(f.reason, f.by_rule, f.names) for f in found.ignored] == [
        ("in the unused split test", True, ["all.tar/test/d"]),
        ("outside the splits", False, ["all.tar/e"]),
    ]


def test_a_test_split_without_labels_is_no_val_split(tmp_path: Path) -> None:
    keys = [f"{i:03}" for i in range(60)]
    tars = {"train.tar": samples(keys), "test.tar": [(f"t{key}.jpg", b"t" + key.encode()) for key in keys]}
    found = source(write(tmp_path / "set", tars), val_fraction=0.5)
    split = {s.encoded.decode(): s.split for s in read(found)}
    assert set(split) == set(keys) and set(split.values()) == {"train", "val"}
    assert found.notes == ["test has no labels, so val is a part of train"]
    assert [(f.reason, f.by_rule, len(f.names)) for f in found.ignored] == [("in the unused split test", True, 60)]


@pytest.mark.parametrize(
    ("tars", "options", "classes"),
    [
        (["dog", "cat"], {}, ["dog", "cat"]),
        (["n01440764", "n01443537"], {}, ["n01440764", "n01443537"]),
        (["train/dog", "val/dog", "train/cat"], {}, ["dog", "dog", "cat"]),
        (["train-dog", "val-dog", "train-cat"], {}, ["dog", "dog", "cat"]),
        (["dog/000", "cat/000"], {}, ["dog", "cat"]),
        (["dog-000", "dog-001", "cat-000"], {"labels": "tars"}, ["dog", "dog", "cat"]),
        (["dog-000", "dog-001", "cat-000"], {}, [None, None, None]),
        (["dog", "cat"], {"labels": "none"}, [None, None]),
        (["shard0", "shard1"], {}, [None, None]),
        (["000", "001"], {}, [None, None]),
        (["train", "val"], {}, [None, None]),
    ],
)
def test_one_tar_a_class(tars: list[str], options: dict[str, Any], classes: list[str | None], tmp_path: Path) -> None:
    found = source(write(tmp_path / "set", {f"{name}.tar": [("1.jpg", name.encode())] for name in tars}), **options)
    assert images(found) == dict(zip(tars, classes, strict=True))
    said = [note for note in found.notes if "the names of the tars are the classes" in note]
    assert bool(said) == (classes[0] is not None and not options)


@pytest.mark.parametrize(
    ("text", "labels", "options", "expected"),
    [
        ("ant\nbee\n", "01", {}, ["ant", "bee"]),
        ("\ufeffant\r\nbee\r\n\r\n", "01", {}, ["ant", "bee"]),
        ("0 ant\n1 bee fly\n", "01", {}, ["ant", "bee fly"]),
        ("1 ant\n2 bee fly\n", "12", {}, ["ant", "bee fly"]),
        ("100000\n300000\n", ["100000", "300000"], {}, ["100000", "300000"]),
        ("7\n3\n", "37", {}, ["3", "7"]),
        ("1\n2\n", "01", {}, ["1", "2"]),
        ("1\n0\n", "01", {"class_numbers": "id"}, ["0", "1"]),
        ("1\n0\n", "01", {"class_numbers": "index"}, ["1", "0"]),
        ("0\n1\n", "01", {}, ["0", "1"]),
        ("ant\nbee\n", ["bee", "0"], {}, ["bee", "ant"]),
    ],
)
def test_labels_are_names_of_classes_or_their_positions(
    text: str, labels: Sequence[str], options: dict[str, Any], expected: list[str], tmp_path: Path
) -> None:
    members = [member for i, label in enumerate(labels) for member in sample(f"{i}", label)]
    write(tmp_path / "set", {"a.tar": members, "classes.txt": text.encode()})
    assert list(images(source(tmp_path / "set", **options)).values()) == expected


def test_classes_of_a_list_are_a_list_or_a_map_of_numbers(tmp_path: Path) -> None:
    write(tmp_path, {"a.tar": samples(KEYS)})
    path = tmp_path / "list.json"
    for classes in (["ant", "bee"], {"1": "bee", "0": "ant"}):
        path.write_text(json.dumps({"shards": ["a.tar"], "classes": classes}))
        assert find_tars(str(path)).classes == ("ant", "bee")
    for classes in ("ant", {"a": "ant"}, [["ant"]]):  # type: ignore[assignment]
        path.write_text(json.dumps({"shards": ["a.tar"], "classes": classes}))
        assert "not a list of tars" in refusal(path)
    path.write_text(json.dumps({"shardlist": [{"url": "a.tar", "nsamples": 4}], "wids_version": 1}))
    assert find_tars(str(path)).urls == (str(tmp_path / "a.tar"),)


def test_a_long_index_shows_its_progress(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("peco.core.progress.INTERVAL", 0)
    path = write(tmp_path / "set", {"a.tar": samples(KEYS), "b.tar": samples(KEYS)})
    source(path)
    assert capsys.readouterr().out == f"{path}: indexed  1/2 tars\n{path}: indexed  2/2 tars\n"


# --- programs


def test_a_program_in_a_list_runs_only_if_the_user_allows_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, {"a.tar": samples(KEYS)})
    (tmp_path / "list.txt").write_text(f"pipe:touch {tmp_path}/ran; cat {tmp_path}/a.tar\n")
    assert refusal(tmp_path / "list.txt") == (
        f"pipe:touch {tmp_path}/ran; cat {tmp_path}/a.tar: runs a program; if you trust it, allow that with "
        "PECO_ALLOW_PIPE=1 in the environment"
    )
    (tmp_path / "list.txt").write_text(f"{{pipe:touch {tmp_path}/ran,pipe:true}}\n")
    assert "runs a program" in refusal(tmp_path / "list.txt")
    assert not (tmp_path / "ran").exists()
    monkeypatch.setenv(ALLOW_PIPE.name, "1")
    (tmp_path / "list.txt").write_text(f"pipe:touch {tmp_path}/ran; cat {tmp_path}/a.tar\n")
    assert images(source(tmp_path / "list.txt")) == IN_TURN
    assert (tmp_path / "ran").exists()
    monkeypatch.setenv(ALLOW_PIPE.name, "please")
    assert (
        refusal(tmp_path / "list.txt") == "PECO_ALLOW_PIPE: 'please' is not allowed; expected an integer, from 0 to 1"
    )


def test_a_stream_does_not_mix_val_and_test(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ALLOW_PIPE.name, "1")
    write(tmp_path, {"a.tar": samples(["train/a", "val/b", "test/c", "val/d"])})
    found = source(f"pipe:cat {tmp_path}/a.tar")
    assert [(s.split, s.encoded.decode()) for s in read(found)] == [
        ("train", "train/a"),
        ("val", "val/b"),
        ("val", "val/d"),
    ]
    assert [(files.reason, files.names) for files in found.ignored] == [("in the unused split test", ["a.tar/test/c"])]


def test_an_address_that_nothing_opens_is_refused_at_once() -> None:
    assert refusal("nosuch://x/a.tar").startswith(
        "nosuch://x/a.tar: can't be read as a WebDataset tar (nothing here opens nosuch://)"
    )


def test_braces_that_name_millions_of_tars_are_refused() -> None:
    assert "the braces name more than 100000 tars" in refusal("https://x/{0..99999999}-{0..9}.tar")


def test_a_stream_must_keep_what_its_first_tar_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ALLOW_PIPE.name, "1")
    write(tmp_path, {"a.tar": samples(KEYS), "b.tar": samples(SHOTS)})
    (tmp_path / "list.txt").write_text(f"pipe:cat {tmp_path}/a.tar\npipe:cat {tmp_path}/b.tar\n")
    assert "are images of one sample, unlike in the tars before; choose by dataset.image_field" in refusal(
        tmp_path / "list.txt"
    )
    (tmp_path / "list.txt").write_text(f"pipe:cat {tmp_path}/b.tar\npipe:cat {tmp_path}/a.tar\n")
    assert len(images(source(tmp_path / "list.txt"))) == len(KEYS) + len(SHOTS)
    write(tmp_path, {"c.tar": [*sample("a", "100000"), *sample("b", "300000")]})
    assert "choose by dataset.class_numbers" in refusal(f"pipe:cat {tmp_path}/c.tar")


# --- damage


def header(name: str, data: bytes, change: Callable[[tarfile.TarInfo], None]) -> bytes:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    change(info)
    return info.tobuf(tarfile.GNU_FORMAT) + data + bytes(-len(data) % 512)


def resized(size: int, kind: bytes = tarfile.REGTYPE) -> Callable[[tarfile.TarInfo], None]:
    def change(info: tarfile.TarInfo) -> None:
        info.size, info.type = size, kind

    return change


GOOD = packed(samples(KEYS))
PAX = {
    "size": "-512",
    "GNU.sparse.map": "1,x",
    "path": "\udcff",
}


def pax(key: str, value: str) -> bytes:
    """A tar with an extended header of this key."""
    record = f" {key}={value}\n".encode("utf-8", "surrogateescape")
    length = len(record) + 2
    data = f"{length}".encode() + record
    return header("x", data, resized(len(data), tarfile.XHDTYPE)) + GOOD


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"hello",
        b"\x1f\x8bnothing",
        gzip.compress(GOOD, mtime=0)[:-20],
        GOOD[:700],
        GOOD[: 512 * 4 + 100],
        GOOD[:1024] + b"?" * 512 + GOOD[1536:],
        header("a.jpg", b"x", resized(-512)) + GOOD,
        header("a.jpg", b"x", resized(1 << 80)) + GOOD,
        header("a.jpg", b"x", resized(1 << 40, tarfile.GNUTYPE_LONGNAME)) + GOOD,
        header("a.jpg", b"x", resized(1 << 40, tarfile.XHDTYPE)) + GOOD,
        header("a.jpg", b"x\n", resized(2, tarfile.XHDTYPE)) * 3000 + GOOD,
        pax("size", "-512"),
        pax("size", "1" * 30),
        pax("GNU.sparse.map", "1,x"),
        pax("GNU.sparse.major", "1") + b"?" * 100,
    ],
    ids=lambda data: f"{len(data)} bytes {data[:12]!r}",
)
def test_damage_is_one_line(data: bytes, tmp_path: Path) -> None:
    write(tmp_path / "set", {"a.tar": data})
    assert "set/a.tar: can't be read as a WebDataset tar" in refusal(tmp_path / "set")


def test_a_tar_cut_off_between_two_members_is_reported(tmp_path: Path) -> None:
    found = source(write(tmp_path / "set", {"a.tar": GOOD[: 4 * 1024], "b.tar": GOOD}))
    assert len(images(found)) == 4
    assert f"1 of 2 tars lack the mark of the end and may be cut off, the first is {tmp_path}/set/a.tar" in found.notes


def test_tars_that_were_joined_are_read_to_the_end(tmp_path: Path) -> None:
    joined = packed(samples(["a", "b"])) + packed(samples(["c", "d"]))
    assert set(images(source(write(tmp_path / "set", {"a.tar": joined})))) == set("abcd")


def test_links_in_a_tar_are_followed(tmp_path: Path) -> None:
    out = io.BytesIO(packed(samples(["blobs/a"])))
    with tarfile.open(fileobj=out, mode="a") as archive:
        for name, kind, target in (
            ("x.jpg", tarfile.LNKTYPE, "blobs/a.jpg"),
            ("y/y.jpg", tarfile.SYMTYPE, "../blobs/a.jpg"),
            ("z.jpg", tarfile.SYMTYPE, "/elsewhere/z.jpg"),
        ):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, target
            archive.addfile(info)
    found = source(write(tmp_path / "set", {"a.tar": out.getvalue()}))
    assert sorted(s.name for s in read(found)) == ["a.tar/blobs/a", "a.tar/x", "a.tar/y/y"]
    assert [(f.by_rule, f.names) for f in found.ignored] == [(False, ["a.tar/z.jpg"])]


# --- the kind of a single tar

LABELME = b'{"version": "5.0", "shapes": [{"label": "cat"}], "imagePath": "a.jpg"}'
TAKEOUT = b'{"title": "a.jpg", "photoTakenTime": {"timestamp": "1"}}'


@pytest.mark.parametrize(
    ("members", "kind"),
    [
        (samples(KEYS), "webdataset"),
        (samples(SHOTS), "webdataset"),
        (samples(KEYS, where="cls.txt"), "webdataset"),
        (samples(KEYS, where="txt"), "webdataset"),
        (sorted(samples([f"{i:04}" for i in range(400)]), key=lambda m: m[0][-3:], reverse=True), "webdataset"),
        ([m for key in KEYS for m in sample(key, '{"label": 3}', where="json")], "webdataset"),
        (samples(KEYS, image="img"), "webdataset"),
        ([("a.jpg", b"1"), ("a.json", LABELME)], "images"),
        ([("a.jpg", b"1"), ("a.jpg.json", TAKEOUT), ("a.jpg.supplemental-metadata.json", TAKEOUT)], "images"),
        ([("train/dog/a.jpg", b"1"), ("train/dog/a.json", LABELME)], "images"),
        ([("a.jpg", b"1"), ("a.json", b"{broken")], "images"),
        ([("dog/a.jpg", b"1"), ("cat/a.txt", b"2"), ("notes.json", b'{"label": 1}')], "images"),
    ],
)
def test_a_tar_is_a_folder_of_images_unless_it_holds_labels(members: Members, kind: str, tmp_path: Path) -> None:
    write(tmp_path, {"a.tar": members, "b.tgz": gzip.compress(packed(members))})
    assert (tar_kind(tmp_path / "a.tar"), tar_kind(tmp_path / "b.tgz")) == (kind, kind)
