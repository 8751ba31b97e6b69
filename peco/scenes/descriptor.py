"""Reads the descriptor of the built-in set, `data/scenes.yaml`: version and seed of the scenes."""

from __future__ import annotations

from pathlib import Path

import yaml

from peco.core.errors import PecoError
from peco.core.parsing import YAML_ERRORS, shown
from peco.scenes import scenes


def read_descriptor(path: Path) -> int:
    """The seed of the scenes.

    Raises:
        PecoError: the descriptor is missing or wrong, or names another version than this code draws.
    """
    example = f"expected three lines: generator: scenes, version: {scenes.VERSION}, seed: 0"
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise PecoError(f"{path}: can't be read ({error.strerror}); {example}") from None
    except YAML_ERRORS:
        raise PecoError(f"{path}: not a YAML file; {example}") from None
    if (
        not isinstance(found, dict)
        or found.keys() != {"generator", "version", "seed"}
        or found["generator"] != "scenes"
    ):
        raise PecoError(f"{path}: not a descriptor of the set of scenes; {example}")
    if found["version"] != scenes.VERSION:
        raise PecoError(
            f"{path}: version {shown(found['version'])} of the scenes is required, but this code draws version {scenes.VERSION}; "
            f"set version: {scenes.VERSION} (other images, so results can't be compared) or use the code of that version"
        )
    seed = found["seed"]
    if type(seed) is not int or seed < 0:
        raise PecoError(f"{path}: seed: {shown(seed)} is not allowed; expected an integer from 0 on")
    return seed
