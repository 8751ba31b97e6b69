"""Standard output that can't be written: the work continues without it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

CODE = """
import os, subprocess, sys
from pipelines.workflow.streams import tolerate_unwritable
tolerate_unwritable()
print("first", flush=True)
print("second", flush=True)
with open("opened", "w"):
    subprocess.run([sys.executable, "-c", "print('of a child')"], check=True)
print("done", file=sys.stderr)
"""


def run(path: Path, redirection: str) -> subprocess.CompletedProcess[str]:
    (path / "program.py").write_text(CODE)
    return subprocess.run(
        f"{sys.executable} program.py {redirection}",
        shell=True,
        cwd=path,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    ("redirection", "errors"),
    [
        (">&-", "done\n"),
        ("> /dev/null", "done\n"),
        ("> /dev/full", "standard output can't be written (No space left on device); continuing without it\ndone\n"),
        ("2> /dev/full", ""),
        ("> /dev/full 2>&1", ""),
        (">&- 2>&-", ""),
    ],
)
def test_a_program_continues_without_output(tmp_path: Path, redirection: str, errors: str) -> None:
    done = run(tmp_path, redirection)
    assert (done.returncode, done.stderr) == (0, errors)
    assert (tmp_path / "opened").read_bytes() == b""  # a child's output went nowhere else


def test_output_is_passed_on(tmp_path: Path) -> None:
    assert run(tmp_path, "").stdout == "first\nsecond\nof a child\n"
