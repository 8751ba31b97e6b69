"""The folder of results of a command on many images: a line for each image that is done, so that a stopped run resumes there."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from peco.core import artifacts, locks
from peco.core.errors import PecoError
from peco.core.publishing import write_file, write_json
from peco.use.images import Unreadable, one_line

SETTINGS = "settings.json"
UNREADABLE = "unreadable.tsv"
LOCK = ".lock"


def fingerprint(model: str | Path) -> str:
    """Hash of the config and the weights of a model folder.

    Raises:
        PecoError: one of them is missing.
    """
    digest = hashlib.sha256()
    for name in (artifacts.CONFIG, artifacts.WEIGHTS):
        try:
            with (Path(model) / name).open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        except OSError as error:
            raise PecoError(f"{Path(model) / name}: {error.strerror}; the model folder is not complete") from None
    return digest.hexdigest()


def read_settings(folder: Path) -> dict[str, Any]:
    """The settings of a folder of results.

    Raises:
        PecoError: they are missing or damaged, or those of another program.
    """
    path = folder / SETTINGS
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        found = None
    if not isinstance(found, dict) or not {"kind", "model"} <= found.keys():
        raise PecoError(f"{path}: not the settings of a folder of results; choose another folder")
    return found


class OutputFolder:
    """A folder of results, held by this process.

    Args:
        path: the folder; made if it is missing.
        settings: all that the results depend on, next to the images.
        records: name of the file of JSON lines, each with the name of its `image`.

    Attributes:
        done: names of the images that have a line.

    Raises:
        PecoError: the folder holds something else, or results of other settings, or another process writes there.
    """

    def __init__(self, path: str | Path, settings: Mapping[str, Any], records: str) -> None:
        self.path = Path(path)
        self.records = self.path / records
        present = self.path / SETTINGS
        if self.path.exists() and not present.exists() and (not self.path.is_dir() or any(self._content())):
            raise PecoError(f"{path}: is no folder of results and not empty; choose another one (-o)")
        self.path.mkdir(parents=True, exist_ok=True)
        self._lock: IO[str] = (self.path / LOCK).open("a")
        if not locks.acquire(self._lock, required=False):
            raise PecoError(f"{path}: another process writes there; wait for it, or choose another folder (-o)")
        if present.exists():
            self._require_equal(read_settings(self.path), settings)
        else:
            write_json(present, settings)
        self.done = self._read_done()

    def append(self, lines: Sequence[Mapping[str, Any]]) -> None:
        """Add lines. They are written as one block: after a kill a line is whole or the next run removes it."""
        text = "".join(json.dumps(line) + "\n" for line in lines)
        with self.records.open("ab") as file:
            file.write(text.encode("ascii"))
        self.done.update(line["image"] for line in lines)

    def close(self, unreadable: Sequence[Unreadable]) -> None:
        """List what can't be read, and release the folder.

        Raises:
            PecoError: there was something that can't be read.
        """
        listed = self.path / UNREADABLE
        if unreadable:
            write_file(listed, "".join(f"{one_line(entry.name)}\t{one_line(entry.reason)}\n" for entry in unreadable))
        else:
            listed.unlink(missing_ok=True)
        self._lock.close()
        if unreadable:
            first = one_line(f"{unreadable[0].name} ({unreadable[0].reason})")
            raise PecoError(
                f"{len(unreadable)} of the images can't be read, such as {first}; all are listed in {listed}, the others are done"
            )

    def _content(self) -> list[Path]:
        return [entry for entry in self.path.iterdir() if entry.name != LOCK]

    def _require_equal(self, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
        for key in now:
            if before.get(key) != now[key]:
                found = f"with {key} {json.dumps(before.get(key))}, not {json.dumps(now[key])}"
                raise PecoError(
                    f"{self.path}: holds results {'of another model' if key == 'model' else found}; choose another folder (-o) or "
                    "remove it"
                )

    def _read_done(self) -> set[str]:
        if not self.records.exists():
            return set()
        with self.records.open("rb+") as file:
            done, whole = set(), 0
            for line in file:
                if not line.endswith(b"\n"):
                    break  # cut by a kill
                try:
                    done.add(json.loads(line)["image"])
                except (ValueError, KeyError, TypeError):
                    raise PecoError(f"{self.records}: line {len(done) + 1} is no result; remove the file") from None
                whole += len(line)
            file.truncate(whole)
        return done
