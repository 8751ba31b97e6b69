"""The samples of a tar: images with their labels, by the rule for keys."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import IO

from peco.core.errors import PecoError
from peco.files.names import is_image_name
from peco.sources.base import Ignored
from peco.sources.webdataset.keys import ALL, PLAIN, Rule, TwoImages
from peco.sources.webdataset.labels import DAMAGED_JSON, ENDINGS, LabelField, NoLabel, json_keys
from peco.sources.webdataset.members import Member

_MAX_LABEL = 64 << 20  # bytes of JSON that is read for a label
_JSON_SHOWN = 500  # keys that are counted if there is no label


@dataclass(slots=True)
class Entry:
    """An image of a sample.

    Attributes:
        key: of the sample; with its tar it decides the split.
        name: the key, made unique in the tar.
        image: the image's member.
        label: as it is written, or None.
    """

    key: str
    name: str
    image: Member
    label: str | None


@dataclass
class Found:
    """Observations in the tars, for the summary.

    Attributes:
        ignored: what is not used.
        kinds: endings of members with labels.
        odd: kinds of values that are no label ("a list").
        others: endings of other members; json_keys: keys in JSON members.
        lonely: endings of labels of samples without an image.
        again: samples whose key came before in the same tar.
        damaged: the first member with damaged JSON.
    """

    ignored: Ignored
    kinds: Counter[str] = field(default_factory=Counter)
    odd: Counter[str] = field(default_factory=Counter)
    others: Counter[str] = field(default_factory=Counter)
    json_keys: Counter[str] = field(default_factory=Counter)
    lonely: Counter[str] = field(default_factory=Counter)
    again: int = 0
    damaged: str = ""


def read_entries(
    file: IO[bytes], members: Iterable[Member], rule: Rule, labels: LabelField | None, found: Found, tar: str
) -> list[Entry]:
    """The samples of a tar in the order of their first members.

    Args:
        file: the tar, for the labels.
        members: of the tar.
        rule: for keys and images.
        labels: where labels are; None: not looked for.
        found: counts what is seen.
        tar: name of the tar, for messages and names.

    Raises:
        TwoImages: the rule gives a sample two images.
        PecoError: a label can't be read.
    """
    entries: list[Entry] = []
    samples = _grouped(members, rule)
    number: Counter[str] = Counter()
    for key, parts in samples:
        number[key] += 1
        name = f"{key}#{number[key]}" if number[key] > 1 else key
        images = _images(parts, rule)
        others = [ending for ending in parts if ending not in images]
        found.others.update(others)
        if not images:
            found.lonely.update(ending for ending in others if ending in ENDINGS)
            foreign = any(is_image_name("x." + ending) for ending in parts)
            reason = f"sample without the image {rule.image}" if foreign else "sample without an image"
            found.ignored.add(reason, f"{tar}/{name}", by_rule=not foreign)
            continue
        found.again += number[key] > 1
        label = _label(file, key, parts, images[0], labels, found, tar) if labels else None
        found.ignored.extend(
            "another image of a sample",
            (f"{tar}/{parts[ending].name}" for ending in others if is_image_name("x." + ending)),
            by_rule=rule.image != PLAIN,
        )
        for ending in images:
            entries.append(Entry(key, f"{name}.{ending}" if rule.image == ALL else name, parts[ending], label))
    return entries


def _grouped(members: Iterable[Member], rule: Rule) -> list[tuple[str, dict[str, Member]]]:
    """Samples: keys with members by ending. Members of a key join wherever they are in the tar.

    An ending that a key has already begins a further sample of that key, with the members next to it.
    """
    samples: list[tuple[str, dict[str, Member]]] = []
    by_key: dict[str, list[dict[str, Member]]] = {}
    last_key, run = "", dict[str, Member]()

    def close() -> None:
        """Join the run to a sample of its key that lacks all its endings, else make it a sample."""
        if not run:
            return
        known = by_key.setdefault(last_key, [])
        for sample in known:
            if not sample.keys() & run.keys():
                sample.update(run)
                return
        known.append(run)
        samples.append((last_key, run))

    for member in members:
        key, ending = rule.divide(member.name)
        if not ending:
            continue
        if key != last_key or ending in run:
            close()
            last_key, run = key, {}
        run[ending] = member
    close()
    return samples


def _images(parts: dict[str, Member], rule: Rule) -> list[str]:
    """Endings of the image of a sample, or of its images if all are used.

    Raises:
        TwoImages: there are two, and only one is used.
    """
    images = [ending for ending in parts if rule.is_image(ending)]
    if rule.image == PLAIN:
        images = [ending for ending in images if "." not in ending] or images
    if not images and rule.image in (None, PLAIN):
        images = [ending for ending in parts if is_image_name("x." + ending)][:1]
    if len(images) > 1 and rule.image != ALL:
        raise TwoImages(parts[images[0]].name, parts[images[1]].name)
    return images


def _label(
    file: IO[bytes], key: str, parts: dict[str, Member], image: str, labels: LabelField, found: Found, tar: str
) -> str | None:
    for ending in labels.find(parts, image):
        member = parts[ending]
        if member.size > _MAX_LABEL:
            raise PecoError(
                f"{tar}: the label of {key} can't be read ({member.name}): {member.size} bytes are too many"
            )
        data = member.read(file)
        try:
            label = labels.read(ending, data)
        except NoLabel as odd:
            found.odd[f"{ending} holds {odd}"] += 1
            if str(odd) == DAMAGED_JSON:
                found.damaged = found.damaged or f"{tar}/{member.name}"
            continue
        except PecoError as error:
            raise PecoError(f"{tar}: the label of {key} can't be read ({member.name}); {error}") from None
        if label is not None:
            found.kinds[ending] += 1
            return label
        if ending.endswith("json") and found.json_keys.total() < _JSON_SHOWN:
            found.json_keys.update(json_keys(data))
    return None
