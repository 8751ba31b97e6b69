"""The trained models of the evaluations, as `peco predict` uses them: batches of images to plain records.

A record is what JSON can hold. Legend: B batch, C channels, H W pixels, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from peco.core import artifacts
from peco.core.device import select_device
from peco.core.errors import PecoError
from peco.data import views
from peco.data.images import Picture
from peco.use import coco

if TYPE_CHECKING:
    from peco.evaluate.detection.model import Detections

Record = dict[str, Any]
DIGITS = 6  # of scores
# Pixels along the longer side; smaller images are enlarged by whole factors, larger ones reduced, as in detection's pictures.
MIN_SIDE, MAX_SIDE = 256, 480
OVERLAY = 0.5  # opacity of a mask over its image
DRAWN_SCORE = 0.5  # detections from this score on are drawn
FONT_SIZE = 14


@dataclass(frozen=True)
class Options:
    """Options of the command line that the results depend on.

    Attributes:
        top_k: classes of an image that a classifier reports.
        min_score: detections of a lower score are left out.
        pictures: predictions are drawn on the images.
    """

    top_k: int = 5
    min_score: float = 0.05
    pictures: bool = False


@dataclass(frozen=True)
class Prediction:
    """The prediction of a model for an image.

    Attributes:
        record: the line of results, without the image's name.
        mask: index of the class of each pixel (H, W), of a segmenter.
        picture: the prediction drawn on the image, if that is asked for.
    """

    record: Record
    picture: Image.Image | None
    mask: NDArray[np.int32] | None = None


class Predictor(Protocol):
    """A model in use.

    Attributes:
        kind: of its folder.
        classes: names.
        batch_size: images at a time, unless the user gives a number.
    """

    kind: str
    classes: tuple[str, ...]
    batch_size: int

    def prepare(self, image: Picture) -> Any:
        """The model's input of an image; called in a thread."""

    def predict(self, prepared: Sequence[Any]) -> list[Prediction]: ...


def open_model(folder: str | Path, options: Options) -> Predictor:
    """The model in a folder, on the GPU where there is one.

    Raises:
        PecoError: the folder is missing, damaged, holds no model (a skipped evaluation) or one that predicts nothing; or a package
            is missing that the model needs.
    """
    kind = artifacts.kind_of(folder)
    if kind is None or kind not in _PREDICTORS:
        raise PecoError(
            f"{folder}: expected the folder of a {', '.join(list(_PREDICTORS)[:-1])} or {list(_PREDICTORS)[-1]}, found "
            f"{kind!r}; give one of them, such as artifacts/classifier"
        )
    artifacts.section(folder, kind)  # an evaluation may have been skipped
    try:
        return _PREDICTORS[kind](folder, options)
    except ModuleNotFoundError as error:
        raise PecoError(f"{folder}: a {kind} needs the package {error.name}; pip install 'peco[workflow]'") from None


class Classifier:
    """A fine-tuned classifier: the most probable classes of the centre square of an image, with their probabilities."""

    kind, batch_size = "classifier", 64

    def __init__(self, folder: str | Path, options: Options) -> None:
        from peco.evaluate.finetune import storage

        classifier, self.classes = storage.load(folder)
        self._device = select_device()
        self._model = classifier.to(self._device)
        self._size = artifacts.input_size(folder)
        self._mean_C11, self._std_C11 = (t.to(self._device) for t in artifacts.normalization(self._model))
        self._top_k, self._pictures = min(options.top_k, len(self.classes)), options.pictures

    def prepare(self, image: Picture) -> tuple[NDArray[np.uint8], Image.Image | None]:
        pixels = views.apply(image, views.center(image.width, image.height), self._size)
        return pixels, _resized(image.to_pil()) if self._pictures else None

    @torch.no_grad()
    def predict(self, prepared: Sequence[tuple[NDArray[np.uint8], Image.Image | None]]) -> list[Prediction]:
        pixels_BHWC = np.stack([pixels for pixels, _ in prepared])
        x_BCHW = torch.from_numpy(pixels_BHWC).to(self._device).permute(0, 3, 1, 2).float() / 255
        logits_BK = self._model((x_BCHW - self._mean_C11) / self._std_C11)
        scores_Bk, labels_Bk = logits_BK.float().softmax(dim=1).topk(self._top_k, dim=1)
        return [
            self._prediction(image, scores, labels)
            for (_, image), scores, labels in zip(prepared, scores_Bk.tolist(), labels_Bk.tolist(), strict=True)
        ]

    def _prediction(self, image: Image.Image | None, scores: list[float], labels: list[int]) -> Prediction:
        found = [
            {"class": self.classes[label], "score": round(score, DIGITS)}
            for score, label in zip(scores, labels, strict=True)
        ]
        lines = [f"{entry['class']} {entry['score']:.2f}" for entry in found[:3]]
        return Prediction({"classes": found}, None if image is None else _captioned(image, lines))


