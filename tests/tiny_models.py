"""A small model of each kind, untrained, and some images, for the tests of `peco`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from peco.core.params import parse_params
from peco.evaluate.detection import model as detection
from peco.evaluate.detection import storage as detectors
from peco.evaluate.finetune import model as finetune
from peco.evaluate.finetune import storage as classifiers
from peco.evaluate.segmentation import model as segmentation
from peco.evaluate.segmentation import storage as segmenters
from peco.mim import storage as mim_storage
from peco.mim.model import MaskedImageModel, build_backbone
from peco.networks.backbones import pretrained
from peco.tokenizer import storage as tokenizer_storage
from peco.tokenizer.model import PerceptualTokenizer
from pipelines.workflow.compose import compose_params

CFG = parse_params(compose_params("smoke", []))
CLASSES = ("square", "circle", "star")


def save_tokenizer(folder: Path) -> None:
    torch.manual_seed(0)
    cfg = CFG.tokenizer
    tokenizer = PerceptualTokenizer(cfg.autoencoder, cfg.quantizer)
    tokenizer_storage.save(folder, tokenizer, cfg.autoencoder, cfg.quantizer, {"image_size": cfg.image_size})


def save_backbone(folder: Path, *, position_embedding: bool = False) -> None:
    torch.manual_seed(0)
    backbone, arch, model_args = build_backbone(
        CFG.pretrain.vit, CFG.loader.image_size, 0.1, 0.0, position_embedding=position_embedding
    )
    _spread(backbone)
    mim_storage.save(folder, MaskedImageModel(backbone, 16), arch=arch, model_args=model_args)


def save_models(root: Path) -> None:
    """Write `backbone`, `tokenizer`, `classifier`, `segmenter`, `detector` (with masks)."""
    backbone = root / "backbone"
    save_backbone(backbone)
    save_tokenizer(root / "tokenizer")
    cfg = CFG.evaluate
    classifier = finetune.build_classifier(pretrained(backbone), len(CLASSES), cfg.finetune)
    _spread(classifier)
    classifiers.save(root / "classifier", classifier, backbone, CLASSES)
    segmenter = segmentation.build_segmenter(pretrained(backbone), len(CLASSES), cfg.segmentation, seed=0)
    segmenters.save(root / "segmenter", segmenter, backbone, CLASSES, cfg.segmentation)
    detector = detection.build_detector(pretrained(backbone), len(CLASSES), cfg.detection, masks=True, seed=0)
    detectors.save(root / "detector", detector, backbone, CLASSES, cfg.detection, masks=True)


def save_images(folder: Path, count: int) -> list[Path]:
    """Write noise of different sizes as `0.png`, `1.jpg`, `2.png`, …"""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number in range(count):
        pixels = np.random.default_rng(number).integers(0, 256, (40 + number, 60, 3), dtype=np.uint8)
        paths.append(folder / f"{number}.{'jpg' if number % 2 else 'png'}")
        Image.fromarray(pixels).save(paths[-1])
    return paths


def _spread(model: torch.nn.Module) -> None:
    """Make the outputs for different images differ: weights at initialisation are so small that they hardly do."""
    with torch.no_grad():
        for name, weights in model.named_parameters():
            if name.endswith(("weight", "table")) and "norm" not in name:
                weights.normal_(std=0.3)
