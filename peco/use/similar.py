"""`peco similar`: the images of a folder of embeddings that are nearest to an image, printed and on a page.

Legend: N images, D width.
"""

from __future__ import annotations

import base64
import html
import io
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from peco.core.errors import PecoError
from peco.core.parsing import NPY_ERRORS, reason
from peco.core.publishing import write_file
from peco.data.images import Picture
from peco.use.embed import VECTORS, Embedder, read_names
from peco.use.images import Found, Loaded, load, locate, one_line, printable
from peco.use.output import read_settings

ROWS = 65536  # compared at a time
SIDE = 192  # pixels of a picture on the page, at most
PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; font: 15px/1.4 system-ui, sans-serif; }}
body {{ margin: 1.5rem auto; max-width: 1200px; padding: 0 1rem; }}
ol {{ display: grid; gap: 1rem; grid-template-columns: repeat(auto-fill, minmax(140px, 1fr)); list-style: none; padding: 0; }}
img {{ display: block; max-width: 100%; }}
figure {{ margin: 0; overflow-wrap: anywhere; }}
</style>
<h1>{title}</h1>
{query}
<ol>
{items}
</ol>
</html>
"""


def similar(query: str, folder: str, *, model: str, count: int, page: str | None = None) -> None:
    """Print the nearest images with their cosine similarity, and draw them on a page.

    Args:
        query: an image: a file, or the name of an image in the folder.
        folder: from `peco embed -o`.
        model: folder of the model of the embeddings; used only for a query that is not among them.
        count: number of images.
        page: HTML file to write; pictures are within it.

    Raises:
        PecoError: the folder holds no embeddings of whole images, the query can't be read, or the model is another one.
    """
    root = Path(folder)
    names = read_names(root)
    try:
        vectors_ND = np.lib.format.open_memmap(root / VECTORS, mode="r")
    except NPY_ERRORS as error:
        raise PecoError(
            f"{root / VECTORS}: can't be read ({reason(error)}); remove the folder and embed again"
        ) from None
    if len(vectors_ND) != len(names):
        raise PecoError(f"{folder}: is not finished; run the same `peco embed` again")
    if vectors_ND.ndim != 2:
        raise PecoError(f"{folder}: holds embeddings of patches; make some of whole images (without --patches)")
    query = str(Path(query))  # as `find` writes names, without `./`
    own = names.index(query) if query in names else None
    query_D = vectors_ND[own] if own is not None else _embedded(query, root, model)
    scores_N = _cosine(vectors_ND, np.asarray(query_D))
    if own is not None:
        scores_N[own] = -np.inf
    best = np.argsort(-scores_N, kind="stable")[: min(count, len(names) - (own is not None))].tolist()
    found = [(names[n], float(scores_N[n])) for n in best]
    for name, score in found:
        print(f"{score:.4f}  {one_line(name)}")
    if page is not None:
        if gone := sum(locate(name) is None for name, _ in found):
            print(
                f"warning: {gone} of the {len(found)} images are not at their paths, which count from where `peco embed` ran",
                file=sys.stderr,
            )
        write_file(Path(page), _page(query, found))


def _embedded(query: str, root: Path, model: str) -> NDArray[np.float32]:
    """The embedding of an image that is not in the folder, by the same model."""
    settings = read_settings(root)
    block = settings.get("block")
    embedder = Embedder.open(model, None if block in (None, "pooled") else str(block), patches=False)
    if embedder.settings(model)["model"] != settings["model"]:
        raise PecoError(f"{model}: is not the model of the embeddings in {root}; name that one (-m)")
    if not Path(query).is_file():
        raise PecoError(f"{query}: neither a file nor an image of {root}")
    ((entry,),) = load([Found(Path(query))], embedder.prepare, 1)
    if not isinstance(entry, Loaded):
        raise PecoError(f"{query}: can't be read as an image: {entry.reason}")
    vector_D: NDArray[np.float32] = embedder.embed([entry.value])[0]
    return vector_D


def _cosine(vectors_ND: NDArray[np.float32], query_D: NDArray[np.float32]) -> NDArray[np.float64]:
    """Cosine similarity (N,) of each row with the query; 0 for a row of zeros."""
    query = query_D.astype(np.float64)
    query /= max(float(np.linalg.norm(query)), 1e-12)
    scores = np.empty(len(vectors_ND))
    for first in range(0, len(vectors_ND), ROWS):
        rows = np.asarray(vectors_ND[first : first + ROWS], dtype=np.float64)
        scores[first : first + ROWS] = rows @ query / np.maximum(np.linalg.norm(rows, axis=1), 1e-12)
    return scores


def _page(query: str, found: Sequence[tuple[str, float]]) -> str:
    items = "\n".join(f"<li>{_figure(name, f'{score:.3f}')}</li>" for name, score in found)
    title = f"Images like {Path(query).name}"
    return PAGE.format(title=html.escape(printable(title)), query=_figure(query, "the query"), items=items)


def _figure(name: str, note: str) -> str:
    item = locate(name)
    entry: Any = next(iter(load([item], _thumbnail, 1)))[0] if item else None
    text = html.escape(printable(name))
    picture = f'<img src="{entry.value}" alt="{text}">' if isinstance(entry, Loaded) else "(no longer there)"
    return f"<figure>{picture}<figcaption>{note}<br>{text}</figcaption></figure>"


def _thumbnail(picture: Picture) -> str:
    """A small JPEG as a data URI."""
    image = picture.to_pil()
    image.thumbnail((SIDE, SIDE))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode('ascii')}"
