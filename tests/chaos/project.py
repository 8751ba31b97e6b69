"""A repository with a finished run of the preset `smoke`, in which one stage at a time is run again."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import yaml

ROOT = Path(__file__).parents[2]
HOOK = Path(__file__).parent / "hook"
CONTROL = "PECO_TEST_CHAOS"
RUN_SECONDS = 300.0  # a run that takes longer counts as hung
# What may differ between two runs with equal results.
PRIVATE = (".git", ".dvc/tmp", ".dvc/cache/runs", ".work/logs", ".work/runs", ".work/times.jsonl", ".work/plan.json")


@dataclass(frozen=True)
class Ended:
    """A command that has ended."""

    status: int
    output: str


class Project:
    """The repository, a pristine copy of it, and the folder by which the hook in its processes is controlled.

    Args:
        folder: for all of it; one that is there already is used again.
        targets: stages of the finished run, with those that they need; all by default.
    """

    def __init__(self, folder: Path, *targets: str) -> None:
        self.folder, self.root, self.pristine, self.control = (
            folder.absolute() / name for name in ("", "project", "finished", "control")
        )
        self.env = {key: value for key, value in os.environ.items() if not key.startswith(("PECO_", "TORCHX_", "GIT_"))}
        self.env |= {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(HOOK),
            "DVC_SITE_CACHE_DIR": str(self.folder / "site"),
            "DVC_NO_ANALYTICS": "1",
            CONTROL: str(self.control),
            "PECO_CHECKPOINT_STEPS": "2",
            "GIT_AUTHOR_NAME": "t", "GIT_AUTHOR_EMAIL": "t@t", "GIT_COMMITTER_NAME": "t", "GIT_COMMITTER_EMAIL": "t@t",
        }  # fmt: skip
        self.control.mkdir(parents=True, exist_ok=True)
        if not self.pristine.exists():
            self._make(targets)
        self.expected = files(self.pristine)
        self.lock: dict[str, Any] = yaml.safe_load((self.pristine / "dvc.lock").read_text())

    @property
    def stages(self) -> list[str]:
        """The stages in the order in which they ran."""
        return list(self.lock["stages"])

    def outs(self, stage: str) -> list[str]:
        return [out["path"] for out in self.lock["stages"][stage]["outs"]]

    def objects(self, stage: str) -> set[str]:
        """The files of a stage's results in DVC's cache."""
        hashes = []
        for out in self.lock["stages"][stage]["outs"]:
            hashes.append(out["md5"])
            if out["md5"].endswith(".dir"):
                hashes += [entry["md5"] for entry in json.loads((self.pristine / cached(out["md5"])).read_text())]
        return set(map(cached, hashes))

    def _make(self, targets: tuple[str, ...]) -> None:
        shutil.rmtree(self.root, ignore_errors=True)
        listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
        for name in subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines():
            if (ROOT / name).is_file() and name != "dvc.lock":  # that one is of the user's own runs
                (self.root / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(ROOT / name, self.root / name)
        (self.control / "trace").touch()
        for command in (
            ["git", "init", "-q"],
            [sys.executable, "-m", "pipelines.params", "--preset", "smoke"],
            ["git", "add", "-A"],
            ["git", "commit", "-qm", "start"],
            [sys.executable, "-m", "pipelines.repro", *targets],
        ):
            ended = self.command(command)
            if ended.status:
                raise SystemExit(f"{' '.join(command)} failed:\n{ended.output}")
        (self.control / "trace").unlink()
        self.root.rename(self.pristine)

    def restore(self) -> None:
        """Restore the finished run."""
        shutil.rmtree(self.root, ignore_errors=True)
        shutil.copytree(self.pristine, self.root, symlinks=True)

    def prepare(self, stage: str) -> None:
        """Restore the finished run, without this stage."""
        self.restore()
        shutil.rmtree(self.root / ".work", ignore_errors=True)
        self.drop(stage)

    def drop(self, stage: str) -> None:
        """Remove a stage's results, in DVC's cache too, its record, and DVC's run-cache."""
        for path in self.objects(stage) - {
            path for other in self.stages if other != stage for path in self.objects(other)
        }:
            (self.root / path).unlink(missing_ok=True)
        shutil.rmtree(self.root / ".dvc/cache/runs", ignore_errors=True)
        for out in self.outs(stage):
            path = self.root / out
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        lock = {**self.lock, "stages": {name: entry for name, entry in self.lock["stages"].items() if name != stage}}
        (self.root / "dvc.lock").write_text(yaml.safe_dump(lock, sort_keys=False))

    def start(self, stage: str, *, command: str = "repro") -> subprocess.Popen[bytes]:
        """Start the run of a stage in a session of its own; its output goes to the file `output`.

        Args:
            stage: the stage.
            command: `repro`, as `make repro` does, or `launch`, as DVC does.
        """
        arguments = ["--single-item", stage] if command == "repro" else [stage]
        for name in ("started.repro", "started.dvc", "started.launch", "started.stage", "frozen"):
            (self.control / name).unlink(missing_ok=True)
        with (self.folder / "output").open("wb") as output:
            return subprocess.Popen(
                [sys.executable, "-m", f"pipelines.{command}", *arguments],
                cwd=self.root,
                env=self.env,
                start_new_session=True,
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    def finish(self, process: subprocess.Popen[bytes]) -> Ended:
        """Wait for the command; one that hangs is killed with all of its processes and has the status -1."""
        try:
            status = process.wait(RUN_SECONDS)
        except subprocess.TimeoutExpired:
            status = -1
            self.kill_all()
            process.wait()
        return Ended(status, (self.folder / "output").read_text(errors="replace"))

    def run(self, stage: str) -> Ended:
        return self.finish(self.start(stage))

    def command(self, command: list[str], **env: str) -> Ended:
        """Run any command in the repository."""
        done = subprocess.run(
            command,
            cwd=self.root,
            env={**self.env, **env},
            text=True,
            errors="replace",
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        return Ended(done.returncode, done.stdout)

    def pid(self, role: str) -> int | None:
        """Process id of the running command's process of this role."""
        with contextlib.suppress(OSError, ValueError):
            return int((self.control / f"started.{role}").read_text())
        return None

    def processes(self) -> list[psutil.Process]:
        """Living processes of the workflow."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                alive = process.status() != psutil.STATUS_ZOMBIE
                if alive and process.environ().get(CONTROL) == str(self.control):
                    found.append(process)
        return found

    def kill_all(self) -> None:
        for process in self.processes():
            with contextlib.suppress(psutil.Error):
                process.kill()

    def wait_for_end(self, seconds: float) -> list[str]:
        """Wait until no process is left; returns the commands of those that are, after killing them."""
        deadline = time.monotonic() + seconds
        while left := self.processes():
            if time.monotonic() > deadline:
                names = []
                for process in left:
                    with contextlib.suppress(psutil.Error):
                        names.append(" ".join(process.cmdline())[:120])
                        process.kill()
                return names
            time.sleep(0.1)
        return []

    def differences(self) -> list[str]:
        """Differences from the finished run: lines of dvc.lock, contents, files that are missing or left over."""
        found = []
        try:
            lock = yaml.safe_load((self.root / "dvc.lock").read_text())
        except (OSError, yaml.YAMLError) as error:
            lock = {}
            found.append(f"dvc.lock: {type(error).__name__}")
        if lock != self.lock:
            found.append("dvc.lock differs")
        now = files(self.root)
        for path in sorted({*now, *self.expected}):
            if path == "dvc.lock":
                continue
            if path not in now:
                found.append(f"missing: {path}")
            elif path not in self.expected:
                found.append(f"left over: {path}")
            elif now[path] != self.expected[path]:
                found.append(f"differs: {path}")
        held = self.root / ".dvc/tmp/rwlock"
        if held.exists() and held.read_text().strip() not in ("", "{}"):
            found.append(f"left over: {held.relative_to(self.root)}: {held.read_text().strip()[:100]}")
        return found


def cached(md5: str) -> str:
    """Path of an object in DVC's cache."""
    return f".dvc/cache/files/md5/{md5[:2]}/{md5[2:]}"


def files(root: Path) -> dict[str, str]:
    """Hash of each file below the root that two runs with equal results have in common; of a link its target."""
    return {str(path.relative_to(root)): _digest(path) for path in _walk(root, root)}


def _walk(folder: Path, root: Path) -> Iterator[Path]:
    for path in folder.iterdir():
        name = str(path.relative_to(root))
        if name in PRIVATE or path.name == "__pycache__":
            continue
        if path.is_dir() and not path.is_symlink():
            yield from _walk(path, root)
        else:
            yield path


def _digest(path: Path) -> str:
    if path.is_symlink():
        return os.readlink(path)
    return hashlib.sha256(path.read_bytes()).hexdigest()
