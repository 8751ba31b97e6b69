"""DVC's queue of experiments: what is in it, what died in it, and the worker that runs it.

DVC runs its queue by a worker in the background (`dvc queue start`). Here the same worker is a child that ends with whoever
started it, and takes the running stage along. The queue itself is DVC's: `dvc queue status`, `dvc queue logs` and `dvc exp show`
tell of it, and what others have put into it stays.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import psutil  # type: ignore[import-untyped]

from peco.core import workfiles
from pipelines.workflow.processes import stop_with_parent

POLL_SECONDS = 0.2
ANSWER_SECONDS = 5.0


class Queue:
    """The queue of the repository in the current directory, as far as it belongs to one commit.

    What DVC has no command for is done by its own internals, which `constraints.txt` pins and tests/test_ablation.py tries.
    """

    def __init__(self, commit: str) -> None:
        from dvc.repo import Repo

        self.commit = commit
        self._queue = Repo().experiments.celery_queue

    def waiting(self) -> set[str]:
        """Names of the experiments that wait."""
        return self._names(self._queue.iter_queued())

    def running(self) -> set[str]:
        """Names of those that a worker has taken; where the worker died they stay among them."""
        return self._names(self._queue.iter_active())

    def _names(self, entries: Iterable[Any]) -> set[str]:
        return {entry.name for entry in entries if entry.baseline_rev == self.commit}

    def failed(self) -> set[str]:
        """What has ended badly, whosever it is, by its stashed revision."""
        return set(self._queue.failed_stash.stash_revs)

    def put_back(self, stopped: Collection[str] = ()) -> None:
        """Put back what workers have taken and not begun, whosever it is, as one that is asked to end takes one more.

        Only where nobody runs the queue.

        Args:
            stopped: what has failed only because it was stopped, by its stashed revision: it is put back, too.
        """
        self._stash_again(stopped)
        stashed = self._queue.stash.stash_revs
        app = self._queue.celery
        for message, entry in list(self._queue._iter_processed()):
            if entry.stash_rev in stashed:
                self._forget_result(message)
                taken = Path(app._processed_msg_path_cache[message.delivery_tag])
                shutil.move(taken, Path(app.conf.broker_transport_options["data_folder_in"]) / taken.name)

    def _stash_again(self, failed: Collection[str]) -> None:
        """Bring entries from where DVC keeps the failed ones to where it keeps those that wait."""
        stash, before = self._queue.stash, self._queue.failed_stash.stash_revs
        for revision in failed:
            entry = before[revision]
            told = stash.format_message(entry.head_rev, entry.baseline_rev, entry.name, entry.branch)
            self._queue.scm.set_ref(stash.ref, revision, message=f"commit: {told}")
            del self._queue.proc[revision]  # its log and state
        self._queue.failed_stash.remove_revs([before[revision] for revision in failed])

    def _forget_result(self, message: Any) -> None:
        with contextlib.suppress(FileNotFoundError):  # one that died has none
            self._queue.celery.AsyncResult(message.headers["id"]).forget()

    def forget_orders(self) -> None:
        """Throw away what workers were told that had ended by then: the next would take "shut down" for itself.

        Only where nobody runs the queue.
        """
        for order in self.orders():
            order.unlink(missing_ok=True)

    def orders(self) -> list[Path]:
        """Messages to workers that nobody has read."""
        folder = Path(self._queue.celery.conf.broker_transport_options["data_folder_in"])
        return list(folder.glob(f"*.{self._prefix}*.celery.pidbox.msg"))

    def forget(self, names: Collection[str]) -> None:
        """Take out what has been begun of these, however it ended, and the folder that one which died has left.

        Only where nobody runs the queue. (`dvc queue kill` would signal process ids that were noted and may be others' since.)
        """
        from dvc.exceptions import DvcException

        for message, entry in self._begun(names):
            self._forget_result(message)
            self._queue.celery.purge(message.delivery_tag)
            failed = self._queue.failed_stash.stash_revs
            self._queue.failed_stash.remove_revs([failed[entry.stash_rev]] if entry.stash_rev in failed else [])
            with contextlib.suppress(OSError, DvcException):  # its file is missing, or was cut short
                folder = Path(self._queue._load_info(entry.stash_rev).root_dir)
                if folder.is_relative_to(self._queue.repo.tmp_dir):
                    shutil.rmtree(folder)

    def log(self, name: str) -> list[str]:
        """What an experiment has printed, of its last run; nothing where it did not come so far."""
        lines: list[str] = []
        for _, entry in self._begun([name]):
            with contextlib.suppress(OSError, LookupError, ValueError):  # its files are missing, or were cut short
                path = Path(self._queue.proc[entry.stash_rev].stdout)
                lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        return lines

    def _begun(self, names: Collection[str]) -> list[tuple[Any, Any]]:
        """Messages and entries of those that a worker has taken."""
        taken = self._queue._iter_processed()
        return [
            (each.msg, each.entry)
            for each in taken
            if each.entry.name in names and each.entry.baseline_rev == self.commit
        ]

    def processes(self) -> list[int]:
        """Ids of the living processes that run the queue: workers, whoever has started them, and what they run."""
        marks = (self._prefix, self._queue.pid_dir)
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                command = process.cmdline()
                if "exp" in command and any(part.startswith(marks) for part in command):
                    found.append(process.pid)
        return found

    def shut_down(self) -> None:
        """Have the workers end as soon as they have nothing in hand. Asked by a signal, they would take one more at times."""
        self._queue.shutdown()

    def take_no_more(self, workers: int) -> None:
        """Have so many workers leave the queue alone; what they have in hand goes on. They answer within a second or two."""
        app = self._queue.celery
        app.control.cancel_consumer(app.conf.task_default_queue, reply=True, timeout=ANSWER_SECONDS, limit=workers)

    def worker(self, number: int) -> list[str]:
        """Arguments of DVC's command for a worker, as `dvc queue start` has them."""
        return [f"{self._prefix}{number}@localhost", *(["--clean"] if number == 1 else [])]

    @property
    def _prefix(self) -> str:
        """What the names of this repository's workers begin with."""
        return f"dvc-exp-{hashlib.sha256(self._queue.wdir.encode()).hexdigest()[:6]}-"


def logs() -> Path:
    """Where the workers of this module tell what they do."""
    return workfiles.root() / "logs" / "queue"


def start(queue: Queue, number: int) -> subprocess.Popen[bytes]:
    """Start a worker, numbered from 1.

    Each has working files of its own: equal stages of two experiments in one folder would wait for each other.

    SIGTERM stops it and the stage that runs, which saves its work; a second one, later, kills that. If this process is killed, the
    worker gets it from the kernel (Linux).
    """
    path = logs() / f"worker-{number}.log"
    path.parent.mkdir(parents=True, exist_ok=True)
    env = {**os.environ, "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])}
    # What sends DVC's reports of its use is a fork that bears the worker's command line, and outlives it.
    env["DVC_NO_ANALYTICS"] = "1"
    if number > 1:
        env["PECO_WORK"] = str(workfiles.root() / "workers" / str(number))
    with path.open("wb") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "pipelines.experiments.expqueue", *queue.worker(number)],
            env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, preexec_fn=stop_with_parent,
        )  # fmt: skip


