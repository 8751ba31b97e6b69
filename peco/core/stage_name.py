"""The name of a stage, in its spellings."""

from __future__ import annotations

import re


class StageName(str):
    """The name of a stage as DVC spells it, such as `evaluate@knn`."""

    @property
    def role(self) -> str:
        """For TorchX roles, environment variables and folders: `evaluate_knn`."""
        return re.sub(r"\W", "_", self)

    @property
    def label(self) -> str:
        """For names in DNS, of Kubernetes and Kubeflow: `evaluate-knn`."""
        return re.sub(r"[^a-z0-9]+", "-", self.lower()).strip("-")

    @property
    def path(self) -> str:
        """For its files below `metrics/`: `evaluate/knn`."""
        return self.replace("@", "/")

    @property
    def item(self) -> str:
        """For its file of scores: `knn`, or the whole name without an `@`."""
        return self.rpartition("@")[2]

    @property
    def module(self) -> str:
        """The Python module that runs it: `peco.evaluate.knn.stage`, or `peco.stages.<name>` without an `@`."""
        family, at, item = self.partition("@")
        return f"peco.{family}.{item}.stage" if at else f"peco.stages.{family}"
