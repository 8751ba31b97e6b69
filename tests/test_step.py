"""A pipeline step: it fetches a commit and its data, runs one stage in a workspace, and pushes the results."""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipelines.kfp import step, workspace

ROOT = Path(__file__).parents[1]
# Each stage records that it ran, and waits while there is a file `hold`.
DVC_YAML = """
stages:
  make:
    cmd: echo make >> $MARK/ran; while [ -e $MARK/hold ]; do sleep 0.05; done; mkdir made; cp in.txt made/; echo ${n} > made/n
    deps: [in.txt]
    params: [n]
    outs: [made]
  use:
    cmd: echo use >> $MARK/ran; while [ -e $MARK/hold ]; do sleep 0.05; done; sh use.sh ${k.l}
    deps: [made, use.sh]
    params: [k.l, none]
    outs: [curves]
    metrics: [scores.json]
"""
USE = """
mkdir curves; printf 'step\\tloss\\n0\\t2\\n1\\t1\\n' > curves/loss.tsv
echo "{\\"n\\": $(cat made/n), \\"of\\": {\\"l\\": $1}, \\"name\\": \\"x\\"}" > scores.json
"""
PARAMS = {"n": 1, "k": {"l": 1e-05}, "none": None}
RUN = """
import json, sys
from pipelines.kfp import step
class Metrics(dict):
    def log_metric(self, name, value): self[name] = value
given = json.loads(sys.argv[1])
if "experiment" in given:
    step.collect(**given, commit="commit")
else:
    metrics = Metrics()
    names = ("page", "lock", "parameters", "computed")
    step.main(**given, metrics=metrics, **{name: name for name in names})
    print(json.dumps({"metrics": metrics} | {name: open(name).read() for name in names}))
"""

Finished = tuple["Project", dict[str, Any], dict[str, Any]]  # and the outputs of its steps `make` and `use`


def shell(*command: str, cwd: Path) -> str:
    env = {**os.environ, **{f"GIT_{who}_{what}": "t" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}}
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def dvc(*arguments: str, cwd: Path) -> str:
    return shell(sys.executable, "-m", "dvc", *arguments, cwd=cwd)


def encoded(params: dict[str, Any]) -> str:
    return base64.b64encode(yaml.safe_dump(params).encode()).decode()


class Project:
    """A repository, its bare origin, a DVC remote that holds its input, and the shared folders of steps."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.source, self.origin = folder, folder / "source", folder / "origin.git"
        self.mark, self.remote = folder / "mark", folder / "remote"
        self.env = {
            **{name: value for name, value in os.environ.items() if not name.startswith("PECO_")},
            "PYTHONPATH": str(ROOT),
            "HOME": str(folder),
            "MARK": str(self.mark),
            "DVC_SITE_CACHE_DIR": str(folder / "site"),
            "PECO_WORKSPACES": str(folder / "workspaces"),
            "PECO_REMOTE": str(self.remote),
        }

    def create(self) -> Project:
        for path in (self.source, self.mark):
            path.mkdir()
        shell("git", "init", "-q", "-b", "main", cwd=self.source)
        dvc("init", "-q", cwd=self.source)
        (self.source / "dvc.yaml").write_text(DVC_YAML)
        (self.source / "use.sh").write_text(USE)
        (self.source / "params.yaml").write_text(yaml.safe_dump(PARAMS))
        (self.source / "in.txt").write_text("hello\n")
        dvc("add", "-q", "in.txt", cwd=self.source)
        (self.source / ".gitignore").write_text("/in.txt\n/made\n/curves\n/scores.json\n")
        dvc("remote", "add", "-q", "--local", "base", str(self.remote), cwd=self.source)
        dvc("push", "-q", "-r", "base", cwd=self.source)
        shell("git", "init", "-q", "--bare", str(self.origin), cwd=self.source)
        self.commit()
        return self

    def commit(self) -> None:
        shell("git", "add", "-A", cwd=self.source)
        shell("git", "commit", "-qm", "c", cwd=self.source)
        shell("git", "push", "-q", str(self.origin), "HEAD:main", cwd=self.source)

    @property
    def revision(self) -> str:
        return shell("git", "rev-parse", "HEAD", cwd=self.source).strip()

    def start(self, given: dict[str, Any], **env: str) -> subprocess.Popen[str]:
        """A step as a process, as in a pod."""
        common = {"repository": str(self.origin), "revision": self.revision, "params": encoded(PARAMS), "locks": []}
        outputs = self.folder / f"outputs-{time.monotonic_ns()}"
        outputs.mkdir()
        return subprocess.Popen(
            [sys.executable, "-c", RUN, json.dumps({**common, **given})],
            cwd=outputs,
            env={**self.env, **env},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )

    def run(self, stage: str, **given: Any) -> dict[str, Any]:
        """The outputs of a step that succeeds."""
        status, output = self.end(self.start({"stage": stage, **given}))
        assert status == 0, output
        found: dict[str, Any] = json.loads(output.splitlines()[-1])
        outcome = step.Outcome.parse(output.splitlines()[-2])
        assert outcome is not None and outcome.stage == stage
        assert outcome.computed == json.loads(found["computed"])
        return found

    def end(self, process: subprocess.Popen[str]) -> tuple[int, str]:
        output, _ = process.communicate(timeout=90)
        return process.returncode, output

    def ran(self) -> list[str]:
        """The commands of stages that have run so far."""
        ran = self.mark / "ran"
        return ran.read_text().split() if ran.exists() else []

    def left(self) -> list[str]:
        """Names of the files and folders in the folder of workspaces."""
        return sorted(path.name for path in (self.folder / "workspaces").iterdir())

    def alive(self) -> dict[int, str]:
        """Command lines of this project's living processes, by process id."""
        found = {}
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                if f"MARK={self.mark}".encode() in (entry / "environ").read_bytes().split(b"\0"):
                    found[int(entry.name)] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:
                continue
        return found


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return Project(tmp_path_factory.mktemp("template")).create()


