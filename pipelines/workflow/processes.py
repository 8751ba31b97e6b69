"""Child processes: DVC, processes that end with their parent, leftovers of killed ones; single-instance locks."""

from __future__ import annotations

import configparser
import contextlib
import ctypes
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]

from peco.core import locks
from peco.core.errors import Interrupted, PecoError
from peco.core.stopping import POLL_SECONDS, StopSignals

_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None
_PR_SET_PDEATHSIG = 1
_TEMPORARY = re.compile(r"\.[A-Za-z0-9_-]{22}\.tmp")  # of DVC
KILLED_SECONDS = 5.0  # for processes to end after their parent was killed


def cores() -> int:
    """The number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def stop_with_parent() -> None:
    """For `preexec_fn`: the kernel sends the process SIGTERM when its parent ends, even if the parent was killed (Linux)."""
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def processes_with(name: str, value: str) -> set[int]:
    """Ids of other living processes that have this environment variable; those of other users are not found."""
    found = set()
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.environ().get(name) == value and process.status() != psutil.STATUS_ZOMBIE:
                found.add(process.pid)
    return found - {os.getpid()}


def end_processes(name: str, value: str, patience: float) -> None:
    """End all processes that have this environment variable, by SIGTERM, and after `patience` seconds by SIGKILL."""
    deadline = time.monotonic() + patience
    signaled: set[int] = set()
    while found := processes_with(name, value):
        late = time.monotonic() >= deadline
        for pid in found if late else found - signaled:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL if late else signal.SIGTERM)
        signaled |= found
        time.sleep(POLL_SECONDS)


class Stopped(Interrupted):
    """A stop signal came.

    Attributes:
        status: the exit status, 128 + the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__("stopped; finished work is kept, and the same command resumes")
        self.status = 128 + number


@contextlib.contextmanager
def _ends_with_this_process(group: int) -> Iterator[None]:
    """Kill a process group when this process is killed, or an exception leaves the block.

    A shell waits at a pipe that only this process holds open, so nothing in the group has to cooperate.
    """
    script = 'read -r finished || kill -KILL "-$1" 2>/dev/null'
    command = ["/bin/sh", "-c", script, "sh", str(group)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True) as watcher:
        yield
        watcher.communicate(b"finished\n")


def run_dvc(arguments: Sequence[str], *, cwd: Path | None = None, show: Callable[[str], None] | None = None) -> int:
    """Run DVC and return its status. A stop signal stops the stage, which saves its work.

    If this process or DVC is killed, the launcher is killed too, and with the launcher a stage on this machine ends.

    Call it from the main thread: it handles the signals until DVC has ended.

    Args:
        arguments: of the `dvc` command.
        cwd: folder of the repository; the current one by default.
        show: receives each line of DVC and of the stage; without it they go to the output of this process.

    Raises:
        Stopped: a stop signal came, even if DVC had finished; all has ended.
        PecoError: DVC can't be started.
    """
    process: subprocess.Popen[str] | None = None

    def forward(_: signal.Signals) -> None:
        # Always SIGINT, and to the whole group: the launcher stops its stage, DVC waits for it and then exits cleanly.
        # SIGTERM would end DVC at once and leave the stage running.
        if process is not None and process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGINT)

    # DVC runs `python …`, which must be this interpreter.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    piped: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT} if show else {}
    with StopSignals(forward) as stop:
        try:
            process = subprocess.Popen(
                [sys.executable, "-m", "dvc", *arguments],
                cwd=cwd,
                env={**os.environ, "PATH": path},
                text=True,
                errors="replace",
                process_group=0,
                **piped,
            )
        except OSError as error:
            raise PecoError(f"dvc: can't be started: {error}") from None
        if stop.first:  # it came while DVC was starting
            forward(stop.first)
        in_traceback = False
        with _ends_with_this_process(process.pid):
            for line in process.stdout or ():
                in_traceback = in_traceback or (stop.first is not None and line.startswith("Traceback"))
                if show and not in_traceback:  # DVC's traceback after a stop is of no interest
                    show(line)
            status = process.wait()
            if status < 0:  # the launcher would go on, and nobody would record its result
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
    if stop.first:
        raise Stopped(stop.first)
    return status if status >= 0 else 128 - status


