"""Shards: written samples are unchanged, can be read by any range, and have the same bytes each time."""

from __future__ import annotations

import contextlib
import gc
import hashlib
import io
import json
import os
import pickle
import sys
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from image_sets import dataset, encoded
from PIL import Image, ImageFile

from peco.core.errors import PecoError
from peco.data import images
from peco.data.images import decode
from peco.data.shards import Sample, load_index, open_shards
from peco.sources.base import Ignored, RawSample
from peco.sources.open import open_source
from peco.sources.shard_writer import write_shards

DATASET = dataset("images", "data/x", samples_per_shard=7, val_fraction=0.1, max_ignored=0.01)


def noise(seed: int, width: int = 12, height: int = 10) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


@dataclass
class Fake:
    """A source from a list."""

    items: list[RawSample]
    classes: tuple[str, ...] = ("ant", "bee")
    ignored: Ignored = field(default_factory=Ignored)
    notes: list[str] = field(default_factory=list)
    total: int | None = None

    def samples(self) -> Iterator[RawSample]:
        return iter(self.items)


def raw(count: int, split: str = "train", label: Callable[[int], int] = lambda i: i % 2) -> list[RawSample]:
    kinds = ("JPEG", "PNG", "WEBP", "BMP")
    return [RawSample(split, f"{split}/x.{i}.JPEG", encoded(noise(i), kinds[i % 4]), label(i)) for i in range(count)]


def write(root: Path, items: list[RawSample], workers: int = 2, **changes: object) -> dict[str, object]:
    return write_shards(
        Fake(items),
        root,
        replace(DATASET, **changes),
        work=root.parent / "work",
        workers=workers,  # type: ignore[arg-type]
    )


def files(root: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(root.iterdir())}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("written") / "shards"
    write(root, raw(45) + raw(6, "val"))
    return root


# --- writing


def test_the_index_describes_classes_splits_and_shards(written: Path) -> None:
    index = load_index(written)
    keys = ["version", "source", "classes", "splits", "rejected", "ignored", "rejected_reasons", "notes", "max_pixels"]
    assert list(index) == keys
    assert (index["source"], index["classes"], index["rejected"], index["ignored"]) == ("images", ["ant", "bee"], 0, {})
    train = index["splits"]["train"]
    assert (train["samples"], train["labelled"], train["classes"]) == (45, True, ["ant", "bee"])
    assert [s["samples"] for s in train["shards"]] == [7, 7, 7, 7, 7, 7, 3]
    assert train["shards"][1]["name"] == "train-00001.tar"
    for shard in train["shards"]:
        data = (written / shard["name"]).read_bytes()
        assert (shard["bytes"], shard["sha256"]) == (len(data), hashlib.sha256(data).hexdigest())
    names = [s["name"] for split in index["splits"].values() for s in split["shards"]]
    arrays = [f"{split}.{what}.npy" for split in ("train", "val") for what in ("labels", "offsets")]
    assert sorted(files(written)) == sorted([*names, *arrays, "index.json", "rejected.tsv"])
    assert (written / "rejected.tsv").read_text() == "split\tname\treason\n"


def test_samples_keep_their_bytes_labels_and_order(written: Path) -> None:
    for split, items in (("train", raw(45)), ("val", raw(6, "val"))):
        shards = open_shards(written, split)
        assert len(shards) == len(items)
        assert shards.labeled
        read = list(shards.read(0, len(shards)))
        assert [(s.encoded, s.label) for s in read] == [(r.encoded, r.label) for r in items]
        assert [s.index for s in read] == list(range(len(items)))
        assert (shards.labels == [r.label for r in items]).all()
        assert len({s.key for s in read}) == len(read)
        assert read[3].key == f"00000003-{split}_x_3"


def test_plain_webdataset_reads_them(written: Path) -> None:
    import webdataset as wds

    index = load_index(written)
    urls = [str(written / shard["name"]) for shard in index["splits"]["train"]["shards"]]
    samples = list(wds.WebDataset(urls, shardshuffle=False).decode("pil"))
    ours = list(open_shards(written, "train").read(0, 45))
    kinds = ["jpg", "png", "webp", "bmp"]
    assert [s["__key__"] for s in samples] == [s.key for s in ours]
    assert [s["cls"] for s in samples] == [s.label for s in ours]
    for i, (theirs, our) in enumerate(zip(samples, ours, strict=True)):
        assert (np.asarray(theirs[kinds[i % 4]]) == np.asarray(our.open().to_pil())).all()


