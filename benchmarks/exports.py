"""Exported models next to the originals: largest difference, size of the file, images per second, as a markdown table.

    python -m benchmarks.exports [--artifacts artifacts] [--batch 32] [--rounds 7]

The models are those of a finished run. Each is exported by `peco export` to ONNX and torch.export; then original and exports
process the same images in turn, on the CPU with as many threads as torch has. The ratio is that of images per second to the
original in the same round: median, lowest and highest of the rounds.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import re
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import onnxruntime
import torch
from torch import Tensor

from peco.use.export import INPUT, export, open_exported

MODELS = ("perceptual_net", "tokenizer", "backbone", "classifier")
Run = Callable[[Tensor], object]


def onnx_run(path: Path) -> Run:
    """A session of onnxruntime on the CPU."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])
    return lambda x_BCHW: session.run(None, {INPUT: x_BCHW.numpy()})


def torch_run(path: Path) -> Run:
    """A program of torch.export."""
    with path.open("rb") as file:
        module = torch.export.load(io.BytesIO(file.read())).module()
    return lambda x_BCHW: module(x_BCHW)


OPENED: dict[str, Callable[[Path], Run]] = {"onnx": onnx_run, "torch-export": torch_run}


def seconds(run: Run, x_BCHW: Tensor) -> float:
    start = time.perf_counter()
    run(x_BCHW)
    return time.perf_counter() - start


def rows(folder: Path, batch: int, rounds: int) -> list[str]:
    """The rows of a model, one for each format."""
    original = open_exported(str(folder), None)
    x_BCHW = torch.rand(batch, 3, original.size, original.size, generator=torch.Generator().manual_seed(0))
    runs: dict[str, Run] = {"original": original.module}
    facts = {}
    with tempfile.TemporaryDirectory() as work:
        for kind, opened in OPENED.items():
            path = Path(work) / kind
            printed = io.StringIO()
            with contextlib.redirect_stdout(printed):
                export(str(folder), kind, str(path), size=None, tolerance=1e-3)
            difference = re.search(r"difference from the original ([\d.e+-]+)", printed.getvalue())
            assert difference
            facts[kind] = (difference[1].rstrip(","), path.stat().st_size / 1e6)
            runs[kind] = opened(path)
        with torch.no_grad():
            for run in runs.values():
                run(x_BCHW)
            times = [{name: seconds(run, x_BCHW) for name, run in runs.items()} for _ in range(rounds)]
    rate = batch / statistics.median(t["original"] for t in times)
    found = []
    for kind, (difference_text, size) in facts.items():
        ratios = [t["original"] / t[kind] for t in times]
        found.append(
            f"| {folder.name} | {kind} | {difference_text} | {size:.1f} | {rate:.0f} | {rate * statistics.median(ratios):.0f} | "
            f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}) |"
        )
    return found


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--artifacts", type=Path, default=Path("artifacts"), metavar="DIR", help="default: %(default)s")
    parser.add_argument("--batch", type=int, default=32, metavar="N", help="images at a time (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=7, metavar="N", help="default: %(default)s")
    arguments = parser.parse_args(argv)
    print("| model | format | largest difference | MB | images/s, original | export | ratio |")
    print("|---|---|---|---|---|---|---|")
    for name in MODELS:
        print("\n".join(rows(arguments.artifacts / name, arguments.batch, arguments.rounds)), flush=True)


if __name__ == "__main__":
    main()
