"""Self-describing model folders: `model.safetensors` with the weights, `config.json` with how to build the model.

A folder is written next to its final place and published by a rename, so that a reader sees a whole folder or none. No pickle is
written or read. Equal weights and config give equal bytes.

Plain timm loads a folder written by `save_timm`: `timm.create_model("local-dir:DIR", pretrained=True)`, also with another
`num_classes` or `img_size`.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

import safetensors
import safetensors.torch
import timm
import torch
from torch import Tensor, nn

from peco.core import schema
from peco.core.errors import PecoError
from peco.core.parsing import JSON_ERRORS, reason, shown
from peco.core.publishing import staging
from peco.core.tensor_headers import read_shapes, require_equal, require_possible
from peco.core.timm_config import check_timm_config
from peco.core.versions import require_timm

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
# Of timm and torch, for arguments that no model has.
_TIMM_ERRORS = (
    *(RuntimeError, TypeError, ValueError, AssertionError, AttributeError, LookupError, ArithmeticError, MemoryError),
)
T = TypeVar("T")
Group = TypeVar("Group")


def save(
    directory: str | Path,
    state_dict: Mapping[str, Tensor],
    config: Mapping[str, Any],
    extra_files: Mapping[str, Mapping[str, Tensor]] | None = None,
) -> None:
    """Write a model folder.

    Args:
        directory: the folder; replaced if there is one.
        state_dict: weights.
        config: plain data from which the model is built.
        extra_files: further tensors by file name (`mim_head.safetensors`), for those that `model.safetensors` should not hold.

    Raises:
        PecoError: writing failed.
    """
    with staging(Path(directory)) as tmp:
        for name, tensors in {WEIGHTS: state_dict, **(extra_files or {})}.items():
            plain = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
            # One metadata entry only: safetensors writes several in no fixed order.
            # Not by save_file: only their owner can read the files that it makes.
            (tmp / name).write_bytes(safetensors.torch.save(plain, metadata={"format": "pt"}))
        (tmp / CONFIG).write_text(json.dumps(config, sort_keys=True, indent=2) + "\n", encoding="utf-8")


def load(directory: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Weights (on the CPU) and config of a model folder.

    Raises:
        PecoError: the folder or one of its files is missing or damaged.
    """
    return load_tensors(Path(directory) / WEIGHTS), describe(directory)


