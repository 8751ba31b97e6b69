"""Own images as they come: links, names, formats of phones and cameras, parquet; what is left out is reported."""

from __future__ import annotations

import io
import json
import os
import stat
import struct
import sys
import tarfile
import warnings
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from image_sets import dataset, encoded
from PIL import Image

from peco.core.errors import PecoError
from peco.data import images
from peco.data.shards import open_shards
from peco.data.summary import summary
from peco.files.archives import open_archive
from peco.sources import image_check, imagefolder
from peco.sources.detect import detect_source
from peco.sources.open import open_source
from peco.sources.shard_writer import write_shards


def noise(seed: int, height: int = 16, width: int = 24) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


PNG = encoded(noise(0))


def put(root: Path, *names: str, data: bytes = PNG) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


def packed(path: Path, root: Path, **values: object) -> tuple[dict[str, Any], Path]:
    """The index of the shards of a source, and their folder."""
    settings = dataset("images", root, **values)
    source = open_source(settings, path / "work")
    return write_shards(source, path / "shards", settings, work=path / "work"), path / "shards"


def counts(index: dict[str, Any]) -> dict[str, int]:
    return {split: entry["samples"] for split, entry in index["splits"].items()}


def refusal(call: Any, *args: object) -> str:
    with pytest.raises(PecoError) as error:
        call(*args)
    assert "\n" not in str(error.value)
    return str(error.value)


# --- links


def test_links_within_a_folder_are_followed(tmp_path: Path) -> None:
    root = put(tmp_path / "in", *(f"store/{c}/{i}.png" for c in "ab" for i in range(4)))
    (root / "train").mkdir()
    for name in "ab":
        os.symlink(f"../store/{name}", root / "train" / name)
    os.symlink("store/a/0.png", root / "cover.png")
    archive = open_archive(root, tmp_path)
    assert [name for name in archive.names() if name.startswith("train/")] == [
        f"train/{c}/{i}.png" for c in "ab" for i in range(4)
    ]
    assert archive.read("cover.png") == PNG
    assert archive.lost == []


def test_a_link_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    put(tmp_path / "store", "1.png")
    root = put(tmp_path / "in", "a/1.png")
    os.symlink("../store", root / "b")
    assert "in/b: a link to" in refusal(detect_source, root)
    assert "put copies in its place" in refusal(open_source, dataset("images", root), tmp_path)


def test_links_to_missing_images_count_and_circles_are_reported(tmp_path: Path) -> None:
    root = put(tmp_path / "in", *(f"{c}/{i}.png" for c in "ab" for i in range(4)))
    os.symlink("nowhere.png", root / "a/9.png")
    os.symlink("..", root / "a/up")
    assert "1 of 9 images have no place in its layout" in refusal(open_source, dataset("images", root), tmp_path)
    index, _ = packed(tmp_path, root, max_ignored=0.2)
    assert counts(index) == {"train": 6, "val": 2}
    assert index["ignored"] == {
        "a link in a circle, no image": {"count": 1, "by_rule": True, "first": ["a/up"]},
        "a link to nothing in the set": {"count": 1, "by_rule": False, "first": ["a/9.png"]},
    }


def tar_of(path: Path, root: Path) -> Path:
    with tarfile.open(path, "w") as archive:
        archive.add(root, "in")
    return path


def zip_of(path: Path, root: Path) -> Path:
    """A zip that stores links as links (`zip -y`)."""
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(root.rglob("*")):
            name = f"in/{file.relative_to(root).as_posix()}"
            if file.is_symlink():
                info = zipfile.ZipInfo(name)
                info.create_system, info.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
                archive.writestr(info, os.readlink(file))
            elif file.is_file():
                archive.write(file, name)
    return path


@pytest.mark.parametrize("pack", [tar_of, zip_of])
def test_links_in_archives_are_followed(pack: Any, tmp_path: Path) -> None:
    root = put(tmp_path / "in", *(f"{c}/{i}.png" for c in "ab" for i in range(4)))
    os.symlink("a", root / "c")
    os.symlink("c", root / "d")
    os.symlink("../a/0.png", root / "b/9.png")
    os.symlink("../b", root / "b/self")
    archive = open_archive(pack(tmp_path / "packed", root), tmp_path / "work")
    assert sorted(archive.names()) == sorted(["in/b/9.png", *(f"in/{c}/{i}.png" for c in "abcd" for i in range(4))])
    assert archive.read("in/d/3.png") == PNG
    assert [(lost.name, lost.reason) for lost in archive.lost] == [("in/b/self", "a link in a circle")]


