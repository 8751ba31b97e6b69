"""`python -m pipelines.launch STAGE`: lines, statuses, signals; run on made-up stages in a small copy of the repository."""

from __future__ import annotations

import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from peco.core.stage_name import StageName
from pipelines.jobs.local import gpus, local_resources
from pipelines.jobs.logs import Line, Screen, drop_old
from pipelines.workflow.compose import compose_params, render
from pipelines.workflow.graph import Stage

ROOT = Path(__file__).parent.parent
DVC = """
stages:
  shards: {cmd: x, meta: {threads: 2}}
  tokenizer: {cmd: x, meta: {resources: train, processes: 1, threads: 1, workers: 3}}
  evaluate: {foreach: [knn, other], do: {cmd: x}}
  unknown: {cmd: x}
"""
# An error that the user can fix is one line and status 2.
FIXABLE = """
import sys
from peco.core.errors import PecoError
def main():
    raise PecoError("data: missing; get some")
try:
    main()
except PecoError as error:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(2)
"""
# Saves its work when asked to stop, which takes a moment, then ends as interrupted.
PATIENT = """
import os, signal, sys, time
from pathlib import Path
rank = os.environ.get("RANK", "0")
def stop(number, frame):
    time.sleep(0.5)
    Path(f"saved{rank}").touch()
    sys.exit(143)
signal.signal(signal.SIGTERM, stop)
Path(f"pid{rank}").write_text(str(os.getpid()))
print("ready", flush=True)
time.sleep(60)
"""
DEAF = PATIENT.replace("signal.SIGTERM, stop", "signal.SIGTERM, signal.SIG_IGN")


@pytest.fixture
def repo(tmp_path: Path) -> Callable[..., Path]:
    """Makes a repository with the sources of its stages: `repo("print(1)")`, `repo({"evaluate@knn": "print(1)"})`."""
    shutil.copytree(ROOT / "pipelines", tmp_path / "pipelines", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "peco/core", tmp_path / "peco/core", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "peco/__init__.py").touch()
    (tmp_path / "params.yaml").write_text(render(compose_params("tiny", [])))
    (tmp_path / "dvc.yaml").write_text(DVC)

    def build(stages: str | dict[str, str]) -> Path:
        """With a text alone, the source of the tokenizer."""
        for name, source in {"tokenizer": stages}.items() if isinstance(stages, str) else stages.items():
            path = tmp_path / f"{StageName(name).module.replace('.', '/')}.py"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(source)
        return tmp_path

    return build


def environment(**more: str) -> dict[str, str]:
    own = {key: value for key, value in os.environ.items() if not key.startswith(("PECO_", "TORCHX_", "TORCHELASTIC_"))}
    return {**own, "CUDA_VISIBLE_DEVICES": "", **more}


def start(folder: Path, stage: str = "tokenizer", **env: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "pipelines.launch", stage],
        cwd=folder,
        env=environment(**env),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        # Ctrl-C works as in a terminal, even if the tests run in the background, where it is ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def launch(folder: Path, stage: str = "tokenizer", **env: str) -> tuple[int, str, str]:
    process = start(folder, stage, **env)
    out, err = process.communicate(timeout=50)
    return process.returncode, out, err


def wait_for(*paths: Path) -> None:
    deadline = time.monotonic() + 30
    while not all(path.exists() and path.read_text() for path in paths):
        assert time.monotonic() < deadline, f"{paths} did not appear"
        time.sleep(0.02)


@pytest.mark.parametrize("work", ["", "elsewhere"])
def test_experiments_keep_their_working_files_in_the_repository(repo: Callable[..., Path], work: str) -> None:
    """DVC deletes the folder that it runs one in, whether it ended or was stopped."""
    root = repo("from peco.core import workfiles\nprint(workfiles.root().resolve())")
    folder = root / ".dvc/tmp/exps/tmpabc"
    folder.mkdir(parents=True)
    for name in ("pipelines", "peco", "params.yaml", "dvc.yaml"):
        (folder / name).symlink_to(root / name)
    status, out, err = launch(folder, PECO_WORK=work)
    assert status == 0, err
    assert out.splitlines()[0] == str(root / (work or ".work"))
    assert not (folder / (work or ".work")).exists()


