"""Run the Kubeflow pipeline on this machine (`make pipeline-local`) with kfp's local runner, one step after the other.

    python -m pipelines.local --git ADDRESS --remote DIRECTORY-OR-URL --name EXPERIMENT

It runs the commit that is checked out, from a git repository into a DVC remote, by default both below `.work/pipeline`. Ctrl-C or
SIGTERM ends everything that it has started; finished work is kept, and a second call resumes. Variables: those of the launcher
(PECO_NPROC is 2 unless set, and the processes share the machine's cores) and of pipelines/kfp/workspace.py.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import io
import os
import re
import shlex
import shutil
import signal
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

import psutil  # type: ignore[import-untyped]

from peco.core.errors import PecoError
from peco.core.params import load_params
from peco.core.stopping import StopSignals
from pipelines.kfp import step, workspace
from pipelines.kfp.parameters import Parameters
from pipelines.kfp.step import Outcome
from pipelines.workflow import environment, stage_resources, variables
from pipelines.workflow.git import git, head, require_top, without_secrets
from pipelines.workflow.graph import Graph, load_graph
from pipelines.workflow.processes import cores, single_instance

BASE = Path(".work/pipeline")
ORIGIN, REMOTE, REPORT, LOG = BASE / "origin.git", BASE / "remote", BASE / "report.html", BASE / "kfp.log"
PROCESSES = 2  # of a training stage


def main(argv: Sequence[str] | None = None) -> int:
    """Run the pipeline of the repository in the current folder and return the exit status, 128 + the signal after a stop."""
    parser = argparse.ArgumentParser(prog="python -m pipelines.local", description="Run the pipeline on this machine.")
    parser.add_argument(
        "--git", default="", help=f"git repository that holds HEAD (default: {ORIGIN}, created from this one)"
    )
    parser.add_argument("--remote", default="", help=f"DVC remote (default: ${environment.REMOTE.name} or {REMOTE})")
    parser.add_argument("--name", default="", help="name of the experiment (default: local-COMMIT)")
    arguments = parser.parse_args(argv)
    stop = StopSignals(_forward_stop)
    try:
        variables.require_known()
        with stop, single_instance("pipeline-local"):
            status = _run(arguments.git, arguments.remote, arguments.name)
    except PecoError as error:
        status = 2
        if stop.first is None:
            print(f"error: {error}", file=sys.stderr)
    if stop.first:
        status = stop.status
    if status not in (0, 2):
        outcome = "Not finished" if status == 1 else "Stopped"
        print(f"\n{outcome}. Finished work is kept, and the same command resumes.", file=sys.stderr)
    return status


def _run(repository: str, remote: str, name: str) -> int:
    graph, root = load_graph(), Path.cwd()
    revision = _clean_head(root)
    name = name or f"local-{revision[:7]}"
    step.check_name(name)
    BASE.mkdir(parents=True, exist_ok=True)
    repository = _absolute(repository) if repository else _own_origin(root, revision)
    remote = _absolute(remote or environment.REMOTE.text() or str(REMOTE))
    begun = time.monotonic()
    screen = _Screen(sys.stdout)
    params = load_params()
    parameters = Parameters(repository, revision, params.preset, params.seed, "", name)
    succeeded = _run_pipeline(graph, screen, remote, parameters)
    if screen.outcomes:
        print(f"\n{'stage':<20} {'result':<12} {'seconds':>8} {'overhead':>9}")
    for outcome in screen.outcomes:
        result = "computed" if outcome.computed else "run-cache"
        print(f"{outcome.stage:<20} {result:<12} {outcome.seconds:>8.1f} {outcome.before + outcome.after:>9.1f}")
    print(f"{'total':<20} {'':<12} {time.monotonic() - begun:>8.1f}")
    _keep_report()
    if not succeeded:
        return 1
    print("\nTo fetch the experiment:")
    for command in _commands(repository, remote, name):
        print(f"  {shlex.join(command)}")
    return 0


def _clean_head(root: Path) -> str:
    """The commit that is checked out.

    Raises:
        PecoError: there is no commit, the project isn't at the top of its repository, or the files differ from the commit.
    """
    revision = head()
    require_top()
    if changed := git("status", "--porcelain", cwd=root).splitlines():
        raise PecoError(f"the pipeline runs a commit, and {changed[0][3:]} is changed; commit or stash it first")
    return revision


def _own_origin(root: Path, revision: str) -> str:
    """A bare repository next to the workspaces that holds the commit."""
    origin = ORIGIN.absolute()
    if not origin.exists():
        git("init", "--quiet", "--bare", str(origin), cwd=root)
        git("config", "receive.shallowUpdate", "true", cwd=origin)
    git("push", "--quiet", "--force", str(origin), f"{revision}:refs/heads/main", cwd=root)
    return str(origin)


def _absolute(address: str) -> str:
    """The absolute path of a folder, since steps run in other folders; any other address unchanged."""
    return address if re.match(r"[\w+.-]+(://|@|:)", address) else str(Path(address).expanduser().absolute())


def _run_pipeline(graph: Graph, screen: _Screen, remote: str, parameters: Parameters) -> bool:
    """Run all steps and return True if they succeeded."""
    warnings.filterwarnings("ignore", module=r"kfp\.")
    from kfp import local

    from pipelines.kfp.compile import build
    from pipelines.kfp.target import Target

    configured = Target.from_env(os.environ)
    variable = stage_resources.variable("processes")
    processes = configured.settings.get(variable, str(PROCESSES))
    threads = str(max(1, cores() // max(1, int(processes)))) if processes.isdecimal() else "1"
    target = dataclasses.replace(
        configured,
        image="python",
        scheduler="local_cwd",
        volume_claim="",
        workspaces=_absolute(configured.workspaces or str(BASE / "workspaces")),
        cache=_absolute(configured.cache or str(BASE / "cache")),
        remote=remote,
        settings={variable: processes, stage_resources.variable("threads"): threads, **configured.settings},
    )
    # kfp leaves a folder there for each step.
    temporary = BASE / "tmp"
    outputs = BASE / "outputs"
    # Each call is a run of its own, which takes what an earlier one has finished from the run-cache.
    for folder in (temporary, outputs, BASE / "runs"):
        shutil.rmtree(folder, ignore_errors=True)
    temporary.mkdir()
    os.environ["TMPDIR"] = str(temporary.absolute())
    try:
        with LOG.open("w", encoding="utf-8") as screen.log, contextlib.redirect_stdout(screen):
            local.init(local.SubprocessRunner(use_venv=False), pipeline_root=str(outputs))
            build(graph, target)(**dataclasses.asdict(parameters))
    except RuntimeError as error:  # a step failed and has printed why, unless kfp itself failed
        if not screen.shown:
            raise PecoError(f"kfp's local runner failed: {error}; its log is in {LOG}") from None
        return False
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return True


def _keep_report() -> None:
    """Copy the page of the stage `report` to REPORT."""
    for page in (BASE / "outputs").glob("*/report/page"):
        shutil.copyfile(page, REPORT)
        print(f"\nThe report is in {REPORT}")


def _commands(repository: str, remote: str, name: str) -> list[list[str]]:
    endpoint = environment.REMOTE_ENDPOINT.text()
    known = workspace.REMOTE
    return [
        ["dvc", "remote", "add", "--local", "--force", known, remote],
        *([["dvc", "remote", "modify", "--local", known, "endpointurl", endpoint]] if endpoint else []),
        ["dvc", "exp", "pull", "--remote", known, without_secrets(repository), name],
        ["dvc", "exp", "show", "--only-changed", "--drop", ".*/"],
        ["dvc", "exp", "diff", "HEAD", name],
    ]


def _forward_stop(_: signal.Signals) -> None:
    """Forward a stop to the running step; between steps end the run."""
    # kfp's runner knows no stop signals: it reads until the step has ended, and treats that as a failure. Processes of a step in
    # another process group are stopped by the step.
    running = False
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
            if os.getpgid(child.pid) == os.getpgrp():
                child.send_signal(signal.SIGTERM)
                running = True
    if not running:
        raise PecoError("stopped")


class _Screen(io.TextIOBase):
    """Replaces stdout while kfp runs: shows the lines of steps, and writes those of kfp and its executor to a log file."""

    def __init__(self, terminal: TextIO) -> None:
        self.terminal = terminal
        self.log: TextIO = terminal
        self.outcomes: list[Outcome] = []
        self.shown = 0  # lines of steps
        self._rest = ""
        self._in_step = False
        # In the executor's listing of a step's input.
        self._in_input = False

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            if self._is_of_step(line):
                self._show(line[4:])  # kfp indents the lines of steps
            else:
                self.log.write(line + "\n")
        return len(text)

    def _is_of_step(self, line: str) -> bool:
        if re.match(r"\d\d:\d\d:\d\d\.\d+ - ", line):
            self._in_step = line.endswith("Streamed logs:")
            return False
        if line.startswith("    [KFP Executor"):
            self._in_input = line.endswith("Got executor_input:")
            return False
        if self._in_input:
            self._in_input = line.rstrip() != "    }"
            return False
        return self._in_step and line.startswith("    ") and bool(line.strip())

    def _show(self, line: str) -> None:
        self.shown += 1
        if outcome := Outcome.parse(line):
            self.outcomes.append(outcome)
        self.terminal.write(line + "\n")
        self.terminal.flush()


if __name__ == "__main__":
    sys.exit(main())
