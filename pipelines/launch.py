"""Run one stage: `python -m pipelines.launch STAGE`, the command of every stage in dvc.yaml.

The stage runs as a TorchX component: here on TorchX's local scheduler, one process plainly, several through torchrun, or as a
job on a cluster (pipelines/cluster/job.py). Its lines appear as they are written, a stop is passed on, its status is returned: 0,
2 for an error that the user can fix, 128 + the signal for a stop, 1 for the rest.

Environment:
    PECO_NPROC, PECO_NODES: processes on a node and nodes of a stage that trains (several nodes are simulated on this machine)
    PECO_THREADS, PECO_WORKERS: threads of a process, data loading processes beside it (pipelines/resources.py has the others)
    PECO_GRACE_SECONDS: how long a stopped stage may take to save its work (60)
    PECO_WORK: where working files, times and the logs of a stage's last five runs are kept (.work of the repository)
    PECO_SCHEDULER: local_cwd (this machine), kubernetes or slurm
"""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from torchx.runner import Runner
from torchx.schedulers.local_scheduler import CWDImageProvider, LocalScheduler
from torchx.specs import AppDef, macros

from peco import config, workfiles
from peco.errors import PecoError
from peco.resources import Resources
from pipelines import components, resources
from pipelines.graph import Stage, load_graph
from pipelines.logs import Screen, Tail, drop_old
from pipelines.processes import STOP_SIGNALS, handling, stop_with_parent

POLL_SECONDS = 0.1
# One Ctrl-C can arrive twice: from the terminal and from a parent that passes it on.
SAME_STOP_SECONDS = 1.0
RANKLESS_SECONDS = 10.0


def main(argv: Sequence[str] | None = None) -> int:
    """Launch the stage named on the command line and return its exit status."""
    arguments = sys.argv[1:] if argv is None else argv
    if len(arguments) != 1:
        print("usage: python -m pipelines.launch STAGE", file=sys.stderr)
        return 2
    try:
        return launch(arguments[0])
    except PecoError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nobody reads on; nothing is left to flush
        return 1


