"""Write params.yaml, composed by Hydra from `peco/conf`, and import the user's images under `data/`.

    python -m pipelines.params --preset cifar --data ~/photos tokenizer.quantizer.codes=1024 perceptual_net=dino_vit_b

Group choices (`perceptual_net=dino_vit_b`) are made here. A scalar can be changed afterwards with `dvc exp run -S a.b=1`, which
edits params.yaml in place.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from peco.core.errors import PecoError
from peco.core.params import parse_params
from peco.core.progress import waiting
from pipelines.workflow import input_check, inputs, variables
from pipelines.workflow.compose import PRESETS, check_architectures, compose_params, current_params, write
from pipelines.workflow.git import require_repository
from pipelines.workflow.given import check_weights

HUB_SECONDS = 20


def kept_dataset(values: dict[str, Any], overrides: list[str]) -> list[str]:
    """Overrides that keep the data set of these parameters, unless the user's own overrides choose one."""
    dataset = values.get("dataset")
    if not isinstance(dataset, dict) or any(o.startswith("dataset=") for o in overrides):
        return []
    source, path = dataset.get("source"), dataset.get("path")
    return inputs.dataset_overrides(source, path) if isinstance(source, str) and isinstance(path, str) else []


def pin_weights(values: dict[str, Any]) -> None:
    """Pin weights from the hub to the current commit of their repository, unless a commit is named.

    The same parameters then always give the same weights. If the hub can't be asked, a line reports it and nothing is pinned.
    """
    net, init, reference = values["perceptual_net"], values["pretrain"]["init"], values["evaluate"]["reference"]
    if net["source"] == "timm" and net["timm"]["pretrained"]:
        _pin("perceptual_net.timm", net["timm"])
    if init["source"] == "timm":
        _pin("pretrain.init", init)
    if reference["source"] == "timm":
        _pin("evaluate.reference", reference)


def _pin(key: str, weights: dict[str, Any]) -> None:
    """Set `revision` of a group with the keys `model` and `revision`."""
    if weights["revision"]:
        return
    import timm  # heavy
    from huggingface_hub import HfApi

    repository = weights["model"].removeprefix("hf-hub:")
    if repository == weights["model"]:
        known = timm.get_pretrained_cfg(weights["model"])
        repository = known.hf_hub_id if known else None
    try:
        if repository:  # else the stage reports what is wrong
            weights["revision"] = HfApi().model_info(repository, timeout=HUB_SECONDS).sha
            print(f"{key}.revision: {weights['revision']}, the newest of {repository}")
    except Exception as error:  # the hub's client has no base class of its errors
        reason = " ".join(str(error).split()) or type(error).__name__
        print(f"{key}.revision: not pinned, since asking the hub failed ({reason[:200]})", file=sys.stderr)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m pipelines.params", description="Write params.yaml.")
    parser.add_argument("--preset", help=f"one of {', '.join(PRESETS)}; default: that of the current params.yaml")
    parser.add_argument(
        "--data",
        help="scenes, a folder, tar or zip of images, or WebDataset tars (folder, pattern, addresses or a list); "
        "default: the data of the current params.yaml, or with --preset the preset's",
    )
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="Hydra overrides: group choices and values")
    args = parser.parse_args(argv)
    try:
        variables.require_known()
        # Everything is checked before the images are imported, which may take long.
        before = {} if args.preset else current_params()
        preset = args.preset or before.get("preset", "tiny")
        if args.data:
            require_repository()  # DVC can't add data without one
            with waiting(f"{args.data}: listing the files"):
                found = inputs.inspect(args.data)
            values = compose_params(preset, [*found.overrides, *args.overrides])
            parameters = parse_params(values)
            check_architectures(parameters)
            check_weights(parameters)
            with waiting(f"{args.data}: checking the images"):
                inputs.check_images(found, parameters.dataset)
            inputs.import_data(found)
            input_check.remember(parameters.dataset)
        else:
            values = compose_params(preset, [*kept_dataset(before, args.overrides), *args.overrides])
            parameters = parse_params(values)
            check_architectures(parameters)
            check_weights(parameters)
            path = Path(values["dataset"]["path"])
            inputs.require_pulled(path)
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
        print("error: interrupted; params.yaml is unchanged", file=sys.stderr)
        return 130
    print(f"params.yaml: preset {values['preset']}, images from {values['dataset']['path']}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
