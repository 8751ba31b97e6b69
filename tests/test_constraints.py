"""constraints.txt names the version of everything that the project installs, and of nothing else."""

from __future__ import annotations

import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]


def installed(name: str, extras: frozenset[str], seen: dict[tuple[str, frozenset[str]], str]) -> None:
    """Add a package with extras, and all that it requires here, to `seen`, with its version."""
    key = canonicalize_name(name), extras
    if key in seen:
        return
    try:
        found = distribution(name)
    except PackageNotFoundError:
        return
    seen[key] = found.version
    for line in found.requires or []:
        requirement = Requirement(line)
        if requirement.marker is None or any(requirement.marker.evaluate({"extra": e}) for e in extras or {""}):
            installed(requirement.name, frozenset(requirement.extras), seen)


@pytest.mark.skipif(
    sys.platform != "linux" or sys.version_info[:2] != (3, 11), reason="the versions are those of Linux and Python 3.11"
)
def test_the_constraints_are_what_is_installed() -> None:
    seen: dict[tuple[str, frozenset[str]], str] = {}
    extras = {"workflow", "heif", "parquet", "export", "tracking", "efficientnet", "kubernetes", "dev"}
    installed("peco", frozenset({"", *extras}), seen)
    versions = {name: version for (name, _), version in seen.items() if name != "peco"}
    pinned = dict(
        line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")
    )
    pinned = {canonicalize_name(name): version for name, version in pinned.items()}
    building = {"setuptools"}
    assert {name: pinned.get(name) for name in versions} == versions
    assert pinned.keys() - versions.keys() <= building
