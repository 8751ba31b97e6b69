"""The workflow as a user runs it: the `smoke` preset through DVC and TorchX in a fresh checkout."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from PIL import Image

from peco import cli

pytestmark = pytest.mark.chain

ROOT = Path(__file__).parents[1]
STAGES = {
    "annotations", "shards", "perceptual_net", "tokenizer", "tokens", "pretrain",
    "evaluate@knn", "evaluate@linear", "evaluate@finetune", "evaluate@segmentation", "evaluate@detection", "evaluate@agreement",
    "evaluate@codebook", "report",
}  # fmt: skip
TRAINED = {
    "perceptual_net", "tokenizer", "pretrain", "evaluate@finetune", "evaluate@segmentation", "evaluate@detection",
}  # fmt: skip
STOPPED = {"shards", "tokenizer", "tokens", "pretrain", "evaluate@linear", "evaluate@detection"}


class Checkout:
    """A fresh checkout of the working tree in a git repository of its own."""

    def __init__(self, path: Path) -> None:
        self.path = path
        listed = subprocess.run(
            ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
        for name in listed.stdout.splitlines():
            if (ROOT / name).is_file() and name != "dvc.lock":  # that one is of the user's own runs
                (path / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(ROOT / name, path / name)
        self.env = {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "DVC_SITE_CACHE_DIR": str(path.with_name(path.name + "-site")),
            "GIT_AUTHOR_NAME": "t", "GIT_AUTHOR_EMAIL": "t@t", "GIT_COMMITTER_NAME": "t", "GIT_COMMITTER_EMAIL": "t@t",
        }  # fmt: skip
        for key in ("PECO_WORK", "OMP_NUM_THREADS", "PYTHONDONTWRITEBYTECODE"):
            self.env.pop(key, None)
        self.run("git", "init", "-q", "-b", "main")
        self.python("pipelines.params", "--preset", "smoke")
        self.commit("start")

    def run(self, *command: str, status: int = 0, **env: str) -> str:
        done = subprocess.run(
            command,
            cwd=self.path,
            env={**self.env, **env},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert done.returncode == status, done.stdout[-4000:]
        return done.stdout

    def python(self, module: str, *arguments: str, status: int = 0, **env: str) -> str:
        return self.run(sys.executable, "-m", module, *arguments, status=status, **env)

    def start(self, *arguments: str, **env: str) -> subprocess.Popen[bytes]:
        """Start `make repro` in the background, in its own session."""
        return subprocess.Popen(
            [sys.executable, "-m", "pipelines.repro", *arguments],
            cwd=self.path,
            env={**self.env, **env},
            start_new_session=True,
            # Ctrl-C works as in a terminal, even if the tests run in the background, where it is ignored.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def commit(self, message: str) -> None:
        self.run("git", "add", "-A")
        self.run("git", "commit", "-qm", message)

    def set(self, key: str, value: object) -> None:
        params = yaml.safe_load((self.path / "params.yaml").read_text())
        *groups, leaf = key.split(".")
        target = params
        for group in groups:
            target = target[group]
        target[leaf] = value
        (self.path / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))

    def ran(self) -> list[str]:
        """Stages that have run so far, in order."""
        times = self.path / ".work" / "times.jsonl"
        return [json.loads(line)["stage"] for line in times.read_text().splitlines()] if times.exists() else []

    def json(self, name: str) -> dict[str, object]:
        found: dict[str, object] = json.loads((self.path / name).read_text())
        return found


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    """A checkout after one run of the whole chain."""
    checkout = Checkout(tmp_path_factory.mktemp("finished"))
    output = checkout.python("pipelines.repro")
    assert "reports/report.html" in output
    checkout.commit("ran")
    return checkout


def test_the_chain_runs_every_stage_and_writes_the_report(finished: Checkout) -> None:
    assert set(finished.ran()[: len(STAGES)]) == STAGES
    for name in ("knn", "linear", "finetune"):
        scores = finished.json(f"metrics/evaluate/{name}.json")
        assert 0 <= scores["accuracy"] <= 1 and 0 <= scores["random_accuracy"] <= 1
    assert "compare codebooks" in (finished.path / "reports/report.html").read_text(), "a limit of the built-in scenes"


def test_a_second_run_does_nothing(finished: Checkout) -> None:
    before = finished.ran()
    finished.python("pipelines.repro")
    assert finished.ran() == before
    assert finished.run("git", "status", "--porcelain") == ""


def test_the_same_inputs_give_the_same_lock_byte_for_byte(finished: Checkout, tmp_path: Path) -> None:
    """From an empty cache in another folder: no out holds a time, a host or a path, and all random draws are seeded."""
    other = Checkout(tmp_path)
    other.python("pipelines.repro")
    assert (other.path / "dvc.lock").read_bytes() == (finished.path / "dvc.lock").read_bytes()


def test_results_load_without_the_workflow(finished: Checkout, tmp_path: Path) -> None:
    """From another folder, by peco and by plain timm."""
    shutil.copytree(finished.path / "artifacts/backbone", tmp_path / "backbone")
    shutil.copytree(finished.path / "artifacts/tokenizer", tmp_path / "tokenizer")
    shutil.copytree(finished.path / "artifacts/classifier", tmp_path / "classifier")
    code = (
        "import torch, timm, peco;"
        "t = peco.load_tokenizer('tokenizer'); assert t.tokenize(torch.rand(1, 3, 32, 32)).shape == (1, 4, 4);"
        "assert peco.load_backbone('backbone')(torch.rand(1, 3, 32, 32)).shape == (1, 32);"
        "m = timm.create_model('local-dir:backbone', pretrained=True, num_classes=7, img_size=48);"
        "assert m(torch.rand(1, 3, 48, 48)).shape == (1, 7);"
        "c = timm.create_model('local-dir:classifier', pretrained=True).eval();"
        "assert c(torch.rand(2, 3, 32, 32)).shape == (2, len(c.pretrained_cfg['label_names']))"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, env={**os.environ, "PYTHONPATH": str(ROOT)})


@pytest.mark.parametrize("model", ["classifier", "segmenter", "detector"])
def test_the_models_of_the_evaluations_predict(finished: Checkout, tmp_path: Path, model: str) -> None:
    for folder in ("perceptual_net", "tokenizer", "backbone", model):
        assert "images seen" in (finished.path / "artifacts" / folder / "README.md").read_text()
    Image.new("RGB", (50, 40), "teal").save(tmp_path / "photo.png")
    folder = finished.path / "artifacts" / model
    assert cli.main(["predict", str(folder), str(tmp_path / "photo.png"), "-o", str(tmp_path / "out")]) == 0
    assert json.loads((tmp_path / "out/predictions.jsonl").read_text())["image"] == str(tmp_path / "photo.png")


def test_a_changed_fine_tuning_rate_runs_fine_tuning_and_report_alone(finished: Checkout) -> None:
    before = len(finished.ran())
    finished.set("evaluate.finetune.optim.lr", 2e-3)
    finished.python("pipelines.repro")
    assert finished.ran()[before:] == ["evaluate@finetune", "report"]
    finished.run("git", "checkout", "-q", "params.yaml", "dvc.lock")
    finished.run(sys.executable, "-m", "dvc", "checkout", "-q")


def test_an_experiment_keeps_the_preset_and_changes_only_what_it_names(finished: Checkout) -> None:
    """`dvc exp run -S` edits params.yaml; it must not recompose it."""
    finished.run(
        sys.executable, "-m", "dvc", "exp", "run", "--temp", "--name", "probe", "-S", "evaluate.knn.temperature=0.1"
    )
    difference = json.loads(finished.run(sys.executable, "-m", "dvc", "params", "diff", "--json", "HEAD", "probe"))
    changed = difference.get("params.yaml", difference)
    assert set(changed) == {"evaluate.knn.temperature"}


def test_a_killed_stage_resumes_and_ends_in_the_same_bytes(finished: Checkout, tmp_path: Path) -> None:
    alone, killed = tmp_path / "alone", tmp_path / "killed"
    for folder in (alone, killed):
        shutil.copytree(finished.path, folder, symlinks=True)
    straight, broken = (_adopt(finished, folder) for folder in (alone, killed))
    for checkout in (straight, broken):
        checkout.set("pretrain.optim.epochs", 60)
    straight.run(sys.executable, "-m", "dvc", "repro", "-q", "pretrain")

    before = broken.ran()
    process = broken.start("pretrain", PECO_CHECKPOINT_STEPS="5")
    _wait_for(lambda: any((killed / ".work").glob("pretrain-*/checkpoint.pt")), process)
    _kill("peco.stages.pretrain", killed)
    assert process.wait(timeout=60) != 0

    output = broken.python("pipelines.repro", "pretrain")
    assert "resumes from step" in output
    assert broken.ran()[len(before) :] == ["pretrain"]
    assert (killed / "dvc.lock").read_bytes() == (alone / "dvc.lock").read_bytes()


def test_a_killed_client_leaves_nothing_in_the_way_of_the_next_one(finished: Checkout, tmp_path: Path) -> None:
    """`kill -9` of make repro's process: DVC and the launcher end with it, and the stage saves its work."""
    folder = tmp_path / "killed"
    shutil.copytree(finished.path, folder, symlinks=True)
    checkout = _adopt(finished, folder)
    checkout.set("pretrain.optim.epochs", 60)
    process = checkout.start("pretrain", PECO_CHECKPOINT_STEPS="5")
    _wait_for(lambda: any((folder / ".work").glob("pretrain-*/checkpoint.pt")), process)
    process.kill()
    assert "resumes from step" in checkout.python("pipelines.repro", "pretrain")
    process.wait()