@pytest.mark.parametrize("workers", [1, 5])
def test_same_bytes_twice_and_for_any_number_of_workers(workers: int, written: Path, tmp_path: Path) -> None:
    write(tmp_path / "again", raw(45) + raw(6, "val"), workers=workers)
    assert files(tmp_path / "again") == files(written)


def test_splits_may_come_interleaved(written: Path, tmp_path: Path) -> None:
    train, val = raw(45), raw(6, "val")
    write(tmp_path / "mixed", [r for i in range(45) for r in (train[i], *val[i : i + 1])])
    assert files(tmp_path / "mixed") == files(written)


def test_samples_may_lack_labels(tmp_path: Path) -> None:
    write(tmp_path / "s", raw(8, label=lambda i: -1) + raw(8, "val", label=lambda i: i - 1 if i < 2 else 1))
    none, some = open_shards(tmp_path / "s", "train"), open_shards(tmp_path / "s", "val")
    assert not none.labeled
    assert not some.labeled
    assert {s.label for s in none.read(0, 8)} == {-1}
    assert [s.label for s in some.read(0, 8)] == [-1, 0, 1, 1, 1, 1, 1, 1]
    splits = load_index(tmp_path / "s")["splits"]
    assert (splits["train"]["classes"], splits["val"]["classes"]) == ([], ["ant", "bee"])


def test_a_class_may_have_one_image(tmp_path: Path) -> None:
    write(tmp_path / "s", raw(9, label=lambda i: int(i == 4)))
    assert load_index(tmp_path / "s")["splits"]["train"]["classes"] == ["ant", "bee"]
    assert [s.index for s in open_shards(tmp_path / "s", "train").read(0, 9) if s.label == 1] == [4]


def test_resize_shrinks_the_short_side_and_leaves_smaller_images_alone(tmp_path: Path) -> None:
    items = [
        RawSample("train", "wide", encoded(noise(0, 60, 30), "JPEG"), 0),
        RawSample("train", "tall", encoded(noise(1, 30, 90), "PNG"), 0),
        RawSample("train", "other", encoded(noise(2, 40, 40), "WEBP"), 0),
        RawSample("train", "small", encoded(noise(3, 40, 20), "JPEG"), 0),
    ]
    write(tmp_path / "s", items, resize=20)
    read = list(open_shards(tmp_path / "s", "train").read(0, 4))
    opened = [Image.open(io.BytesIO(s.encoded)) for s in read]
    assert [i.size for i in opened] == [(40, 20), (20, 60), (20, 20), (40, 20)]
    assert [i.format for i in opened] == ["JPEG", "PNG", "JPEG", "JPEG"]
    assert read[3].encoded == items[3].encoded


def test_progress_is_reported(tmp_path: Path) -> None:
    reported: list[tuple[int, int | None]] = []
    write_shards(
        Fake(raw(3)),
        tmp_path / "s",
        DATASET,
        work=tmp_path,
        progress=lambda done, total: reported.append((done, total)),
    )
    assert reported == [(1, None), (2, None), (3, None)]


def test_an_error_while_writing_is_the_only_one_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Breaks(Fake):
        def samples(self) -> Iterator[RawSample]:
            yield from self.items
            raise KeyboardInterrupt

    complaints: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", complaints.append)
    with pytest.raises(KeyboardInterrupt):
        write_shards(Breaks(raw(10)), tmp_path / "shards", DATASET, work=tmp_path / "work", workers=1)
    gc.collect()
    assert complaints == []


