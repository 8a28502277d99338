"""A real browser for tests that look at pages, headless, in four variants: desktop and phone, light and dark."""

from __future__ import annotations

import base64
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run "
    "--disable-background-networking --disable-component-update --disable-sync"
)
SIZES = {"desktop": (1280, False), "phone": (390, True)}
COLOURS = "const s = getComputedStyle(document.body); return [s.color, s.backgroundColor];"


def open_browser(profile: Path) -> Iterator[Any]:
    """Yield a driver of Chromium; skips the test where there is none."""
    if CHROMIUM is None or DRIVER is None:
        pytest.skip("no chromium and chromedriver on this machine (Debian: apt-get install chromium chromium-driver)")
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed (extra: dev)")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS.split(), f"--user-data-dir={profile}"):
        options.add_argument(flag)
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


def show(browser: Any, url: str, size: str, scheme: str) -> None:
    width, mobile = SIZES[size]
    browser.get(url)
    feature = {"name": "prefers-color-scheme", "value": scheme}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": mobile}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)


def shot(browser: Any, path: Path) -> None:
    whole = {"format": "png", "captureBeyondViewport": True}
    path.write_bytes(base64.b64decode(browser.execute_cdp_cmd("Page.captureScreenshot", whole)["data"]))


def brightness(color: str) -> int:
    return sum(int(part) for part in color.removeprefix("rgb(").removesuffix(")").split(","))
