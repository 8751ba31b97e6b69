"""Stage `report`: one page with data, reconstructions, codebook, masked predictions, curves, evaluations and parameters.

The page needs no other file and no network, and holds no time, host or path: same inputs, same bytes.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from peco.core import artifacts, config, schema
from peco.core.device import select_device
from peco.core.numbers import evenly_spaced
from peco.core.publishing import write_file
from peco.data import views
from peco.data.shards import ShardSet, load_index, open_evaluation_split, open_shards
from peco.data.summary import left_out
from peco.report import figures, page, sections
from peco.runtime import paths
from peco.runtime.stage import StageRun, run_stage
from peco.tokenizer.image_metrics import psnr

PARAMS = (
    "preset",
    "seed",
    "dataset",
    "loader",
    "perceptual_net",
    "tokenizer",
    "tokens",
    "pretrain",
    "evaluate",
    "report",
)
CODE_IMAGES = 512  # for the counts of codes
GALLERY_CODES, GALLERY_PATCHES = 9, 8
# Contact sheets have at most this number of classes, of images per class, and of pixels per side.
SHEET_CLASSES, SHEET_IMAGES, SHEET_SIZE = 24, 6, 96
LIMITS_OF_SCENES = (
    " These scenes show that the chain works. They don't compare codebooks, since a histogram of small patches alone predicts "
    "most of their classes; take photographs for that."
)
PACKAGES = ("peco", "torch", "timm", "numpy", "pillow", "simplejpeg")


def main(run: StageRun) -> None:
    cfg = run.config
    index = load_index(paths.SHARDS)
    metrics = page.read_metrics(paths.METRICS)
    scored = open_evaluation_split(paths.SHARDS)
    html = page.render(
        preset=cfg.preset,
        description=describe(cfg, index),
        params_text=page.params_text(schema.to_dict(cfg)),
        versions=[
            ("Python", ".".join(platform.python_version_tuple()[:2])),
            *((name, version(name)) for name in PACKAGES),
        ],
        stages=page.read_curves(paths.PLOTS),
        split="the validation split" if scored.split == "val" else "the training split (there is no other)",
        sections=sections.evaluation_sections(metrics, paths.PICTURES, backbone_names(cfg)),
        **evaluation(cfg, metrics, scored),
        **data(index),
        **pictures(cfg, metrics, scored),
        **perceptual_net(cfg, metrics, artifacts.own_part(paths.TOKENIZER).get("perceptual_net", {})),
    )
    write_file(paths.REPORT, html)


def version(package: str) -> str:
    """Version of an installed package, without the build (`+cpu`), which depends on the machine."""
    try:
        return metadata.version(package).partition("+")[0]
    except metadata.PackageNotFoundError:
        return "not installed"


def describe(cfg: config.Config, index: dict[str, Any]) -> str:
    """Preset, data and models in a few sentences."""
    words = {"train": "training", "val": "validation"}
    images = page.joined([f"{page.number(split['samples'])} {words[name]}" for name, split in index["splits"].items()])
    built_in = index["source"] == "scenes"
    source = "the built-in set of procedural scenes" if built_in else "images of your own"
    vit, quantizer = cfg.pretrain.vit, cfg.tokenizer.quantizer
    return (
        f"Preset {cfg.preset}, seed {cfg.seed}, on {source}: {images} images. A ViT of {vit.depth} blocks of width "
        f"{vit.embed_dim} sees {cfg.loader.image_size} {page.TIMES} {cfg.loader.image_size} pixels in patches of {vit.patch_size}; "
        f"the codebook has {page.number(quantizer.codes)} codes. {budget(cfg, index['splits']['train']['samples'])}"
        f"{LIMITS_OF_SCENES if built_in else ''}"
    )


def budget(cfg: config.Config, samples: int) -> str:
    """Images seen by each training, counting repeats: scores of different budgets can't be compared."""
    stages = [("the tokenizer", cfg.tokenizer.optim), ("pre-training", cfg.pretrain.optim)]
    if cfg.perceptual_net.source == "train":
        stages.insert(0, ("the perceptual network", cfg.perceptual_net.optim))
    seen = [f"{name} {page.number(optim.images_seen(samples))}" for name, optim in stages]
    return f"Images seen: {page.joined(seen)}."


def backbone_names(cfg: config.Config) -> dict[str, str]:
    """Names of the evaluated backbones in tables, by the prefix of their metrics."""
    names = {"": backbone_name(cfg), "random_": "Random initialisation"}
    if cfg.evaluate.reference.source != "none":
        names["reference_"] = f"Reference: {cfg.evaluate.reference.name}"
    return names


def backbone_name(cfg: config.Config) -> str:
    """Name of the pre-trained backbone in tables."""
    if cfg.pretrain.target == "pixels":
        return "Pixel-regression backbone"
    if cfg.tokenizer.objective == "vqkd":
        return "VQ-KD backbone"
    return "Pixel-codebook backbone" if cfg.tokenizer.perceptual.weight == 0 else "PeCo backbone"


