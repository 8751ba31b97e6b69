"""`make compare`: experiments in clones of their own, and their metrics as one table per task."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from cheap_project import FILES, left_over, make_project, shifted, wait_for
from dvc.repo import Repo

from peco.core.errors import PecoError
from peco.core.params import parse_params
from pipelines import compare
from pipelines.experiments import command, grids, page, plan, results, single, tables
from pipelines.experiments.dot_plot import dot_plot
from pipelines.experiments.grids import VARIANTS, Variant
from pipelines.experiments.plan import Experiment, Snapshot
from pipelines.experiments.run import Runner
from pipelines.workflow.compose import compose_params, render
from pipelines.workflow.processes import single_instance

PECO, PIXEL, REGRESSION = VARIANTS["peco"], VARIANTS["pixel"], VARIANTS["regression"]
CFG = parse_params(compose_params("tiny", []))


def cells(table: tables.Table) -> dict[str, list[str]]:
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in tables.markdown(table, "backbone").splitlines()
    ]
    return {row[0]: row[1:] for row in rows}


def tabulate(metrics: dict[Variant, list[dict[str, Any]]]) -> tuple[dict[str, dict[str, list[str]]], list[str]]:
    found, omitted = tables.tabulate(metrics, PECO, PECO)
    return {table.kind.title: cells(table) for table in found}, omitted


def test_there_is_one_table_per_task_with_every_baseline_and_variant() -> None:
    found, omitted = tabulate({REGRESSION: [shifted(0)], PIXEL: [shifted(-0.1)], PECO: [shifted(0), shifted(0.02)]})
    assert not omitted
    table = found["Classification"]
    assert list(table) == [
        "backbone", "---", "colour histogram", "raw pixels", "random initialisation", "pixel regression", "pixel codebook",
        "PeCo",
    ]  # fmt: skip
    assert table["backbone"] == [
        "kNN, %", "linear, %", "fine-tuned, %", "codes used, %", "perplexity", "PSNR, dB",
    ]  # fmt: skip
    assert table["PeCo"] == ["51.0 ± 1.4", "63.5 ± 1.4", "76.0 ± 1.4", "94.8 ± 1.4", "100.3 ± 0.0", "21.51 ± 0.01"]
    assert table["pixel codebook"] == ["40.0", "52.5", "65.0", "83.8", "100.2", "21.40"]
    assert table["pixel regression"] == ["50.0", "62.5", "75.0", "-", "-", "-"]  # the codebook is not its own
    assert table["random initialisation"] == ["26.0 ± 1.4", "38.5 ± 1.4", "51.0 ± 1.4", "-", "-", "-"]
    assert table["raw pixels"] == ["-", "31.0 ± 1.4", "-", "-", "-", "-"]
    assert table["colour histogram"] == ["-", "21.0 ± 1.4", "-", "-", "-", "-"]
    assert found["Segmentation"] == {
        "backbone": ["mIoU, %", "pixel accuracy, %"], "---": ["---"] * 2,
        "random initialisation": ["21.0 ± 1.4", "71.0 ± 1.4"], "pixel regression": ["40.0", "80.0"],
        "pixel codebook": ["30.0", "70.0"], "PeCo": ["41.0 ± 1.4", "81.0 ± 1.4"],
    }  # fmt: skip
    assert found["Detection"]["random initialisation"] == ["11.0 ± 1.4", "6.0 ± 1.4"]
    assert found["Perceptual agreement"]["SSIM"] == ["-", "-", "11.0 ± 1.4"]
    assert found["Perceptual agreement"]["pixel codebook"] == ["60.0", "65.0", "-"]
    assert not any("pixel regression" in found[title] for title in ("Perceptual agreement", "Codebook"))
    assert found["Codebook"]["k-means of raw patches"][0] == "76.0 ± 1.4"
    assert found["Codebook"]["PeCo"] == [
        "46.0 ± 1.4",
        "36.0 ± 1.4",
        "41.0 ± 1.4",
        "17.31 ± 0.01",
        "0.406 ± 0.014",
        "1.64 ± 0.01",
    ]


def test_a_skipped_evaluation_is_marked_or_named_with_its_reason() -> None:
    off = {"skipped": "switched off (evaluate.tasks.detection)"}
    metrics: dict[str, Any] = {**FILES, "metrics/evaluate/linear.json": {"skipped": "train has no labels"}}
    metrics |= {"metrics/tokens.json": {"views": 0}, "metrics/evaluate/detection.json": off}
    found, omitted = tabulate({PIXEL: [metrics], PECO: [metrics]})
    assert found["Classification"]["PeCo"] == ["50.0", "skipped", "75.0", "-", "-", "21.50"]
    assert found["Classification"]["raw pixels"] == ["-", "skipped", "-", "-", "-", "-"]
    assert "Detection" not in found
    assert omitted == ["Detection: switched off (evaluate.tasks.detection)"]


class Page(HTMLParser):
    """Checks that every element is closed, and gathers the text and what the page would load."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text = ""
        self.loads: list[str] = []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.loads += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in ("meta",):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_loads_nothing_and_shows_the_budget(tmp_path: Path) -> None:
    odd = Experiment(Variant("odd", "<b> & co"), 0, (), CFG, is_current=False)
    peco = Experiment(PECO, 0, (), CFG, is_current=True)
    measured = [(odd, shifted(-0.1)), (peco, shifted(0)), (peco, shifted(0.02))]
    heading = page.Heading("Comparison", "backbone", "PeCo.")
    found = page.describe(heading, measured, [0, 1], ["tokens.views=1"], ["resnet50 failed: error: no network"])
    paths = page.write(found, tmp_path / "reports" / "compare")
    assert [path.name for path in paths] == ["compare.md", "compare.html"]
    markdown, text = (path.read_text() for path in paths)
    assert "Preset tiny, seeds 0 1, tokens.views=1; mean ± sample standard deviation" in markdown
    assert "The built-in scenes show that the chain works; to compare codebooks, take photographs" in markdown
    assert "tokenizer: 800 images, epochs: 4; pre-training: 2,016 images, epochs: 10" in markdown
    assert "resnet50 failed: error: no network" in markdown
    parsed = Page(text)
    assert not parsed.loads
    assert (
        "<b> & co" in parsed.text
        and "seeds 0 1, tokens.views=1;" in parsed.text
        and "2,016 images, epochs: 10" in parsed.text
    )
    assert len(re.findall('class="ours"><th scope="row">PeCo', text)) == len(tables.TASK_TABLES)
    assert text.count("<svg") == sum(len(task.scores) for task in tables.TASK_TABLES)
    page.write(found, tmp_path / "reports" / "compare")
    assert [path.read_text() for path in paths] == [markdown, text]


