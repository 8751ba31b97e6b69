"""An environment that others have set: misspelt variables are refused by every command, another job's ranks are not used."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from peco.core.errors import PecoError
from pipelines.workflow import variables

ROOT = Path(__file__).parent.parent
# As in a worker of PyTorchJob, or in a shell on a cluster: the address answers nothing.
OF_ANOTHER_JOB = {
    "RANK": "3",
    "LOCAL_RANK": "3",
    "WORLD_SIZE": "4",
    "MASTER_ADDR": "127.0.0.2",
    "MASTER_PORT": "9",
    "PET_NNODES": "4",
    "PET_RDZV_ENDPOINT": "127.0.0.2:9",
    "GROUP_RANK": "1",
}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("PECO_GPUS_PRETRIAN", "PECO_GPUS_PRETRIAN: names no stage (pretrian); the nearest is PECO_GPUS_PRETRAIN"),
        ("PECO_NPROC_TOKNES", "PECO_NPROC_TOKNES: names no stage (toknes); the nearest is PECO_NPROC_TOKENS"),
        ("PECO_WROK", "PECO_WROK: unknown variable; the nearest is PECO_WORK"),
        ("PECO_SHEDULER", "PECO_SHEDULER: unknown variable; the nearest is PECO_SCHEDULER"),
        ("PECO_WORK_PRETRAIN", "PECO_WORK_PRETRAIN: unknown variable; the nearest is PECO_"),
        ("PECO_", "PECO_: unknown variable; docs/architecture.md and docs/cluster.md list them"),
    ],
)
def test_an_unknown_variable_is_refused_with_the_nearest_name(
    name: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    with pytest.raises(PecoError) as error:
        variables.require_known({name: "1"})
    assert str(error.value).startswith(message)
    variables.require_known({name: ""})


@pytest.mark.parametrize(
    "name",
    [
        *(
            "PECO_WORK",
            "PECO_GPUS",
            "PECO_GPUS_PRETRAIN",
            "PECO_NPROC_EVALUATE_KNN",
            "PECO_MEMORY_TOKENIZER",
            "PECO_TEST_DATA",
        ),
        *(
            "PECO_SERVICE_HOST",
            "PECO_PORT_80_TCP",
            "PECO_WEB_SERVICE_HOST",
            "PECO_WEB_SERVICE_PORT_HTTP",
            "PECO_WEB_PORT",
            "PECO_WEB_PORT_80_TCP_ADDR",
        ),
        "PECONOMY",
    ],
)
def test_known_variables_and_those_of_kubernetes_are_accepted(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    variables.require_known({name: "1"})


@pytest.mark.parametrize(
    "command",
    [
        ["launch", "shards"],
        ["repro"],
        ["params", "--preset", "smoke"],
        ["submit", "compile"],
        ["local"],
        ["compare"],
        ["ablation", "codes"],
    ],
    ids=lambda command: command[0],
)
def test_every_command_refuses_it_before_it_does_anything(command: list[str], tmp_path: Path) -> None:
    for name in ("dvc.yaml", "params.yaml"):
        shutil.copy(ROOT / name, tmp_path)
    before = sorted(tmp_path.rglob("*"))
    env = os.environ | {"PECO_GPUS_PRETRIAN": "8", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", f"pipelines.{command[0]}", *command[1:]],
        cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    message = "error: PECO_GPUS_PRETRIAN: names no stage (pretrian); the nearest is PECO_GPUS_PRETRAIN\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", message)
    assert sorted(tmp_path.rglob("*")) == before


def run(source: str, **env: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", source], env=os.environ | env, cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


PLACE = (
    "from peco.training.distributed import Dist; from peco.runtime.stage import is_main\n"
    "place = Dist.init(); print(place.rank, place.local_rank, place.world, is_main())"
)


def test_a_stage_that_torchrun_did_not_start_is_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also if it is started directly, as `python -m peco.stages.pretrain`."""
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    assert run(PLACE, **OF_ANOTHER_JOB, PECO_DEVICE="cpu") == "0 0 1 True"
    assert run(PLACE, RANK="first", WORLD_SIZE="", PECO_DEVICE="cpu") == "0 0 1 True"


@pytest.mark.parametrize("processes", ["1", "2"])
def test_the_launcher_gives_a_stage_nothing_of_another_job(processes: str, tmp_path: Path) -> None:
    for folder in ("pipelines", "peco/core"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("dvc.yaml", "params.yaml"):
        shutil.copy(ROOT / name, tmp_path)
    stage = tmp_path / "peco/stages/pretrain.py"
    stage.parent.mkdir(parents=True)
    names = (*OF_ANOTHER_JOB, "TORCHELASTIC_RUN_ID")
    stage.write_text(
        f"import os\nfrom peco.core.ranks import ranks\nprint(ranks().rank, ranks().world)\n"
        f"print([os.environ.get(name) for name in {names}])\n"
    )
    (tmp_path / "peco/__init__.py").touch()
    env = os.environ | OF_ANOTHER_JOB | {"TORCHELASTIC_RUN_ID": "another", "PECO_NPROC": processes}
    done = subprocess.run(
        [sys.executable, "-m", "pipelines.launch", "pretrain"],
        cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    if processes == "1":
        assert done.stdout.splitlines()[:2] == ["0 1", str([None] * len(names))]
    else:
        assert sorted(done.stdout.splitlines())[:1] + sorted(done.stdout.splitlines())[2:3] == ["[0] 0 2", "[1] 1 2"]
        assert "127.0.0.2" not in done.stdout