def is_alive(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


def children_in(folder: Path) -> list[int]:
    """Living processes that work in `folder`."""

    def search() -> Iterator[int]:
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                if (entry / "cwd").resolve() == folder.resolve() and is_alive(int(entry.name)):
                    yield int(entry.name)
            except OSError:
                continue

    return list(search())


def test_lines_pass_through_and_the_time_is_recorded(repo: Callable[..., Path]) -> None:
    folder = repo("import sys\nprint('to stdout')\nprint('to stderr', file=sys.stderr)\nprint('no newline', end='')")
    status, out, err = launch(folder)
    assert (status, err) == (0, "to stderr\n")
    lines = out.splitlines()
    assert lines[:2] == ["to stdout", "no newline"]
    assert re.fullmatch(r"tokenizer: \d+\.\d s", lines[2])
    [record] = [json.loads(line) for line in (folder / ".work/times.jsonl").read_text().splitlines()]
    assert record["stage"] == "tokenizer"
    assert 0 < record["seconds"] < 30
    [log] = (folder / ".work/logs/tokenizer").rglob("stdout.log")
    assert log.read_text() == "to stdout\nno newline"


def test_the_last_five_runs_keep_their_logs(repo: Callable[..., Path]) -> None:
    folder = repo("print('new')")
    runs = folder / ".work/logs/tokenizer"
    for number in range(7):
        (runs / f"old{number}").mkdir(parents=True)
        os.utime(runs / f"old{number}", (number, number))
    assert launch(folder)[0] == 0
    kept = sorted(path.name for path in runs.iterdir())
    assert len(kept) == 5 and kept[:4] == ["old3", "old4", "old5", "old6"]


def test_logs_that_another_launcher_deletes_meanwhile_do_not_stop_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(7):
        (tmp_path / f"old{number}").mkdir()
        os.utime(tmp_path / f"old{number}", (number, number))
    stat = Path.stat

    def late(path: Path, **options: bool) -> os.stat_result:
        if path.name == "old0":
            shutil.rmtree(path, ignore_errors=True)
        return stat(path, **options)

    monkeypatch.setattr(Path, "stat", late)
    drop_old(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["old3", "old4", "old5", "old6"]


def test_the_logs_of_a_run_that_still_writes_are_kept(tmp_path: Path) -> None:
    for number in range(7):
        (tmp_path / f"run{number}").mkdir()
        os.utime(tmp_path / f"run{number}", (number, number))
    drop_old(tmp_path, lambda name: name == "run1")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run1", "run3", "run4", "run5", "run6"]


def test_an_experiment_keeps_its_working_files_in_the_repository_and_removes_none(repo: Callable[..., Path]) -> None:
    """Experiments may run at the same time, and DVC may not have recorded another one's results yet."""
    folder = repo("import os; print(os.environ['PECO_WORK'])")
    clone = folder / ".dvc/tmp/exps/one"
    shutil.copytree(folder, clone, ignore=shutil.ignore_patterns(".dvc"))
    (folder / ".work/tokenizer-1").mkdir(parents=True)
    (folder / ".work/tokenizer-1/finished").touch()
    status, out, _ = launch(clone, PECO_WORK="")
    assert (status, out.splitlines()[0]) == (0, str(folder / ".work"))
    assert (folder / ".work/tokenizer-1").exists()


def test_finished_work_of_other_stages_is_removed_and_the_stages_own_is_kept(repo: Callable[..., Path]) -> None:
    folder = repo("print('new')")
    for name in ("shards-1", "tokenizer-1", "evaluate_knn-1"):
        (folder / ".work" / name).mkdir(parents=True)
        (folder / ".work" / name / "finished").touch()
    (folder / ".work/shards-2").mkdir()  # stopped
    assert launch(folder, PECO_WORK="")[0] == 0
    assert sorted(path.name for path in (folder / ".work").glob("*-*")) == ["shards-2", "tokenizer-1"]


def test_lines_appear_as_they_are_written(repo: Callable[..., Path]) -> None:
    process = start(repo("import time\nprint('first')\ntime.sleep(60)"))
    assert process.stdout is not None
    assert process.stdout.readline() == "first\n"
    process.terminate()
    process.communicate(timeout=20)


def test_a_stage_of_a_foreach_runs_its_own_module(repo: Callable[..., Path]) -> None:
    status, out, _ = launch(repo({"evaluate@knn": "print('knn')"}), "evaluate@knn")
    assert status == 0
    assert out.startswith("knn\nevaluate@knn: ")


def test_the_environment_holds_threads_workers_and_progress(repo: Callable[..., Path]) -> None:
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "PECO_THREADS", "PECO_WORKERS", "PECO_PROGRESS", "MINE")
    source = f"import os\nprint(*map(os.environ.get, {names}))"
    folder = repo({"tokenizer": source, "shards": source})
    assert launch(folder, MINE="kept")[1].startswith("1 1 1 3 plain kept\n")
    assert launch(folder, "shards", PECO_NPROC="2", PECO_WORKERS="5")[1].startswith("2 2 2 5 plain None\n")


def test_several_processes_share_a_job_and_their_lines_name_the_rank(repo: Callable[..., Path]) -> None:
    folder = repo("import os\nprint(os.environ['RANK'], os.environ['WORLD_SIZE'])")
    status, out, err = launch(folder, PECO_NPROC="2")
    assert (status, err) == (0, "")
    assert sorted(out.splitlines()[:2]) == ["[0] 0 2", "[1] 1 2"]


def test_nodes_are_simulated(repo: Callable[..., Path]) -> None:
    folder = repo("import os\nprint(os.environ['WORLD_SIZE'], os.environ['LOCAL_RANK'])")
    status, out, err = launch(folder, PECO_NODES="2", PECO_NPROC="1")
    assert (status, err) == (0, "")
    assert sorted(out.splitlines()[:2]) == ["[0.0] 2 0", "[1.0] 2 0"]


def test_an_error_that_the_user_can_fix_is_one_line_and_status_2(repo: Callable[..., Path]) -> None:
    status, out, err = launch(repo(FIXABLE))
    assert (status, out, err) == (2, "", "error: data: missing; get some\n")


def test_ranks_that_fail_because_another_did_show_nothing(repo: Callable[..., Path]) -> None:
    one = FIXABLE.replace(
        "def main():", "import os, time\ndef main():\n    if os.environ['RANK'] == '0':\n        time.sleep(1); 1 / 0"
    )
    late = one.replace("time.sleep(1); 1 / 0", "signal.signal(signal.SIGTERM, lambda *_: 1 / 0); time.sleep(60)")
    status, out, err = launch(repo("import signal" + late), PECO_NPROC="2")
    assert (status, out, err) == (2, "", "error: data: missing; get some\n")


@pytest.mark.parametrize("processes", ["1", "2"])
def test_a_crash_shows_its_own_traceback_and_no_other(repo: Callable[..., Path], processes: str) -> None:
    status, out, err = launch(
        repo("import os\nif os.environ.get('RANK', '0') == '0': 1 / 0\nimport time; time.sleep(60)"),
        PECO_NPROC=processes,
    )
    assert (status, out) == (1, "")
    assert err.count("Traceback") == 1
    assert err.rstrip().endswith("ZeroDivisionError: division by zero")
    assert not re.search("torchx|torch/distributed|elastic", err)


def test_a_stage_that_is_killed_without_output_is_reported(repo: Callable[..., Path]) -> None:
    folder = repo("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)")
    status, _, err = launch(folder)
    assert status == 2
    assert re.fullmatch(
        r"error: tokenizer: its process was ended by SIGKILL \(out of memory\?\); its logs are in \S+\n", err
    )


@pytest.mark.parametrize(("number", "processes"), [(signal.SIGTERM, 1), (signal.SIGINT, 1), (signal.SIGTERM, 2)])
def test_a_stop_lets_the_stage_save_its_work(repo: Callable[..., Path], number: signal.Signals, processes: int) -> None:
    folder = repo(PATIENT)
    process = start(folder, PECO_NPROC=str(processes))
    wait_for(*(folder / f"pid{rank}" for rank in range(processes)))
    process.send_signal(number)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 128 + number
    assert all((folder / f"saved{rank}").exists() for rank in range(processes))
    assert err.count("\n") == 1
    assert "tokenizer: stopping" in err
    assert children_in(folder) == []


def test_a_stop_after_the_end_of_the_stage_is_no_traceback(repo: Callable[..., Path]) -> None:
    """DVC doesn't record the result then, and stops, too."""
    folder = repo("print('done')")
    (folder / ".work").mkdir(exist_ok=True)
    os.mkfifo(folder / ".work/times.jsonl")  # the launcher waits there for a reader
    process = start(folder)
    assert process.stdout is not None
    while not re.match(r"tokenizer: [\d.]+ s$", process.stdout.readline()):
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert (process.returncode, err) == (128 + signal.SIGINT, "")


def test_a_stop_that_arrives_twice_at_once_is_one(repo: Callable[..., Path]) -> None:
    folder = repo(PATIENT)
    process = start(folder)
    wait_for(folder / "pid0")
    process.send_signal(signal.SIGINT)
    time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=20)
    assert process.returncode == 130
    assert (folder / "saved0").exists()


