"""Triplets of a reference and two views of it, with a known answer to the question which view is closer. There are two kinds.

- **Generated**, from any image. One view is moved a little, the other damaged so that its mean squared error equals that of the
  first (`distortions.py`). The moved one counts as closer. Every image gives one moved view of each kind, and for each of these one
  damaged view of each kind.
- **2AFC**, two-alternative forced choice, in the layout of BAPPS (Zhang et al., arXiv 1801.03924): folders `ref`, `p0`, `p1` with
  an image for each item, and `judge` with an .npy, which holds the share of people who found p1 closer. A category is a folder
  with these four, at any depth. Flat files `NAME_ref.png`, `NAME_p0.png`, `NAME_p1.png`, `NAME_judge.npy` are items too; their
  folder is the category. A category without any vote is read and counted, but has no score.

Legend: C = 3 channels, S pixels a side.
"""

from __future__ import annotations

import functools
import io
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from peco.core.errors import PecoError
from peco.core.parsing import NPY_ERRORS
from peco.data import views
from peco.data.images import open_picture
from peco.data.loader import eval_batches
from peco.data.samples import CenterView
from peco.data.shards import ShardSet
from peco.evaluate.agreement.distortions import DAMAGE, GEOMETRIC, MIN_ERROR, match_error, mean_squared_error
from peco.files.archives import open_archive
from peco.files.names import IMAGE_EXTENSIONS, extension

PAIRS = tuple(f"{geometric}_{damage}" for geometric in GEOMETRIC for damage in DAMAGE)
SEED = 0  # not the run's: all runs get the same triplets
BATCH = 16
MEMBERS = ("ref", "p0", "p1", "judge")
_EXPECTED = "expected ref, p0, p1 and judge folders, or files NAME_ref.png, NAME_p0.png, NAME_p1.png"


@dataclass(frozen=True, eq=False)
class Triplets:
    """All triplets of one image: the image and its views, float64 CSS in [0, 1].

    Attributes:
        moved: by kind of movement.
        damaged: by pair (`PAIRS`), with the pixel error of the pair's moved view; a pair that can't be matched is missing.
    """

    reference: np.ndarray
    moved: dict[str, np.ndarray]
    damaged: dict[str, np.ndarray]


def generate(reference_CSS: np.ndarray, index: int) -> Triplets:
    """Generate all triplets of one image; the same for the same image and `index`."""
    moved, damaged = {}, {}
    for number, (geometric, move) in enumerate(GEOMETRIC.items()):
        moved[geometric] = move(reference_CSS, np.random.default_rng([SEED, index, number]))
        error = mean_squared_error(moved[geometric], reference_CSS)
        if error < MIN_ERROR:
            continue
        for other, (name, prepare) in enumerate(DAMAGE.items()):
            damage = prepare(reference_CSS, np.random.default_rng([SEED, index, number, other]))
            view = match_error(damage, reference_CSS, error)
            if view is not None:
                damaged[f"{geometric}_{name}"] = view
    return Triplets(reference_CSS, moved, damaged)


def generate_split(shards: ShardSet, size: int, count: int, workers: int = 0) -> Iterator[Triplets]:
    """Generate triplets of the first `count` images of a split (fewer, if it has fewer), at `size` pixels a side."""
    index = 0
    for batch in eval_batches(
        shards, CenterView(size), batch_size=BATCH, stop=min(count, len(shards)), workers=workers, label="agreement"
    ):
        for x_CSS in batch["image"].double().numpy():
            yield generate(x_CSS, index)
            index += 1


@dataclass(frozen=True)
class Item:
    """One 2AFC item: the paths of its images, and the share of people who found p1 closer (None: without votes)."""

    category: str
    name: str
    images: tuple[str, str, str]  # reference, p0, p1
    judge: float | None


