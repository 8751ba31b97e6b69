"""Git commands."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path

from peco.core.errors import PecoError

# These may ask for a passphrase at the terminal. The others run in a process group of their own, which a Ctrl-C does not reach.
NETWORK = ("fetch", "ls-remote", "push")
_COMMIT = "git add -A && git commit -m PeCo"


def git(
    *arguments: str,
    cwd: Path | None = None,
    stdin: str | None = None,
    env: Mapping[str, str] | None = None,
    timeout: float | None = None,
) -> str:
    """Run a git command and return its output. It never asks for a password at the terminal.

    Args:
        arguments: the command and its arguments.
        cwd: folder of the repository; the current one by default.
        stdin: its input.
        env: more environment variables.
        timeout: seconds.

    Raises:
        PecoError: it fails (with git's own line that says why) or takes too long.
    """
    return _run(arguments, cwd, stdin, env, timeout).decode(errors="backslashreplace")


def require_repository() -> None:
    """Check that this folder is in a git repository, as after `git clone`, but not after unpacking a download.

    Raises:
        PecoError: it is in none, or git refuses to use it.
    """
    try:
        git("rev-parse", "--git-dir")
    except PecoError as error:
        if "not a git repository" not in str(error):
            raise
        raise PecoError(f"no git repository here; `git init && {_COMMIT}` makes one of this folder") from None


def head() -> str:
    """The full id of the commit that is checked out.

    Raises:
        PecoError: there is none.
    """
    require_repository()
    try:
        return git("rev-parse", "--verify", "--quiet", "HEAD^{commit}").strip()
    except PecoError:
        raise PecoError(f"the git repository has no commit yet; `{_COMMIT}` makes one") from None


def require_top() -> None:
    """Check that this folder is the top of its git repository: the steps of a pipeline check it out and look for dvc.yaml there.

    Raises:
        PecoError: it is a folder in one.
    """
    if prefix := git("rev-parse", "--show-prefix").strip():
        raise PecoError(
            f"the project is the folder {prefix} of a git repository, but the steps of the pipeline look for dvc.yaml at its top; "
            f"give the project a repository of its own: `git init && {_COMMIT}` here, and have the outer one ignore it"
        )


def read_file(revision: str, path: str, *, cwd: Path | None = None) -> bytes:
    """Content of a file in a commit.

    Raises:
        PecoError: the commit has no such file.
    """
    return _run(("cat-file", "blob", f"{revision}:{path}"), cwd, None, None, None)


def experiment_ref(commit: str, name: str) -> str:
    """The reference under which DVC keeps an experiment on this commit."""
    return f"refs/exps/{commit[:2]}/{commit[2:]}/{name}"


def without_secrets(text: str) -> str:
    """The text without the passwords of addresses in it; web addresses lose the user too, which may be a token."""
    text = re.sub(r"(?i)\b(https?)://[^/?#\s]*@", r"\1://", text)
    return re.sub(r"(://[^/?#:@\s]*):[^/?#\s]*@", r"\1@", text)


def _run(
    arguments: tuple[str, ...],
    cwd: Path | None,
    stdin: str | None,
    env: Mapping[str, str] | None,
    timeout: float | None,
) -> bytes:
    inherited = {name: value for name, value in os.environ.items() if name not in ("GIT_DIR", "GIT_WORK_TREE")}
    try:
        done = subprocess.run(
            ["git", *arguments],
            cwd=cwd,
            input=None if stdin is None else stdin.encode(),
            env={**inherited, "GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C", **(env or {})},
            capture_output=True,
            timeout=timeout,
            check=False,
            process_group=None if arguments[0] in NETWORK else 0,
        )
    except subprocess.TimeoutExpired:
        raise PecoError(f"git {arguments[0]}: no answer in {timeout:.0f} s") from None
    except OSError as error:
        raise PecoError(f"git can't be started: {error}") from None
    if done.returncode == 0:
        return done.stdout
    lines = [line for line in done.stderr.decode(errors="backslashreplace").splitlines() if line.strip()] or ["failed"]
    reason = next((line for line in lines if line.startswith(("fatal:", "error:", " ! "))), lines[-1])
    text = re.sub(r"^\W*(fatal|error):\s*", "", reason)
    raise PecoError(without_secrets(f"git {arguments[0]}: {text}"))
