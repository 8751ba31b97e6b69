"""`make compare`: experiments are repeated without repeating their work, and their metrics become a table a task."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from cheap_project import FILES, make, shifted

from peco.core.errors import PecoError
from peco.core.params import parse_params
from pipelines import compare
from pipelines.experiments import grids, tables
from pipelines.experiments import page as comparison
from pipelines.experiments import run as experiments
from pipelines.experiments.dot_plot import dot_plot
from pipelines.experiments.grids import VARIANTS, Point
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


def tabulate(results: dict[Point, list[dict[str, Any]]]) -> tuple[dict[str, dict[str, list[str]]], list[str]]:
    found, left_out = tables.tabulate(results, PECO, PECO)
    return {table.task.title: cells(table) for table in found}, left_out


def test_there_is_a_table_a_task_with_every_baseline_and_variant() -> None:
    found, left_out = tabulate({REGRESSION: [shifted(0)], PIXEL: [shifted(-0.1)], PECO: [shifted(0), shifted(0.02)]})
    assert not left_out
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


def test_what_was_skipped_says_so() -> None:
    off = {"skipped": "switched off (evaluate.tasks.detection)"}
    metrics: dict[str, Any] = {**FILES, "metrics/evaluate/linear.json": {"skipped": "train has no labels"}}
    metrics |= {"metrics/tokens.json": {"views": 0}, "metrics/evaluate/detection.json": off}
    found, left_out = tabulate({PIXEL: [metrics], PECO: [metrics]})
    assert found["Classification"]["PeCo"] == ["50.0", "skipped", "75.0", "-", "-", "21.50"]
    assert found["Classification"]["raw pixels"] == ["-", "skipped", "-", "-", "-", "-"]
    assert "Detection" not in found
    assert left_out == ["Detection: switched off (evaluate.tasks.detection)"]


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


def test_the_page_needs_nothing_else_and_says_what_was_spent(tmp_path: Path) -> None:
    odd = Point("odd", "<b> & co")
    results = {odd: [shifted(-0.1)], PECO: [shifted(0), shifted(0.02)]}
    found = comparison.describe(
        "Comparison", "backbone", "PeCo.", CFG, [0, 1], ["tokens.views=1"], results, PECO, PECO,
        ["resnet50 failed: error: no network"],
    )  # fmt: skip
    paths = comparison.write(found, tmp_path / "reports" / "compare")
    assert [path.name for path in paths] == ["compare.md", "compare.html"]
    markdown, text = (path.read_text() for path in paths)
    assert "Preset tiny, seeds 0 1, tokens.views=1; mean ± sample standard deviation" in markdown
    assert "tokenizer: 800 images, epochs: 4; pre-training: 2,016 images, epochs: 10" in markdown
    assert "resnet50 failed: error: no network" in markdown
    page = Page(text)
    assert not page.loads
    assert (
        "<b> & co" in page.text
        and "seeds 0 1, tokens.views=1;" in page.text
        and "2,016 images, epochs: 10" in page.text
    )
    assert len(re.findall('class="ours"><th scope="row">PeCo', text)) == len(tables.TASKS)
    assert text.count("<svg") == sum(len(task.scores) for task in tables.TASKS)
    comparison.write(found, tmp_path / "reports" / "compare")
    assert [path.read_text() for path in paths] == [markdown, text]


def test_a_plot_has_a_dot_a_seed_within_its_frame() -> None:
    plot = dot_plot([("one", [0.5, 0.7], False), ("two", [0.6], True)], label="kNN")
    places = [float(x) for x in re.findall(r'cx="([\d.]+)"', plot)]
    assert len(places) == 3
    assert 22 <= min(places) < max(places) <= 298
    assert "<svg" in dot_plot([("flat", [3.0, 3.0], False)], label="all the same")


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return make(tmp_path / "project", monkeypatch)


def run(name: str, *settings: str) -> None:
    """In a process of its own, since signal handlers are set."""
    code = f"from pipelines.experiments.run import run; import sys; sys.exit(run({name!r}, {list(settings)!r}))"
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ, stdout=subprocess.DEVNULL)


def test_an_experiment_is_run_again_without_running_its_stages_again(project: Path, tmp_path: Path) -> None:
    run("one", "seed=1")
    run("two", "seed=1")
    assert (tmp_path / "ran").read_text() == "0 1\n"
    first = experiments.commit()
    assert experiments.finished(first) == {"one", "two"}
    assert experiments.read_metrics("one", first)["metrics/evaluate/knn.json"] == {
        "accuracy": 0.51,
        "random_accuracy": 0.26,
    }
    (project / "values.json").write_text(json.dumps(shifted(0.1)))  # a later commit has an experiment of its own
    subprocess.run(["git", "commit", "-qam", "later"], check=True)
    later = experiments.commit()
    assert not experiments.finished(later)
    run("one", "seed=1")
    subprocess.run(
        ["git", "commit", "-qm", "last", "--allow-empty"], check=True
    )  # DVC by itself finds the name ambiguous here
    for commit, accuracy in ((first, 0.51), (later, 0.61)):
        metrics = experiments.read_metrics("one", commit)
        assert metrics["metrics/evaluate/knn.json"]["accuracy"] == pytest.approx(accuracy)
    assert (tmp_path / "ran").read_text() == "0 1\n0 1\n"
    refs = subprocess.run(["git", "for-each-ref", "refs/exps"], check=True, capture_output=True, text=True).stdout
    assert refs.count("/one\n") == 2
    with pytest.raises(PecoError, match=r"^experiment three: ") as caught:
        experiments.read_metrics("three", later)
    assert "\n" not in str(caught.value)


def test_data_that_git_does_not_know_is_named(project: Path) -> None:
    (project / "data" / "photos.dvc").write_text("outs: []\n")
    for wrong, told in (
        ("missing", "does not exist; copy yours there"),
        ("boxes", "not tracked, .* run `dvc add data/boxes"),
    ):
        (project / "data" / "boxes").mkdir(exist_ok=True)
        (project / "data" / "boxes" / "1.jpg").touch()
        with pytest.raises(PecoError, match=told):
            experiments.check_inputs(parse_params(compose_params("tiny", [f"evaluate.detection.path=data/{wrong}"])))
    boxes = parse_params(compose_params("tiny", ["evaluate.detection.path=data/photos/val"]))
    with pytest.raises(PecoError, match=r"`git add data/photos\.dvc`"):
        experiments.check_inputs(boxes)
    subprocess.run(["git", "add", "data"], check=True)
    experiments.check_inputs(boxes)
    (project / "data" / "odd.txt").write_bytes(b"\xff\n")
    subprocess.run(["git", "add", "data"], check=True)
    assert "xff" in experiments.changes()


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("tokenizer.perceptual.weight=0", r"^tokenizer\.perceptual\.weight: 0 in params\.yaml or SET, so PeCo would be the pixel"),
        ("pretrain.target=pixels", r"^pretrain\.target: pixels in params\.yaml or SET, so PeCo would be the pixel regression"),
        ("tokenizer.objective=vqkd", r"^tokenizer\.objective: vqkd in params\.yaml or SET, so PeCo would be the feature-d"),
    ],
)  # fmt: skip
def test_what_stands_must_be_peco(override: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(PecoError, match=told):
        grids.variants(parse_params(compose_params("tiny", [override])), ["peco", "pixel"])
    stand(tmp_path, monkeypatch)
    with pytest.raises(PecoError, match=told):
        compare.compare(["peco", "pixel"], [0], [override])


def stand(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the parameters of `tiny` in a folder without a repository."""
    monkeypatch.chdir(folder)
    monkeypatch.setenv("PECO_WORK", str(folder))
    monkeypatch.setattr(experiments, "check_inputs", lambda parameters: None)
    monkeypatch.setattr(experiments, "commit", lambda: "c0")
    monkeypatch.setattr(experiments, "changes", lambda: "")
    (folder / "params.yaml").write_text(render(compose_params("tiny", [])))