def test_a_training_that_was_finished_and_not_recorded_is_not_repeated(finished: Checkout, tmp_path: Path) -> None:
    """After a stop while DVC moves results into its cache: DVC would remove them and run the stage again."""
    folder = tmp_path / "copy"
    shutil.copytree(finished.path, folder, symlinks=True)
    checkout = _adopt(finished, folder)
    checkout.set("pretrain.optim.lr", 1e-3)
    backbone = folder / "artifacts/backbone"
    assert "resumes from" not in checkout.python("pipelines.launch", "pretrain")
    first = {file.name: file.read_bytes() for file in backbone.iterdir()}
    shutil.rmtree(backbone)
    assert re.search(r"resumes from step (\d+)/\1\b", checkout.python("pipelines.launch", "pretrain"))
    assert {file.name: file.read_bytes() for file in backbone.iterdir()} == first


def test_ctrl_c_in_stages_of_all_kinds_loses_nothing(finished: Checkout, tmp_path: Path) -> None:
    """After stops in stages of each kind (in a training after a checkpoint), `make repro` ends in the same results.

    A short stage may end before the signal reaches it; that is a stop between stages. `make chaos` stops every stage.
    """
    checkout = Checkout(tmp_path)
    work = tmp_path / ".work"
    interrupted = 0
    for number, stage in enumerate(stage for stage in finished.ran()[: len(STAGES)] if stage in STOPPED):
        if stage in checkout.ran():
            continue
        role = stage.replace("@", "_")
        before = _logs(work, role)
        process = checkout.start(PECO_CHECKPOINT_STEPS="1")

        def reached(role: str = role, trains: bool = stage in TRAINED, before: set[Path] = before) -> bool:
            started = _logs(work, role) > before
            return started and (not trains or any(work.glob(f"{role}-*/**/checkpoint.pt")))

        _wait_for(reached, process, or_its_end=True)
        process.send_signal(signal.SIGINT if number % 2 else signal.SIGTERM)
        process.wait(timeout=90)
        interrupted += stage not in checkout.ran()
        assert not _stages_alive(tmp_path)
    assert interrupted >= 4
    checkout.python("pipelines.repro")
    assert set(checkout.ran()) == STAGES
    assert not list(work.glob("*/finished"))
    assert (tmp_path / "dvc.lock").read_bytes() == (finished.path / "dvc.lock").read_bytes()


