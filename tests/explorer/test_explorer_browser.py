"""The explorer as people use it: a real JupyterLab, driven in headless Chromium."""

import json
import os
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from time import monotonic, sleep

import pytest
from browser import browser, needs_chromium
from helpers import ROOT
from playwright.sync_api import Page, expect

NOTEBOOK = "13_explorer.ipynb"
TOKEN = "only-for-this-test"
PICTURES = os.environ.get("RAGKV_SCREENSHOTS")  # a folder for screenshots
WIDTHS = (1400, 390)  # a wide screen and a telephone
PATIENCE = 45_000  # milliseconds to wait for something that takes a second on an idle machine

pytestmark = needs_chromium


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """JupyterLab on a free port, with a copy of the notebook and its own settings; gives its address."""
    home = tmp_path_factory.mktemp("lab")
    (home / "notebooks").mkdir()
    shutil.copy(ROOT / "notebooks" / NOTEBOOK, home / "notebooks")
    shutil.copytree(ROOT / "params", home / "params")
    settings(home, "notebook-extension/tracker", {"windowingMode": "none"})  # every cell is on the page
    settings(home, "apputils-extension/notification", {"fetchNews": "false", "checkForUpdates": False})
    settings(
        home, "docmanager-extension/plugin", {"autosaveInterval": 1}
    )  # if it saved on its own, it would do so soon
    folders = {f"JUPYTER_{kind.upper()}_DIR": str(home / kind) for kind in ("config", "data", "runtime")}
    environment = os.environ | folders | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ServerApp.port=0"]
    command += [f"--LabApp.app_settings_dir={ROOT / 'workflow/lab'}"]  # as `make lab` does
    command += [f"--IdentityProvider.token={TOKEN}", f"--ServerApp.root_dir={home}", "--ServerApp.ip=127.0.0.1"]
    with (home / "log").open("w") as log:
        server = subprocess.Popen(command, env=environment, cwd=home, stdout=log, stderr=log)
        try:
            yield address(server, home), home
        finally:
            server.terminate()
            server.wait(timeout=30)


def settings(home: Path, name: str, values: dict) -> None:
    file = home / f"config/lab/user-settings/@jupyterlab/{name}.jupyterlab-settings"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(values))


def address(server: subprocess.Popen, home: Path) -> str:
    """Wait until the server has written down its address, and return that."""
    end = monotonic() + PATIENCE / 1000
    while monotonic() < end and server.poll() is None:
        for file in (home / "runtime").glob("jpserver-*.json"):
            if (text := file.read_text()).endswith("}"):
                return json.loads(text)["url"]
        sleep(0.05)
    raise RuntimeError(f"JupyterLab did not start: {(home / 'log').read_text()[-2000:]}")


@contextmanager
def opened(url: str):
    """The notebook in a new page, after all cells ran and the app appeared."""
    with browser() as chromium:
        page = chromium.new_page(viewport={"width": 1500, "height": 1100})
        page.set_default_timeout(PATIENCE)
        page.goto(f"{url}doc/tree/notebooks/{NOTEBOOK}?token={TOKEN}")
        expect(page.get_by_role("button", name="| Idle")).to_be_visible(timeout=PATIENCE)  # the kernel is there
        page.get_by_role("menuitem", name="Run", exact=True).click()
        page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
        expect(app(page).locator("mark").first).to_be_attached(timeout=PATIENCE)
        yield page


def app(page: Page):
    return page.locator(".jp-OutputArea .jupyter-widgets.widget-vbox").first


def sides(page: Page):
    """The two panes, each with its selector, ratio and document."""
    return app(page).locator(".widget-vbox", has=page.locator(".widget-hslider"))