def test_an_edit_meanwhile_and_a_second_call_end_it_in_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stand(tmp_path, monkeypatch)
    monkeypatch.setattr(experiments, "finished", lambda commit: set())
    ran: list[str] = []

    def run(name: str, settings: list[str]) -> int:
        ran.append(name)
        (tmp_path / "params.yaml").write_text(render(compose_params("tiny", ["tokens.views=1"])))
        return 0

    monkeypatch.setattr(experiments, "run", run)
    assert compare.main(["--seeds", "0"]) == 2
    assert len(ran) == 1 and ran[0].startswith("compare-tiny-peco-0-")
    assert capsys.readouterr().err == "error: params.yaml or code changed since the start; run again\n"
    with single_instance("compare"):
        assert compare.main(["--seeds", "0"]) == 2
    assert capsys.readouterr().err == "error: another `make compare` runs here; wait for its end\n"


@pytest.mark.parametrize("status", [255, 0])
def test_a_stop_ends_it_and_starts_no_other_experiment(
    status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stand(tmp_path, monkeypatch)
    monkeypatch.setattr(experiments, "finished", lambda commit: set())
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "dvc.py").write_text(
        "import os, signal, sys, time\n"
        "print('began', file=open('began', 'a'))\n"
        f"signal.signal(signal.SIGINT, lambda *_: sys.exit({status}))\n"
        f"os.kill({os.getpid()}, signal.SIGTERM)\ntime.sleep(30)"
    )
    assert compare.main(["--seeds", "0"]) == 128 + signal.SIGTERM
    assert capsys.readouterr().err == "error: stopped; the same command goes on\n"
    assert (tmp_path / "began").read_text().count("began") == 1


