"""Packages are required by what needs them: the core by a fused prefill, every extra by its own rooms."""

import re
import subprocess
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

import pytest
import yaml
from helpers import ROOT
from imports import MODULES, Import, imports
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from ragkv.extras import extra
from ragkv.prompt.similar import bm25

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
MAKEFILE = (ROOT / "Makefile").read_text()

# The core is what a fused prefill needs, and the commands that look after stores and installations.
CORE = {"__init__", "__main__", "cli", "extras", "options", "shards", "version"}
CORE |= {"prompt", "kernels", "models", "selectors", "eviction", "store", "loading", "fusion", "rag", "tiny", "doctor"}
ROOMS = {parts[0] for parts in MODULES.values()}
# Rooms that import an extra's packages at the top of their modules: one cannot use the room without the extra.
AT_THE_TOP = {"evaluation": ROOMS - CORE, "notebooks": {"explorer"}, "vllm": {"serving"}}
# Rooms that import an extra's packages in functions, because they do something without them, too.
IN_FUNCTIONS = {"evaluation": {"store"}, "rag": {"prompt"}, "hub": {"benchmarks"}}
IN_FUNCTIONS |= {"gpu": {"models"}, "real": {"models"}, "documents": {"prompt"}}

DISTRIBUTIONS = {
    "yaml": "pyyaml",
    "flashinfer": "flashinfer-python",
    "PIL": "pillow",
    "bs4": "beautifulsoup4",
    "pymdownx": "pymdown-extensions",
    "vl_convert": "vl-convert-python",
}
UNSEEN = {"jinja2", "pyarrow"}  # not imported by ragkv, but by transformers for chat templates, and by pandas
WITH_PYTORCH = {"triton"}  # comes with PyTorch where there is a GPU


def foreign(path: Path) -> list[Import]:
    """What a file imports from other packages."""
    return [one for one in imports(path) if one.package not in {*sys.stdlib_module_names, "ragkv"}]


FOREIGN = {parts: foreign(path) for path, parts in MODULES.items()}


def required(texts: list[str]) -> set[str]:
    """The packages that requirements name; of an extra of ragkv itself, those of that extra."""
    found = set()
    for requirement in map(Requirement, texts):
        if requirement.name == "ragkv":
            found |= {name for one in requirement.extras for name in required(EXTRAS[one])}
        else:
            found.add(canonicalize_name(requirement.name))
    return found


def distribution(imported: Import) -> str:
    """The package on PyPI that an import comes from."""
    return DISTRIBUTIONS.get(imported.package, canonicalize_name(imported.package))


CORE_PACKAGES = required(PROJECT["dependencies"]) | WITH_PYTORCH


def loaded_with(parts: tuple[str, ...]) -> set[tuple[str, ...]]:
    """The modules of ragkv that Python loads when it imports one, itself among them."""
    paths = {parts: path for path, parts in MODULES.items()}
    found, new = set(), {parts}
    while new:
        found |= new
        names = [one.name.split(".")[1:] for module in new for one in imports(paths[module]) if one.when == "load"]
        prefixes = [tuple(name[:end]) for name in names for end in range(len(name) + 1)]
        new = {module for prefix in prefixes for module in (prefix, (*prefix, "__init__")) if module in paths} - found
    return found


def test_core_modules_load_nothing_but_the_core_packages():
    wrong = {
        f"{'.'.join(parts)} loads {'.'.join(loaded)}, which imports {one.name}"
        for parts in FOREIGN
        if parts[0] in CORE
        for loaded in loaded_with(parts)
        for one in FOREIGN[loaded]
        if one.when == "load" and distribution(one) not in CORE_PACKAGES
    }
    assert not wrong, "import it in a function, in `with extra(...)`; or add it to the dependencies in pyproject.toml"


def test_rooms_import_the_packages_of_their_own_extras():
    """In functions in ``with extra(name, ...)``, so that the message for a missing package names the extra."""
    wrong = []
    for parts, found in FOREIGN.items():
        fine = CORE_PACKAGES | {
            package for name, rooms in AT_THE_TOP.items() if parts[0] in rooms for package in required(EXTRAS[name])
        }
        for one in (one for one in found if one.when != "typing"):
            named = one.extra if parts[0] in IN_FUNCTIONS.get(one.extra, ()) else None
            if parts == ("models", "flashinfer"):  # handles the missing package itself: another backend takes over
                named = "gpu"
            if distribution(one) not in fine | required(EXTRAS[named] if named else []):
                wrong.append(f"{'.'.join(parts)} imports {one.name}")
    assert not wrong


