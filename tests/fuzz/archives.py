"""Mutations of tars and zips: members, names, links, headers, and the files within."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import tarfile
import zipfile
from collections.abc import Callable
from random import Random
from typing import Any

from .binary import bytes_mutant

Mutant = Callable[[str, bytes, Random], bytes]  # of a file, by its name
_PATHS = (
    "a\nb.png",
    "a\tb.png",
    "../up.png",
    "/top.png",
    "a\\b.png",
    "",
    ".",
    "..",
    "a/",
    "x/" * 300 + "a.png",
    "a.b.c.jpg",
)
_SPELLINGS = (
    "n" * 5000,
    "n" * 250 + ".png",
    "con\x1b[31m.png",
    "caf\udce9.png",
    "nul\0.png",
    "ü.png",
    "u\u0308.png",
    "A.PNG",
)
_MEANINGS = (
    *(
        "._a.png",
        ".hidden/a.png",
        "__MACOSX/a.png",
        ".png",
        "train",
        "train/x",
        "classes.txt",
        "data.yaml",
        "labels.csv",
    ),
    *("metadata.jsonl", "x.json", "x.tar", "x.cls", "0001.jpg"),
)
ODD_NAMES = (*_PATHS, *_SPELLINGS, *_MEANINGS)
_TARGETS = ("link", "link.png", ".", "..", "/", "nothing.png", "nothing", "", "a\0b", "x" * 3000)
_TYPES = (
    tarfile.FIFOTYPE,
    tarfile.CHRTYPE,
    tarfile.DIRTYPE,
    tarfile.CONTTYPE,
    tarfile.GNUTYPE_SPARSE,
    b"Z",
    tarfile.AREGTYPE,
)
_PAX_KEYS = (
    *("size", "path", "linkpath", "mtime", "hdrcharset", "uid", "GNU.sparse.size", "GNU.sparse.map"),
    *("GNU.sparse.major", "GNU.sparse.numblocks"),
)
_PAX_VALUES = ("-1", "9" * 20, "x", "", "1,2,3", "nan", "0", "a\nb", "1e999", "/" * 3000)
# First byte and length of fields of a tar's header: name, mode, size, mtime, checksum, type, link, magic, prefix.
_TAR_FIELDS = ((0, 100), (100, 8), (124, 12), (136, 12), (148, 8), (156, 1), (157, 100), (257, 8), (345, 155))
# The same of a zip's records: local headers, the central directory, its end.
_ZIP_FIELDS = {
    b"PK\x03\x04": ((4, 2), (6, 2), (8, 2), (14, 4), (18, 4), (22, 4), (26, 2), (28, 2), (30, 4)),
    b"PK\x01\x02": (
        *((4, 2), (6, 2), (8, 2), (10, 2), (12, 4), (16, 4), (20, 4), (24, 4), (28, 2), (30, 2)),
        *((32, 2), (38, 4), (42, 4), (46, 4)),
    ),
    b"PK\x05\x06": ((4, 2), (8, 2), (10, 2), (12, 4), (16, 4), (20, 2)),
}
_ZIP_VALUES = (0, 1, 2, 9, 12, 14, 20, 63, 93, 99, 0x0801, 0xFFFF, 2**31, 2**32 - 1)


def pack_tar(members: dict[str, bytes]) -> bytes:
    """A plain tar."""
    return _write(_headers(members))


def pack_zip(members: dict[str, bytes]) -> bytes:
    """A plain zip."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, data in members.items():
            archive.writestr(zipfile.ZipInfo(name), data)
    return out.getvalue()


def _headers(members: dict[str, bytes]) -> list[tuple[tarfile.TarInfo, bytes]]:
    found = []
    for name, data in members.items():
        info = tarfile.TarInfo(name)
        info.size = len(data)
        found.append((info, data))
    return found


def _write(members: list[tuple[tarfile.TarInfo, bytes]], format: Any = tarfile.PAX_FORMAT) -> bytes:
    out = io.BytesIO()
    for info, data in members:
        try:
            header = info.tobuf(format, "utf-8", "surrogateescape")
        except ValueError:  # a name that this format can't hold
            header = info.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape")
        out.write(header)
        if info.isreg():
            out.write(data + bytes(-len(data) % 512))
    out.write(bytes(1024))
    return out.getvalue()


