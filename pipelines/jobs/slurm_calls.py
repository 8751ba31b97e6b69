"""The calls of Slurm's commands: their output, or the kind of their failure by their messages."""

from __future__ import annotations

import re
import shlex
import subprocess
import tempfile
from typing import Any

from torchx.runner import Runner

from peco.core.errors import PecoError

# Messages of sbatch: of a limit of submitted jobs, and of a controller that doesn't answer.
_SUBMIT_LIMIT = re.compile(r"(Assoc|QOS)\w*Submit\w*Limit")
_AWAY = re.compile(
    "unable to contact|timed out|connection refused|communication|standby|temporarily|zero bytes", re.IGNORECASE
)


class NoAnswer(Exception):
    """Slurm can't answer now, and may later: one line with the reason."""


class Full(Exception):
    """Slurm takes no more jobs before others have ended: one line with the reason."""


def call(command: str, *arguments: str) -> str:
    """Output of one of Slurm's commands; empty where it doesn't know the job (any more).

    Raises:
        PecoError: there is no such command.
        NoAnswer: it failed.
    """
    try:
        done = subprocess.run([command, *arguments], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise PecoError(f"{command}: not found; PECO_SCHEDULER=slurm needs Slurm's commands on the PATH") from None
    if done.returncode and "Invalid job id" not in done.stderr:
        raise NoAnswer(f"{command}: {' '.join(done.stderr.split()) or f'status {done.returncode}'}")
    return done.stdout


def submit(runner: Runner, request: Any) -> tuple[str, list[str]]:
    """Submit a job through TorchX. Returns TorchX's handle, and the messages of sbatch, which TorchX would leave on stderr.

    Raises:
        PecoError: Slurm refuses the job.
        Full: the user, the account or the QOS has as many jobs as allowed.
        NoAnswer: the controller doesn't answer.
    """
    with tempfile.NamedTemporaryFile("r", errors="replace") as messages:
        redirect = f'exec "$0" "$@" 2>{shlex.quote(messages.name)}'
        request.request.cmd = ["sh", "-c", redirect, *request.request.cmd]
        try:
            handle = runner.schedule(request)
        except subprocess.CalledProcessError as error:
            reason = " ".join(messages.read().split()) or f"sbatch: status {error.returncode}"
            if _SUBMIT_LIMIT.search(reason):
                raise Full(reason) from None
            if _AWAY.search(reason):
                raise NoAnswer(reason) from None
            raise PecoError(f"Slurm refuses the job ({reason}); change what it names and run again") from None
        return str(handle), messages.read().splitlines()
