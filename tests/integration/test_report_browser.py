"""The pages in a real browser: desktop and phone, light and dark; screenshots go to HYPERLORA_ARTEFACTS if set."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hyperlora.reporting.comparison import comparison_page
from hyperlora.reporting.report import report_page
from hyperlora.reporting.run_files import RunFiles
from tests.browser import COLOURS, SIZES, brightness, shot, show
from tests.synthetic_run import make_synthetic_run

pytestmark = pytest.mark.browser
CROWDED = """
const wrong = [];
for (const svg of document.querySelectorAll('figure svg')) {
  const title = svg.parentElement.querySelector('h2').textContent;
  const frame = svg.getBoundingClientRect();
  const texts = [...svg.querySelectorAll('text')].filter(one => one.textContent.trim());
  const boxes = texts.map(one => one.getBoundingClientRect());
  boxes.forEach((box, i) => {
    const cut = Math.max(frame.left - box.left, box.right - frame.right, frame.top - box.top,
      box.bottom - frame.bottom);
    if (cut > 1) wrong.push(`${title}: '${texts[i].textContent}' is cut by ${cut.toFixed(1)} px`);
    for (let j = 0; j < i; j++) {
      const other = boxes[j];
      const wide = Math.min(box.right, other.right) - Math.max(box.left, other.left);
      const high = Math.min(box.bottom, other.bottom) - Math.max(box.top, other.top);
      if (wide > 1 && high > 3) wrong.push(`${title}: '${texts[i].textContent}' lies on '${texts[j].textContent}'`);
    }
  });
  if (svg.querySelectorAll('path, use, image').length < 10) wrong.push(`${title}: empty`);
  const scale = frame.width / svg.viewBox.baseVal.width;
  const sizes = texts.map(one => scale * parseFloat(getComputedStyle(one).fontSize));
  if (frame.right > svg.parentElement.getBoundingClientRect().right) wrong.push(`${title}: sticks out`);
  if (Math.min(...sizes) < 11) wrong.push(`${title}: text of ${Math.min(...sizes).toFixed(1)} px`);
}
return wrong;
"""


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("runs")
    small = RunFiles.open(make_synthetic_run(root / "small", clients=20, rounds=6))
    large = RunFiles.open(make_synthetic_run(root / "large", clients=100, rounds=100))
    fedit = RunFiles.open(make_synthetic_run(root / "fedit", clients=20, rounds=6, method="fedit"))
    made = {"small": report_page(small), "large": report_page(large), "comparison": comparison_page([small, fedit])}
    for name, page in made.items():
        (root / f"{name}.html").write_text(page.html(), encoding="utf-8")
    return {name: root / f"{name}.html" for name in made}


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", ["small", "large", "comparison"])
def test_no_text_overlaps_or_is_cut_and_no_panel_is_empty(
    browser: Any, pages: dict[str, Path], artefacts: Path, name: str, size: str, scheme: str
) -> None:
    show(browser, pages[name].as_uri(), size, scheme)
    shot(browser, artefacts / f"{name}-{size}-{scheme}.png")
    assert browser.execute_script(CROWDED) == []
    assert browser.execute_script("return document.documentElement.scrollWidth") <= SIZES[size][0]
    ink, page = browser.execute_script(COLOURS)
    assert (brightness(ink) > brightness(page)) == (scheme == "dark")


def test_the_console_of_the_browser_is_silent(browser: Any, pages: dict[str, Path]) -> None:
    show(browser, pages["small"].as_uri(), "desktop", "light")
    assert browser.get_log("browser") == []
