"""The short form of `make fuzz`, and its valid inputs."""

from __future__ import annotations

import contextlib
from pathlib import Path
from random import Random

import pytest
from fuzz import files
from fuzz.__main__ import plan, table
from fuzz.kinds import KINDS
from fuzz.runner import Case, run_cases

from peco.core.errors import PecoError

COUNT, SEED = 300, 0


@pytest.mark.parametrize("kind", KINDS)
def test_most_inputs_are_read_before_their_mutation(kind: str, tmp_path: Path) -> None:
    messages = []
    for number in range(6):
        files.write(KINDS[kind].files(Random(number)), tmp_path / str(number))
        for target in KINDS[kind].functions:
            try:
                with contextlib.chdir(tmp_path / str(number)):
                    target(Random(number))
            except PecoError as error:  # by parameters that are drawn too
                messages.append(str(error))
    assert len(messages) < 3 * len(KINDS[kind].functions), messages


def test_mutated_inputs_end_in_a_result_or_in_one_line(tmp_path: Path) -> None:
    outcomes = list(run_cases(plan(COUNT, SEED), jobs=2, keep=tmp_path))
    assert [f"{outcome.case}: {outcome.text}" for outcome in outcomes if outcome.end == "fault"] == []
    ends = [outcome.end for outcome in outcomes]
    assert len(ends) == COUNT and min(ends.count("result"), ends.count("refusal")) > COUNT / 10
    assert table(outcomes).splitlines()[-1].startswith(f"| all | {COUNT} |")


def test_a_case_is_the_same_each_time(tmp_path: Path) -> None:
    cases = [Case("coco", 3, number) for number in range(6)]
    first, second = (list(run_cases(cases, jobs=1, keep=tmp_path)) for _ in range(2))
    assert first == second
