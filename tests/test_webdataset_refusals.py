"""WebDataset tars that could be read in two ways, or not at all: each is refused in one line that names what to do."""

from __future__ import annotations

import gzip
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from webdataset_cases import KEYS, Members, images, packed, refusal, sample, samples, source, views, write

from peco.core.errors import PecoError

BOTH = "0000.depth.png and 0000.rgb.png are images of one sample"
CHOOSE = "choose by dataset.image_field: depth.png, rgb.png, or all"

# Tars, parameters, the message.
REFUSED: dict[str, tuple[dict[str, bytes | Members], dict[str, Any], str]] = {
    "two images with names": ({"a.tar": views("rgb.png", "depth.png")}, {}, f"{BOTH}; {CHOOSE}"),
    "two images without label": ({"a.tar": views("rgb.png", "depth.png", None)}, {}, f"{BOTH}; {CHOOSE}"),
    "photo and map": ({"a.tar": views("jpg", "png")}, {}, "0000.jpg and 0000.png are images of one sample; choose by"),
    "one label for many images": (
        {"a.tar": [("a.x.jpg", b"1"), ("a.y.jpg", b"2"), ("a.cls", b"0"), *samples(KEYS)]},
        {},
        "a.cls and a.y.jpg belong to one key, and neither the first nor the last dot",
    ),
    "no image": (
        {"a.tar": samples(KEYS, image="img")},
        {},
        "no image in the 1 tar(s); their members end in cls (4), img (4)",
    ),
    "no member of this name": (
        {"a.tar": samples(KEYS)},
        {"label_field": "lbl"},
        "no labels found in lbl (dataset.label_field)",
    ),
    "damaged JSON among labels": (
        {"a.tar": [*sample("a", "{", where="json"), *sample("b", '{"label": 1}', where="json")]},
        {},
        "a.tar/a.json is damaged JSON, and labels are read from there",
    ),
    "a label of bytes": (
        {"a.tar": [("a.jpg", b"1"), ("a.cls", (1).to_bytes(8, "little"))]},
        {},
        "is no number or name as text; write it as text, or set dataset.labels=none",
    ),
    "another archive beside tars": (
        {"a.tar": samples(KEYS), "b.zip": b"PK"},
        {},
        "b.zip: beside tars, and not read; write it as .tar or .tar.gz, or move it away",
    ),
    "a label not UTF-8": (
        {"a.tar": [("a.jpg", b"1"), ("a.cls", b"\xff\xfe\xe9")]},
        {},
        "the label of a can't be read (a.cls)",
    ),
    "ids": (
        {"a.tar": [*sample("a", "100000"), *sample("b", "300000")]},
        {},
        "label 300000 is not a class number, since only 2 numbers up to it occur; choose by dataset.class_numbers: id, each number "
        "that occurs is a class; index, all 300001 numbers are classes",
    ),
    "a number far too large": (
        {"a.tar": sample("a", "99999999")},
        {"class_numbers": "index"},
        "99999999 is not a class number",
    ),
    "splits of some": (
        {"train-0.tar": samples(KEYS), "b.tar": samples(KEYS)},
        {},
        "b.tar names no split, but others do",
    ),
    "two splits": (
        {"train-test.tar": samples(KEYS), "x.tar": samples(KEYS)},
        {},
        "train-test.tar names two splits (test and train)",
    ),
    "no train": (
        {"val/0.tar": samples(KEYS), "test/0.tar": samples(KEYS)},
        {},
        "there are tars for test and val, but none for train",
    ),
    "tars without a class": (
        {"0.tar": samples(KEYS), "1.tar": samples(KEYS)},
        {"labels": "tars"},
        "its name gives no class",
    ),
    "images without a class": (
        {"a.tar": [("a.jpg", b"1"), ("x/b.jpg", b"2")]},
        {"labels": "folders"},
        "a.jpg lies in no folder",
    ),
    "labels in a tar of their own": (
        {"images.tar": [("1.jpg", b"1"), ("2.jpg", b"2")], "labels.tar": [("1.cls", b"0"), ("2.cls", b"1")]},
        {},
        "labels (cls (2)) lie in samples without an image, and no image has one; put image and label of a sample into one tar",
    ),
    "two class files": (
        {"x/a.tar": [], "y/b.tar": [], "x/classes.txt": b"a\nb", "y/classes.txt": b"b\na"},
        {},
        "differs from",
    ),
    "a class file not UTF-8": ({"a.tar": samples(KEYS), "classes.txt": b"caf\xe9\nb"}, {}, "classes.txt: is not UTF-8"),
    "an empty line of a class file": (
        {"a.tar": samples(KEYS), "classes.txt": b"a\n\nb\n"},
        {},
        "classes.txt: line 2 is empty",
    ),
    "equal names of classes": ({"a.tar": samples(KEYS), "classes.txt": b"a\na\n"}, {}, "empty or not all different"),
    "too few class names": ({"a.tar": samples(KEYS), "classes.txt": b"a\n"}, {}, "label 1 is not among the 1 classes"),
    "names or positions": (
        {"a.tar": samples(KEYS), "classes.txt": b"1\n0\n"},
        {},
        "label 0 may be the class 0 or the one at position 0; choose by dataset.class_numbers: id (the class) or index",
    ),
}


@pytest.mark.parametrize(("tars", "options", "expected"), REFUSED.values(), ids=REFUSED)
def test_what_could_be_read_in_two_ways_is_refused_before_the_first_image(
    tars: dict[str, bytes | Members], options: dict[str, Any], expected: str, tmp_path: Path
) -> None:
    write(tmp_path / "set", tars)
    with pytest.raises(PecoError) as error:
        source(tmp_path / "set", **options)
    assert expected in str(error.value) and "\n" not in str(error.value)


def test_an_address_that_nothing_opens_is_refused_at_once() -> None:
    assert refusal("nosuch://x/a.tar").startswith(
        "nosuch://x/a.tar: can't be read as a WebDataset tar (nothing here opens nosuch://)"
    )


def test_braces_that_name_millions_of_tars_are_refused() -> None:
    assert "the braces name more than 100000 tars" in refusal("https://x/{0..99999999}-{0..9}.tar")


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
