"""`README.md` of a model folder: what the model is, how it was made, its scores, how to load it.

The YAML at its head is what model hubs read. It depends on inputs and parameters only: the same run gives the same bytes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors

from peco.core import schema
from peco.core.config import Optim
from peco.core.numbers import rounded
from peco.core.publishing import write_file, write_json
from peco.data.shards import load_index
from peco.runtime.fingerprint import content_hash

CARD = "README.md"
BASELINE = "random_"  # prefix of the scores of random initialisation
OTHERS = (BASELINE, "reference_")  # prefixes of scores of other models
LINEAGE = ("source", "hub_commit", "licence", "labels")


SELF_SUPERVISED = {"licence": "that of the images", "labels": "none: trained here by MoCo v3, without labels"}
"""Origin of the weights of a perceptual network that was trained in this run."""


@dataclass(frozen=True)
class Kind:
    """The part of a card that all models of a kind share.

    Attributes:
        sentence: what the model is.
        library: the program that loads it, as hubs name it.
        pipeline: the task, as hubs name it.
        usage: code that loads it from the folder `DIR`.
        language: of the code.
    """

    sentence: str
    library: str
    pipeline: str
    usage: str
    language: str = "python"


_TIMM = """import timm

model = timm.create_model("local-dir:DIR", pretrained=True).eval()
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))"""
KINDS = {
    "perceptual_net": Kind(
        "The network whose features the tokenizer of this run preserves.", "timm", "image-feature-extraction", _TIMM
    ),
    "tokenizer": Kind(
        "A tokenizer of images with a perceptual codebook (PeCo, arXiv 2111.12710).",
        "peco",
        "image-feature-extraction",
        'import peco\n\ntokenizer = peco.load_tokenizer("DIR")\n'
        "tokens = tokenizer.tokenize(x)  # x: float32 (B, 3, H, W) in [0, 1]\nimages = tokenizer.decode(tokens)",
    ),
    "backbone": Kind(
        "A vision transformer (BEiT) pre-trained by masked image modelling, as in PeCo (arXiv 2111.12710).",
        "timm",
        "image-feature-extraction",
        _TIMM
        + '\n\nclassifier = timm.create_model("local-dir:DIR", pretrained=True, num_classes=10)  # with a new head',
    ),
    "classifier": Kind(
        "A classifier of images: a pre-trained backbone, fine-tuned.", "timm", "image-classification", _TIMM
    ),
    "segmenter": Kind(
        "A model that finds the class of each pixel: UPerNet on a pre-trained backbone, fine-tuned.",
        "peco",
        "image-segmentation",
        "peco predict DIR photos -o predictions",
        language="bash",
    ),
    "detector": Kind(
        "A detector of objects: Mask R-CNN (Faster R-CNN without masks) on a pre-trained backbone, fine-tuned.",
        "peco",
        "object-detection",
        "peco predict DIR photos -o predictions",
        language="bash",
    ),
}


@dataclass(frozen=True)
class Data:
    """The images that a model was trained on.

    Attributes:
        name: kind of the source, such as `scenes`; not its path.
        sha256: of the content.
        counts: numbers of images, classes, etc. by name.
    """

    name: str
    sha256: str
    counts: Mapping[str, int]


@dataclass(frozen=True)
class Training:
    """One training: its recipe, the images of its split, and the weights that it started from, in words."""

    optim: Optim
    samples: int
    start: str = "random weights"


@dataclass(frozen=True)
class Facts:
    """The part of a card that differs from run to run.

    Attributes:
        data: what the model was trained on.
        scores: by name; those of random initialisation have the prefix `random_`.
        training: None for a network that was not trained here.
        seed: of the run.
    """

    data: Data
    scores: Mapping[str, Any] = field(default_factory=dict)
    training: Training | None = None
    seed: int = 0


def shard_data(shards: Path) -> Data:
    """The images in a folder of shards.

    Raises:
        PecoError: the folder is missing or damaged.
    """
    index = load_index(shards)
    counts = {f"{name} images": split["samples"] for name, split in index["splits"].items()}
    return Data(index["source"], content_hash(shards), counts | {"classes": len(index["classes"])})


def weights_origin(pretrained_cfg: Mapping[str, Any], *, from_hub: bool) -> dict[str, str]:
    """Licence of the weights of an existing network, and the labels that they have seen, as far as its timm config says so."""
    if not from_hub:
        return {"licence": "not known: weights of a file", "labels": "not known: weights of a file"}
    classes = pretrained_cfg.get("num_classes")
    seen = (
        f"yes: published with a classifier of {classes} classes"
        if classes
        else "not known: no classifier came with them"
    )
    return {"licence": str(pretrained_cfg.get("license") or "not known"), "labels": seen}


def lineage_of(model: Path) -> dict[str, Any]:
    """The entry on the perceptual network, if there is one, for the config of a model made from the model in this folder.

    Raises:
        OSError: the folder can't be read.
    """
    part = json.loads((model / "config.json").read_text(encoding="utf-8")).get("peco", {})
    if part.get("kind") == "perceptual_net":
        return {"perceptual_net": {key: part[key] for key in LINEAGE if key in part}}
    return {key: part[key] for key in ("perceptual_net",) if key in part}


def write(folder: Path, facts: Facts) -> None:
    """Write the card of a finished model folder.

    Args:
        folder: holds `config.json`, whose `peco` part has `kind` and, if the model depends on one, `perceptual_net`.
        facts: the rest.

    Raises:
        OSError: it can't be written.
    """
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    part = config["peco"]
    kind = KINDS[part["kind"]]
    lineage = part if part["kind"] == "perceptual_net" else part.get("perceptual_net")
    scores = {name: value for name, value in rounded(dict(facts.scores)).items() if isinstance(value, float)}
    sections = [
        f"# {part['kind'].replace('_', ' ').capitalize()}\n\n{kind.sentence}",
        _section("Load it", f"```{kind.language}\n{kind.usage}\n```"),
        _section("Data", _table({"source": facts.data.name, **facts.data.counts, "sha256": facts.data.sha256})),
        _section("Model", _table(_model_rows(folder, config))),
        _section("Training", _training(facts)),
        _section("Scores", _scores(scores)),
        _section("The perceptual network", _lineage(lineage)),
    ]
    write_file(folder / CARD, _front_matter(part["kind"], kind, facts, scores) + "\n\n".join(sections) + "\n")


def write_skipped(folder: Path, reason: str) -> None:
    """Write the folder of a model that was not made: a config that says so, and a card."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "config.json", {"peco": {"kind": folder.name, "skipped": reason}})
    write_file(folder / CARD, f"# No {folder.name}\n\nIts evaluation was skipped: {reason}.\n")