def test_the_budget_has_only_trainings_that_took_place() -> None:
    given = ["tokenizer.init.source=path", "tokenizer.init.path=data/x", "tokenizer.init.train=false"]
    cfg = parse_params(compose_params("tiny", [*given, "perceptual_net.source=path", "perceptual_net.path=data/y"]))
    measured = [(Experiment(PECO, 0, (), cfg, is_current=True), shifted(0))]
    found = page.describe(page.Heading("Comparison", "backbone", "PeCo."), measured, [0], [])
    assert [stage for stage, _ in found.budget] == ["Pre-training", "Fine-tuning", "Segmentation"]


def test_a_plot_has_one_dot_per_seed_within_its_frame() -> None:
    plot = dot_plot([("one", [0.5, 0.7], False), ("two", [0.6], True)], label="kNN")
    xs = [float(x) for x in re.findall(r'cx="([\d.]+)"', plot)]
    assert len(xs) == 3
    assert 22 <= min(xs) < max(xs) <= 298
    assert "<svg" in dot_plot([("flat", [3.0, 3.0], False)], label="all the same")


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return make_project(tmp_path / "project", monkeypatch)


def run(name: str, snapshot: Snapshot) -> None:
    arguments = [name, snapshot.commit, snapshot.revision, "seed=1"]
    subprocess.run(
        [sys.executable, "-m", "pipelines.experiments.single", *arguments], check=True, stdout=subprocess.DEVNULL
    )


def test_an_experiment_is_run_again_without_running_its_stages_again(project: Path, tmp_path: Path) -> None:
    first = plan.take_snapshot()
    run("one", first)
    run("two", first)
    assert (tmp_path / "ran").read_text() == "0 1\n"
    assert results.finished(first.commit) == {"one", "two"}
    assert results.read_metrics("one", first.commit)["metrics/evaluate/knn.json"] == {
        "accuracy": 0.51,
        "random_accuracy": 0.26,
    }
    (project / "values.json").write_text(json.dumps(shifted(0.1)))  # a later commit has its own experiment
    subprocess.run(["git", "commit", "-qam", "later"], check=True)
    later = plan.take_snapshot()
    assert not results.finished(later.commit)
    run("one", later)
    subprocess.run(["git", "commit", "-qm", "last", "--allow-empty"], check=True)
    for commit, accuracy in ((first.commit, 0.51), (later.commit, 0.61)):
        metrics = results.read_metrics("one", commit)
        assert metrics["metrics/evaluate/knn.json"]["accuracy"] == pytest.approx(accuracy)
    assert (tmp_path / "ran").read_text() == "0 1\n0 1\n"
    refs = subprocess.run(["git", "for-each-ref", "refs/exps"], check=True, capture_output=True, text=True).stdout
    assert refs.count("/one\n") == 2
    with pytest.raises(PecoError, match=r"^experiment three: ") as caught:
        results.read_metrics("three", later.commit)
    assert "\n" not in str(caught.value)


