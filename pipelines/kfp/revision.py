"""Checks that a commit is on the git remote and its inputs on the DVC remote, from which the cluster fetches them."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import urlsplit

import yaml

from peco.core.errors import PecoError
from pipelines.workflow.environment import REMOTE, REMOTE_ENDPOINT
from pipelines.workflow.git import experiment_ref, git, head, read_file, require_top, without_secrets

TIMEOUT_SECONDS = 120


@dataclass(frozen=True)
class Revision:
    """A commit that is on the remote.

    Attributes:
        sha: its full id.
        remote: the name of the git remote.
        url: its address without a password, since others can read the pipeline.
        experiments: names of the DVC experiments on the remote for this commit.
    """

    sha: str
    remote: str
    url: str
    experiments: frozenset[str]

    @property
    def short(self) -> str:
        return self.sha[:7]

    @property
    def repository(self) -> str:
        """The repository's name: the last part of its address."""
        return PurePosixPath(urlsplit(self.url).path.rstrip("/").replace(":", "/")).name.removesuffix(".git") or "peco"


def commit(rev: str) -> str:
    """The full id of a commit.

    Raises:
        PecoError: there is no repository with a commit here, the project isn't at its top, or there is no such commit in it.
    """
    head()
    require_top()
    try:
        return git("rev-parse", "--verify", "--quiet", "--end-of-options", f"{rev}^{{commit}}").strip()
    except PecoError:
        raise PecoError(f"REV={rev}: no such commit here; `git fetch` fetches the remote's") from None


def published(rev: str | None, remote: str) -> Revision:
    """Find a commit on a git remote; without `rev` HEAD, and no file may differ from it.

    Raises:
        PecoError: a file is not committed, there is no such commit or remote, the remote can't be reached, or it lacks the commit.
    """
    sha = commit(rev or "HEAD")
    if rev is None and (changed := git("status", "--porcelain").splitlines()):
        more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
        raise PecoError(
            f"{changed[0][3:]}{more}: not committed, but the cluster runs commits; commit and push, or name a commit (REV=HEAD)"
        )
    if remote not in git("remote").split():
        raise PecoError(f"git remote {remote}: no such remote; `git remote add {remote} ADDRESS`, or set GIT_REMOTE")
    url = git("remote", "get-url", remote).strip()
    try:
        listed = git("ls-remote", remote, timeout=TIMEOUT_SECONDS)
    except PecoError as error:
        raise PecoError(f"git remote {remote} ({without_secrets(url)}): can't be reached: {error}") from None
    refs = [line.split("\t", 1) for line in listed.splitlines()]
    tips = {tip for tip, ref in refs if ref.startswith(("refs/heads/", "refs/tags/"))}
    # For tips that others have pushed since, only their history shows if they come after the commit.
    if not _is_reachable(sha, tips) and (
        git("fetch", "--quiet", remote, timeout=TIMEOUT_SECONDS) or not _is_reachable(sha, tips)
    ):
        raise PecoError(
            f"commit {sha[:7]}: not on the git remote {remote}, from which the cluster fetches it; `git push {remote}`"
        )
    prefix = experiment_ref(sha, "")
    names = frozenset(ref.removeprefix(prefix) for _, ref in refs if ref.startswith(prefix))
    return Revision(sha, remote, without_secrets(url), names)


def _is_reachable(sha: str, tips: set[str]) -> bool:
    """True if the commit is one of the tips, or an ancestor of one that is known here."""
    if sha in tips:
        return True
    objects = git("cat-file", "--batch-check", stdin="\n".join(sorted(tips))).splitlines()
    known = [line.split()[0] for line in objects if not line.endswith("missing")]
    return git("rev-list", "--max-count=1", "--stdin", stdin="\n".join([sha, *(f"^{tip}" for tip in known)])) == ""


