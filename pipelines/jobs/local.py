"""One stage as a job on this machine, through TorchX's local scheduler."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torchx.runner import Runner
from torchx.schedulers.local_scheduler import CWDImageProvider, LocalScheduler
from torchx.specs import AppDef, macros

from peco.core import workfiles
from peco.core.environment import PROGRESS
from peco.core.errors import PecoError
from peco.core.ranks import is_of_torchrun
from peco.core.resources import Resources
from peco.core.stopping import POLL_SECONDS, SIGNALS, StopSignals
from pipelines import components
from pipelines.jobs.logs import Screen, Tail, drop_old
from pipelines.workflow.environment import GRACE_SECONDS
from pipelines.workflow.graph import Stage
from pipelines.workflow.processes import cores, processes_with, stop_with_parent
from pipelines.workflow.stage_resources import resolve, variables

SESSION = "peco"  # of TorchX
JOB_ID = "TORCHX_JOB_ID"  # the variable with a process's job, set by TorchX
_OWN = (
    "PET_REDIRECTS",
    "PET_LOG_DIR",
)  # options of torchrun that are set here; those in the environment are another job's
RANKLESS_SECONDS = 10.0  # for torchrun to end after its ranks


def run(stage: Stage, screen: Screen, env: Mapping[str, str] = os.environ) -> int:
    """Run a stage on this machine and return the exit status.

    Call it from the main thread: it handles the signals until no process of the stage is left.

    Raises:
        PecoError: a variable is wrong, or the stage can't be started.
    """
    resources = local_resources(stage, env)
    logs = workfiles.root() / "logs" / stage.name.role
    drop_old(logs, lambda app_id: bool(processes_with(JOB_ID, f"local_cwd://{SESSION}/{app_id}")))
    environment = {
        "PYTHONPATH": os.pathsep.join(filter(None, (os.getcwd(), env.get("PYTHONPATH")))),
        PROGRESS.name: "bar" if screen.bar else "plain",
        # Several processes write into files of their own, so that their lines do not mix.
        "PET_REDIRECTS": "3",
        "PET_LOG_DIR": str(logs.absolute() / macros.app_id / macros.replica_id),
        "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": GRACE_SECONDS.text(env),
    }
    app = components.stage(
        stage.name, j=f"{resources.nodes}x{resources.processes}", threads=resources.threads, workers=resources.workers,
        env=environment, port=_free_port(),
    )  # fmt: skip
    return _LocalJob(stage, app, resources, logs, screen, GRACE_SECONDS.integer(env)).run()


def local_resources(stage: Stage, env: Mapping[str, str]) -> Resources:
    """The stage's resources on this machine: zeros become what the machine has; PECO_NODES simulates several nodes.

    Raises:
        PecoError: a value is wrong.
    """
    requested = resolve(stage, env)
    nodes = requested.nodes if any(env.get(name) for name in variables("nodes", stage)) else 1
    processes = requested.processes or gpus(env) or 1
    threads = requested.threads or max(1, cores() // (nodes * processes))
    return dataclasses.replace(requested, nodes=nodes, processes=processes, threads=threads)


def gpus(env: Mapping[str, str]) -> int:
    """The number of GPUs that a stage can see, found without importing torch."""
    if (visible := env.get("CUDA_VISIBLE_DEVICES")) is not None:
        return len([device for device in visible.split(",") if device.strip() not in ("", "-1")])
    if shutil.which("nvidia-smi") is None:
        return 0
    listing = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
    return sum(line.startswith("GPU ") for line in listing.stdout.splitlines()) if listing.returncode == 0 else 0


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return int(probe.getsockname()[1])


class _Scheduler(LocalScheduler):  # type: ignore[misc]
    """TorchX's local scheduler. It keeps its processes; they find this Python first, and stop when the launcher dies."""

    def __init__(self) -> None:
        previous = {number: signal.getsignal(number) for number in SIGNALS}
        super().__init__("", CWDImageProvider, extra_paths=[str(Path(sys.executable).parent)])
        for number, handler in previous.items():
            # The scheduler's own handlers raise wherever the code is, and kill after 10 s.
            signal.signal(number, handler)
        self.processes: list[subprocess.Popen[bytes]] = []

    def run_local_job(
        self, args: list[str], env: dict[str, str], stdout: Any, stderr: Any, cwd: str | None = None
    ) -> subprocess.Popen[bytes]:
        env = {name: value for name, value in env.items() if name in _OWN or not is_of_torchrun(name)}
        process = subprocess.Popen(
            args, env=env, stdout=stdout, stderr=stderr, cwd=cwd, start_new_session=True, preexec_fn=stop_with_parent
        )
        self.processes.append(process)
        return process


