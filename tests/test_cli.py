"""`peco` on the command line: output, written files, and one line for each error."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import peco
from peco import cli
from peco.core.params import parse_params
from peco.mim import storage as mim_storage
from peco.mim.model import MaskedImageModel, build_backbone
from peco.tokenizer import storage as tokenizer_storage
from peco.tokenizer.model import PerceptualTokenizer
from peco.use import tokens
from pipelines.workflow.compose import compose_params

CFG = parse_params(compose_params("smoke", []))
SIZE, FACTOR, GRID = CFG.tokenizer.image_size, CFG.tokenizer.factor, CFG.tokenizer.grid


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with tokenizer and backbone at their default places, and some files."""
    root = tmp_path_factory.mktemp("cli")
    torch.manual_seed(0)
    cfg = CFG.tokenizer
    tokenizer = PerceptualTokenizer(cfg.autoencoder, cfg.quantizer)
    tokenizer_storage.save(root / cli.TOKENIZER, tokenizer, cfg.autoencoder, cfg.quantizer, {"image_size": SIZE})
    backbone, arch, model_args = build_backbone(CFG.pretrain.vit, CFG.loader.image_size, 0.1, 0.0)
    model = MaskedImageModel(backbone, cfg.quantizer.codes)
    mim_storage.save(root / cli.BACKBONE, model, arch=arch, model_args=model_args)
    for number, name in enumerate(("a/x.png", "b/x.jpg", "x-2.png", "wide.png")):
        (root / name).parent.mkdir(exist_ok=True)
        shape = (30, 70, 3) if name == "wide.png" else (40, 36, 3)
        pixels = np.random.default_rng(number).integers(0, 256, shape, dtype=np.uint8)
        Image.fromarray(pixels).save(root / name)
    (root / "text.jpg").write_text("no image")
    (root / "cut.png").write_bytes((root / "wide.png").read_bytes()[:500])
    (root / "file").touch()
    return root


@pytest.fixture(autouse=True)
def here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[str]:
    """Lines on stdout of a command that succeeds."""
    assert cli.main(list(arguments)) == 0
    out, err = capsys.readouterr()
    assert err == ""
    return out.splitlines()


def test_tokens_are_one_line_per_image(capsys: pytest.CaptureFixture[str]) -> None:
    found = [json.loads(line) for line in run(capsys, "tokenize", "a/x.png", "wide.png")]
    assert [entry["image"] for entry in found] == ["a/x.png", "wide.png"]
    tokenizer = peco.load_tokenizer(cli.TOKENIZER)
    for (_, x_BCHW), entry in zip(tokens.load_images(["a/x.png", "wide.png"], SIZE), found, strict=True):
        assert entry["tokens"] == tokenizer.tokenize(x_BCHW)[0].tolist()


def test_tokens_of_another_size(capsys: pytest.CaptureFixture[str]) -> None:
    (line,) = run(capsys, "tokenize", "wide.png", "--size", str(2 * SIZE))
    assert np.shape(json.loads(line)["tokens"]) == (2 * GRID, 2 * GRID)


