"""Changes to params.yaml written as for `dvc exp run -S`, and the grids that several values span."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from peco.core.errors import PecoError


def apply(params: str, settings: Sequence[str]) -> str:
    """The text of params.yaml with settings such as `tokenizer.perceptual.weight=0`; comments stay.

    Raises:
        PecoError: a setting can't be read, or names an unknown parameter.
    """
    from dvc.exceptions import DvcException
    from dvc.utils.hydra import apply_overrides
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    if not settings:
        return params
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "params.yaml"
        path.write_text(params, encoding="utf-8")
        try:
            apply_overrides(str(path), list(settings))
        except (DvcException, HydraException, OmegaConfBaseException) as error:
            reason = str(error.__cause__ or error).splitlines()[0]
            raise PecoError(f"SET={' '.join(settings)}: {reason}") from None
        return path.read_text(encoding="utf-8")


def points(settings: Sequence[str], sweep: Sequence[str], limit: int) -> list[tuple[str, ...]]:
    """The points of the grid that a sweep such as `seed=0,1 tokenizer.perceptual.weight=0,1` spans.

    Each point is sorted and includes the settings. Without a sweep, the settings are the only point.

    Raises:
        PecoError: a setting can't be read, or has several values outside of the sweep; a key is set twice; or there are more
            points than `limit`.
    """
    axes: dict[str, list[str]] = {}
    total = 1
    for variable, setting in [*(("SET", setting) for setting in settings), *(("SWEEP", setting) for setting in sweep)]:
        parsed = _parse(setting, variable)
        key = parsed.get_key_element()
        if key in axes:
            raise PecoError(f"{variable}={setting}: {key} is set twice")
        if not parsed.is_sweep_override():
            axes[key] = [setting]
            continue
        if variable == "SET":
            raise PecoError(f"SET={setting}: several values; SWEEP={setting} runs each")
        if not parsed.is_discrete_sweep():
            raise PecoError(f"SWEEP={setting}: not allowed; list the values, {key}=1,2,3")
        values = itertools.islice(parsed.sweep_string_iterator(), limit + 1)
        axes[key] = [f"{key}={value}" for value in values]
        total *= len(axes[key])
    if total > limit:
        raise PecoError(f"SWEEP: {total} points or more, each of them a run; SWEEP_LIMIT={total} allows them")
    return [tuple(sorted(point)) for point in itertools.product(*axes.values())]


def key(setting: str, variable: str) -> str:
    """The key that a setting such as `seed=1` sets.

    Raises:
        PecoError: it can't be read, or has several values.
    """
    parsed = _parse(setting, variable)
    if parsed.is_sweep_override():
        raise PecoError(f"{variable}={setting}: several values; give one")
    return str(parsed.key_or_group)


def _parse(setting: str, variable: str) -> Any:
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        parsed = OverridesParser.create().parse_override(setting)
    except HydraException as error:
        raise PecoError(f"{variable}={setting}: expected key=value ({str(error).splitlines()[0]})") from None
    if not parsed.key_or_group:
        raise PecoError(f"{variable}={setting}: expected key=value")
    return parsed