def test_joined_tars_are_read_to_the_end_and_a_cut_one_is_reported(tmp_path: Path) -> None:
    for name in "ab":
        put(tmp_path / name / "in", *(f"{name}/{i}.png" for i in range(4)))
        tar_of(tmp_path / f"{name}.tar", tmp_path / name / "in")
    whole = (tmp_path / "a.tar").read_bytes() + (tmp_path / "b.tar").read_bytes()
    (tmp_path / "all.tar").write_bytes(whole)
    index, _ = packed(tmp_path / "joined", tmp_path / "all.tar")
    assert (counts(index), index["classes"]) == ({"train": 6, "val": 2}, ["a", "b"])
    with tarfile.open(tmp_path / "all.tar") as archive:
        last = archive.getmembers()[-1].offset
    (tmp_path / "cut.tar").write_bytes(whole[:last])
    index, _ = packed(tmp_path / "cut", tmp_path / "cut.tar", val_fraction=0.0)
    assert counts(index) == {"train": 3}
    assert "warning: cut.tar lacks the mark of a tar's end and may be cut off" in index["notes"]


def test_tars_in_a_tar_end_where_they_end_and_those_of_macos_are_none(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "train.tar", "w") as outer:
        for name in ("n01440764", "n01443537"):
            put(tmp_path / name, *(f"{name}_{i}.png" for i in range(4)))
            with tarfile.open(tmp_path / f"{name}.tar", "w") as inner:
                for i in range(4):
                    inner.add(tmp_path / name / f"{name}_{i}.png", f"{name}_{i}.png")
            outer.add(tmp_path / f"{name}.tar", f"{name}.tar")
            outer.addfile(tarfile.TarInfo(f"._{name}.tar"))
    archive = open_archive(tmp_path / "train.tar", tmp_path)
    images = [name for name in archive.names() if not name.startswith("._")]
    assert images == [f"{name}/{name}_{i}.png" for name in ("n01440764", "n01443537") for i in range(4)]
    assert archive.notes == []


@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_members_with_the_name_of_a_later_one_are_reported(kind: str, tmp_path: Path) -> None:
    path = tmp_path / f"in.{kind}"
    root = put(tmp_path / "in", "1.png", "2.png")
    with warnings.catch_warnings(), zipfile.ZipFile(path, "w") if kind == "zip" else tarfile.open(path, "w") as archive:
        warnings.simplefilter("ignore")  # of zipfile, on equal names
        for name in ("1.png", "2.png", "1.png"):
            (archive.write if isinstance(archive, zipfile.ZipFile) else archive.add)(root / name, name)
    index, _ = packed(tmp_path / "packed", path, val_fraction=0.0)
    assert counts(index) == {"train": 2}
    assert "warning: 1 members are not used, since later ones have their names, such as 1.png" in index["notes"]


@pytest.mark.parametrize("pack", [tar_of, zip_of])
def test_a_link_out_of_an_archive_is_refused(pack: Any, tmp_path: Path) -> None:
    root = put(tmp_path / "in", "a/1.png")
    os.symlink("/somewhere/b", root / "b")
    text = refusal(open_archive, pack(tmp_path / "packed", root), tmp_path / "work")
    assert "packed: in/b is a link to /somewhere/b, which is not in the archive; pack the files themselves" in text


# --- names


def test_a_zip_with_backslashes_has_folders(tmp_path: Path) -> None:
    path = tmp_path / "w.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for i in range(8):
            archive.writestr(f"set\\{'ab'[i % 2]}\\{i}.png", PNG)
        archive.writestr("set\\a\\", b"")
    index, _ = packed(tmp_path, path)
    assert (counts(index), index["classes"]) == ({"train": 6, "val": 2}, ["a", "b"])