@pytest.mark.parametrize("name", ["core", "evaluation", "rag", "documents", "hub", "gpu", "real", "vllm"])
def test_what_is_required_is_imported(name):
    texts = PROJECT["dependencies"] if name == "core" else EXTRAS[name]
    rooms = CORE if name == "core" else AT_THE_TOP.get(name, set()) | IN_FUNCTIONS.get(name, set())
    imported = {distribution(one) for parts, found in FOREIGN.items() if parts[0] in rooms for one in found}
    assert required(texts) - UNSEEN <= imported


def needed(names: set[str]) -> set[str]:
    """These packages, and all that they require here."""
    found, new = set(), names
    while new:
        found |= new
        texts = []
        for name in new:
            try:
                texts += requires(name) or []
            except PackageNotFoundError:
                continue
        new = {
            canonicalize_name(requirement.name)
            for requirement in map(Requirement, texts)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""})
        } - found
    return found


PREFILL = """
import sys
from importlib.machinery import PathFinder
from importlib.metadata import packages_distributions
from packaging.utils import canonicalize_name

installed, hidden = packages_distributions(), set(sys.argv[1:])

class Visible(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        is_hidden = {canonicalize_name(one) for one in installed.get(name, ())} & hidden
        return None if is_hidden else super().find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = Visible

from ragkv import KVStore, chat_parts, encode, Prompt, fused_prefill, generate, load_model, precompute
from ragkv.cli import app
from ragkv.selectors import get_selector

model, tokenizer = load_model("tiny-llama", device="cpu")
prefix, question = chat_parts(tokenizer, "Read the notes below.\\n", "\\nFind VAR REDA?", " VAR REDA")
chunk = encode(tokenizer, "Late the cook wrote VAR REDA 414. Today the baker sold the old boat.")
prompt, store = Prompt(prefix, [chunk], question), KVStore("memory://core")
precompute(model, [prompt], store)
print(generate(model, tokenizer, prompt, fused_prefill(model, prompt, store, get_selector("a3", ratio=0.2))))
"""


def test_a_fused_prefill_runs_with_the_core_alone():
    """All packages of the extras are hidden, except those that core packages require themselves."""
    core = needed(required(PROJECT["dependencies"]))
    extras = needed({name for texts in EXTRAS.values() for name in required(texts)})
    hidden = sorted(extras - core)
    assert {"pandas", "bm25s", "matplotlib"} <= set(hidden)
    done = subprocess.run([sys.executable, "-c", PREFILL, *hidden], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.startswith("414")


def test_a_missing_package_is_one_message_that_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "bm25s", None)
    with pytest.raises(ImportError, match=r"^BM25 needs an optional package: pip install 'ragkv\[rag\]' \(.*bm25s"):
        bm25([["one"], ["two"]])
    with pytest.raises(ValueError, match="other errors pass"), extra("rag", "BM25"):
        raise ValueError("other errors pass")


def installed_by(target: str) -> set[str]:
    """The extras that a target of the Makefile installs."""
    rule = re.search(rf"^[^\n]*\.venv/\.{target}\b[^\n]*:.*\n(?:\t.*\n)+", MAKEFILE, re.M)[0]
    return set(re.search(r"-e '\.\[(.*)\]'", rule)[1].replace("$*", target).split(","))


def test_conda_installs_what_the_makefile_does():
    conda = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    assert f"python{PROJECT['requires-python']}" in conda
    (requirement,) = next(entry["pip"] for entry in conda if isinstance(entry, dict))
    extras = re.fullmatch(r"-e \.\[(.*)\]", requirement)[1].split(",")
    assert set(extras) == set().union(*(installed_by(target) for target in ("setup", "test", "lint", "docs")))
    assert set(extras) <= set(EXTRAS)


def test_setup_installs_what_reproduce_needs_and_test_what_tests_need():
    setup = required([text for name in installed_by("setup") for text in EXTRAS[name]])
    assert {"papermill", "snakemake", "pandas", "matplotlib", "bm25s", "datasets"} <= setup
    assert not {"pytest", "ruff", "mkdocs-material", "moto"} & setup
    tests = CORE_PACKAGES | required([text for name in installed_by("test") for text in EXTRAS[name]])
    paths = [path for folder in ("tests", "workflow") for path in (ROOT / folder).rglob("*.py")]
    own = {path.stem for path in paths}
    for path in paths:
        missing = {one.package for one in foreign(path) if distribution(one) not in tests} - own
        assert not missing, f"{path.relative_to(ROOT)} imports {missing}, which `make test` does not install"
