"""The environment variables: every one that the code reads is declared once, and described in the documentation."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from peco.core import environment
from peco.core.environment import Variable
from peco.core.errors import PecoError
from peco.core.resources import Resources
from pipelines.workflow import environment as workflow
from pipelines.workflow.stage_resources import is_variable, variable

ROOT = Path(__file__).parents[1]
DECLARED = {
    value.name: value
    for module in (environment, workflow)
    for value in vars(module).values()
    if isinstance(value, Variable)
}
# Names that are examples in texts, and those of tests.
NOT_READ = re.compile(r"PECO_TEST_\w+")


def test_every_variable_in_the_code_is_declared() -> None:
    used = {
        name
        for folder in ("peco", "pipelines", "k8s")
        for path in (ROOT / folder).rglob("*.py")
        for name in re.findall(r"PECO_[A-Z_]*[A-Z]", path.read_text())
    }
    assert {name for name in used if not (name in DECLARED or is_variable(name) or NOT_READ.match(name))} == set()


@pytest.mark.parametrize("name", DECLARED)
def test_every_variable_is_in_a_table_of_the_documentation(name: str) -> None:
    rows = [
        line
        for page in ("architecture", "cluster")
        for line in (ROOT / f"docs/{page}.md").read_text().splitlines()
        if line.startswith("|") and f"`{name}`" in line.split("|")[1]
    ]
    assert rows, f"{name}: {DECLARED[name].meaning}"
    # The launcher sets some by `resources`, and a folder of the cluster is named by its last part.
    default = DECLARED[name].default.rpartition("/")[2]
    cells = [row.split("|")[2] for row in rows]
    assert not default or any(default in cell or "`resources." in cell for cell in cells)


def test_every_key_of_the_resources_has_a_variable() -> None:
    names = [variable(field.name) for field in dataclasses.fields(Resources)]
    assert len(set(names)) == len(names)
    assert all(is_variable(name) and is_variable(f"{name}_PRETRAIN") for name in names)


def test_an_empty_variable_counts_as_unset() -> None:
    seconds = Variable("SECONDS", "", "60")
    assert (seconds.integer({}), seconds.integer({"SECONDS": ""}), seconds.integer({"SECONDS": "5"})) == (60, 60, 5)
    assert (seconds.is_set({"SECONDS": ""}), seconds.is_set({"SECONDS": "5"})) == (False, True)


@pytest.mark.parametrize("text", ["-1", "1.5", "many", "101"])
def test_a_wrong_integer_names_its_variable(text: str) -> None:
    with pytest.raises(
        PecoError, match=rf"^PORT: '{re.escape(text)}' is not allowed; expected an integer, from 0 to 100$"
    ):
        Variable("PORT", "").integer({"PORT": text}, high=100)


@pytest.mark.parametrize("text", ["-1", "soon", "inf", "nan"])
def test_a_wrong_number_names_its_variable(text: str) -> None:
    with pytest.raises(PecoError, match=rf"^SECONDS: '{text}' is not allowed; expected a number, at least 0$"):
        Variable("SECONDS", "").number({"SECONDS": text})