class Segmenter:
    """A segmenter: the class of each pixel, and the share of the image that each class covers."""

    kind, batch_size = "segmenter", 8

    def __init__(self, folder: str | Path, options: Options) -> None:
        from peco.evaluate.segmentation import model, storage

        self._colorize, self._predict = model.colorize, model.predict
        segmenter, self.classes = storage.load(folder)
        self._model = segmenter.to(select_device())
        self._pictures = options.pictures

    def prepare(self, image: Picture) -> Image.Image:
        return image.to_pil()

    def predict(self, images: Sequence[Image.Image]) -> list[Prediction]:
        masks = self._predict(self._model, images)
        return [self._prediction(image, mask_HW) for image, mask_HW in zip(images, masks, strict=True)]

    def _prediction(self, image: Image.Image, mask_HW: NDArray[np.int32]) -> Prediction:
        counts_K = np.bincount(mask_HW.ravel(), minlength=len(self.classes))
        shares = {
            name: round(int(count) / mask_HW.size, DIGITS)
            for name, count in zip(self.classes, counts_K, strict=True)
            if count
        }

        picture = None
        if self._pictures:
            shown = _resized(image)
            colors = Image.fromarray(self._colorize(mask_HW)).resize(shown.size, Image.Resampling.NEAREST)
            picture = Image.blend(shown, colors, OVERLAY)
        return Prediction({"shares": shares}, picture, mask_HW)


class Detector:
    """A detector: objects with their class, score, box and mask, in pixels of the image."""

    kind, batch_size = "detector", 8

    def __init__(self, folder: str | Path, options: Options) -> None:
        from peco.evaluate.detection import model, pictures, storage

        self._detect, self._draw = model.detect, pictures.draw
        loaded = storage.load(folder)
        self.classes, self._size = loaded.classes, loaded.size
        self._model = loaded.model.to(select_device())
        self._min_score, self._pictures = options.min_score, options.pictures

    def prepare(self, image: Picture) -> Image.Image:
        return image.to_pil()

    def predict(self, images: Sequence[Image.Image]) -> list[Prediction]:
        found = self._detect(self._model, images, self._size)
        return [self._prediction(image, detections) for image, detections in zip(images, found, strict=True)]

    def _prediction(self, image: Image.Image, found: Detections) -> Prediction:
        objects: list[Record] = []
        for n, score in enumerate(found.scores.tolist()):
            if score < self._min_score:
                continue
            x0, y0, x1, y1 = found.boxes[n].tolist()
            entry: Record = {
                "class": self.classes[found.labels[n]],
                "score": round(score, DIGITS),
                "box": [round(value, 2) for value in (x0, y0, x1 - x0, y1 - y0)],
            }
            if found.masks is not None:
                entry["mask"] = coco.encode(found.masks[n])
            objects.append(entry)
        picture = None
        if self._pictures:
            drawn = int((found.scores >= max(DRAWN_SCORE, self._min_score)).sum())
            picture = self._draw(image, found, self.classes, limit=drawn)
        return Prediction({"width": image.width, "height": image.height, "objects": objects}, picture)


_PREDICTORS: Mapping[str, Callable[[str | Path, Options], Predictor]] = {
    "classifier": Classifier,
    "segmenter": Segmenter,
    "detector": Detector,
}


def _resized(image: Image.Image) -> Image.Image:
    """The image at the size of a picture."""
    longer = max(image.size)
    factor = MIN_SIDE // longer if longer < MIN_SIDE else min(1.0, MAX_SIDE / longer)
    size = max(1, round(image.width * factor)), max(1, round(image.height * factor))
    return image.resize(size, Image.Resampling.NEAREST if factor > 1 else Image.Resampling.BICUBIC)


def _captioned(image: Image.Image, lines: Sequence[str]) -> Image.Image:
    """A picture with some lines of text below it."""
    font = ImageFont.load_default(FONT_SIZE)
    wide = max(image.width, 160)
    canvas = Image.new("RGB", (wide, image.height + (FONT_SIZE + 4) * len(lines) + 4), "white")
    canvas.paste(image, ((wide - image.width) // 2, 0))
    pen = ImageDraw.Draw(canvas)
    for number, line in enumerate(lines):
        pen.text((4, image.height + 2 + (FONT_SIZE + 4) * number), line, fill="black", font=font)
    return canvas