def test_what_has_finished_with_these_parameters_is_not_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stand(tmp_path, monkeypatch)
    done: set[str] = set()
    monkeypatch.setattr(experiments, "finished", lambda commit: set(done))
    monkeypatch.setattr(experiments, "run", lambda name, settings: done.add(name) or 0)
    monkeypatch.setattr(experiments, "read_metrics", lambda name, commit: FILES)
    compare.compare(["peco", "pixel"], [0], [])
    assert len(done) == 2 and "ran before" not in capsys.readouterr().out
    compare.compare(["peco", "pixel"], [0], [])
    assert len(done) == 2 and capsys.readouterr().out.count("ran before") == 2
    compare.compare(["peco", "pixel"], [0], ["pretrain.optim.epochs=1"])  # others beside them
    assert len(done) == 4 and "ran before" not in capsys.readouterr().out


def test_variants_come_in_their_order_and_by_their_names() -> None:
    assert grids.variants(CFG, ["pixel", "peco"]) == [PECO, PIXEL]
    with pytest.raises(PecoError, match=r"^VARIANTS=pixels: .*peco, pixel, regression, vqkd$"):
        grids.variants(CFG, ["pixels"])
    with pytest.raises(PecoError, match=r"^VARIANTS=pixel vqkd: not allowed; peco must be among them"):
        grids.variants(CFG, ["pixel", "vqkd"])


def test_settings_that_undo_the_contrast_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.yaml").write_text(render(compose_params("tiny", [])))
    points = grids.variants(CFG, list(VARIANTS))
    planned = experiments.plan(points, [0, 0, 1], ["pretrain.optim.epochs=1"])
    assert [(each.point.key, each.seed) for each in planned] == [(key, seed) for key in VARIANTS for seed in (0, 1)]
    assert [each.point.key for each in planned if each.stands] == ["peco", "peco"]
    assert all(each.config.pretrain.optim.epochs == 1 and each.config.seed == each.seed for each in planned)
    for setting in (
        "tokenizer.perceptual.weight=2",
        "tokenizer.perceptual={weight:2}",
        "pretrain.target=pixels",
        "++tokenizer.objective=vqkd",
    ):
        with pytest.raises(PecoError, match=r"^SET=.*: not allowed, since it is what the experiments differ in"):
            experiments.plan(points, [0], [setting])
    for setting, told in {
        "seed=3": "SEEDS", "pretrain.optim.lr=1,2": "several values", "pretrain.optim.epochs=-1": "pretrain.optim.epochs: -1",
        "pretrain.optim": "expected key=value", "pretrain.optim.sped=1": "pretrain.optim.sped=1",
    }.items():  # fmt: skip
        with pytest.raises(PecoError, match=re.escape(told)) as caught:
            experiments.plan(points, [0], [setting])
        assert "\n" not in str(caught.value)
