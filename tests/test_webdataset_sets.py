"""WebDatasets of several tars: their splits and classes, by the names of tars, members and class files; streams; links."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from collections.abc import Sequence
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
    read,
    refusal,
    sample,
    samples,
    source,
    write,
)

from peco.core.environment import ALLOW_PIPE
from peco.sources.webdataset.kind import tar_kind
from peco.sources.webdataset.tars import find_tars

# --- splits


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


@pytest.mark.parametrize(("label", "has"), [(None, "no labels"), ("unknown", "no class of train")])
def test_a_test_split_without_labels_is_no_val_split(label: str | None, has: str, tmp_path: Path) -> None:
    keys = [f"{i:03}" for i in range(60)]
    test = [m for key in keys for m in sample("t" + key, label)] if label else [(f"t{k}.jpg", b"t") for k in keys]
    tars: dict[str, bytes | Members] = {"train.tar": samples(keys), "test.tar": test}
    found = source(write(tmp_path / "set", tars), val_fraction=0.5)
    split = {s.encoded.decode(): s.split for s in read(found)}
    assert set(split) == set(keys) and set(split.values()) == {"train", "val"}
    assert f"test has {has}, so val is a part of train" in found.notes
    assert [(f.reason, f.by_rule, len(f.names)) for f in found.ignored] == [("in the unused split test", True, 60)]


# --- classes


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
        (["shard_aa", "shard_ab"], {}, [None, None]),
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


def test_a_folder_in_a_list_is_named_with_the_list(tmp_path: Path) -> None:
    write(tmp_path / "set", {"a.tar": samples(KEYS)})
    path = tmp_path / "list.json"
    for entry, folder in (("", tmp_path), ("set", tmp_path / "set")):
        path.write_text(json.dumps(["set/a.tar", entry]))
        assert refusal(path) == f"{path}: lists {folder}, a folder; list the tars in it"


# --- streams and programs


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


# --- reading


def test_a_long_index_shows_its_progress(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("peco.core.progress.INTERVAL", 0)
    path = write(tmp_path / "set", {"a.tar": samples(KEYS), "b.tar": samples(KEYS)})
    source(path)
    assert capsys.readouterr().out == f"{path}: indexed  1/2 tars\n{path}: indexed  2/2 tars\n"


def test_tars_that_were_joined_are_read_to_the_end(tmp_path: Path) -> None:
    joined = packed(samples(["a", "b"])) + packed(samples(["c", "d"]))
    assert set(images(source(write(tmp_path / "set", {"a.tar": joined})))) == set("abcd")


def test_images_in_hidden_folders_are_reported(tmp_path: Path) -> None:
    found = source(
        write(tmp_path / "set", {"a.tar": [*samples(["a"]), (".data/b.jpg", b"b"), ("__MACOSX/a.jpg", b"")]})
    )
    assert set(images(found)) == {"a"}
    assert [(f.reason, f.by_rule, f.names) for f in found.ignored] == [("hidden", True, ["a.tar/.data/b.jpg"])]


def test_a_link_to_a_folder_outside_is_refused(tmp_path: Path) -> None:
    write(tmp_path, {"other/b.tar": samples(["b"]), "set/a.tar": samples(["a"])})
    (tmp_path / "set/more").symlink_to(tmp_path / "other")
    assert f"set/more: a link to {tmp_path}/other, which is outside of" in refusal(tmp_path / "set")


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
