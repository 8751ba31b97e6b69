"""The checks of a cluster that run in its pods; `make cluster-check` (k8s/cluster_check.py) starts them.

`python -m pipelines.pod_check step SETTINGS` is a step: it has the account, the volume, the secrets and the network of one. It
starts a Volcano job of two ranks as the launcher starts that of a stage, and each rank is `python -m pipelines.pod_check rank …`.
Every result is a line of JSON on standard output: `{"title": …, "state": "right" or "wrong", "text": …}`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from torchx import specs
from torchx.specs import AppDef, Role, macros

from peco.core.environment import WORK
from peco.core.errors import PecoError
from peco.core.resources import Resources
from peco.core.stage_name import StageName
from peco.core.stopping import StopSignals
from pipelines.components import PORT
from pipelines.jobs.job import Job
from pipelines.jobs.logs import Screen
from pipelines.workflow import environment
from pipelines.workflow.git import git, without_secrets
from pipelines.workflow.graph import Stage
from pipelines.workflow.stage_resources import resolve

JOB_SECONDS = 600  # for the job to start, maybe on a node that has to pull the image, and to end
RANK_SECONDS = 60.0  # for one rank to reach the other
REMOTE_SECONDS = 60
NAME = StageName("check")


@dataclasses.dataclass(frozen=True)
class _Small(Resources):
    """Resources of a rank that fits beside other work; devices and placement are those of a stage."""

    @property
    def amounts(self) -> dict[str, str]:
        return super().amounts | {"cpu": "100m", "memory": "1Gi"}


class _Notes(Screen):
    """Prints the ranks' lines as they are, and keeps what the launcher reports."""

    def __init__(self) -> None:
        super().__init__()
        self.error = ""
        self.last = ""

    def note(self, text: str) -> None:
        if text.startswith("error: "):
            self.error = text.removeprefix("error: ").removeprefix(f"{NAME}: ")
        else:
            self.last = text.removeprefix(f"{NAME}: ")
            _print("", "note", self.last)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the checks of a step or of a rank; 0, whatever their results are."""
    mode, *arguments = sys.argv[1:] if argv is None else argv
    if mode == "rank":
        _rank(*arguments)
    else:
        _step(json.loads(arguments[0]))
    return 0


def run(title: str, check: Callable[[], str]) -> bool:
    """Print the result of a check, which returns a text or raises PecoError; True if it is right."""
    try:
        text = check()
    except PecoError as error:
        _print(title, "wrong", str(error))
        return False
    _print(title, "right", text)
    return True


def _print(title: str, state: str, text: str) -> None:
    print(json.dumps({"title": title, "state": state, "text": " ".join(text.split())}), flush=True)


# In the step


def _step(settings: Mapping[str, str]) -> None:
    from pipelines.kfp import pod

    run("the image has the packages", image)
    pod.enter()
    volume = Path(environment.VOLUME_PATH.text())
    folder = volume / f".peco-check-{uuid.uuid4().hex}"
    usable = run(f"the volume at {volume}", lambda: make_folder(folder))
    if settings["git"]:
        run(f"the git remote {settings['git']}", lambda: read_git(settings["git"]))
    if settings["dvc"]:
        run("the DVC remote", lambda: use_remote(settings["dvc"]))
    if usable and settings["job"]:
        run("a Volcano job of two pods", lambda: run_job(folder))
        os.chdir(volume)
    elif settings["job"]:
        _print("", "note", "a Volcano job of two pods is not tried: it needs the volume")
    shutil.rmtree(folder, ignore_errors=True)


def image() -> str:
    """Import what a stage imports, and call git."""
    try:
        import timm
        import torch
    except ImportError as error:
        raise PecoError(f"{error}; build the image as k8s/Dockerfile does") from None
    return f"torch {torch.__version__}, timm {timm.__version__}, {git('--version').strip()}, user {os.getuid()}"


def make_folder(folder: Path) -> str:
    """Make the folder on the volume, and use it as DVC uses its workspaces and its cache."""
    try:
        folder.mkdir()
        (folder / "file").write_text("peco")
        (folder / "link").symlink_to(folder / "file")
        assert (folder / "link").read_text() == "peco"
        free = shutil.disk_usage(folder).free / 2**30
    except OSError as error:
        raise PecoError(
            f"user {os.getuid()} can't use it ({error.strerror}); give its root to {os.getuid()}:{os.getgid()}"
        ) from None
    return f"takes files and links, {free:.0f} GiB are free"


def read_git(url: str) -> str:
    """Ask the git remote for its branches, with the secret of a step."""
    from pipelines.kfp.workspace import git_credentials

    with git_credentials():
        try:
            git("ls-remote", "--heads", "--", url, timeout=REMOTE_SECONDS)
        except PecoError as error:
            secret = environment.GIT_READ_SECRET.name
            raise PecoError(
                f"{error}; correct its address (GIT_REMOTE), the secret ({secret}), or the network"
            ) from None
    return "can be read"


def use_remote(config: str) -> str:
    """Write, read and delete a file on the DVC remote that this configuration of DVC names."""
    from dvc.repo import Repo

    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / ".dvc").mkdir()
        (Path(folder) / ".dvc/config").write_text(config)
        (Path(folder) / ".dvc/config.local").write_text("[core]\nno_scm = true\nanalytics = false\n")
        try:
            remote = Repo(folder).cloud.get_remote()
            path = remote.fs.join(remote.path, f"peco-check-{uuid.uuid4().hex}")
            remote.fs.makedirs(remote.path, exist_ok=True)
            with remote.fs.open(path, "wb") as file:
                file.write(b"peco")
            with remote.fs.open(path, "rb") as file:
                assert file.read() == b"peco"
            remote.fs.remove(path)
        except Exception as error:  # each kind of remote has its own errors
            reason = without_secrets(f"{type(error).__name__}: {error}")
            secret = environment.STORAGE_SECRET.name
            raise PecoError(f"{reason}; correct its address, the secret ({secret}), or the network") from None
    return f"{remote.path} can be written to and read"


def run_job(folder: Path) -> str:
    """Run the job of two ranks in this folder, with the rights of this pod's account."""
    from pipelines.jobs.volcano import Volcano

    stage = Stage(NAME, (), (), (), (), {}, "train")
    wanted = dataclasses.replace(resolve(stage, os.environ), nodes=2, processes=1, retries=0, time_limit="10m")
    resources = _Small(**dataclasses.asdict(wanted))
    arguments = ["-m", "pipelines.pod_check", "rank", macros.replica_id, macros.rank0_env, str(wanted.gpus)]
    own = {name: os.environ[name] for name in ("PYTHONPATH",) if name in os.environ}
    role = Role(
        name=NAME, image=environment.IMAGE.text(), entrypoint="python", args=arguments, env=own, num_replicas=2,
        resource=specs.resource(),
    )  # fmt: skip
    job = Job(NAME, f"peco-check-{folder.name[-12:]}", AppDef(NAME, [role]), resources, grace=5)
    os.environ[WORK.name] = str(folder)
    os.chdir(folder)
    notes = _Notes()
    # A stop signal makes the backend abort the job.
    late = threading.Timer(JOB_SECONDS, os.kill, (os.getpid(), signal.SIGTERM))
    with StopSignals() as stops:
        late.start()
        try:
            status = Volcano(job, notes, stops, os.environ).follow()
        finally:
            late.cancel()
    if stops.first:
        raise PecoError(f"has not ended in {JOB_SECONDS} s; its last state: {notes.last}")
    if status:
        raise PecoError(notes.error or f"ended with status {status}")
    return f"has run in queue {resources.queue or 'default'}"


