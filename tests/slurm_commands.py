"""Stand-ins for sbatch, srun, squeue, sacct, scancel and sinfo, as far as the workflow uses them: they really run the script.

`install` puts them into a folder for the PATH; a job is a folder of files below `$FAKE_SLURM`. Tests create files there, too:
`full`: jobs wait forever; `purged`: squeue has forgotten the jobs that have ended; `unaccounted`: sacct knows no job;
`refusal`: sbatch ends with this text.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

COMMANDS = ("sbatch", "srun", "squeue", "sacct", "scancel", "sinfo")
SBATCH = {
    *("job-name", "output", "no-requeue", "partition", "time", "qos"),
    *("ntasks-per-node", "cpus-per-task", "mem", "gpus-per-node"),
}
SRUN = {"output", "error", "wait", "kill-on-bad-exit", "export"}
# Messages where the daemon, slurmctld or slurmdbd, can't be reached.
AWAY = {
    "squeue": "slurm_load_jobs error: Unable to contact slurm controller (connect failure)",
    "scancel": "scancel: error: slurm_kill_job2() failed: Unable to contact slurm controller (connect failure)",
    "sbatch": "sbatch: error: Batch job submission failed: Unable to contact slurm controller (connect failure)",
    "sacct": "sacct: error: slurm_persist_conn_open_without_init: failed",
}


def install(folder: Path) -> None:
    for name in COMMANDS:
        script = folder / name
        script.write_text(f'#!/bin/sh\nexec {sys.executable} -S {__file__} {name} "$@"\n')
        script.chmod(0o755)


def away(*commands: str) -> None:
    """From now on exactly these commands can't reach their daemon."""
    (root() / "away").write_text(" ".join(commands))


def calls(command: str) -> list[str]:
    """The arguments of each call of a command so far."""
    path = root() / "calls"
    lines = path.read_text().splitlines() if path.exists() else []
    return [line.partition(" ")[2] for line in lines if line.split()[0] == command]


def turn(job: Path, state: str) -> None:
    """Change the job's state; readers see the old or the new one."""
    part = job / f"state.{os.getpid()}"
    part.write_text(state)
    part.replace(job / "state")


def root() -> Path:
    return Path(os.environ["FAKE_SLURM"])


def jobs() -> list[Path]:
    return sorted((job for job in root().glob("[0-9]*")), key=lambda job: int(job.name))


def options(words: list[str], known: set[str]) -> tuple[dict[str, str], list[str]]:
    """Leading options, and the rest; an unknown option ends the process."""
    found = {}
    while words and words[0].startswith("--"):
        name, _, value = words.pop(0)[2:].partition("=")
        if name not in known:
            sys.exit(f"unrecognized option '--{name}'")
        found[name] = value
    return found, words


def sbatch(words: list[str]) -> None:
    if (root() / "refusal").exists():
        sys.exit((root() / "refusal").read_text())
    _, [script] = options(words, {"parsable"})
    groups = [
        options(shlex.split(line.removeprefix("#SBATCH ")), SBATCH)[0]
        for line in Path(script).read_text().splitlines()
        if line.startswith("#SBATCH --")
    ]
    job = root() / str(len(jobs()) + 101)
    job.mkdir()
    (job / "script").write_text(Path(script).read_text())
    (job / "names").write_text("\n".join(group["job-name"] for group in groups))
    (job / "options").write_text(repr(groups))
    pending = (root() / "full").exists()
    turn(job, "PENDING" if pending else "RUNNING")
    if not pending:
        with (job / "log").open("wb") as log:
            subprocess.Popen(
                [sys.executable, "-S", __file__, "watch", str(job)], stdout=log, stderr=log, start_new_session=True
            )
    print(job.name)