def launch(name: str) -> int:
    """Run the stage `name` of the repository in the current directory and return its exit status.

    Call it from the main thread: it handles the signals until the stage has ended.

    Raises:
        PecoError: the stage or a parameter is wrong; nothing was started.
    """
    config.load("params.yaml")
    _share_work_folder()
    stage = load_graph()[name]
    component: Callable[..., AppDef] | None = getattr(components, stage.role, None)
    if component is None:
        raise PecoError(f"{name}: pipelines/components.py has no component {stage.role}; add one")
    single = "j" not in inspect.signature(component).parameters
    screen = Screen()
    started = time.monotonic()
    if os.environ.get("PECO_SCHEDULER") in (None, "", "local_cwd"):
        status = _launch_here(stage, component, screen, single=single)
    else:
        from pipelines.cluster import job

        status = job.run(stage, component, resources.resolve(stage, os.environ, single=single), screen)
    if status == 0:
        seconds = time.monotonic() - started
        print(f"{name}: {seconds:.1f} s", flush=True)
        with contextlib.suppress(OSError), (workfiles.root() / "times.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps({"stage": name, "seconds": round(seconds, 3)}) + "\n")
    return status


def _share_work_folder() -> None:
    """Keep an experiment's working files in its repository, so that it resumes: DVC runs it in a folder that is gone afterwards."""
    for parent in Path.cwd().parents:
        if parent.parts[-3:] == (".dvc", "tmp", "exps"):
            os.environ["PECO_WORK"] = str(parent.parents[2] / workfiles.root())


def _launch_here(stage: Stage, component: Callable[..., AppDef], screen: Screen, *, single: bool) -> int:
    given = here(stage, os.environ, single=single)
    logs = workfiles.root() / "logs" / stage.role
    drop_old(logs)
    workfiles.remove_finished(keep=stage.role)  # DVC starts a stage when it has recorded the one before
    several: dict[str, Any] = {} if single else {"j": f"{given.nodes}x{given.processes}", "port": _free_port()}
    env = {
        "PYTHONPATH": os.pathsep.join(filter(None, (os.getcwd(), os.environ.get("PYTHONPATH")))),
        "PECO_PROGRESS": "bar" if screen.bar else "plain",
        # Several processes write into files of their own, so that their lines do not mix.
        "PET_REDIRECTS": "3",
        "PET_LOG_DIR": str(logs.absolute() / macros.app_id / macros.replica_id),
        "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": str(round(_grace())),
    }
    app = component(threads=given.threads, workers=given.workers, env=env, **several)
    return _Job(stage, app, given, logs, screen).run()


def here(stage: Stage, env: Mapping[str, str], *, single: bool) -> Resources:
    """What the stage gets on this machine: zeros become what the machine has; several nodes are only simulated, by PECO_NODES.

    Raises:
        PecoError: a value is wrong.
    """
    given = resources.resolve(stage, env, single=single)
    nodes = given.nodes if any(env.get(name) for name in resources.variables("nodes", stage)) else 1
    processes = given.processes or gpus(env) or 1
    threads = given.threads or max(1, _cores() // (nodes * processes))
    return dataclasses.replace(given, nodes=nodes, processes=processes, threads=threads)


def gpus(env: Mapping[str, str]) -> int:
    """How many GPUs a stage can see, found without importing torch."""
    if (visible := env.get("CUDA_VISIBLE_DEVICES")) is not None:
        return len([device for device in visible.split(",") if device.strip() not in ("", "-1")])
    if shutil.which("nvidia-smi") is None:
        return 0
    listing = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
    return sum(line.startswith("GPU ") for line in listing.stdout.splitlines()) if listing.returncode == 0 else 0


def _grace() -> float:
    return float(resources.whole_number(os.environ, "PECO_GRACE_SECONDS", 60))


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return int(probe.getsockname()[1])


class _Scheduler(LocalScheduler):  # type: ignore[misc]
    """TorchX's local scheduler; its processes are known, find this Python first, and stop when the launcher dies."""

    def __init__(self) -> None:
        before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
        super().__init__("", CWDImageProvider, extra_paths=[str(Path(sys.executable).parent)])
        for number, handler in before.items():
            signal.signal(number, handler)  # the scheduler's own raise in the midst of things and kill after 10 s
        self.processes: list[subprocess.Popen[bytes]] = []

    def run_local_job(
        self, args: list[str], env: dict[str, str], stdout: Any, stderr: Any, cwd: str | None = None
    ) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            args, env=env, stdout=stdout, stderr=stderr, cwd=cwd, start_new_session=True, preexec_fn=stop_with_parent
        )
        self.processes.append(process)
        return process


class _Job:
    """One run of a stage, from its start to the moment when no process of it is left."""

    def __init__(self, stage: Stage, app: AppDef, given: Resources, logs: Path, screen: Screen) -> None:
        self.stage, self.app, self.given, self.logs, self.screen = stage, app, given, logs, screen
        self.several = given.nodes * given.processes > 1
        self.scheduler = _Scheduler()
        self.handle = ""
        self.stopped: signal.Signals | None = None  # the first signal that asked for an end
        self.stopped_at = 0.0
        self.kill_at = float("inf")
        self.tails: dict[Path, Tail] = {}

    def run(self) -> int:
        runner = Runner("peco", {"local_cwd": lambda *_, **__: self.scheduler})
        with handling(self._on_signal, even_ignored=(signal.SIGINT, signal.SIGTERM)), runner:
            try:
                self._start(runner)
                self._follow()
                return self._status()
            except BaseException:
                self._stop()
                self._kill(patience=_grace())
                raise
            finally:
                self._kill(patience=2.0)
                self.screen.close()

    def _start(self, runner: Runner) -> None:
        try:
            request = runner.dryrun(self.app, "local_cwd", {"log_dir": str(self.logs)})
            self.folder = Path(request.request.role_log_dirs[self.app.roles[0].name][0]).parent
            self.elastic = self.logs.absolute() / request.request.app_id
            self.handle = runner.schedule(request)
        except OSError as error:
            raise PecoError(f"{self.stage.name}: can't be started: {error}") from None
        if self.stopped:
            self._stop()

    def _on_signal(self, number: int, _: FrameType | None) -> None:
        now = time.monotonic()
        if self.stopped is None:
            self.stopped, self.stopped_at = signal.Signals(number), now
            self._stop()
        elif now - self.stopped_at > SAME_STOP_SECONDS:
            self.kill_at = now

    def _stop(self) -> None:
        """Ask for an end; torchrun passes it on to its ranks and allows them as long to end."""
        self.kill_at = time.monotonic() + _grace() + 5 * POLL_SECONDS
        for process in self.scheduler.processes:
            if process.poll() is None:
                process.terminate()

    def _follow(self) -> None:
        """Show the job's lines until all its processes have ended."""
        told = False
        running = True
        while running:
            codes = [process.poll() for process in self.scheduler.processes]
            running = None in codes
            self._show(last=not running)
            if self.stopped and running and not told:
                self.screen.note(
                    f"{self.stage.name}: stopping, and saving what it has; a second signal ends it at once"
                )
                told = True
            if self.stopped and self.several and not self._ranks():
                # Rarely, a signal makes torchrun lose track of its ranks, and it waits on after they have ended.
                self.kill_at = min(self.kill_at, time.monotonic() + RANKLESS_SECONDS)
            if running and any(codes) and self.kill_at == float("inf"):
                self._stop()  # one simulated node failed, the others wait for it in vain
            if running and time.monotonic() >= self.kill_at:
                self._kill(patience=0)
            elif running:
                time.sleep(POLL_SECONDS)

    def _show(self, *, last: bool) -> None:
        for path, rank in self._files():
            for name in ("stdout.log", "stderr.log"):
                if path / name not in self.tails:
                    self.tails[path / name] = Tail(path / name, error=name == "stderr.log", rank=rank)
        self.screen.show([line for tail in self.tails.values() for line in tail.read(last=last)])

    def _files(self) -> Iterator[tuple[Path, str | None]]:
        """Folders with a process's stdout.log and stderr.log, and its label; torchrun's own output is not shown."""
        if not self.several:
            yield self.folder / "0", None
            return
        for path in sorted(self.elastic.glob("*/*/attempt_0/*/")):
            node = path.relative_to(self.elastic).parts[0]
            yield path, path.name if self.given.nodes == 1 else f"{node}.{path.name}"

    def _ranks(self) -> set[int]:
        """Living processes of the job below torchrun."""
        return set(processes_of(self.handle)) - {process.pid for process in self.scheduler.processes}

    def _status(self) -> int:
        if self.stopped:
            return 128 + self.stopped
        code = next((process.returncode for process in self.scheduler.processes if process.returncode), 0)
        if code == 0:
            return 0
        code, label = self._failed(code) if self.several else (code, "")
        if code < 0 or not self.screen.errors:
            how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"failed with status {code}"
            hint = " (out of memory?)" if code == -signal.SIGKILL else ""
            self.screen.note(f"error: {self.stage.name}: its process {label}{how}{hint}; its logs are in {self.folder}")
        return code if code in (2, 128 + signal.SIGINT, 128 + signal.SIGTERM) else 1

    def _failed(self, default: int) -> tuple[int, str]:
        """Exit code and label of the rank that failed first: torchrun itself returns 1 and writes the rank's into its log."""
        for path in sorted(self.folder.glob("*/stderr.log")):
            text = path.read_text(errors="replace")
            if match := re.search(r"failed \(exitcode: (-?\d+)\) local_rank: (\d+)", text):
                node = f"{path.parent.name}." if self.given.nodes > 1 else ""
                return int(match[1]), f"{node}{match[2]} "
        return default, ""

    def _kill(self, patience: float) -> None:
        """Kill what is left of the job after `patience` seconds; helpers of ended processes go by themselves in that time."""
        if not self.handle:
            return
        deadline = time.monotonic() + patience
        while left := processes_of(self.handle):
            if time.monotonic() >= deadline:
                for pid in left:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
            time.sleep(POLL_SECONDS / 5)
            for process in self.scheduler.processes:
                process.poll()


def processes_of(handle: str) -> list[int]:
    """Ids of the living processes of a TorchX job, found by the job's name in their environment (Linux; else none)."""
    mark = f"TORCHX_JOB_ID={handle}".encode()
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if mark in (folder / "environ").read_bytes().split(b"\0"):
                found.append(int(folder.name))
    return found


if __name__ == "__main__":
    sys.exit(main())