def test_a_folder_of_images_becomes_shards(tmp_path: Path) -> None:
    for i in range(30):
        path = tmp_path / f"in/{'ab'[i % 2]}/{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(noise(i)))
    (tmp_path / "in/notes.txt").touch()
    dataset = replace(DATASET, path=str(tmp_path / "in"), val_fraction=0.2)
    source = open_source(dataset, tmp_path / "work")
    index = write_shards(source, tmp_path / "s", dataset, work=tmp_path / "work")
    assert index == load_index(tmp_path / "s")
    assert {split: entry["samples"] for split, entry in index["splits"].items()} == {"train": 24, "val": 6}
    assert index["classes"] == ["a", "b"]
    assert index["ignored"] == {"not an image by its name": {"count": 1, "by_rule": True, "first": ["notes.txt"]}}


# --- rejecting

JPEG = encoded(noise(0, 64, 64), "JPEG")
PNG = encoded(noise(0, 64, 64), "PNG")


def bomb() -> bytes:
    """A PNG whose header claims 100000 x 100000 pixels."""
    header = b"IHDR" + (100_000).to_bytes(4, "big") * 2 + PNG[24:29]
    return PNG[:8] + (13).to_bytes(4, "big") + header + zlib.crc32(header).to_bytes(4, "big") + PNG[33:]


