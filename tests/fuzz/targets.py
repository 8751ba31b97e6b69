"""Readers of the inputs: functions that the stages call, and commands. Each reads from the current folder."""

from __future__ import annotations

import dataclasses
import importlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from random import Random
from types import ModuleType
from typing import Any
from unittest import mock

import yaml

from peco.core import artifacts, config, workfiles
from peco.core.params import load_params
from peco.data import tokens as token_files
from peco.data.loader import eval_batches
from peco.data.samples import CenterView
from peco.data.shards import load_index, open_evaluation_split, open_shards
from peco.data.summary import summary
from peco.evaluate.agreement.triplets import TwoAfc
from peco.runtime.stage import run_stage
from peco.scenes.descriptor import read_descriptor
from pipelines.workflow import inputs as workflow_inputs

from . import inputs, results
from .inputs import SET
from .values import odd

Function = Callable[[Random], object]
Command = Callable[[Random], int]  # returns the exit status


def _set() -> str:
    """The path of the input, with its extension."""
    return str(next((path for path in sorted(Path("data").glob("set*")) if not path.name.endswith(".dvc")), Path(SET)))


def _stage(module: str, **settings: Any) -> int:
    """Run a stage in this process, with parameters that differ from `smoke` by these settings (`a__b` is a.b)."""
    if settings:
        changed = [f"{key.replace('__', '.')}={value}" for key, value in settings.items()]
        Path("params.yaml").write_text(inputs.parameters(*changed), encoding="utf-8")
    stage: ModuleType = importlib.import_module(module)
    name = "evaluate@" + module.split(".")[-2] if ".evaluate." in module else module.split(".")[-1]
    with mock.patch.object(os, "_exit", sys.exit):
        try:
            run_stage(name, stage.PARAMS, stage.main)
        except SystemExit as status:
            return int(status.code or 0)
        finally:
            for lock in workfiles._held.values():
                lock.close()
            workfiles._held.clear()
    return 0


def _command(module: str, *arguments: str) -> int:
    """Run the main function of a command."""
    return int(importlib.import_module(module).main(list(arguments)))


# --- images


def _dataset(rng: Random, **values: Any) -> config.Dataset:
    options: dict[str, Any] = {"max_rejected": rng.choice([0.01, 1.0]), "max_ignored": rng.choice([0.01, 1.0])}
    return dataclasses.replace(inputs.smoke().dataset, samples_per_shard=5, **options, **values)


def _pack(dataset: config.Dataset) -> None:
    """Write shards, as the stage does, and read them."""
    from peco.sources.open import open_source
    from peco.sources.shard_writer import write_shards

    source = open_source(dataset, Path("work"))
    folder = Path("artifacts/shards")
    index = write_shards(source, folder, dataset, work=Path("work"), workers=1)
    print(*summary(index, folder), sep="\n")
    read_shards(Random(0))


def inspect(rng: Random) -> None:
    """The steps of `make params DATA=…` before `dvc add`."""
    found = workflow_inputs.inspect(_set())
    workflow_inputs.check_images(found, _dataset(rng, source=found.source, path=str(found.path)))


def images(rng: Random) -> None:
    labels = rng.choice(["auto", "auto", "folders", "none"])
    _pack(_dataset(rng, source="images", path=_set(), labels=labels, label_field=rng.choice([None, None, "label"])))


def webdataset(rng: Random) -> None:
    options = {
        "labels": rng.choice(["auto", "auto", "folders", "tars", "none"]),
        "class_numbers": rng.choice(["auto", "index", "id"]),
        "label_field": rng.choice([None, None, "cls", "json.label"]),
        "image_field": rng.choice([None, None, None, "jpg", "all"]),
    }
    _pack(_dataset(rng, source="webdataset", path=_set(), **options))


def shards_stage(source: str) -> Command:
    return lambda rng: _stage("peco.stages.shards", dataset__source=source, dataset__path=_set())


def make_params(rng: Random) -> int:
    subprocess.run(["git", "init", "--quiet"], check=True)
    with mock.patch.object(workflow_inputs, "import_data"):  # `dvc add` takes seconds
        return _command("pipelines.params", "--preset", "smoke", "--data", _set())


# --- annotated images


def read_detection(source: str) -> Function:
    def read(rng: Random) -> None:
        from peco.boxes.open import open_splits

        cfg = dataclasses.replace(inputs.smoke().evaluate.detection, source=source, path=_set())
        for split in open_splits(cfg):
            for i in range(len(split)):
                split.image(i), split.objects(i)

    return read


def read_masks(rng: Random) -> None:
    from peco.masks.open import open_splits

    cfg = inputs.smoke().evaluate.segmentation
    for split in open_splits(dataclasses.replace(cfg, source="folder", path=_set(), ignore=rng.choice([None, 0, 255]))):
        for i in range(len(split)):
            split.image(i), split.mask(i)


def read_triplets(rng: Random) -> None:
    items = TwoAfc(Path(_set()), Path("work"))
    for i in range(len(items)):
        items.images(i, 16)


def annotations_stage(task: str, source: str) -> Command:
    def run(rng: Random) -> int:
        key = f"evaluate__{task}__"
        settings = {f"evaluate__tasks__{task}": "true", f"{key}source": source, f"{key}path": _set()}
        return _stage("peco.stages.annotations", **settings)

    return run


