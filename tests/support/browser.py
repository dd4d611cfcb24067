"""A real headless Chromium for tests, driven by Playwright."""

import os
import shutil
from contextlib import contextmanager
from pathlib import Path

import pytest

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def find_browser():
    """Its path, or None."""
    return next((path for name in _NAMES if (path := shutil.which(name))), None)


@contextmanager
def open_browser():
    """A browser; without one on the PATH the test is skipped."""
    path = find_browser()
    if path is None:
        pytest.skip(f"no browser on the PATH, looked for {', '.join(_NAMES)}")
    playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
    with playwright.sync_playwright() as running:
        flags = ["--no-sandbox"] if os.geteuid() == 0 else []  # Chromium's sandbox refuses root
        browser = running.chromium.launch(executable_path=path, args=[*flags, "--disable-dev-shm-usage"])
        try:
            yield browser
        finally:
            browser.close()


def picture(page, directory: Path, name: str):
    """A screenshot: into ``$ASYNCFLOW_SCREENSHOTS``, where those of the documentation come from, or the directory."""
    chosen = Path(os.environ.get("ASYNCFLOW_SCREENSHOTS") or directory)
    page.screenshot(path=str(chosen / f"{name}.png"))
