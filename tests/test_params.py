"""`make params`: the user's images become a tracked input, and wrong data is refused before anything is written."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from peco.core.errors import PecoError
from peco.core.params import load_params
from peco.sources.detect import detect_source
from peco.sources.open import open_source
from pipelines import params
from pipelines.workflow import compose, input_check, inputs

ENV = {
    "GIT_AUTHOR_NAME": "t", "GIT_AUTHOR_EMAIL": "t@t", "GIT_COMMITTER_NAME": "t", "GIT_COMMITTER_EMAIL": "t@t",
}  # fmt: skip


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A DVC repository with the built-in set and its parameters."""
    root = tmp_path_factory.mktemp("template") / "project"
    (root / "data").mkdir(parents=True)
    shutil.copyfile(Path(__file__).parents[1] / "data" / "scenes.yaml", root / "data" / "scenes.yaml")
    (root / "params.yaml").write_text(compose.render(compose.compose_params("smoke", [])))
    for command in (["git", "init", "-q"], [sys.executable, "-m", "dvc", "init", "-q"]):
        subprocess.run(command, cwd=root, check=True, env={**os.environ, **ENV})
    return root


@pytest.fixture
def project(template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = tmp_path / "project"
    shutil.copytree(template, root)
    monkeypatch.chdir(root)
    monkeypatch.setenv("DVC_SITE_CACHE_DIR", str(tmp_path / "site"))
    return root


def picture(color: int = 0) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (16, 16), (color, 99, 0)).save(out, "PNG")
    return out.getvalue()


def folder(root: Path, names: Iterable[str]) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    for i, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(picture(i))
    return root


def tar(path: Path, members: dict[str, bytes], mode: str = "w") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def shard(path: Path, keys: Iterable[str] = ("0", "1"), mode: str = "w") -> Path:
    return tar(path, {f"{k}.{e}": c for k in keys for e, c in (("png", picture(int(k))), ("cls", b"0"))}, mode)


PHOTOS = [f"{split}/{name}/{i}.png" for split in ("train", "val") for name in ("cat", "dog") for i in range(2)]


def image_tar(path: Path, mode: str = "w") -> Path:
    return tar(path, {name: picture(i) for i, name in enumerate(PHOTOS)}, mode)


def image_zip(path: Path) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for i, name in enumerate(PHOTOS):
            archive.writestr(name, picture(i))
    return path


def split_shards(root: Path) -> Path:
    shard(root / "train" / "0.tar", ("0", "1", "2"))
    shard(root / "val" / "0.tar", ("3",))
    return root


def counts(project: Path) -> dict[str, int]:
    """Samples of each split, as the stage `shards` will read them."""
    found: dict[str, int] = {}
    for sample in open_source(load_params().dataset, project / "work").samples():
        found[sample.split] = found.get(sample.split, 0) + 1
    return found


def dataset() -> dict[str, Any]:
    raw: dict[str, Any] = yaml.safe_load(Path("params.yaml").read_text())
    return {name: raw["dataset"][name] for name in ("source", "path")}


def snapshot(project: Path) -> dict[str, bytes]:
    places = [project / "params.yaml", *(project / "data").rglob("*")]
    return {str(p.relative_to(project)): p.read_bytes() for p in places if p.is_file()}


