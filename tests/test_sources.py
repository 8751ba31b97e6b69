"""Sources of images: every accepted layout, and the errors about images that can't be used."""

from __future__ import annotations

import gzip
import http.server
import io
import json
import tarfile
import tempfile
import threading
import zipfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from image_sets import dataset
from PIL import Image

from peco.core.errors import PecoError
from peco.files.archives import open_archive
from peco.scenes import scenes
from peco.sources.base import Source
from peco.sources.imagefolder import read_layout
from peco.sources.open import open_source
from peco.sources.webdataset.tars import find_tars

Files = dict[str, bytes]


def opened(source: str, path: Path | str, work: Path | None = None, **values: object) -> Source:
    return open_source(dataset(source, path, **values), work or Path(tempfile.gettempdir()))


def ignored(source: Source) -> dict[str, int]:
    return {found.reason: len(found.names) for found in source.ignored}


def as_folder(root: Path, files: Files) -> Path:
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


def as_tar(path: Path, files: Files) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def as_gzip(path: Path, files: Files) -> Path:
    plain = as_tar(path.with_suffix(".plain"), files)
    path.write_bytes(gzip.compress(plain.read_bytes()))
    return path


def as_zip(path: Path, files: Files) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def listed(source: Source) -> set[tuple[str, str, bytes, int]]:
    samples = list(source.samples())
    found = {(s.split, s.name, s.encoded, s.label) for s in samples}
    assert len(found) == len(samples)
    return found


SPLIT = {
    "train/dog/1.jpg": b"a",
    "train/dog/deep/er/2.PNG": b"b",
    "train/cat/1.jpeg": b"c",
    "val/cat/1.jpg": b"d",
    "val/emu/1.jpg": b"e",
}
CLUTTER = {
    "README.txt": b"-",
    ".hidden/x.jpg": b"-",
    "train/dog/._1.jpg": b"-",
    "__MACOSX/train/dog/1.jpg": b"-",
    "train/stray.jpg": b"-",
    "other/x.jpg": b"-",
}
EXPECTED = {
    ("train", "train/dog/1.jpg", b"a", 1),
    ("train", "train/dog/deep/er/2.PNG", b"b", 1),
    ("train", "train/cat/1.jpeg", b"c", 0),
    ("val", "val/cat/1.jpg", b"d", 0),
    ("val", "val/emu/1.jpg", b"e", 2),
}


@pytest.mark.parametrize(
    ("pack", "name"), [(as_folder, "f"), (as_tar, "f.tar"), (as_gzip, "f.tar.gz"), (as_zip, "f.zip")]
)
def test_an_image_folder_reads_the_same_however_it_is_packed(pack, name: str, tmp_path: Path) -> None:
    source = opened("images", pack(tmp_path / name, SPLIT | CLUTTER), tmp_path / "work", max_ignored=0.3)
    assert listed(source) == EXPECTED
    assert source.classes == ("cat", "dog", "emu")
    assert source.total == 5
    assert ignored(source) == {
        "not an image by its name": 1,
        "beside the class folders": 1,
        "outside the splits": 1,
        "hidden": 1,
    }
    assert source.ignored.counted == 2


def test_a_packed_folder_may_be_wrapped_in_another_one(tmp_path: Path) -> None:
    wrapped = {f"./set-1/{name}": data for name, data in SPLIT.items()}
    found = listed(opened("images", as_tar(tmp_path / "f.tar", wrapped)))
    assert {(split, name.removeprefix("set-1/"), data, label) for split, name, data, label in found} == EXPECTED


def test_hard_links_in_a_tar_are_files(tmp_path: Path) -> None:
    path = as_tar(tmp_path / "f.tar", {"train/a/1.jpg": b"x", "val/a/1.jpg": b"y"})
    with tarfile.open(path, "a") as tar:
        link = tarfile.TarInfo("train/b/2.jpg")
        link.type, link.linkname = tarfile.LNKTYPE, "train/a/1.jpg"
        tar.addfile(link)
    assert ("train", "train/b/2.jpg", b"x", 1) in listed(opened("images", path))


@pytest.mark.parametrize(
    ("folders", "splits"),
    [
        (("training", "validation"), {"training": "train", "validation": "val"}),
        (("Train", "Test"), {"Train": "train", "Test": "val"}),
        (("train", "val", "test"), {"train": "train", "val": "val"}),
    ],
)
def test_splits_are_found_by_the_names_of_folders(folders: tuple[str, ...], splits: dict[str, str]) -> None:
    layout = read_layout([f"{folder}/a/1.jpg" for folder in folders], 0.1, 0)
    assert {images[0][0].split("/")[0]: split for split, images in layout.splits.items()} == splits
    assert [found.reason for found in layout.ignored] == ["an unused test split"] * (len(folders) - len(splits))


