"""`peco embed` and `peco similar`: right values in each format, runs that were stopped, nearest images."""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import safetensors.torch
import timm
import tiny_models
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

import peco
from peco import cli
from peco.convert import __main__ as convert
from peco.data import views
from peco.data.images import Picture
from peco.use.npy_rows import NpyRows

COUNT = 7
NAMES = [f"photos/{n}.{'jpg' if n % 2 else 'png'}" for n in range(COUNT)]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    tiny_models.save_models(root)
    return root


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, models: Path) -> None:
    """A folder with seven images in `photos`, and the models at their default place."""
    monkeypatch.chdir(tmp_path)
    tiny_models.save_images(Path("photos"), COUNT)
    Path("artifacts").symlink_to(models)


def embed(*arguments: str) -> np.ndarray:
    assert cli.main(["embed", "photos", "-o", "out", *arguments]) == 0
    assert [json.loads(line)["image"] for line in Path("out/images.jsonl").read_text().splitlines()] == NAMES
    found: np.ndarray = np.load("out/embeddings.npy")
    return found


def tokens_of(name: str, block: int | None) -> torch.Tensor:
    """Patch tokens (L, D) of a block, or after the final norm, by timm alone."""
    model = peco.load_backbone("artifacts/backbone")
    image = Picture(np.asarray(Image.open(name).convert("RGB")))
    pixels_HWC = torch.tensor(views.apply(image, views.center(*image.size), tiny_models.CFG.loader.image_size))
    x_BCHW = 2 * pixels_HWC.permute(2, 0, 1)[None].float() / 255 - 1
    with torch.no_grad():
        if block is None:
            return model.forward_features(x_BCHW)[0, 1:]
        (found,) = model.forward_intermediates(x_BCHW, indices=[block - 1], intermediates_only=True, output_fmt="NLC")
    return found[0]


@pytest.mark.parametrize(("option", "block"), [((), 2), (("--block", "1"), 1), (("--block", "norm"), None)])
def test_embeddings_are_the_mean_patch_token_of_a_block(option: tuple[str, ...], block: int | None) -> None:
    found = embed(*option, "--batch-size", "3", "--parquet")
    assert found.dtype == np.float32
    for n in (0, COUNT - 1):
        np.testing.assert_allclose(found[n], tokens_of(NAMES[n], block).mean(0), atol=1e-4)
    table = pq.read_table("out/embeddings.parquet")
    assert table["image"].to_pylist() == NAMES
    assert (np.array(table["embedding"].to_pylist(), dtype=np.float32) == found).all()


@pytest.mark.parametrize("origin", ["converted", "timm"])
def test_networks_from_elsewhere_are_embedded(origin: str) -> None:
    """Folders of `peco.convert`, and those that timm writes."""
    torch.manual_seed(0)
    model = timm.create_model("resnet18", num_classes=0).eval()
    if origin == "converted":
        torch.save(model.state_dict(), "net.pth")
        assert convert.main(["net.pth", "-o", "net", "--model", "resnet18"]) == 0
    else:
        timm.models.save_for_hf(model, "net", safe_serialization=True)
    assert cli.main(["embed", NAMES[0], "-m", "net", "-o", "out"]) == 0
    image = Picture(np.asarray(Image.open(NAMES[0]).convert("RGB")))
    x_CHW = torch.tensor(views.apply(image, views.center(*image.size), 224)).permute(2, 0, 1).float() / 255
    mean_C, std_C = (torch.tensor(model.pretrained_cfg[name]) for name in ("mean", "std"))
    with torch.no_grad():
        expected = model(((x_CHW - mean_C[:, None, None]) / std_C[:, None, None])[None])
    np.testing.assert_allclose(np.load("out/embeddings.npy"), expected, rtol=1e-4, atol=1e-4)


def test_a_table_of_an_earlier_run_is_renewed_and_holds_any_name() -> None:
    assert cli.main(["embed", NAMES[0], "-o", "out", "--parquet"]) == 0
    shutil.copy(NAMES[0], os.fsdecode(b"photos/latin\xe9.png"))
    assert cli.main(["embed", "photos", "-o", "out"]) == 0
    assert sorted(pq.read_table("out/embeddings.parquet")["image"].to_pylist()) == [*NAMES, "photos/latin\\udce9.png"]


def test_embeddings_by_patch(capsys: pytest.CaptureFixture[str]) -> None:
    found = embed("--patches", "--parquet")
    assert found.shape == (COUNT, 16, 32)
    np.testing.assert_allclose(found[1], tokens_of(NAMES[1], 2), atol=1e-4)
    assert np.array(pq.read_table("out/embeddings.parquet")["embedding"].to_pylist()).shape == found.shape
    capsys.readouterr()
    assert cli.main(["similar", NAMES[0], "out"]) == 2
    assert "holds embeddings of patches" in capsys.readouterr().err


