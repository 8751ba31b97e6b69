"""Reading checkpoints: of PyTorch without running code of the file, or safetensors; and finding the network's weights in them."""

from __future__ import annotations

import argparse
import collections
import pathlib
import pickle
import re
import struct
import tarfile
import types
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from peco.core import artifacts
from peco.core.errors import PecoError

# Plain data that trainings save next to the weights; none of these runs code of the file.
_HARMLESS: list[Any] = [
    argparse.Namespace,
    types.SimpleNamespace,
    collections.defaultdict,
    pathlib.PosixPath,
    (pathlib.PosixPath, "pathlib._local.PosixPath"),  # its name in Python 3.13
    np.ndarray,
    np.dtype,
    *(type(np.dtype(name)) for name in ("bool", "uint8", "int32", "int64", "float16", "float32", "float64")),
    # The functions by which numbers and arrays of NumPy are unpickled, by the names of NumPy 1 and 2.
    *((made.__reduce__()[0], f"numpy.{module}.multiarray.{name}")
      for made, name in ((np.float64(0), "scalar"), (np.zeros(1), "_reconstruct")) for module in ("core", "_core")),
]  # fmt: skip
# What torch's unpickler raises for bytes that are no pickle, or a damaged one.
_UNREADABLE = (
    pickle.UnpicklingError, tarfile.TarError, struct.error, RuntimeError, EOFError, OSError, ArithmeticError, AssertionError,
    AttributeError, LookupError, MemoryError, TypeError, ValueError,
)  # fmt: skip
# Entries of a checkpoint that hold a network, the one to take first; as in timm, averaged weights before the others.
_ENTRIES = (
    "teacher", "state_dict_ema", "model_ema", "state_dict", "model_state_dict", "model", "student", "module", "network",
    "backbone", "encoder",
)  # fmt: skip
# Of several networks in one state dict: the trained or averaged one that is used afterwards.
_LAST_PREFIXES = ("momentum_encoder.", "student.")
PATCHES = "patch_embed.proj.weight"


@dataclass(frozen=True)
class Found:
    """The weights of a network in a checkpoint.

    Attributes:
        tensors: by the network's own names.
        entry: dotted path of the state dict in the checkpoint; empty if the checkpoint is one.
        prefix: of the names there.
        others: other entries and prefixes with a network.
    """

    tensors: dict[str, Tensor]
    entry: str
    prefix: str
    others: tuple[str, ...]

    @property
    def place(self) -> str:
        """Entry and prefix in words."""
        return (
            " and ".join(
                part for part in (self.entry and f"entry {self.entry}", self.prefix and f"prefix {self.prefix}") if part
            )
            or "no entry, no prefix"
        )


def read(path: Path) -> object:
    """The content of a checkpoint.

    Raises:
        PecoError: there is none, it is not whole, or it holds more than tensors and plain data.
    """
    try:
        if path.is_dir():
            raise PecoError(f"{path}: is a folder; name the checkpoint in it")
        if not path.exists():
            raise PecoError(f"{path}: no such file")
        with path.open("rb") as file:
            head = file.read(64)
    except OSError as error:
        raise PecoError(f"{path}: can't be read ({error.strerror}); fix that, or name another file") from None
    if head.startswith(b"version https://git-lfs"):
        raise PecoError(f"{path}: only a pointer of Git LFS; `git lfs pull` fetches the file")
    if head.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        raise PecoError(f"{path}: a web page, not a checkpoint; download the file that it links to")
    if path.suffix == ".safetensors":
        return artifacts.load_tensors(path)
    try:
        with torch.serialization.safe_globals(_HARMLESS):
            return cast(object, torch.load(path, map_location="cpu", weights_only=True))
    except _UNREADABLE as error:
        raise PecoError(f"{path}: {_cause(path, error)}") from None