BAD = {
    "truncated jpeg": (JPEG[: len(JPEG) // 2], "truncated"),
    "truncated png": (PNG[: len(PNG) // 2], "truncated"),
    "text": (b"hello world", "not an image of a known format"),
    "empty": (b"", "empty file"),
    "one pixel": (encoded(noise(0, 1, 1)), "a side under 8 pixels"),
    "thin": (encoded(noise(0, 100, 7)), "a side under 8 pixels"),
    "bomb": (bomb(), "more than 89478485 pixels"),
    "float": (encoded(Image.new("F", (9, 9)), "TIFF"), "floating-point pixels, which have no agreed range"),
    "svg": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not an image of a known format"),
}


@pytest.mark.parametrize("name", BAD)
def test_unusable_images_are_refused_with_a_reason(name: str) -> None:
    data, reason = BAD[name]
    with pytest.raises(PecoError, match=reason):
        decode(data)


def test_an_image_of_many_pixels_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "MAX_PIXELS", 4000)
    with pytest.raises(PecoError, match="more than 4000 pixels"):
        decode(JPEG)


def test_rejected_images_are_listed_and_left_out(tmp_path: Path) -> None:
    bad = [RawSample("train", f"a\tb/{name}.jpg", data, 0) for name, (data, _) in BAD.items()]
    index = write(tmp_path / "s", raw(10) + bad, max_rejected=0.5)
    assert index["rejected"] == len(BAD)
    assert len(open_shards(tmp_path / "s", "train")) == 10
    lines = (tmp_path / "s/rejected.tsv").read_text().splitlines()
    assert lines[1:] == [f"train\ta\\tb/{name}.jpg\t{reason}" for name, (_, reason) in BAD.items()]


def test_too_many_rejected_images_are_an_error(tmp_path: Path) -> None:
    bad = [RawSample("val", f"{name}.jpg", data, 0) for name, (data, _) in BAD.items()]
    with pytest.raises(PecoError) as error:
        write(tmp_path / "s", raw(91) + bad, max_rejected=0.08)
    text = str(error.value)
    assert "9 of 100 images can't be used, more than dataset.max_rejected allows (0.08)" in text
    assert str(tmp_path / "work/rejected.tsv") in text
    assert "the first: truncated jpeg.jpg (truncated), truncated png.jpg (truncated), text.jpg (not an image" in text
    assert len((tmp_path / "work/rejected.tsv").read_text().splitlines()) == 10
    assert not (tmp_path / "s/index.json").exists()
    assert write(tmp_path / "t", raw(91) + bad, max_rejected=0.09)["rejected"] == 9


def test_no_usable_image_is_an_error_for_any_max_rejected(tmp_path: Path) -> None:
    with pytest.raises(PecoError, match=r"1 of 1 images .* no image is left to train on"):
        write(tmp_path / "s", [RawSample("train", "x.jpg", b"", 0)], max_rejected=1.0)


# --- decoding


def pixel(image: Image.Image, at: tuple[int, int] = (4, 4)) -> tuple[int, ...]:
    assert image.mode == "RGB"
    value = image.getpixel(at)
    assert isinstance(value, tuple)
    return value


def plain(mode: str, color: object) -> Image.Image:
    return Image.new(mode, (9, 9), color)  # type: ignore[arg-type]


def palette(transparent: bool) -> bytes:
    image = plain("P", 1)
    image.putpalette([0, 0, 0, 200, 100, 50])
    return encoded(image, **({"transparency": 1} if transparent else {}))


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (encoded(plain("RGB", (1, 2, 3))), (1, 2, 3)),
        (encoded(plain("L", 77)), (77, 77, 77)),
        (encoded(plain("1", 1)), (255, 255, 255)),
        (encoded(plain("LA", (100, 255))), (100, 100, 100)),
        (encoded(plain("LA", (100, 0))), (255, 255, 255)),
        (encoded(plain("RGBA", (10, 20, 30, 0))), (255, 255, 255)),
        (encoded(plain("RGBA", (0, 100, 200, 128))), (127, 177, 227)),
        (encoded(plain("RGB", (10, 20, 30)), transparency=(10, 20, 30)), (255, 255, 255)),
        (encoded(plain("CMYK", (0, 255, 255, 0)), "TIFF"), (255, 0, 0)),
        (encoded(plain("I;16", 65535)), (255, 255, 255)),
        (encoded(plain("I;16", 257 * 40)), (40, 40, 40)),
        (encoded(plain("I", 257 * 40), "TIFF"), (40, 40, 40)),
        (palette(False), (200, 100, 50)),
        (palette(True), (255, 255, 255)),
        (encoded(plain("RGB", (5, 5, 5)), "GIF", save_all=True, append_images=[plain("RGB", (9, 9, 9))]), (5, 5, 5)),
    ],
    ids=[
        "rgb",
        "grey",
        "two levels",
        "opaque grey",
        "transparent grey",
        "transparent",
        "half transparent",
        "one colour transparent",
        "cmyk",
        "16-bit white",
        "16-bit",
        "32-bit",
        "palette",
        "transparent palette",
        "animation",
    ],
)
def test_any_mode_becomes_rgb(data: bytes, expected: tuple[int, ...]) -> None:
    assert pixel(decode(data)) == expected


def test_cmyk_jpegs_are_read(tmp_path: Path) -> None:
    data = encoded(plain("CMYK", (0, 255, 255, 0)), "JPEG", quality=100)
    red, green, blue = pixel(decode(data))
    assert red > 250
    assert max(green, blue) < 5


def test_multi_picture_files_of_phones_are_stored_as_jpegs(tmp_path: Path) -> None:
    data = encoded(noise(0), "MPO", save_all=True, append_images=[noise(1)])
    write(tmp_path / "s", [RawSample("train", "x.jpg", data, 0)])
    assert b"00000000-x.jpg" in (tmp_path / "s/train-00000.tar").read_bytes()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_turned_upright(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = noise(1, 16, 24)
    turned = decode(encoded(image, exif=exif))
    ways = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_270,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }
    upright = image.transpose(ways[orientation]) if orientation > 1 else image
    assert (np.asarray(turned) == np.asarray(upright)).all()


@given(cut=st.integers(0, len(JPEG)), at=st.integers(0, len(PNG) - 1), byte=st.integers(0, 255))
@settings(max_examples=60, deadline=None)
def test_damaged_bytes_give_an_image_or_one_line(cut: int, at: int, byte: int) -> None:
    for data in (JPEG[:cut], PNG[:at] + bytes([byte]) + PNG[at + 1 :]):
        with contextlib.suppress(PecoError):
            assert decode(data).mode == "RGB"


def test_truncated_images_are_never_filled_up() -> None:
    assert ImageFile.LOAD_TRUNCATED_IMAGES is False


def test_an_error_names_the_sample() -> None:
    with pytest.raises(PecoError, match="sample 0001-x: empty file; run `dvc checkout`"):
        Sample(1, "0001-x", b"", 0).open()


# --- reading


@given(bounds=st.tuples(st.integers(0, 45), st.integers(0, 45)).map(sorted))
@settings(max_examples=60, deadline=None)
def test_a_range_reads_the_same_as_the_slice_of_all(written: Path, bounds: list[int]) -> None:
    shards = open_shards(written, "train")
    assert list(shards.read(*bounds)) == list(shards.read(0, 45))[slice(*bounds)]


@given(st.sets(st.integers(0, 44), min_size=1))
def test_a_part_of_a_split_is_a_split(written: Path, chosen: set[int]) -> None:
    everything = open_shards(written, "train")
    part = everything.take(np.array(sorted(chosen)))
    samples = list(everything.read(0, 45))
    expected = [replace(samples[i], index=number) for number, i in enumerate(sorted(chosen))]
    assert list(part.read(0, len(part))) == expected
    assert part.labels.tolist() == [sample.label for sample in expected]
    assert sum(shard.samples for shard in part.shards) == len(part) == len(chosen)


@pytest.mark.parametrize("bounds", [(-1, 3), (3, 2), (0, 46)])
def test_ranges_outside_the_split_are_refused(written: Path, bounds: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="of 45 in train"):
        list(open_shards(written, "train").read(*bounds))


def test_a_shard_set_can_be_pickled(written: Path) -> None:
    shards = open_shards(written, "train")
    first = next(shards.read(20, 30))
    again = pickle.loads(pickle.dumps(shards))
    assert next(again.read(20, 30)) == first
    assert again.shards == shards.shards


def test_starts_are_the_first_samples_of_shards(written: Path) -> None:
    assert open_shards(written, "train").starts.tolist() == [0, 7, 14, 21, 28, 35, 42]


def broken(written: Path, root: Path) -> Path:
    root.mkdir()
    for name, data in files(written).items():
        (root / name).write_bytes(data)
    return root


def test_errors_about_damaged_shards_name_the_remedy(written: Path, tmp_path: Path) -> None:
    def fails(name: str, data: bytes | None) -> None:
        root = broken(written, tmp_path / f"{name}-{len(data or b'')}")
        (root / name).unlink()
        if data is not None:
            (root / name).write_bytes(data)
        with pytest.raises(PecoError, match=r"dvc (checkout|repro shards)") as error:
            list(open_shards(root, "train").read(0, 45))
        assert name in str(error.value)

    tar = (written / "train-00002.tar").read_bytes()
    for name, data in (
        ("train-00002.tar", None),
        ("train-00002.tar", tar[:-1]),
        ("train-00002.tar", b"\0" * len(tar)),
        ("index.json", None),
        ("index.json", b"{"),
        ("index.json", b"[]"),
        ("index.json", json.dumps({**load_index(written), "version": 0}).encode()),
        ("train.labels.npy", None),
        ("train.labels.npy", b"no array"),
        ("train.offsets.npy", (written / "val.offsets.npy").read_bytes()),
    ):
        fails(name, data)


def test_a_missing_split_is_named_with_those_that_exist(written: Path) -> None:
    with pytest.raises(PecoError, match="no split test; it has train, val"):
        open_shards(written, "test")


# --- real images


@pytest.mark.data
def test_cifar10_is_packed_whole_and_shuffled(tmp_path: Path) -> None:
    folder = os.environ.get("PECO_TEST_DATA")
    if not folder or not (Path(folder) / "cifar10.tar").is_file():
        pytest.skip("PECO_TEST_DATA names no folder with cifar10.tar")
    dataset = replace(DATASET, path=f"{folder}/cifar10.tar", samples_per_shard=1000)
    source = open_source(dataset, tmp_path / "work")
    index = write_shards(source, tmp_path / "s", dataset, work=tmp_path / "work")
    assert {split: entry["samples"] for split, entry in index["splits"].items()} == {"train": 50_000, "val": 10_000}
    assert (len(index["classes"]), index["rejected"]) == (10, 0)
    train = open_shards(tmp_path / "s", "train")
    assert np.bincount(train.labels).tolist() == [5000] * 10
    assert np.bincount(train.labels[:1000]).min() > 60  # well shuffled
    for sample in train.read(24_990, 25_010):
        assert sample.open().size == (32, 32)
        assert sample.key.split("-")[1].startswith(f"train_{index['classes'][sample.label]}_")