def evaluation(cfg: config.Config, metrics: page.MetricsByFile, split: ShardSet) -> dict[str, Any]:
    """The table of evaluations, and the scores below it."""
    rows = page.evaluation_rows(metrics, backbone_names(cfg))
    notes = page.choices(metrics)
    error = page.standard_error(rows, len(split))
    if error is not None:
        notes.append(
            f"With {page.number(len(split))} images the standard error of an accuracy is up to {100 * error:.1f} points."
        )
        majority = np.bincount(split.labels[split.labels >= 0], minlength=1).max() / len(split)
        notes.append(f"Always predicting the most frequent class gives {page.percent(majority)}.")
    tokenizer, pretrain = metrics.get("tokenizer", {}), metrics.get("pretrain", {})
    facts = []
    for name, values, key, template, note in (
        (
            "Codebook usage",
            tokenizer,
            "usage",
            "{:.1%}",
            "codes used in the last (possibly partial) epoch of the tokenizer's training",
        ),
        (
            "Perplexity",
            tokenizer,
            "perplexity",
            "{:.0f}",
            f"of {page.number(cfg.tokenizer.quantizer.codes)} codes, same epoch",
        ),
        ("PSNR", tokenizer, "val_psnr", "{:.2f} dB", "mean over reconstructions"),
        ("Masked tokens", pretrain, "accuracy", "{:.1%}", "predicted exactly at the end of pre-training"),
    ):
        if key in values:
            facts.append((name, template.format(values[key]).replace("%", f"{page.NARROW_SPACE}%"), note))
    return {
        "verdict": page.verdict(rows),
        "evaluations": [name for name, _ in page.EVALUATIONS],
        "states": [page.state(metrics.get(key, {})) for _, key in page.EVALUATIONS],
        "scored_on": f"{page.number(len(split))} images of {split.split}",
        "rows": rows,
        "skipped": page.skipped(metrics),
        "notes": notes,
        "facts": facts,
    }


def data(index: dict[str, Any]) -> dict[str, Any]:
    """Counts and contact sheets of the data."""
    sets = {name: open_shards(paths.SHARDS, name) for name in index["splits"]}
    train, classes = sets["train"], len(index["classes"])
    counts = {name: np.bincount(shards.labels[shards.labels >= 0], minlength=classes) for name, shards in sets.items()}
    present = np.flatnonzero(counts["train"])
    class_sizes = ""
    if len(present):
        least, most = (page.number(int(extreme(counts["train"][present]))) for extreme in (np.min, np.max))
        class_sizes = f"Each class has {least if least == most else f'{least} to {most}'} images in train."
        labels = present[evenly_spaced(len(present), SHEET_CLASSES)].tolist()
        if len(labels) < len(present):
            class_sizes += f" {len(labels)} of the {page.number(len(present))} classes are shown."
        shown = {label: thumbnails(train, np.flatnonzero(train.labels == label)[:SHEET_IMAGES]) for label in labels}
        sheets = page.class_sheets(train, shown, counts)
    else:
        images = np.arange(min(len(train), 8 * SHEET_IMAGES))
        sheets = [
            sheet
            for start in range(0, len(images), SHEET_IMAGES)
            for sheet in page.class_sheets(train, {-1: thumbnails(train, images[start : start + SHEET_IMAGES])}, counts)
        ]
    return {
        "splits": index["splits"],
        "left_out": left_out(index),
        "data_notes": index["notes"],
        "class_sizes": class_sizes,
        "sheets": sheets,
    }


def thumbnails(shards: ShardSet, indices: np.ndarray) -> list[np.ndarray]:
    """Small evaluation views of some samples, all of the same size."""
    images = [sample.open() for i in indices.tolist() for sample in shards.read(i, i + 1)]
    size = min(SHEET_SIZE, *(min(image.size) for image in images))
    return [views.apply(image, views.center(image.width, image.height), size) for image in images]