def test_an_input_without_splits_gets_a_stratified_val_split() -> None:
    names = [f"{category}/{i}.jpg" for category, count in (("a", 40), ("b", 8), ("c", 2)) for i in range(count)]
    layout = read_layout([*names, "d/only.jpg"], 0.25, 0)
    counts = {c: sum(category == c for _, category in layout.splits["val"]) for c in "abcd"}
    assert counts == {"a": 10, "b": 2, "c": 1, "d": 0}
    assert layout.classes == ("a", "b", "c", "d")
    assert ("d/only.jpg", "d") in layout.splits["train"]
    assert layout != read_layout([*names, "d/only.jpg"], 0.25, 1)


def test_train_alone_is_split_too() -> None:
    layout = read_layout([f"train/{c}/{i}.jpg" for c in "ab" for i in range(4)], 0.25, 0)
    assert {split: len(images) for split, images in layout.splits.items()} == {"train": 6, "val": 2}
    assert layout.classes == ("a", "b")


def test_images_without_classes_have_no_labels() -> None:
    layout = read_layout([f"{i}.jpg" for i in range(8)], 0.25, 0)
    assert {split: len(images) for split, images in layout.splits.items()} == {"train": 6, "val": 2}
    assert layout.classes == ()
    assert "val" not in read_layout(["1.jpg"], 0.25, 0).splits
    assert "val" not in read_layout([f"{i}.jpg" for i in range(8)], 0.0, 0).splits


def test_val_may_lack_the_labels_that_train_has() -> None:
    layout = read_layout(["train/a/1.jpg", "train/b/1.jpg", "val/1.jpg"], 0.1, 0)
    assert layout.splits["val"] == [("val/1.jpg", None)]
    assert layout.classes == ("a", "b")
    assert "val has no labels, though train has" in layout.notes


names = st.lists(
    st.builds("{}/{}.jpg".format, st.sampled_from("abc"), st.integers(0, 99)), min_size=2, max_size=40, unique=True
)


@given(names=names, fraction=st.floats(0.01, 0.9), seed=st.integers(0, 3), order=st.randoms())
@settings(max_examples=40, deadline=None)
def test_a_made_split_is_a_partition_that_one_more_image_barely_moves(names, fraction, seed, order) -> None:
    shuffled = order.sample(names, len(names))
    layout = read_layout(shuffled, fraction, seed)
    assert layout == read_layout(names, fraction, seed)
    parts = {split: {name for name, _ in images} for split, images in layout.splits.items()}
    assert sum(map(len, parts.values())) == len(names)
    assert set().union(*parts.values()) == set(names)
    assert {name[0] for name in parts["train"]} == {name[0] for name in names}
    more = read_layout([*names, "a/new.jpg"], fraction, seed)
    moved = {name for name, _ in more.splits.get("val", [])} ^ parts.get("val", set())
    assert len(moved - {"a/new.jpg"}) <= 1


def test_order_is_shuffled_and_depends_on_the_seed_alone(tmp_path: Path) -> None:
    files = {f"{split}/a/{i:02}.jpg": b"" for split in ("train", "val") for i in range(20)}
    folder, tar = as_folder(tmp_path / "f", files), as_tar(tmp_path / "f.tar", dict(reversed(files.items())))
    order = [s.name for s in opened("images", folder).samples()]
    assert order == [s.name for s in opened("images", tar).samples()]
    assert order != [s.name for s in opened("images", folder, seed=1).samples()]
    assert order[:20] != sorted(order[:20])
    assert sorted(order[:20]) == sorted(name for name in files if name.startswith("train"))


# --- images that can't be used


def message(call, *args: object) -> str:
    with pytest.raises(PecoError) as error:
        call(*args)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("source", ["images", "webdataset", "scenes"])
def test_a_missing_input_is_named(source: str, tmp_path: Path) -> None:
    text = message(opened, source, tmp_path / "nowhere")
    assert "nowhere" in text
    assert "expected" in text


def test_an_empty_folder_is_named(tmp_path: Path) -> None:
    for source, what in (("images", "no image found"), ("webdataset", "no tar found")):
        text = message(opened, source, tmp_path)
        assert str(tmp_path) in text
        assert what in text
        assert "expected" in text


def test_a_file_that_is_no_archive_is_refused(tmp_path: Path) -> None:
    (tmp_path / "f.tar").write_text("hello")
    assert "f.tar: can't be read as an archive" in message(opened, "images", tmp_path / "f.tar")


