"""Valid results of stages, and weights that users convert."""

from __future__ import annotations

import dataclasses
import io
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from random import Random

import numpy as np

from peco.core import artifacts, config
from peco.networks.backbones import pretrained

from .files import Files
from .inputs import SET, SIDE, picture, smoke, split_folders

CONVERTED_MODEL = "test_vit"
REFERENCE_MODEL = "test_resnet"


@cache
def results() -> Files:
    """Shards, tokens and models of the smallest size, with random weights."""
    import torch

    from peco.data import views
    from peco.data.shards import open_shards
    from peco.data.tokens import entry_dtype, shard_file, write_index
    from peco.mim import storage as mim_storage
    from peco.mim.model import MaskedImageModel, build_backbone
    from peco.sources.open import open_source
    from peco.sources.shard_writer import write_shards
    from peco.tokenizer import storage
    from peco.tokenizer.model import PerceptualTokenizer

    cfg = smoke()
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        (root / "set").mkdir()
        for file, data in split_folders().items():
            (root / "set" / file).parent.mkdir(parents=True, exist_ok=True)
            (root / "set" / file).write_bytes(data)
        dataset = dataclasses.replace(cfg.dataset, source="images", path=str(root / "set"), samples_per_shard=5)
        folder = root / "artifacts"
        write_shards(open_source(dataset, root), folder / "shards", dataset, work=root, workers=1)
        shards = open_shards(folder / "shards", "train")
        (folder / "tokens").mkdir()
        for shard in shards.shards:
            entries = np.zeros((shard.samples, 2), dtype=entry_dtype(16))
            entries["view"] = views.to_record(views.center(SIDE, SIDE))
            np.save(folder / "tokens" / shard_file(shard.name), entries)
        write_index(folder / "tokens", shards, views=2, grid=4, codes=cfg.tokenizer.quantizer.codes)
        parts = dataclasses.replace(cfg.tokenizer.autoencoder, channels=(4, 8)), cfg.tokenizer.quantizer
        storage.save(folder / "tokenizer", PerceptualTokenizer(*parts), *parts, {"image_size": 32})
        backbone, arch, args = build_backbone(cfg.pretrain.vit, 32, 0.1, 0.0)
        model = MaskedImageModel(backbone, cfg.tokenizer.quantizer.codes)
        mim_storage.save(folder / "backbone", model, target="tokens", arch=arch, model_args=args)
        _save_evaluations(folder, cfg.evaluate)
        return {p.relative_to(root).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def _save_evaluations(folder: Path, cfg: config.Evaluate) -> None:
    """The models of the evaluations, on the backbone."""
    from peco.evaluate.detection import model as detection
    from peco.evaluate.detection import storage as detectors
    from peco.evaluate.finetune import model as finetune
    from peco.evaluate.finetune import storage as classifiers
    from peco.evaluate.segmentation import model as segmentation
    from peco.evaluate.segmentation import storage as segmenters

    backbone, classes = folder / "backbone", ("a", "b")
    classifier = finetune.build_classifier(pretrained(backbone), 2, cfg.finetune)
    classifiers.save(folder / "classifier", classifier, backbone, classes)
    segmenter = segmentation.build_segmenter(pretrained(backbone), 2, cfg.segmentation, seed=0)
    segmenters.save(folder / "segmenter", segmenter, backbone, classes, cfg.segmentation)
    detector = detection.build_detector(pretrained(backbone), 2, cfg.detection, masks=True, seed=0)
    detectors.save(folder / "detector", detector, backbone, classes, cfg.detection, masks=True)


def _results(*names: str) -> Callable[[Random], Files]:
    def some(rng: Random) -> Files:
        chosen = {path: data for path, data in results().items() if path.split("/")[1] in names}
        return {**chosen, "data/photo.png": picture(0)}

    return some


shards, tokens = _results("shards", "tokenizer"), _results("shards", "tokens", "tokenizer")
tokenizer, backbone = _results("tokenizer"), _results("shards", "backbone")
classifier, segmenter, detector = (_results(kind) for kind in ("classifier", "segmenter", "detector"))


def checkpoint(rng: Random) -> Files:
    """An official checkpoint of MoCo v3."""
    return {f"{SET}.pth": _checkpoint()}


@cache
def _checkpoint() -> bytes:
    import torch
    from timm.models.vision_transformer import VisionTransformer

    model = VisionTransformer(img_size=32, patch_size=16, embed_dim=192, depth=1, num_heads=3, num_classes=0)
    state = {f"module.base_encoder.{name}": tensor for name, tensor in model.state_dict().items()}
    state["module.momentum_encoder.x"] = torch.zeros(2)
    out = io.BytesIO()
    torch.save({"epoch": 300, "state_dict": state, "optimizer": {"param_groups": [{"lr": 0.1}]}}, out)
    return out.getvalue()


def converted(rng: Random) -> Files:
    """Converted weights of a timm model."""
    return {**_results("shards")(rng), f"{SET}.safetensors": _weights(CONVERTED_MODEL)}


def reference(rng: Random) -> Files:
    """Weights of the reference of the evaluations, as a file or a timm folder."""
    weights = _weights(REFERENCE_MODEL)
    if rng.random() < 0.4:
        given = {f"{SET}.safetensors": weights}
    else:
        given = {f"{SET}/{artifacts.WEIGHTS}": weights, f"{SET}/{artifacts.CONFIG}": _description(REFERENCE_MODEL)}
    return {**_results("shards", "backbone")(rng), **given}


@cache
def _weights(model: str) -> bytes:
    import safetensors.torch
    import timm
    import torch

    torch.manual_seed(0)
    return bytes(safetensors.torch.save(timm.create_model(model, num_classes=0).state_dict(), {"format": "pt"}))


@cache
def _description(model: str) -> bytes:
    """The config.json of a folder as `artifacts.save_timm` writes it."""
    import timm

    net = timm.create_model(model, num_classes=0)
    with tempfile.TemporaryDirectory() as folder:
        artifacts.save_timm(
            f"{folder}/net", net, arch=model, model_args={}, mean=(0.5,) * 3, std=(0.5,) * 3, extra={"kind": "network"}
        )
        return Path(folder, "net", artifacts.CONFIG).read_bytes()
