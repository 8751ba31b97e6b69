"""The plan of a run: FLOPs against formulas, images and steps against a calculation by hand, warnings, lines of stages."""

from __future__ import annotations

import dataclasses
import json
import re
import tarfile
import time
from pathlib import Path

import pytest
import torch
import yaml
from image_sets import dataset
from PIL import Image
from torch.nn.attention import SDPBackend, sdpa_kernel

from peco.core import config
from peco.core.errors import PecoError
from peco.core.params import parse_params
from peco.data import views
from peco.plan import __main__ as command
from peco.plan import measure, work
from peco.plan.networks import networks
from peco.sources.open import open_source
from peco.sources.shard_writer import write_shards
from pipelines.workflow import plan
from pipelines.workflow.compose import compose_params, write
from pipelines.workflow.graph import load_graph

ROOT = Path(__file__).parents[1]
TINY = parse_params(compose_params("tiny", []))
PHOTOS = work.Data(train=330, val=37, mean_bytes=20_000.0, labelled=True, estimated=False, encoded=())


def block_flops(tokens: int, outputs: int, width: int, mlp: float) -> float:
    """Forward pass of a transformer block by hand: two for each multiplication.

    Keys and values of all tokens; at the outputs query, scores, weighted sum, projection and the two layers of the MLP.
    """
    return tokens * 2 * 2 * width**2 + outputs * (2 * 2 * width**2 + 2 * 2 * tokens * width + 2 * 2 * mlp * width**2)


def embedding_flops(vit: config.Vit, patches: int) -> float:
    return patches * 2 * 3 * vit.patch_size**2 * vit.embed_dim


