"""Damaged and hand-edited files: each reader gives one line that names the place, and hides no error that it does not know."""

from __future__ import annotations

import ast
import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from peco.annotations.photos import files_below
from peco.boxes.yolo_files import find_files
from peco.convert.read import find
from peco.core import artifacts, config
from peco.core.errors import PecoError
from peco.core.params import load_params
from peco.core.parsing import reason, shown
from peco.data.shards import load_index, open_shards
from peco.data.tokens import TokenStore, entry_dtype, write_index
from peco.files.archives import open_archive
from peco.files.damage import damage_reason
from peco.mim import storage as mim_storage
from peco.mim.model import MaskedImageModel, build_backbone
from peco.sources.base import Ignored, RawSample
from peco.sources.shard_writer import write_shards
from peco.sources.webdataset.kind import tar_kind
from peco.tokenizer import storage as tokenizer_storage
from peco.tokenizer.model import PerceptualTokenizer
from pipelines.workflow.compose import compose_params, render

ROOT = Path(__file__).parents[1]
READERS = ("files", "sources", "boxes", "masks", "annotations", "data", "core")


def message(call: Callable[[], object]) -> str:
    with pytest.raises(PecoError) as caught:
        call()
    return str(caught.value)


@pytest.mark.parametrize("package", READERS)
def test_no_reader_catches_all_exceptions(package: str) -> None:
    for path in (ROOT / "peco" / package).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ExceptHandler):
                names = {n.id for n in ast.walk(node.type) if isinstance(n, ast.Name)} if node.type else {"Exception"}
                assert not names & {"Exception", "BaseException"}, f"{path}:{node.lineno}"


# --- messages


@given(st.text())
def test_a_message_is_one_line_that_can_be_printed(text: str) -> None:
    line = str(PecoError(text))
    assert line.isprintable() and len(line) <= 500 and str(PecoError(line)) == line


def test_a_long_message_keeps_its_beginning_and_its_end() -> None:
    line = str(PecoError(f"data/a.yaml: train is {'n ' * 5000}; expected a folder"))
    assert line.startswith("data/a.yaml: train is n n") and line.endswith("n n ; expected a folder")
    assert " … " in line


def test_a_message_with_long_paths_keeps_its_words() -> None:
    line = str(PecoError(f"images/{'x/' * 300}a.png: no mask masks/{'x/' * 300}a.png; add it or remove the image"))
    assert re.fullmatch(r"images/[x/]+…[x/]+a\.png: no mask masks/[x/]+…[x/]+a\.png; add it or remove the image", line)


@pytest.mark.parametrize(
    ("value", "text"),
    [("a", "'a'"), (1 << 20_000, "a very long int"), (["x" * 200], f"['{'x' * 98}…"), (float("inf"), "inf")],
    ids=["text", "digits", "list", "infinity"],
)
def test_a_value_is_shown_shortened(value: object, text: str) -> None:
    assert shown(value) == text


def test_a_reason_has_neither_the_file_nor_the_parser_in_it(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file") as missing:
        (tmp_path / "a").read_text()
    assert reason(missing.value) == "No such file or directory"
    with pytest.raises(yaml.YAMLError) as colon:
        yaml.safe_load("a: b: c")
    assert reason(colon.value) == "line 1, column 5: mapping values are not allowed here"
    with pytest.raises(UnicodeDecodeError) as decoding:
        b"a\xff".decode()
    assert reason(decoding.value) == "byte 1 is not UTF-8"
    assert reason(EOFError()) == "EOFError"


# --- parameters


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("seed: 0", "seed: 2020-13-45", "params.yaml: not valid YAML: month must be in 1..12"),
        ("seed: 0", f"seed: {'9' * 5000}", "params.yaml: not valid YAML: Exceeds the limit (4300 digits)"),
        ("seed: 0", f"seed: {'[' * 3000}{']' * 3000}", "params.yaml: not valid YAML: maximum recursion depth"),
        ("seed: 0", "seed: .inf", "seed: inf is not allowed; expected an integer"),
        ("seed: 0", f"seed: {2**63}", f"seed: {2**63} is not allowed; expected an integer below 2**63"),
        ("seed: 0", f"seed: 0\n{'n' * 1000}: 1", f"{'n' * 100}…: unknown parameter; allowed: preset, "),
        ("seed: 0", "seed: 0\n? [1, 2]\n: 3", "params.yaml: not valid YAML: line "),
        ("path: data/scenes.yaml", 'path: "data/\\0"', "dataset.path: 'data/\\x00' is not allowed; expected a relative path"),
        ("path: data/scenes.yaml", f"path: data/{'n' * 300}", "dataset.path: 'data/nnn"),
        ("val_fraction: 0.1", f"val_fraction: {10**400}", "dataset.val_fraction: 1000"),
    ],
)  # fmt: skip
def test_odd_values_in_params_yaml_are_one_line(tmp_path: Path, old: str, new: str, expected: str) -> None:
    text = render(compose_params("smoke", []))
    assert old in text
    (tmp_path / "params.yaml").write_text(text.replace(old, new, 1), encoding="utf-8")
    assert message(lambda: load_params(tmp_path / "params.yaml")).removeprefix(f"{tmp_path}/").startswith(expected)


