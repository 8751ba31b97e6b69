"""The folder in which a pipeline step runs its stage: a checkout of one commit, prepared so that DVC can run the stage alone.

Its name holds a hash of everything that goes in (commit, stage, the stage's parameters, the lock entries of the stages that it
depends on). So a retried step finds it again and resumes, and equal steps of different runs wait for each other.
It is created by one rename.

Environment (pipelines/workflow/environment.py):
    PECO_WORKSPACES: folder of the workspaces
    PECO_WORK: folder of the stages' working files; by default next to the workspaces
    PECO_CACHE: DVC cache that all steps share; by default each workspace has its own
    PECO_REMOTE, PECO_REMOTE_ENDPOINT: DVC remote, and the address of an S3 server; by default the repository's own remote
    PECO_GIT_CREDENTIALS: folder with `password` and `username`, or `ssh-privatekey` and `known_hosts`
    PECO_GRACE_SECONDS: time that processes which a killed step left running have to end
"""

from __future__ import annotations

import configparser
import contextlib
import hashlib
import io
import json
import os
import re
import shlex
import shutil
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from ruamel.yaml import YAML

from peco.core import locks
from peco.core.environment import WORK
from peco.core.errors import PecoError
from pipelines.kfp.parameters import Parameters
from pipelines.kfp.run_folder import Entry, RunFolder
from pipelines.workflow import environment, failures
from pipelines.workflow.git import git, read_file, without_secrets
from pipelines.workflow.graph import Stage, load_graph, lookup
from pipelines.workflow.processes import clear_run_cache, end_processes

REMOTE = "pipeline"  # name of the DVC remote


@dataclass(frozen=True)
class Workspace:
    """A prepared workspace.

    Attributes:
        path: the folder.
        stage: the stage to run.
        parameters: the stage's own parameters by their keys.
        upstream: the lock entries of the stages that it depends on.
        failed: outs of the evaluations among these that failed, which are in the workspace already.
    """

    path: Path
    stage: Stage
    parameters: dict[str, Any]
    upstream: dict[str, Entry]
    failed: frozenset[str] = frozenset()

    def inputs(self) -> list[str]:
        """The stage's dependencies that git doesn't hold, as targets of `dvc pull`."""
        outs = [out["path"] for entry in self.upstream.values() for out in entry.get("outs", [])]
        tracked = git("--literal-pathspecs", "ls-files", "-z", "--", *self.stage.deps, cwd=self.path).split("\0")
        targets = []
        for dep in self.stage.deps:
            if dep in self.failed:
                continue
            if any(_within(dep, out) for out in outs):
                targets.append(dep)
            elif inner := [out for out in outs if _within(out, dep)]:  # a folder that holds outs
                targets += inner
            elif not any(_within(name, dep) for name in tracked):
                targets.append(dep)
        return targets

    def entry(self) -> Entry:
        """The lock entry of the stage after DVC has run it.

        Raises:
            PecoError: its inputs differ from the results of the stages before it.
        """
        entry = read_lock((self.path / "dvc.lock").read_text(encoding="utf-8"))[self.stage.name]
        made = {out["path"]: out.get("md5") for other in self.upstream.values() for out in other.get("outs", [])}
        for dep in entry.get("deps", []):
            if made.get(dep["path"], dep.get("md5")) != dep.get("md5"):
                raise PecoError(
                    f"{dep['path']} differs from the result of the stage before it; delete {self.path} and retry"
                )
        return entry


def read_lock(text: str) -> dict[str, Entry]:
    """The entries of a dvc.lock. DVC writes YAML 1.2, in which 1e-05 is a number; PyYAML would read a string."""
    found = YAML(typ="safe", pure=True).load(text) or {}
    return dict(found.get("stages") or {})


def lock_text(entries: Mapping[str, Entry]) -> str:
    """dvc.lock with these entries, as DVC writes it."""
    stream = io.StringIO()
    dumper = YAML()
    dumper.default_flow_style = False
    dumper.dump({"schema": "2.0", "stages": {str(name): entry for name, entry in entries.items()}}, stream)
    return stream.getvalue()


