"""Pages opened in headless Chromium, for tests."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest
from playwright.sync_api import Page, sync_playwright

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on the PATH: apt-get install chromium")


@contextmanager
def browser() -> Iterator:
    """Headless Chromium, from the PATH; nothing is downloaded."""
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        try:
            yield opened
        finally:
            opened.close()


@dataclass
class Watched:
    """A page, and what it did that a page which works from a folder must not do."""

    page: Page
    messages: list[str] = field(default_factory=list)  # errors and warnings on the console
    requests: list[str] = field(default_factory=list)  # to other places than `origin`

    @classmethod
    def of(cls, page: Page, origin: str = "file:") -> "Watched":
        """Watch a page that has not been opened yet."""
        watched = cls(page)
        local = (origin, "data:", "blob:")
        page.on("console", lambda m: watched.messages.append(m.text) if m.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: watched.messages.append(str(error)))
        page.on("request", lambda r: None if r.url.startswith(local) else watched.requests.append(r.url))
        return watched

    @property
    def too_wide(self) -> list[str]:
        """The page's width and its widest elements, where it is wider than the window; empty otherwise."""
        return self.page.evaluate(
            """() => {
                const width = innerWidth, page = document.documentElement.scrollWidth;
                if (page <= width) return [];
                const wide = [...document.querySelectorAll("body *")].filter(
                    e => e.getBoundingClientRect().right > width + 1);
                return [`${page} > ${width}`, ...wide.slice(0, 5).map(e => e.outerHTML.slice(0, 120))];
            }"""
        )

    @property
    def broken_pictures(self) -> list[str]:
        """The addresses of pictures that did not load."""
        return self.page.evaluate(
            "() => [...document.images].filter(i => !i.complete || !i.naturalWidth).map(i => i.src)"
        )