# In the ranks


def _rank(number: str, rank0_variable: str, gpus: str) -> None:
    if number == "0":
        run("rank 0 is reached by rank 1", serve)
    else:
        host = os.environ[rank0_variable]
        run("rank 1 finds rank 0 by its name", lambda: resolve_name(host))
        run(f"rank 1 reaches rank 0 at port {PORT}", lambda: reach(host))
        run("both pods see the same volume", lambda: same_volume(Path("from-rank-0")))
    if int(gpus):
        run(f"rank {number} has its GPUs", lambda: count_gpus(int(gpus)))


def serve(seconds: float = RANK_SECONDS, file: Path = Path("from-rank-0")) -> str:
    """Write a file, and accept one connection."""
    file.write_text("peco")
    with socket.create_server(("", PORT)) as server:
        server.settimeout(seconds)
        try:
            connection, address = server.accept()
        except TimeoutError:
            raise PecoError(
                f"no connection in {seconds:.0f} s; the policy peco-ranks must be in the namespace"
            ) from None
        with connection:
            connection.sendall(b"peco")
    return f"from {address[0]}"


def resolve_name(host: str, seconds: float = RANK_SECONDS) -> str:
    """The address of a host, as soon as DNS has it."""
    for _ in _attempts(seconds):
        with contextlib.suppress(OSError):
            return f"{host} is {socket.gethostbyname(host)}"
    raise PecoError(f"{host}: not found in {seconds:.0f} s; look at the cluster's DNS and at Volcano's plugin svc")


def reach(host: str, seconds: float = RANK_SECONDS) -> str:
    """Connect to the other rank."""
    reason = ""
    for _ in _attempts(seconds):
        try:
            with socket.create_connection((host, PORT), timeout=5) as connection:
                assert connection.recv(4) == b"peco"
            return ""
        except OSError as error:
            reason = str(error)
    raise PecoError(f"not in {seconds:.0f} s ({reason}); the policy peco-ranks must be in the namespace")


def same_volume(file: Path) -> str:
    """Read what the other rank has written before it was reached."""
    try:
        found = file.read_text()
    except OSError as error:
        raise PecoError(f"{error.strerror}; the volume must be ReadWriteMany, and the same on all nodes") from None
    assert found == "peco"
    return ""


def count_gpus(wanted: int) -> str:
    """Count the GPUs that torch can use."""
    import torch

    found = torch.cuda.device_count()
    if found != wanted:
        raise PecoError(f"torch sees {found} of {wanted}; does the image have torch for CUDA, and the node a driver?")
    return f"{found} of {torch.cuda.get_device_name(0)}"


def _attempts(seconds: float) -> Iterator[None]:
    """Once a second, and at least once."""
    deadline = time.monotonic() + seconds
    while True:
        yield
        if time.monotonic() > deadline:
            return
        time.sleep(1)


if __name__ == "__main__":
    sys.exit(main())
