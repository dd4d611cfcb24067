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


class Visit:
    """A page, and what went wrong on it."""

    def __init__(self, browser, gateway, **context):
        self.context = browser.new_context(**context)
        self.page = self.context.new_page()
        self.page.set_default_timeout(60_000)
        self.faults, self.foreign = [], []
        self.page.on("pageerror", lambda error: self.faults.append(str(error)))
        self.page.on("console", lambda told: told.type == "error" and self.faults.append(told.text))
        self.page.on("dialog", lambda dialog: (self.faults.append(dialog.message), dialog.dismiss()))
        self.page.on("request", lambda sent: sent.url.startswith(gateway.url) or self.foreign.append(sent.url))
        self.page.goto(gateway.url)

    def ask(self, text):
        """Asks by keyboard and returns the turn once its answer is whole or broken."""
        self.page.locator("#question").fill(text)
        self.page.locator("#question").press("Enter")
        turn = self.page.locator(".turn").last
        turn.locator("xpath=self::*[contains(@class, 'whole') or contains(@class, 'broken')]").wait_for()
        return turn
