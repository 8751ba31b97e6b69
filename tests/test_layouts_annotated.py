"""Layouts of annotated sets: their images alone are used, masks and annotations are left out."""

from __future__ import annotations

import pytest
from layout_cases import CD, NO_IMAGE, TEST, Kind, check, empty, several, text

KINDS = {
    "COCO": Kind(
        several("train2017/{i:012d}.jpg", 16)
        | several("val2017/{i:012d}.jpg", 6)
        | empty("annotations/instances_train2017.json"),
        (16, 6),
        left={NO_IMAGE: 1},
        note="an annotated set",
    ),
    "COCO with panoptic masks": Kind(
        several("train2017/{i}.jpg", 16)
        | several("val2017/{i}.jpg", 6)
        | several("annotations/panoptic_train2017/{i}.png", 16),
        (16, 6),
        left={"masks": 16},
    ),
    "Roboflow COCO": Kind(
        several("train/{i}.jpg", 10)
        | several("valid/{i}.jpg", 4)
        | several("test/{i}.jpg", 2)
        | several("{c}/_annotations.coco.json", 1, ("train", "valid", "test")),
        (10, 4),
        left={NO_IMAGE: 3, TEST: 2},
    ),
    "YOLO": Kind(
        several("images/train/{i}.jpg", 10)
        | several("images/val/{i}.jpg", 4)
        | several("labels/train/{i}.txt", 10)
        | several("labels/val/{i}.txt", 4)
        | empty("data.yaml"),
        (10, 4),
        left={NO_IMAGE: 15},
    ),
    "Roboflow YOLO": Kind(
        several("train/images/{i}.jpg", 10)
        | several("valid/images/{i}.jpg", 4)
        | several("train/labels/{i}.txt", 10)
        | several("valid/labels/{i}.txt", 4)
        | empty("data.yaml"),
        (10, 4),
        left={NO_IMAGE: 15},
    ),
    "VOC": Kind(
        {
            **several("VOCdevkit/VOC2012/JPEGImages/{i:06d}.jpg", 12),
            **several("VOCdevkit/VOC2012/Annotations/{i:06d}.xml", 12),
            **several("VOCdevkit/VOC2012/SegmentationClass/{i:06d}.png", 5),
            **several("VOCdevkit/VOC2012/SegmentationObject/{i:06d}.png", 5),
            "VOCdevkit/VOC2012/ImageSets/Main/train.txt": text(*(f"{i:06d}" for i in range(8))),
            "VOCdevkit/VOC2012/ImageSets/Main/val.txt": text(*(f"{i:06d}" for i in range(8, 11))),
            "VOCdevkit/VOC2012/ImageSets/Main/trainval.txt": text(*(f"{i:06d}" for i in range(11))),
            "VOCdevkit/VOC2012/ImageSets/Main/cat_train.txt": text("000000 -1"),
        },
        (9, 3),
        left={NO_IMAGE: 16, "masks": 10},
        note="1 images in none of these lists are in train",
    ),
    "labelImg": Kind(
        several("{i}.jpg", 20) | several("{i}.xml", 20), (18, 2), left={NO_IMAGE: 20}, note="an annotated set"
    ),
    "labelme": Kind(several("{c}/{i}.jpg", 10) | several("{c}/{i}.json", 10), (18, 2), left={NO_IMAGE: 20}),
    "ADE20K": Kind(
        several("images/training/{i}.jpg", 16)
        | several("images/validation/{i}.jpg", 6)
        | several("annotations/training/{i}.png", 16)
        | several("annotations/validation/{i}.png", 6),
        (16, 6),
        left={"masks": 22},
    ),
    "Cityscapes": Kind(
        several("leftImg8bit/train/{c}/{i}_leftImg8bit.png", 5, ("aachen", "bochum"))
        | several("leftImg8bit/val/{c}/{i}_leftImg8bit.png", 3, ("ulm",))
        | several("gtFine/train/{c}/{i}_gtFine_labelIds.png", 5, ("aachen", "bochum"))
        | several("gtFine/val/{c}/{i}_gtFine_labelIds.png", 3, ("ulm",)),
        (10, 3),
        left={"masks": 13},
    ),
    "mmsegmentation": Kind(
        several("{c}/train/{i}.png", 6, ("img_dir", "ann_dir")) | several("{c}/val/{i}.png", 3, ("img_dir", "ann_dir")),
        (6, 3),
        left={"masks": 9},
    ),
    "CamVid": Kind(
        several("{c}/{i}.png", 6, ("train", "trainannot")) | several("{c}/{i}.png", 3, ("val", "valannot")),
        (6, 3),
        left={"masks": 9},
    ),
    "BDD100K, with coloured masks": Kind(
        several("seg/images/train/{i}.jpg", 6)
        | several("seg/images/val/{i}.jpg", 3)
        | several("seg/labels/train/{i}_train_id.png", 6)
        | several("seg/color_labels/train/{i}_train_color.png", 6),
        (6, 3),
        left={"masks": 12},
    ),
    "Mapillary Vistas 2": Kind(
        several("training/images/{i}.jpg", 6)
        | several("validation/images/{i}.jpg", 3)
        | several("training/v1.2/{c}/{i}.png", 6, ("instances", "labels"))
        | several("training/v2.0/panoptic/{i}.png", 6),
        (6, 3),
        left={"masks": 18},
    ),
    "LoveDA": Kind(
        several("Train/{c}/images_png/{i}.png", 5, ("Rural", "Urban"))
        | several("Train/{c}/masks_png/{i}.png", 5, ("Rural", "Urban"))
        | several("Val/{c}/images_png/{i}.png", 2, ("Rural", "Urban")),
        (10, 4),
        left={"masks": 10},
    ),
    "CelebAMask-HQ": Kind(
        several("CelebA-HQ-img/{i}.jpg", 10) | several("CelebAMask-HQ-mask-anno/0/{i:05d}_hair.png", 10),
        (9, 1),
        left={"masks": 10},
    ),
    "labelme's export": Kind(
        several("JPEGImages/{i}.jpg", 10)
        | several("SegmentationClassPNG/{i}.png", 10)
        | several("SegmentationClassVisualization/{i}.jpg", 10),
        (9, 1),
        left={"masks": 20},
    ),
    "ADE20K in full, with parts of objects": Kind(
        several("images/training/urban/street/{i}.jpg", 10)
        | several("images/training/urban/street/{i}_seg.png", 10)
        | several("images/training/urban/street/{i}_parts_1.png", 10)
        | several("images/training/urban/street/{i}/instance_000.png", 10),
        (9, 1),
        left={"masks": 30},
    ),
    "FiftyOne": Kind(
        several("train/data/{i}.jpg", 10)
        | several("train/labels/masks/{i}.png", 3)
        | several("validation/data/{i}.jpg", 4),
        (10, 4),
        left={"masks": 3},
    ),
    "MVTec, each object with splits": Kind(
        several("{c}/train/good/{i}.png", 5, ("bottle", "cable"))
        | several("{c}/test/broken/{i}.png", 2, ("bottle", "cable"))
        | several("{c}/ground_truth/broken/{i}_mask.png", 2, ("bottle", "cable")),
        (10, 4),
        left={"masks": 4},
    ),
    "an unknown folder beside images and masks": Kind(
        several("images/{i}.jpg", 10) | several("masks/{i}.png", 10) | several("edges/{i}.png", 10),
        (9, 1),
        left={"masks": 10, "beside the folders of images and masks": 10},
    ),
    "Carvana": Kind(several("train/{i}.jpg", 10) | several("train_masks/{i}_mask.gif", 10), (9, 1), left={"masks": 10}),
    "masks in the folder of a scene": Kind(
        several("{c}/{i}.jpg", 5, ("hall", "yard")) | several("{c}_mask/{i}.png", 5, ("hall", "yard")),
        (9, 1),
        left={"masks": 10},
    ),
    "photos of classes whose names have words of masks": Kind(
        several("{c}/{i}.jpg", 10, ("face", "face_mask")), (18, 2), ("face", "face_mask")
    ),
    "PNGs with names of their own of such classes": Kind(
        several("{c}/{c}-{i}.png", 10, ("corvette", "mustang", "mustang_gt")),
        (27, 3),
        ("corvette", "mustang", "mustang_gt"),
    ),
    "a class called mask beside one called photo": Kind(
        several("{c}/{i}.png", 10, ("mask", "photo")), (18, 2), ("mask", "photo"), options={"labels": "folders"}
    ),
    "photos whose names end in color or label": Kind(
        several("{c}/{i}.jpg", 4) | several("{c}/{i}_color.jpg", 4) | several("{c}/{i}_label.jpg", 2), (18, 2), CD
    ),
    "masks beside their images, as JPEG": Kind(
        several("{c}/{i}.jpg", 10) | several("{c}/{i}_mask.jpg", 10), (18, 2), CD, {"masks": 20}
    ),
    "a YAML and a text that are not those of YOLO": Kind(
        several("train/{c}/{i}.jpg", 10) | several("val/{c}/{i}.jpg", 4) | empty("data.yaml", "README.txt"),
        (20, 8),
        CD,
        {NO_IMAGE: 2},
    ),
    "an annotated set, its folders as classes": Kind(
        several("images/{c}/{i}.jpg", 10) | several("segmentations/{c}/{i}.png", 10),
        (18, 2),
        CD,
        {"masks": 20},
        options={"labels": "folders"},
    ),
}


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_a_layout_becomes_splits_and_classes(kind: Kind) -> None:
    check(kind)