def test_a_clone_has_what_git_knows_and_the_settings_of_the_repository(project: Path, tmp_path: Path) -> None:
    assert plan.take_snapshot().revision == plan.take_snapshot().commit
    (project / "stage.py").write_text("changed\n")
    (project / "added.txt").write_text("added\n")
    (project / "unknown.txt").write_text("unknown\n")
    subprocess.run(["git", "add", "added.txt"], check=True)
    subprocess.run(["git", "config", "user.name", "of this repository"], check=True)
    (project / ".dvc" / "config.local").write_text("['remote \"store\"']\n    url = s3://store\n")
    status = subprocess.run(["git", "status", "--porcelain"], check=True, capture_output=True).stdout
    snapshot = plan.take_snapshot()
    assert subprocess.run(["git", "status", "--porcelain"], check=True, capture_output=True).stdout == status
    (project / "stage.py").write_text("changed again\n")
    clone = tmp_path / "clone"
    single.make_clone(clone, "", snapshot.commit, snapshot.revision)
    assert (clone / "stage.py").read_text() == "changed\n"
    assert (clone / "added.txt").exists() and not (clone / "unknown.txt").exists()
    name = subprocess.run(["git", "config", "user.name"], cwd=clone, check=True, capture_output=True, text=True).stdout
    assert name == "of this repository\n"
    with Repo(clone) as repo:
        assert repo.cache.local_cache_dir == str(project / ".dvc" / "cache")
        assert repo.config["remote"]["store"]["url"] == "s3://store"


def test_a_repository_without_its_history_can_run_experiments(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    subprocess.run(["git", "commit", "-qm", "second", "--allow-empty"], check=True)
    shallow = tmp_path / "shallow"
    subprocess.run(["git", "clone", "-q", "--depth", "1", f"file://{project}", str(shallow)], check=True)
    monkeypatch.chdir(shallow)
    run("one", plan.take_snapshot())
    assert results.finished(plan.take_snapshot().commit) == {"one"}


def test_data_that_experiments_would_not_see_are_named(project: Path) -> None:
    (project / "data" / "photos.dvc").write_text("outs: []\n")
    for wrong, message in (
        ("missing", "does not exist; copy yours there"),
        ("boxes", "not tracked, .* run `dvc add data/boxes"),
    ):
        (project / "data" / "boxes").mkdir(exist_ok=True)
        (project / "data" / "boxes" / "1.jpg").touch()
        with pytest.raises(PecoError, match=message):
            plan.check_inputs(parse_params(compose_params("tiny", [f"evaluate.detection.path=data/{wrong}"])))
    photos = parse_params(compose_params("tiny", ["evaluate.detection.path=data/photos/val"]))
    with pytest.raises(PecoError, match=r"`git add data/photos\.dvc`"):
        plan.check_inputs(photos)
    subprocess.run(["git", "add", "data"], check=True)
    plan.check_inputs(photos)


def test_data_that_changed_since_they_were_added_are_named(project: Path) -> None:
    images = project / "data" / "images"
    images.mkdir()
    (images / "1.jpg").write_text("one")
    subprocess.run([sys.executable, "-m", "dvc", "add", "-q", "data/images"], check=True)
    subprocess.run(["git", "add", "."], check=True)
    cfg = parse_params(compose_params("tiny", ["evaluate.detection.path=data/images"]))
    plan.check_inputs(cfg)
    (images / "1.jpg").unlink()
    (images / "1.jpg").write_text("other")
    with pytest.raises(PecoError, match=r"^data/images: changed since `dvc add`.*run `dvc add data/images` again$"):
        plan.check_inputs(cfg)
    (images / "1.jpg").unlink()
    images.rmdir()  # the cache has it
    plan.check_inputs(cfg)


def test_changes_may_hold_any_bytes(project: Path) -> None:
    (project / "data" / "odd.txt").write_bytes(b"\xff\n")
    subprocess.run(["git", "add", "data"], check=True)
    assert "xff" in plan.take_snapshot().changes


def snapshot(*overrides: str) -> Snapshot:
    return Snapshot("c0", "c0", "", render(compose_params("tiny", list(overrides))))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("tokenizer.perceptual.weight=0", r"^tokenizer\.perceptual\.weight: 0 in params\.yaml or SET, so PeCo would be the pixel"),
        ("pretrain.target=pixels", r"^pretrain\.target: pixels in params\.yaml or SET, so PeCo would be the pixel regression"),
        ("tokenizer.objective=vqkd", r"^tokenizer\.objective: vqkd in params\.yaml or SET, so PeCo would be the feature-d"),
    ],
)  # fmt: skip
def test_the_current_parameters_must_be_those_of_peco(override: str, message: str) -> None:
    with pytest.raises(PecoError, match=message):
        grids.variants(parse_params(compose_params("tiny", [override])), ["peco", "pixel"])
    with pytest.raises(PecoError, match=message):
        plan.plan(snapshot(), "compare", lambda config: grids.variants(config, ["peco", "pixel"]), [0], [override])


