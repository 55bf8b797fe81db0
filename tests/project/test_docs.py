"""The documentation: the site builds without a network, links lead somewhere, code runs, and quoted errors exist."""

import ast
import multiprocessing
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest
from browser import browser, needs_chromium
from helpers import ROOT
from pages import run_page
from PIL import Image
from playwright.sync_api import expect
from pymdownx.slugs import slugify

import ragkv
from ragkv.experiment.experiment import Experiment

PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
SLUG = slugify(case="lower")


def name(path):
    return path.relative_to(ROOT).as_posix()


def without_code(text):
    return re.sub(r"^```.*?^```", "", text, flags=re.S | re.M)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", folder]
    offline = {"http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9"}
    build = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, env=os.environ | offline)
    assert build.returncode == 0, build.stderr[-3000:]
    return folder


class _Page(HTMLParser):
    """A page's links and anchors, and the files that a browser loads with it."""

    def __init__(self, text):
        super().__init__()
        self.loaded = []
        self.links = []
        self.anchors = set()
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.anchors |= {values[key] for key in ("id", "name") if values.get(key)}
        if tag == "a":
            self.links.append(values.get("href"))
        else:
            self.loaded += [values[key] for key in ("src", "href") if values.get(key)]


def test_site_loads_nothing_from_other_servers(site):
    pages = list(site.rglob("*.html"))
    assert len(pages) > 40
    for page in pages:
        for target in _Page(page.read_text()).loaded:
            assert target.startswith("data:") or not re.match(r"(\w+:)?//", target), (page, target)
    for sheet in site.rglob("*.css"):
        assert not re.search(r"(url\(|@import)\s*['\"]?(https?:)?//", sheet.read_text()), sheet


def test_site_links_lead_somewhere(site):
    pages = {page: _Page(page.read_text()) for page in site.rglob("*.html") if page.name != "404.html"}
    followed = 0
    for page, seen in pages.items():
        for link in seen.links + seen.loaded:
            if link is None or re.match(r"\w+:|//", link):
                continue
            path, _, anchor = link.partition("#")
            target = (page.parent / path).resolve() if path else page
            assert target.exists(), (name_in(site, page), link)
            assert not anchor or target not in pages or anchor in pages[target].anchors, (name_in(site, page), link)
            followed += 1
    assert followed > 1000


def test_pictures_open(site):
    pictures = set()
    for page in set(site.rglob("*.html")) - {site / "404.html"}:
        sources = [path for path in _Page(page.read_text()).loaded if re.search(r"\.(png|svg)$", path)]
        pictures |= {(page.parent / path).resolve() for path in sources}
    assert len(pictures) > 50
    for picture in pictures:
        if picture.suffix == ".svg":
            assert ElementTree.parse(picture).getroot().tag.endswith("svg")
        else:
            with Image.open(picture) as opened:
                opened.verify()


@needs_chromium
def test_the_search_works_from_files(site):
    """Pages that are opened from a folder, without a server."""
    with browser() as chromium:
        page = chromium.new_page()
        page.goto((site / "guide.html").as_uri())
        page.get_by_role("textbox", name="Search").click()
        page.keyboard.type("which method for me")
        found = page.locator(".md-search-result__item a[href*='which-method.html']")
        expect(found.first).to_be_attached(timeout=45_000)


def name_in(site, page):
    return page.relative_to(site).as_posix()


def test_site_has_every_module_notebook_and_page(site):
    rooms = {path.stem for path in (ROOT / "ragkv").glob("*.py")} - {"__init__", "__main__"}
    rooms |= {path.parent.name for path in (ROOT / "ragkv").glob("*/__init__.py")}
    assert {path.stem for path in (site / "api").glob("*.html")} == rooms | {"index"}
    for notebook in (ROOT / "notebooks").glob("*.ipynb"):
        assert (site / "notebooks" / f"{notebook.stem}.html").exists()
    store = (site / "api/store.html").read_text()
    assert 'id="ragkv.store.kvstore.KVStore.write"' in store and "The folder is read-only or the disk full" in store
    overview = (site / "api/index.html").read_text()
    for public in set(ragkv.__all__) - {"__version__"}:
        assert re.search(rf'href="[\w.]+#ragkv\.[\w.]+\.{public}"', overview), public
    guide = (site / "guide.html").read_text()
    assert 'href="notebooks/00_environment.html"' in guide and 'href="api/selectors.html"' in guide


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", without_code(page.read_text())):
        if re.match(r"https?://", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists() and target.is_relative_to(ROOT), link
        if anchor:
            headings = re.findall(r"^#+ (.*)$", without_code(target.read_text()), re.M)
            assert anchor in {SLUG(re.sub(r"[`*]", "", heading), "-") for heading in headings}, link


def python_blocks(page):
    """The page's Python blocks, except for those whose title says what they need."""
    return re.findall(r"^```python\n(.*?)^```", page.read_text(), re.S | re.M)


@pytest.mark.parametrize("page", [page for page in PAGES if python_blocks(page)], ids=name)
def test_code_runs(page, tmp_path):
    """In a process of its own, forked where that can be from one that has done nothing but import PyTorch: in a fork of
    the tests' own process, PyTorch's threads would be missing."""
    (tmp_path / "outputs").mkdir()
    (tmp_path / "outputs/reference").symlink_to(ROOT / "outputs/reference")
    (tmp_path / "page.py").write_text("\n".join(python_blocks(page)))
    processes = multiprocessing.get_context("forkserver" if hasattr(os, "fork") else "spawn")
    if hasattr(os, "fork"):
        processes.set_forkserver_preload(["torch", "transformers"])
    process = processes.Process(target=run_page, args=(tmp_path,))
    process.start()
    process.join()
    assert process.exitcode == 0, (tmp_path / "error").read_text()
    if page.name == "README.md":
        assert (tmp_path / "printed").read_text().startswith("414 ")


def profiles(page):
    blocks = re.findall(r"^```yaml\n(.*?)^```", page.read_text(), re.S | re.M)
    return [block for block in blocks if re.search(r"^models:", block, re.M)]


@pytest.mark.parametrize("page", [page for page in PAGES if profiles(page)], ids=name)
def test_profiles_are_valid(page, tmp_path):
    (tmp_path / "params").mkdir()
    for number, text in enumerate(profiles(page)):
        (tmp_path / f"params/p{number}.yaml").write_text(text)
        assert Experiment.load(f"p{number}", root=tmp_path).tasks


def messages():
    """Strings in the package with at least 20 fixed characters, as patterns in which placeholders match anything."""
    for path in (ROOT / "ragkv").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            parts = node.values if isinstance(node, ast.JoinedStr) else [node]
            fixed = [part.value if isinstance(part, ast.Constant) else None for part in parts]
            if not all(isinstance(part, str | None) for part in fixed) or sum(len(part or "") for part in fixed) < 20:
                continue
            yield "".join(".+" if part is None else re.escape(part).replace("%s", ".+") for part in fixed)


@pytest.mark.parametrize(("page", "least"), [("troubleshooting", 30), ("explorer", 6)])
def test_quoted_messages_are_in_the_source(page, least):
    text = (ROOT / f"docs/{page}.md").read_text()
    quoted = [line for block in re.findall(r"^```text\n(.*?)^```", text, re.S | re.M) for line in block.splitlines()]
    assert len(quoted) >= least
    known = [re.compile(pattern) for pattern in messages()]
    stale = [line for line in quoted if not any(pattern.fullmatch(line) for pattern in known)]
    assert not stale
