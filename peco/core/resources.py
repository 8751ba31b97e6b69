"""The resources of a stage: its processes, and what it requests from a cluster. No result depends on them.

They are set by `meta:` in dvc.yaml, by kind of stage; the environment overrides them (`pipelines/workflow/stage_resources.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from peco.core.schema import Count, Natural, Pattern

_LABEL = r"[\w./-]+"
_LABEL_NAME = r"[A-Za-z0-9]([\w.-]*[A-Za-z0-9])?"
_TAINT = rf"{_LABEL}(={_LABEL})?:(NoSchedule|PreferNoSchedule|NoExecute)"
_LABELS = Annotated[
    str, Pattern(rf"({_LABEL}={_LABEL}(,{_LABEL}={_LABEL})*)?", "labels of nodes (key=value,key=value) or nothing")
]
_TAINTS = Annotated[
    str, Pattern(rf"({_TAINT}(,{_TAINT})*)?", "taints as kubectl writes them (key=value:Effect,key:Effect) or nothing")
]
_NAME = Annotated[
    str,
    Pattern(r"([a-z0-9]([a-z0-9.-]*[a-z0-9])?)?", "a name in lower-case letters, digits, dots and hyphens, or nothing"),
]
_RESOURCE = rf"[A-Za-z0-9][A-Za-z0-9.-]*/{_LABEL_NAME}"
_GPU = Annotated[str, Pattern(_RESOURCE, "a resource of Kubernetes, such as nvidia.com/gpu")]
_DEVICES = Annotated[
    str,
    Pattern(
        rf"({_RESOURCE}=[1-9]\d*(,{_RESOURCE}=[1-9]\d*)*)?",
        "resources of Kubernetes with their numbers (rdma/hca=1,vendor.example/nic=2) or nothing",
    ),
]
_CAPABILITIES = Annotated[
    str, Pattern(r"([A-Z][A-Z_]*(,[A-Z][A-Z_]*)*)?", "Linux capabilities without CAP_ (IPC_LOCK,SYS_NICE) or nothing")
]
_BYTES = Annotated[str, Pattern(r"[1-9]\d*(Mi|Gi|Ti)", "an amount such as 512Mi or 16Gi")]
_TIME = Annotated[str, Pattern(r"[1-9]\d*[smhd]", "a time such as 90m, 24h or 3d")]
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


@dataclass(frozen=True)
class Resources:
    """The resources of a stage. They go to `meta:` in dvc.yaml; no stage depends on them.

    The first four shape the processes, on any machine. `processes: 0` means one per GPU, or one without a GPU; `threads: 0`
    shares all cores between the processes. The order of floating-point sums depends on the number of threads, so presets that
    promise equal bytes fix it. The others are requests to a cluster; a single machine ignores them.
    """

    nodes: Count = 1  # of a job on a cluster; a single machine ignores it
    processes: Natural = 1  # on a node
    threads: Natural = 0  # of a process
    workers: Natural = 0  # data loading processes of each process
    gpus: Natural = 0  # of a node
    gpu_resource: _GPU = "nvidia.com/gpu"  # the GPUs' name in Kubernetes: amd.com/gpu, nvidia.com/mig-1g.10gb
    devices: _DEVICES = ""  # of a node, besides the GPUs
    capabilities: _CAPABILITIES = ""  # of Linux, added to the containers' (IPC_LOCK for RDMA)
    cpu: Count = 1  # cores of a node
    memory: _BYTES = "4Gi"  # of a node
    shared_memory: _BYTES = "1Gi"  # of a node: /dev/shm, through which loader processes pass batches
    node_selector: _LABELS = ""
    tolerations: _TAINTS = ""
    queue: _NAME = ""  # Volcano queue or Slurm partition; empty: the cluster's default
    priority: _NAME = ""  # priority class; empty: the cluster's default
    time_limit: _TIME = "24h"
    retries: Natural = 0  # of a job that the cluster ended, or a step that lost its pod; a retry resumes

    @property
    def seconds(self) -> int:
        """`time_limit` in seconds."""
        return int(self.time_limit[:-1]) * _SECONDS[self.time_limit[-1]]

    @property
    def amounts(self) -> dict[str, str]:
        """The request of a node in Kubernetes' form: CPU, memory, GPUs and other devices."""
        found = {"cpu": str(self.cpu), "memory": self.memory}
        if self.gpus:
            found[self.gpu_resource] = str(self.gpus)
        return found | dict(device.split("=", 1) for device in self.devices.split(",") if device)

    @property
    def selector(self) -> dict[str, str]:
        """`node_selector` in Kubernetes' form."""
        return dict(label.split("=", 1) for label in self.node_selector.split(",") if label)

    @property
    def tolerated(self) -> list[dict[str, str]]:
        """`tolerations` in Kubernetes' form."""
        found = []
        for taint in filter(None, self.tolerations.split(",")):
            label, _, effect = taint.rpartition(":")
            key, equals, value = label.partition("=")
            found.append(
                {"key": key, "operator": "Equal", "value": value, "effect": effect}
                if equals
                else {"key": key, "operator": "Exists", "effect": effect}
            )
        return found


@dataclass(frozen=True)
class ResourceKinds:
    """Resources by kind of stage."""

    train: Resources  # perceptual_net, tokenizer, tokens, pretrain, evaluate@{finetune,segmentation,detection}
    probe: Resources  # evaluate@{knn,linear,agreement,codebook}: one process that computes features
    host: Resources  # shards, report: one process that needs no GPU