@pytest.fixture
def project(template: Project, tmp_path: Path) -> Iterator[Project]:
    """A project in which nothing has run."""
    shutil.copytree(template.folder, tmp_path / "p", symlinks=True)
    project = Project(tmp_path / "p")
    yield project
    (project.mark / "hold").unlink(missing_ok=True)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, template: Project) -> Iterator[Finished]:
    """A project in which both steps have run once, and their outputs."""
    folder = tmp_path_factory.mktemp("finished") / "p"
    shutil.copytree(template.folder, folder, symlinks=True)
    project = Project(folder)
    make = project.run("make")
    yield project, make, project.run("use", locks=[make["lock"]])
    (project.mark / "hold").unlink(missing_ok=True)


def test_a_step_computes_its_stage_and_passes_on_its_outputs(
    finished: Finished,
) -> None:
    project, make, use = finished
    assert project.ran()[:2] == ["make", "use"]
    assert use["metrics"] == {"n": 1, "of.l": 1e-05}
    assert json.loads(use["parameters"]) == {"k.l": 1e-05, "none": "null"}
    assert "<svg" in use["page"] and "of.l" in use["page"]
    (outs,) = (entry["outs"] for entry in step.decode_entries([make["lock"]]).values())
    assert [out["path"] for out in outs] == ["made"]


def test_a_finished_step_leaves_only_what_it_pushed(
    finished: Finished,
) -> None:
    project, _, _ = finished
    assert project.left() == []
    assert not any((project.folder / "work").iterdir())


def test_a_stage_that_was_computed_before_is_taken_from_the_run_cache(
    finished: Finished,
) -> None:
    """Each workspace has its own cache here, so results are known through the remote alone."""
    project, make, use = finished
    before = project.ran()
    again = project.run("use", locks=[make["lock"]])
    assert project.ran() == before
    assert again == {**use, "computed": "false"}


def test_a_changed_parameter_runs_only_the_stages_that_depend_on_it(
    finished: Finished,
) -> None:
    project, make, _ = finished
    before = len(project.ran())
    params = encoded({**PARAMS, "k": {"l": 0.5}})
    assert project.run("make", params=params)["lock"] == make["lock"]
    assert project.run("use", params=params, locks=[make["lock"]])["metrics"] == {"n": 1, "of.l": 0.5}
    assert project.ran()[before:] == ["use"]


