"""The models and the command `peco` without the extras: an installation by `pip install .` is enough to use results."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import tiny_models
from packaging.requirements import Requirement
from PIL import Image

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
# Import names that differ from the names of the packages; a package of several is named by one of its modules.
MODULES = {
    "huggingface-hub": None,  # comes with timm
    "pyyaml": None,  # the same
    "torchvision": None,  # the same
    "kfp-kubernetes": "kfp.kubernetes",
    "prometheus-client": "prometheus_client",
    "ruamel.yaml": "ruamel",
    "hydra-core": "hydra",
    "torchx-nightly": "torchx",
    "segmentation-models-pytorch": "segmentation_models_pytorch",
}
BLOCKED = [
    module
    for extra in ("workflow", "kubernetes")
    for name in (Requirement(line).name for line in PROJECT["optional-dependencies"][extra])
    if (module := MODULES.get(name, name)) is not None
]
# Runs `main` with an import hook that refuses the extras.
WITHOUT_EXTRAS = f"""
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if any(name == blocked or name.startswith(blocked + ".") for blocked in {BLOCKED!r}):
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Refuse())
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of each kind and a photo."""
    root = tmp_path_factory.mktemp("light")
    tiny_models.save_models(root)
    Image.new("RGB", (80, 60), "teal").save(root / "photo.png")
    return root


def python(folder: Path, code: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", WITHOUT_EXTRAS + code]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def test_the_import_hook_of_these_tests_blocks_the_extras(folder: Path) -> None:
    for module in BLOCKED:
        assert "ModuleNotFoundError" in python(folder, f"import {module}").stderr


def test_models_load_without_the_extras(folder: Path) -> None:
    done = python(
        folder,
        "import peco, torch\n"
        "tokenizer, backbone = peco.load_tokenizer('tokenizer'), peco.load_backbone('backbone')\n"
        "x = torch.rand(1, 3, 32, 32)\n"
        "print(list(tokenizer.tokenize(x).shape), backbone(2 * x - 1).shape[0])\n",
    )
    assert done.stderr == ""
    assert done.stdout == "[1, 4, 4] 1\n"


def test_the_command_peco_works_without_the_extras(folder: Path) -> None:
    """One after another in one process, since each takes seconds to import torch and timm."""
    printed = {
        "info backbone": "backbone: backbone",
        "tokenize --model tokenizer photo.png": '{"image": "photo.png", "tokens"',
        "reconstruct --model tokenizer -o out photo.png": "out/photo.png",
        "embed --model backbone photo.png": '{"image": "photo.png", "block"',
        "embed --model backbone -o embeddings photo.png": "1 images: embeddings/embeddings.npy",
        "similar photo.png embeddings": "",
        "predict classifier photo.png -o classes --csv --pictures": "1 images: classes/predictions.jsonl",
        "predict detector photo.png -o boxes --csv --pictures": "1 images: boxes/predictions.jsonl",
        "export backbone --to torch-export -o backbone.pt2": "backbone.pt2: torch-export",
    }
    code = "from peco.cli import main\n" + "".join(
        f"print('\\f', end=''); assert main({command.split()!r}) == 0\n" for command in printed
    )
    done = python(folder, code)
    assert done.stderr == ""
    for (command, expected), found in zip(printed.items(), done.stdout.split("\f")[1:], strict=True):
        assert found.startswith(expected), command


def test_a_segmenter_names_the_package_that_it_needs(folder: Path) -> None:
    done = python(folder, "from peco.cli import main\nsys.exit(main(['predict', 'segmenter', 'photo.png', '-o', 'x']))")
    assert done.returncode == 2
    assert done.stderr == (
        "error: segmenter: a segmenter needs the package segmentation_models_pytorch; pip install 'peco[workflow]'\n"
    )


def test_the_image_installs_the_workflow_and_kubernetes() -> None:
    assert "pip install '.[workflow,heif,parquet,tracking,kubernetes]'" in (ROOT / "k8s/Dockerfile").read_text()
    assert (
        "-e '.[workflow,heif,parquet,export,tracking,efficientnet,kubernetes,dev]'" in (ROOT / "Makefile").read_text()
    )
