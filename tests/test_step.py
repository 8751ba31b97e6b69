"""A pipeline step: it fetches a commit and its data, runs one stage in a workspace, and pushes the results."""

from __future__ import annotations

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
PARAMS = {"preset": "smoke", "seed": 0, "n": 1, "k": {"l": 1e-05}, "none": None}
# `make` depends on no other stage, so it receives the parameters of the run.
RUN = """
import json, os, sys
from pathlib import Path
from pipelines.kfp import step
from pipelines.kfp.parameters import Parameters
class Metrics(dict):
    def log_metric(self, name, value): self[name] = value
run, stage, parameters = sys.argv[1], sys.argv[2], Parameters(**json.loads(sys.argv[3]))
step.TERMINATION_LOG = Path("termination")
if stage == "collect":
    metrics = Metrics()
    step.collect(run, metrics=metrics, commit="commit")
    print(json.dumps(metrics))
else:
    step.main(run, stage, parameters=parameters if stage == "make" else None, page_path="page")
"""

Finished = tuple["Project", dict[str, Any], dict[str, Any]]  # and the results of its steps `make` and `use`


def shell(*command: str, cwd: Path) -> str:
    env = {**os.environ, **{f"GIT_{who}_{what}": "t" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}}
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def dvc(*arguments: str, cwd: Path) -> str:
    return shell(sys.executable, "-m", "dvc", *arguments, cwd=cwd)


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

    def start(
        self, stage: str, run: str = "first", env: dict[str, str] | None = None, **given: Any
    ) -> subprocess.Popen[str]:
        """A step as a process, as in a pod; `given` are parameters of the run."""
        parameters = {
            "repository": str(self.origin), "revision": self.revision, "preset": "smoke", "seed": 0, "overrides": "",
            "experiment": "run.1",
        }  # fmt: skip
        self.outputs = self.folder / f"outputs-{time.monotonic_ns()}"
        self.outputs.mkdir()
        (self.outputs / "termination").touch()
        return subprocess.Popen(
            [sys.executable, "-c", RUN, run, stage, json.dumps({**parameters, **given})],
            cwd=self.outputs,
            env={**self.env, **(env or {})},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )

    def run(self, stage: str, run: str = "first", **given: Any) -> dict[str, Any]:
        """The result of a step that succeeds: what it keeps for other steps, its page, and if it was computed."""
        status, output = self.end(self.start(stage, run, **given))
        assert status == 0, output
        outcome = step.Outcome.parse(output.splitlines()[-1])
        assert outcome is not None and outcome.stage == stage
        kept: dict[str, Any] = json.loads((self.folder / "runs" / run / f"{stage}.json").read_text())
        return {**kept, "page": (self.outputs / "page").read_text(), "computed": outcome.computed}

    def reason(self) -> str:
        """The termination message of the last step."""
        return (self.outputs / "termination").read_text()

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
    yield project, make, project.run("use")
    (project.mark / "hold").unlink(missing_ok=True)


def test_a_step_computes_its_stage_and_keeps_its_result_for_the_run(finished: Finished) -> None:
    project, make, use = finished
    assert project.ran()[:2] == ["make", "use"] and make["computed"] and use["computed"]
    assert use["numbers"] == {"n": 1, "of.l": 1e-05}
    assert "<svg" in use["page"] and "of.l" in use["page"] and "none" in use["page"]
    assert [out["path"] for out in make["entry"]["outs"]] == ["made"]


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
    assert project.run("make", "second") == {**make, "computed": False}
    assert project.run("use", "second") == {**use, "computed": False}
    assert project.ran() == before


def test_a_changed_parameter_runs_only_the_stages_that_depend_on_it(finished: Finished) -> None:
    project, make, _ = finished
    before = len(project.ran())
    assert project.run("make", "changed", overrides="k.l=0.5")["entry"] == make["entry"]
    assert project.run("use", "changed")["numbers"] == {"n": 1, "of.l": 0.5}
    assert project.ran()[before:] == ["use"]


