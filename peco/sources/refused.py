"""Formats of data sets that are recognised by their names and refused, with the way to export images from them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

_EXPORT = "export each image as PNG to train/<class>/ and test/<class>/"
_FORMATS = (
    (
        r"data_batch_\d|test_batch|batches\.meta",
        "CIFAR's pickled batches",
        f"torchvision.datasets.CIFAR10 reads them: {_EXPORT}",
    ),
    (
        r"(data_batch_\d|test_batch|train|test)\.bin",
        "CIFAR's binary batches",
        f"torchvision reads the Python version: {_EXPORT}",
    ),
    (r".*-ubyte(\.gz)?", "MNIST's idx files", f"torchvision.datasets.MNIST reads them: {_EXPORT}"),
    (
        r".*\.arrow",
        "Arrow files of Hugging Face",
        "`datasets.load_from_disk` and `to_parquet` write parquet, which is read",
    ),
    (r".*\.tfrecords?(-\d+-of-\d+)?", "TFRecords", f"tensorflow_datasets reads them: {_EXPORT}"),
    (r"data\.mdb|.*\.lmdb", "an LMDB", _EXPORT),
    (r".*\.(npz|npy)", "NumPy arrays", _EXPORT),
    (r".*\.mat", "MATLAB files", f"scipy.io.loadmat reads them: {_EXPORT}"),
    (r".*\.(h5|hdf5)", "HDF5 files", _EXPORT),
    (r".*\.(pkl|pickle|pt|pth)", "pickles", _EXPORT),
    (r".*\.(dcm|dicom|nii(\.gz)?|mha|nrrd)", "medical images (DICOM, NIfTI)", "export them as PNG, 16-bit if needed"),
    (r".*\.(tar(\.(gz|bz2|xz|zst))?|t[gbx]z2?|zip|rar|7z)", "archives", "unpack them, or name the one archive"),
    (r".*\.(mp4|mov|avi|mkv|webm|m4v)", "videos", "export frames, for example with ffmpeg"),
    (r".*\.parquet", "parquet files", "a folder of parquet files without images is read"),
    (r".*\.(rec|idx)", "MXNet records", _EXPORT),
)


def refused_format(names: Iterable[str]) -> str | None:
    """A sentence on the format that these files have instead of images, with a remedy; None if it isn't known."""
    for what, name, remedy in _known_formats(names):
        return f"holds {what}{f' ({name})' if name else ''}, no image files; {remedy}"
    return None


def unread_format(names: Iterable[str]) -> str | None:
    """The formats of those of these files that lie beside images and are not read; None if none is known."""
    found = [f"{what}{f' ({name})' if name else ''}" for what, name, _ in _known_formats(names)]
    return " and ".join(found) or None


def _known_formats(names: Iterable[str]) -> Iterator[tuple[str, str, str]]:
    """Names of the formats, the first file that has each, and the remedy."""
    names = list(names)
    bases = [name.rsplit("/", 1)[-1] for name in names]
    if {"meta", "train", "test"} <= set(bases):  # CIFAR-100
        yield "CIFAR's pickled batches", "", f"torchvision.datasets.CIFAR100 reads them: {_EXPORT}"
    for pattern, what, remedy in _FORMATS:
        if name := next((n for n, base in zip(names, bases, strict=True) if re.fullmatch(pattern, base, re.I)), None):
            yield what, name, remedy
