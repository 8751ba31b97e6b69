"""What all stages share: how one is started, where it works, and how it hands over its results.

A stage module has `PARAMS`, the parameters it reads, and `main(run)`. It is run as `python -m peco.stages.<stage>` by the
launcher, in one process or in many under torchrun.

Working files live under `$PECO_WORK` (default `.work`), keyed by the stage's parameters and inputs: a stage that was killed finds
them again, a stage whose inputs changed does not. Results appear at their final place only when complete.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import sys
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from peco import config as parameters
from peco.config import Config
from peco.errors import Interrupted, PecoError

SHARDS = Path("artifacts/shards")
PERCEPTUAL_NET = Path("artifacts/perceptual_net")
TOKENIZER = Path("artifacts/tokenizer")
TOKENS = Path("artifacts/tokens")
BACKBONE = Path("artifacts/backbone")
METRICS = Path("metrics")
PLOTS = Path("metrics/plots")
REPORT = Path("reports/report.html")


class Skipped(Exception):
    """The stage can't be done on this data, which is no error: the reason becomes its metrics."""


WORK_FORMAT = 1  # of checkpoints and other working files: raised where older ones can't be gone on from
EXIT_ERROR, EXIT_INTERRUPTED = 2, 143


@dataclass(frozen=True)
class StageRun:
    """One run of a stage.

    Args:
        name: of the stage, as in dvc.yaml.
        config: only the parameters that the stage declares.
    """

    name: str
    config: Config

    @property
    def workers(self) -> int:
        """Data loading processes that the launcher grants."""
        return int(os.environ.get("PECO_WORKERS", "0"))

    def work(self, inputs: Iterable[Path]) -> Path:
        """Folder for this run's working files: the same for equal parameters and inputs, and only then."""
        state = {
            "format": WORK_FORMAT,
            "params": parameters.to_dict(self.config),
            "inputs": [content_hash(path) for path in inputs],
        }
        key = hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()[:16]
        folder = work_root() / f"{self.name.replace('@', '_')}-{key}"
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def metrics(self, values: dict[str, Any]) -> None:
        """Write the stage's metrics file."""
        write_json(METRICS / f"{self.name.replace('@', '/')}.json", rounded(values))


def work_root() -> Path:
    """Where working files go; ignored by git and DVC."""
    return Path(os.environ.get("PECO_WORK", ".work"))


def is_main() -> bool:
    """Whether this process is the one that writes results."""
    return os.environ.get("RANK", "0") == "0"


def content_hash(path: Path) -> str:
    """Hash of a result of an earlier stage. `index.json`, where there is one, holds the hashes of what lies beside it.

    Raises:
        PecoError: there is no such result.
    """
    if not path.exists():
        raise PecoError(f"{path}: missing; `dvc repro` makes it, `dvc pull` fetches it")
    if path.is_dir() and (path / "index.json").exists():
        path = path / "index.json"
    digest = hashlib.sha256()
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if file.is_file():
            digest.update(str(file.relative_to(path.parent)).encode())
            with file.open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


def rounded(values: Any) -> Any:
    """The same values with floats at six significant digits, as metric files show them."""
    if isinstance(values, dict):
        return {name: rounded(value) for name, value in values.items()}
    return float(f"{values:.6g}") if isinstance(values, float) else values


def write_json(path: Path, values: Any) -> None:
    """Write JSON whose bytes depend on `values` alone."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def finished(work: Path) -> None:
    """Drop the working files of a run whose results are published."""
    shutil.rmtree(work, ignore_errors=True)


def run_stage(name: str, params: Iterable[str], main: Callable[[StageRun], None]) -> None:
    """Run a stage as this process's work, and exit: 0, 2 for an error the user can mend, 143 if interrupted, 1 for a defect."""
    threads = int(os.environ.get("PECO_THREADS", "0"))
    if threads:
        torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.benchmark = False
    try:
        run = StageRun(name, parameters.restrict(parameters.load(), params))
        try:
            main(run)
        except Skipped as reason:
            if is_main():
                print(f"{name}: skipped: {reason}")
                run.metrics({"skipped": str(reason)})
        code = 0
    except Interrupted as stop:
        print(f"{name}: {stop}", file=sys.stderr)
        code = EXIT_INTERRUPTED
    except KeyboardInterrupt:
        print(f"{name}: interrupted", file=sys.stderr)
        code = EXIT_INTERRUPTED
    except PecoError as error:
        print(f"error: {name}: {error}", file=sys.stderr)
        code = EXIT_ERROR
    except OSError as error:
        if error.errno != errno.ENOSPC:
            traceback.print_exc()
            code = 1
        else:
            print(
                f"error: {name}: disk full while writing {error.filename or 'results'}: free space and run again",
                file=sys.stderr,
            )
            code = EXIT_ERROR
    except Exception:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    # Leaving without the interpreter's teardown: a rank that waits there for a dead peer would hang the job.
    os._exit(code)
