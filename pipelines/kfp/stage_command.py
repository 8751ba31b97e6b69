"""The command of a step in its pod, for a stage that depends on others: `python -m pipelines.kfp.stage_command STAGE [PAGE]`.

PAGE is the path of the file to which the stage's page is written. PECO_RUN is the id of the run.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from peco.core.errors import PecoError
from pipelines.kfp import pod, step
from pipelines.workflow import environment


def main(argv: Sequence[str] | None = None) -> None:
    """Set up the pod's environment and run the stage.

    Raises:
        SystemExit: it failed or was stopped.
    """
    stage, *page = sys.argv[1:] if argv is None else argv
    try:
        pod.enter()
    except PecoError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    step.main(environment.RUN.text(), stage, page_path="".join(page))


if __name__ == "__main__":
    main()