def test_printed_embeddings_are_those_in_the_file(capsys: pytest.CaptureFixture[str]) -> None:
    found = embed()
    capsys.readouterr()
    assert cli.main(["embed", "photos"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["image"] for line in lines] == NAMES
    np.testing.assert_allclose([line["embedding"] for line in lines], found, atol=1e-5)


def test_a_classifier_embeds_too() -> None:
    assert embed("-m", "artifacts/classifier").shape == (COUNT, 32)


@pytest.mark.parametrize(("rows", "names"), [(0, 0), (3, 2), (6, 6)])
def test_a_run_that_was_killed_goes_on_and_ends_in_the_same_results(rows: int, names: int) -> None:
    embed("--batch-size", "2")
    shutil.copytree("out", "whole")
    vectors, lines = Path("out/embeddings.npy"), Path("out/images.jsonl")
    whole = vectors.read_bytes()
    width = np.load(vectors).nbytes // COUNT
    header = len(whole) - COUNT * width
    with vectors.open("wb") as file:  # a kill leaves the header of the first batch, and perhaps a part of a row
        np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": (0, width // 4)})
        assert file.tell() == header
        file.write(whole[header : header + rows * width + 5])
    lines.write_text("".join(lines.read_text().splitlines(keepends=True)[:names]))
    embed("--batch-size", "2")
    for name in ("embeddings.npy", "images.jsonl"):
        assert (Path("out") / name).read_bytes() == (Path("whole") / name).read_bytes()


@given(
    hnp.arrays(np.float32, st.tuples(st.integers(1, 12), st.integers(1, 5)), elements=st.floats(-9, 9, width=32)),
    st.lists(st.integers(1, 12), max_size=3),
)
def test_a_file_that_grows_by_rows_is_the_file_of_all_rows(rows: np.ndarray, cuts: list[int]) -> None:
    parts = np.split(rows, sorted({cut for cut in cuts if cut < len(rows)}))
    with tempfile.TemporaryDirectory() as folder:
        path, done = Path(folder) / "a.npy", 0
        for part in parts:
            with NpyRows(path, done) as file:
                file.append(part)
            done += len(part)
        assert (np.load(path) == rows).all()


def test_the_nearest_images_by_cosine_are_printed_and_shown(capsys: pytest.CaptureFixture[str]) -> None:
    vectors = embed().astype(np.float64)
    capsys.readouterr()
    assert cli.main(["similar", f"./{NAMES[2]}", "out", "-n", "3", "-o", "page.html"]) == 0
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    cosine = unit @ unit[2]
    best = [n for n in np.argsort(-cosine) if n != 2][:3]
    assert capsys.readouterr().out.splitlines() == [f"{cosine[n]:.4f}  {NAMES[n]}" for n in best]
    page = Path("page.html").read_text()
    assert page.count("data:image/jpeg;base64,") == 4
    assert re.findall(r"<br>(\S+?)</figcaption>", page) == [NAMES[n] for n in (2, *best)]
    assert not re.search(r"(src|href)=[\"']?(http|//|file)", page)


def test_images_that_are_not_at_their_paths_are_reported(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    embed()
    Path("elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    assert cli.main(["similar", NAMES[2], "../out", "-n", "3", "-o", "page.html"]) == 0
    assert capsys.readouterr().err.endswith(
        "warning: 3 of the 3 images are not at their paths, which count from where `peco embed` ran\n"
    )


def test_a_query_that_is_not_among_the_images_is_embedded(capsys: pytest.CaptureFixture[str]) -> None:
    embed("--block", "1")
    shutil.copy(NAMES[4], "query.png")
    capsys.readouterr()
    assert cli.main(["similar", "query.png", "out", "-n", "1"]) == 0
    assert capsys.readouterr().out == f"1.0000  {NAMES[4]}\n"


@pytest.mark.parametrize(
    ("command", "line"),
    [
        ("similar none.png out", "none.png: neither a file nor an image of out"),
        ("similar query.png out -m artifacts/classifier", "artifacts/classifier: is not the model of the embeddings"),
        ("similar query.png photos", "photos: no folder of embeddings"),
        ("similar query.png cut", "cut/embeddings.npy: can't be read"),
        ("embed photos -b 3", "--block: 3 is not allowed; expected from 1 to 2, or norm"),
        ("embed photos -o out -b 1", "out: holds results with block 2, not 1; choose another folder"),
        ("embed photos --parquet", "--parquet: needs a folder of results (-o)"),
        ("embed photos -m nan", "nan: blocks.0.attn.proj.bias holds NaN or infinite values"),
        ("embed {a..c}.tar", "{a..c}.tar: no such file or folder; leave braces to the shell, without quotes"),
        (
            "embed photos -m artifacts/tokenizer",
            "artifacts/tokenizer: expected the folder of a backbone, classifier",
        ),
    ],
)
def test_an_error_is_one_line(capsys: pytest.CaptureFixture[str], command: str, line: str) -> None:
    embed()
    shutil.copy(NAMES[4], "query.png")
    shutil.copytree("out", "cut")
    Path("cut/embeddings.npy").write_bytes(Path("out/embeddings.npy").read_bytes()[:100])
    shutil.copytree("artifacts/backbone", "nan")
    weights = safetensors.torch.load_file("nan/model.safetensors")
    weights["blocks.0.attn.proj.bias"][0] = torch.nan
    safetensors.torch.save_file(weights, "nan/model.safetensors")
    capsys.readouterr()
    assert cli.main(command.split()) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"error: {line}") and err.count("\n") == 1