def _cause(path: Path, error: Exception) -> str:
    """Why torch can't read a file, and what to do."""
    text = " ".join(str(error).split())
    save = "load it where it was made and save the weights alone, `torch.save(model.state_dict(), …)`"
    if named := re.search(r"(?:GLOBAL |global |class )`?([\w.]+[.][\w.]+)", text):
        return f"holds objects of {named[1]}, which can't be read without running code of the file; {save}"
    try:
        is_zip, names, damaged = zipfile.is_zipfile(path), list[str](), None
        if is_zip:
            with zipfile.ZipFile(path) as archive:
                names, damaged = archive.namelist(), archive.testzip()
    except (zipfile.BadZipFile, zlib.error, RuntimeError, EOFError, OSError, ValueError, struct.error):
        return "is a damaged archive; download it again"
    if is_zip:
        if damaged is not None:
            return f"is damaged at {damaged}; download it again"
        if any(name.endswith(".npy") for name in names):
            return "holds arrays of NumPy (npz), not a checkpoint of PyTorch; give the model in PyTorch's format"
        if any(name.endswith("constants.pkl") for name in names):
            return f"a TorchScript archive; {save}"
        return f"the archive is whole, but not a checkpoint ({text[:200]}); {save}"
    if isinstance(error, EOFError) or re.search(
        "central directory|truncated|unexpected (pos|eof)|ran out", text.lower()
    ):
        return "is not whole; download it again"
    return f"not a checkpoint of PyTorch or safetensors ({text[:200]}); give one of these"


def find(
    checkpoint: object, source: Path, entry: str | None = None, prefix: str | None = None, stem: str = PATCHES
) -> Found:
    """The weights of the network in a checkpoint.

    Args:
        checkpoint: from `read`.
        source: the file, for messages.
        entry: dotted path of the state dict to take; None for the first of `_ENTRIES`.
        prefix: of the network's names in it; None for that of the first network.
        stem: name of the network's first weight.

    Raises:
        PecoError: there is none, or no such entry or prefix.
    """
    places = _places(checkpoint)
    if entry is not None and entry not in places:
        raise PecoError(f"--entry: {entry} is not allowed; expected one of: {', '.join(places) or 'none in this file'}")
    if not places:
        what = f"its entries are {', '.join(map(str, list(checkpoint)[:8]))}" if isinstance(checkpoint, Mapping) else (
            f"it is a {type(checkpoint).__name__}")  # fmt: skip
        raise PecoError(f"{source}: holds no state dict ({what}); give a checkpoint with the weights of a network")
    chosen = min(places, key=_rank) if entry is None else entry
    tensors = places[chosen]
    for name, tensor in tensors.items():
        if tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_meta:
            raise PecoError(f"{source}: {name} holds no plain numbers; give a checkpoint with the weights themselves")
    prefixes = _prefixes(tensors, stem)
    if prefix is not None and prefix not in prefixes:
        raise PecoError(f"--prefix: {prefix} is not allowed; expected one of: {', '.join(prefixes)}")
    prefix = prefixes[0] if prefix is None else prefix
    others = [*(place for place in places if place != chosen), *(other for other in prefixes if other != prefix)]
    own = {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
    return Found(own, chosen, prefix, tuple(others))


def _places(value: object, path: str = "") -> dict[str, dict[str, Tensor]]:
    """All state dicts in a checkpoint by their dotted paths. State of optimizers has numbers for names, or none that is nested."""
    if not isinstance(value, Mapping):
        return {}
    tensors = {str(name): t for name, t in value.items() if isinstance(t, Tensor)}
    if any("." in name for name in tensors):
        return {path: tensors}
    found: dict[str, dict[str, Tensor]] = {}
    for name, inner in value.items():
        if isinstance(name, str) and name not in ("optimizer", "optimizer_state_dict"):
            found |= _places(inner, f"{path}.{name}" if path else name)
    return found


def _rank(place: str) -> tuple[int, str]:
    names = place.split(".")
    known = [_ENTRIES.index(name) for name in names if name in _ENTRIES]
    return (min(known) if known else len(_ENTRIES)), place


def _prefixes(tensors: Mapping[str, Tensor], stem: str) -> list[str]:
    """Prefixes of the networks in a state dict, the one to take first."""
    starts = [name.removesuffix(stem) for name in tensors if name == stem or name.endswith(f".{stem}")]
    if stem != PATCHES:  # blocks within a CNN may have a weight of this name too
        starts = [start for start in starts if not any(start != other and start.startswith(other) for other in starts)]
    if starts:
        return sorted(starts, key=lambda prefix: (any(last in prefix for last in _LAST_PREFIXES), len(prefix)))
    common = _common_prefix(list(tensors))
    return [common]


def _common_prefix(names: list[str]) -> str:
    """The leading parts that all names share, such as `module.`."""
    prefix = ""
    while True:
        part = names[0].removeprefix(prefix).partition(".")[0] + "."
        if not all(name.startswith(prefix + part) for name in names):
            return prefix
        prefix += part
