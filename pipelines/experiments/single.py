"""One experiment in a clone of the repository: `python -m pipelines.experiments.single NAME COMMIT REVISION SETTING…`.

run.py starts this program for each experiment. It does not use `dvc exp run --temp`, for these reasons (DVC 3.67):

- That command can't run several times at once. It hands its experiment over through one Git stash (refs/exps/stash), and each
  process runs all that it finds there, at its end too: one takes what another has just put there. At both moments it needs
  the lock of the repository, and fails if another process holds that for 3 s.
- It detaches HEAD and removes the user's changes while it fills the stash. If it is killed then, they stay in the stash.

Here the repository receives only the finished experiment, by `git fetch`. The clone shares Git's objects and DVC's cache with it;
both are made for several processes. The working files are shared too: an equal stage of two experiments has one folder there, the
second one waits, then resumes from the last checkpoint of the first.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from peco.core.errors import PecoError
from pipelines.workflow import failures
from pipelines.workflow.git import experiment_ref, git
from pipelines.workflow.processes import Stopped, run_dvc

# The launcher recognises experiments by this folder, and keeps their working files in the repository.
CLONES = Path(".dvc/tmp/exps")


def make_clone(folder: Path, prefix: str, commit: str, revision: str) -> None:
    """Make a repository with the commit checked out and the changes of the revision on top.

    Raises:
        PecoError: git fails.
    """
    shutil.rmtree(folder, ignore_errors=True)
    git("init", "--quiet", str(folder))
    # Not `git clone --shared`, which needs a full history in the repository.
    objects, shallow, settings = (
        Path(git("rev-parse", "--git-path", name).rstrip("\n")).absolute() for name in ("objects", "shallow", "config")
    )
    (folder / ".git/objects/info/alternates").write_text(f"{objects}\n")
    if shallow.exists():
        shutil.copy(shallow, folder / ".git")
    git("checkout", "--quiet", "--detach", commit, cwd=folder)
    if revision != commit:
        git("stash", "apply", "--quiet", "--index", revision, cwd=folder)
    shutil.copy(settings, folder / ".git")
    # The settings may be those of a linked worktree or of a submodule.
    git("config", "core.bare", "false", cwd=folder)
    git("config", "core.worktree", "..", cwd=folder)
    _share_cache(folder / prefix)


def _share_cache(folder: Path) -> None:
    from dvc.repo import Repo

    local = Path(".dvc/config.local")
    if local.exists():
        shutil.copy(local, folder / local)
    with Repo() as repo, Repo(folder) as clone, clone.config.edit("local") as settings:
        settings.setdefault("cache", {})["dir"] = repo.cache.local_cache_dir


def main(argv: Sequence[str] | None = None) -> int:
    name, commit, revision, *settings = sys.argv[1:] if argv is None else argv
    folder, ref = CLONES / name, experiment_ref(commit, name)
    changes = [argument for setting in settings for argument in ("-S", setting)]
    try:
        prefix = git("rev-parse", "--show-prefix").strip()  # of the project in its repository
        make_clone(folder, prefix, commit, revision)
        try:
            status = run_dvc(["exp", "run", "--name", name, *changes], cwd=folder / prefix)
            if status:
                failures.run_others(folder / prefix)  # the next try takes their results from the run-cache
        except Stopped as stop:
            status = stop.status
        if git("for-each-ref", ref, cwd=folder):  # also if it was stopped just after that
            git("fetch", "--quiet", "--no-tags", "--no-auto-gc", "--no-write-fetch-head", str(folder), f"{ref}:{ref}")
    except PecoError as error:
        print(f"error: {error}", file=sys.stderr)
        status = 2
    shutil.rmtree(folder, ignore_errors=True)
    return status


if __name__ == "__main__":
    sys.exit(main())