# --- model folders


VIT = config.Vit("beit_base_patch16_224", patch_size=8, embed_dim=32, depth=2, num_heads=2, mlp_ratio=4)
AUTOENCODER = config.Autoencoder(channels=(8, 16), stem_stride=4, res_blocks=1, attention=True)
QUANTIZER = config.Quantizer(codes=16, dim=4, l2_normalize=True, decay=0.99, restart_after=10, kmeans_iters=0)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    backbone, arch, model_args = build_backbone(VIT, 32, 0.1, drop_path=0.0)
    mim_storage.save(root / "backbone", MaskedImageModel(backbone, 16), arch=arch, model_args=model_args)
    made = PerceptualTokenizer(AUTOENCODER, QUANTIZER)
    tokenizer_storage.save(root / "tokenizer", made, AUTOENCODER, QUANTIZER, {"image_size": 32})
    return root


def read_tokenizer(folder: Path) -> None:
    tokenizer_storage.image_size(folder)
    tokenizer_storage.load(folder)


@pytest.mark.parametrize(
    ("kind", "key", "value", "expected"),
    [
        ("backbone", "architecture", 5, "config.json: architecture is 5; expected the name of a timm model"),
        ("backbone", "model_args", [], "config.json: model_args is []; expected arguments by name"),
        ("backbone", "model_args.depth", 10**9, "config.json: depth 1000000000 is more than its weights have"),
        ("backbone", "model_args.embed_dim", 10**12, "config.json: embed_dim 1000000000000 is more than its weights have"),
        ("backbone", "model_args.num_heads", 0, "backbone: timm can't build the model of this folder: "),
        ("backbone", "model_args.patch_size", "8", "backbone: timm can't build the model of this folder: "),
        ("backbone", "model_args.depth", 3, "model.safetensors: lacks the tensor blocks.2."),
        ("backbone", "pretrained_cfg", None, "config.json: input_size is None; expected 3, side, side"),
        ("backbone", "pretrained_cfg.input_size", [3, 33, 32], "config.json: input_size is [3, 33, 32]; expected 3, side, side"),
        ("backbone", "pretrained_cfg.input_size", [3, 1e999, 32], "config.json: input_size is [3, inf, 32]"),
        ("backbone", "pretrained_cfg.mean", [0.5], "config.json: mean is [0.5]; expected three numbers"),
        ("backbone", "pretrained_cfg.mean", [0.5, 0.5, 10**400], "config.json: mean is [0.5, 0.5, 1000"),
        ("backbone", "pretrained_cfg.std", [0, 1, 1], "config.json: std is [0, 1, 1]; expected three numbers over 0"),
        ("backbone", "peco.outputs", True, "config.json: outputs is True; expected the outputs of the head"),
        ("backbone", "peco.outputs", 10**9, "config.json: outputs is 1000000000; expected the outputs of the head"),
        ("tokenizer", "peco.image_size", 1e999, "config.json: image_size is inf; expected pixels"),
        ("tokenizer", "peco.autoencoder", None, "config.json: not the parameters of a tokenizer (autoencoder: None"),
        ("tokenizer", "peco.autoencoder.channels", [8, "16"], "(autoencoder.channels[1]: '16' is not allowed"),
        ("tokenizer", "peco.autoencoder.res_blocks", 10**9, "config.json: res_blocks 1000000000 is more than its weights have"),
        ("tokenizer", "peco.quantizer.more", 1, "(quantizer.more: unknown parameter"),
        ("tokenizer", "peco.quantizer.dim", 10**7, "decoder.0.weight has shape (16, 4, 1, 1), the model needs (16, 100"),
    ],
)  # fmt: skip
def test_odd_values_in_config_json_are_one_line(
    models: Path, tmp_path: Path, kind: str, key: str, value: object, expected: str
) -> None:
    described: Any = artifacts.describe(models / kind)
    *groups, name = key.split(".")
    group = described
    for part in groups:
        group = group[part]
    group[name] = value
    (tmp_path / kind).mkdir()
    for file in (models / kind).iterdir():
        (tmp_path / kind / file.name).write_bytes(file.read_bytes())
    (tmp_path / kind / "config.json").write_text(json.dumps(described))
    load = {"backbone": mim_storage.load, "tokenizer": read_tokenizer}[kind]
    assert expected in message(lambda: load(tmp_path / kind))