def test_a_folder_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    as_folder(tmp_path, SPLIT)
    monkeypatch.setattr("os.scandir", refuse)
    assert "Permission denied" in message(opened, "images", tmp_path)


def test_a_folder_in_place_of_the_descriptor_is_refused(tmp_path: Path) -> None:
    assert "can't be read" in message(opened, "scenes", tmp_path)


@pytest.mark.parametrize("source", ["images", "webdataset"])
@pytest.mark.parametrize("damage", ["cut in a member", "cut in a header", "bad header"])
def test_a_damaged_tar_is_an_error_and_not_a_shorter_tar(source: str, damage: str, tmp_path: Path) -> None:
    data = as_tar(tmp_path / "f.tar", {f"a/{i}.jpg": b"x" * 700 for i in range(6)}).read_bytes()
    at = 3 * (512 + 1024)  # the fourth member's header
    damaged = {
        "cut in a member": data[: at + 600],
        "cut in a header": data[: at + 100],
        "bad header": data[:at] + b"?" * 512 + data[at + 512 :],
    }[damage]
    (tmp_path / "f.tar").write_bytes(damaged)
    text = message(opened, source, tmp_path / "f.tar")
    assert "f.tar: can't be read as a" in text
    (tmp_path / "f.tgz").write_bytes(gzip.compress(damaged))
    streamed = message(lambda: list(opened(source, tmp_path / "f.tgz", tmp_path).samples()))
    assert "f.tgz: can't be read as a" in streamed


