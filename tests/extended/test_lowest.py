"""The lower ends of all ranges in pyproject.toml: a fresh environment with these versions runs the preset `smoke`.

It downloads several GB, so it needs PECO_TEST_LOWEST=1.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version
from prepared import ROOT

pytestmark = pytest.mark.skipif(
    not os.environ.get("PECO_TEST_LOWEST"), reason="downloads several GB: set PECO_TEST_LOWEST=1"
)
# Their versions follow from those of torch and transformers.
FOLLOWING = ("torch", "torchvision", "triton", "nvidia-", "cuda-", "tokenizers", "huggingface-hub", "huggingface_hub")


def lower_ends() -> dict[str, str]:
    """The oldest allowed version of each package that has one."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = [*project["dependencies"], *(line for lines in project["optional-dependencies"].values() for line in lines)]
    requirements = [Requirement(line) for line in lines]
    return {
        canonicalize_name(r.name): spec.version for r in requirements for spec in r.specifier if spec.operator == ">="
    }


def run(*command: str, cwd: Path, **env: str) -> str:
    done = subprocess.run(command, cwd=cwd, env={**os.environ, **env}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with the files of this one, and `.venv` with the lower ends; other versions are the pinned ones."""
    folder = tmp_path_factory.mktemp("lowest") / "peco"
    for name in run("git", "ls-files", "-co", "--exclude-standard", "-z", cwd=ROOT).split("\0"):
        if name and (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    run("git", "init", "--quiet", cwd=folder)
    pinned = [
        line
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if not line.startswith(FOLLOWING) and line.partition("==")[0] not in lower_ends()
    ]
    constraints = folder.parent / "constraints.txt"
    constraints.write_text("\n".join([*pinned, *(f"{name}=={version}" for name, version in lower_ends().items())]))
    run(sys.executable, "-m", "venv", ".venv", cwd=folder)
    pip = (
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-cache-dir",
        "--disable-pip-version-check",
        "-e",
        ".[workflow,export]",
    )
    run(str(folder / ".venv/bin/python"), *pip, cwd=folder, PIP_CONSTRAINT=str(constraints))
    return folder


def test_the_lowest_versions_run_the_whole_workflow(project: Path) -> None:
    python, path = str(project / ".venv/bin/python"), f"{project}/.venv/bin:{os.environ['PATH']}"
    listed = json.loads(run(python, "-m", "pip", "list", "--format=json", cwd=project))
    versions = {canonicalize_name(entry["name"]): Version(entry["version"]).base_version for entry in listed}
    assert {"timm", "torch"} <= lower_ends().keys()
    for name, version in lower_ends().items():
        assert Version(versions[name]) == Version(version), name
    run(python, "-m", "pipelines.params", "--preset", "smoke", cwd=project, PATH=path)
    run(python, "-m", "pipelines.repro", cwd=project, PATH=path)
    assert (project / "reports/report.html").is_file()
    code = "import timm; print(type(timm.create_model('local-dir:artifacts/backbone', pretrained=True, img_size=64)).__name__)"
    assert run(python, "-c", code, cwd=project) == "Beit\n"