def test_files_with_backslashes_in_their_names_have_folders(tmp_path: Path) -> None:
    index, _ = packed(tmp_path, put(tmp_path / "in", *(f"{'ab'[i % 2]}\\{i}.png" for i in range(8))))
    assert (counts(index), index["classes"]) == ({"train": 6, "val": 2}, ["a", "b"])


@pytest.mark.skipif(sys.platform == "darwin", reason="its file systems store UTF-8 only")
def test_names_that_are_not_utf8_are_read_as_latin1(tmp_path: Path) -> None:
    root = tmp_path / "in"
    for name in (b"caf\xe9", b"bar"):
        os.makedirs(os.fsencode(root) + b"/" + name)
        for i in range(4):
            with open(os.fsencode(root) + b"/" + name + b"/%d.png" % i, "wb") as file:
                file.write(PNG)
    for path in (root, tar_of(tmp_path / "in.tar", root)):
        index, shards = packed(tmp_path / path.name.replace(".", "-"), path)
        assert index["classes"] == ["bar", "café"]
        print(*index["classes"], file=io.TextIOWrapper(io.BytesIO(), "utf-8"))
        assert (shards / "rejected.tsv").exists()


def test_utf8_names_of_a_zip_without_its_flag(tmp_path: Path) -> None:
    path = tmp_path / "m.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for i in range(8):
            archive.writestr(f"{'ab'[i % 2]}AA/{i}.png", PNG)
    path.write_bytes(path.read_bytes().replace(b"aAA/", "äA/".encode()))
    assert open_source(dataset("images", path), tmp_path).classes == ("bAA", "äA")


def test_composed_and_decomposed_letters_are_one_class(tmp_path: Path) -> None:
    root = put(tmp_path / "in", "train/caf\u00e9/1.png", "train/b/1.png", "val/cafe\u0301/2.png")
    assert open_source(dataset("images", root), tmp_path).classes == ("b", "caf\u00e9")


# --- formats


FORMATS = {
    "heic": ("HEIF", "jpg"),
    "avif": ("AVIF", "jpg"),
    "jp2": ("JPEG2000", "jpg"),
    "tga": ("TGA", "png"),
    "jfif": ("JPEG", "jpg"),
    "png": ("PNG", "png"),
}


@pytest.mark.parametrize("ending", FORMATS)
def test_formats_of_phones_and_cameras_are_stored_as_webdataset_reads_them(ending: str, tmp_path: Path) -> None:
    kind, stored = FORMATS[ending]
    smooth = noise(0, 4, 6).resize((48, 32), Image.Resampling.BICUBIC)
    data = encoded(smooth, kind)
    index, shards = packed(
        tmp_path, put(tmp_path / "in", f"0.{ending}", f"1.{ending.upper()}", data=data), val_fraction=0.0
    )
    assert (counts(index), index["rejected"]) == ({"train": 2}, 0)
    with tarfile.open(shards / "train-00000.tar") as tar:
        names = tar.getnames()
        assert [name.rpartition(".")[2] for name in names] == [stored] * 2
        member = tar.extractfile(names[0])
        assert member is not None
        kept = member.read()
    assert (kept == data) == (ending in ("jfif", "png"))
    sample = next(open_shards(shards, "train").read(0, 1)).open().to_pil()
    error = np.abs(np.asarray(sample).astype(int) - np.asarray(smooth).astype(int)).mean()
    assert error < (6 if stored == "jpg" else 0.1)


def test_heic_without_its_extra_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(imagefolder, "READS_HEIF", False)
    root = put(tmp_path / "in", "1.jpg", "IMG_1.HEIC")
    text = refusal(open_source, dataset("images", root), tmp_path)
    assert text == (
        f"{root}: 1 HEIC images (IMG_1.HEIC) need the extra `heif`: `pip install pillow-heif`, or convert them to JPEG"
    )