@contextlib.contextmanager
def prepared(name: str, parameters: Parameters, run: RunFolder) -> Iterator[Workspace]:
    """The workspace of a step, locked, with everything but data; removed when the step has succeeded.

    Sets PECO_WORK and PECO_JOB_KEY for the processes in it.

    Raises:
        PecoError: a parameter is wrong, the commit can't be fetched, or the run lacks the result of a stage before this one.
    """
    revision = parameters.revision
    base = Path(environment.WORKSPACES.text()).absolute()
    with _temporary(base) as fresh:
        fresh.mkdir()
        checkout(parameters.repository, revision, fresh)
        text = write_params(parameters, fresh)
        graph = load_graph(fresh)
        stage = graph[name]
        before = [other for other in graph.stages if (name, other) in graph.edges]
        if missing := [other for other in before if not run.has(other)]:
            raise PecoError(
                f"depends on {', '.join(missing)} at {revision[:7]}, of which this run has no result; the pipeline is that of "
                "another commit, or the run's folder was deleted: submit the run again"
            )
        results = {other: run.result(other) for other in before}
        upstream = {other: result.entry for other, result in results.items() if not result.failed}
        failed = {other: result.failed for other, result in results.items() if result.failed}
        values = yaml.safe_load(text)
        own = {key: lookup(values, key) for key in stage.params}
        parts = json.dumps([revision, name, own, upstream, *([failed] if failed else [])], sort_keys=True, default=str)
        key = hashlib.sha256(parts.encode()).hexdigest()[:16]
        path = base / f"{stage.name.role}-{key}"
        work = Path(WORK.text() if WORK.is_set() else base.with_name("work")).absolute() / path.name
        with _exclusive(base / f"{path.name}.lock"):
            # Processes that a killed step left running on this machine.
            end_processes(WORK.name, str(work), environment.GRACE_SECONDS.integer())
            if path.exists():
                print(f"{name}: resumes in {path}", flush=True)
                shutil.rmtree(fresh, ignore_errors=True)
            else:
                fresh.rename(path)
            work.mkdir(parents=True, exist_ok=True)
            os.environ |= {
                WORK.name: str(work),
                environment.JOB_KEY.name: key,
                # Lines appear as they are written.
                "PYTHONUNBUFFERED": "1",
            }
            os.environ.setdefault("DVC_SITE_CACHE_DIR", str(work / "site"))
            workspace = Workspace(
                path, stage, own, upstream, frozenset(out for other in failed for out in graph[other].outs)
            )
            for other, line in failed.items():
                failures.record(graph[other], line, path)
            _arrange(workspace)
            yield workspace
            shutil.rmtree(work, ignore_errors=True)
            path.rename(fresh)


@contextlib.contextmanager
def _temporary(base: Path) -> Iterator[Path]:
    """A path for a folder, which is removed afterwards; the next step removes that of a killed one."""
    base.mkdir(parents=True, exist_ok=True)
    for path in base.glob(".new-*.lock"):
        with contextlib.suppress(OSError), path.open() as file:
            if locks.acquire(file):
                shutil.rmtree(path.with_suffix(""), ignore_errors=True)
                path.unlink()
    folder = base / f".new-{uuid.uuid4().hex}"
    lock = folder.with_suffix(".lock")
    with lock.open("w") as file:
        locks.acquire(file, wait=True)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            lock.unlink(missing_ok=True)


def write_params(parameters: Parameters, folder: Path) -> str:
    """Write params.yaml of the run into a checkout of its commit and return it. Raises as `Parameters.params`."""
    path = folder / "params.yaml"
    try:
        committed = path.read_bytes().decode()
    except (FileNotFoundError, UnicodeDecodeError):
        raise PecoError(f"commit {parameters.revision[:7]} has no params.yaml; name one that has") from None
    text = parameters.params(committed)
    path.write_bytes(text.encode())
    return text


def checkout(repository: str, revision: str, folder: Path) -> None:
    """Fetch one commit, alone if the server allows it, and check it out.

    Raises:
        PecoError: the repository can't be reached or lacks the commit.
    """
    if not re.fullmatch(r"[0-9a-f]{40}", revision):
        raise PecoError(f"revision {revision!r} is not allowed; expected the 40 hexadecimal digits of a commit")
    git("init", "--quiet", cwd=folder)
    try:
        git("fetch", "--quiet", "--no-tags", "--depth=1", "--", repository, revision, cwd=folder)
    except PecoError:
        # Some servers don't serve a commit by its hash.
        refs = ("+refs/heads/*:refs/remotes/origin/*", "+refs/tags/*:refs/tags/*")
        try:
            git("fetch", "--quiet", "--no-tags", "--", repository, *refs, cwd=folder)
        except PecoError as error:
            raise PecoError(
                f"repository {without_secrets(repository)} can't be fetched ({error}); check address and credentials"
            ) from None
        try:
            git("cat-file", "-e", f"{revision}^{{commit}}", cwd=folder)
        except PecoError:
            raise PecoError(
                f"commit {revision} is in no branch or tag of {without_secrets(repository)}; push it and retry"
            ) from None
    git("checkout", "--quiet", "--detach", revision, cwd=folder)