def load_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file, on the CPU.

    Raises:
        PecoError: the file is missing or damaged, or holds NaN.
    """
    tensors = _read(path, lambda: cast(dict[str, Tensor], safetensors.torch.load_file(path)))
    require_finite(tensors, str(path))
    return tensors


def require_finite(tensors: Mapping[str, Tensor], origin: str) -> None:
    """Refuse weights with NaN or infinite values.

    Raises:
        PecoError: names `origin` and the first such tensor.
    """
    for name, tensor in tensors.items():
        # isfinite is not implemented for floats of eight bits, and a tensor on `meta` has no values.
        if tensor.is_floating_point() and not tensor.is_meta and not bool(torch.isfinite(tensor.float()).all()):
            raise PecoError(
                f"{origin}: {name} holds NaN or infinite values, so its training had diverged; give other weights"
            )


def describe(directory: str | Path) -> dict[str, Any]:
    """The config of a model folder, without reading weights.

    Raises:
        PecoError: the folder or its config is missing or damaged.
    """
    path = Path(directory) / CONFIG
    if not path.parent.is_dir():
        raise PecoError(f"{directory}: no such model folder; run the stage that makes it or fix the path")
    try:
        config = _read(path, lambda: json.loads(path.read_text(encoding="utf-8")))
    except JSON_ERRORS as error:
        raise PecoError(f"{path}: not valid JSON ({reason(error)}); fetch or make the folder again") from None
    if not isinstance(config, dict):
        raise PecoError(f"{path}: holds no model description; fetch or make the folder again")
    return config


def input_size(directory: str | Path) -> int:
    """Side in pixels of the input images of the timm model in a folder.

    Raises:
        PecoError: as in `describe`.
    """
    side: int = _describe_timm(directory)["pretrained_cfg"]["input_size"][1]
    return side


def require_replaceable(target: Path, what: str, is_one: Callable[[dict[str, Any]], bool]) -> None:
    """Refuse to write a model folder where anything but an earlier one of its kind would be lost.

    Args:
        target: the folder to write.
        what: its kind, for messages: "export for transformers".
        is_one: from a folder's config to True if it is an earlier one.

    Raises:
        PecoError: the place is a file, the current folder or one above, or holds something else.
    """
    if Path(os.path.abspath(target)) in (Path.cwd(), *Path.cwd().parents):
        raise PecoError(f"{target}: is the current folder or one above it; name a folder in it (-o)")
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return
    if not (target / CONFIG).is_file() or not is_one(describe(target)):
        raise PecoError(f"{target}: is no {what} and not empty; choose another place (-o)")


def describe_resized(directory: str | Path, size: int) -> dict[str, Any]:
    """The description of the timm model in a folder, for images of `size` pixels a side, without the `peco` part.

    Raises:
        PecoError: as in `describe`.
    """
    config = describe(directory)
    channels, _, _ = config["pretrained_cfg"]["input_size"]
    model_args = {**config["model_args"], "img_size": size}
    pretrained_cfg = {**config["pretrained_cfg"], "input_size": [channels, size, size]}
    return {**config, "model_args": model_args, "pretrained_cfg": pretrained_cfg, "peco": {}}


def own_part(directory: str | Path) -> dict[str, Any]:
    """The `peco` part of the config of a model folder; empty for the folder of another program.

    Raises:
        PecoError: as in `describe`.
    """
    part = describe(directory).get("peco")
    return part if isinstance(part, dict) else {}


def kind_of(directory: str | Path) -> str | None:
    """The kind of a model folder, such as `backbone`; None for the folder of another program.

    Raises:
        PecoError: as in `describe`.
    """
    kind = own_part(directory).get("kind")
    return kind if isinstance(kind, str) else None


def section(directory: str | Path, kind: str) -> dict[str, Any]:
    """The `peco` part of the config of a folder that must be of this kind.

    Raises:
        PecoError: the folder is of another kind, or as in `describe`.
    """
    part = own_part(directory)
    if (found := part.get("kind")) != kind:
        raise PecoError(
            f"{directory}: expected a model folder of kind {kind!r}, found {shown(found)}; give the folder of a {kind}"
        )
    if "skipped" in part:
        raise PecoError(f"{directory}: holds no model, since its evaluation was skipped: {part['skipped']}")
    return part


def fill(module: nn.Module, tensors: Mapping[str, Tensor], origin: str | Path) -> None:
    """Load weights strictly: all tensors of the module, no others, equal shapes.

    Raises:
        PecoError: a tensor differs; names `origin` and the first such tensor.
    """
    require_equal(shapes_of(module.state_dict()), shapes_of(tensors), origin)
    try:
        module.load_state_dict(dict(tensors))
    except RuntimeError as error:  # numbers of another kind
        raise PecoError(f"{origin}: doesn't fit the model ({reason(error)[:200]}); make it again") from None


def shapes_of(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Shape of each tensor by its name."""
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def shapes(directory: str | Path) -> dict[str, tuple[int, ...]]:
    """Shapes of the weights of a model folder, without reading them. Raises as `load_tensors`."""
    path = Path(directory) / WEIGHTS
    return _read(path, lambda: read_shapes(path))


def parameters(directory: str | Path, kind: str, group: type[Group]) -> Group:
    """The fields of a dataclass from the `peco` part of the config of a folder that must be of this kind.

    Raises:
        PecoError: as in `section`, or a field is missing or has a wrong value.
    """
    part = section(directory, kind)
    names = {field.name for field in dataclasses.fields(cast(Any, group))}
    try:
        return cast(Group, schema.build(group, {name: value for name, value in part.items() if name in names}))
    except PecoError as error:
        why = str(error).removesuffix(f"; {schema.COMPLETE}")
        raise PecoError(
            f"{Path(directory) / CONFIG}: not the parameters of a {kind} ({why}); fetch or make the folder again"
        ) from None


def save_timm(
    directory: str | Path,
    model: nn.Module,
    *,
    arch: str,
    model_args: Mapping[str, Any],
    mean: Sequence[float],
    std: Sequence[float],
    label_names: Sequence[str] | None = None,
    extra: Mapping[str, Any] | None = None,
    extra_files: Mapping[str, Mapping[str, Tensor]] | None = None,
) -> None:
    """Write a timm model to a folder that plain timm loads.

    Args:
        directory: the folder; replaced if there is one.
        model: a model made by `timm.create_model(arch, **model_args)`, with no dropout or drop path among `model_args`.
        arch: registered architecture.
        model_args: further arguments of `create_model`, without `num_classes`, which is read from the model, and with `img_size` if
            the architecture has a fixed input size.
        mean, std: normalisation of inputs in [0, 1], by channel.
        label_names: names of the classes, where timm and transformers look for them.
        extra: plain data to keep under the key `peco`.
        extra_files: see `save`.

    Raises:
        PecoError: writing failed.
    """
    made = cast(Mapping[str, Any], model.pretrained_cfg)
    size = model_args.get("img_size")
    channels, height, width = made["input_size"]
    classes = cast(int, model.num_classes)
    config: dict[str, Any] = {
        "architecture": arch,
        "num_classes": classes,
        "num_features": model.num_features,
        "model_args": dict(model_args),
        "pretrained_cfg": {
            "input_size": [channels, size, size] if size else [channels, height, width],
            "fixed_input_size": made.get("fixed_input_size", False),
            "interpolation": "bicubic",
            "crop_pct": 1.0,
            "crop_mode": "center",
            "mean": list(mean),
            "std": list(std),
            "num_classes": classes,
            "first_conv": made["first_conv"],
            "classifier": made["classifier"],
        },
    }
    if label_names is not None:
        config["label_names"] = list(label_names)
    if extra is not None:
        config["peco"] = dict(extra)
    save(directory, model.state_dict(), config, extra_files)