def test_a_step_takes_the_inputs_that_its_locks_name(finished: Finished, tmp_path: Path) -> None:
    """Also where steps share a cache."""
    project, _, _ = finished
    project.env["PECO_CACHE"] = str(tmp_path / "cache")
    try:
        other = project.run("make", params=encoded({**PARAMS, "n": 2}))
        assert project.run("use", locks=[other["lock"]])["metrics"]["n"] == 2
    finally:
        del project.env["PECO_CACHE"]


def test_a_retry_resumes_a_killed_step(finished: Finished, tmp_path: Path) -> None:
    """In the same workspace, with any files that DVC has left there, after ending the processes that still run in it."""
    project, make, _ = finished
    before = len(project.ran())
    given = {"stage": "use", "locks": [make["lock"]], "params": encoded({**PARAMS, "k": {"l": 3}})}
    (project.mark / "hold").touch()
    process = project.start(given)
    wait_for(lambda: len(project.ran()) > before)
    process.kill()
    process.wait()
    (orphan,) = (pid for pid, command in project.alive().items() if "dvc repro" in command)
    (workspace,) = (path for path in (project.folder / "workspaces").iterdir() if path.is_dir())
    (workspace / "dvc.lock").write_text("schema: '2.0'\nstages:\n  use:\n    cm")
    (workspace / ".dvc/tmp/rwlock").write_text('{"write": {')
    (workspace / "made/n").unlink()
    (workspace / "curves").mkdir()
    retry = project.start(given)
    wait_for(lambda: len(project.ran()) > before + 1)
    assert orphan not in project.alive()
    retry.kill()
    retry.wait()
    retry = project.start(given)
    wait_for(lambda: len(project.ran()) > before + 2)
    (project.mark / "hold").unlink()
    status, output = project.end(retry)
    assert status == 0 and "resumes in" in output, output
    assert '"of.l": 3' in output
    assert project.left() == [] and project.alive() == {}


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("PECO_WORKSPACES", "/proc/none", "error: make: .*/proc/none"),
        ("PECO_GRACE_SECONDS", "1m", "error: make: PECO_GRACE_SECONDS: '1m' is not allowed; expected an integer"),
    ],
)
def test_a_wrong_variable_or_a_folder_that_can_not_be_made_is_reported_in_one_line(
    project: Project, variable: str, value: str, message: str
) -> None:
    status, output = project.end(project.start({"stage": "make"}, **{variable: value}))
    assert status == 2 and re.search(message, output) and "Traceback" not in output


def test_a_stopped_step_ends_its_stage(
    finished: Finished,
) -> None:
    project, make, _ = finished
    before = len(project.ran())
    (project.mark / "hold").touch()
    process = project.start({"stage": "use", "locks": [make["lock"]], "params": encoded({**PARAMS, "k": {"l": 4}})})
    wait_for(lambda: len(project.ran()) > before)
    process.terminate()
    status, output = project.end(process)
    (project.mark / "hold").unlink()
    assert status == 128 + signal.SIGTERM
    assert output.splitlines()[-1].startswith("error: use: stopped")
    assert project.alive() == {}


def test_after_a_failed_push_the_retry_only_pushes(project: Project) -> None:
    given = {"stage": "make"}
    remote = project.folder / "other"
    shutil.copytree(project.remote, remote)
    os.rename(remote / "files", remote / "kept")
    shutil.copytree(project.source / ".dvc/cache", project.folder / "cache")
    shared = {"PECO_REMOTE": str(remote), "PECO_CACHE": str(project.folder / "cache")}
    (remote / "files").write_text("no folder")
    status, output = project.end(project.start(given, **shared))
    assert status == 2 and "error: make: finished, but its results can't be pushed" in output, output
    (remote / "files").unlink()
    status, output = project.end(project.start(given, **shared))
    assert status == 0, output
    assert project.ran() == ["make"]
    assert len(list((remote / "files").rglob("*.dir"))) == 1


def test_equal_steps_wait_for_each_other(project: Project) -> None:
    (project.mark / "hold").touch()
    first = project.start({"stage": "make"})
    wait_for(project.ran)
    second = project.start({"stage": "make"})
    assert second.stdout is not None
    while "waiting for it to finish" not in (line := second.stdout.readline()):
        assert line
    (project.mark / "hold").unlink()
    assert "make: computed in" in project.end(first)[1]
    assert "make: taken from the run-cache" in project.end(second)[1]
    assert project.ran() == ["make"]


