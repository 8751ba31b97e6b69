"""TorchX components: how each stage is run, on any scheduler.

    torchx run -s local_cwd pipelines/components.py:tokenizer -j 1x2

A stage that trains, and `tokens`, takes `j`, nodes x processes on each; the others run in one process. One process is
started plainly; several are started by torchrun (c10d rendezvous), which costs a few seconds more. A role is named after
its stage, with an underscore where Kubernetes and multi-node rendezvous refuse a character: evaluate@knn is `evaluate_knn`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from torchx import specs

Component = TypeVar("Component", bound=Callable[..., specs.AppDef])

IMAGE = "peco"
PORT = 29500

_ARGUMENTS = """

Args:
    j: nodes x processes on each
    threads: threads of a process, 0 leaves the number to the libraries
    workers: data loading processes beside each process
    image: container image, where the scheduler uses one
    h: named resource of a node, empty for a small one
    env: more environment variables
    port: rendezvous port, used where there are several nodes
"""


def _component(function: Component) -> Component:
    """Add the description of the arguments, which `torchx run` shows and all components share."""
    function.__doc__ = f"{function.__doc__}{_ARGUMENTS}"
    return function


def _app(
    role: str,
    threads: int,
    workers: int,
    image: str,
    h: str,
    env: dict[str, str] | None,
    j: str = "1x1",
    port: int = PORT,
) -> specs.AppDef:
    module = f"peco.stages.{role}"
    # By default a thread that waits for another spins for long, which brings training to a crawl on a machine that does
    # anything else beside it (docs/results.md).
    variables = {"PECO_WORKERS": str(workers), "GOMP_SPINCOUNT": "10000"}
    if threads:
        variables |= dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "PECO_THREADS"), str(threads))
    variables |= env or {}
    if j != "1x1":
        from torchx.components import dist

        # torchrun labels each line with its rank, unless PET_REDIRECTS asks for a file for each rank.
        tee = 0 if "PET_REDIRECTS" in variables else 3
        return dist.torchrun(m=module, j=j, h=h or None, env=variables, image=image, rdzv_port=port, tee=tee)
    command = ["-m", module]
    resource = specs.resource(h=h or None)
    single = specs.Role(name=role, image=image, entrypoint="python", args=command, env=variables, resource=resource)
    return specs.AppDef(name=role, roles=[single])


@_component
def shards(
    threads: int = 0, workers: int = 0, image: str = IMAGE, h: str = "", env: dict[str, str] | None = None
) -> specs.AppDef:
    """Images to WebDataset shards."""
    return _app("shards", threads, workers, image, h, env)


@_component
def perceptual_net(
    j: str = "1x1",
    threads: int = 0,
    workers: int = 0,
    image: str = IMAGE,
    h: str = "",
    env: dict[str, str] | None = None,
    port: int = PORT,
) -> specs.AppDef:
    """The network whose features the tokenizer is trained to preserve."""
    return _app("perceptual_net", threads, workers, image, h, env, j, port)


@_component
def tokenizer(
    j: str = "1x1",
    threads: int = 0,
    workers: int = 0,
    image: str = IMAGE,
    h: str = "",
    env: dict[str, str] | None = None,
    port: int = PORT,
) -> specs.AppDef:
    """The perceptual codebook."""
    return _app("tokenizer", threads, workers, image, h, env, j, port)


@_component
def tokens(
    j: str = "1x1",
    threads: int = 0,
    workers: int = 0,
    image: str = IMAGE,
    h: str = "",
    env: dict[str, str] | None = None,
    port: int = PORT,
) -> specs.AppDef:
    """Token targets of stored views."""
    return _app("tokens", threads, workers, image, h, env, j, port)


@_component
def pretrain(
    j: str = "1x1",
    threads: int = 0,
    workers: int = 0,
    image: str = IMAGE,
    h: str = "",
    env: dict[str, str] | None = None,
    port: int = PORT,
) -> specs.AppDef:
    """Masked image modelling on the tokens."""
    return _app("pretrain", threads, workers, image, h, env, j, port)


@_component
def evaluate_knn(
    threads: int = 0, workers: int = 0, image: str = IMAGE, h: str = "", env: dict[str, str] | None = None
) -> specs.AppDef:
    """Nearest neighbours on frozen features."""
    return _app("evaluate_knn", threads, workers, image, h, env)


@_component
def evaluate_linear(
    threads: int = 0, workers: int = 0, image: str = IMAGE, h: str = "", env: dict[str, str] | None = None
) -> specs.AppDef:
    """A linear classifier on frozen features."""
    return _app("evaluate_linear", threads, workers, image, h, env)


@_component
def evaluate_finetune(
    j: str = "1x1",
    threads: int = 0,
    workers: int = 0,
    image: str = IMAGE,
    h: str = "",
    env: dict[str, str] | None = None,
    port: int = PORT,
) -> specs.AppDef:
    """The whole backbone, trained to classify."""
    return _app("evaluate_finetune", threads, workers, image, h, env, j, port)


@_component
def evaluate_segmentation(
    j: str = "1x1",
    threads: int = 0,
    workers: int = 0,
    image: str = IMAGE,
    h: str = "",
    env: dict[str, str] | None = None,
    port: int = PORT,
) -> specs.AppDef:
    """UPerNet on the backbone."""
    return _app("evaluate_segmentation", threads, workers, image, h, env, j, port)


@_component
def evaluate_detection(
    j: str = "1x1",
    threads: int = 0,
    workers: int = 0,
    image: str = IMAGE,
    h: str = "",
    env: dict[str, str] | None = None,
    port: int = PORT,
) -> specs.AppDef:
    """Mask R-CNN on the backbone."""
    return _app("evaluate_detection", threads, workers, image, h, env, j, port)


@_component
def evaluate_agreement(
    threads: int = 0, workers: int = 0, image: str = IMAGE, h: str = "", env: dict[str, str] | None = None
) -> specs.AppDef:
    """Which of two views is closer to the reference."""
    return _app("evaluate_agreement", threads, workers, image, h, env)


@_component
def evaluate_codebook(
    threads: int = 0, workers: int = 0, image: str = IMAGE, h: str = "", env: dict[str, str] | None = None
) -> specs.AppDef:
    """What the codebook learned."""
    return _app("evaluate_codebook", threads, workers, image, h, env)


@_component
def report(
    threads: int = 0, workers: int = 0, image: str = IMAGE, h: str = "", env: dict[str, str] | None = None
) -> specs.AppDef:
    """Everything on one page."""
    return _app("report", threads, workers, image, h, env)