def test_a_source_that_fails_while_it_is_read_is_named(tmp_path: Path) -> None:
    packed = opened("webdataset", as_tar(tmp_path / "w.tar", {"0.jpg": b"x", "0.cls": b"0"}))
    (tmp_path / "w.tar").unlink()
    assert "w.tar: can't be read (No such file or directory)" in message(list, packed.samples())

    archive = open_archive(as_tar(tmp_path / "a.tar", {"0.jpg": b"x"}), tmp_path)

    class Failing(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            raise OSError(5, "Input/output error")

    archive._file = Failing()  # type: ignore[attr-defined]
    assert "a.tar: can't be read (Input/output error)" in message(archive.read, "0.jpg")


def test_a_truncated_gzip_is_refused(tmp_path: Path) -> None:
    packed = as_gzip(tmp_path / "f.tar.gz", SPLIT).read_bytes()
    (tmp_path / "f.tar.gz").write_bytes(packed[:-20])
    assert "f.tar.gz: can't be read as an archive" in message(opened, "images", tmp_path / "f.tar.gz", tmp_path)


def test_ambiguous_splits_are_refused() -> None:
    assert "no train" in message(read_layout, ["val/a/1.jpg", "test/a/1.jpg"], 0.1, 0)
    assert "both name the split val" in message(
        read_layout, ["train/a/1.jpg", "val/a/1.jpg", "validation/a/1.jpg"], 0.1, 0
    )


# --- webdataset


def write_wds(folder: Path, stem: str, count: int, **kinds: object) -> Path:
    """A tar of `count` samples with one member for each kind, given as a function of the sample's number."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {f"{stem}{i:03}.{kind}": make(i) for i in range(count) for kind, make in kinds.items()}  # type: ignore[operator]
    return as_tar(folder / f"{stem}.tar", files)


def number(i: int) -> bytes:
    return str(i % 3).encode()


def picture(i: int) -> bytes:
    return f"picture {i}".encode()


def two_splits(folder: Path) -> Path:
    write_wds(folder, "train-0", 5, jpg=picture, cls=number)
    write_wds(folder, "train-1", 4, jpg=picture, cls=number)
    write_wds(folder, "val-0", 3, jpg=picture, cls=number)
    return folder


def check_two_splits(source: Source) -> None:
    found = listed(source)
    assert ("train", "train-1.tar/train-1002", b"picture 2", 2) in found
    assert ("val", "val-0.tar/val-0001", b"picture 1", 1) in found
    assert [sum(s[0] == split for s in found) for split in ("train", "val")] == [9, 3]
    assert source.classes == ("0", "1", "2")


def test_tars_are_found_by_folder_glob_braces_and_lists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = two_splits(tmp_path / "wds")
    (tmp_path / "list.txt").write_text("# tars\nwds/train-*.tar\n\nwds/val-0.tar\n")
    (tmp_path / "list.json").write_text(json.dumps(["wds/train-{0..1}.tar", "wds/val-0.tar"]))
    (tmp_path / "named.json").write_text(json.dumps({"shards": ["wds/*.tar"], "classes": ["x", "y", "z"]}))
    for path in (folder, f"{folder}/*.tar", f"{folder}/{{train-0,train-1,val-0}}.tar", "list.txt", "list.json"):
        path = tmp_path / path if "list" in str(path) else path
        check_two_splits(opened("webdataset", path))
    assert opened("webdataset", tmp_path / "named.json").classes == ("x", "y", "z")
    monkeypatch.chdir(tmp_path)
    check_two_splits(opened("webdataset", "wds"))


def test_names_of_classes_are_read_from_a_file_next_to_the_tars(tmp_path: Path) -> None:
    folder = write_wds(tmp_path, "a", 6, jpg=picture, cls=number).parent
    (folder / "classes.txt").write_text("ant\nbee\ncat\n")
    source = opened("webdataset", folder)
    assert source.classes == ("ant", "bee", "cat")
    assert {s.name[-1]: s.label for s in source.samples()}["4"] == 1
    (folder / "classes.txt").write_text("ant\nbee\n")
    text = message(lambda: list(opened("webdataset", folder).samples()))
    assert "label 2 is not among the 2 classes" in text


@pytest.mark.parametrize(
    ("kinds", "label"),
    [
        ({"cls": lambda i: b" 4\n"}, 4),
        ({"json": lambda i: b'{"label": 4, "x": [1]}'}, 4),
        ({"json": lambda i: b'{"label": "dog"}'}, 0),
        ({"cls": lambda i: b"dog"}, 0),
        ({"json": lambda i: b'{"caption": "a dog"}'}, -1),
        ({"cls": lambda i: b"-1"}, -1),
        ({}, -1),
    ],
)
def test_labels_are_read_from_cls_or_json(kinds: dict[str, object], label: int, tmp_path: Path) -> None:
    write_wds(tmp_path, "a", 2, **{"seg.png": picture, "webp": picture}, **kinds)
    source = opened("webdataset", tmp_path)
    samples = list(source.samples())
    assert [s.label for s in samples] == [label, label]
    assert label == -1 or len(source.classes) == label + 1


def test_the_member_with_the_simplest_name_is_the_image(tmp_path: Path) -> None:
    as_tar(tmp_path / "a.tar", {"x.seg.png": b"mask", "x.jpg": b"photo", "y.cls": b"1", "z.jpg": b"z"})
    source = opened("webdataset", tmp_path)
    assert {s.name: s.encoded for s in source.samples()} == {"a.tar/x": b"photo", "a.tar/z": b"z"}
    assert ignored(source) == {"another image of a sample": 1, "sample without an image": 1}


@pytest.mark.parametrize(
    ("names", "splits"),
    [
        (["imagenet1k-train-0000", "imagenet1k-validation-00"], ["train", "val"]),
        (["train_0", "test_0"], ["train", "val"]),
        (["train/00", "val/00"], ["train", "val"]),
    ],
)
def test_splits_follow_from_the_names_of_tars(names: list[str], splits: list[str], tmp_path: Path) -> None:
    for name in names:
        write_wds((tmp_path / name).parent, (tmp_path / name).name, 1, jpg=lambda i, name=name: name.encode())
    found = {s.encoded.decode(): s.split for s in opened("webdataset", tmp_path).samples()}
    assert found == dict(zip(names, splits, strict=True))


def test_tars_named_for_no_split_are_split_by_key_the_same_way_streamed_or_not(tmp_path: Path) -> None:
    write_wds(tmp_path / "plain", "a", 200, jpg=picture, cls=number)
    (tmp_path / "packed").mkdir()
    (tmp_path / "packed/a.tar.gz").write_bytes(gzip.compress((tmp_path / "plain/a.tar").read_bytes()))
    plain, packed = (opened("webdataset", tmp_path / kind) for kind in ("plain", "packed"))
    split = {s.name.split("/")[1]: s.split for s in plain.samples()}
    assert split == {s.name.split("/")[1]: s.split for s in packed.samples()}
    assert 25 < sum(v == "val" for v in split.values()) < 75
    assert plain.classes == packed.classes == ("0", "1", "2")


@pytest.mark.parametrize(
    ("names", "text"), [(["train-0", "b"], "names no split"), (["val-0", "test-0"], "none for train")]
)
def test_ambiguous_tar_names_are_refused(names: list[str], text: str, tmp_path: Path) -> None:
    for name in names:
        write_wds(tmp_path, name, 1, jpg=picture)
    assert text in message(opened, "webdataset", tmp_path)


def test_tars_that_cannot_be_used_are_refused(tmp_path: Path) -> None:
    write_wds(tmp_path / "none", "a", 2, txt=picture)
    assert "no image in the 1 tar(s)" in message(opened, "webdataset", tmp_path / "none")
    write_wds(tmp_path / "odd", "a", 2, jpg=picture, json=lambda i: b"{" if i else b'{"label": 1}')
    assert "a001.json is damaged JSON" in message(opened, "webdataset", tmp_path / "odd")
    write_wds(tmp_path / "big", "a", 1, jpg=picture, cls=lambda i: b"99999999")
    assert "not a class number" in message(opened, "webdataset", tmp_path / "big")
    (tmp_path / "list.json").write_text('{"tars": []}')
    assert "not a list of tars" in message(opened, "webdataset", tmp_path / "list.json")
    (tmp_path / "list.txt").write_text("gone-{0..1}.tar\n")
    assert "gone-0.tar: no such file" in message(opened, "webdataset", tmp_path / "list.txt")
    assert "braces" in message(find_tars, "a-{0..1.tar")


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def served(tmp_path: Path) -> Iterator[str]:
    """Address of a web server that serves `tmp_path/wds`."""
    two_splits(tmp_path / "wds")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path / "wds")))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_tars_are_read_from_addresses(served: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PECO_ALLOW_PIPE", "1")
    source = opened("webdataset", served + "/{train-0,train-1,val-0}.tar?key=1")
    assert source.total is None
    check_two_splits(source)
    order = [s.name for s in source.samples()]
    assert order == sorted(order)  # streams keep their order
    (tmp_path / "list.txt").write_text(f"{served}/train-0.tar\npipe:cat {tmp_path}/wds/train-1.tar\nwds/val-0.tar\n")
    check_two_splits(opened("webdataset", tmp_path / "list.txt"))


def test_a_store_that_refuses_is_reported_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """The errors of the S3 client have classes of their own."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nowhere")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nowhere")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(
        PecoError, match=r"^s3://bucket/a\.tar: can't be read .*credentials.*; fetch or write it again$"
    ):
        list(opened("webdataset", "s3://bucket/a.tar").samples())


