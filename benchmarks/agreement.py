"""Perceptual agreement of several tokenizers on the same triplets, as markdown tables.

    python -m benchmarks.agreement --tokenizer PeCo=DIR --tokenizer pixels=DIR --perceptual DIR --images photos.tar

Triplets are generated from the images of a folder or archive, at the tokenizers' size, exactly as in the stage
`evaluate@agreement` (`peco/evaluate/agreement/triplets.py`): the same images give the same triplets. The tables show the share of
right answers of every method for each pair of movement and damage, where a tie counts half, and the differences between the first
tokenizer and each of the others. Intervals are 95 %, by bootstrap over images; those of differences are paired, since both
tokenizers get the same triplets.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath

import numpy as np
import torch

from peco.core import artifacts, device
from peco.core.errors import PecoError
from peco.data import views
from peco.data.images import open_picture
from peco.evaluate.agreement import scores as agreement
from peco.evaluate.agreement.triplets import PAIRS, Triplets, generate
from peco.files.archives import open_archive
from peco.files.names import IMAGE_EXTENSIONS, extension, hashed, is_hidden
from peco.perceptual.features import FeatureNet
from peco.tokenizer import storage

Scores = dict[str, np.ndarray]  # (R, P) by method


def generate_triplets(path: Path, size: int, count: int | None) -> Iterator[Triplets]:
    """Generate triplets of `count` images (None: all) of a folder or archive, picked by a hash of their names.

    Raises:
        PecoError: the path can't be read, holds no image, or holds a broken one.
    """
    with tempfile.TemporaryDirectory() as work:
        archive = open_archive(path, Path(work))
        names = [
            name
            for name in archive.names()
            if extension(name) in IMAGE_EXTENSIONS and not any(map(is_hidden, PurePosixPath(name).parts))
        ]
        if not names:
            raise PecoError(f"{path}: no images found")
        for index, name in enumerate(sorted(names, key=lambda name: hashed(name, 0))[:count]):
            try:
                image = open_picture(archive.read(name))
                pixels = views.apply(image, views.center(*image.size), size)
            except PecoError as error:
                raise PecoError(f"{path}: {name}: {error}") from None
            yield generate(pixels.transpose(2, 0, 1) / 255, index)


def load(folders: Mapping[str, Path]) -> tuple[dict[str, agreement.TokenDistances], int]:
    """Load the tokenizers by name; also returns the size of their images.

    Raises:
        PecoError: a folder is missing or damaged, or the sizes differ.
    """
    sizes = {name: storage.image_size(path) for name, path in folders.items()}
    if len(set(sizes.values())) > 1:
        raise PecoError(f"tokenizers of different image sizes can't be compared on the same triplets: {sizes}")
    tokenizers = {
        name: agreement.TokenDistances(storage.load(path).to(device.select_device())) for name, path in folders.items()
    }
    return tokenizers, next(iter(sizes.values()))


def network(folder: Path, blocks: Sequence[int], normalize: str) -> agreement.NetworkDistances:
    """Load the perceptual network; without `blocks`, those at the quarters of its depth are used."""
    model = artifacts.load_timm(folder)
    depth = len(getattr(model, "feature_info", ()))
    chosen = blocks or sorted({max(1, depth * quarter // 4) for quarter in (1, 2, 3, 4)})
    return agreement.NetworkDistances(FeatureNet(model, chosen), normalize).to(device.select_device())  # type: ignore[arg-type]


def score(
    triplets: Iterator[Triplets], tokenizers: Mapping[str, agreement.TokenDistances], net: agreement.NetworkDistances
) -> Scores:
    """Answers of all methods; those of tokenizers are named `<name>: tokens_hamming` and so on."""
    compute_device = device.select_device()
    rows: dict[str, list[np.ndarray]] = {}
    for of_image in triplets:
        found = agreement.answers(of_image, [agreement.pixel_distances, net.between], compute_device)
        for name, tokenizer in tokenizers.items():
            of_tokenizer = agreement.answers(of_image, [tokenizer], compute_device)
            found |= {f"{name}: {method}": row for method, row in of_tokenizer.items()}
        for method, row in found.items():
            rows.setdefault(method, []).append(row)
    return {method: np.stack(values) for method, values in rows.items()}


def table(columns: Scores) -> str:
    """Table of means with their intervals, in percent: a row for each pair, a column for each method."""

    def cell(scores_RP: np.ndarray) -> str:
        found = agreement.mean_interval(scores_RP)
        return (
            "{accuracy:.1f} ({low:.1f} to {high:.1f})".format(**{k: 100 * v for k, v in found.items()})
            if found
            else "-"
        )

    lines = [f"| pair | {' | '.join(columns)} |", "|---|" + "---|" * len(columns)]
    for place, pair in [(slice(None), "all"), *((slice(i, i + 1), pair) for i, pair in enumerate(PAIRS))]:
        lines.append(f"| {pair} | {' | '.join(cell(scores[:, place]) for scores in columns.values())} |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Print the tables; returns status 2 if something is missing."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tokenizer", action="append", required=True, help="[NAME=]FOLDER; may be repeated")
    parser.add_argument("--perceptual", type=Path, required=True, help="folder of the perceptual network")
    parser.add_argument(
        "--blocks", type=int, nargs="+", default=(), help="blocks of the network (at the quarters of its depth)"
    )
    parser.add_argument("--normalize", choices=("channel", "token", "none"), default="channel", help="(%(default)s)")
    parser.add_argument("--images", type=Path, required=True, help="folder, tar or zip")
    parser.add_argument("--references", type=int, help="number of images (all)")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch (%(default)s)")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    named = [text.rpartition("=") for text in args.tokenizer]
    folders = {name or folder: Path(folder) for name, _, folder in named}
    try:
        tokenizers, size = load(folders)
        net = network(args.perceptual, args.blocks, args.normalize)
        scores = score(generate_triplets(args.images, size, args.references), tokenizers, net)
    except PecoError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    some = next(iter(scores.values()))
    kept = np.isfinite(some).sum()
    print(f"{len(some)} images of {size} pixels, {kept} triplets, {some.size - kept} dropped; right answers in %\n")
    print(table(scores))
    first, *others = folders
    for other in others:
        print(f"\n{first} minus {other}, points\n")
        names = ("tokens_hamming", "tokens_embedded")
        print(table({name: scores[f"{first}: {name}"] - scores[f"{other}: {name}"] for name in names}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