def test_a_second_signal_kills(repo: Callable[..., Path]) -> None:
    folder = repo(DEAF)
    process = start(folder)
    wait_for(folder / "pid0")
    process.terminate()
    time.sleep(1.2)
    process.terminate()
    process.communicate(timeout=10)
    assert process.returncode == 143
    assert children_in(folder) == []


def test_a_stage_that_does_not_stop_in_time_is_killed(repo: Callable[..., Path]) -> None:
    folder = repo(DEAF)
    process = start(folder, PECO_GRACE_SECONDS="1")
    wait_for(folder / "pid0")
    process.terminate()
    process.communicate(timeout=10)
    assert process.returncode == 143
    assert children_in(folder) == []


def test_a_killed_rank_ends_the_others(repo: Callable[..., Path]) -> None:
    folder = repo(PATIENT)
    process = start(folder, PECO_NPROC="2")
    wait_for(folder / "pid0", folder / "pid1")
    os.kill(int((folder / "pid1").read_text()), signal.SIGKILL)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 2  # as after a lack of memory, the most common cause
    assert "was ended by SIGKILL (out of memory?)" in err
    assert children_in(folder) == []


def test_processes_that_a_stage_leaves_behind_are_ended(repo: Callable[..., Path]) -> None:
    folder = repo("import subprocess\nsubprocess.Popen(['sleep', '60'], start_new_session=True)")
    assert launch(folder)[0] == 0
    assert children_in(folder) == []


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux signals children when their parent dies")
@pytest.mark.parametrize("processes", [1, 2])
def test_a_killed_launcher_takes_its_stage_along(repo: Callable[..., Path], processes: int) -> None:
    folder = repo(PATIENT)
    process = start(folder, PECO_NPROC=str(processes))
    wait_for(*(folder / f"pid{rank}" for rank in range(processes)))
    process.kill()
    process.communicate(timeout=10)
    ranks = [int((folder / f"pid{rank}").read_text()) for rank in range(processes)]
    deadline = time.monotonic() + 10
    while any(map(is_alive, ranks)):
        assert time.monotonic() < deadline, "the stage still runs"
        time.sleep(0.05)
    assert all((folder / f"saved{rank}").exists() for rank in range(processes))


