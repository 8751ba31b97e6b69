"""Records of finished experiments: they spare another machine what is finished, and count for the same code alone."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from cheap_project import make_project, shifted


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return make_project(tmp_path / "project", monkeypatch)


def call_compare(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pipelines.compare", "--records", "records", "--seeds", "0", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


def test_records_spare_another_machine_what_is_finished(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = call_compare()
    assert first.returncode == 0, first.stderr
    assert len(list(Path("records").iterdir())) == 2
    (project / "README.md").write_text("words\n")  # nothing that results depend on
    subprocess.run(["git", "add", "-A"], check=True)
    subprocess.run(["git", "commit", "-qm", "records"], check=True)
    subprocess.run(["git", "clone", "-q", str(project), str(tmp_path / "other")], check=True)
    monkeypatch.chdir(tmp_path / "other")
    second = call_compare("1")  # a further seed
    assert second.returncode == 0, second.stderr
    assert "4 experiments: 2 finished before" in second.stdout
    assert (tmp_path / "ran").read_text().splitlines() == ["0 0", "0 1"]
    assert "| PeCo | 50.5 ± 0.7 |" in second.stdout
    assert len(list(Path("records").iterdir())) == 4


def test_records_of_other_code_do_not_count(project: Path, tmp_path: Path) -> None:
    assert call_compare().returncode == 0
    (project / "values.json").write_text(json.dumps(shifted(0.1)))
    subprocess.run(["git", "commit", "-qam", "other code"], check=True)
    done = call_compare()
    assert "records: 2 records are of other code or inputs and don't count: compare-smoke-peco-0-" in done.stdout
    assert "| PeCo | 60.0 ± 0.0 |" in done.stdout or "| PeCo | 60.0 |" in done.stdout
    assert (tmp_path / "ran").read_text().splitlines() == ["0 0", "0 0"]
    assert "4 finished" not in done.stdout and "2 experiments: 2 finished before" in call_compare().stdout


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"code": "x", "metrics": {}}', '{"code": 1, "metrics": 2}'])
def test_a_damaged_record_is_named(project: Path, text: str) -> None:
    Path("records").mkdir()
    Path("records/old.json").write_text(text)
    done = call_compare()
    assert done.returncode == 2
    assert done.stderr.startswith("error: records/old.json: no record of an experiment")
    assert done.stderr.endswith("; remove it, then run again\n") and done.stderr.count("\n") == 1