def _logs(work: Path, role: str) -> set[Path]:
    """Folders of the runs of a stage so far."""
    return set((work / "logs" / role).glob("*/"))


def _adopt(finished: Checkout, folder: Path) -> Checkout:
    checkout = object.__new__(Checkout)
    checkout.path, checkout.env = (
        folder,
        {**finished.env, "DVC_SITE_CACHE_DIR": str(folder.with_name(folder.name + "-site"))},
    )
    return checkout


def _wait_for(condition: Callable[[], bool], process: subprocess.Popen[bytes], *, or_its_end: bool = False) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        if or_its_end and process.poll() is not None:
            return
        assert process.poll() is None and time.monotonic() < deadline, "ended or hung before the condition held"
        time.sleep(0.02)


def _stages_alive(folder: Path) -> list[int]:
    """Stage processes that run in this folder."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            ours = entry.name.isdigit() and (entry / "cwd").resolve() == folder.resolve()
            if ours and b"peco.stages." in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
        except OSError:
            continue
    return found


def _kill(module: str, folder: Path) -> None:
    """SIGKILL to the stage's own processes in this folder."""
    for number in _stages_alive(folder):
        if module.encode() in Path(f"/proc/{number}/cmdline").read_bytes():
            os.kill(number, signal.SIGKILL)