def test_a_slider_moves_and_the_highlighted_text_changes(lab):
    url, home = lab
    notebook = home / "notebooks" / NOTEBOOK
    committed = notebook.read_bytes()
    with opened(url) as page:
        left, right = sides(page).nth(0), sides(page).nth(1)
        recomputed = [pane.locator("p mark").all_inner_texts() for pane in (left, right)]
        assert all(recomputed)
        handle = left.get_by_role("slider")
        handle.focus()
        ratio = left.locator(".widget-readout")
        expect(ratio).to_have_text("15%")
        handle.press("ArrowRight")
        expect(ratio).to_have_text("20%")
        expect(app(page).locator("table")).to_contain_text("a3 20%", timeout=PATIENCE)
        expect(left.locator("p mark")).not_to_have_text(recomputed[0])
        assert len("".join(left.locator("p mark").all_inner_texts())) > len("".join(recomputed[0]))
        assert right.locator("p mark").all_inner_texts() == recomputed[1]
        page.get_by_label("model").fill("no-such-model")
        page.get_by_label("model").press("Enter")
        expect(app(page).get_by_role("status")).to_contain_text("model 'no-such-model' could not be loaded")
        page.get_by_label("model").fill("tiny-llama")
        page.get_by_label("model").press("Enter")
        expect(app(page).get_by_role("status")).to_have_count(0)
        handle.press("ArrowLeft")
        expect(app(page).locator("table")).to_contain_text("a3 15%", timeout=PATIENCE)
        expect(left.locator("p mark")).to_have_text(recomputed[0])
        if PICTURES:
            page.set_viewport_size({"width": 1260, "height": 2400})  # room for all of it
            app(page).screenshot(path=Path(PICTURES) / "explorer.png")
        page.wait_for_timeout(3000)
        assert notebook.read_bytes() == committed  # nothing is saved unless the user says so
        page.keyboard.press("Control+s")
        end = monotonic() + PATIENCE / 1000
        while notebook.read_bytes() == committed:
            assert monotonic() < end
            page.wait_for_timeout(100)


# Elements that reach beyond the app's right edge, or scroll sideways (the table of answers alone may), text that is too
# small, and labels that are cut off.
FLAWS = """app => {
    const edge = app.closest(".jp-OutputArea-output").getBoundingClientRect().right + 1;
    const visible = [...app.querySelectorAll("*")].filter(e => e.getClientRects().length && !e.closest("table"));
    const written = visible.filter(e => [...e.childNodes].some(n => n.nodeType === Node.TEXT_NODE && n.data.trim()));
    const labels = visible.filter(e => e.matches(".widget-label, .widget-readout, button"));
    const scrolls = e => e.scrollWidth > e.clientWidth + 1 && getComputedStyle(e).overflowX !== "visible";
    const list = (elements, wrong) => elements.filter(wrong).map(e => e.outerHTML.slice(0, 120));
    return {
        beyond: list(visible, e => e.getBoundingClientRect().right > edge),
        scrolls: list(visible, e => scrolls(e) && !e.querySelector(":scope > table, :scope > input")),
        small: list(written, e => parseFloat(getComputedStyle(e).fontSize) < 10),
        cut: list(labels, e => e.scrollWidth > e.clientWidth + 1),
    };
}"""


def test_the_app_fits_a_wide_screen_and_a_telephone(lab):
    """With a benchmark's prompt, and with the fields for one's own text."""
    url, _ = lab
    with opened(url) as page:
        for name, task, question in (("task", "ruler: vt_3", "Find VAR"), ("own", "your own text", "Find VAR REDA?")):
            app(page).get_by_label("prompt", exact=True).select_option(task)
            expect(app(page).locator("table").locator("..").locator("..")).to_contain_text(f"question: {question}")
            expect(app(page).get_by_role("button", name="cancel")).to_be_hidden()
            for width in WIDTHS:
                page.set_viewport_size({"width": width, "height": 4000})  # all of it
                if PICTURES:
                    app(page).screenshot(path=Path(PICTURES) / f"explorer-{name}-{width}.png")
                assert app(page).evaluate(FLAWS) == {"beyond": [], "scrolls": [], "small": [], "cut": []}
