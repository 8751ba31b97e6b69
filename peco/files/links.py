"""Links within archives: which file each one leads to."""

from __future__ import annotations

import os
from bisect import bisect_left
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from peco.core.errors import PecoError
from peco.files.names import is_image_name, tidy

OUT_OF_IT = "a link to nothing in the set"
_MAX_LINKS = 10_000_000  # files behind links: circles of links grow without end


@dataclass(frozen=True)
class Lost:
    """A link that can't be followed."""

    name: str
    reason: str

    @property
    def may_be_folder(self) -> bool:
        """True if images may be lost with it whose number is unknown: its name is that of a folder."""
        return not is_image_name(self.name) and not PurePosixPath(self.name).suffix


def walk_linked(root: Path) -> Iterator[tuple[str, list[str], list[str]]]:
    """As `os.walk`, links to folders within the root followed, each folder once.

    The caller may shorten the list of folders.

    Raises:
        PecoError: a folder can't be read, or a link leads to a folder outside.
    """

    def fail(error: OSError) -> None:
        raise PecoError(f"{error.filename}: can't be read ({error.strerror}); check its permissions")

    top, seen = os.path.realpath(root), set[str]()
    for place, folders, files in os.walk(root, onerror=fail, followlinks=True):
        real = os.path.realpath(place)
        if os.path.commonpath([top, real]) != top:
            raise PecoError(
                f"{place}: a link to {real}, which is outside of {root}; put copies in its place (`cp -rL` copies what links lead "
                "to)"
            )
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders.sort()
        yield place, folders, files


def resolve_links(path: str, files: list[str], links: Mapping[str, str]) -> tuple[dict[str, str], list[Lost]]:
    """Follow symbolic links of a tar or zip, to files, folders and other links.

    Args:
        path: of the archive, for messages.
        files: tidy names of the files.
        links: the text of each link by its tidy name: relative to the link's folder, or from the top of the archive.

    Returns:
        The file behind each name that is a link or lies below one, and the links that lead nowhere or in a circle.

    Raises:
        PecoError: a link that may be a folder of images leads out of the archive.
    """
    known = dict.fromkeys(files, "")
    order = sorted(known)
    targets = {name: tidy(str(PurePosixPath(name).parent / text)) for name, text in links.items()}
    found: dict[str, str] = {}
    lost = []
    for name in sorted(targets):
        behind = 0
        for below, file in _files_behind(targets[name], known, order, targets, (name,)):
            found[name + below] = file
            behind += 1
            if len(found) > _MAX_LINKS:
                raise PecoError(f"{path}: links in a circle at {name}; pack the files themselves (tar -h)")
        if behind:
            continue
        entry = Lost(name, "a link in a circle" if _is_circle(name, targets) else OUT_OF_IT)
        if entry.reason == OUT_OF_IT and entry.may_be_folder:
            raise PecoError(
                f"{path}: {name} is a link to {links[name]}, which is not in the archive; pack the files themselves "
                "(tar -h, zip without -y)"
            )
        lost.append(entry)
    return found, lost


def _files_behind(
    target: str, known: Mapping[str, str], order: list[str], links: Mapping[str, str], seen: tuple[str, ...]
) -> Iterator[tuple[str, str]]:
    """The file that a target is, or those below it: (path below the target, file). Links on the way are followed once."""
    if target in known:
        yield "", target
        return
    if target in links:
        if target not in seen:
            yield from _files_behind(links[target], known, order, links, (*seen, target))
        return
    through = next((p.as_posix() for p in PurePosixPath(target).parents if p.as_posix() in links), None)
    if through is not None and through not in seen:
        yield from _files_behind(links[through] + target[len(through) :], known, order, links, (*seen, through))
        return
    prefix = target + "/" if target else ""
    if seen[0].startswith(prefix):
        return  # a link to a folder above
    for i in range(bisect_left(order, prefix), len(order)):
        if not order[i].startswith(prefix):
            break
        yield "/" + order[i][len(prefix) :], order[i]
    for link in sorted(links):
        if link.startswith(prefix) and link not in seen:
            for below, file in _files_behind(links[link], known, order, links, (*seen, link)):
                yield "/" + link[len(prefix) :] + below, file


def _is_circle(name: str, links: Mapping[str, str]) -> bool:
    seen = [name]
    while (target := links.get(seen[-1])) is not None:
        if target in seen or not target or name.startswith(target + "/"):
            return True
        seen.append(target)
    return False
