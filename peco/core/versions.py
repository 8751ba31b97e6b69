"""The oldest timm that reads and writes model folders."""

from __future__ import annotations

import functools
import importlib.metadata

from peco.core.errors import PecoError

# The first with `use_fc_norm`, by which a BEiT pools tokens after its final norm. pyproject.toml requires it too.
TIMM = (1, 0, 31)


@functools.cache
def require_timm() -> None:
    """Check the installed version of timm, without importing it.

    Raises:
        PecoError: it is older, as in an environment that was made by hand.
    """
    found = importlib.metadata.version("timm")
    if tuple(int(part) if part.isdigit() else 0 for part in found.split(".")[:3]) < TIMM:
        oldest = ".".join(map(str, TIMM))
        raise PecoError(f"timm: version {found} is too old; `pip install 'timm>={oldest}'`")
