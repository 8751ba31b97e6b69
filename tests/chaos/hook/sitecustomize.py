"""Python imports this module at its start: it stops a process of the workflow at a chosen change of a file.

PECO_TEST_CHAOS names a folder. There `started.ROLE` holds the id of the process of each role, and `trace.ROLE` its changes of
files if there is a file `trace`. `rule` (JSON) says where the process stops itself: role, event, pattern of the path, number of
matches to skip, and Python calls after. It then writes `frozen` and sends itself SIGSTOP: what happens to it next happens at this
very moment.
"""

import json
import os
import re
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Any

CHANGES = {
    "open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.truncate", "os.chmod",
    "shutil.rmtree", "shutil.copyfile", "shutil.copytree",
}  # fmt: skip
DESTINATION = {"os.rename", "os.link", "os.symlink", "shutil.copyfile", "shutil.copytree"}  # their second argument
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
ELSEWHERE = re.compile(r"(^|/)(\.git|__pycache__)(/|$)|^\.work/(logs|runs)/|^\.dvc/tmp/(lock|rwlock)")


def role_of(arguments: list[str]) -> str | None:
    words = " ".join(arguments)
    for pattern, role in (
        (r"-m peco\.(stages|evaluate)\.", "stage"),
        (r"-m pipelines\.launch ", "launch"),
        (r"-m pipelines\.repro\b", "repro"),
        (r"-m dvc |/dvc ", "dvc"),
    ):
        if re.search(pattern, words):
            return role
    return None


def changed(event: str, arguments: tuple[Any, ...], root: str) -> str | None:
    """Path below the root that this event changes."""
    if event not in CHANGES or (event == "open" and not (isinstance(arguments[2], int) and arguments[2] & WRITING)):
        return None
    path = arguments[1 if event in DESTINATION else 0]
    if isinstance(path, int):
        return None
    path = os.path.relpath(os.path.abspath(os.fsdecode(path)), root)
    return None if path.startswith("..") or ELSEWHERE.search(path) else path


def install(folder: Path, role: str) -> None:
    rule: dict[str, Any] = {}
    if (folder / "rule").exists():
        rule = json.loads((folder / "rule").read_text())
    armed = rule.get("role") == role
    traced = (folder / "trace").exists()
    (folder / f"started.{role}").write_text(str(os.getpid()))
    root, busy, left = os.getcwd(), False, int(rule.get("skip", 0))

    def freeze(event: str, path: str) -> None:
        nonlocal armed
        armed = False
        (folder / "rule").unlink(missing_ok=True)
        (folder / "frozen.new").write_text(json.dumps({"role": role, "pid": os.getpid(), "event": event, "path": path}))
        (folder / "frozen.new").rename(folder / "frozen")
        os.kill(os.getpid(), signal.SIGSTOP)

    def after(calls: int, event: str, path: str) -> None:
        """Stop after this number of calls and returns in this thread."""

        def count(_: FrameType, kind: str, __: Any) -> None:
            nonlocal calls
            calls -= 1
            if calls <= 0:
                sys.setprofile(None)
                freeze(event, path)

        sys.setprofile(count)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal busy, left, armed
        if busy or not (armed or traced) or event not in CHANGES:
            return
        busy = True
        try:
            path = changed(event, arguments, root)
            if path is None:
                return
            if traced:
                with open(folder / f"trace.{role}", "a") as file:
                    file.write(f"{event}\t{path}\n")
            if armed and re.search(rule["event"], event) and re.search(rule["path"], path):
                left -= 1
                if left < 0:
                    armed = False
                    if calls := int(rule["calls"]):
                        after(calls, event, path)
                    else:
                        freeze(event, path)
        finally:
            busy = False

    sys.addaudithook(hook)


if (control := os.environ.get("PECO_TEST_CHAOS")) and (found := role_of(sys.orig_argv)):
    install(Path(control), found)
