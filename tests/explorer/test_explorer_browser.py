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
from helpers import ROOT
from playwright.sync_api import Page, expect, sync_playwright

NOTEBOOK = "13_explorer.ipynb"
TOKEN = "only-for-this-test"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
PICTURES = os.environ.get("RAGKV_SCREENSHOTS")  # a folder for a screenshot
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
PATIENCE = 45_000  # milliseconds to wait for something that takes a second on an idle machine

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on the PATH: apt-get install chromium")


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
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        try:
            page = browser.new_page(viewport={"width": 1500, "height": 1100})
            page.set_default_timeout(PATIENCE)
            page.goto(f"{url}doc/tree/notebooks/{NOTEBOOK}?token={TOKEN}")
            expect(page.get_by_role("button", name="| Idle")).to_be_visible(timeout=PATIENCE)  # the kernel is there
            page.get_by_role("menuitem", name="Run", exact=True).click()
            page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
            expect(app(page).locator("mark").first).to_be_attached(timeout=PATIENCE)
            yield page
        finally:
            browser.close()


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