def run_worker(arguments: Sequence[str]) -> int:
    """Run DVC's worker until the queue has been empty for ten seconds or a signal comes, and no process of it is left."""
    signals = 0

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal signals
        signals += 1

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, note)
    worker = subprocess.Popen([sys.executable, "-m", "dvc", "exp", "queue-worker", *arguments], process_group=0)
    passed_on, told = 0, set[tuple[int, str]]()
    while worker.poll() is None or _signal(-worker.pid, 0):
        if signals > passed_on:
            passed_on, told = signals, _members(worker.pid)
            # SIGINT, and to the whole group: the launcher stops its stage, DVC waits for it, and the worker for DVC.
            _signal(-worker.pid, signal.SIGINT)
        elif passed_on:
            # A worker that is asked to end may begin one more experiment, and DVC its stage, which have not heard of it.
            for member in _members(worker.pid) - told:
                told.add(member)
                _signal(member[0], signal.SIGINT)
        time.sleep(POLL_SECONDS)
    return worker.returncode


def _members(group: int) -> set[tuple[int, str]]:
    """The processes of a group, and what each runs: one that has just been forked does not yet run what it is to run."""
    found = set()
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, ProcessLookupError):
            if os.getpgid(process.pid) == group:
                found.add((process.pid, " ".join(process.cmdline())))
    return found


def _signal(pid: int, number: int) -> bool:
    """Send a signal to a process, or a group by its negative id; whether there was one."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True


if __name__ == "__main__":
    sys.exit(run_worker(sys.argv[1:]))