def load_timm(directory: str | Path, *, seed: int = 0, **overrides: Any) -> nn.Module:
    """The timm model of a folder with its weights, as plain timm loads it; in eval mode.

    Args:
        directory: a folder written by `save_timm`.
        seed: of the weights that the folder doesn't hold, such as a new head for another `num_classes`.
        overrides: arguments of `timm.create_model`, such as `num_classes`, `img_size`, `drop_path_rate`, `features_only`.

    Raises:
        PecoError: the folder is missing, damaged, or doesn't fit the model; its weights hold NaN.
    """
    _require_timm(directory)
    pretrained = overrides.pop("pretrained", True)
    model = _create(directory, seed, pretrained=pretrained, **overrides).eval()
    require_finite(model.state_dict(), str(directory))
    return model


def random_like(directory: str | Path, *, seed: int, **overrides: Any) -> nn.Module:
    """The model of a folder at random initialisation from `seed`, the baseline of evaluations; otherwise as `load_timm`.

    Raises:
        PecoError: the folder is missing or damaged.
    """
    _require_timm(directory)
    return _create(directory, seed, pretrained=False, **overrides).eval()


def backbone_of(directory: str | Path) -> nn.Module:
    """The timm model that the config of a folder describes, at random initialisation, for a model that has it as a part.

    The folder's weights are those of the whole model, so only its sizes are compared with them.

    Raises:
        PecoError: the folder is missing or damaged.
    """
    config = _describe_timm(directory)
    sizes = {"model_args": config.get("model_args", {}), "peco": config.get("peco", {})}
    require_possible(sizes, shapes(directory), Path(directory) / CONFIG)
    return _create(directory, 0, pretrained=False, num_classes=0)


def normalization(model: nn.Module) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation, each (3, 1, 1), by which inputs in [0, 1] of a timm model must be normalised."""
    cfg = cast(Mapping[str, Sequence[float]], model.pretrained_cfg)
    mean_C11, std_C11 = (torch.tensor(cfg[key], dtype=torch.float32).reshape(-1, 1, 1) for key in ("mean", "std"))
    return mean_C11, std_C11


def _create(directory: str | Path, seed: int, **arguments: Any) -> nn.Module:
    require_timm()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            model: nn.Module = timm.create_model(f"local-dir:{directory}", **arguments)
        except _TIMM_ERRORS as error:
            why = reason(error).partition(". ")[0][:200]
            if "depth" in arguments:
                hint = "it has all its blocks: features_only=True with out_indices takes features of earlier ones"
            else:
                hint = "fetch or make the folder again"
            raise PecoError(f"{directory}: timm can't build the model of this folder: {why}; {hint}") from error
    return model


def _require_timm(directory: str | Path) -> None:
    """Check that config and weights of a timm model fit. With another `num_classes` timm would accept missing weights.

    Raises:
        PecoError: they don't.
    """
    config, found = _describe_timm(directory), shapes(directory)
    require_possible(config.get("model_args", {}), found, Path(directory) / CONFIG)
    with torch.device("meta"):
        skeleton = _create(directory, 0, pretrained=False)
    own = shapes_of(skeleton.state_dict())
    # Older versions of timm stored what the model computes, such as indices of relative positions; timm leaves it out.
    computed = {name for name, _ in skeleton.named_buffers()} - own.keys()
    found = {name: shape for name, shape in found.items() if name not in computed}
    require_equal(own, found, Path(directory) / WEIGHTS)


def _describe_timm(directory: str | Path) -> dict[str, Any]:
    """The config of the folder of a timm model, with entries of the right types.

    Raises:
        PecoError: it is none, or as in `describe`.
    """
    config = describe(directory)
    check_timm_config(config, Path(directory) / CONFIG)
    return config


def _read(path: Path, read: Callable[[], T]) -> T:
    try:
        return read()
    except FileNotFoundError:
        raise PecoError(f"{path}: no such file; the model folder is not complete: fetch or make it again") from None
    except safetensors.SafetensorError as error:
        raise PecoError(f"{path}: damaged ({error}); fetch or make the folder again") from None
    except OSError as error:
        raise PecoError(f"{path}: can't be read: {error}") from None
