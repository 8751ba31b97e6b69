"""Fingerprints of a stage's inputs and code, by which its working files are found."""

from __future__ import annotations

import functools
import hashlib
import sys
from pathlib import Path

from peco.core.errors import PecoError
from peco.runtime.paths import ARTIFACTS


def require_present(path: Path) -> None:
    """Check that a stage's input exists.

    Raises:
        PecoError: it doesn't.
    """
    if not path.exists():
        raise PecoError(f"{path}: missing; `dvc repro` makes it, `dvc pull` fetches it")


def content_hash(path: Path) -> str:
    """Hash of a result of an earlier stage, or of data. The `index.json` of a result holds the hashes of the files next to it.

    Raises:
        PecoError: the path doesn't exist.
    """
    require_present(path)
    if path.parent == ARTIFACTS and (path / "index.json").exists():
        path = path / "index.json"
    digest = hashlib.sha256()
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if file.is_file():
            digest.update(str(file.relative_to(path.parent)).encode())
            with file.open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


# Cached, so that all trainings of a process have one key, although modules may be imported between them.
@functools.cache
def code_hash() -> str:
    """Hash of the source of all loaded modules of peco, including the stage's own, which runs as `__main__`."""
    sources = {}
    for name, module in sys.modules.copy().items():
        spec, file = getattr(module, "__spec__", None), getattr(module, "__file__", None)
        name = spec.name if spec else name
        if file and (name == "peco" or name.startswith("peco.")):
            sources[name] = Path(file)
    digest = hashlib.sha256()
    for name, path in sorted(sources.items()):
        digest.update(name.encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()