class TwoAfc:
    """2AFC items of a folder, tar or zip, ordered by category and name.

    Args:
        path: the folder or archive; all members and votes are checked when it is opened, images when they are read.
        work: folder for the unpacked copy of a compressed tar.

    Raises:
        PecoError: the path can't be read, holds no item, an item lacks a member, or a vote isn't a number from 0 to 1.
    """

    def __init__(self, path: Path, work: Path) -> None:
        self.path = path
        self._archive = open_archive(path, work)
        found: dict[tuple[str, str], dict[str, str]] = {}
        for file in sorted(self._archive.names()):
            if parsed := _parse(PurePosixPath(file)):
                category, name, member = parsed
                members = found.setdefault((category, name), {})
                if member in members:
                    raise PecoError(f"{path}: {file} and {members[member]} are the same member of a triplet; keep one")
                members[member] = file
        if not found:
            raise PecoError(f"{path}: no triplets found; {_EXPECTED}")
        judged = {category for (category, _), members in found.items() if "judge" in members}
        self.items = tuple(self._item(*key, found[key], key[0] in judged) for key in sorted(found))

    def __len__(self) -> int:
        return len(self.items)

    @property
    def categories(self) -> Counter[str]:
        """Number of items by category."""
        return Counter(item.category for item in self.items)

    def images(self, index: int, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Read reference, p0 and p1 of an item as float64 CSS in [0, 1]: the centre square, resized.

        Raises:
            PecoError: an image can't be decoded, or their sizes differ.
        """
        names = self.items[index].images
        pictures = []
        for name in names:
            pictures.append(open_picture(self._archive.read(name), explain=functools.partial(self._explain, name)))
            if pictures[-1].size != pictures[0].size:
                sizes = [f"{picture.width}x{picture.height}" for picture in (pictures[0], pictures[-1])]
                raise PecoError(
                    f"{self.path}: {name} has {sizes[1]} pixels, its reference {sizes[0]}; give a triplet of one size"
                )
        square = views.center(*pictures[0].size)
        reference, p0, p1 = (views.apply(p, square, size).transpose(2, 0, 1) / 255 for p in pictures)
        return reference, p0, p1

    def _explain(self, name: str, reason: str) -> str:
        return f"{self.path}: {name}: {reason}; fix or remove the triplet"

    def _item(self, category: str, name: str, members: dict[str, str], judged: bool) -> Item:
        for member in MEMBERS if judged else MEMBERS[:3]:
            if member not in members:
                there = next(iter(members.values()))
                raise PecoError(
                    f"{self.path}: triplet {name} of {category} has no {member} (there is {there}); add it or remove the rest"
                )
        judge = self._judge(members["judge"]) if judged else None
        return Item(category, name, (members["ref"], members["p0"], members["p1"]), judge)

    def _judge(self, file: str) -> float:
        try:
            value = np.lib.format.read_array(io.BytesIO(self._archive.read(file)), allow_pickle=False)
            share = float(value.reshape(-1)[0]) if value.size == 1 else float("nan")
        except NPY_ERRORS:
            share = float("nan")
        if not 0 <= share <= 1:
            raise PecoError(
                f"{self.path}: {file}: not a vote; expected an .npy of one number from 0 to 1, the share that chose p1"
            )
        return share


def _parse(file: PurePosixPath) -> tuple[str, str, str] | None:
    """Category, item and member of a file; None if it belongs to no item."""
    if file.suffix != ".npy" and extension(file.name) not in IMAGE_EXTENSIONS:
        return None
    folder, (stem, _, last) = file.parent, file.stem.rpartition("_")
    if folder.name in MEMBERS:
        name, member, folder = file.stem, folder.name, folder.parent
    elif stem and last in MEMBERS:
        name, member = stem, last
    else:
        return None
    if (file.suffix == ".npy") != (member == "judge"):  # a vote is an .npy, all other members are images
        return None
    return "all" if folder == PurePosixPath() else folder.as_posix(), name, member