def test_a_second_call_is_refused_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(compare, "take_snapshot", snapshot)
    monkeypatch.setattr(command, "check_inputs", lambda parameters: None)
    with single_instance("compare"):
        assert compare.main(["--seeds", "0"]) == 2
    assert capsys.readouterr().err == "error: another `make compare` runs here; wait until it has finished\n"


def test_a_stop_ends_it_and_starts_no_other_experiment(project: Path, tmp_path: Path) -> None:
    (tmp_path / "hold").touch()
    command = [sys.executable, "-m", "pipelines.compare", "--seeds", "0", "1"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        wait_for((tmp_path / "ran").exists)
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert errors.splitlines()[-1] == "stopped: 0 of 4 are finished; the same command resumes"
    assert (tmp_path / "ran").read_text() == "0 0\n"
    assert not left_over(project)


def test_experiments_with_the_same_parameters_are_not_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    done: set[str] = set()
    for module in ("run", "command"):
        monkeypatch.setattr(f"pipelines.experiments.{module}.finished", lambda commit: set(done))
    monkeypatch.setattr(Runner, "_start", lambda runner, name: done.add(name))
    monkeypatch.setattr(compare, "take_snapshot", snapshot)
    monkeypatch.setattr(command, "check_inputs", lambda parameters: None)
    monkeypatch.setattr(command, "read_metrics", lambda name, commit: FILES)
    for settings, before, after in (([], 0, 2), ([], 2, 2), (["--set", "pretrain.optim.epochs=1"], 0, 4)):
        assert compare.main(["--seeds", "0", *settings]) == 0
        assert f"2 experiments: {before} finished before" in capsys.readouterr().out
        assert len(done) == after
    assert (
        sorted(name[: len("compare-tiny-peco-0-")] for name in done)
        == ["compare-tiny-peco-0-"] * 2 + ["compare-tiny-pixel-0"] * 2
    )


def test_variants_come_in_their_order_and_by_their_names() -> None:
    assert grids.variants(CFG, ["pixel", "peco"]) == [PECO, PIXEL]
    with pytest.raises(PecoError, match=r"^VARIANTS=pixels: .*peco, pixel, regression, vqkd$"):
        grids.variants(CFG, ["pixels"])
    with pytest.raises(PecoError, match=r"^VARIANTS=pixel vqkd: not allowed; peco must be among them"):
        grids.variants(CFG, ["pixel", "vqkd"])


def planned(seeds: list[int], settings: list[str]) -> list[Experiment]:
    variants = grids.variants(CFG, list(VARIANTS))
    return list(plan.plan(snapshot(), "compare", lambda _: variants, seeds, settings).values())


def test_settings_in_which_the_variants_differ_are_refused() -> None:
    found = planned([0, 0, 1], ["pretrain.optim.epochs=1"])
    assert [(each.variant.key, each.seed) for each in found] == [(key, seed) for key in VARIANTS for seed in (0, 1)]
    assert [each.variant.key for each in found if each.is_current] == ["peco", "peco"]
    assert all(each.config.pretrain.optim.epochs == 1 and each.config.seed == each.seed for each in found)
    for setting in (
        "tokenizer.perceptual.weight=2",
        "tokenizer.perceptual={weight:2}",
        "pretrain.target=pixels",
        "++tokenizer.objective=vqkd",
    ):
        with pytest.raises(PecoError, match=r"^SET=.*: not allowed, the experiments differ in it"):
            planned([0], [setting])
    for setting, message in {
        "seed=3": "SEEDS", "pretrain.optim.lr=1,2": "several values", "pretrain.optim.epochs=-1": "pretrain.optim.epochs: -1",
        "pretrain.optim": "expected key=value", "pretrain.optim.sped=1": "pretrain.optim.sped=1",
    }.items():  # fmt: skip
        with pytest.raises(PecoError, match=re.escape(message)) as caught:
            planned([0], [setting])
        assert "\n" not in str(caught.value)
