"""The parameters of the pipeline, as a run's page in Kubeflow shows them.

A run has short ones, since Kubeflow copies what a step receives into its record of the run several times. The step makes
params.yaml from them: the commit's, with the changes.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass

import yaml

from peco.core.errors import PecoError
from pipelines.workflow import overrides
from pipelines.workflow.graph import lookup


@dataclass(frozen=True)
class Parameters:
    """The parameters of one run.

    Attributes:
        repository: address of the git repository, without a password.
        revision: full hash of a commit in it.
        preset: the preset in params.yaml; it is only checked, since `make params` writes the values of another one.
        seed: the seed; it replaces that of the commit.
        overrides: other changes to params.yaml, as for `dvc exp run -S`, quoted and separated by blanks as in a shell.
        experiment: name of the DVC experiment.
    """

    repository: str
    revision: str
    preset: str
    seed: int
    overrides: str
    experiment: str

    def params(self, committed: str) -> str:
        """The text of params.yaml, from that of the commit.

        Raises:
            PecoError: an override can't be applied, or leads to another preset.
        """
        text = apply(committed, self.seed, self.overrides)
        if (found := lookup(yaml.safe_load(text), "preset")) != self.preset:
            raise PecoError(
                f"preset {self.preset} is not that of commit {self.revision[:7]} ({found}); commit other parameters "
                f"(`make params PRESET={self.preset}`) and submit them"
            )
        return text


def apply(committed: str, seed: object, changes: str) -> str:
    """The text of params.yaml with a seed and other changes; the same text if nothing changes.

    Raises:
        PecoError: a change can't be read or applied.
    """
    try:
        settings = shlex.split(changes)
    except ValueError:
        raise PecoError(f"overrides: {changes!r} can't be read; quote as in a shell") from None
    if lookup(yaml.safe_load(committed), "seed") != seed:
        settings.append(f"seed={seed}")
    return overrides.apply(committed, sorted(settings))


def split(settings: Sequence[str]) -> str:
    """The parameter `overrides` for settings such as `seed=1`, without the seed, which is a parameter of its own."""
    return shlex.join(setting for setting in settings if overrides.key(setting, "SET") != "seed")
