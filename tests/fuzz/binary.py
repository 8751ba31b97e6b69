"""Mutations of bytes, and of binary formats by their own structure: NumPy, safetensors, images, parquet, checkpoints."""

from __future__ import annotations

import ast
import io
import json
import struct
import zlib
from random import Random
from typing import Any

import numpy as np
from PIL import ExifTags, Image

from .values import ODD_FLOATS, mutate_tree

_EDGES = (b"\xff" * 4, b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f", b"\0" * 4, b"\xff" * 8, b"\0\0\0\x80", b"\x01\0\0\0")
_SHAPES: tuple[Any, ...] = (
    *((10**15,), (-1,), (2**63,), ("a",), (1.5,), (), (0,), (3, 3), [4], None, (True,), (1,) * 40, (2**31, 2**31)),
)
_DTYPES: tuple[Any, ...] = (
    *(
        "|O",
        "<f8",
        ">i8",
        "<u2",
        "|V10",
        "|S0",
        "<U1000000",
        "|V2147483647",
        "nothing",
        "",
        "<M8[ns]",
        "<c16",
        "<f2",
        "|b1",
    ),
    *(5, None, [], [("a", "<i8")], [("a", "O")], [("tokens", "<u2", (10**9, 10**9))]),
)
_NPY_HEADERS = (
    *(
        "(" * 3000,
        "{" * 500,
        "",
        "x" * 60_000,
        "{'descr': '<i8'",
        "1 " * 20,
        '"\n',
        "\\",
        "{'a': 10**10**10}",
        "\0",
        "  b\n a",
    ),
)
_TENSOR_TYPES = ("F64", "I64", "BF16", "F16", "U8", "BOOL", "F8_E4M3", "X", "I32")
_IMAGE_KINDS = (
    *(("PNG", mode) for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")),
    *(("JPEG", mode) for mode in ("L", "RGB", "CMYK")),
    *(("TIFF", mode) for mode in ("1", "L", "RGB", "RGBA", "CMYK", "I;16", "I", "F", "LAB")),
    *(("GIF", "P"), ("BMP", "RGB"), ("BMP", "1"), ("WEBP", "RGB"), ("WEBP", "RGBA"), ("PPM", "RGB"), ("PPM", "I")),
    *(("TGA", "RGB"), ("JPEG2000", "RGB"), ("AVIF", "RGB"), ("PCX", "RGB"), ("PDF", "RGB"), ("EPS", "RGB")),
)
_LABELS = (0, -1, 7, 10**6, None, True, 0.5, float("nan"), "cat", "", "a\nb", [1], {"a": 1}, b"\xff", "\0")
_CLASS_NAMES = ("[1, null, [2]]", '{"0": "a", "x": "b"}', '["a", "a"]', "5", "{}")
_METADATA = (b"{}", b"[]", b"null", b"{", b"\xff", b"[" * 3000)


def bytes_mutant(data: bytes, rng: Random) -> bytes:
    """Flip, cut, insert, repeat or overwrite bytes."""
    if not data:
        return rng.randbytes(rng.choice([1, 8, 600]))
    changed = bytearray(data)
    at = rng.randrange(len(data))
    if rng.random() < 0.5:
        at = min(at, rng.randrange(64))  # headers are at the beginning
    change = rng.randrange(7)
    if change == 0:
        for _ in range(rng.choice([1, 2, 8, 64])):
            changed[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    elif change == 1:
        changed[at] = rng.choice([0, 1, 127, 128, 255])
    elif change == 2:
        return data[:at]
    elif change == 3:
        changed[at:at] = rng.randbytes(rng.choice([1, 4, 512]))
    elif change == 4:
        edge = rng.choice(_EDGES)
        changed[at : at + len(edge)] = edge
    elif change == 5:
        del changed[at : at + rng.choice([1, 4, 64, 512])]
    else:
        other = rng.randrange(len(data))
        changed[at : at + 16] = data[other : other + 16]
    return bytes(changed)


def npy_mutant(data: bytes, rng: Random) -> bytes:
    """Change the header or the numbers of an array file."""
    if not data.startswith(b"\x93NUMPY") or len(data) < 12 or rng.random() < 0.1:
        return bytes_mutant(data, rng)
    length = struct.unpack_from("<H", data, 8)[0]
    header, body = data[10 : 10 + length].decode("latin-1"), bytearray(data[10 + length :])
    change = rng.randrange(8)
    if change < 4:
        fields = ast.literal_eval(header)
        if change == 0:
            fields["shape"] = rng.choice(_SHAPES)
        elif change == 1:
            fields["descr"] = rng.choice(_DTYPES)
        elif change == 2:
            fields["fortran_order"] = rng.choice([True, 1, None, "x"])
        else:
            fields[rng.choice(["more", "shape ", 5])] = fields.pop(rng.choice(list(fields)))
        header = repr(fields)
    elif change == 4:
        header = rng.choice(_NPY_HEADERS)
    elif change == 5 and len(body) >= 8:
        at = 8 * rng.randrange(len(body) // 8)
        body[at : at + 8] = rng.choice(
            [
                struct.pack("<q", rng.choice([-1, 2**62, -(2**63), 7, 511])),
                struct.pack("<d", rng.choice(ODD_FLOATS)),
            ]
        )
    elif change == 6:
        body = body[: len(body) // 2] if rng.random() < 0.5 else body * 3
    text = header.encode("latin-1") + b"\n"
    version = rng.choice([b"\x01\0", b"\x01\0", b"\x01\0", b"\x02\0", b"\x03\0", b"\x09\0"])
    size = (
        struct.pack("<H", len(text) & 0xFFFF)
        if version[0] == 1
        else struct.pack("<I", rng.choice([len(text), 2**31, 2**32 - 1]))
    )
    return b"\x93NUMPY" + version + size + text + bytes(body)


def safetensors_mutant(data: bytes, rng: Random) -> bytes:
    """Change the JSON at the beginning, its length, or the numbers of tensors."""
    if len(data) < 16 or rng.random() < 0.15:
        return bytes_mutant(data, rng)
    length = int.from_bytes(data[:8], "little")
    header, body = data[8 : 8 + length], data[8 + length :]
    change = rng.randrange(6)
    if change == 0:
        return rng.choice([0, 1, 2**20, 2**31, 2**63, 2**64 - 1]).to_bytes(8, "little") + header + body
    if change == 1 and len(body) >= 8:
        at = rng.randrange(len(body) // 4) * 4
        body = body[:at] + struct.pack("<f", rng.choice([np.nan, np.inf, -np.inf, 1e38, 0])) + body[at + 4 :]
        return data[: 8 + length] + body[: len(data) - 8 - length]
    fields = json.loads(header)
    names = [name for name in fields if name != "__metadata__"]
    if change == 2 and names:
        fields[rng.choice(names)]["dtype"] = rng.choice(_TENSOR_TYPES)
    elif change == 3 and names:
        entry = fields[rng.choice(names)]
        entry["shape"] = rng.choice(
            [[], [0], [2**62, 2**62], [-1], [1.5], entry["shape"][::-1], [*entry["shape"], 1], [2**32]]
        )
    elif change == 4 and names:
        fields[rng.choice(["", "x" * 5000, "\0", "head.weight", "a\nb"])] = fields.pop(rng.choice(names))
    else:
        fields = mutate_tree(fields, rng)
    text = json.dumps(fields).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + body


def image_mutant(data: bytes, rng: Random) -> bytes:
    """Change the bytes, the size in a PNG's header with a right checksum, or write another image."""
    change = rng.randrange(5)
    if change == 0 and data.startswith(b"\x89PNG") and len(data) > 33:
        sizes = [0, 1, 7, 8, 9000, 20_000, 2**31 - 1]
        header = (
            struct.pack(">II", rng.choice(sizes), rng.choice(sizes))
            + data[24:26]
            + bytes([rng.choice([0, 2, 3, 4, 6, 9])])
            + data[26:29]
        )
        header = header[:13]
        return data[:16] + header + struct.pack(">I", zlib.crc32(b"IHDR" + header)) + data[33:]
    if change == 1:
        return any_image(rng)
    return bytes_mutant(data, rng)


def any_image(rng: Random) -> bytes:
    """An image of any format, mode, size and EXIF orientation."""
    kind, mode = rng.choice(_IMAGE_KINDS)
    size = (rng.choice([1, 7, 8, 16, 40]), rng.choice([1, 8, 16, 40, 300]))
    image = Image.new(mode, size, rng.choice([0, 1]) if mode in ("1", "L", "P", "I", "I;16") else None)
    options: dict[str, Any] = {}
    if kind in ("PNG", "JPEG", "TIFF", "WEBP") and rng.random() < 0.5:
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = rng.choice([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 255, 65535])
        options["exif"] = exif.tobytes()
    if kind in ("PNG", "GIF", "TIFF", "WEBP") and rng.random() < 0.2:
        options |= {"save_all": True, "append_images": [image, image]}
    if mode == "P" and rng.random() < 0.5:
        options["transparency"] = 0
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue() if rng.random() < 0.6 else bytes_mutant(out.getvalue(), rng)


def parquet_mutant(data: bytes, rng: Random) -> bytes:
    """Change the bytes, or the types and values of columns and the metadata."""
    if rng.random() < 0.4:
        return bytes_mutant(data, rng)
    import pyarrow
    import pyarrow.parquet

    image = any_image(rng)
    count = rng.choice([0, 1, 4])
    images = rng.choice(
        [
            [{"bytes": image, "path": "a.png"}] * count,
            [{"bytes": None, "path": "a.png"}] * count,
            [None] * count,
            [image] * count,
            [[image]] * count,
            [{"bytes": "text", "path": None}] * count,
            [{"bytes": {"bytes": image}}] * count,
            [{"bytes": 5}] * count,
            ["a"] * count,
        ]
    )
    names = b'{"info": {"features": {"label": {"names": %s}}}}' % rng.choice(_CLASS_NAMES).encode()
    metadata = rng.choice([names, rng.choice(_METADATA)])
    columns = {
        rng.choice(["image", "img", "x"]): images,
        rng.choice(["label", "labels", "y"]): [rng.choice(_LABELS)] * count,
    }
    table = pyarrow.table(columns).replace_schema_metadata({b"huggingface": metadata})
    out = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(table, out, row_group_size=rng.choice([1, 3]))
    return bytes(out.getvalue())


def checkpoint_mutant(data: bytes, rng: Random) -> bytes:
    """Save other objects in place of a checkpoint's, or change its bytes."""
    import torch

    if rng.random() < 0.3:
        return bytes_mutant(data, rng)

    weight = torch.zeros(4, 3, 2, 2)
    prefix = rng.choice(["module.base_encoder.", "base_encoder.", "", "module.momentum_encoder."])
    tensors = (
        weight,
        weight.to_sparse(),
        weight.to(torch.complex64),
        weight.to(torch.float8_e4m3fn),
        weight.to("meta"),
    )
    more = (torch.nn.Parameter(weight), weight.expand(5, 4, 3, 2, 2), torch.zeros(0), torch.tensor(1.0), weight.bool())
    values = (*tensors, *more, weight.tolist(), None, "text", {"a": weight}, np.zeros(3), 2**70)
    state: Any = {f"{prefix}patch_embed.proj.weight": rng.choice(values)}
    state[rng.choice([5, None, ("a", 1), "module.base_encoder.x", "module.base_encoder.", "é\0"])] = rng.choice(values)
    other: tuple[Any, ...] = (
        [state],
        {"state_dict": [state]},
        {"state_dict": None},
        weight,
        {},
        {"state_dict": {1: 2}},
        None,
        7,
    )
    checkpoint: Any = rng.choice([{"state_dict": state}, {"state_dict": state}, state, rng.choice(other)])
    out = io.BytesIO()
    torch.save(checkpoint, out, _use_new_zipfile_serialization=rng.random() < 0.7)
    return out.getvalue() if rng.random() < 0.6 else bytes_mutant(out.getvalue(), rng)
