"""Composing params.yaml from the Hydra groups in `peco/conf`."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize_config_module
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap

from peco.core import config, schema
from peco.core.errors import PecoError
from peco.core.params import parse_params
from peco.core.parsing import YAML_ERRORS
from peco.core.publishing import write_file

PRESETS = ("smoke", "tiny", "cifar", "imagenet_vit_b", "imagenet_vit_l", "imagenet_vit_h")
PARAMS = Path("params.yaml")
LINE = 80  # columns at which DVC breaks lines
HEADER = """\
# Composed from peco/conf by `make params PRESET={preset}`. Change a value here, or with `dvc exp run -S key=value`;
# choose another preset, data set or group with `make params`. docs/parameters.md describes each value.
"""
# The presets' architectures: checking others imports timm, which takes seconds.
KNOWN = ("beit_base_patch16_224", "beit_large_patch16_224", "vit_base_patch16_224", "vit_small_patch16_224")


def compose_params(preset: str, overrides: list[str]) -> dict[str, Any]:
    """Compose and validate the parameters of a preset with Hydra overrides.

    Raises:
        PecoError: an unknown preset, group or key, or a value that is not allowed.
    """
    if preset not in PRESETS:
        raise PecoError(f"preset: {preset!r} is not allowed; expected one of {', '.join(PRESETS)}")
    try:
        with initialize_config_module("peco.conf", version_base="1.3"):
            composed = compose("config", overrides=[f"preset={preset}", *overrides])
        raw: Any = OmegaConf.to_container(composed, resolve=True)
    # The last ones: of Hydra, for values of a kind that it doesn't expect.
    except (HydraException, OmegaConfBaseException, ValueError, TypeError, RecursionError) as error:
        why = str(error).strip().partition("\n")[0] or type(error).__name__
        raise PecoError(f"can't compose {' '.join(overrides) or preset}: {why}") from None
    order = list(schema.to_dict(parse_params(raw)))
    return {name: raw[name] for name in order}


def render(values: dict[str, Any]) -> str:
    """The text of params.yaml, in the form in which DVC writes it back: `dvc exp run -S` changes one line of it."""
    dumper = YAML()
    dumper.default_flow_style = False
    stream = io.StringIO()
    dumper.dump(_in_short_lines(values), stream)
    return HEADER.format(preset=values["preset"]) + stream.getvalue()


def _in_short_lines(values: Mapping[str, Any], key: str = "", depth: int = 0) -> CommentedMap:
    """The values with each small mapping on one line, where DVC keeps it: without a list or null, in at most 80 columns."""
    found = CommentedMap()
    for name, value in values.items():
        found[name] = _in_short_lines(value, name, depth + 1) if isinstance(value, Mapping) else value
    line = f"{key}: {{{', '.join(f'{name}: {value}' for name, value in values.items())}}}"
    if (
        depth
        and not any(v is None or isinstance(v, Mapping | list) for v in values.values())
        and 2 * depth + len(line) <= LINE
    ):
        found.fa.set_flow_style()
    return found


def write(values: dict[str, Any], path: Path = PARAMS) -> None:
    """Write params.yaml in one step: a reader finds the old file or the new one.

    Raises:
        PecoError: it can't be written; the old file is unchanged.
    """
    try:
        write_file(path, render(values))
    except OSError as error:
        raise PecoError(f"{path}: can't be written ({error.strerror}); fix that and run again") from None


def current_params() -> dict[str, Any]:
    """The current params.yaml, unchecked, since an older version may have written it; empty if there is none.

    Raises:
        PecoError: it can't be read.
    """
    try:
        found = yaml.safe_load(PARAMS.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, *YAML_ERRORS):
        found = None
    if not isinstance(found, dict):
        raise PecoError(f"{PARAMS}: can't be read as parameters; name a preset (PRESET=tiny) to write it again")
    return found


def check_architectures(parameters: config.Config) -> None:
    """Refuse unknown architectures now, not hours later in the stage that builds them.

    Raises:
        PecoError: timm doesn't know an architecture.
    """
    used = {"pretrain.vit.arch": parameters.pretrain.vit.arch}
    if parameters.perceptual_net.source == "train":
        used["perceptual_net.vit.arch"] = parameters.perceptual_net.vit.arch
    for key, arch in used.items():
        if arch not in KNOWN:
            import timm

            if not timm.is_model(arch):
                raise PecoError(f"{key}: {arch!r} is not allowed; timm knows no such model")