@pytest.mark.parametrize(
    "value", [torch.zeros(2, 2).to_sparse(), torch.zeros(2, 2, device="meta")], ids=["sparse", "without data"]
)
def test_a_checkpoint_without_plain_numbers_is_refused(value: torch.Tensor) -> None:
    key = "module.base_encoder.patch_embed.proj.weight"
    assert message(lambda: find({"state_dict": {key: value}}, Path("a.pth"))) == (
        f"a.pth: {key} holds no plain numbers; give a checkpoint with the weights themselves"
    )


@pytest.mark.parametrize("checkpoint", [{"state_dict": None}, {"state_dict": [1]}, [1], None, {5: 6}])
def test_other_objects_are_no_checkpoint(checkpoint: object) -> None:
    assert "a.pth: holds no state dict" in message(lambda: find(checkpoint, Path("a.pth")))


# --- shards and tokens


class Noise:
    """Six images in train, two in val."""

    classes = ("cat", "dog")
    total = None

    def __init__(self) -> None:
        self.ignored, self.notes = Ignored(), list[str]()

    def samples(self) -> Any:
        for i in range(8):
            out = io.BytesIO()
            pixels = np.random.default_rng(i).integers(0, 255, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(out, "PNG")
            yield RawSample("val" if i > 5 else "train", f"{i}.png", out.getvalue(), i % 2)


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    dataset = config.Dataset(**{**compose_params("smoke", [])["dataset"], "scenes": None, "range_16bit": (0, 65535)})
    write_shards(Noise(), tmp_path / "shards", dataset, work=tmp_path, workers=1)
    return tmp_path / "shards"


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("splits", [], "splits is []"),
        ("splits.train", None, "splits.train is None"),
        ("splits.train.samples", float("inf"), "splits.train.samples is inf"),
        ("splits.train.samples", 5, "splits.train.samples is 5"),
        ("splits.train.labelled", 1, "splits.train.labelled is 1"),
        ("splits.train.shards", [{"name": "../x.tar", "samples": 6, "bytes": 1, "sha256": ""}], "splits.train.shards[0] is"),
        ("classes", [1], "classes is [1]"),
        ("ignored", {"a": 1}, "ignored is {'a': 1}"),
        ("max_pixels", "1", "max_pixels is '1'"),
    ],
)  # fmt: skip
def test_an_edited_index_is_refused_by_its_key(shards: Path, key: str, value: object, expected: str) -> None:
    index = load_index(shards)
    *groups, name = key.split(".")
    group: Any = index
    for part in groups:
        group = group[part]
    group[name] = value
    (shards / "index.json").write_text(json.dumps(index))
    assert f"index.json: the index is damaged ({expected}" in message(lambda: open_shards(shards, "train"))


