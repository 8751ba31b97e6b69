"""ImageNet and Tiny-ImageNet as they are distributed: val has no folders of classes, but a list of labels."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable

from peco.core.errors import PecoError
from peco.files.damage import DAMAGE, damage_reason
from peco.files.names import folder_of, stem
from peco.files.words import VAL
from peco.sources.layouts.folders import folder_splits
from peco.sources.layouts.listing import Listing, Placed, Reading

_TRUTH = "ILSVRC2012_validation_ground_truth.txt"
_META = "meta.mat"
_DEVKITS = ("ILSVRC2012_devkit_t12.tar.gz", "ILSVRC2012_devkit_t12.tar")

Labels = dict[str, str]  # class by the stem of the image's name


def is_devkit(name: str) -> bool:
    """True for the archive of ImageNet's devkit."""
    return name.rsplit("/", 1)[-1] in _DEVKITS


def imagenet(listing: Listing) -> Reading | None:
    """train/<class>/… with class folders or class tars, val without folders, and a file with the labels of val.

    Raises:
        PecoError: that file can't be read, or names classes that train hasn't.
    """
    source = _label_file(listing)
    reading = folder_splits(listing) if source and listing.labels != "none" else None
    if source is None or reading is None:
        return None
    file, read = source
    unlabeled = sorted(i.name for i in reading.images if i.split == VAL and i.category is None)
    classes = {image.category for image in reading.images if image.category is not None}
    if not unlabeled or not classes:
        return None
    labels = read(listing, file, [stem(name) for name in unlabeled])
    if strange := sorted(set(labels.values()) - classes):
        raise PecoError(f"{file}: names the class {strange[0]}, which is not in train; fix the list, or remove it")
    reading.images = [
        Placed(i.name, VAL, labels.get(stem(i.name))) if i.split == VAL and i.category is None else i
        for i in reading.images
    ]
    reading.notes.append(f"labels of val are read from {file}")
    return reading


def _label_file(listing: Listing) -> tuple[str, Callable[[Listing, str, list[str]], Labels]] | None:
    """The file with the labels of val, and how it is read."""
    for names, read in (
        (("LOC_val_solution.csv",), _solution),
        (("val_annotations.txt",), _tiny),
        (("imagenet_2012_validation_synset_labels.txt",), _synsets),
        ((_TRUTH,), _ground_truth),
        (_DEVKITS, _devkit),
    ):
        if files := listing.named(*names):
            return files[0], read
    return None


def _solution(listing: Listing, file: str, stems: list[str]) -> Labels:
    """Kaggle's: ImageId,PredictionString with the class as the first word."""
    rows = [row for row in listing.rows(file, ",")[1:] if len(row) > 1 and row[1]]
    return {stem(row[0]): row[1].split()[0] for row in rows}


def _tiny(listing: Listing, file: str, stems: list[str]) -> Labels:
    """Tiny-ImageNet's: name, class and box, with tabs."""
    return {stem(row[0]): row[1] for row in listing.rows(file, "\t") if len(row) > 1}


def _synsets(listing: Listing, file: str, stems: list[str]) -> Labels:
    return _in_order(file, listing.text(file).split(), stems)


def _ground_truth(listing: Listing, file: str, stems: list[str]) -> Labels:
    meta = [name for name in listing.named(_META) if folder_of(name) == folder_of(file)]
    if not meta:
        raise PecoError(
            f"{file}: needs {_META} of the devkit beside it, which names the classes of its numbers; add it"
        )
    return _numbered(file, listing.text(file), listing.read(meta[0]), stems)


def _devkit(listing: Listing, file: str, stems: list[str]) -> Labels:
    found: dict[str, bytes] = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(listing.read(file))) as archive:
            for member in archive:
                name = member.name.rpartition("/")[2]
                if name in (_TRUTH, _META) and (data := archive.extractfile(member)):
                    found[name] = data.read()
    except DAMAGE as error:
        raise PecoError(f"{file}: can't be read as a tar ({damage_reason(error)}); fetch it again") from None
    if len(found) < 2:
        raise PecoError(f"{file}: holds no {_TRUTH} and {_META}; fetch the devkit of ILSVRC2012 again")
    return _numbered(file, found[_TRUTH].decode("latin-1"), found[_META], stems)


def _numbered(file: str, text: str, meta: bytes, stems: list[str]) -> Labels:
    """Labels by the devkit's own numbers of classes, which differ from the order of their names."""
    from scipy.io import loadmat

    try:
        synsets = loadmat(io.BytesIO(meta), squeeze_me=True)["synsets"]
        names = {int(s["ILSVRC2012_ID"]): str(s["WNID"]) for s in synsets.ravel()}
        return _in_order(file, [names[int(number)] for number in text.split()], stems)
    except (*DAMAGE, KeyError, TypeError) as error:
        raise PecoError(
            f"{file}: its numbers and {_META} don't fit ({damage_reason(error)}); fetch the devkit again"
        ) from None


def _in_order(file: str, labels: list[str], stems: list[str]) -> Labels:
    if len(labels) != len(stems):
        raise PecoError(f"{file}: {len(labels)} labels for {len(stems)} images of val; both must be complete")
    return dict(zip(sorted(stems), labels, strict=True))
