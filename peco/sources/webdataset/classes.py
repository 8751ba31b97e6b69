"""The numbers of classes: labels are numbers already, or names."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Literal

from peco.core.errors import PecoError

ClassNumbers = Literal["auto", "index", "id"]

_MAX_NUMBER = 1_000_000  # labels without class names must be smaller numbers
_PLAUSIBLE_CLASSES = 1000  # up to here, numbers without images may be classes
_PLAUSIBLE_GAPS = 10  # times as many numbers as classes are taken for classes without images


class Unnamed:
    """Classes of labels without a list of names.

    Args:
        labels: all that occur.
        mode: meaning of labels that are numbers: `index`, the position of the class; `id`, a name as any other; `auto`, an index if
            that is plausible.
        path: the source, for messages.

    Attributes:
        classes: all numbers up to the highest, or the labels that occur, sorted.
        note: a sentence for the summary, or "".

    Raises:
        PecoError: numbers that are not plausible as positions.
    """

    def __init__(self, labels: Collection[str], mode: ClassNumbers, path: str) -> None:
        numbers = sorted(int(label) for label in labels if is_number(label))
        self.note = ""
        if len(numbers) < len(labels) or mode == "id":
            names = sorted(label for label in labels if not is_number(label))
            self.classes = (*map(str, numbers), *names)
            self._numbers = {label: i for i, label in enumerate(self.classes)}
            if numbers and names:
                self.note = (
                    f"labels are numbers ({len(numbers)}) and names ({len(names)}); each is a class by that name"
                )
            return
        count = numbers[-1] + 1 if numbers else 0
        plausible = mode == "index" or count <= max(_PLAUSIBLE_CLASSES, _PLAUSIBLE_GAPS * len(numbers))
        if count > _MAX_NUMBER or not plausible:
            index = f"; index, all {count} numbers are classes" if count <= _MAX_NUMBER else ""
            raise PecoError(
                f"{path}: label {numbers[-1]} is not a class number, since only {len(numbers)} numbers up to it occur; choose by "
                f"dataset.class_numbers: id, each number that occurs is a class{index}"
            )
        self.classes = tuple(map(str, range(count)))
        self._numbers = {str(number): number for number in numbers}
        if count > len(numbers):
            self.note = f"labels are numbers up to {count - 1}, of which {len(numbers)} occur: {count} classes"

    def number(self, label: str) -> int:
        """Position of the class of a label that occurs."""
        return self._numbers[label]


class Named:
    """Classes by a list of names. A label is a name or the position of one.

    Args:
        names: in the order of their positions.
        labels: all that occur; None if that is not known.
        mode: meaning of labels that are numbers, if names are numbers as well: `index`, a position; `id`, a name; `auto`, what
            fits all labels, and an error if both do.
        path: the source, for messages.

    Raises:
        PecoError: `auto` can't decide.
    """

    def __init__(self, names: tuple[str, ...], labels: Collection[str] | None, mode: ClassNumbers, path: str) -> None:
        self.classes, self.note, self._path = names, "", path
        self._numbers = {str(int(name)): i for i, name in enumerate(names) if is_number(name)}  # 007 is 7, as in labels
        self._by_id = mode == "id"
        if mode == "auto" and any(int(name) != i for name, i in self._numbers.items()):
            found = sorted(filter(is_number, self._numbers if labels is None else labels), key=int)
            as_index = all(int(label) < len(names) for label in found)
            self._by_id = not as_index or all(label in self._numbers for label in found)
            if (as_index and self._by_id) or labels is None:
                example = next((n for n in found if self._numbers[n] != int(n)), None)
                if example is not None:
                    raise PecoError(
                        f"{path}: the classes are named by numbers, and label {example} may be the class {example} or the one at "
                        f"position {example}; choose by dataset.class_numbers: id (the class) or index (the position)"
                    )
        self._numbers |= {name: i for i, name in enumerate(names) if not is_number(name)}

    def number(self, label: str) -> int:
        """Position of the class of a label.

        Raises:
            PecoError: it is not among the names.
        """
        if is_number(label) and not self._by_id and int(label) < len(self.classes):
            return int(label)
        if label in self._numbers and (self._by_id or not is_number(label)):
            return self._numbers[label]
        raise PecoError(
            f"{self._path}: label {label} is not among the {len(self.classes)} classes named for these tars; "
            "fix classes.txt (or `classes` in the list)"
        )


class Streamed:
    """Classes of labels that are seen one after the other, without a list of names: they must be numbers.

    Attributes:
        classes: all numbers up to the highest one so far.
        note: as in `Unnamed`.
    """

    def __init__(self, mode: ClassNumbers, path: str) -> None:
        self._mode, self._path, self._found = mode, path, set[str]()
        self.classes: tuple[str, ...] = ()
        self.note = ""

    def number(self, label: str) -> int:
        """The label as a number.

        Raises:
            PecoError: it is none.
        """
        if not is_number(label) or self._mode == "id" or int(label) >= _MAX_NUMBER:
            raise PecoError(
                f"{self._path}: label {label} is not a class number, and streamed tars need all class names in advance; "
                'give them as "classes" in a JSON list of the tars'
            )
        self._found.add(label)
        return int(label)

    def finish(self) -> None:
        """Set the classes after the last label.

        Raises:
            PecoError: as `Unnamed`.
        """
        found = Unnamed(self._found, self._mode, self._path)
        self.classes, self.note = found.classes, found.note


def is_number(text: str) -> bool:
    """True for the whole numbers that may be positions of classes."""
    return re.fullmatch(r"[0-9]{1,18}", text) is not None