def watch(words: list[str]) -> None:
    job = Path(words[0])
    env = os.environ | {"SLURM_JOB_ID": job.name, "SLURM_JOB_NODELIST_HET_GROUP_0": "localhost"}
    code = subprocess.run(["bash", str(job / "script")], env=env, check=False).returncode
    (job / "code").write_text(str(code))
    if (job / "state").read_text() == "RUNNING":
        turn(job, "FAILED" if code else "COMPLETED")


def srun(words: list[str]) -> None:
    groups: list[list[str]] = [[]]
    for word in words:
        if word == ":":
            groups.append([])
        else:
            groups[-1].append(word)
    processes = []
    for node, group in enumerate(groups):
        found, command = options(group, SRUN)
        _, *pairs = found["export"].split(",")
        env = os.environ | dict(pair.split("=", 1) for pair in pairs) | {"NODE": str(node)}
        with open(found["output"], "wb") as out, open(found["error"], "wb") as error:
            processes.append(subprocess.Popen(command, env=env, stdout=out, stderr=error))
    (root() / os.environ["SLURM_JOB_ID"] / "tasks").write_text(" ".join(str(p.pid) for p in processes))
    while any(process.poll() is None for process in processes):
        if any(process.poll() for process in processes):  # --kill-on-bad-exit
            for process in processes:
                process.kill()
        time.sleep(0.02)
    sys.exit(max(code if code >= 0 else 128 - code for code in (p.returncode for p in processes)))


def squeue(words: list[str]) -> None:
    found, _ = options(words, {"noheader", "me", "name", "format", "jobs"})
    for job in jobs():
        state = (job / "state").read_text()
        if state not in ("PENDING", "RUNNING"):
            if (root() / "purged").exists() and found.get("jobs") == job.name:
                sys.exit("slurm_load_jobs error: Invalid job id specified")
            continue
        names = (job / "names").read_text().split()
        if found.get("jobs", job.name) != job.name or found.get("name", names[0]) not in names:
            continue
        number = job.name if len(names) == 1 else f"{job.name}+0"
        print(found["format"].replace("%i", number).replace("%T", state))


def sacct(words: list[str]) -> None:
    found, _ = options(words, {"noheader", "parsable2", "allocations", "jobs", "format"})
    assert found["format"] == "State,ExitCode"
    if (root() / "unaccounted").exists():
        return
    job = root() / found["jobs"]
    code = (job / "code").read_text() if (job / "code").exists() else "0"
    for state in (job / "state").read_text().split():  # parts of a job of several nodes may differ
        print(f"{state} by 1000|0:15" if state == "CANCELLED" else f"{state}|{code}:0")


def scancel(words: list[str]) -> None:
    found, [number] = options(words, {"signal"})
    job = root() / number
    with (job / "cancelled").open("a") as file:
        file.write(f"{found.get('signal', 'end')}\n")
    tasks = (job / "tasks").read_text().split() if (job / "tasks").exists() else []
    if "signal" not in found:
        turn(job, "CANCELLED")
    for pid in map(int, tasks):
        try:
            os.kill(pid, signal.SIGTERM if "signal" in found else signal.SIGKILL)
        except ProcessLookupError:
            continue


def sinfo(words: list[str]) -> None:
    if words == ["--version"]:
        print("slurm 24.11.5")
    elif re.fullmatch(r"--format %P,%m --noconvert", " ".join(words)):
        print("PARTITION,MEMORY\nbatch*,64000")
    else:
        sys.exit(f"sinfo: {words}")


if __name__ == "__main__":
    with (root() / "calls").open("a") as file:
        file.write(" ".join(sys.argv[1:]) + "\n")
    if (root() / "away").exists() and sys.argv[1] in (root() / "away").read_text().split():
        sys.exit(AWAY[sys.argv[1]])
    {
        "sbatch": sbatch,
        "watch": watch,
        "srun": srun,
        "squeue": squeue,
        "sacct": sacct,
        "scancel": scancel,
        "sinfo": sinfo,
    }[sys.argv[1]](sys.argv[2:])
