"""Networks that exist already: a timm model by its name, a timm folder or a file of weights."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import timm
import torch
from huggingface_hub import try_to_load_from_cache
from timm.layers import to_2tuple
from torch import Tensor, nn

from peco.core import artifacts
from peco.core.config import TimmNet
from peco.core.errors import PecoError

# Parts of vision transformers without which the others give other features, unlike heads.
_INSIDE = ("blocks.", "patch_embed.", "norm_pre.", "reg_token", "register_tokens", "dist_token", "rope")


def by_name(net: TimmNet, image_size: int, key: str = "perceptual_net.timm", **more: Any) -> nn.Module:
    """Create a timm model without classifier head: weights from the hub if `pretrained`, else random.

    A network with a fixed input size is built for `image_size`, rounded up to whole patches, and its position embedding is
    resampled. The hub's weights are safetensors of commit `revision`.

    Args:
        net: the model.
        image_size: side in pixels.
        key: of the parameters that name the model, for messages.
        more: further arguments of `timm.create_model`.

    Raises:
        PecoError: timm has no such model, or it doesn't take these arguments or images of this size; no network or no such
            revision; the weights hold NaN.
    """
    name = f"{net.model}@{net.revision}" if net.revision and net.model.startswith("hf-hub:") else net.model
    skeleton = _skeleton(name, key)
    options = _size(skeleton, image_size) | more
    local = f"put its weights below data/ and set {key.removesuffix('.timm')}.source to path"
    if net.pretrained:
        options["pretrained_cfg_overlay"] = _hub_source(skeleton, net, key, local)
    model = _create(name, key, local, pretrained=net.pretrained, **options)
    origin = f"{key}.model: {net.model}"
    artifacts.require_finite(model.state_dict(), origin)
    require_images(model, whole_patches(model, image_size), origin)
    return model


def by_path(
    path: Path,
    arch: str,
    image_size: int,
    key: str = "perceptual_net",
    arch_key: str = "perceptual_net.timm",
    **more: Any,
) -> nn.Module:
    """Create the timm model of a folder, or that of a .safetensors file, without classifier head, for `image_size` as `by_name`.

    Args:
        path: a timm folder, or a file with all weights of `arch`.
        arch: timm's name of the network in a file.
        image_size: side in pixels.
        key: of the group whose `path` it is, for messages.
        arch_key: of the group whose `model` is `arch`.
        more: further arguments of `timm.create_model`.

    Raises:
        PecoError: the folder or file is missing, damaged, of another network, or holds NaN; the network takes no images of this
            size.
    """
    where = f"{key}.path: {path}"
    if path.is_dir():
        try:
            with torch.device("meta"):
                options = _size(artifacts.random_like(path, seed=0), image_size) | more
            model = artifacts.load_timm(path, num_classes=0, **options)
        except PecoError as error:
            raise PecoError(f"{key}.path: {error}") from None
    else:
        _require_file(path, where)
        skeleton = _skeleton(arch, arch_key)
        _require_weights(path, skeleton, where, arch)
        overlay = {"file": str(path), "custom_load": False, "source": None}
        hint = f"give the weights of {arch}"
        options = _size(skeleton, image_size) | more
        model = _create(arch, where, hint, pretrained=True, pretrained_cfg_overlay=overlay, **options)
    cast(Any, model).pretrained_cfg["file"] = None  # an artifact must not hold a path
    require_images(model, whole_patches(model, image_size), where)
    return model


def by_names_of(model: nn.Module, tensors: Mapping[str, Tensor], origin: str) -> dict[str, Tensor]:
    """Tensors of a checkpoint by the model's names and at its size: timm's own filter of its architecture.

    Raises:
        PecoError: timm's filter doesn't take them.
    """
    module = sys.modules[type(model).__module__]
    filter_fn: Callable[..., dict[str, Tensor]] | None = getattr(module, "checkpoint_filter_fn", None)
    if filter_fn is None:
        return dict(tensors)
    try:
        return filter_fn(dict(tensors), model)
    except (RuntimeError, KeyError, AttributeError, TypeError, ValueError, AssertionError) as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise PecoError(f"{origin}: not weights of a {type(model).__name__} ({reason}); give others") from error


def first_inside(names: Iterable[str]) -> str | None:
    """The first of these weights that is no head but a part of the network itself; None if all are heads."""
    return min((name for name in names if name.startswith(_INSIDE)), default=None)


def some_names(names: Sequence[str]) -> str:
    """The first names, and the number of the others."""
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def shape_of(tensor: Tensor) -> str:
    """The shape of a tensor in words."""
    return "x".join(map(str, tensor.shape)) or "one number"


def hub_commit(model: nn.Module) -> str | None:
    """Hub commit of a pretrained model's weights; None if the hub's client has no record of it."""
    known: Any = cast(Any, model).pretrained_cfg
    repository, _, revision = (known.get("hf_hub_id") or "").partition("@")
    found = try_to_load_from_cache(repository, known.get("hf_hub_filename") or "", revision=revision or None)
    # <cache>/models--<repository>/snapshots/<commit>/<file>
    return Path(found).parent.name if isinstance(found, str) else None


def patch_size(model: nn.Module) -> int:
    """Side in pixels of the patches of a network; 1 for one without a patch embedding."""
    return max(cast(tuple[int, int], to_2tuple(getattr(getattr(model, "patch_embed", None), "patch_size", 1))))


def whole_patches(model: nn.Module, image_size: int) -> int:
    """`image_size`, rounded up to a multiple of the network's patch size."""
    return -(-image_size // patch_size(model)) * patch_size(model)


def strict_embed(model: nn.Module) -> Any:
    """The patch embedding that requires its `img_size`; None for networks that take any size."""
    embeds = (m for m in model.modules() if isinstance(m, timm.layers.PatchEmbed))
    return next((m for m in embeds if m.img_size and m.strict_img_size), None)


def _skeleton(name: str, key: str) -> nn.Module:
    """The model without memory for weights."""
    hint = "check the name (timm.list_models()) and, for hf-hub:, the network"
    with torch.device("meta"):
        return _create(name, f"{key}.model", hint)


def _size(skeleton: nn.Module, image_size: int) -> dict[str, Any]:
    """The argument `img_size` of a network that requires it."""
    embed = strict_embed(skeleton)
    if embed is None:
        return {}
    patch = max(embed.patch_size)
    return {"img_size": -(-image_size // patch) * patch}


def require_images(model: nn.Module, side: int, origin: str) -> None:
    """Check that a network takes images of `side` pixels, by trying one. Many have sizes that nothing but their code tells.

    Raises:
        PecoError: it doesn't.
    """
    training, device = model.training, next(model.parameters()).device
    try:
        with torch.no_grad():
            model.eval()(torch.zeros(1, 3, side, side, device=device))
        model.train(training)
    except (RuntimeError, AssertionError, TypeError, ValueError, AttributeError, NotImplementedError) as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise PecoError(f"{origin}: doesn't work on images of {side} pixels ({reason}); give another one") from error


def _hub_source(skeleton: nn.Module, net: TimmNet, key: str, local: str) -> dict[str, Any]:
    """`pretrained_cfg` entries for safetensors at the pinned commit; timm splits the revision off at the `@`."""
    known: Any = skeleton.pretrained_cfg
    repository = known.get("hf_hub_id")
    if not repository:
        raise PecoError(f"{key}.model: {net.model} has no weights on the hub; {local}")
    name = repository.partition("@")[0]
    return {
        "hf_hub_id": f"{name}@{net.revision}" if net.revision else repository,
        "hf_hub_filename": known.get("hf_hub_filename") or "model.safetensors",
        "custom_load": known.get("custom_load", False),
    }


def _require_file(path: Path, where: str) -> None:
    if not path.is_file():
        raise PecoError(f"{where}: no such file; give a timm folder or a .safetensors file")
    if path.suffix != ".safetensors":
        raise PecoError(f"{where}: not a .safetensors file; `python -m peco.convert` converts checkpoints")


def _require_weights(path: Path, skeleton: nn.Module, where: str, name: str) -> None:
    """Check that the file has every weight of the model: timm would silently leave missing ones random."""
    try:
        found = set(artifacts.load_tensors(path))
    except PecoError as error:
        raise PecoError(f"{where.partition(': ')[0]}: {error}") from None
    missing = [k for k in skeleton.state_dict() if k not in found and not k.endswith("num_batches_tracked")]
    if missing:
        raise PecoError(f"{where} lacks {len(missing)} weights of {name}, such as {missing[0]}; give one that has them")


def _create(name: str, key: str, hint: str, **options: Any) -> nn.Module:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # timm's deprecations are of no use to the user
            model: nn.Module = timm.create_model(name, num_classes=0, **options)
    except Exception as error:  # timm, the hub's client and safetensors share no base class
        reason = " ".join(str(error).split()) or type(error).__name__
        raise PecoError(f"{key}: {name}: {reason[:300]}; {hint}") from error
    return model