def test_an_image_is_never_overwritten_by_its_reconstruction(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("photo.png", "other.jpg", "other.png"):
        (tmp_path / name).write_bytes((folder / "wide.png").read_bytes())
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    for images in (["photo.png"], ["other.jpg", "other.png"]):
        assert cli.main(["reconstruct", *(str(tmp_path / name) for name in images), "-o", str(tmp_path)]) == 2
        assert capsys.readouterr().err.endswith("would be overwritten; choose another folder (-o)\n")
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_each_reconstruction_is_next_to_its_original_in_a_separate_file(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    images = ["a/x.png", "b/x.jpg", "x-2.png"]
    lines = run(capsys, "reconstruct", *images, "-o", str(tmp_path / "new"))
    written = [tmp_path / "new" / name for name in ("x.png", "x-2.png", "x-2-2.png")]
    assert [line.split("  ")[0] for line in lines] == list(map(str, written))
    assert all("PSNR" in line for line in lines)
    for path, (_, x_BCHW) in zip(written, tokens.load_images(images, SIZE), strict=True):
        with Image.open(path) as picture:
            assert picture.size == (2 * SIZE, SIZE)
            left = torch.tensor(np.asarray(picture)[:, :SIZE]).permute(2, 0, 1)
        assert torch.equal(left, x_BCHW[0].mul(255).round().byte())


def test_embeddings_are_the_mean_patch_token_of_a_block(capsys: pytest.CaptureFixture[str]) -> None:
    depth = CFG.pretrain.vit.depth
    last, first = (json.loads(run(capsys, "embed", "wide.png", *options)[0]) for options in ((), ("--block", "1")))
    assert [last["block"], first["block"]] == [depth, 1]
    assert last["embedding"] != first["embedding"]
    model = peco.load_backbone(cli.BACKBONE)
    ((_, x_BCHW),) = tokens.load_images(["wide.png"], SIZE)
    with torch.no_grad():
        (features_BLD,) = model.forward_intermediates(
            2 * x_BCHW - 1, indices=[0], intermediates_only=True, output_fmt="NLC"
        )
    np.testing.assert_allclose(first["embedding"], features_BLD.mean(dim=1)[0], atol=1e-5)


@pytest.mark.parametrize(
    ("model", "words"), [(cli.TOKENIZER, ["tokenizer", "quantizer"]), (cli.BACKBONE, ["backbone", "embed_dim"])]
)
def test_info_prints_kind_and_parameters_of_a_folder(
    capsys: pytest.CaptureFixture[str], model: str, words: list[str]
) -> None:
    first, *rest = run(capsys, "info", model)
    assert first == f"{model}: {words[0]}"
    assert words[1] in "\n".join(rest)


@pytest.mark.parametrize(
    ("command", "line"),
    [
        ("tokenize none.png", "none.png: can't be read as an image: No such file"),
        ("tokenize text.jpg", "text.jpg: can't be read as an image: not an image of a known format"),
        ("embed cut.png", "cut.png: can't be read as an image: truncated"),
        ("tokenize a", "a: can't be read as an image: Is a directory"),
        ("tokenize wide.png -m none", "none: no such model folder"),
        ("tokenize wide.png -m a", "a/config.json: no such file"),
        ("info none", "none: no such model folder"),
        (f"tokenize wide.png -m {cli.BACKBONE}", f"{cli.BACKBONE}: expected a model folder of kind 'tokenizer'"),
        (f"embed wide.png -m {cli.TOKENIZER}", f"{cli.TOKENIZER}: expected the folder of a backbone, classifier, "),
        ("embed wide.png -b 0", "--block: 0 is not allowed; expected from 1 to 2"),
        ("embed wide.png -b 3", "--block: 3 is not allowed; expected from 1 to 2"),
        ("tokenize wide.png -s 0", f"--size: 0 is not allowed; expected a multiple of {FACTOR}"),
        (f"tokenize wide.png -s -{FACTOR}", f"--size: -{FACTOR} is not allowed; expected a multiple of {FACTOR}"),
        (f"reconstruct wide.png -o out -s {FACTOR + 1}", f"--size: {FACTOR + 1} is not allowed"),
        ("reconstruct wide.png -o file", "file: File exists"),
    ],
)
def test_an_error_is_one_line(capsys: pytest.CaptureFixture[str], command: str, line: str) -> None:
    assert cli.main(command.split()) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"error: {line}")
    assert err.count("\n") == 1


def test_images_before_a_wrong_one_are_done(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["tokenize", "wide.png", "text.jpg"]) == 2
    out, err = capsys.readouterr()
    assert json.loads(out)["image"] == "wide.png"
    assert err.startswith("error: text.jpg")


def test_help_does_not_wait_for_torch() -> None:
    code = "import sys; from peco import cli; cli.parser().format_help(); sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