def _front_matter(name: str, kind: Kind, facts: Facts, scores: Mapping[str, float]) -> str:
    import yaml

    head: dict[str, Any] = {
        "library_name": kind.library,
        "pipeline_tag": kind.pipeline,
        "license": "unknown",
        "tags": ["peco", "masked-image-modelling"],
    }
    measured = [{"type": key, "value": value} for key, value in scores.items() if not key.startswith(OTHERS)]
    if measured:
        dataset = {"type": facts.data.name, "name": facts.data.name}
        results = [{"task": {"type": kind.pipeline}, "dataset": dataset, "metrics": measured}]
        head["model-index"] = [{"name": f"peco {name.replace('_', ' ')}", "results": results}]
    return f"---\n{yaml.safe_dump(head, sort_keys=False, allow_unicode=True)}---\n\n"


def _model_rows(folder: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    part = config["peco"]
    rows: dict[str, Any] = {"parameters": f"{_parameters(folder / 'model.safetensors'):,}"}
    if "architecture" in config:
        rows["architecture (timm)"] = config["architecture"]
        rows |= config["model_args"]
        rows |= {key: config["pretrained_cfg"][key] for key in ("input_size", "mean", "std")}
    rows |= {key: part[key] for key in ("image_size", "blocks", "channels", "masks", "target") if key in part}
    rows |= {key: value for group in ("autoencoder", "quantizer") for key, value in part.get(group, {}).items()}
    if classes := part.get("classes"):
        rows["classes"] = ", ".join(classes)
    return rows


def _parameters(weights: Path) -> int:
    total = 0
    with safetensors.safe_open(weights, framework="np") as file:
        for name in file.keys():  # noqa: SIM118 (not a mapping)
            count = 1
            for side in file.get_slice(name).get_shape():
                count *= side
            total += count
    return total


def _training(facts: Facts) -> str:
    if facts.training is None:
        return "Its weights were not trained here."
    optim = facts.training.optim
    seen = optim.images_seen(facts.training.samples)
    return _table(
        {"start": facts.training.start, "images seen": f"{seen:,}", "seed": facts.seed, **schema.to_dict(optim)}
    )


def _scores(scores: Mapping[str, float]) -> str:
    names = [name for name in scores if not name.startswith(OTHERS)]
    if not names:
        return "None were measured on this model."
    rows = [f"| {name} | {scores[name]:g} | {_cell(scores.get(BASELINE + name))} |" for name in names]
    return "\n".join(["| | this model | random initialisation |", "|---|---|---|", *rows])


def _lineage(lineage: Mapping[str, Any] | None) -> str:
    if lineage is None:
        return "The model does not depend on one."
    return _table({key: lineage[key] for key in LINEAGE if key in lineage})


def _section(title: str, text: str) -> str:
    return f"## {title}\n\n{text}"


def _table(rows: Mapping[str, Any]) -> str:
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {_cell(value)} |" for name, value in rows.items())])


def _cell(value: Any) -> str:
    if value is None:
        return "none"
    text = ", ".join(map(_cell, value)) if isinstance(value, list | tuple) else str(value)
    return text.replace("|", "\\|").replace("\n", " ")
