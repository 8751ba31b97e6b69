"""Command line of `make fuzz`: runs mutated inputs and prints a table of their ends.

python -m tests.fuzz 10000 --seed 0
python -m tests.fuzz 1000 --only coco
python -m tests.fuzz --only coco:123 --seed 0      # one input again, with its fault
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from .kinds import KINDS
from .runner import Case, Outcome, default_jobs, run_cases

KEPT = Path(".work/fuzz")
ENDS = ("result", "refusal", "fault")


def plan(count: int, seed: int, only: str | None = None) -> list[Case]:
    """The cases of a run: `count` of all kinds by their shares, or of the one kind, or a single one (`kind:number`)."""
    kind, _, number = (only or "").partition(":")
    if number:
        return [Case(kind, seed, int(number))]
    kinds = {name: KINDS[name].share for name in ([kind] if kind else KINDS)}
    total, cases, before = sum(kinds.values()), list[Case](), 0
    for name, share in kinds.items():
        upto = before + share
        cases += [Case(name, seed, i) for i in range(count * upto // total - count * before // total)]
        before = upto
    return cases


def table(outcomes: Iterable[Outcome]) -> str:
    """Numbers of inputs and of their ends by kind, in Markdown."""
    counts: dict[str, Counter[str]] = {}
    for outcome in outcomes:
        row = counts.setdefault(outcome.case.kind, Counter())
        row.update(["inputs", outcome.end, *(["command"] if outcome.command else [])])
    columns = ("inputs", "command", *ENDS)
    lines = ["| kind | inputs | by a command | results | refusals | faults |", "|---|---|---|---|---|---|"]
    total = sum(counts.values(), Counter[str]())
    lines += [
        f"| {name} | {' | '.join(str(row[c]) for c in columns)} |" for name, row in (*counts.items(), ("all", total))
    ]
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description="Read mutated inputs.")
    parser.add_argument("count", nargs="?", type=int, default=300, help="number of inputs (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--only", metavar="KIND[:NUMBER]", help=f"one kind, or one input of it; kinds: {', '.join(KINDS)}"
    )
    parser.add_argument("--jobs", type=int, default=default_jobs())
    parser.add_argument("--keep", type=Path, default=KEPT, help="folder for inputs of faults (default: %(default)s)")
    args = parser.parse_args(argv)
    if args.only and args.only.partition(":")[0] not in KINDS:
        parser.error(f"--only: unknown kind; known are {', '.join(KINDS)}")
    args.keep.mkdir(parents=True, exist_ok=True)
    outcomes = []
    with (args.keep / "refusals.tsv").open("w", encoding="utf-8") as refusals:
        for outcome in run_cases(plan(args.count, args.seed, args.only), args.jobs, args.keep.absolute()):
            outcomes.append(outcome)
            if outcome.end == "fault":
                last = outcome.text.strip().splitlines()[-1]
                print(f"{outcome.case}: {last[:200]}; its input is in {args.keep / str(outcome.case)}", flush=True)
            elif outcome.end == "refusal":
                refusals.write(f"{outcome.case}\t{outcome.text}\n")
            if len(outcomes) % 1000 == 0:
                print(f"{len(outcomes)} inputs", flush=True)
    print(table(outcomes))
    if args.only and len(outcomes) == 1:
        print(outcomes[0].text)
    return int(any(outcome.end == "fault" for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())