def pictures(cfg: config.Config, metrics: page.MetricsByFile, split: ShardSet) -> dict[str, Any]:
    """Results of tokenizer and backbone on images of `split`."""
    device = select_device()
    models = figures.load_models(paths.TOKENIZER, paths.BACKBONE, device)
    tokenizer = models.tokenizer
    count = cfg.report.images
    x_BCHW, labels = figures.read_images(split, models.tokenizer_size, max(CODE_IMAGES, count))
    backbone_x_BCHW, _ = figures.read_images(split, models.backbone_size, count)
    x_BCHW, backbone_x_BCHW = x_BCHW.to(device), backbone_x_BCHW.to(device)
    names = [split.classes[label] if label >= 0 else f"image {i + 1}" for i, label in enumerate(labels[:count])]

    shown_BCHW = x_BCHW[:count]
    reconstructed_BCHW = tokenizer.reconstruct(shown_BCHW)
    originals, reconstructed = figures.to_pixels(shown_BCHW), figures.to_pixels(reconstructed_BCHW)
    decibels = psnr(shown_BCHW, reconstructed_BCHW).tolist()
    reconstructions = [
        (name, value, page.picture(pair, f"{name}: original and reconstruction, {value:.1f} dB"))
        for name, value, *pair in zip(names, decibels, originals, reconstructed, strict=True)
    ]
    codes = figures.study_codes(tokenizer, x_BCHW, gallery=GALLERY_CODES, patches=GALLERY_PATCHES)
    predictions = figures.draw_predictions(models, shown_BCHW, backbone_x_BCHW)
    return {
        "reconstructions": reconstructions,
        "reconstruction_note": reconstruction_note(metrics.get("tokenizer", {})),
        "codebook_note": (
            f"On {page.number(codes.images)} images of {split.split}, {page.percent(codes.usage)} of the "
            f"{page.number(len(codes.histogram_K))} codes occur; the perplexity of their distribution is {codes.perplexity:.0f}."
        ),
        "code_chart": page.code_chart(codes),
        "patch": tokenizer.factor,
        "gallery": [
            (entry, page.picture(entry.patches, f"{len(entry.patches)} image patches of code {entry.code}"))
            for entry in codes.gallery
        ],
        "masked": masked_section(
            predictions, names, (models.tokenizer_size // tokenizer.factor) ** 2, tokenizer.quantizer.codes
        ),
    }


def masked_section(
    predictions: Sequence[figures.MaskedPrediction], names: Sequence[str], patches: int, codes: int
) -> dict[str, Any]:
    """Masked predictions: title, explanation, number of right ones, and a strip of pictures per image."""
    hidden = (
        f"The backbone sees an image with {predictions[0].count} of its {patches} patches hidden and predicts their"
    )
    columns = ["original", "masked", "predicted tokens", "true tokens"]
    if predictions[0].correct is None:
        title, columns = "Masked patches, predicted", ["original", "masked", "predicted pixels"]
        text = (
            f"{hidden} pixels, each patch normalised to the same mean and contrast. Here each has its true mean and contrast "
            "again: the patterns are predicted, the colours are not."
        )
        captions = [f"{prediction.count} patches hidden" for prediction in predictions]
    else:
        title = "Masked-token predictions, decoded"
        correct, masked = sum(p.correct or 0 for p in predictions), sum(p.count for p in predictions)
        text = (
            f"{hidden} tokens. The decoder gets the grid with the predicted tokens in the gaps and, for comparison, the grid of "
            f"true tokens. {masked_note(correct, masked, codes)}"
        )
        captions = [f"{prediction.correct} of {prediction.count} tokens exactly right" for prediction in predictions]
    strips = [
        (name, caption, page.picture(prediction.pictures, f"{name}: {', '.join(columns)}"))
        for name, caption, prediction in zip(names, captions, predictions, strict=True)
    ]
    return {"title": title, "text": text, "columns": columns, "strips": strips}


def reconstruction_note(scores: Mapping[str, float]) -> str:
    """The tokenizer's scores in a sentence."""
    known = (("val_psnr", "PSNR {:.2f} dB"), ("val_l1", "L1 {:.4f}"), ("val_perceptual", "perceptual distance {:.3f}"))
    parts = [template.format(scores[key]) for key, template in known if key in scores]
    return (
        f"Means over the tokenizer's evaluation images: {page.joined(parts)}."
        if parts
        else "The tokenizer has no scores."
    )


def masked_note(correct: int, masked: int, codes: int) -> str:
    """Share of right predictions, compared with guessing."""
    return (
        f"Of these {page.number(masked)} masked tokens {page.percent(correct / masked)} are predicted exactly; a blind guess among "
        f"{page.number(codes)} codes would be right in {100 / codes:.2g}{page.NARROW_SPACE}%. "
        "Another code may decode to nearly the same pixels."
    )


def perceptual_net(cfg: config.Config, metrics: page.MetricsByFile, lineage: Mapping[str, Any]) -> dict[str, Any]:
    """Description and score of the perceptual network; `lineage` is what the tokenizer's folder records of it."""
    net, scores = cfg.perceptual_net, metrics.get("perceptual_net", {})
    if net.source == "train":
        note = f"Trained on these images by MoCo v3: a ViT of {net.vit.depth} blocks of width {net.vit.embed_dim}."
    elif net.source == "path":
        note = f"An existing network: {Path(net.path).name}."
    else:
        note = f"timm's {net.timm.model} with {'pre-trained' if net.timm.pretrained else 'random'} weights."
    if net.source != "train" and "labels" in lineage:
        note += f" Labels that its weights have seen: {lineage['labels']}."
    rows = [("Perceptual network", "knn_accuracy"), ("Random initialisation", "random_knn_accuracy")]
    found = [(name, scores[key]) for name, key in rows if key in scores]
    if cfg.tokenizer.objective == "peco" and cfg.tokenizer.perceptual.weight == 0:
        note += " It had no part in the codebook: tokenizer.perceptual.weight is 0."
    return {"perceptual_note": note if found else f"{note} It has no score: that needs labels.", "perceptual": found}


if __name__ == "__main__":
    run_stage(Path(__file__).stem, PARAMS, main)
