"""The kinds of inputs, with what reads them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from . import annotated, inputs, results, targets
from .files import Files
from .inputs import SET
from .targets import Command, Function


@dataclass(frozen=True)
class Kind:
    """A kind of inputs.

    Attributes:
        files: makes a valid input.
        functions, commands: read it from the current folder.
        below: paths of the files that are mutated.
        share: relative number of inputs.
    """

    files: Callable[[Random], Files]
    functions: tuple[Function, ...]
    commands: tuple[Command, ...]
    below: str = SET
    share: int = 4


_IMAGE_COMMANDS = (targets.shards_stage("images"), targets.make_params)
_TAR_COMMANDS = (targets.shards_stage("webdataset"), targets.make_params)
_TOKENIZER_COMMANDS = (
    *(targets.info("tokenizer"), targets.peco("tokenize", "tokenizer")),
    targets.peco("reconstruct", "tokenizer", "-o", "out"),
)
_BACKBONE_COMMANDS = (targets.info("backbone"), targets.peco("embed", "backbone"), targets.knn_stage)

KINDS = {
    "params": Kind(inputs.params, (targets.read_params,), (targets.override, targets.any_stage), "params.yaml", 8),
    "scenes": Kind(inputs.scenes, (targets.read_scenes,), (targets.shards_stage("scenes"),), share=1),
    "images": Kind(inputs.images, (targets.images, targets.inspect), _IMAGE_COMMANDS),
    "image_tars": Kind(inputs.image_tars, (targets.images, targets.inspect), _IMAGE_COMMANDS),
    "image_zips": Kind(inputs.image_zips, (targets.images, targets.inspect), _IMAGE_COMMANDS),
    "tables": Kind(inputs.tables, (targets.images, targets.inspect), _IMAGE_COMMANDS),
    "parquet": Kind(inputs.parquet, (targets.images, targets.inspect), _IMAGE_COMMANDS),
    "webdataset": Kind(inputs.webdataset, (targets.webdataset, targets.inspect), _TAR_COMMANDS, share=6),
    "tar_lists": Kind(inputs.tar_lists, (targets.webdataset,), _TAR_COMMANDS, share=2),
    "coco": Kind(
        annotated.coco, (targets.read_detection("coco"),), (targets.annotations_stage("detection", "coco"),), share=6
    ),
    "yolo": Kind(annotated.yolo, (targets.read_detection("yolo"),), (targets.annotations_stage("detection", "yolo"),)),
    "voc": Kind(annotated.voc, (targets.read_detection("voc"),), (targets.annotations_stage("detection", "voc"),)),
    "masks": Kind(annotated.masks, (targets.read_masks,), (targets.annotations_stage("segmentation", "folder"),)),
    "two_afc": Kind(
        annotated.two_afc, (targets.read_triplets,), (targets.annotations_stage("agreement", "bapps"),), share=3
    ),
    "shards": Kind(results.shards, (targets.read_shards,), (targets.tokens_stage,), "artifacts/shards/", 6),
    "tokens": Kind(results.tokens, (targets.read_tokens,), (targets.pretrain_stage,), "artifacts/tokens/"),
    "tokenizer": Kind(results.tokenizer, (targets.read_tokenizer,), _TOKENIZER_COMMANDS, "artifacts/tokenizer/", 5),
    "backbone": Kind(results.backbone, (targets.read_backbone,), _BACKBONE_COMMANDS, "artifacts/backbone/", 5),
    **{
        kind: Kind(
            getattr(results, kind),
            (targets.predict(kind),),
            (targets.predict_command(kind), targets.info(kind)),
            f"artifacts/{kind}/",
            2,
        )
        for kind in ("classifier", "segmenter", "detector")
    },
    "checkpoint": Kind(results.checkpoint, (targets.convert,), (targets.convert_command,), share=3),
    "converted": Kind(results.converted, (targets.build_converted,), (targets.perceptual_net_stage,), share=2),
    "reference": Kind(results.reference, (targets.check_reference,), (targets.reference_stage,), share=3),
}