# --- results of stages


def read_shards(rng: Random) -> None:
    root = Path("artifacts/shards")
    index = load_index(root)
    print(*summary(index, root), sep="\n")
    open_evaluation_split(root)
    for split in index["splits"]:
        shards = open_shards(root, split)
        for batch in eval_batches(shards, CenterView(16), batch_size=4, workers=0):
            assert len(batch["image"])


def read_tokens(rng: Random) -> None:
    shards = open_shards(Path("artifacts/shards"), "train")
    store = token_files.TokenStore(Path("artifacts/tokens"), shards)
    for sample in range(len(shards)):
        for view in range(store.views):
            store.get(sample, view)


def read_tokenizer(rng: Random) -> None:
    import torch

    from peco.tokenizer import storage

    size = storage.image_size("artifacts/tokenizer")
    tokenizer = storage.load("artifacts/tokenizer")
    if size == 32:
        tokenizer.reconstruct(torch.zeros(1, 3, size, size))


def read_backbone(rng: Random) -> None:
    from peco.mim import storage

    folder = "artifacts/backbone"
    artifacts.input_size(folder)
    rng.choice([storage.load, artifacts.load_timm, lambda path: artifacts.random_like(path, seed=0)])(folder)
    artifacts.normalization(artifacts.load_timm(folder, num_classes=3))


def convert(rng: Random) -> None:
    from peco.convert.__main__ import convert, parser

    convert(parser().parse_args([_set(), "-o", "out"]))


def convert_command(rng: Random) -> int:
    return _command("peco.convert.__main__", _set(), "-o", "out")


def build_converted(rng: Random) -> None:
    from peco.networks import timm_nets
    from peco.perceptual.features import FeatureNet

    FeatureNet(timm_nets.by_path(Path(_set()), results.CONVERTED_MODEL, 32), [1, 2])


def _reference() -> dict[str, Any]:
    """`evaluate.reference` for the input; a folder says itself what network it holds."""
    return {"source": "path", "path": _set(), "model": None if Path(_set()).is_dir() else results.REFERENCE_MODEL}


def check_reference(rng: Random) -> None:
    """The steps of `make repro` for the reference before the first stage."""
    from peco.networks import backbones

    cfg = inputs.smoke().evaluate
    tasks = config.Tasks(**dict.fromkeys((field.name for field in dataclasses.fields(config.Tasks)), True))
    given = config.Reference(**_reference(), revision=None)
    backbones.check_reference(dataclasses.replace(cfg, reference=given, tasks=tasks), rng.choice([32, 64]))


def peco(command: str, model: str, *options: str) -> Command:
    return lambda rng: _command("peco.cli", command, "-m", f"artifacts/{model}", *options, "data/photo.png")


def predict(model: str) -> Function:
    from peco.use import predict
    from peco.use.models import Options

    return lambda rng: predict.predict(
        f"artifacts/{model}", ["data/photo.png"], "out", options=Options(pictures=True), table=True
    )


def predict_command(model: str) -> Command:
    return lambda rng: _command("peco.cli", "predict", f"artifacts/{model}", "data/photo.png", "-o", "out", "--csv")


def info(model: str) -> Command:
    return lambda rng: _command("peco.cli", "info", f"artifacts/{model}")


def read_params(rng: Random) -> None:
    load_params()


def read_scenes(rng: Random) -> None:
    read_descriptor(Path(_set()))


def override(rng: Random) -> int:
    """`make params` over a mutated params.yaml, with a mutated setting."""
    key = rng.choice(
        ["seed", "tokenizer.quantizer.codes", "dataset.path", "dataset", "nothing", "pretrain.vit.arch", "loader.lanes"]
    )
    setting = f"{key}={yaml.safe_dump(odd(rng), default_flow_style=True).splitlines()[0]}"
    return _command(
        "pipelines.params",
        *(["--preset", "smoke"] if rng.random() < 0.3 else []),
        *([setting] if rng.random() < 0.6 else []),
    )


def any_stage(rng: Random) -> int:
    stages = ["stages.shards", "stages.annotations", "stages.tokens", "evaluate.knn.stage", "evaluate.codebook.stage"]
    return _stage(f"peco.{rng.choice(stages)}")


def tokens_stage(rng: Random) -> int:
    return _stage("peco.stages.tokens", tokens__views=1)


def pretrain_stage(rng: Random) -> int:
    small = {"pretrain__optim__batch_size": 8, "pretrain__optim__warmup_epochs": 0, "pretrain__masking__count": 6}
    return _stage("peco.stages.pretrain", tokens__views=2, **small)


def knn_stage(rng: Random) -> int:
    return _stage("peco.evaluate.knn.stage", evaluate__tasks__knn="true")


def reference_stage(rng: Random) -> int:
    given = {f"evaluate__reference__{key}": "null" if value is None else value for key, value in _reference().items()}
    return _stage("peco.evaluate.knn.stage", evaluate__tasks__knn="true", **given)


def perceptual_net_stage(rng: Random) -> int:
    given = {"source": "path", "timm__model": results.CONVERTED_MODEL, "path": _set()}
    return _stage("peco.stages.perceptual_net", **{f"perceptual_net__{key}": value for key, value in given.items()})
