"""`peco embed`: features of many images, printed or kept in a folder for `peco similar` and other programs.

Legend: B batch, L patches, D width, N images.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from peco.core import artifacts
from peco.core.device import select_device
from peco.core.errors import PecoError
from peco.data import views
from peco.data.images import Picture
from peco.networks.backbones import block_count
from peco.probes.features import NORM, patch_tokens
from peco.use.images import Loaded, Unreadable, find, load, one_line, printable
from peco.use.npy_rows import NpyRows
from peco.use.output import OutputFolder, fingerprint
from peco.use.progress import Progress

KINDS = ("backbone", "classifier", "perceptual_net", "network")  # the last is that of `peco.convert`
VECTORS, NAMES, PARQUET = "embeddings.npy", "images.jsonl", "embeddings.parquet"
BATCH = 64
DIGITS = 6
PARQUET_ROWS = 4096  # written at a time


@dataclass(frozen=True)
class Embedder:
    """Features of a timm network: of one block, or its pooled output where it isn't a vision transformer.

    Attributes:
        block: number of the block from 1, `norm` for the output after the final norm, or `pooled`.
        patches: a vector for each patch instead of their mean.
        size: side in pixels of its images.
    """

    model: nn.Module
    block: int | str
    patches: bool
    size: int

    @classmethod
    def open(cls, folder: str | Path, block: str | None, patches: bool) -> Embedder:
        """The network of a folder, on the GPU where there is one.

        Args:
            folder: of a backbone, a classifier, a perceptual network, a converted checkpoint or any timm model.
            block: a number, or `norm`; None for the last block.
            patches: as the attribute.

        Raises:
            PecoError: the folder or the block can't be used.
        """
        kind = artifacts.kind_of(folder)
        if kind is not None:  # else a folder of timm
            if kind not in KINDS:
                raise PecoError(
                    f"{folder}: expected the folder of a {', '.join(KINDS[:-1])} or {KINDS[-1]}, found {kind!r}"
                )
            artifacts.section(folder, kind)  # an evaluation may have been skipped
        model = artifacts.load_timm(folder, num_classes=0).to(select_device())
        depth = block_count(model)
        if not depth and (block or patches):
            raise PecoError(
                f"{folder}: is no vision transformer, it has pooled features only; leave out --block and --patches"
            )
        return cls(model, _block(block, depth), patches, artifacts.input_size(folder))

    def prepare(self, image: Picture) -> NDArray[np.uint8]:
        """The centre square of an image, uint8 (size, size, 3)."""
        return views.apply(image, views.center(image.width, image.height), self.size)

    @torch.no_grad()
    def embed(self, pixels: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        """Features (B, D), or (B, L, D) by patch, of prepared images."""
        device = next(self.model.parameters()).device
        mean_C11, std_C11 = (t.to(device) for t in artifacts.normalization(self.model))
        x_BCHW = torch.from_numpy(np.stack(pixels)).to(device).permute(0, 3, 1, 2).float() / 255
        x_BCHW = (x_BCHW - mean_C11) / std_C11
        if self.block == "pooled":
            features = self.model(x_BCHW)
        else:
            blocks = [block_count(self.model) if self.block == NORM else int(self.block)]
            features = patch_tokens(self.model, x_BCHW, blocks)[1 if self.block == NORM else 0]
            features = features if self.patches else features.mean(dim=1)
        result: NDArray[np.float32] = features.float().cpu().numpy()
        return result

    def settings(self, folder: str | Path) -> dict[str, Any]:
        """All that embeddings depend on, next to the images."""
        return {"kind": "embeddings", "model": fingerprint(folder), "block": self.block, "patches": self.patches}


def _block(text: str | None, depth: int) -> int | str:
    if not depth:
        return "pooled"
    if text == NORM:
        return NORM
    if text is None:
        return depth
    if not text.isdecimal() or not 1 <= int(text) <= depth:
        raise PecoError(f"--block: {text} is not allowed; expected from 1 to {depth}, or {NORM}")
    return int(text)


def print_embeddings(embedder: Embedder, arguments: Sequence[str], batch_size: int | None = None) -> None:
    """Print a JSON line for each image: its name, the block and its embedding.

    Raises:
        PecoError: as `images.find`, and when all others are printed, for images that can't be read.
    """

    def show(names: Sequence[str], vectors: NDArray[np.float32]) -> None:
        for name, vector in zip(names, vectors, strict=True):
            line = {"image": name, "block": embedder.block, "embedding": _rounded(vector.tolist())}
            print(json.dumps(line), flush=True)

    found, unreadable = find(arguments)
    unreadable += _each_batch(embedder, found, batch_size or BATCH, show, lambda _: None)
    for entry in unreadable[1:]:
        print(one_line(f"{entry.name}: can't be read as an image: {entry.reason}"), file=sys.stderr)
    if unreadable:
        raise PecoError(one_line(f"{unreadable[0].name}: can't be read as an image: {unreadable[0].reason}"))


def save_embeddings(
    embedder: Embedder,
    settings: dict[str, Any],
    arguments: Sequence[str],
    output: str,
    *,
    batch_size: int | None = None,
    parquet: bool = False,
) -> None:
    """Write embeddings to a folder; an earlier run with the same settings resumes.

    `embeddings.npy` is float32 (N, D), or (N, L, D) by patch; line n of `images.jsonl` names the image of row n.

    Args:
        embedder: the network.
        settings: from `Embedder.settings`.
        arguments: images (see `images.find`).
        output: the folder.
        batch_size: images at a time.
        parquet: write the columns `image` and `embedding` to `embeddings.parquet` too.

    Raises:
        PecoError: a wrong argument or folder, a missing package, or, when all others are done, images that can't be read.
    """
    parquet = parquet or (Path(output) / PARQUET).exists()  # one of an earlier run must not stay behind
    if parquet:
        _require_pyarrow()
    found, unreadable = find(arguments, Path(output))
    folder = OutputFolder(output, settings, NAMES)
    left = [item for item in found if item.name not in folder.done]
    progress = Progress("embed", len(found), len(found) - len(left))
    with NpyRows(folder.path / VECTORS, len(folder.done)) as rows:

        def keep(names: Sequence[str], vectors: NDArray[np.float32]) -> None:
            rows.append(vectors)
            folder.append([{"image": name} for name in names])

        unreadable += _each_batch(embedder, left, batch_size or BATCH, keep, progress.add)
    progress.close()
    if folder.done and parquet:
        _write_parquet(folder.path)
    print(f"{len(folder.done)} images: {folder.path / VECTORS}")
    folder.close(unreadable)


def read_names(folder: Path) -> list[str]:
    """Names of the images in a folder of embeddings, by row.

    Raises:
        PecoError: it is no such folder.
    """
    try:
        with (folder / NAMES).open(encoding="ascii") as file:
            return [json.loads(line)["image"] for line in file]
    except (OSError, ValueError, KeyError, TypeError):
        raise PecoError(f"{folder}: no folder of embeddings; `peco embed … -o {folder}` makes one") from None


def _each_batch(
    embedder: Embedder,
    items: Sequence[Any],
    batch_size: int,
    use: Callable[[Sequence[str], NDArray[np.float32]], None],
    count: Callable[[int], None],
) -> list[Unreadable]:
    """Embed images and hand them on in batches; returns those that can't be read."""
    unreadable: list[Unreadable] = []
    for batch in load(items, embedder.prepare, batch_size):
        unreadable += [entry for entry in batch if isinstance(entry, Unreadable)]
        loaded = [entry for entry in batch if isinstance(entry, Loaded)]
        if loaded:
            use([entry.name for entry in loaded], embedder.embed([entry.value for entry in loaded]))
        count(len(batch))
    return unreadable


def _rounded(values: Any) -> Any:
    return [_rounded(value) for value in values] if isinstance(values, list) else round(values, DIGITS)


def _require_pyarrow() -> None:
    try:
        import pyarrow.parquet  # noqa: F401
    except ModuleNotFoundError:
        raise PecoError("--parquet: needs the package pyarrow; pip install 'peco[parquet]'") from None


def _write_parquet(folder: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    from peco.core.publishing import replacing

    names = [printable(name) for name in read_names(folder)]
    vectors = np.load(folder / VECTORS, mmap_mode="r")
    kind = pa.float32()
    for side in reversed(vectors.shape[1:]):
        kind = pa.list_(kind, side)
    schema = pa.schema([("image", pa.string()), ("embedding", kind)])
    with replacing(folder / PARQUET) as part, pq.ParquetWriter(part, schema) as writer:
        for first in range(0, len(names), PARQUET_ROWS):
            some = slice(first, first + PARQUET_ROWS)
            column = pa.array(np.ascontiguousarray(vectors[some]).ravel())
            for side in reversed(vectors.shape[1:]):
                column = pa.FixedSizeListArray.from_arrays(column, side)
            writer.write_table(pa.table([pa.array(names[some]), column], schema=schema))
