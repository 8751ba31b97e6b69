"""The files of a set in Pascal VOC's format: images with one XML each, by split.

Layout, in any capitals:

    ImageSets/Main/train.txt, val.txt    names of the images, one per line, with JPEGImages/NAME.jpg and Annotations/NAME.xml;
                                         else trainval.txt, test.txt

or, without these lists, images and XML at any depth: next to each other, as labelImg writes them, or in `images` and `annotations`
(also `JPEGImages`, `Annotations`) with the same paths below. Splits are then the folders' words (`train`, `valid`), else a division
by hash. An XML without an image is an error, an image without an XML is left out and counted.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from peco.annotations.photos import by_stem, files_below, find_folder, images_below
from peco.annotations.splits import divide, split_list, split_of
from peco.core.errors import PecoError
from peco.core.parsing import reason
from peco.files.names import IMAGE_EXTENSIONS, extension
from peco.files.words import plain_split

IMAGES, ANNOTATIONS = (
    ("JPEGImages", "images", "image", "imgs", "img"),
    ("Annotations", "annotation", "xml", "xmls", "labels"),
)
NOT_ANNOTATED = "image without an annotation"
_EXPECTED = "expected ImageSets/Main, Annotations and JPEGImages, or images with an XML each"


@dataclass(frozen=True)
class SplitFiles:
    """The files of a split.

    Attributes:
        origin: list or folder of the split, for messages.
        pairs: image and XML.
        skipped: number of images left out, by reason.
        notes: sentences on how the split was found.
    """

    origin: str
    pairs: list[tuple[Path, Path]]
    skipped: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)


def find_files(root: Path) -> tuple[SplitFiles, SplitFiles, bool]:
    """Files of train and val, and True if the splits are those of the set, False if they were divided here.

    Raises:
        PecoError: lists, images or annotations are missing.
    """
    lists = find_folder(find_folder(root, "ImageSets") or root / "ImageSets", "Main")
    found = [split_list(lists, split) for split in ("train", "val")] if lists is not None else []
    if any(found):
        if None in found:
            raise PecoError(f"{lists}: no list of {'val' if found[0] else 'train'}; add it, or remove the other one")
        train, val = (_listed(root, path) for path in found if path is not None)
        return train, val, True
    deeper = next((path for path in files_below(root) if "imagesets" in map(str.lower, path.parts)), None)
    if lists is None and deeper is not None:
        raise PecoError(f"{deeper}: lists of a part of {root}; name the folder that holds ImageSets")
    return _unlisted(root)


def _listed(root: Path, listed: Path) -> SplitFiles:
    folder = find_folder(root, *IMAGES)
    annotations = find_folder(root, *ANNOTATIONS)
    if folder is None or annotations is None:
        missing = "JPEGImages" if folder is None else "Annotations"
        raise PecoError(f"{root / missing}: no such folder; expected the {missing} of the images in {listed.name}")
    images = by_stem(images_below(folder), folder)
    pairs = []
    for name in _names(listed, images):
        if name not in images:
            raise PecoError(f"{listed}: the image {name} is missing in {folder.name}; fetch it or remove the line")
        pairs.append((images[name], annotations / f"{name}.xml"))
    return SplitFiles(str(listed), pairs, notes=["test is used as val"] if plain_split(listed.stem) == "test" else [])


def _names(path: Path, known: dict[str, Path]) -> list[str]:
    """Names that a list holds. They may have blanks and an extension; after a name without blanks, a number may follow."""
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise PecoError(f"{path}: can't be read ({reason(error)}); expected the names of the split's images") from None
    names = []
    for line in filter(None, lines):
        stem = line.rpartition(".")[0] if extension(line) in IMAGE_EXTENSIONS else line
        names.append(next((name for name in (line, stem) if name in known), line.split()[0]))
    return names


def _unlisted(root: Path) -> tuple[SplitFiles, SplitFiles, bool]:
    files = files_below(root)
    images = [path for path in files if extension(path.name) in IMAGE_EXTENSIONS]
    annotations = [path for path in files if extension(path.name) == "xml"]
    if not annotations or not images:
        raise PecoError(f"{root}: no {'XML' if images else 'image'}; {_EXPECTED}")
    pairs = _paired(root, images, annotations)
    splits: dict[str, dict[str, tuple[Path, Path]]] = {"train": {}, "val": {}, "test": {}}
    for name, pair in pairs.items():
        words = [split_of(part) for part in Path(name).parts[:-1]]
        splits[next(filter(None, words), "train")][name] = pair
    skipped = Counter({NOT_ANNOTATED: len(images) - len(pairs)} if len(images) > len(pairs) else {})
    notes = []
    if splits["test"]:
        notes.append("test is used as val" if not splits["val"] else f"test is not used: {len(splits['test'])} images")
        splits["val"] = splits["val"] or splits["test"]
    given = bool(splits["train"] and splits["val"])
    if not given:
        of_val, note = divide(pairs, str(root))
        notes = [note]
        for split in ("train", "val"):
            splits[split] = {name: pair for name, pair in pairs.items() if (name in of_val) == (split == "val")}
    train, val = (list(splits[split].values()) for split in ("train", "val"))
    return SplitFiles(f"{root}: train", train, skipped, notes), SplitFiles(f"{root}: val", val), given


def _paired(root: Path, images: list[Path], annotations: list[Path]) -> dict[str, tuple[Path, Path]]:
    """Images and their XML by the image's path, sorted."""
    by_place: dict[tuple[str, ...], Path] = {}
    for image in images:
        if (other := by_place.setdefault(_place(image, root), image)) != image:
            raise PecoError(f"{image}: {other.name} has the same name; keep one of them")
    counts = Counter(image.stem for image in images)
    unique = {image.stem: image for image in images if counts[image.stem] == 1}
    found: dict[str, tuple[Path, Path]] = {}
    for path in annotations:
        annotated = by_place.get(_place(path, root)) or unique.get(path.stem)
        if annotated is None:
            raise PecoError(f"{path}: there is no image {path.stem}; add it or remove the annotation")
        pair = (annotated, path)
        if found.setdefault(annotated.relative_to(root).as_posix(), pair) != pair:
            raise PecoError(f"{path}: a second annotation of {annotated}; remove one")
    return dict(sorted(found.items()))


def _place(path: Path, root: Path) -> tuple[str, ...]:
    """Path below the root without its extension and without the folders that hold all images or all annotations."""
    *folders, _ = path.relative_to(root).parts
    known = {name.lower() for name in (*IMAGES, *ANNOTATIONS)}
    return (*(folder for folder in folders if folder.lower() not in known), path.stem)
