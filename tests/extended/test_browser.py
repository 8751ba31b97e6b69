"""The pages that the project writes, opened in headless Chromium: report, comparison, images that are similar."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny_models
from cheap_project import shifted
from PIL import Image
from test_compare import PECO
from test_report import CFG, make_folder, make_report, write_scores

from peco import cli
from pipelines.experiments import page
from pipelines.experiments.grids import Variant
from pipelines.experiments.plan import Experiment

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium (Debian's package `chromium`)")
sync_api = pytest.importorskip("playwright.sync_api")

WIDTHS = (400, 1400)  # pixels of a phone and of a desk
LEAST_CONTRAST = 4.5  # of text and what is behind it: WCAG 2.2, level AA

# The contrast of each element's own text with the colour behind it, where it is too low. Colours are read by drawing them, since
# style sheets may name them in any way. An SVG's text has the colour `fill`.
LOW_CONTRAST = """
least => {
  const canvas = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
  const rgba = color => {
    canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = color; canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const luminance = ([r, g, b]) => {
    const [x, y, z] = [r, g, b].map(v => v / 255).map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * x + 0.7152 * y + 0.0722 * z;
  };
  const sheet = document.createElement("div");
  sheet.style.background = "Canvas";
  document.body.append(sheet);
  const base = rgba(getComputedStyle(sheet).backgroundColor);
  sheet.remove();
  const behind = element => {
    for (let e = element; e; e = e.parentElement) {
      const color = rgba(getComputedStyle(e).backgroundColor);
      if (color[3] === 255) return color;
    }
    return base;
  };
  const low = [];
  for (const element of document.body.querySelectorAll("*")) {
    const text = [...element.childNodes].filter(n => n.nodeType === 3).map(n => n.data.trim()).join(" ").trim();
    if (!text || ["STYLE", "SCRIPT", "TITLE"].includes(element.tagName) || !element.getClientRects().length) continue;
    const style = getComputedStyle(element);
    const [a, b] = [rgba(element instanceof SVGElement ? style.fill : style.color), behind(element)].map(luminance);
    const contrast = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (contrast < least) low.push(`${element.tagName} ${contrast.toFixed(2)} ${text.slice(0, 40)}`);
  }
  return low;
}
"""
# Elements that reach beyond the window and are in no box that scrolls by itself.
TOO_WIDE = """
() => [...document.body.querySelectorAll("*")].filter(element => {
  if (element.getBoundingClientRect().right <= innerWidth + 0.5) return false;
  for (let e = element; e; e = e.parentElement) {
    if (["auto", "scroll", "hidden"].includes(getComputedStyle(e).overflowX)) return false;
  }
  return true;
}).map(element => element.outerHTML.slice(0, 80))
"""
PICTURES = "() => [...document.images].map(i => i.complete && i.naturalWidth > 0)"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as driver:
        # Chromium's own sandbox doesn't start as root.
        sandbox = [] if os.geteuid() else ["--no-sandbox"]
        started = driver.chromium.launch(executable_path=CHROMIUM, args=sandbox)
        yield started
        started.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A page of each kind, with all of its sections and a name that is long."""
    root = tmp_path_factory.mktemp("pages")
    monkeypatch = pytest.MonkeyPatch()
    with monkeypatch.context() as patch:
        finished = make_folder(root / "run", {"train": 20, "val": 10}, ("ant", "a_class_with_one_very_long_name_" * 3))
        for task, values in DENSE.items():
            write_scores(finished, f"evaluate/{task}", values)
            (finished / "metrics/pictures" / task).mkdir(parents=True, exist_ok=True)
            for kind in ("truth", "pretrained", "random"):
                Image.new("RGB", (128, 96), "teal").save(finished / "metrics/pictures" / task / f"00-{kind}.png")
        make_report(finished, patch)
        experiments = [
            (Experiment(Variant("odd", "<b> & co"), 0, (), CFG, is_current=False), shifted(-0.1)),
            (Experiment(PECO, 0, (), CFG, is_current=True), shifted(0)),
            (Experiment(PECO, 0, (), CFG, is_current=True), shifted(0.02)),
        ]
        described = page.describe(
            page.Heading("Comparison", "backbone", "PeCo."), experiments, [0, 1], ["tokens.views=1"], []
        )
        _, comparison = page.write(described, root / "compare")
        patch.chdir(root)
        tiny_models.save_models(root / "artifacts")
        tiny_models.save_images(root / "photos", 9)
        assert cli.main(["embed", "photos", "-o", "embeddings"]) == 0
        assert cli.main(["similar", "photos/0.png", "embeddings", "-o", "similar.html"]) == 0
    return {"report": finished / "reports/report.html", "comparison": comparison, "similar": root / "similar.html"}


DENSE: dict[str, dict[str, Any]] = {
    "segmentation": {"images": 10, "miou": 0.5, "pixel_accuracy": 0.75, "random_miou": 0.25, "random_pixel_accuracy": 0.5},
    "detection": {
        "images": 10, "masks": False, "box_ap": 0.5, "box_ap50": 0.75, "random_box_ap": 0.25, "random_box_ap50": 0.5,
    },
}  # fmt: skip


@pytest.mark.parametrize("kind", ["report", "comparison", "similar"])
@pytest.mark.parametrize("width", WIDTHS)
def test_a_page_is_drawn_whole_and_fits_the_window(browser: Any, pages: dict[str, Path], kind: str, width: int) -> None:
    tab = browser.new_page(viewport={"width": width, "height": 900})
    problems: list[str] = []
    tab.on("console", lambda message: problems.append(message.text))
    tab.on("pageerror", lambda error: problems.append(str(error)))
    tab.on("requestfailed", lambda request: problems.append(request.url[:80]))
    tab.goto(pages[kind].as_uri())
    drawn = tab.evaluate(PICTURES)
    assert problems == []
    assert all(drawn) and (drawn or kind == "comparison")
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    assert tab.evaluate(TOO_WIDE) == []
    tab.close()


@pytest.mark.parametrize("kind", ["report", "comparison", "similar"])
@pytest.mark.parametrize("look", ["light", "dark", "print"])
def test_its_text_can_be_read(browser: Any, pages: dict[str, Path], kind: str, look: str) -> None:
    tab = browser.new_page(viewport={"width": 1400, "height": 900})
    tab.emulate_media(
        media="print" if look == "print" else "screen", color_scheme="dark" if look == "dark" else "light"
    )
    tab.goto(pages[kind].as_uri())
    assert tab.evaluate(LOW_CONTRAST, LEAST_CONTRAST) == []
    tab.close()


@pytest.mark.parametrize("kind", ["report", "comparison", "similar"])
def test_it_is_printed_on_few_sheets_within_their_width(browser: Any, pages: dict[str, Path], kind: str) -> None:
    tab = browser.new_page(viewport={"width": 718, "height": 1000})  # A4 less margins, at 96 pixels an inch
    tab.emulate_media(media="print")
    tab.goto(pages[kind].as_uri())
    assert tab.evaluate(TOO_WIDE) == []
    printed = tab.pdf(format="A4")
    assert printed.startswith(b"%PDF") and 1 <= printed.count(b"/Type /Page\n") <= 30
    tab.close()