def refusal(project: Path, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line of a refusal that wrote nothing."""
    before = snapshot(project)
    capsys.readouterr()
    assert params.main(list(arguments)) == 2
    assert snapshot(project) == before
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1
    return err


@pytest.mark.parametrize(
    ("make", "source", "path"),
    [
        (lambda at: folder(at / "my photos", PHOTOS), "images", "data/my-photos"),
        (lambda at: image_zip(at / "photos.zip"), "images", "data/photos.zip"),
        (lambda at: image_tar(at / "photos.tgz", "w:gz"), "images", "data/photos.tgz"),
        (lambda at: split_shards(at / "shards"), "webdataset", "data/shards"),
        (lambda at: shard(at / "train.tar.gz", "012", "w:gz"), "webdataset", "data/train.tar.gz"),
    ],
    ids=["folder", "zip", "tgz", "folders of tars", "tar.gz of samples"],
)
def test_folders_archives_and_tars_can_be_imported(
    project: Path, tmp_path: Path, make: Callable[[Path], Path], source: str, path: str
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    assert params.main(["--preset", "cifar", "--data", str(make(home))]) == 0
    assert dataset() == {"source": source, "path": path}
    assert (project / f"{path}.dvc").is_file() and counts(project)["train"] > 0


def test_only_labels_with_the_name_of_an_image_make_a_tar_a_webdataset(tmp_path: Path) -> None:
    members = {"notes/about.json": b"{}", "cat/0.png": picture(), "dog/0.png": picture(1)}
    assert detect_source(tar(tmp_path / "photos.tar", members)) == "images"
    assert detect_source(shard(tmp_path / "shard.tar")) == "webdataset"


def test_a_pattern_keeps_paths_and_class_names(project: Path, tmp_path: Path) -> None:
    home = split_shards(tmp_path / "shards")
    (home / "classes.txt").write_text("cat\ndog\n")
    assert params.main(["--preset", "cifar", "--data", str(home / "{train,val}" / "*.tar")]) == 0
    assert dataset() == {"source": "webdataset", "path": "data/shards"}
    assert counts(project) == {"train": 3, "val": 1}
    assert open_source(load_params().dataset, project).classes == ("cat", "dog")
    assert sorted(p.name for p in (project / "data").glob("*.dvc")) == ["shards.dvc"]
    assert params.main(["--preset", "cifar", "--data", str(home / "{train,val}" / "*.tar")]) == 0  # the same again


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda at: image_zip(at / "b.tar"), "b.tar: not a readable tar"),
        (lambda at: tar(at / "b.tar", {"a.txt": b"a"}), "b.tar: no image in this archive"),
        (lambda at: shard(at / "b.tar.bz2", mode="w:bz2"), r"b\.tar\.bz2 is no tar; a pattern must match files named"),
    ],
    ids=["zip", "no image", "other name"],
)
def test_a_pattern_must_match_readable_tars_of_images(
    project: Path, tmp_path: Path, make: Callable[[Path], Path], message: str
) -> None:
    shard(tmp_path / "a.tar")
    make(tmp_path)
    with pytest.raises(PecoError, match=message):
        inputs.inspect(str(tmp_path / "*.tar*"))


@pytest.mark.parametrize("data", ["https://host/a/train-{000..003}.tar", "s3://bucket/x.tar", "pipe:cat x.tar"])
def test_an_address_becomes_a_list(project: Path, data: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PECO_ALLOW_PIPE", "1")
    found = inputs.inspect(data)
    inputs.import_data(found)
    assert found.source == "webdataset" and found.path.suffix == ".txt"
    assert found.path.read_text() == data + "\n"
    assert inputs.inspect(data).content is None
    found.path.write_text("https://other/x.tar\n")
    with pytest.raises(PecoError, match="is another list"):
        inputs.inspect(data)


def test_lists_of_addresses_are_copied(project: Path, tmp_path: Path) -> None:
    text = tmp_path / "list.txt"
    text.write_text("# mine\nhttps://host/train-{0..2}.tar\ns3://bucket/val-0.tar\n")
    assert params.main(["--preset", "cifar", "--data", str(text)]) == 0
    assert dataset() == {"source": "webdataset", "path": "data/list.txt"}
    assert Path("data/list.txt").read_text() == text.read_text() and not Path("data/list.txt.dvc").exists()
    whole = tmp_path / "whole.json"
    whole.write_text(json.dumps({"shards": ["https://host/train-0.tar"], "classes": ["cat"]}))
    assert inputs.inspect(str(whole)).content == whole.read_text()
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    found = inputs.inspect(str(text))
    assert found.path == Path("data/list.json") and json.loads(str(found.content))["classes"] == ["cat", "dog"]


def bad_list(at: Path) -> Path:
    shard(at / "0.tar")
    (at / "list.txt").write_text("0.tar\nhttps://host/1.tar\n")
    return at / "list.txt"


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def mixed(at: Path) -> Path:
    shard(at / "mixed" / "0.tar")
    return folder(at / "mixed", ["a.png"])


def empty(at: Path) -> Path:
    (at / "empty").mkdir()
    return at / "empty"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda at: at / "nowhere", "no such file or folder"),
        (lambda at: at / "*.tar", "no such file"),
        (lambda at: at / "{a.tar", "braces"),
        (empty, "no image in it; expected a folder"),
        (lambda at: written(at / "notes.txt", b"hello\n"), "no such file"),
        (lambda at: written(at / "film.mp4", b"\x00\xff\xfe\x80" * 300), "neither a folder, a tar, a zip nor a list"),
        (lambda at: written(at / "cut.tar", b"\x1f\x8bnothing"), "not a readable tar"),
        (lambda at: written(at / "cut.zip", b"PK\x03\x04nothing"), "can't be read"),
        (lambda at: tar(at / "texts.tar", {"a.txt": b"a"}), "no image among its 1 files (a.txt, …)"),
        (bad_list, "lists tars of this machine"),
        (mixed, "holds both images (a.png) and tars (0.tar)"),
        (lambda at: at.parent, "holds this project itself"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_wrong_data_is_refused_and_leaves_nothing(
    project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], make: Callable[[Path], Path], message: str
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    assert message in refusal(project, capsys, "--preset", "cifar", "--data", str(make(home)))


def test_links_and_names_that_dvc_cannot_store_are_copied(project: Path, tmp_path: Path) -> None:
    root = folder(tmp_path / "photos", [f"store/{name}/{i}.png" for name in ("cat", "dog") for i in range(4)])
    for split in ("train", "val"):
        (root / split).mkdir()
        for name in ("cat", "dog"):
            os.symlink(f"../store/{name}", root / split / name)
    with open(os.fsencode(root) + b"/train/caf\xe9.txt", "wb") as file:
        file.write(b"x")
    assert params.main(["--preset", "cifar", "--data", str(root), "dataset.max_ignored=0.5"]) == 0
    assert counts(project) == {"train": 8, "val": 8}
    assert (project / "data/photos/train/cat/0.png").is_file()
    assert (project / "data/photos/train/café.txt").is_file()
    assert params.main(["--preset", "cifar", "--data", str(root), "dataset.max_ignored=0.5"]) == 0  # imported already


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda at: folder(at / "p", [*PHOTOS, "other/x.png"]),
            "1 of 9 images have no place in its layout, more than dataset.max_ignored allows (0.01): 1 outside the splits: ",
        ),
        (lambda at: folder(at / "p", ["a.png", "b.dng"]), "1 of 2 images have formats that are not read (b.dng)"),
        (
            lambda at: written(folder(at / "p", ["a.png"]) / "b.heic", b"no image").parent,
            "1 of 2 images can't be used, more than dataset.max_rejected allows (0.01), the first: b.heic (not an image of a known",
        ),
        (lambda at: folder(at / "p", ["val/a/1.png", "test/a/1.png"]), "there is test, val, but no train"),
        (
            lambda at: written(folder(at / "p", ["1.png"]) / "labels.csv", b"file,label\n"),
            "name the folder that holds it",
        ),
        (
            lambda at: written(folder(at / "p", []) / "batches.meta", b"?").parent,
            "holds CIFAR's pickled batches (batches.meta)",
        ),
    ],
    ids=["outside the splits", "raw", "not an image", "no train", "a table", "pickles"],
)
def test_images_that_the_first_stage_would_refuse_are_refused_before_it(
    project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], make: Callable[[Path], Path], message: str
) -> None:
    assert message in refusal(project, capsys, "--preset", "cifar", "--data", str(make(tmp_path)))


def test_make_repro_checks_the_images_once_for_each_content_and_parameters(
    project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = folder(tmp_path / "photos", PHOTOS)
    assert params.main(["--preset", "cifar", "--data", str(photos)]) == 0
    capsys.readouterr()
    shutil.rmtree(project / "data/photos/train")  # not seen: neither the `.dvc` file nor a parameter has changed
    input_check.check_once(load_params().dataset)
    assert capsys.readouterr().err == ""
    assert params.main(["dataset.val_fraction=0.2"]) == 0
    with pytest.raises(PecoError, match="data/photos: there is val, but no train"):
        input_check.check_once(load_params().dataset)
    folder(project / "data/photos", PHOTOS)
    capsys.readouterr()
    input_check.check_once(load_params().dataset)
    input_check.check_once(load_params().dataset)
    assert capsys.readouterr().err.count("data/photos: read as: ") == 1


def test_tars_with_several_readings_are_refused_until_a_parameter_chooses(
    project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    home = tmp_path / "home" / "views"
    home.mkdir(parents=True)
    members = {f"{i}.{view}.png": picture(i) for i in range(4) for view in ("rgb", "depth")}
    tar(home / "a.tar", members | {f"{i}.cls": b"%d" % (i % 2 * 100000) for i in range(4)})
    arguments = ("--preset", "cifar", "--data", str(home))
    assert refusal(project, capsys, *arguments) == (
        f"error: {home}: 0.depth.png and 0.rgb.png are images of one sample; choose by dataset.image_field: depth.png, rgb.png, or "
        "all\n"
    )
    chosen = (*arguments, "dataset.image_field=rgb.png")
    assert "choose by dataset.class_numbers" in refusal(project, capsys, *chosen)
    assert params.main([*chosen, "dataset.class_numbers=id"]) == 0
    assert sum(counts(project).values()) == 4
    assert open_source(load_params().dataset, project / "work").classes == ("0", "100000")


def test_a_wrong_override_leaves_the_images_alone(
    project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = str(folder(tmp_path / "photos", PHOTOS))
    line = refusal(project, capsys, "--preset", "cifar", "--data", photos, "pretrain.optim.lr=fast")
    assert "pretrain.optim.lr" in line


def test_architectures_are_checked_before_anything_is_imported(
    project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = folder(tmp_path / "photos", PHOTOS)
    for wrong in ("pretrain.vit.arch=beit_nonsense", "perceptual_net.vit.arch=vit_nonsense"):
        line = refusal(project, capsys, "--preset", "cifar", "--data", str(photos), wrong)
        assert line.startswith(f"error: {wrong.partition('=')[0]}: '{wrong.partition('=')[2]}' is not allowed")
    assert params.main(["perceptual_net.vit.arch=vit_tiny_patch16_224"]) == 0


def test_a_refusal_of_dvc_leaves_nothing(
    project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    photos = folder(tmp_path / "photos", PHOTOS)
    shutil.rmtree(project / ".dvc")
    before = snapshot(project)
    assert params.main(["--preset", "cifar", "--data", str(photos)]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("error: data/photos: DVC can't add it: you are not inside of a DVC repository")
    assert snapshot(project) == before


def test_a_name_that_holds_other_content_is_refused(
    project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, same, other = (folder(tmp_path / at / "photos", PHOTOS) for at in ("a", "b", "c"))
    (same / ".hidden").write_text("")
    (first / ".hidden").write_text("")
    (other / PHOTOS[0]).write_bytes(picture(200))
    assert params.main(["--preset", "cifar", "--data", str(first)]) == 0
    kept = snapshot(project)
    capsys.readouterr()
    assert params.main(["--preset", "cifar", "--data", str(same)]) == 0
    assert snapshot(project) == kept and "Adding" not in capsys.readouterr().err
    line = refusal(project, capsys, "--preset", "cifar", "--data", str(other))
    assert "`dvc remove --outs data/photos.dvc`" in line
    (project / "data" / "loose").mkdir()
    assert "exists already" in refusal(project, capsys, "--data", str(folder(tmp_path / "loose", PHOTOS)))


def test_the_data_set_is_kept_until_another_is_named(
    project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert params.main(["--preset", "cifar", "--data", str(folder(tmp_path / "photos", PHOTOS))]) == 0
    images = {"source": "images", "path": "data/photos"}
    assert params.main(["tokenizer.quantizer.codes=64"]) == 0
    assert dataset() == images and load_params().tokenizer.quantizer.codes == 64
    assert load_params().preset == "cifar"
    assert params.main(["--data", "data/photos"]) == 0 and dataset() == images
    assert params.main(["--data", "scenes"]) == 0 and load_params().preset == "cifar"
    assert dataset() == {"source": "scenes", "path": "data/scenes.yaml"}
    assert "preset imagenet_vit_b has no images yet" in refusal(project, capsys, "--preset", "imagenet_vit_b")
    assert params.main(["--data", "data/photos"]) == 0
    shutil.rmtree(project / "data" / "photos")
    for arguments in ([], ["--data", "data/photos"]):
        assert "`dvc pull data/photos.dvc`" in refusal(project, capsys, *arguments)


def test_images_below_data_are_tracked_in_place(project: Path) -> None:
    folder(project / "data" / "our photos", PHOTOS)
    assert params.main(["--preset", "cifar", "--data", "data/our photos"]) == 0
    assert dataset() == {"source": "images", "path": "data/our photos"}
    assert (project / "data" / "our photos.dvc").is_file() and counts(project) == {"train": 4, "val": 4}


def test_parameters_of_an_older_version_are_written_again(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    raw = yaml.safe_load(Path("params.yaml").read_text())
    del raw["loader"]
    Path("params.yaml").write_text(yaml.safe_dump(raw))
    assert params.main([]) == 0 and load_params().preset == "smoke"
    Path("params.yaml").write_text("a: [")
    assert "params.yaml" in refusal(project, capsys)
    assert params.main(["--preset", "smoke"]) == 0


def test_parameters_that_can_not_be_written_are_reported_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    (path / "x").mkdir(parents=True)
    with pytest.raises(PecoError, match=r"params\.yaml: can't be written \(Is a directory\)"):
        compose.write(compose.compose_params("smoke", []), path)
    assert [file.name for file in tmp_path.iterdir()] == ["params.yaml"]


def test_weights_from_the_hub_are_pinned_when_the_parameters_are_written(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[str] = []

    def model_info(_: object, repository: str, **__: object) -> Any:
        asked.append(repository)
        return type("Info", (), {"sha": "0123abc"})

    def written(*overrides: str) -> Any:
        assert params.main([*overrides]) == 0
        values = yaml.safe_load((project / "params.yaml").read_text())
        given = values["perceptual_net"]["timm"], values["pretrain"]["init"], values["evaluate"]["reference"]
        return next((group["revision"] for group in given if group["revision"]), None)

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", model_info)
    assert written("perceptual_net=dino_vit_b") == "0123abc"
    assert written("perceptual_net=dino_vit_b", "perceptual_net.timm.model=hf-hub:some/net") == "0123abc"
    assert asked == ["timm/vit_base_patch16_224.dino", "some/net"]
    assert written("perceptual_net=dino_vit_b", "perceptual_net.timm.revision=mine") == "mine"
    assert written("perceptual_net=dino_vit_b", "perceptual_net.timm.pretrained=false") is None
    assert written("pretrain.init.source=timm", "pretrain.init.model=hf-hub:some/beit") == "0123abc"
    assert written("evaluate.reference.source=timm", "evaluate.reference.model=resnet18.a1_in1k") == "0123abc"
    assert len(str(written("perceptual_net=resnet50"))) == 40
    assert written() is None  # trained here
    assert asked[2:] == ["some/beit", "timm/resnet18.a1_in1k"]
    assert "revision: 0123abc, the newest of some/net" in capsys.readouterr().out

    def offline(*_: object, **__: object) -> None:
        raise OSError("no route")

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", offline)
    assert written("perceptual_net=dino_vit_b") is None
    notice = "perceptual_net.timm.revision: not pinned, since asking the hub failed (no route)\n"
    assert capsys.readouterr().err.startswith(notice)