def test_an_error_that_all_ranks_print_is_shown_once_and_alone(capsys: pytest.CaptureFixture[str]) -> None:
    screen = Screen()
    lines = [("Traceback of a victim", "0"), ("error: no disk", "1"), ("error: no disk", "0")]
    screen.show([Line("a warning", error=True, rank="0")])
    screen.show([Line(text, error=True, rank=rank) for text, rank in lines])
    screen.show([Line("Traceback of another", error=True, rank="2"), Line("still shown", error=False, rank="2")])
    assert capsys.readouterr() == ("[2] still shown\n", "[0] a warning\nerror: no disk\n")


PROGRESS = (
    "import os\nassert os.environ['PECO_PROGRESS'] == '{}'\n"
    "print('start')\nfor i in range(2): print(f'\\rstep {{i}}')\nprint('end')"
)


def test_progress_is_redrawn_on_a_terminal(repo: Callable[..., Path]) -> None:
    folder = repo(PROGRESS.format("bar"))
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(folder)
        os.execve(sys.executable, [sys.executable, "-m", "pipelines.launch", "tokenizer"], environment(COLUMNS="80"))
    shown = b""
    try:
        while chunk := os.read(terminal, 4096):
            shown += chunk
    except OSError:  # the other end is closed
        pass
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    text = shown.decode().replace("\r\n", "\n")
    assert text.startswith("start\n\r\x1b[Kstep 0\r\x1b[Kstep 1\nend\ntokenizer: ")