def test_addresses_that_fail_are_reported(served: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PECO_ALLOW_PIPE", "1")
    for url in (f"{served}/train-7.tar", "pipe:false", "nosuch://x/train.tar"):
        assert "can't be read as a WebDataset tar" in message(lambda url=url: list(opened("webdataset", url).samples()))
    assert "(the server has no such file)" in message(lambda: list(opened("webdataset", f"{served}/no.tar").samples()))
    late = f"pipe:cat {tmp_path}/wds/train-0.tar; exit 3"  # everything came, and yet the program failed
    assert "can't be read as a WebDataset tar" in message(lambda: list(opened("webdataset", late).samples()))


def test_streams_need_the_names_of_named_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PECO_ALLOW_PIPE", "1")
    tar = write_wds(tmp_path, "a", 3, jpg=picture, cls=lambda i: b"bee")
    assert "need all class names" in message(lambda: list(opened("webdataset", f"pipe:cat {tar}").samples()))
    (tmp_path / "l.json").write_text(json.dumps({"shards": [f"pipe:cat {tar}"], "classes": ["ant", "bee"]}))
    assert {s.label for s in opened("webdataset", tmp_path / "l.json").samples()} == {1}


# --- scenes


def descriptor(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


GOOD = f"generator: scenes\nversion: {scenes.VERSION}\nseed: 5\n"


def test_scenes_are_drawn_as_png(tmp_path: Path) -> None:
    source = opened("scenes", descriptor(tmp_path / "s.yaml", GOOD))
    samples = list(source.samples())
    assert source.classes == scenes.CLASSES
    assert [s.name for s in samples if s.split == "train"] == [f"{i:07}.png" for i in range(12)]
    assert [s.name for s in samples if s.split == "val"] == [f"{1_000_000 + i}.png" for i in range(4)]
    scene = scenes.render(5, 1_000_002, 32)
    assert (np.asarray(Image.open(io.BytesIO(samples[14].encoded))) == scene.image).all()
    assert samples[14].label == scene.label
    assert samples == list(source.samples())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (GOOD.replace(f"version: {scenes.VERSION}", "version: 99"), "version 99 of the scenes"),
        ("generator: other\nversion: 1\nseed: 0\n", "not a descriptor"),
        ("[", "not a YAML file"),
        ("", "not a descriptor"),
        (GOOD.replace("seed: 5", "seed: -1"), "seed: -1 is not allowed"),
    ],
)
def test_wrong_descriptors_are_refused(text: str, expected: str, tmp_path: Path) -> None:
    assert expected in message(opened, "scenes", descriptor(tmp_path / "s.yaml", text))
