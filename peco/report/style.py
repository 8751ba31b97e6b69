"""The style sheet and the Jinja environment that the report shares with the pages of comparisons and of Kubeflow."""

from pathlib import Path

import jinja2

STYLE = Path(__file__).with_name("style.css").read_text(encoding="utf-8")


def page_environment(folder: Path) -> jinja2.Environment:
    """Jinja for the pages whose templates lie in a folder. Everything except `Markup` is escaped; a missing value is an error."""
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