def test_from_a_server_that_serves_no_commit_by_its_hash_all_branches_are_fetched(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Git's older protocol has such servers."""
    old = project.revision
    (project.source / "more").touch()
    project.commit()
    for name, value in {"COUNT": "1", "KEY_0": "protocol.version", "VALUE_0": "0"}.items():
        monkeypatch.setenv(f"GIT_CONFIG_{name}", value)
    (tmp_path / "there").mkdir()
    workspace.checkout(project.origin.as_uri(), old, tmp_path / "there")
    assert shell("git", "rev-parse", "HEAD", cwd=tmp_path / "there").strip() == old
    assert not (tmp_path / "there/more").exists()


def test_results_in_dvc_lock_that_nobody_pushed_are_computed(project: Project) -> None:
    """A dvc.lock that was committed on a machine that did not push its data."""
    subprocess.run(
        [sys.executable, "-m", "dvc", "repro", "-q", "make"], cwd=project.source, env=project.env, check=True
    )
    project.commit()
    (project.mark / "ran").unlink()
    assert project.run("make")["computed"] == "true"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"revision": "0" * 40}, "push it and retry"),
        ({"revision": "main"}, "40 hexadecimal digits"),
        ({"repository": "/nowhere/at/all"}, "check address and credentials"),
        ({"params": "no base64"}, "submit the run again"),
        ({"params": base64.b64encode(b"just a text").decode()}, "submit the run again"),
        ({"locks": ["bm8gbG9jaw=="]}, "submit the run again"),
        ({"stage": "use"}, "compile the pipeline at that commit"),
        ({"stage": "nothing"}, "expected one of: make, use"),
        ({"experiment": "a/b"}, "use letters"),
    ],
)
def test_a_wrong_parameter_of_a_step_is_reported_in_one_line(
    template: Project, given: dict[str, Any], message: str, tmp_path: Path
) -> None:
    if "experiment" not in given:
        given = {"stage": "make", **given}
    status, output = template.end(template.start(given, PECO_WORKSPACES=str(tmp_path)))
    first, *lines = output.splitlines()
    assert status == 2 and first.startswith("step ")
    assert len(lines) == 1 and lines[0].startswith("error: ") and message in lines[0]
    assert list(tmp_path.iterdir()) == []


def test_the_error_names_a_stage_that_fails(project: Project) -> None:
    (project.source / "dvc.yaml").write_text(DVC_YAML.replace("mkdir made;", "exit 3;"))
    project.commit()
    status, output = project.end(project.start({"stage": "make"}))
    assert status == 2
    assert output.splitlines()[-1].startswith("error: make: not finished")


def test_collected_steps_are_a_dvc_experiment(finished: Finished, tmp_path: Path) -> None:
    project, make, use = finished
    locks = [use["lock"], make["lock"]]

    def collect(**given: Any) -> tuple[int, str]:
        return project.end(project.start({"experiment": "run.1", "locks": locks, **given}))

    status, output = collect()
    assert status == 0, output
    status, again = collect()  # as a retry after the push
    assert status == 0 and again == output
    status, other = collect(params=encoded({**PARAMS, "n": 5}))
    assert status == 2 and "run.1 is already another experiment" in other
    status, other = collect(locks=locks[:1])
    assert status == 2 and "make" in other

    clone = tmp_path / "clone"
    shell("git", "clone", "-q", "-b", "main", str(project.origin), str(clone), cwd=tmp_path)
    dvc("remote", "add", "--local", "-q", "r", str(project.remote), cwd=clone)
    dvc("exp", "pull", "-r", "r", str(project.origin), "run.1", cwd=clone)
    baseline = next(row for row in json.loads(dvc("exp", "show", "--json", cwd=clone)) if row["name"] == "main")
    assert baseline["experiments"][0]["name"] == "run.1"
    changed = json.loads(dvc("exp", "diff", "--json", "HEAD", "run.1", cwd=clone))
    assert changed["metrics"]["scores.json"]["of.l"]["new"] == 1e-05
    dvc("exp", "apply", "run.1", cwd=clone)
    dvc("pull", "-q", "-r", "r", cwd=clone)
    assert json.loads(dvc("status", "--json", cwd=clone)) == {}
