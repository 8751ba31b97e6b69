"""`make pipeline-local`: the Kubeflow pipeline with the `smoke` parameters, from a bare git origin into an S3 remote."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from test_chain import STAGES, Checkout

from pipelines import local
from pipelines.workflow.processes import single_instance

pytestmark = pytest.mark.chain

BUCKET = "s3://peco-test/store"


@dataclass
class Run:
    status: int
    output: str

    @property
    def results(self) -> dict[str, str]:
        """The result of each stage, `computed` or `run-cache`, from the table at the end."""
        return dict(re.findall(r"^(\S+) +(computed|run-cache) +[\d.]+ +[\d.]+$", self.output, re.MULTILINE))

    @property
    def computed(self) -> set[str]:
        return {stage for stage, result in self.results.items() if result == "computed"}


class Local:
    """A checkout in which the pipeline runs, with its own folders and a shared origin and remote."""

    def __init__(self, checkout: Checkout, origin: Path, endpoint: str) -> None:
        self.checkout, self.origin, self.path = checkout, origin, checkout.path
        self.env = {
            **{name: value for name, value in checkout.env.items() if not name.startswith(("PECO_", "DVC_"))},
            "PECO_REMOTE_ENDPOINT": endpoint,
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        checkout.env = self.env

    def start(self, name: str) -> subprocess.Popen[str]:
        command = [
            sys.executable,
            "-m",
            "pipelines.local",
            "--git",
            str(self.origin),
            "--remote",
            BUCKET,
            "--name",
            name,
        ]
        return subprocess.Popen(
            command, cwd=self.path, env=self.env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    def run(self, name: str) -> Run:
        process = self.start(name)
        output, _ = process.communicate(timeout=600)
        return Run(process.returncode, output)

    def clone(self, path: Path) -> Local:
        subprocess.run(["git", "clone", "-q", "-b", "main", str(self.origin), str(path)], check=True)
        checkout = object.__new__(Checkout)
        checkout.path, checkout.env = path, self.env
        return Local(checkout, self.origin, self.env["PECO_REMOTE_ENDPOINT"])

    def alive(self) -> list[str]:
        """Living processes that were started for a pipeline in this checkout."""
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                if str(self.path).encode() in (entry / "environ").read_bytes():
                    found.append((entry / "cmdline").read_bytes().replace(b"\0", b" ").decode())
            except OSError:
                continue
        return found


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    address = f"http://{host}:{port}"
    client = boto3.client(
        "s3", endpoint_url=address, region_name="us-east-1", aws_access_key_id="test", aws_secret_access_key="test"
    )
    client.create_bucket(Bucket="peco-test")
    yield address
    server.stop()


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory, endpoint: str) -> tuple[Local, Run]:
    """The first run."""
    folder = tmp_path_factory.mktemp("pipeline")
    (folder / "first").mkdir()
    checkout = Checkout(folder / "first")
    checkout.run("git", "clone", "-q", "--bare", ".", str(folder / "origin.git"))
    local = Local(checkout, folder / "origin.git", endpoint)
    return local, local.run("base")


@pytest.fixture(scope="module")
def second(first: tuple[Local, Run], tmp_path_factory: pytest.TempPathFactory) -> Local:
    """Another clone, with no data, no cache and no workspaces."""
    return first[0].clone(tmp_path_factory.mktemp("second") / "clone")


def test_the_pipeline_computes_every_stage(first: tuple[Local, Run]) -> None:
    local, run = first
    assert run.status == 0, run.output[-4000:]
    assert run.computed == set(run.results) == STAGES
    assert (local.path / ".work/pipeline/report.html").stat().st_size > 10_000
    assert local.checkout.run("git", "status", "--porcelain") == ""
    assert local.alive() == []
    noise = re.search(r"KFP Executor|executor_input| - INFO - |git add|site-packages", run.output)
    assert noise is None, noise


def test_a_second_call_while_one_runs_is_refused(
    first: tuple[Local, Run], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(first[0].path)
    with single_instance("pipeline-local"):
        assert local.main([]) == 2
    assert capsys.readouterr().err == "error: another `make pipeline-local` runs here; wait until it has finished\n"


def test_two_processes_train_and_prefix_their_lines(first: tuple[Local, Run]) -> None:
    assert re.search(r"^\[0\] pretrain ", first[1].output, re.MULTILINE)


def test_the_printed_commands_fetch_the_experiment_into_another_clone(first: tuple[Local, Run], second: Local) -> None:
    commands = [shlex.split(line) for line in first[1].output.splitlines() if line.startswith("  dvc ")]
    assert ["dvc", "exp", "pull"] in [command[:3] for command in commands]
    for command in commands:
        second.checkout.python(*command)
    rows = json.loads(second.checkout.python("dvc", "exp", "show", "--json"))
    (experiment,) = next(row for row in rows if row["name"] == "main")["experiments"]
    assert experiment["name"] == "base"
    changed = json.loads(second.checkout.python("dvc", "exp", "diff", "--json", "HEAD", "base"))
    assert 0 <= changed["metrics"]["scores/finetune.json"]["tuned"]["new"] <= 1
    second.checkout.python("dvc", "exp", "apply", "base")
    assert json.loads(second.checkout.python("dvc", "status", "--json")) == {}
    second.checkout.run("git", "clean", "-fdxq")


def test_after_a_stop_only_what_depends_on_a_change_is_computed(first: tuple[Local, Run], second: Local) -> None:
    """All else comes from the run-cache, in a clone without data or cache."""
    second.checkout.set("evaluate.finetune.optim.lr", 2e-3)
    second.checkout.commit("rate")
    second.checkout.run("git", "push", "-q", str(second.origin), "HEAD:main")
    process = second.start("rate")
    assert process.stdout is not None
    seen = []
    while not (step := re.match("step (annotations|shards)$", line := process.stdout.readline())):
        assert line, "".join(seen)
        seen.append(line)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=90)
    assert process.returncode == 128 + signal.SIGTERM
    assert f"error: {step[1]}: stopped" in output and "the same command resumes" in output
    assert second.alive() == []

    run = second.run("rate")
    assert run.status == 0, run.output[-4000:]
    assert set(run.results) == STAGES
    assert run.computed == {"evaluate@finetune", "report"}


def test_changed_files_are_refused_in_one_line(first: tuple[Local, Run]) -> None:
    local, _ = first
    (local.path / "note.txt").touch()
    try:
        run = local.run("no")
    finally:
        (local.path / "note.txt").unlink()
    assert run.status == 2
    assert run.output == "error: the pipeline runs a commit, and note.txt is changed; commit or stash it first\n"


def test_a_failing_step_ends_the_run(first: tuple[Local, Run]) -> None:
    """The commit is not in the origin."""
    local, _ = first
    local.checkout.run("git", "commit", "-q", "--allow-empty", "-m", "not pushed")
    try:
        run = local.run("no")
    finally:
        local.checkout.run("git", "reset", "-q", "--hard", "HEAD~")
    assert run.status == 1
    assert re.search(
        r"^error: (annotations|shards): commit \w+ is in no branch or tag of .*; push it and retry$",
        run.output,
        re.MULTILINE,
    )
    assert run.output.count("error: ") == 1 and "Traceback" not in run.output
    assert os.listdir(local.path / ".work/pipeline/workspaces") == []
