"""The text of params.yaml."""

from __future__ import annotations

import pytest
import yaml

from peco.core.params import parse_params
from pipelines.workflow import overrides
from pipelines.workflow.compose import PRESETS, compose_params, render


@pytest.mark.parametrize("preset", PRESETS)
def test_params_yaml_has_the_form_in_which_dvc_writes_it_back(preset: str) -> None:
    values = compose_params(preset, [])
    text = render(values)
    assert overrides.apply(text, [f"seed={values['seed']}"]) == text
    changed = overrides.apply(text, ["tokenizer.optim.lr=0.000012", "report.images=9"])
    lines = set(text.splitlines()) ^ set(changed.splitlines())
    assert {"    lr: 1.2e-05", "report: {images: 9}"} < lines and len(lines) <= 4
    assert parse_params(yaml.safe_load(text)) == parse_params(values)