def test_progress_is_plain_lines_in_a_pipe(repo: Callable[..., Path]) -> None:
    _, out, _ = launch(repo(PROGRESS.format("plain")))
    assert out.splitlines()[:4] == ["start", "step 0", "step 1", "end"]


@pytest.mark.parametrize(
    ("stage", "env", "message"),
    [
        (
            "nothing",
            {},
            "nothing: no such stage; expected one of: shards, tokenizer, evaluate@knn, evaluate@other, unknown",
        ),
        ("unknown", {}, "unknown: there is no module peco.stages.unknown; add one"),
        ("evaluate@other", {}, "evaluate@other: there is no module peco.evaluate.other.stage; add one"),
        ("tokenizer", {"PECO_NPROC": "two"}, "PECO_NPROC (environment): 'two' is not allowed; expected an integer"),
        ("tokenizer", {"PECO_NODES": "0"}, "PECO_NODES (environment): 0 is not allowed; expected a number at least 1"),
        (
            "tokenizer",
            {"PECO_SCHEDULER": "moon"},
            "PECO_SCHEDULER: 'moon' is not allowed; expected local_cwd, kubernetes or slurm",
        ),
    ],
)
def test_a_wrong_call_is_one_line(repo: Callable[..., Path], stage: str, env: dict[str, str], message: str) -> None:
    assert launch(repo("print('not started')"), stage, **env) == (2, "", f"error: {message}\n")


def test_wrong_parameters_stop_before_anything_starts(repo: Callable[..., Path]) -> None:
    folder = repo("print('not started')")
    (folder / "params.yaml").write_text((folder / "params.yaml").read_text().replace("seed:", "sead:", 1))
    status, out, err = launch(folder)
    assert (status, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1


def stage(**meta: int) -> Stage:
    return Stage(StageName("s"), ("x",), (), (), (), meta, kind="train")


def test_a_stage_gets_the_processes_of_meta_on_one_node() -> None:
    found = local_resources(stage(nodes=4, processes=2, threads=3, workers=4), {})
    assert (found.nodes, found.processes, found.threads, found.workers) == (1, 2, 3, 4)
    assert local_resources(stage(nodes=4), {"PECO_NODES": "2"}).nodes == 2


def test_zero_means_all_gpus_and_cores_of_the_machine() -> None:
    cores = len(os.sched_getaffinity(0))
    without_gpu = local_resources(stage(processes=0), {"CUDA_VISIBLE_DEVICES": ""})
    assert (without_gpu.processes, without_gpu.threads) == (1, cores)
    assert local_resources(stage(processes=0), {"CUDA_VISIBLE_DEVICES": "0,1,2"}).processes == 3
    assert local_resources(stage(processes=cores * 2), {}).threads == 1


def test_gpus_are_counted_without_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'GPU 0: X (UUID: a)'\necho '  MIG 1g.10gb'\necho 'GPU 1: X (UUID: b)'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert gpus({}) == 2
    assert gpus({"CUDA_VISIBLE_DEVICES": "1"}) == 1
    tool.write_text("#!/bin/sh\nexit 9\n")
    assert gpus({}) == 0