def test_heic_by_its_content_stops_the_stage_without_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In WebDataset tars and parquet, or with another extension, it is seen only when it is decoded."""
    monkeypatch.setattr(images, "READS_HEIF", False)
    monkeypatch.setattr(image_check, "FORMATS", tuple(name for name in images.FORMATS if name != "HEIF"))
    root = put(tmp_path / "in", *(f"{i}.png" for i in range(8)))
    put(root, "9.jpg", data=encoded(noise(1), "HEIF"))
    text = refusal(packed, tmp_path, root)
    assert text == (
        f"{root}: 9.jpg: HEIC, which needs the extra `heif` (pip install pillow-heif), or convert it to JPEG"
    )


def test_raw_photos_count_as_rejected(tmp_path: Path) -> None:
    root = put(tmp_path / "in", *(f"{i}.png" for i in range(8)))
    put(root, "9.dng", data=encoded(noise(1), "TIFF"))  # as the preview that such files hold
    index, _ = packed(tmp_path, root, max_rejected=0.2)
    assert index["rejected_reasons"] == {"a format that is not read (DNG)": {"count": 1, "first": ["9.dng"]}}
    assert index["ignored"] == {}


def test_any_bytes_called_tga_are_rejected_elsewhere() -> None:
    with pytest.raises(PecoError, match="not an image of a known format"):
        images.decode(encoded(noise(0), "TGA"))


def test_the_limit_of_pixels_is_a_parameter(tmp_path: Path) -> None:
    root = put(tmp_path / "in", "1.png", "2.png")
    index, shards = packed(tmp_path, root, max_pixels=24 * 16)
    assert counts(index) == {"train": 1, "val": 1}
    text = refusal(lambda: packed(tmp_path / "x", root, max_pixels=24 * 16 - 1))
    assert "more than 383 pixels" in text
    large = [sample.max_pixels for sample in open_shards(shards, "train").read(0, 1)]
    assert large == [384]


# --- 16 bits


def twelve_bits(seed: int) -> bytes:
    values = np.random.default_rng(seed).integers(100, 4000, (16, 16)).astype(np.uint16)
    values[0, 0], values[0, 1] = 100, 4000
    return encoded(Image.fromarray(values))


def test_twelve_bits_of_sixteen_are_reported_and_can_be_stretched(tmp_path: Path) -> None:
    root = tmp_path / "in"
    for i in range(4):
        put(root, f"{i}.png", data=twelve_bits(i))
    index, shards = packed(tmp_path / "dark", root)
    assert index["notes"][-1] == (
        "warning: 4 16-bit images have values from 100 to 4000; dataset.range_16bit is 0 to 65535, so they come out nearly black; "
        "set it to [100, 4000], or to the range of the camera"
    )
    assert np.asarray(next(open_shards(shards, "train").read(0, 1)).open().to_pil()).max() == 16
    index, shards = packed(tmp_path / "bright", root, range_16bit=(100, 4000))
    assert index["notes"][-1] == "4 16-bit images have values from 100 to 4000; dataset.range_16bit is 100 to 4000"
    pixels = np.asarray(next(open_shards(shards, "train").read(0, 1)).open().to_pil())
    assert (pixels.min(), pixels.max()) == (0, 255)
    index, _ = packed(tmp_path / "clipped", root, range_16bit=(0, 2000))
    assert index["notes"][-1].endswith("so values outside are clipped")
    one = np.zeros((16, 16), np.uint16)
    one[0, 0] = 65535
    index, _ = packed(tmp_path / "one", put(root, "bright.png", data=encoded(Image.fromarray(one))))
    assert "half of them up to 4000 only, so they come out nearly black; set it to [0, 4000]" in index["notes"][-1]


def test_colours_of_sixteen_bits_are_reported(tmp_path: Path) -> None:
    """Pillow reads them by their upper 8 bits, so that 12 bits come out nearly black."""
    row = b"\0" + struct.pack(">48H", *([4000, 100, 800] * 16))
    chunks = (
        (b"IHDR", struct.pack(">IIBBBBB", 16, 16, 16, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(row * 16)),
        (b"IEND", b""),
    )
    data = b"".join(struct.pack(">I", len(c)) + t + c + struct.pack(">I", zlib.crc32(t + c)) for t, c in chunks)
    index, _ = packed(tmp_path, put(tmp_path / "in", "1.png", "2.png", data=b"\x89PNG\r\n\x1a\n" + data))
    assert index["notes"][-1] == (
        "warning: 2 16-bit colour images are read by their upper 8 bits, without dataset.range_16bit; half of them reach 3855 "
        "only, so they come out nearly black: stretch them to 65535 first"
    )


# --- what is left out


def test_the_summary_reports_all_that_is_left_out(tmp_path: Path) -> None:
    root = put(tmp_path / "in", *(f"train/{c}/{i}.png" for c in "ab" for i in range(9)))
    put(root, "test/1.png", "test/2.png", "extra/x.png", "README.md")
    put(root, "train/a/bad.png", data=b"?")
    index, shards = packed(tmp_path, root, max_ignored=0.1, max_rejected=0.1)
    assert summary(index, shards) == [
        "train: 14 images in 2 classes",
        "val: 4 images in 2 classes",
        "read as: splits in folders",
        "test is not used, since it has no labels and train has",
        "val is 4 images of train (dataset.val_fraction 0.25)",
        "left out: 1 unreadable, not an image of a known format: train/a/bad.png",
        "left out: 1 outside the splits: extra/x.png",
        "left out: 2 an unused test split: test/1.png, test/2.png",
        "left out: 1 not an image by its name: README.md",
        f"all that was left out is listed in {shards}/ignored.tsv and {shards}/rejected.tsv",
    ]
    assert (shards / "ignored.tsv").read_text().splitlines() == [
        "reason\tname",
        "an unused test split\ttest/1.png",
        "an unused test split\ttest/2.png",
        "not an image by its name\tREADME.md",
        "outside the splits\textra/x.png",
    ]


def test_too_many_ignored_images_are_refused(tmp_path: Path) -> None:
    root = put(tmp_path / "in", *(f"train/{c}/{i}.png" for c in "ab" for i in range(4)), "extra/1.png", "extra/2.png")
    assert refusal(open_source, dataset("images", root, max_ignored=0.1), tmp_path) == (
        f"{root}: 2 of 10 images have no place in its layout, more than dataset.max_ignored allows (0.1): 2 outside the splits: "
        "extra/1.png, extra/2.png; move or remove them, or raise dataset.max_ignored"
    )


REFUSED = {
    "cifar": (("data_batch_1", "test_batch", "batches.meta"), "CIFAR's pickled batches"),
    "cifar100": (
        ("cifar-100-python/meta", "cifar-100-python/train", "cifar-100-python/test"),
        "CIFAR's pickled batches",
    ),
    "mnist": (("train-images-idx3-ubyte.gz",), "MNIST's idx files"),
    "arrow": (("data-00000-of-00001.arrow", "state.json"), "Arrow files"),
    "tfrecord": (("train.tfrecord-00000-of-00002",), "TFRecords"),
    "numpy": (("x_train.npy",), "NumPy arrays"),
    "dicom": (("1.dcm",), "medical images"),
    "zips": (("a.zip",), "archives ("),
}


@pytest.mark.parametrize("name", REFUSED)
def test_data_sets_without_image_files_are_refused_by_name(name: str, tmp_path: Path) -> None:
    files, what = REFUSED[name]
    text = refusal(detect_source, put(tmp_path / "in", *files, data=b"\x80\x04"))
    assert f"holds {what}" in text
    assert "no image files; " in text
    with tarfile.open(tmp_path / "in.tar.gz", "w:gz") as tar:
        tar.add(tmp_path / "in", "in")
    assert f"holds {what}" in refusal(detect_source, tmp_path / "in.tar.gz")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("photos.7z", "photos.7z: this kind of archive is not read; unpack it, and name the folder"),
        ("photos.tar.zst", "photos.tar.zst: this kind of archive is not read; unpack it, and name the folder"),
        ("1.jpg", "1.jpg: a single image; name the folder of the images"),
    ],
)
def test_files_that_are_no_data_set_are_refused(name: str, expected: str, tmp_path: Path) -> None:
    put(tmp_path, name)
    assert refusal(detect_source, tmp_path / name).endswith(expected)


def test_pointers_of_git_lfs_are_named(tmp_path: Path) -> None:
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
    root = put(put(tmp_path / "in", "1.png", "2.png"), "3.png", data=pointer)
    assert "3.png (a pointer of Git LFS, not the image (`git lfs pull` fetches it))" in refusal(packed, tmp_path, root)


def test_a_table_is_not_taken_for_a_list_of_tars(tmp_path: Path) -> None:
    put(tmp_path, "labels.csv", data=b"file,label\n1.jpg,cat\n")
    assert "labels.csv: a table of labels; name the folder that holds it" in refusal(
        detect_source, tmp_path / "labels.csv"
    )


# --- tars of ImageNet


def class_tar(path: Path, wnid: str, count: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for i in range(count):
            info = tarfile.TarInfo(f"{wnid}_{i}.JPEG")
            info.size = len(PNG)
            tar.addfile(info, io.BytesIO(PNG))
    return path


WNIDS = ("n01440764", "n02102040")


def test_imagenets_tar_of_class_tars_is_a_folder_of_classes(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "ILSVRC2012_img_train.tar", "w") as outer:
        for wnid in WNIDS:
            outer.add(class_tar(tmp_path / f"t/{wnid}.tar", wnid, 4), f"{wnid}.tar")
    for name, path in (("tar", tmp_path / "ILSVRC2012_img_train.tar"), ("folder", tmp_path / "t")):
        assert detect_source(path) == "images"
        index, _ = packed(tmp_path / name, path)
        assert (counts(index), index["classes"]) == ({"train": 6, "val": 2}, list(WNIDS))


# --- parquet


def parquet(path: Path, count: int, *, names: tuple[str, ...] = ("ant", "bee"), column: str = "label") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = {
        "image": [{"bytes": encoded(noise(i)), "path": f"{i}.png"} for i in range(count)],
        column: [i % 2 for i in range(count)],
    }
    features = {"image": {"_type": "Image"}, column: {"names": list(names), "_type": "ClassLabel"}}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    pq.write_table(pa.table(rows).replace_schema_metadata(metadata), path, row_group_size=5)


def test_parquet_of_hugging_face_is_read_with_its_class_names(tmp_path: Path) -> None:
    root = tmp_path / "in"
    parquet(root / "data/train-00000-of-00002.parquet", 12)
    parquet(root / "data/train-00001-of-00002.parquet", 8)
    parquet(root / "data/test-00000-of-00001.parquet", 6)
    put(root, "README.md")
    assert detect_source(root) == "images"
    index, shards = packed(tmp_path, root)
    assert (counts(index), index["classes"]) == ({"train": 20, "val": 6}, ["ant", "bee"])
    train = open_shards(shards, "train")
    assert np.bincount(train.labels).tolist() == [10, 10]
    original = {encoded(noise(i)): i % 2 for i in range(12)}
    assert all(original.get(sample.encoded, sample.label) == sample.label for sample in train.read(0, 20))


def test_parquet_behind_a_link_and_images_without_a_label(tmp_path: Path) -> None:
    rows = {"image": [{"bytes": encoded(noise(i)), "path": None} for i in range(6)], "kind": [0, 1, -1, None, 1, 0]}
    put(tmp_path / "in", "store/README.md")
    pq.write_table(pa.table(rows), tmp_path / "in/store/train.parquet")
    (tmp_path / "in/data").symlink_to("store")
    index, shards = packed(tmp_path / "one", tmp_path / "in", label_field="kind", val_fraction=0.0)
    assert (counts(index), index["classes"]) == ({"train": 6}, ["0", "1"])
    assert sorted(open_shards(shards, "train").labels.tolist()) == [-1, -1, 0, 0, 1, 1]
    (tmp_path / "in/data").unlink()
    (tmp_path / "in/store").rename(tmp_path / "store")
    (tmp_path / "in/data").symlink_to(tmp_path / "store")
    assert "in/data: a link to" in refusal(open_source, dataset("images", tmp_path / "in"), tmp_path)


def test_parquet_without_images_or_pyarrow_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"text": ["a"]}), path)
    assert "no column of images; there are text" in refusal(open_source, dataset("images", path), tmp_path)
    path.write_bytes(b"PAR1 damaged")
    assert "can't be read as parquet" in refusal(open_source, dataset("images", path), tmp_path)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert "needs the extra `parquet`; `pip install pyarrow`" in refusal(open_source, dataset("images", path), tmp_path)