def clear_locks_of_killed_dvc(root: Path = Path()) -> None:
    """Remove DVC's locks if all of their processes have ended, or if a kill has cut the file.

    Waits a moment for processes that are just being killed. DVC counts a process as running until its parent has noticed its end,
    which in a container may never happen, and refuses to run with a file that was cut.
    """
    path = root / ".dvc" / "tmp" / "rwlock"
    deadline = time.monotonic() + KILLED_SECONDS
    while True:
        holders = _lock_holders(path)
        running = {pid for pid in holders or () if _is_running(pid)}
        late = time.monotonic() >= deadline
        if not running and (holders is not None or late):
            path.unlink(missing_ok=True)
            return
        if running and (late or not all(map(_is_orphan, running))):
            return
        time.sleep(POLL_SECONDS)


def _lock_holders(path: Path) -> set[int] | None:
    """Ids of the processes in DVC's file of locks: readers and a writer of each path. None if it was cut, or is being written."""
    try:
        locked = json.loads(path.read_text(encoding="utf-8"))
        readers = [holder for holders in locked.get("read", {}).values() for holder in holders]
        return {int(holder["pid"]) for holder in (*readers, *locked.get("write", {}).values())}
    except FileNotFoundError:
        return set()
    except (OSError, ValueError, AttributeError, KeyError, TypeError):
        return None


def cache_folder() -> Path:
    """DVC's cache."""
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    folder = Path(".dvc")
    parser.read((folder / "config", folder / "config.local"), encoding="utf-8")
    return folder / parser.get("cache", "dir", fallback="cache").strip("\"'")


def clear_temporary_files(folders: Iterable[Path]) -> None:
    """Remove DVC's temporary files in its cache and in the folders of results, which a kill or a full disk has left."""
    cache = cache_folder()
    clear_run_cache(cache)
    _clear_temporary_files((cache / "files/md5", *cache.glob("files/md5/*"), *folders))


def clear_run_cache(cache: Path) -> None:
    """Remove from the run-cache of DVC what a killed one has left there.

    DVC takes the newest file for the last record, whatever its name is, so that half a record would restore half of the results;
    and with an empty folder there it fails in every later run.
    """
    _clear_temporary_files(cache.glob("runs/*/*"))
    for record in cache.glob("runs/*/*"):
        with contextlib.suppress(OSError):
            if not any(record.iterdir()):
                _wait_until_old(record)
                record.rmdir()


def _clear_temporary_files(folders: Iterable[Path]) -> None:
    for folder in folders:
        for path in folder.glob(".*.tmp"):
            if not _TEMPORARY.fullmatch(path.name):
                continue
            with contextlib.suppress(OSError):
                _wait_until_old(path)
                path.unlink()


def _wait_until_old(path: Path) -> None:
    """Wait as long as another DVC may be writing it."""
    while time.time() - path.stat().st_mtime < KILLED_SECONDS:
        time.sleep(POLL_SECONDS)


def _is_running(pid: int) -> bool:
    with contextlib.suppress(psutil.Error):
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    return False


def _is_orphan(pid: int) -> bool:
    with contextlib.suppress(psutil.Error):
        return bool(psutil.Process(pid).ppid() <= 1)
    return True


@contextlib.contextmanager
def single_instance(command: str) -> Iterator[None]:
    """Refuse a second call of a make target while one runs in this repository.

    Raises:
        PecoError: another one runs.
    """
    path = Path(f".dvc/tmp/{command}.lock")
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        if not locks.acquire(file):
            raise PecoError(f"another `make {command}` runs here; wait until it has finished")
        yield
