"""The page of `hyperlora demo` in a real browser: a digit is drawn, a sample gets its adapter, nothing overlaps."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from hyperlora.web.server import PageServer
from hyperlora.web.workbench import Workbench
from tests.browser import COLOURS, SIZES, brightness, shot, show

pytestmark = pytest.mark.browser
DRAW = """
const canvas = document.getElementById('canvas'), frame = canvas.getBoundingClientRect();
const at = (type, x, y) => canvas.dispatchEvent(new PointerEvent(type, {
  pointerId: 1, buttons: 1, bubbles: true,
  clientX: frame.left + x * frame.width, clientY: frame.top + y * frame.height}));
canvas.setPointerCapture = () => {};
at('pointerdown', 0.5, 0.1); at('pointermove', 0.5, 0.9); at('pointerup', 0.5, 0.9);
document.getElementById('add').click();
"""
OVERLAPS = """
const wrong = [], boxes = [...document.querySelectorAll('button, .button, .bar .words, figcaption, h2, #map text')]
  .filter(one => one.offsetParent !== null && !one.closest('.gallery')).map(one => [one, one.getBoundingClientRect()]);
boxes.forEach(([one, a], i) => {
  if (a.right > document.documentElement.clientWidth + 1) wrong.push(`${one.textContent} sticks out`);
  for (const [other, b] of boxes.slice(0, i)) {
    if (one.contains(other) || other.contains(one)) continue;
    const wide = Math.min(a.right, b.right) - Math.max(a.left, b.left);
    if (wide > 1 && Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 1) {
      wrong.push(`${one.textContent} lies on ${other.textContent}`);
    }
  }
});
return wrong;
"""


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with PageServer(Workbench.open(Path("demo")), 0) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield server.url
        server.shutdown()


def wait(browser: Any, condition: str) -> None:
    support = pytest.importorskip("selenium.webdriver.support.ui")
    support.WebDriverWait(browser, 60).until(lambda driver: driver.execute_script(f"return {condition}"))


def make(browser: Any, url: str, size: str, scheme: str) -> None:
    """Show the page, take sample digits, draw one more and have the adapter made."""
    show(browser, url, size, scheme)
    wait(browser, "document.querySelectorAll('#map g').length === 20")
    browser.execute_script("const s = document.getElementById('sample'); s.value = 'ink'; s.onchange({target: s});")
    wait(browser, "document.querySelectorAll('#gallery button').length > 100")
    count = browser.execute_script("return document.querySelectorAll('#gallery button').length")
    browser.execute_script(DRAW)
    assert browser.execute_script("return document.querySelectorAll('#gallery button').length") == count + 1
    browser.execute_script("document.getElementById('go').click()")
    wait(browser, "!document.getElementById('scores-panel').hidden")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
def test_a_drawn_digit_and_a_sample_get_an_adapter_whose_scores_are_readable(
    browser: Any, url: str, artefacts: Path, size: str, scheme: str
) -> None:
    make(browser, url, size, scheme)
    shot(browser, artefacts / f"demo-{size}-{scheme}.png")
    bars = browser.execute_script(
        "return [...document.querySelectorAll('.bar b')].map(one => parseFloat(one.textContent))"
    )
    assert len(bars) >= 4
    assert max(bars) > 40
    assert browser.execute_script("return document.querySelector('#map text').textContent") == "you"
    positive = browser.execute_script("return leanedOn().filter(one => one.weight > 0).length")
    assert browser.execute_script("return document.querySelectorAll('#map .lean').length") == positive > 4
    leaned = browser.execute_script(
        "return [...document.querySelectorAll('#leaning .words')].map(one => one.innerText)"
    )
    assert leaned[0].startswith("your own images")
    assert leaned[-1].startswith("the other 10 clients together")
    assert browser.execute_script(OVERLAPS) == []
    assert browser.execute_script("return document.documentElement.scrollWidth") <= SIZES[size][0]
    ink, page = browser.execute_script(COLOURS)
    assert (brightness(ink) > brightness(page)) == (scheme == "dark")
    assert browser.get_log("browser") == []


def test_what_cannot_be_done_is_said_on_the_page(browser: Any, url: str) -> None:
    show(browser, url, "desktop", "light")
    wait(browser, "document.querySelectorAll('#map g').length === 20")
    browser.execute_script("document.getElementById('add').click()")
    wait(browser, "document.getElementById('error').textContent === 'draw something first'")
    browser.execute_script("state.images = [1, 2, 3].map(() => ({label: '1', data: 'AAAA'})); showImages();")
    browser.execute_script("document.getElementById('go').click()")
    wait(browser, "document.getElementById('error').textContent.includes('cannot be read: expected a png or jpg file')")
