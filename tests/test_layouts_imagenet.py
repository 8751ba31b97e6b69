"""ImageNet as it is distributed: the labels of val from a table, a list or the devkit, and what is refused."""

from __future__ import annotations

import io
import tarfile

import numpy as np
import pytest
from layout_cases import NO_IMAGE, TEST, Files, Kind, check, read, refusal, several, text
from scipy.io import savemat


def devkit(numbers: list[int], names: dict[int, str]) -> Files:
    """The devkit's ground truth and meta.mat."""
    kinds = [("ILSVRC2012_ID", "O"), ("WNID", "O")]
    meta = io.BytesIO()
    savemat(meta, {"synsets": np.array(list(names.items()), dtype=kinds)[:, None]})
    return {
        "ILSVRC2012_validation_ground_truth.txt": text(*map(str, numbers)),
        "meta.mat": meta.getvalue(),
    }


def packed(files: Files) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(f"devkit/data/{name}")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


WNIDS = ("n01440764", "n02102040")
IMAGENET = {
    **several("ILSVRC/Data/CLS-LOC/train/{c}/{c}_{i}.JPEG", 4, WNIDS),
    **several("ILSVRC/Data/CLS-LOC/val/ILSVRC2012_val_{i:08d}.JPEG", 3),
    **several("ILSVRC/Data/CLS-LOC/test/ILSVRC2012_test_{i:08d}.JPEG", 5),
    **several("ILSVRC/Annotations/CLS-LOC/train/{c}/{c}_{i}.xml", 4, WNIDS),
}
TARS = {
    **several("ILSVRC2012_img_train/{c}/{c}_{i}.JPEG", 4, WNIDS),
    **several("ILSVRC2012_img_val/ILSVRC2012_val_{i:08d}.JPEG", 3),
}
TRUTH = devkit([2, 1, 2], {1: "n02102040", 2: "n01440764"})

KINDS = {
    "ImageNet of Kaggle": Kind(
        {
            **IMAGENET,
            "LOC_val_solution.csv": text(
                "ImageId,PredictionString", *(f"ILSVRC2012_val_{i:08d},{WNIDS[i % 2]} 1 2 3 4" for i in range(3))
            ),
            "LOC_synset_mapping.txt": text("n01440764 tench", "n02102040 springer"),
        },
        (8, 3),
        WNIDS,
        {NO_IMAGE: 10, TEST: 5},
        note="labels of val are read from LOC_val_solution.csv",
    ),
    "ImageNet, the devkit": Kind(
        {**TARS, **{f"ILSVRC2012_devkit_t12/data/{n}": d for n, d in TRUTH.items()}},
        (8, 3),
        WNIDS,
        {NO_IMAGE: 2},
    ),
    "ImageNet, the devkit packed": Kind(
        {**TARS, "ILSVRC2012_devkit_t12.tar.gz": packed(TRUTH)}, (8, 3), WNIDS, {NO_IMAGE: 1}
    ),
    "ImageNet without the labels of val": Kind(TARS, (8, 3), WNIDS, note="val has no labels, though train has"),
    "Tiny-ImageNet": Kind(
        {
            **several("tiny-imagenet-200/train/{c}/images/{c}_{i}.JPEG", 5, WNIDS),
            **several("tiny-imagenet-200/train/{c}/{c}_boxes{i}.txt", 1, WNIDS),
            **several("tiny-imagenet-200/val/images/val_{i}.JPEG", 4),
            **several("tiny-imagenet-200/test/images/test_{i}.JPEG", 6),
            "tiny-imagenet-200/val/val_annotations.txt": text(
                *(f"val_{i}.JPEG\t{WNIDS[i % 2]}\t0\t0\t9\t9" for i in range(4))
            ),
            "tiny-imagenet-200/wnids.txt": text(*WNIDS),
        },
        (10, 4),
        WNIDS,
        {NO_IMAGE: 4, TEST: 6},
    ),
}


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_a_layout_becomes_splits_and_classes(kind: Kind) -> None:
    check(kind)


def test_the_labels_of_val_follow_the_numbers_of_the_devkit() -> None:
    layout = read(KINDS["ImageNet, the devkit"].files)
    assert [category for _, category in layout.splits["val"]] == ["n01440764", "n02102040", "n01440764"]


REFUSALS = {
    "a strange class in val's list": (
        {**TARS, "val_annotations.txt": b"ILSVRC2012_val_00000000.JPEG\tn09\n"},
        "val_annotations.txt: names the class n09, which is not in train",
    ),
    "a list of val that is too short": (
        {**TARS, **devkit([1], {1: "n01440764"})},
        "1 labels for 3 images of val; both must be complete",
    ),
    "numbers without their names": (
        {**TARS, "ILSVRC2012_validation_ground_truth.txt": b"1\n2\n1\n"},
        "needs meta.mat of the devkit beside it",
    ),
    "a damaged devkit": ({**TARS, "ILSVRC2012_devkit_t12.tar.gz": b"?"}, "can't be read as a tar"),
}


@pytest.mark.parametrize(("files", "message"), REFUSALS.values(), ids=REFUSALS)
def test_an_ambiguous_layout_is_refused(files: Files, message: str) -> None:
    assert message in refusal(files)