def test_an_index_without_a_key_or_too_deep_is_refused(shards: Path) -> None:
    index = load_index(shards)
    del index["notes"]
    (shards / "index.json").write_text(json.dumps(index))
    assert "the index is damaged (notes is None)" in message(lambda: load_index(shards))
    (shards / "index.json").write_text("[" * 100_000)
    assert "index.json: the index is damaged; run `dvc checkout`" in message(lambda: load_index(shards))


@pytest.mark.parametrize(
    "header",
    [
        *("(" * 3000, "{'descr': '<i8'", "1 " * 20, "{'descr': '|O', 'fortran_order': False, 'shape': (6,)}"),
        "{'descr': '<i8', 'fortran_order': False, 'shape': (10000000000000000,)}",
        "{'descr': '<i8', 'fortran_order': False, 'shape': ('a',)}",
        "{'descr': '<f8', 'fortran_order': False, 'shape': (6,)}",
    ],
)
def test_a_damaged_header_of_an_array_is_one_line(shards: Path, header: str) -> None:
    text = header.encode() + b"\n"
    data = b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + bytes(48)
    (shards / "train.labels.npy").write_bytes(data)
    assert "train.labels.npy: " in message(lambda: open_shards(shards, "train"))


def test_labels_and_offsets_that_do_not_fit_are_refused(shards: Path) -> None:
    offsets = np.load(shards / "train.offsets.npy")
    for wrong in (offsets[::-1], [*offsets[:2], 2**62, *offsets[3:]], offsets - 512):
        np.save(shards / "train.offsets.npy", np.asarray(wrong))
        assert "train-00000.tar: the shard is damaged (its offsets are not those of its samples)" in message(
            lambda: list(open_shards(shards, "train").read(0, 6))
        )
    np.save(shards / "train.labels.npy", np.full(6, 7))
    assert "train.labels.npy: its labels are not those of index.json" in message(lambda: open_shards(shards, "train"))


def test_tokens_beyond_the_codebook_are_refused(shards: Path, tmp_path: Path) -> None:
    train, folder = open_shards(shards, "train"), tmp_path / "tokens"
    folder.mkdir()
    entries = np.zeros((6, 1), dtype=entry_dtype(4))
    entries["tokens"][2] = 16
    np.save(folder / "train-00000.npy", entries)
    write_index(folder, train, views=1, grid=2, codes=16)
    store = TokenStore(folder, train)
    assert store.get(1, 0)[1].tolist() == [0] * 4
    assert "token 16 of sample 2, but there are 16 codes" in message(lambda: store.get(2, 0))
    for wrong in ({"views": 1e999}, {"grid": [0, 0]}, {"grid": [10**9, 10**9]}):
        index = {"views": 1, "codes": 16, "grid": [2, 2], "samples": 6} | wrong
        (folder / "index.json").write_text(json.dumps(index))
        assert "index.json: no readable token targets" in message(lambda: TokenStore(folder, train))


# --- images, archives, annotations


def test_a_damaged_tar_is_explained_without_the_other_compressions(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(b"x" * 1024)
    line = message(lambda: tar_kind(tmp_path / "a.tar"))
    assert line.endswith("a.tar: not a readable tar (invalid header at byte 0); fetch or write it again")
    assert damage_reason(EOFError()) == "EOFError"


def test_links_of_thousands_of_letters_are_lost_links(tmp_path: Path) -> None:
    (tmp_path / "a.png").symlink_to("x" * 3000)
    assert [lost.reason for lost in open_archive(tmp_path, tmp_path).lost] == ["a link to nothing in the set"]


def test_a_link_to_a_folder_above_is_refused(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set/link").symlink_to("/")
    assert message(lambda: files_below(tmp_path / "set")).endswith(
        "link: a link to /, which holds this set itself; remove it"
    )


@pytest.mark.parametrize("text", ["names: 2020-13-45", f"names: {'9' * 5000}", "a: b: c", "[" * 3000])
def test_a_damaged_data_yaml_is_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "data.yaml").write_text(text)
    assert "data.yaml: can't be read (" in message(lambda: find_files(tmp_path))