def tar_mutant(data: bytes, rng: Random, mutant: Mutant) -> bytes:
    """Change members, their headers or the bytes of a tar."""
    change = rng.randrange(8)
    if change == 0:
        return bytes_mutant(data, rng)
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        members = {m.name: reader.read() for m in archive if (reader := archive.extractfile(m))}
    name = rng.choice(sorted(members))
    if change in (1, 2):
        members[name] = mutant(name, members[name], rng)
    elif change == 3:
        return _pack_changed(members, name, rng)
    found = _headers(members)
    if change == 4:
        found = _odd_header(found, rng)
    elif change == 5:
        return _odd_field(_write(found, tarfile.USTAR_FORMAT), rng)
    elif change == 6:
        info = tarfile.TarInfo(rng.choice(["link.png", "link", "train", "a/link.jpg", name]))
        info.type = rng.choice([tarfile.SYMTYPE, tarfile.LNKTYPE])
        info.linkname = rng.choice([name, name.rpartition("/")[0], *_TARGETS])
        found.insert(rng.randint(0, len(found)), (info, b""))
    elif change == 7:
        return _compressed(_write(found), rng)
    return _write(found, rng.choice([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT]))


def _pack_changed(members: dict[str, bytes], name: str, rng: Random) -> bytes:
    """Remove, rename or repeat a member, or hide it in another tar."""
    change = rng.randrange(4)
    data = members.pop(name)
    if change == 1:
        members[rng.choice(ODD_NAMES)] = data
    elif change == 2:
        return _write(_headers(members | {name: data}) + _headers({name: data[: len(data) // 2]}))
    elif change == 3:
        members["inner.tar"] = pack_tar({name: data})
    return pack_tar(members)


def _odd_header(found: list[tuple[tarfile.TarInfo, bytes]], rng: Random) -> list[tuple[tarfile.TarInfo, bytes]]:
    info, data = found[rng.randrange(len(found))]
    change = rng.randrange(5)
    if change == 0:
        info.type = rng.choice(_TYPES)
    elif change == 1:
        info.pax_headers = {rng.choice(_PAX_KEYS): rng.choice(_PAX_VALUES)}
    elif change == 2:
        info.name = rng.choice([name for name in ODD_NAMES if name])
    elif change == 3:
        info.size = rng.choice([0, 1, len(data) + 5000, 2**33, 2**62])
    else:
        info.mtime = rng.choice([-1, 2**40, 0.5])
    return found


def _odd_field(data: bytes, rng: Random) -> bytes:
    """Overwrite a field of a header, with a right checksum or without."""
    starts = [i for i in range(0, len(data) - 511, 512) if data[i + 257 : i + 262] == b"ustar"]
    at = rng.choice(starts)
    header = bytearray(data[at : at + 512])
    begin, size = rng.choice(_TAR_FIELDS)
    if begin == 156:
        header[156:157] = rng.choice([b"x", b"g", b"L", b"K", b"S", b"5", b"X", b"\0", b"9"])
    else:
        header[begin : begin + size] = rng.choice([b"\xff", b"\0", b"7", b"-", b" ", b"x", b"\x80"]) * size
    if begin != 148 and rng.random() < 0.9:
        header[148:156] = b" " * 8
        header[148:156] = b"%06o\0 " % sum(header)
    return data[:at] + bytes(header) + data[at + 512 :]


def _compressed(data: bytes, rng: Random) -> bytes:
    packed = rng.choice([lambda d: gzip.compress(d, mtime=0), bz2.compress, lzma.compress])(data)
    return packed if rng.random() < 0.4 else bytes_mutant(packed, rng)


def zip_mutant(data: bytes, rng: Random, mutant: Mutant) -> bytes:
    """Change members, names, flags, versions and sizes, or the bytes of a zip."""
    change = rng.randrange(8)
    if change == 0:
        return bytes_mutant(data, rng)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    name = rng.choice(sorted(members))
    if change in (1, 2):
        members[name] = mutant(name, members[name], rng)
        return pack_zip(members)
    if change == 3:
        members[rng.choice(ODD_NAMES)] = members.pop(name)
        return pack_zip({n.encode("utf-8", "replace").decode(): d for n, d in members.items()})
    if change == 4:
        out = io.BytesIO()
        with zipfile.ZipFile(
            out, "w", rng.choice([zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
        ) as archive:
            for member, content in members.items():
                info = zipfile.ZipInfo(member)
                if member == name:
                    info.external_attr = rng.choice([0o120777 << 16, 0o010777 << 16, 0o040755 << 16, 0xFFFFFFFF])
                    content = rng.choice(
                        [content, b"nothing", b"..", sorted(members)[0].encode(), b"\xff\0", b"x" * 5000]
                    )
                archive.writestr(info, content)
        data = out.getvalue()
        return data if rng.random() < 0.5 else bytes_mutant(data, rng)
    return _odd_record(data, rng)


def _odd_record(data: bytes, rng: Random) -> bytes:
    """Overwrite a field of a local header, of the central directory or of its end."""
    signature = rng.choice(list(_ZIP_FIELDS))
    places = [i for i in range(len(data)) if data.startswith(signature, i)]
    begin, size = rng.choice(_ZIP_FIELDS[signature])
    at = rng.choice(places) + begin
    value = rng.choice(_ZIP_VALUES) & (2 ** (8 * size) - 1)
    return data[:at] + value.to_bytes(size, "little") + data[at + size :]