def test_a_step_takes_the_inputs_of_its_own_run(finished: Finished, tmp_path: Path) -> None:
    """Also where steps share a cache."""
    project, _, _ = finished
    project.env["PECO_CACHE"] = str(tmp_path / "cache")
    try:
        project.run("make", "other", overrides="n=2")
        assert project.run("use", "other")["numbers"]["n"] == 2
    finally:
        del project.env["PECO_CACHE"]


def test_half_a_record_that_a_killed_step_left_in_the_shared_cache_is_removed(
    finished: Finished, tmp_path: Path
) -> None:
    project, _, _ = finished
    cache = tmp_path / "cache"
    project.env["PECO_CACHE"] = str(cache)
    try:
        first = project.run("make", "whole", overrides="n=7")
        [record] = [path for path in cache.glob("runs/*/*/*") if "echo 7 " in path.read_text()]
        half = record.with_name(".abcdefghijklmnopqrstuv.tmp")
        half.write_bytes(record.read_bytes()[:20])
        os.utime(record, (100, 100))
        os.utime(half, (200, 200))  # DVC would take it for the last record
        empty = cache / "runs/ff/ff"
        empty.mkdir(parents=True)
        os.utime(empty, (100, 100))
        assert project.run("make", "again", overrides="n=7") == {**first, "computed": False}
        assert not half.exists() and not empty.exists()
    finally:
        del project.env["PECO_CACHE"]


def test_a_retry_resumes_a_killed_step(finished: Finished, tmp_path: Path) -> None:
    """In the same workspace, with any files that DVC has left there, after ending the processes that still run in it."""
    project, _, _ = finished
    project.run("make", "killed", overrides="k.l=3")
    before = len(project.ran())
    (project.mark / "hold").touch()
    process = project.start("use", "killed")
    wait_for(lambda: len(project.ran()) > before)
    process.kill()
    process.wait()
    (workspace,) = (path for path in (project.folder / "workspaces").iterdir() if path.is_dir())
    (workspace / "dvc.lock").write_text("schema: '2.0'\nstages:\n  use:\n    cm")
    (workspace / ".dvc/tmp/rwlock").write_text('{"write": {')
    (workspace / "made/n").unlink()
    (workspace / "curves").mkdir()
    retry = project.start("use", "killed")
    wait_for(lambda: len(project.ran()) > before + 1)
    retry.kill()
    retry.wait()
    retry = project.start("use", "killed")
    wait_for(lambda: len(project.ran()) > before + 2)
    (project.mark / "hold").unlink()
    status, output = project.end(retry)
    assert status == 0 and "resumes in" in output, output
    kept = json.loads((project.folder / "runs/killed/use.json").read_text())
    assert kept["numbers"]["of.l"] == 3
    assert project.left() == [] and project.alive() == {}


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("PECO_WORKSPACES", "/proc/none", "error: make: .*/proc/"),
        ("PECO_GRACE_SECONDS", "1m", "error: make: PECO_GRACE_SECONDS: '1m' is not allowed; expected an integer"),
    ],
)
def test_a_wrong_variable_or_a_folder_that_can_not_be_made_is_reported_in_one_line(
    project: Project, variable: str, value: str, message: str
) -> None:
    status, output = project.end(project.start("make", env={variable: value}))
    assert status == 2 and re.search(message, output) and "Traceback" not in output


def test_a_stopped_step_ends_its_stage(
    finished: Finished,
) -> None:
    project, _, _ = finished
    project.run("make", "stopped", overrides="k.l=4")
    before = len(project.ran())
    (project.mark / "hold").touch()
    process = project.start("use", "stopped")
    wait_for(lambda: len(project.ran()) > before)
    process.terminate()
    status, output = project.end(process)
    (project.mark / "hold").unlink()
    assert status == 128 + signal.SIGTERM
    assert output.splitlines()[-1].startswith("error: use: stopped")
    assert project.alive() == {}


