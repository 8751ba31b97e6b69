"""Whether timm knows the architectures that the parameters name."""

from __future__ import annotations

from peco.core import config
from peco.core.errors import PecoError

# Of the presets; for these there is no need to import timm, which takes seconds.
KNOWN = ("beit_base_patch16_224", "beit_large_patch16_224", "vit_base_patch16_224", "vit_small_patch16_224")


def check_architectures(parameters: config.Config) -> None:
    """Refuse architectures that timm doesn't know now, and not in the stage that builds them, hours later.

    Raises:
        PecoError: there is one.
    """
    used = {"pretrain.vit.arch": parameters.pretrain.vit.arch}
    if parameters.perceptual_net.source == "train":
        used["perceptual_net.vit.arch"] = parameters.perceptual_net.vit.arch
    for key, arch in used.items():
        if arch not in KNOWN:
            import timm

            if not timm.is_model(arch):
                raise PecoError(f"{key}: {arch!r} is not allowed; timm knows no such model")
