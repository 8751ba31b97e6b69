"""Write params.yaml: Hydra composes it from `peco/conf`, and the user's images become a tracked input under `data/`.

    python -m pipelines.params --preset cifar --data ~/photos tokenizer.quantizer.codes=1024 perceptual_net=dino_vit_b

Group choices (`perceptual_net=dino_vit_b`) are made here. A scalar can be changed afterwards with `dvc exp run -S a.b=1`, which
edits params.yaml in place.
"""

from __future__ import annotations

import argparse
import glob
import re
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize_config_module
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from peco import config
from peco.errors import PecoError

PRESETS = ("smoke", "tiny", "cifar", "imagenet_vit_b", "imagenet_vit_l", "imagenet_vit_h")
PARAMS = Path("params.yaml")
HEADER = """\
# Composed from peco/conf by `make params PRESET={preset}`. Change a value here, or with `dvc exp run -S key=value`;
# choose another preset, data set or group with `make params`. docs/parameters.md says what each value means.
"""
TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz")
REMOTE = re.compile(r"^(https?|s3|gs|pipe):")


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
    order = list(config.to_dict(config.parse(raw)))
    return {name: raw[name] for name in order}


def render(values: dict[str, Any]) -> str:
    """The text of params.yaml."""
    body = yaml.safe_dump(values, sort_keys=False, default_flow_style=None, width=120)
    return HEADER.format(preset=values["preset"]) + body


def track(data: str, root: Path = Path()) -> list[str]:
    """Make `data` a tracked input under data/ and give the overrides that select it.

    A folder, a tar, or local shards are taken into DVC's cache (`dvc add`), so that another machine can fetch them by hash.
    Addresses stay where they are: their list becomes the input.

    Raises:
        PecoError: there is nothing there, or DVC refuses it.
    """
    if data == "scenes":
        return ["dataset=scenes"]
    if REMOTE.match(data):
        name = re.sub(r"[^A-Za-z0-9]+", "-", data.rsplit("/", 1)[-1]).strip("-") or "shards"
        target = root / "data" / f"{name}.txt"
        target.write_text(data + "\n", encoding="utf-8")
        return ["dataset=webdataset", f"dataset.path={target.relative_to(root)}"]
    path = Path(data).expanduser()
    if not path.exists():
        return _track_pattern(data, root)
    if path.is_dir() and not any(path.iterdir()):
        raise PecoError(
            f"{data}: the folder is empty; expected images (train/<class>/…, <class>/…, or images alone) or tars"
        )
    target = root / "data" / _safe_name(path.resolve().name)
    if path.resolve() != target.resolve():
        _dvc_add(path, target, root)
    elif not target.with_name(target.name + ".dvc").exists():
        _dvc_add(None, target, root)
    return [f"dataset={_kind(path)}", f"dataset.path={target.relative_to(root)}"]


def _track_pattern(data: str, root: Path) -> list[str]:
    from braceexpand import braceexpand

    files = sorted(Path(f) for pattern in braceexpand(str(Path(data).expanduser())) for f in glob.glob(pattern))
    if not files:
        raise PecoError(f"{data}: no such file or folder, and nothing matches it as a pattern")
    name = _safe_name(files[0].resolve().parent.name)
    for file in files:
        _dvc_add(file, root / "data" / name / file.name, root)
    return ["dataset=webdataset", f"dataset.path=data/{name}"]


def _dvc_add(source: Path | None, target: Path, root: Path) -> None:
    arguments = (
        [str(target.relative_to(root))]
        if source is None
        else [str(source.resolve()), "--out", str(target.relative_to(root))]
    )
    target.parent.mkdir(parents=True, exist_ok=True)
    print(f"Taking {source or target} into DVC as {target.relative_to(root)}", file=sys.stderr)
    command = [sys.executable, "-m", "dvc", "add", "--quiet", "--force", *arguments]
    result = subprocess.run(command, cwd=root, stderr=subprocess.PIPE, text=True, check=False)
    if result.returncode:
        lines = [line for line in result.stderr.splitlines() if line.strip()]
        raise PecoError(f"{source or target}: DVC can't take it: {lines[-1] if lines else 'no reason given'}")


def _kind(path: Path) -> str:
    """`webdataset` for shards, `images` for everything else."""
    if path.is_dir():
        return "webdataset" if any(path.glob("*.tar")) else "images"
    if not path.name.endswith(TAR_SUFFIXES):
        raise PecoError(f"{path}: neither a folder nor a tar")
    try:
        with tarfile.open(path) as tar:
            names = [member.name for _, member in zip(range(64), tar, strict=False) if member.isfile()]
    except (tarfile.TarError, OSError, EOFError) as error:
        raise PecoError(f"{path}: not a readable tar: {error}") from None
    return "webdataset" if any(name.endswith((".cls", ".json")) for name in names) else "images"


def _safe_name(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", name).strip("-.") or "images"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m pipelines.params", description="Write params.yaml.")
    parser.add_argument("--preset", help=f"one of {', '.join(PRESETS)}; default: that of the params.yaml that stands")
    parser.add_argument(
        "--data", help="scenes, a folder or tar of images, or WebDataset shards (folder, pattern or addresses)"
    )
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="Hydra overrides: group choices and values")
    args = parser.parse_args(argv)
    try:
        preset = args.preset or (config.load(PARAMS).preset if PARAMS.exists() else "tiny")
        values = compose_params(preset, args.overrides)
        if args.data:
            values = compose_params(preset, track(args.data) + args.overrides)
        elif not Path(values["dataset"]["path"]).exists():
            raise PecoError(
                f"preset {preset} has no images yet: name them, `make repro PRESET={preset} DATA=folder-or-tar`"
            )
        PARAMS.write_text(render(values), encoding="utf-8")
    except PecoError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"params.yaml: preset {preset}, images from {values['dataset']['path']}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