def read(sha: str, path: str) -> bytes:
    """Content of a file in a commit.

    Raises:
        PecoError: the commit has no such file.
    """
    try:
        return read_file(sha, path)
    except PecoError:
        raise PecoError(f"{path}: not in commit {sha[:7]}; name one that has it") from None


def pointers(sha: str, inputs: Iterable[str]) -> list[str]:
    """The `.dvc` files of these inputs in a commit; an input that Git itself holds has none.

    Raises:
        PecoError: an input is in the commit in neither form.
    """
    files = set(git("ls-tree", "-r", "-z", "--full-tree", "--name-only", sha).split("\0"))
    found = {}
    for path in inputs:
        above = [f"{part}.dvc" for part in (PurePosixPath(path), *PurePosixPath(path).parents)]
        below = [file for file in files if file.startswith(f"{path}/")]
        own = [file for file in above if file in files] + [file for file in below if file.endswith(".dvc")]
        if not own and not below and path not in files:
            raise PecoError(
                f"{path}: not in commit {sha[:7]}; `git add` it, or {path}.dvc if DVC tracks it, commit and push"
            )
        found.update(dict.fromkeys(own))
    return list(found)


def check_data(sha: str, inputs: Iterable[str], env: Mapping[str, str]) -> None:
    """Check that a commit holds its inputs, and the DVC remote those that DVC tracks.

    The remote is `PECO_REMOTE` (an address), or else the commit's default one.

    Raises:
        PecoError: an input is missing, there is no remote, or it can't be reached.
    """
    tracked = pointers(sha, inputs)
    config: dict[str, Any] = {}
    if url := REMOTE.text(env):
        settings = {"url": url}
        if endpoint := REMOTE_ENDPOINT.text(env):
            settings["endpointurl"] = endpoint
        config = {"core": {"remote": "pipeline"}, "remote": {"pipeline": settings}}
    elif not (name := _default_remote(sha)):
        raise PecoError(
            f"commit {sha[:7]} names no DVC remote, through which the steps pass on their results; "
            f"`dvc remote add -d NAME ADDRESS`, commit and push, or set {REMOTE.name}=ADDRESS"
        )
    else:
        config = {"core": {"remote": name}}
    for pointer in tracked:
        for path in _missing(yaml.safe_load(read(sha, pointer)), config):
            missing = PurePosixPath(pointer).parent / path
            raise PecoError(
                f"{missing}: not on the DVC remote, from which the cluster fetches it; `dvc push {pointer}`"
            )


def _default_remote(sha: str) -> str | None:
    """The default DVC remote in the commit's configuration; the user's own (config.local) stays on this machine."""
    from dvc.config import Config

    with tempfile.NamedTemporaryFile() as file:
        file.write(read(sha, ".dvc/config"))
        file.flush()
        name = Config.load_file(file.name).get("core", {}).get("remote")
        return None if name is None else str(name)


def _missing(pointer: Mapping[str, Any], config: Mapping[str, Any]) -> list[str]:
    """Paths of a `.dvc` file's outs that the remote lacks."""
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    if any("repo" in dep for dep in pointer.get("deps", ())):
        return []  # DVC fetches an import from its own repository
    try:
        cloud = Repo(config=dict(config)).cloud
        if (remote := cloud.get_remote()).worktree or remote.fs.version_aware:
            return []  # such a remote has no objects named by hash
        missing = []
        for out in pointer["outs"]:
            # DVC pushes the list of a folder after all of its files: if the list is there, so is the folder.
            store = cloud.get_remote_odb(hash_name=out.get("hash", "md5-dos2unix"))
            try:
                store.fs.info(store.oid_to_path(out["md5"]))
            except FileNotFoundError:
                missing.append(str(out["path"]))
        return missing
    except DvcException as error:
        raise PecoError(f"DVC remote: {error}") from None
    except Exception as error:  # each kind of remote has its own errors
        raise PecoError(f"DVC remote: can't be reached: {type(error).__name__}: {error}") from None
