"""The report and the documentation in a browser, on a wide screen and on a telephone; tests/explorer has the explorer.

Pages must fit the screen, load all their pictures, need no network, and write no error to the console. A folder in the
environment variable RAGKV_SCREENSHOTS gets a picture of every page.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from browser import Watched, browser, needs_chromium
from helpers import ROOT
from profiles import write_profile

from ragkv.run import run_profile

WIDTHS = (1400, 390)
PICTURES = os.environ.get("RAGKV_SCREENSHOTS")
NEEDLE = {"haystack": "tiny", "tasks": {"single": {"lengths": [128], "depths": [0, 100]}}}
RULER = {"source": "tiny", "tasks": {"vt_1": {"prompts": 10, "lengths": [256], "ratios": [0.1, 0.3]}}}
METHODS = ["full_prefill", "full_reuse", "a3", "epic"]
PAGES = (
    "index",
    "which-method",
    "glossary",
    "figures",
    "results",
    "selectors",
    "troubleshooting",
    "CHANGELOG",
    "api/index",
    "notebooks/00_idea",
)

pytestmark = needs_chromium


@pytest.fixture(scope="module")
def chromium():
    with browser() as opened:
        yield opened


def check(chromium, path: Path, *, fold: bool = True) -> None:
    """Open a page from its file at both widths, with everything that is folded open, too."""
    for width in WIDTHS:
        watched = Watched.of(chromium.new_page(viewport={"width": width, "height": 900}))
        page = watched.page
        try:
            page.goto(path.as_uri())
            page.wait_for_function("document.readyState === 'complete'")
            assert watched.too_wide == []
            page.evaluate("document.querySelectorAll('details').forEach(fold => { fold.open = true })")
            page.evaluate("document.querySelectorAll('img').forEach(image => { image.loading = 'eager' })")
            page.wait_for_function("[...document.images].every(image => image.complete)")
            assert watched.too_wide == []
            assert watched.broken_pictures == []
            assert watched.requests == []
            assert watched.messages == []
            if PICTURES:
                page.screenshot(path=Path(PICTURES) / f"{path.stem}-{width}.png", full_page=True)
        finally:
            page.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> Path:
    """The page of a small profile that was really run."""
    root = tmp_path_factory.mktemp("project")
    write_profile(root, benchmarks={"needle": NEEDLE, "ruler": RULER}, methods=[{"selector": name} for name in METHODS])
    return run_profile("p", root=root, say=lambda line: None)


def test_the_report_and_the_index_fit_and_work(chromium, report):
    check(chromium, report)
    check(chromium, report.parents[1] / "index.html")


def test_interactive_figures_show_numbers_and_choose_methods_by_their_legend(chromium, report):
    page = chromium.new_page()
    page.goto(report.as_uri())
    assert page.locator(".chart svg").count() == 4, "two for each benchmark"
    chart = page.locator(".chart svg").first
    chart.locator("path[aria-roledescription='point']").first.hover()
    tooltip = page.locator("#vg-tooltip-element")
    tooltip.get_by_text("median TTFT (ms)").wait_for()
    assert tooltip.locator("tr").count() == 7
    page.mouse.move(0, 0)
    faint = "() => [...document.querySelector('.chart svg').querySelectorAll('path[opacity=\"0.07\"]')].length"
    assert page.evaluate(faint) == 0
    chart.get_by_text("epic", exact=True).click()
    page.wait_for_function(f"({faint})() > 0")
    page.close()


def test_choosing_a_method_of_an_example_marks_its_tokens(chromium, report):
    page = chromium.new_page()
    page.goto(report.as_uri())
    page.locator("details.examples").first.evaluate("fold => { fold.open = true }")
    example = page.locator(".example").first
    marked = "nodes => nodes.filter(node => getComputedStyle(node).backgroundColor !== 'rgba(0, 0, 0, 0)').length"
    for method in ("a3", "epic"):
        choice = example.get_by_role("radio", name=method)
        choice.check()
        tokens = example.locator(f".m{choice.get_attribute('value')}")
        assert tokens.evaluate_all(marked) == tokens.count() > 0
    assert example.locator(".chunk i").evaluate_all(marked) == tokens.count(), "and no others"
    page.close()


def test_on_paper_folds_are_open_and_interactive_figures_are_left_out(chromium, report):
    page = chromium.new_page(viewport={"width": 720, "height": 1000})
    page.goto(report.as_uri())
    assert page.locator(".interactive").first.is_visible()
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    page.emulate_media(media="print")
    assert not page.locator(".interactive").first.is_visible()
    assert not page.locator("nav").is_visible()
    assert page.locator("details:not(.examples):not([open])").count() == 0
    page.close()


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--site-dir", folder]
    subprocess.run(command, cwd=ROOT, check=True, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"})
    return folder


@pytest.mark.parametrize("name", PAGES)
def test_pages_of_the_documentation_fit_and_work(chromium, site, name):
    check(chromium, site / f"{name}.html")