@pytest.mark.parametrize("preset", ["tiny", "imagenet_vit_b"])
def test_the_flops_of_pretraining_are_those_of_a_formula(preset: str) -> None:
    cfg = parse_params(compose_params(preset, []))
    vit, size = cfg.pretrain.vit, cfg.loader.image_size
    patches = (size // vit.patch_size) ** 2
    tokens, masked = patches + 1, cfg.pretrain.masking.count
    blocks = (vit.depth - 1) * block_flops(tokens, tokens, vit.embed_dim, vit.mlp_ratio)
    last = block_flops(tokens, masked, vit.embed_dim, vit.mlp_ratio)
    head = 2 * masked * vit.embed_dim * cfg.tokenizer.quantizer.codes
    # A backward pass is two forward passes, but for the patch embedding, whose images need no gradient.
    expected = 3 * (blocks + last + head) + 2 * embedding_flops(vit, patches)
    assert measure.count(networks(cfg)["mim"]).flops == pytest.approx(expected, rel=0.01)


def test_the_flops_of_frozen_features_are_a_forward_pass() -> None:
    vit = TINY.pretrain.vit
    expected = embedding_flops(vit, 64) + vit.depth * block_flops(65, 65, vit.embed_dim, vit.mlp_ratio)
    assert measure.count(networks(TINY)["features"]).flops == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize(
    "name", ["moco", "tokenizer", "tokenize", "mim", "features", "classifier", "segmenter", "detector"]
)
def test_a_network_counts_on_no_device_what_it_computes_on_the_cpu(name: str) -> None:
    cfg = parse_params(compose_params("smoke", []))
    network = networks(cfg)[name]
    cost = measure.count(network)
    step = network.build().train(network.trains)
    counter = measure.FlopCounterMode(display=False)
    # The counter does not know the fused attention of the CPU.
    with counter, torch.set_grad_enabled(network.trains), sdpa_kernel(SDPBackend.MATH):
        value = step(torch.rand(2, 3, network.size, network.size))
        if network.trains:
            value.backward()
    assert cost.flops == counter.get_total_flops() / 2
    assert cost.parameters == sum(p.numel() for p in step.parameters())
    assert torch.isfinite(value) and (cost.activations > 0) == network.trains


def test_memory_holds_weights_gradients_moments_and_the_activations_of_a_batch() -> None:
    cost = measure.Cost(flops=1e9, activations=3e6, parameters=1_000_000, trained=750_000)
    assert measure.memory(cost, 32, trains=True) == measure.PROCESS_BYTES + 4e6 + 3 * 4 * 750_000 + 32 * 3e6
    assert measure.memory(cost, 32, trains=False) == measure.PROCESS_BYTES + 4e6


def test_images_and_steps_are_those_of_the_trainings() -> None:
    data = work.Data(4000, 1000, 3000.0, True, False, ())
    found = {entry.stage: entry for entry in work.works(TINY, data, {})}
    assert list(found) == list(load_graph(ROOT).stages)
    assert {name: entry.steps for name, entry in found.items() if entry.steps} == {
        "perceptual_net": 1000, "tokenizer": 500, "pretrain": 1250,
        "evaluate@finetune": 2 * 313, "evaluate@segmentation": 2 * 1200, "evaluate@detection": 2 * 800,
    }  # fmt: skip
    assert found["tokens"].parts == (work.Part("tokenize", 8000, "tokens"),)
    assert found["tokens"].disk == 8000 * (2 * 64 + views.VIEW_DTYPE.itemsize)
    assert found["shards"].disk == pytest.approx(5000 * 3000, rel=0.05)


def test_a_reference_is_one_training_more() -> None:
    reference = dataclasses.replace(TINY.evaluate.reference, source="timm", model="resnet18")
    cfg = dataclasses.replace(TINY, evaluate=dataclasses.replace(TINY.evaluate, reference=reference))
    without, found = ({entry.stage: entry for entry in work.works(c, PHOTOS, {})} for c in (TINY, cfg))
    for task in ("knn", "linear", "finetune", "segmentation", "detection"):
        stage = f"evaluate@{task}"
        assert found[stage].parts[0].images == pytest.approx(1.5 * without[stage].parts[0].images)
    assert found["evaluate@finetune"].steps == 3 * TINY.evaluate.finetune.optim.steps(PHOTOS.train)
    assert found["pretrain"] == without["pretrain"]


def test_splits_of_the_input_itself_are_counted(tmp_path: Path) -> None:
    for split, count in (("train", 4), ("val", 6)):
        (tmp_path / "photos" / split / "a").mkdir(parents=True)
        for number in range(count):
            Image.new("RGB", (40, 40), (number, 0, 0)).save(tmp_path / "photos" / split / "a" / f"{number}.png")
    found = work.read_data(dataset("images", tmp_path / "photos"), tmp_path / "work")
    assert (found.train, found.val, found.estimated) == (4, 6, True)


def test_an_evaluation_that_does_not_run_costs_nothing() -> None:
    tasks = dataclasses.replace(TINY.evaluate.tasks, knn=False, detection=False)
    cfg = dataclasses.replace(TINY, evaluate=dataclasses.replace(TINY.evaluate, tasks=tasks))
    unlabelled = dataclasses.replace(PHOTOS, labelled=False)
    found = {entry.stage: entry for entry in work.works(cfg, unlabelled, {})}
    assert not any(found[f"evaluate@{task}"].parts for task in ("knn", "linear", "finetune", "detection"))
    assert found["evaluate@segmentation"].parts


def test_trainings_that_see_too_few_images_are_named_with_what_is_enough() -> None:
    """The preset `tiny` on 367 photographs: 42 steps of the tokenizer."""
    lines = work.few_steps(work.works(TINY, PHOTOS, {}), PHOTOS.train)
    assert [line.split(":")[0] for line in lines] == ["perceptual_net", "tokenizer", "pretrain"]
    assert "42 steps of 32 images are too few to learn from; set tokenizer.optim.epochs to 20 or more" in lines[1]
    assert TINY.tokenizer.optim.steps(PHOTOS.train) == 42
    enough = dataclasses.replace(TINY.tokenizer.optim, epochs=20)
    assert enough.steps(PHOTOS.train) >= work.MIN_STEPS


def test_a_run_beyond_disk_and_time_is_warned_of() -> None:
    row = command.Row("pretrain", 1.0, 1, 1.0, 1e9, 1e18, 0.0, 3e6, None)
    disk, duration = command.warnings(TINY, work.Data(10**6, 0, 1.0, False, False, ()), [], [row])
    assert re.match(r"disk: .* are needed, .* are free here; free space, or run it on another disk", disk)
    assert re.match(r"time: 35 days on this machine is out of proportion; take a smaller preset", duration)


def test_the_hours_of_a_gpu_are_flops_over_half_of_its_peak(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data/scenes.yaml").write_text((ROOT / "data/scenes.yaml").read_text())
    cfg = parse_params(compose_params("smoke", []))
    _, stages, rows = command.plan(cfg, "H100")
    mim = next(row for row in rows if row.stage == "pretrain")
    flops = measure.count(networks(cfg)["mim"]).flops * cfg.pretrain.optim.images_seen(cfg.dataset.scenes.train)
    assert mim.flops == flops
    assert mim.gpu_hours == pytest.approx(flops / (0.5 * 67e12) / 3600)  # smoke computes in fp32
    text = command.table(rows, "H100")
    assert len(text.splitlines()) == len(stages) + 2 and "H100 hours" in text


@pytest.mark.parametrize("content", ["{", "[1]", '{"images": "x"}', '{"train_images": 5, "images": 3}'])
def test_counts_of_annotated_sets_that_are_damaged_do_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "metrics/annotations").mkdir(parents=True)
    (tmp_path / "metrics/annotations/detection.json").write_text(content)
    known = json.loads(content) if "train_images" in content else None
    assert command._annotated() == ({"detection": known} if known else {})


def test_shards_of_another_input_do_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("data/old", "data/new"):
        (tmp_path / name).mkdir(parents=True)
        for number in range(20 if name == "data/new" else 6):
            Image.new("RGB", (16, 16), (number, 0, 0)).save(tmp_path / name / f"{number}.png")
    values = compose_params("smoke", ["dataset=images", "dataset.path=data/old"])
    old = parse_params(values).dataset
    write_shards(open_source(old, tmp_path), Path("artifacts/shards"), old, work=tmp_path, workers=1)
    lock = {"stages": {"shards": {"params": {"params.yaml": {"dataset": values["dataset"]}}}}}
    (tmp_path / "dvc.lock").write_text(yaml.safe_dump(lock))
    found = [work.read_data(dataclasses.replace(old, path=name), tmp_path) for name in ("data/old", "data/new")]
    assert [(data.train + data.val, data.estimated) for data in found] == [(6, False), (20, True)]


def test_images_behind_addresses_are_not_fetched_to_count_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PECO_ALLOW_PIPE", "1")
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for number in range(20):
            image = tmp_path / f"{number}.png"
            Image.new("RGB", (16, 16), (number, 0, 0)).save(image)
            archive.add(image, image.name)
    (tmp_path / "data").mkdir()
    (tmp_path / "data/list.txt").write_text(f"pipe:cat {tmp_path / 'a.tar'}")
    dataset = parse_params(compose_params("smoke", ["dataset=webdataset", "dataset.path=data/list.txt"])).dataset
    with pytest.raises(PecoError, match=r"^dataset\.path: data/list\.txt: .* run `dvc repro shards` first$"):
        work.read_data(dataset, tmp_path)


def test_a_network_of_timm_is_counted_at_its_own_size() -> None:
    """A vision transformer is built for the images of the run, not for those of 224 pixels that it was trained on."""
    given = [
        "perceptual_net.source=timm",
        "perceptual_net.timm.model=vit_tiny_patch16_224",
        "perceptual_net.blocks=[12]",
    ]
    cost = {}
    for size in (64, 32):
        cfg = parse_params(compose_params("tiny", given))
        cfg = dataclasses.replace(cfg, loader=dataclasses.replace(cfg.loader, image_size=size))
        cost[size] = measure.count(networks(cfg)["tokenizer"]).flops
    assert cost[32] < cost[64]
    wrong = dataclasses.replace(cfg.perceptual_net.timm, model="no_such_net")
    net = dataclasses.replace(cfg.perceptual_net, timm=wrong)
    with pytest.raises(PecoError, match=r"^perceptual_net\.timm\.model: no_such_net: Unknown model"):
        measure.count(networks(dataclasses.replace(cfg, perceptual_net=net))["tokenizer"])


@pytest.mark.parametrize("options", [["--brief", "none/plan.json"], []])
def test_what_cannot_be_written_or_read_is_one_line(
    project: Path, capsys: pytest.CaptureFixture[str], options: list[str]
) -> None:
    """A folder that isn't there; images that aren't there."""
    if options:
        (project / "data").mkdir()
        (project / "data/scenes.yaml").write_text((ROOT / "data/scenes.yaml").read_text())
        write(compose_params("smoke", []), project / "params.yaml")
    assert command.main(options) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 1 and errors[0].startswith(
        "error: none/plan.json: No such file" if options else "error: data/scenes.yaml: "
    )


# The lines of `make repro`


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dvc.yaml").write_text((ROOT / "dvc.yaml").read_text())
    write(compose_params("tiny", []), tmp_path / "params.yaml")
    return tmp_path


def planned(project: Path, monkeypatch: pytest.MonkeyPatch, seconds: dict[str, float]) -> Path:
    file = project / "plan.json"
    file.write_text(json.dumps({"key": "", "seconds": seconds, "lines": [], "finished": False, "done": {}}))
    monkeypatch.setenv("PECO_PLAN", str(file))
    return file


def test_each_stage_has_its_number_and_the_end_of_all(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = load_graph(project)
    planned(project, monkeypatch, dict.fromkeys(graph.stages, 60.0))
    monkeypatch.setattr(time, "time", lambda: 0.0)
    monkeypatch.setattr(time, "localtime", time.gmtime)
    assert plan.begin(graph, "annotations") == "annotations: stage 1 of 14; all is done at about 00:14"
    plan.end("annotations", 60.0)
    assert plan.begin(graph, "shards") == "shards: stage 2 of 14; all is done at about 00:13"
    plan.end("shards", 180.0)  # together twice as long as planned
    # (240 + 0.2 * 840) / (120 + 0.2 * 840) = 1.417 times 12 minutes
    assert plan.begin(graph, "perceptual_net") == "perceptual_net: stage 3 of 14; all is done at about 00:17"


def test_stages_that_need_not_run_count_as_done(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    planned(project, monkeypatch, {})
    assert plan.begin(load_graph(project), "pretrain") == "pretrain: stage 5 of 14"


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"seconds": [], "done": {}}', "\xff"])
def test_a_damaged_plan_is_none(project: Path, monkeypatch: pytest.MonkeyPatch, content: str) -> None:
    planned(project, monkeypatch, {}).write_text(content, encoding="latin-1")
    assert plan.begin(load_graph(project), "pretrain") is None
    plan.end("pretrain", 1.0)


def test_outside_of_make_repro_there_is_no_line(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PECO_PLAN", raising=False)
    assert plan.begin(load_graph(project), "pretrain") is None
    plan.end("pretrain", 1.0)


def test_a_short_run_is_not_measured(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(plan, "_measured", lambda: pytest.fail("measured"))
    write(compose_params("smoke", []), project / "params.yaml")
    plan.announce(parse_params(compose_params("smoke", [])))
    assert capsys.readouterr().out == ""


def test_this_machine_is_not_measured_for_a_run_on_a_cluster(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(plan, "_measured", lambda: pytest.fail("measured"))
    monkeypatch.setenv("PECO_SCHEDULER", "slurm")
    plan.announce(TINY)
    assert capsys.readouterr().out == ""


def test_the_plan_is_made_once_and_not_repeated_after_a_finished_run(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = []
    monkeypatch.setattr(
        plan, "_measured", lambda: made.append(1) or {"seconds": {"shards": 5.0}, "lines": ["plan: 14 min"]}
    )
    for _ in range(2):  # the first was stopped
        file = plan.announce(TINY)
        assert capsys.readouterr().out == "plan: 14 min\n"
    plan.finish(file)
    plan.announce(TINY)
    assert capsys.readouterr().out == "" and made == [1]
