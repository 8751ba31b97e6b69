"""The TorchX component of a stage: its processes, on any scheduler.

torchx run -s local_cwd pipelines/components.py:stage --name tokenizer -j 1x2

docs/cluster.md has the commands for Slurm and Kubernetes.
"""

# TorchX reads the annotations at run time: no `from __future__ import annotations` here.

from torchx import specs
from torchx.components import dist
from torchx.specs.overlays import JOIN, set_overlay

from peco.core.environment import SPIN, THREADS, WORKERS
from peco.core.stage_name import StageName

IMAGE = "peco"
# User and group in the image (k8s/Dockerfile), who own the files on the shared volume.
USER = 10001
# What the pod security standard `restricted` demands of a pod.
POD_SECURITY: dict[str, object] = {
    "runAsNonRoot": True,
    "runAsUser": USER,
    "runAsGroup": USER,
    "fsGroup": USER,
    "seccompProfile": {"type": "RuntimeDefault"},
}
PORT = 29500


def stage(
    name: str,
    j: str = "1x1",
    threads: int = 0,
    workers: int = 0,
    image: str = IMAGE,
    h: str = "",
    cpu: int = 2,
    gpu: int = 0,
    memMB: int = 4096,
    env: dict[str, str] | None = None,
    mounts: list[str] | None = None,
    folder: str = "",
    port: int = PORT,
) -> specs.AppDef:
    """Run one stage of dvc.yaml: a single process directly, several by torchrun, which costs a few seconds more.

    The role has the stage's name with underscores in place of characters that Kubernetes and multi-node rendezvous refuse.

    Args:
        name: the stage, such as tokenizer or evaluate@knn
        j: nodes x processes on each; only stages with `resources: train` in dvc.yaml take more than 1x1
        threads: threads of a process, 0 leaves the number to the libraries
        workers: data loading processes of each process
        image: container image, where the scheduler uses one
        h: named resource of a node, which replaces cpu, gpu and memMB
        cpu: cores of a node
        gpu: GPUs of a node
        memMB: memory of a node
        env: more environment variables
        mounts: volumes of a pod, type=volume,src=CLAIM,dst=PATH
        folder: the repository in a pod, on a mounted volume; other schedulers run in the current directory
        port: rendezvous port, used where there are several nodes
    """
    stage_name = StageName(name)
    variables = {WORKERS.name: str(workers), **SPIN}
    if threads:
        variables |= dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", THREADS.name), str(threads))
    if folder:
        variables["PYTHONPATH"] = folder
    variables |= env or {}
    if j != "1x1":
        # torchrun labels each line with its rank, unless PET_REDIRECTS asks for a file for each rank.
        tee = 0 if "PET_REDIRECTS" in variables else 3
        app = dist.torchrun(
            m=stage_name.module, j=j, h=h or None, cpu=cpu, gpu=gpu, memMB=memMB, env=variables, image=image,
            mounts=mounts, rdzv_port=port, tee=tee, name=f"/{stage_name.role}",
        )  # fmt: skip
        app.roles[0].name = stage_name.role
    else:
        role = specs.Role(
            name=stage_name.role, image=image, entrypoint="python", args=["-m", stage_name.module], env=variables,
            mounts=specs.parse_mounts(mounts or []), resource=specs.resource(cpu, gpu, memMB, h or None),
        )  # fmt: skip
        app = specs.AppDef(name=stage_name.role, roles=[role])
    if folder:
        set_overlay(app.roles[0], "kubernetes", "V1Pod", _pod(image, folder))
    return app


def _pod(image: str, folder: str) -> dict[str, object]:
    """The fields that TorchX's pod lacks to run a stage from a folder, in a namespace with pod security `restricted`."""
    container = {
        "image": image,
        "workingDir": folder,
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
    }
    return {"spec": {"securityContext": dict(POD_SECURITY), JOIN("containers", on="image"): [container]}}
