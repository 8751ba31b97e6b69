"""`peco export`: a model for other programs, checked against the original before it counts.

ONNX and torch.export: one graph from float32 images (B, 3, H, W) in [0, 1] to features, logits or tokens. The normalisation is
inside, the number of images B is free, H and W are fixed. For `transformers`: see `peco/use/transformers_format.py`.

Legend: B batch, C channels, H W pixels, L patches, D width, K classes, h w token grid.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from peco.core import artifacts
from peco.core.errors import PecoError
from peco.core.publishing import replacing
from peco.networks.backbones import block_count
from peco.use.sized import load_sized

OPSET = 20
CHECKED_BATCHES = (1, 3)  # numbers of images; the graph is made from two
INPUT = "image"
_EXTRA = "pip install 'peco[export]'"


@dataclass(frozen=True)
class Exported:
    """A model as it is exported.

    Attributes:
        module: images (B, 3, H, W) in [0, 1] to a tuple of tensors, in eval mode.
        outputs: names of the tensors.
        size: H and W.
    """

    module: nn.Module
    outputs: tuple[str, ...]
    size: int


class Features(nn.Module):
    """A timm network: pooled features (B, D), and for a vision transformer patch tokens (B, L, D) after the final norm."""

    mean_C11: Tensor
    std_C11: Tensor

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.tokens = model, block_count(model) > 0
        mean_C11, std_C11 = artifacts.normalization(model)
        self.register_buffer("mean_C11", mean_C11)
        self.register_buffer("std_C11", std_C11)

    def forward(self, x_BCHW: Tensor) -> tuple[Tensor, ...]:
        model = cast(Any, self.model)
        map_ = model.forward_features((x_BCHW - self.mean_C11) / self.std_C11)
        pooled_BD = model.forward_head(map_, pre_logits=True)
        return (pooled_BD, map_[:, model.num_prefix_tokens :]) if self.tokens else (pooled_BD,)


class Logits(Features):
    """A classifier: logits (B, K)."""

    def forward(self, x_BCHW: Tensor) -> tuple[Tensor, ...]:
        return (self.model((x_BCHW - self.mean_C11) / self.std_C11),)


class Tokens(nn.Module):
    """A tokenizer's encoder and codebook: tokens, int64 (B, h, w)."""

    def __init__(self, tokenizer: nn.Module) -> None:
        super().__init__()
        self.encoder = cast(nn.Module, tokenizer.encoder)
        self.quantizer = cast(Any, tokenizer.quantizer)

    def forward(self, x_BCHW: Tensor) -> tuple[Tensor, ...]:
        z_BDhw = self.encoder(2 * x_BCHW - 1)
        codebook_KD = self.quantizer.codebook_KD
        z_BhwD = z_BDhw.permute(0, 2, 3, 1)
        if self.quantizer.l2_normalize:
            z_BhwD = nn.functional.normalize(z_BhwD, dim=3)
        # |z - c|^2 without |z|^2, which is the same for all codes
        return ((codebook_KD.square().sum(1) - 2 * z_BhwD @ codebook_KD.T).argmin(3),)


# Of torch's exporters, for operations that they don't know, a batch that isn't free, or a file over 2 GB.
_EXPORTER_ERRORS = (RuntimeError, ValueError, TypeError, AssertionError, AttributeError, NotImplementedError)


@torch.no_grad()
def export(folder: str, to: str, output: str, *, size: int | None, tolerance: float) -> None:
    """Export the model of a folder and print the largest difference from the original.

    Args:
        folder: of a backbone, a perceptual network, a classifier or a tokenizer.
        to: `onnx`, `torch-export` or `transformers`.
        output: file, or folder for `transformers`.
        size: side of the images in pixels; None for that of the training.
        tolerance: largest absolute difference of an output that is allowed; of tokens, the largest share that differs.

    Raises:
        PecoError: the model can't be exported to this format, a package is missing, or the difference is larger than allowed; then
            nothing is written.
    """
    target = Path(output)
    if target.resolve().is_relative_to(Path(folder).resolve()):
        raise PecoError(f"{output}: is in the folder of the model itself; choose another place (-o)")
    if to == "transformers":
        from peco.use import transformers_format

        difference = transformers_format.export(folder, target, size, lambda found: _require(found, tolerance))
        print(f"{output}: transformers, largest difference {difference:.2g}")
        return
    exported = open_exported(folder, size)
    if target.is_dir():
        raise PecoError(f"{output}: is a folder; name the file to write (-o)")
    checks = [(x_BCHW, exported.module(x_BCHW)) for x_BCHW in _random_images(exported.size)]
    with replacing(target) as part:
        try:
            run = (_write_onnx if to == "onnx" else _write_torch)(exported, part)
        except _EXPORTER_ERRORS as error:
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise PecoError(
                f"--to {to}: torch can't export the model of {folder} ({reason}); try another format"
            ) from error
        difference = max(_difference(want, run(x_BCHW)) for x_BCHW, want in checks)
        _require(difference, tolerance)
    shape = f"(B, 3, {exported.size}, {exported.size})"
    version = f"opset {OPSET}" if to == "onnx" else f"torch {torch.__version__.partition('+')[0]}"
    print(
        f"{output}: {to}, {version}, input `{INPUT}` float32 {shape} in [0, 1], outputs {', '.join(exported.outputs)}"
    )
    print(f"  largest difference from the original {difference:.2g}, {target.stat().st_size / 1e6:.1f} MB")


