# `make reproduce` and `make test` are all that is needed: both install into .venv first.

PROFILE ?= tiny
PYTHON ?= python3
CORES ?= $(shell getconf _NPROCESSORS_ONLN)
GPUS ?= $(shell nvidia-smi --list-gpus 2>/dev/null | grep -c .)
SHARDS ?= 1
MINUTES ?= 10
TORCH ?= torch
ifdef CPU
TORCH = torch --index-url https://download.pytorch.org/whl/cpu
endif

export PATH := $(CURDIR)/.venv/bin:$(PATH)
export PYTHONWARNINGS = ignore::DeprecationWarning
INSTALLED = .venv/.installed
# Jobs run side by side, one core each; a small model gains nothing from more.
ONE_THREAD = OMP_NUM_THREADS=1 TQDM_MININTERVAL=5 JUPYTER_PLATFORM_DIRS=1 TOKENIZERS_PARALLELISM=false HF_HUB_DISABLE_PROGRESS_BARS=1
WHERE = $(if $(EXECUTOR),--workflow-profile workflow/profiles/$(EXECUTOR),--cores $(CORES)) --resources gpu=$(GPUS)
SNAKEMAKE = $(ONE_THREAD) snakemake -s workflow/Snakefile $(WHERE) --rerun-triggers mtime params input $(OPTIONS) \
  --config profile=$(PROFILE) shards=$(SHARDS) gpus=$(GPUS)

.PHONY: help setup reproduce unlock dry-run record test lint docs lab notebooks bench faults load scaling clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'
	@echo '  options: PROFILE=<file in params/>, CORES=<n>, CPU=1 (PyTorch without CUDA), TORCH=<pip requirement>'
	@echo '  of reproduce: SHARDS=<n>, GPUS=<n>, EXECUTOR=<folder in workflow/profiles/>, OPTIONS=<more for Snakemake>'

setup: $(INSTALLED)  ## install everything into .venv (CPU=1: PyTorch without CUDA's libraries)

$(INSTALLED): pyproject.toml
	test -d .venv || $(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet --upgrade pip
	.venv/bin/python -m pip install --quiet $(TORCH)
	.venv/bin/python -m pip install --quiet -e '.[hub,notebooks,test,lint,docs]'
	touch $@

reproduce: $(INSTALLED)  ## run what is missing or changed of a profile, up to its report
	$(SNAKEMAKE) --rerun-incomplete --quiet rules
	@echo "report: outputs/$(PROFILE)/report.html (all reports: outputs/index.html)"

unlock: $(INSTALLED)  ## after a killed `make reproduce`: let the next one run
	$(SNAKEMAKE) --unlock

dry-run: $(INSTALLED)  ## say what `make reproduce` would run, and what it would take: GPU-hours, gigabytes
	$(SNAKEMAKE) --dry-run --quiet
	python -m ragkv.planning $(PROFILE)

test: $(INSTALLED)  ## the tests, then the notebooks on a few prompts
	$(ONE_THREAD) python -m pytest tests -n $(CORES) --dist worksteal
	$(ONE_THREAD) python -m pytest --nbval-lax notebooks

lint: $(INSTALLED)  ## ruff (notebooks too) and mypy
	ruff check .
	ruff format --check .
	mypy

docs: $(INSTALLED)  ## build the documentation's site into site/, links checked
	NO_MKDOCS_2_WARNING=1 mkdocs build --strict

lab: $(INSTALLED)  ## open the notebooks in JupyterLab
	jupyter lab notebooks

notebooks: $(INSTALLED)  ## run the committed notebooks again in place, on a few prompts; twice gives the same files
	TQDM_DISABLE=1 $(ONE_THREAD) python workflow/notebooks.py notebooks/*.ipynb

record:  ## keep a profile's report, tables, figures and summaries under outputs/reference/, to be committed
	mkdir -p outputs/reference/$(PROFILE)
	cp outputs/$(PROFILE)/report/* outputs/reference/$(PROFILE)/
	sed -e '/href="..\/index.html"/d' -e 's,"report/,",g' outputs/$(PROFILE)/report.html > outputs/reference/$(PROFILE)/report.html
	cd outputs/$(PROFILE) && for file in */*.json */*/*.json; do case $$(basename $$file) in tokens.json|*.*.json) ;; \
	  *) install -D -m 644 $$file ../reference/$(PROFILE)/$$file ;; esac; done

bench: $(INSTALLED)  ## fused prefill against full prefill, and precompute against a plain forward, on this machine
	python -m ragkv.bench

faults: $(INSTALLED)  ## kill jobs, flip bits, fill disks, break connections: does a run again give the same? (minutes)
	$(ONE_THREAD) HF_HUB_OFFLINE=1 python tests/faults.py

load: $(INSTALLED)  ## two processes that precompute and two that evaluate over one store, ten minutes (MINUTES=<n>)
	$(ONE_THREAD) python workflow/load.py --minutes $(MINUTES)

scaling: $(INSTALLED)  ## an evaluation in two shards side by side against the same as a whole
	$(ONE_THREAD) python workflow/scaling.py

clean:  ## remove outputs/ (recorded results stay), the site and the virtual environment
	find outputs -mindepth 1 -maxdepth 1 ! -name .gitkeep ! -name reference -exec rm -rf {} +
	rm -rf .venv .snakemake site
