"""The members of a tar that make one sample, and its image among them.

webdataset's rule: the key is all of a name up to the first dot after the last slash, the rest is the ending. It folds names such
as `2023-01-05 10.30.22.jpg` into one sample, so it is used only where no sample gets two images by it. `choose_rule` finds another
one.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Literal

from peco.core.errors import PecoError
from peco.files.names import IMAGE_EXTENSIONS, extension

ALL = "all"  # value of `dataset.image_field`: each image of a sample is used
PLAIN = "plain"  # the image without a dot in its ending counts, if there are others


@dataclass(frozen=True)
class Rule:
    """A rule by which names are divided into key and ending.

    Attributes:
        key: at the first dot, as webdataset does, or at the last one.
        image: the ending of a sample's image; None: any image's extension; ALL or PLAIN.
        endings: endings in lower case that are taken whole, even if they hold dots.
    """

    key: Literal["first dot", "last dot"] = "first dot"
    image: str | None = None
    endings: tuple[str, ...] = ()

    def divide(self, name: str) -> tuple[str, str]:
        """Key and ending in lower case of a member. The ending is empty for names without a dot."""
        folder, slash, file = name.rpartition("/")
        lower = file.lower()
        ending = next((e for e in self.endings if lower.endswith("." + e) and len(lower) > len(e) + 1), None)
        if ending is not None:
            return folder + slash + file[: -len(ending) - 1], ending
        stem, _, ending = file.partition(".") if self.key == "first dot" else file.rpartition(".")
        if self.key == "last dot" and not stem:
            stem, ending = ending, ""
        return folder + slash + stem, ending.lower()

    def is_image(self, ending: str) -> bool:
        """True for the ending of an image that can be read, or the one that the user named."""
        if self.image in (None, ALL, PLAIN):
            return extension("x." + ending) in IMAGE_EXTENSIONS
        return ending == self.image


class TwoImages(Exception):
    """A sample has two images, and the rule does not say which one counts. The arguments are their names."""


def first_rule(image_field: str | None, label_endings: Collection[str]) -> Rule:
    """The rule to try first: webdataset's, or the one that the user's ending of the images asks for."""
    if image_field in (None, ALL):
        return Rule(image=image_field)
    image = str(image_field).lower().lstrip(".")
    # The longest first: of `rgb.png` and `png` the former is meant.
    return Rule(image=image, endings=tuple(sorted({image, "json", *label_endings}, key=len, reverse=True)))


def choose_rule(path: str, tars: Iterable[Collection[str]], label_endings: Collection[str]) -> tuple[Rule, str]:
    """The rule for tars in which webdataset's gives a sample two images.

    1. Where every image has a label of its own by the last dot, keys go up to the last dot.
    2. Else, if several endings of images recur in the samples (`rgb.png` and `depth.png`): if exactly one of them has no dot, it is
       the image (`jpg`, not `seg.png`), as webdataset's users name it; if none or more have, the user must choose.
    3. Else, if each sample with several images has one without a dot in its ending, and the others have words there (`jpg` and
       `edited.jpg`), that one is the image, and the others count as left out.
    4. Else keys go up to the last dot, if every label then belongs to one image.

    Args:
        path: the source, for messages.
        tars: the names of the members of each tar.
        label_endings: endings in lower case that hold labels.

    Returns:
        The rule, and a sentence about it for the summary.

    Raises:
        PecoError: the user must choose; it names two members and the parameter.
    """
    names = [list(tar) for tar in tars]
    by_last = Rule("last dot", endings=tuple(sorted(label_endings, key=len, reverse=True)))
    problem, bare = _last_dot(names, by_last, label_endings)
    note = "keys of samples are the names up to the last dot, since names up to the first dot have several images"
    if problem is None and bare == 0:
        return by_last, note
    recurring, example = _recurring(names)
    if len(recurring) > 1:
        plain = [ending for ending in recurring if "." not in ending]
        if len(plain) == 1:
            others = ", ".join(sorted(recurring - set(plain)))
            return Rule(image=plain[0]), f"the image of a sample is its member {plain[0]}; not used: {others}"
        first, second = sorted(recurring)[:2]
        raise PecoError(
            f"{path}: {example}.{first} and {example}.{second} are images of one sample; choose by dataset.image_field: "
            f"{', '.join(sorted(recurring))}, or all"
        )
    if _is_plain(names):
        return Rule(
            image=PLAIN
        ), "the image of a sample is the one without a dot in its ending (dataset.image_field: all uses each)"
    if problem is not None:
        first, second = problem
        raise PecoError(
            f"{path}: {first} and {second} belong to one key, and neither the first nor the last dot of the names gives each label "
            "one image; choose by dataset.image_field: the ending of the images (such as jpg), or all"
        )
    return by_last, note


def _last_dot(names: list[list[str]], rule: Rule, labels: Collection[str]) -> tuple[tuple[str, str] | None, int]:
    """Two names that show that keys up to the last dot are wrong, or None; and the number of images without a label by them."""
    bare, first_dot = 0, Rule()
    for tar in names:
        images: dict[str, str] = {}
        above: dict[str, str] = {}  # images by their keys up to the first dot
        labelled: dict[str, str] = {}
        for name in tar:
            key, ending = rule.divide(name)
            if rule.is_image(ending):
                if extension(images.get(key, name)) != extension(name):
                    return (images[key], name), 0
                images[key] = above[first_dot.divide(name)[0]] = name
            elif ending in labels:
                labelled[key] = name
        for key, name in labelled.items():
            if key not in images and key in above:
                return (name, above[key]), 0
        bare += sum(key not in labelled for key in images)
    return None, bare


def _is_plain(names: list[list[str]]) -> bool:
    """True if each sample with several images has one without a dot in its ending, and words in the endings of the others."""
    for endings in _image_endings(names).values():
        dotted = [ending for ending in endings if "." in ending]
        if len(endings) > 1 and (len(dotted) != len(endings) - 1 or any(map(_is_numbered, dotted))):
            return False
    return True


def _image_endings(names: list[list[str]]) -> dict[tuple[int, str], set[str]]:
    """Endings of the images of each sample by the first dot: by the number of its tar and its key."""
    rule = Rule()
    samples: dict[tuple[int, str], set[str]] = defaultdict(set)
    for i, tar in enumerate(names):
        for name in tar:
            key, ending = rule.divide(name)
            if rule.is_image(ending):
                samples[i, key].add(ending)
    return samples


def _is_numbered(ending: str) -> bool:
    """True for endings such as `30.22.jpg`, in which numbers are a part of the name."""
    return any(part.strip("()- _").isdecimal() for part in ending.split(".")[:-1])


def _recurring(names: list[list[str]]) -> tuple[set[str], str]:
    """Endings of images by the first dot that more than half of the samples have, and a key with all of them if there is one."""
    samples = {key: {e for e in endings if not _is_numbered(e)} for key, endings in _image_endings(names).items()}
    samples = {key: endings for key, endings in samples.items() if endings}
    if len(samples) < 2:
        return set(), ""
    count = Counter(ending for endings in samples.values() for ending in endings)
    found = {ending for ending, number in count.items() if number > len(samples) / 2}
    example = next((key for (_, key), endings in samples.items() if found <= endings), "")
    return found, example