def open_exported(folder: str, size: int | None) -> Exported:
    """The model of a folder as it is exported.

    Raises:
        PecoError: the folder is missing, damaged or of a kind that is not exported, or the size is not allowed.
    """
    kind = artifacts.kind_of(folder)
    if kind == "tokenizer":
        from peco.use.tokens import open_tokenizer

        tokenizer, side = open_tokenizer(folder, size)
        return Exported(Tokens(tokenizer).eval(), ("tokens",), side)
    if kind not in ("backbone", "perceptual_net", "classifier"):
        raise PecoError(
            f"{folder}: expected the folder of a backbone, perceptual_net, classifier or tokenizer, found {kind!r}; others are "
            "not exported"
        )
    artifacts.section(folder, kind)  # an evaluation may have been skipped
    model, side = load_sized(folder, size)
    if kind == "classifier":
        return Exported(Logits(model).eval(), ("logits",), side)
    features = Features(model).eval()
    return Exported(features, ("features", "tokens") if features.tokens else ("features",), side)


def _random_images(size: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.rand(count, 3, size, size, generator=generator) for count in CHECKED_BATCHES]


def _difference(want: Sequence[Tensor], found: Sequence[Tensor]) -> float:
    """Largest absolute difference of an output; of tokens, the share that differs."""
    return max(
        float((a != b).float().mean() if a.dtype == torch.int64 else (a - b).abs().max())
        for a, b in zip(want, found, strict=True)
    )


def _require(difference: float, tolerance: float) -> None:
    if not difference <= tolerance:
        raise PecoError(
            f"the exported model differs by {difference:.2g} from the original, more than {tolerance:g}; nothing was written "
            "(--tolerance allows more)"
        )


def _write_onnx(exported: Exported, path: Path) -> Callable[[Tensor], Sequence[Tensor]]:
    try:
        import onnxruntime
        import onnxscript  # noqa: F401
    except ModuleNotFoundError as error:
        raise PecoError(f"--to onnx: needs the package {error.name}; {_EXTRA}") from None
    for part in exported.module.modules():
        if hasattr(part, "fused_attn"):
            part.fused_attn = False  # type: ignore[assignment]  # the exporter fails on the layout of its output
    with _quiet():
        made = torch.onnx.export(
            exported.module,
            (_example(exported),),
            input_names=[INPUT],
            output_names=list(exported.outputs),
            opset_version=OPSET,
            dynamic_shapes=_free_batch(),
            dynamo=True,
            verbose=False,
        )
        assert made is not None
        made.save(path, external_data=False)
    session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    return lambda x_BCHW: [torch.from_numpy(found) for found in session.run(None, {INPUT: x_BCHW.numpy()})]


def _write_torch(exported: Exported, path: Path) -> Callable[[Tensor], Sequence[Tensor]]:
    with _quiet():
        program = torch.export.export(exported.module, (_example(exported),), dynamic_shapes=_free_batch())
        with path.open("wb") as file:
            torch.export.save(program, file)
    with path.open("rb") as file:
        loaded = torch.export.load(io.BytesIO(file.read())).module()
    return lambda x_BCHW: cast(Sequence[Tensor], loaded(x_BCHW))


def _example(exported: Exported) -> Tensor:
    return torch.rand(2, 3, exported.size, exported.size, generator=torch.Generator().manual_seed(1))


def _free_batch() -> Any:
    return ({0: torch.export.Dim("batch", min=1)},)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporters' notes on deprecations and optional packages, and their print of a graph that they can't export."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
