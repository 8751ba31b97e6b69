"""The wheel in a fresh environment, without the extras: what `pip install .` gives."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from PIL import Image
from prepared import ROOT
from test_light import folder as folder  # a tokenizer, a backbone and a photo

ENV = {
    **os.environ,
    "PIP_CONSTRAINT": str(ROOT / "constraints.txt"),
    "PIP_BUILD_CONSTRAINT": str(ROOT / "constraints.txt"),
}


def run(*command: str, cwd: Path) -> str:
    done = subprocess.run(command, cwd=cwd, env=ENV, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target, source = tmp_path_factory.mktemp("wheel"), tmp_path_factory.mktemp("source")
    for name in ("peco", "pipelines"):  # building leaves files next to the sources
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    run(
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--wheel-dir",
        str(target),
        str(source),
        cwd=target,
    )
    return next(target.glob("peco-*.whl"))


@pytest.fixture(scope="module")
def bin_folder(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The commands of a new environment with the wheel installed."""
    venv = tmp_path_factory.mktemp("environment") / "venv"
    run(sys.executable, "-m", "venv", str(venv), cwd=wheel.parent)
    run(str(venv / "bin/python"), "-m", "pip", "install", "--quiet", "--no-cache-dir", str(wheel), cwd=wheel.parent)
    return venv / "bin"


def test_the_wheel_holds_everything_that_the_code_reads(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    in_repository = {
        path.relative_to(ROOT).as_posix()
        for package in ("peco", "pipelines")
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert in_repository <= names
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_the_environment_lacks_the_extras(bin_folder: Path) -> None:
    installed = {
        entry["name"].lower() for entry in json.loads(run(str(bin_folder / "pip"), "list", "--format=json", cwd=ROOT))
    }
    assert not installed & {"dvc", "kfp", "kubernetes", "torchx-nightly", "hydra-core", "webdataset"}
    assert {"peco", "timm", "torch", "safetensors"} <= installed


def test_the_command_peco_works(bin_folder: Path, folder: Path) -> None:
    peco = str(bin_folder / "peco")
    assert "backbone" in run(peco, "info", "backbone", cwd=folder)
    tokens = json.loads(run(peco, "tokenize", "--model", "tokenizer", "photo.png", cwd=folder))["tokens"]
    assert [len(row) for row in tokens] == [4, 4, 4, 4]
    run(peco, "reconstruct", "--model", "tokenizer", "-o", "out", "photo.png", cwd=folder)
    with Image.open(next((folder / "out").iterdir())) as picture:
        assert picture.size == (64, 32)
    assert json.loads(run(peco, "embed", "--model", "backbone", "photo.png", cwd=folder))["image"] == "photo.png"


def test_the_models_load_from_python(bin_folder: Path, folder: Path) -> None:
    code = "import peco; print(type(peco.load_tokenizer('tokenizer')).__name__, type(peco.load_backbone('backbone')).__name__)"
    assert run(str(bin_folder / "python"), "-c", code, cwd=folder) == "PerceptualTokenizer Beit\n"
