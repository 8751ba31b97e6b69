"""Reads and validates params.yaml."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import yaml

from peco.core import config_checks, schema
from peco.core.config import Config
from peco.core.errors import PecoError
from peco.core.parsing import YAML_ERRORS, reason


class _UniqueKeys(yaml.SafeLoader):
    """Plain YAML without duplicate keys: of two, PyYAML would take the last one, and DVC refuses the file."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        if twice := next((key for key in keys if keys.count(key) > 1), None):
            raise yaml.YAMLError(f"the key {twice} occurs twice; keep one")
        return super().construct_mapping(node, deep)


def load_params(path: str | Path = "params.yaml") -> Config:
    """Read and validate a parameter file.

    Raises:
        PecoError: the file is missing or not YAML, or a key, type or value is wrong.
    """
    try:
        raw = yaml.load(Path(path).read_text(encoding="utf-8"), _UniqueKeys)
    except FileNotFoundError:
        raise PecoError(f"{path}: no such file; `make params` writes it") from None
    except OSError as error:
        raise PecoError(f"{path}: can't be read ({error.strerror}); fix that and run again") from None
    except YAML_ERRORS as error:
        raise PecoError(
            f"{path}: not valid YAML: {reason(error)}; fix it, or `make params PRESET=…` writes a new one"
        ) from None
    return parse_params(raw)


def parse_params(raw: object) -> Config:
    """Validate nested plain data (as YAML gives it) into a `Config`.

    Raises:
        PecoError: a key, type or value is wrong.
    """
    config = cast(Config, schema.build(Config, raw))
    config_checks.check(config)
    return config