def test_a_failed_pull_and_a_failed_push_give_dvcs_reason_and_the_retry_only_pushes(project: Project) -> None:
    remote = project.folder / "other"
    shutil.copytree(project.remote, remote)
    os.rename(remote / "files", remote / "kept")
    shutil.copytree(project.source / ".dvc/cache", project.folder / "cache")
    shared = {"PECO_REMOTE": str(remote), "PECO_CACHE": str(project.folder / "cache")}
    (remote / "files").write_text("no folder")
    status, output = project.end(project.start("make", env={"PECO_REMOTE": str(remote)}))
    reason = re.fullmatch(r"its inputs \(in\.txt\) can't be fetched \((.+)\); fix it and retry", project.reason())
    assert status == 2 and reason and f"ERROR: {reason[1]}\n" in output, output
    status, output = project.end(project.start("make", env=shared))
    pattern = r"finished, but its results can't be pushed \((.+)\); fix it and retry: it only pushes"
    reason = re.fullmatch(pattern, project.reason())
    assert status == 2 and reason and f"ERROR: {reason[1]}\n" in output, output
    (remote / "files").unlink()
    status, output = project.end(project.start("make", env=shared))
    assert status == 0, output
    assert project.ran() == ["make"]
    assert len(list((remote / "files").rglob("*.dir"))) == 1


def test_equal_steps_wait_for_each_other(project: Project) -> None:
    (project.mark / "hold").touch()
    first = project.start("make", "first")
    wait_for(project.ran)
    second = project.start("make", "second")
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
    assert project.run("make")["computed"] is True


@pytest.mark.parametrize(
    ("stage", "given", "message"),
    [
        ("make", {"revision": "0" * 40}, "push it and retry"),
        ("make", {"revision": "main"}, "40 hexadecimal digits"),
        ("make", {"repository": "/nowhere/at/all"}, "check address and credentials"),
        ("make", {"preset": "tiny"}, "preset tiny is not that of commit .* (smoke); commit other parameters"),
        ("make", {"overrides": "k.l='1"}, """overrides: "k.l='1" can't be read; quote as in a shell"""),
        ("make", {"overrides": "nothing.at.all=1"}, "SET=nothing.at.all=1: "),
        ("make", {"run": "a/b"}, "run 'a/b' is not allowed"),
        ("use", {}, "the run's folder was deleted, so submit the run again"),
        ("nothing", {}, "the run's folder was deleted, so submit the run again"),
        ("collect", {}, "the run's folder was deleted, so submit the run again"),
    ],
)
def test_a_wrong_parameter_of_a_step_is_reported_in_one_line(
    template: Project, stage: str, given: dict[str, Any], message: str, tmp_path: Path
) -> None:
    status, output = template.end(
        template.start(stage, env={"PECO_WORKSPACES": str(tmp_path / "workspaces")}, **{"run": "wrong", **given})
    )
    first, *lines = output.splitlines()
    assert status == 2 and first == f"step {stage}"
    pattern = re.escape(message).replace(re.escape(".*"), ".*")
    assert len(lines) == 1 and re.match(f"error: {stage}: .*{pattern}", lines[0]), output
    assert not (tmp_path / "workspaces").exists() or list((tmp_path / "workspaces").iterdir()) == []
    assert lines[0] == f"error: {stage}: {template.reason()}"


def test_a_stage_that_the_commit_lacks_is_reported(finished: Finished) -> None:
    project, _, _ = finished
    status, output = project.end(project.start("nothing"))
    assert (
        status == 2 and output.splitlines()[-1] == "error: nothing: nothing: no such stage; expected one of: make, use"
    )


def test_a_step_whose_run_lacks_the_result_before_it_is_refused(finished: Finished) -> None:
    """As with the pipeline of another commit, which has other edges."""
    project, _, _ = finished
    project.run("make", "lacking")
    (project.folder / "runs/lacking/make.json").unlink()
    status, output = project.end(project.start("use", "lacking"))
    assert status == 2 and "error: use: depends on make at" in output and "of which this run has no result" in output


