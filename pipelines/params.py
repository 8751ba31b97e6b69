"""Write params.yaml: Hydra composes it from `peco/conf`, and the user's images become a tracked input under `data/`.

    python -m pipelines.params --preset cifar --data ~/photos tokenizer.quantizer.codes=1024 perceptual_net=dino_vit_b

Group choices (`perceptual_net=dino_vit_b`) are made here. A scalar can be changed afterwards with `dvc exp run -S a.b=1`, which
edits params.yaml in place.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize_config_module
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from peco.core import schema
from peco.core.errors import PecoError
from peco.core.params import parse_params
from pipelines.workflow import inputs
from pipelines.workflow.architectures import check_architectures

PRESETS = ("smoke", "tiny", "cifar", "imagenet_vit_b", "imagenet_vit_l", "imagenet_vit_h")
PARAMS = Path("params.yaml")
HUB_SECONDS = 20
HEADER = """\
# Composed from peco/conf by `make params PRESET={preset}`. Change a value here, or with `dvc exp run -S key=value`;
# choose another preset, data set or group with `make params`. docs/parameters.md says what each value means.
"""


def compose_params(preset: str, overrides: list[str]) -> dict[str, Any]:
    """Compose and validate.

    Raises:
        PecoError: an unknown preset, group or key, or a value that is not allowed.
    """
    if preset not in PRESETS:
        raise PecoError(f"preset: {preset!r} is not allowed; expected one of {', '.join(PRESETS)}")
    try:
        with initialize_config_module("peco.conf", version_base="1.3"):
            composed = compose("config", overrides=[f"preset={preset}", *overrides])
        raw: Any = OmegaConf.to_container(composed, resolve=True)
    except (HydraException, OmegaConfBaseException) as error:
        raise PecoError(f"can't compose {' '.join(overrides) or preset}: {str(error).splitlines()[0]}") from None
    order = list(schema.to_dict(parse_params(raw)))
    return {name: raw[name] for name in order}


def render(values: dict[str, Any]) -> str:
    """The text of params.yaml."""
    body = yaml.safe_dump(values, sort_keys=False, default_flow_style=None, width=120)
    return HEADER.format(preset=values["preset"]) + body


def write(values: dict[str, Any], path: Path = PARAMS) -> None:
    """Write the file in one step: whoever reads it finds the old or the new one.

    Raises:
        PecoError: it can't be written; the old one is as it was.
    """
    part = path.with_name(path.name + ".part")
    try:
        part.write_text(render(values), encoding="utf-8")
        os.replace(part, path)
    except OSError as error:
        raise PecoError(f"{path}: can't be written ({error.strerror}); fix that and run again") from None
    finally:
        part.unlink(missing_ok=True)


def standing(path: Path = PARAMS) -> dict[str, Any]:
    """The params.yaml that stands, unchecked, since it may be one of an older version; empty where there is none.

    Raises:
        PecoError: it can't be read.
    """
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        found = None
    if not isinstance(found, dict):
        raise PecoError(f"{path}: can't be read as parameters; name a preset (PRESET=tiny) to write it anew")
    return found


def kept_dataset(values: dict[str, Any], overrides: list[str]) -> list[str]:
    """Overrides that keep the data set of these parameters, unless the user's own overrides choose one."""
    dataset = values.get("dataset")
    if not isinstance(dataset, dict) or any(o.startswith("dataset=") for o in overrides):
        return []
    source, path = dataset.get("source"), dataset.get("path")
    return inputs.choose(source, path) if isinstance(source, str) and isinstance(path, str) else []


def pin_weights(values: dict[str, Any]) -> None:
    """Put the present commit of the hub's repository where weights are to come from it and no commit is named.

    So all who take these parameters take the same weights. Where the hub can't be asked a line says so, and the commit stays open.
    """
    net = values["perceptual_net"]
    weights = net["timm"]
    if net["source"] != "timm" or not weights["pretrained"] or weights["checkpoint"] or weights["revision"]:
        return
    import timm  # heavy
    from huggingface_hub import HfApi

    repository = weights["model"].removeprefix("hf-hub:")
    if repository == weights["model"]:
        known = timm.get_pretrained_cfg(weights["model"])
        repository = known.hf_hub_id if known else None
    try:
        if repository:  # else the stage says what is wrong
            weights["revision"] = HfApi().model_info(repository, timeout=HUB_SECONDS).sha
            print(f"perceptual_net.timm.revision: {weights['revision']}, the newest of {repository}")
    except Exception as error:  # the hub's client has no base class of its errors
        reason = " ".join(str(error).split()) or type(error).__name__
        print(
            f"perceptual_net.timm.revision: not pinned, since the hub can't be asked ({reason[:200]})", file=sys.stderr
        )


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m pipelines.params", description="Write params.yaml.")
    parser.add_argument("--preset", help=f"one of {', '.join(PRESETS)}; default: that of the params.yaml that stands")
    parser.add_argument(
        "--data",
        help="scenes, a folder, tar or zip of images, or WebDataset tars (folder, pattern, addresses or a list); "
        "default: what the params.yaml that stands names, or with --preset the preset's",
    )
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="Hydra overrides: group choices and values")
    args = parser.parse_args(argv)
    try:
        # Everything is checked before the images are taken in, which may be long.
        before = {} if args.preset else standing()
        preset = args.preset or before.get("preset", "tiny")
        if args.data:
            found = inputs.look(args.data)
            values = compose_params(preset, [*found.overrides, *args.overrides])
            check_architectures(parse_params(values))
            inputs.take(found)
        else:
            values = compose_params(preset, [*kept_dataset(before, args.overrides), *args.overrides])
            check_architectures(parse_params(values))
            path = Path(values["dataset"]["path"])
            inputs.require_present(path)
            if not path.exists():
                raise PecoError(
                    f"preset {preset} has no images yet: name them, `make repro PRESET={preset} DATA=folder-or-tar`"
                )
        pin_weights(values)
        write(values)
    except PecoError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("error: interrupted; params.yaml is as it was", file=sys.stderr)
        return 130
    print(f"params.yaml: preset {values['preset']}, images from {values['dataset']['path']}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
