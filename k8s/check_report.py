"""The report of `make cluster-check`: a list of what is right and what is not, with what to do."""

from __future__ import annotations

from collections.abc import Callable

from peco.core.errors import PecoError
from pipelines.jobs.kube import Unreachable

RIGHT, WRONG, SKIPPED = "√", "×", "‼"  # noqa: RUF001


class Report:
    """Prints results as they come."""

    def __init__(self) -> None:
        self.wrong = 0

    def section(self, title: str) -> None:
        """Begin a part of the list."""
        print(f"\n{title}\n{'-' * len(title)}", flush=True)

    def run(self, title: str, check: Callable[[], str]) -> bool:
        """Report a check, which returns a text or raises PecoError; True if it is right."""
        try:
            self.right(title, check())
            return True
        except PecoError as error:
            self.fail(title, str(error))
        except Unreachable as error:
            self.fail(title, f"the API can't be reached ({error})")
        return False

    def right(self, title: str, text: str) -> None:
        """Report what is right."""
        print(f"{RIGHT} {title}{': ' if text else ''}{text}", flush=True)

    def fail(self, title: str, text: str, details: tuple[str, ...] = ()) -> None:
        """Report what is wrong and what to do, with lines that tell more."""
        self.wrong += 1
        print("\n".join([f"{WRONG} {title}", *(f"    {line}" for line in (text, *details))]), flush=True)

    def skip(self, title: str, reason: str) -> None:
        """Report what is not checked."""
        print(f"{SKIPPED} {title}: not checked; {reason}", flush=True)

    def note(self, text: str) -> None:
        """Report why a check takes long."""
        print(f"    … {text}", flush=True)

    def end(self) -> int:
        """Print the summary, and return the exit status."""
        failed = f"{self.wrong} {'check' if self.wrong == 1 else 'checks'} failed {WRONG}"
        print(f"\n{failed if self.wrong else f'All is right {RIGHT}'}", flush=True)
        return 2 if self.wrong else 0