def test_the_seed_of_the_run_replaces_that_of_the_commit(project: Project) -> None:
    (project.source / "dvc.yaml").write_text(DVC_YAML.replace("params: [n]", "params: [n, seed]"))
    project.commit()
    params = project.run("make", "seeded", seed=7)["entry"]["params"]["params.yaml"]
    assert params == {"n": 1, "seed": 7}


@pytest.mark.parametrize(
    ("status", "lines", "expected", "reason"),
    [
        (75, "error: make: its pods were preempted", 75, "its pods were preempted"),
        # A refusal, before the launcher has a job, doesn't name the stage.
        (2, "error: there is no queue x", 2, "there is no queue x"),
        (1, "error: shown\nerror: make: rank 1 failed\n  error: indented", 2, "rank 1 failed"),
    ],
)
def test_a_step_whose_stage_fails_ends_with_its_reason_and_status(
    project: Project, status: int, lines: str, expected: int, reason: str
) -> None:
    """75: what may pass. The launcher's last error is the pod's termination message, and is kept on the volume."""
    (project.source / "fail.sh").write_text(f"echo '{lines}' >&2; exit {status}")
    (project.source / "dvc.yaml").write_text(DVC_YAML.replace("mkdir made;", "sh fail.sh || exit;"))
    project.commit()
    found, output = project.end(project.start("make"))
    advice = "Retry the run" if expected == 75 else "Fix it and retry"
    assert found == expected
    assert output.splitlines()[-1] == f"error: make: not finished; see the reason above. {advice}: the stage resumes"
    assert project.reason() == reason
    assert (project.folder / "runs/first/make.error").read_text() == f"{reason}\n"


EVALUATION = """\
  evaluate:
    foreach: [bad]
    do:
      cmd: "echo 'error: evaluate@bad: broken'; echo bad >> $MARK/ran; exit 2"
      deps: [made]
      outs: ["metrics/evaluate/${item}.json", "metrics/pictures/${item}"]
      metrics: ["scores/${item}.json"]
  report:
    cmd: cat metrics/evaluate/bad.json > report.txt
    deps: [metrics/evaluate/bad.json, metrics/pictures/bad]
    outs: [report.txt]
"""


def test_a_failed_evaluation_fails_the_run_after_the_others_and_the_report(project: Project) -> None:
    text = DVC_YAML[: DVC_YAML.index("  use:")] + EVALUATION
    (project.source / "dvc.yaml").write_text(text)
    project.commit()
    project.run("make")
    status, output = project.end(project.start("evaluate@bad"))
    assert status == 0, output
    assert output.splitlines()[-1] == "error: evaluate@bad: broken; the run continues without it, and fails at its end"
    assert project.reason() == "broken"
    assert project.run("report")["computed"]
    status, output = project.end(project.start("collect"))
    assert status == 2
    assert output.splitlines()[-1].startswith(
        "error: collect: evaluate@bad failed: broken; the report shows it. Fix it and"
    )
    md5 = json.loads((project.folder / "runs/first/report.json").read_text())["entry"]["outs"][0]["md5"]
    report = (project.remote / "files/md5" / md5[:2] / md5[2:]).read_text()
    assert json.loads(report) == {"failed": "broken"}
    project.run("make", "second")
    project.end(project.start("evaluate@bad", "second"))
    assert project.ran() == ["make", "bad", "bad"]  # the next run tries it again


def test_collected_steps_are_a_dvc_experiment(finished: Finished, tmp_path: Path) -> None:
    project, _, _ = finished

    def collect(run: str = "first") -> tuple[int, str]:
        return project.end(project.start("collect", run))

    status, output = collect()
    assert status == 0, output
    assert json.loads(output.splitlines()[-1]) == {"use.n": 1, "use.of.l": 1e-05}  # neither is one of the known scores
    status, again = collect()  # as a retry after the push
    assert status == 0 and again == output
    project.run("make", "another", overrides="n=5")
    status, other = collect("another")
    assert status == 2 and "use.json: no such file" in other
    project.run("use", "another")
    status, other = collect("another")
    assert status == 2 and "run.1 is already another experiment" in other

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