@contextlib.contextmanager
def git_credentials() -> Iterator[None]:
    """Let git use the files in `$PECO_GIT_CREDENTIALS`, a Kubernetes secret for basic or SSH authentication."""
    folder = Path(environment.GIT_CREDENTIALS.text() or os.devnull)
    with tempfile.TemporaryDirectory() as private:
        if (folder / "password").is_file():
            quoted = shlex.quote(str(folder))
            user = f"username=$(cat {quoted}/username 2>/dev/null || echo git)"
            helper = f'!f() {{ echo "{user}"; echo "password=$(cat {quoted}/password)"; }}; f'
            os.environ |= {
                "GIT_CONFIG_COUNT": "1",
                "GIT_CONFIG_KEY_0": "credential.helper",
                "GIT_CONFIG_VALUE_0": helper,
            }
        if (folder / "ssh-privatekey").is_file():
            # ssh refuses a key that others can read, and they can read the files of a secret.
            key = Path(private) / "key"
            key.touch(0o600)
            key.write_bytes((folder / "ssh-privatekey").read_bytes())
            hosts = f" -o UserKnownHostsFile={folder / 'known_hosts'}" if (folder / "known_hosts").is_file() else ""
            os.environ["GIT_SSH_COMMAND"] = f"ssh -i {key} -o IdentitiesOnly=yes -o BatchMode=yes{hosts}"
        yield


def _arrange(workspace: Workspace) -> None:
    """Write dvc.lock and DVC's local configuration, and remove the temporary files of a killed DVC."""
    # DVC's file of locks names processes by their ids, which in another pod belong to other processes.
    shutil.rmtree(workspace.path / ".dvc" / "tmp", ignore_errors=True)
    # Only the run-cache: elsewhere in a shared cache, a large file may be on its way for longer than its last change tells.
    clear_run_cache(Path(environment.CACHE.text() or workspace.path / ".dvc" / "cache"))
    name = workspace.stage.name
    with contextlib.suppress(FileNotFoundError):
        (workspace.path / "dvc.lock").unlink()
    committed: dict[str, Entry] = {}
    if git("ls-files", "--", "dvc.lock", cwd=workspace.path):
        committed = read_lock(read_file("HEAD", "dvc.lock", cwd=workspace.path).decode())
    own = {name: committed[name]} if name in committed else {}
    if entries := own | workspace.upstream:
        (workspace.path / "dvc.lock").write_text(lock_text(entries), encoding="utf-8")
    (workspace.path / ".dvc" / "config.local").write_text(_config(workspace.path), encoding="utf-8")


def _config(folder: Path) -> str:
    """DVC's local configuration.

    Raises:
        PecoError: neither the environment nor the repository names a remote.
    """
    remote, endpoint = environment.REMOTE.text(), environment.REMOTE_ENDPOINT.text()
    # DVC's usage reports and its check for a newer version would outlive the step.
    lines = ["[core]", "analytics = false", "check_update = false", *([f"remote = {REMOTE}"] if remote else [])]
    if cache := environment.CACHE.text():
        lines += ["[cache]", f'dir = "{Path(cache).absolute()}"', "type = reflink,symlink,copy", "shared = group"]
    if remote:
        lines += [f"['remote \"{REMOTE}\"']", f'url = "{remote}"']
        lines += [f'endpointurl = "{endpoint}"'] if endpoint else []
    else:
        parser = configparser.ConfigParser(strict=False, interpolation=None)
        parser.read(folder / ".dvc" / "config", encoding="utf-8")
        if not parser.get("core", "remote", fallback=""):
            raise PecoError(
                f"no DVC remote: set {environment.REMOTE.name}, or commit one (`dvc remote add -d NAME URL`)"
            )
    return "\n".join([*lines, ""])


@contextlib.contextmanager
def _exclusive(path: Path) -> Iterator[None]:
    """Hold the lock file, and remove it afterwards."""
    announced = False
    while True:
        with path.open("a") as file:
            if not locks.acquire(file):
                if not announced:
                    print("an equal step of another run is running; waiting for it to finish", flush=True)
                announced = True
                locks.acquire(file, wait=True)
            if not locks.is_same_file(path, file):
                continue  # its last holder removed it
            try:
                yield
            finally:
                path.unlink()
            return


def _within(path: str, folder: str) -> bool:
    return f"{path}/".startswith(f"{folder}/")