class _LocalJob:
    """One run of a stage, from its start until no process of it is left."""

    def __init__(self, stage: Stage, app: AppDef, resources: Resources, logs: Path, screen: Screen, grace: int) -> None:
        self.stage, self.app, self.logs, self.screen, self.grace = stage, app, logs, screen, grace
        self.nodes, self.multi_process = resources.nodes, resources.nodes * resources.processes > 1
        self.scheduler = _Scheduler()
        self.handle = ""
        self.stop = StopSignals(self._on_stop, even_ignored=(signal.SIGINT, signal.SIGTERM))
        self.kill_at = float("inf")
        self.tails: dict[Path, Tail] = {}

    def run(self) -> int:
        runner = Runner(SESSION, {"local_cwd": lambda *_, **__: self.scheduler})
        with self.stop, runner:
            try:
                try:
                    request = runner.dryrun(self.app, "local_cwd", {"log_dir": str(self.logs)})
                    self.folder = Path(request.request.role_log_dirs[self.app.roles[0].name][0]).parent
                    self.elastic = self.logs.absolute() / request.request.app_id
                    self.handle = runner.schedule(request)
                except OSError as error:
                    raise PecoError(f"{self.stage.name}: can't be started: {error}") from None
                if self.stop.first:  # it came before the process was there
                    self._terminate()
                self._follow()
                return self._status()
            except BaseException:
                self._terminate()
                self._end_leftovers(patience=float(self.grace))
                raise
            finally:
                self._end_leftovers(patience=2.0)  # helpers of ended processes end by themselves in that time
                self.screen.close()

    def _on_stop(self, _: signal.Signals) -> None:
        if self.stop.second:
            self.kill_at = time.monotonic()
        else:
            self._terminate()

    def _terminate(self) -> None:
        """Send SIGTERM to all processes; torchrun forwards it to its ranks and waits for them."""
        self.kill_at = time.monotonic() + self.grace + 5 * POLL_SECONDS
        for process in self.scheduler.processes:
            if process.poll() is None:
                process.terminate()

    def _follow(self) -> None:
        """Show the job's lines until all its processes have ended."""
        announced = False
        running = True
        while running:
            codes = [process.poll() for process in self.scheduler.processes]
            running = None in codes
            self._show(last=not running)
            if self.stop.first and running and not announced:
                self.screen.note(f"{self.stage.name}: stopping and saving its work; a second signal ends it at once")
                announced = True
            if self.stop.first and self.multi_process and not self._ranks():
                # Rarely, a signal makes torchrun lose track of its ranks, and it still waits after they have ended.
                self.kill_at = min(self.kill_at, time.monotonic() + RANKLESS_SECONDS)
            if running and any(codes) and self.kill_at == float("inf"):
                self._terminate()  # one simulated node failed, and the others would wait for it forever
            if running and time.monotonic() >= self.kill_at:
                self._end_leftovers(patience=0)
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
        if not self.multi_process:
            yield self.folder / "0", None
            return
        for path in sorted(self.elastic.glob("*/*/attempt_0/*/")):
            node = path.relative_to(self.elastic).parts[0]
            yield path, path.name if self.nodes == 1 else f"{node}.{path.name}"

    def _processes(self) -> set[int]:
        """Living processes of the job, found by its handle in their environment."""
        return processes_with(JOB_ID, self.handle) if self.handle else set()

    def _ranks(self) -> set[int]:
        """Living processes of the job other than torchrun."""
        return self._processes() - {process.pid for process in self.scheduler.processes}

    def _status(self) -> int:
        if self.stop.first:
            return self.stop.status
        code = next((process.returncode for process in self.scheduler.processes if process.returncode), 0)
        if code == 0:
            return 0
        code, label = self._failed_rank(code) if self.multi_process else (code, "")
        if not self.screen.errors:
            workfiles.require_writable()  # or else the reason could not be written to the logs
        if code < 0 or not self.screen.errors:
            reason = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"failed with status {code}"
            hint = " (out of memory?)" if code == -signal.SIGKILL else ""
            text = f"its process {label}{reason}{hint}; its logs are in {self.folder}"
            self.screen.note(f"error: {self.stage.name}: {text}")
        if code == -signal.SIGKILL:
            return 2
        return code if code in (2, 128 + signal.SIGINT, 128 + signal.SIGTERM) else 1

    def _failed_rank(self, default: int) -> tuple[int, str]:
        """Exit code and label of the rank that failed first: torchrun itself returns 1 and writes the rank's to its log."""
        for path in sorted(self.folder.glob("*/stderr.log")):
            text = path.read_text(errors="replace")
            if match := re.search(r"failed \(exitcode: (-?\d+)\) local_rank: (\d+)", text):
                node = f"{path.parent.name}." if self.nodes > 1 else ""
                return int(match[1]), f"{node}{match[2]} "
        return default, ""

    def _end_leftovers(self, patience: float) -> None:
        """Wait `patience` seconds for the job's processes to end, then kill those that are left."""
        deadline = time.monotonic() + patience
        while left := self._processes():
            if time.monotonic() >= deadline:
                for pid in left:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
            time.sleep(POLL_SECONDS / 5)
            for process in self.scheduler.processes:
                process.poll()
