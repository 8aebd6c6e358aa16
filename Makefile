# Every target is a short way to say a command that can also be typed by hand.
PYTHON ?= $(shell for p in python3.12 python3.13 python3.11 python3; do \
  $$p -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' >/dev/null 2>&1 && { echo $$p; break; }; done)
VENV ?= .venv
PY := $(VENV)/bin/python
UV := $(VENV)/bin/uv
LOCK := requirements/lock.txt
BOOTSTRAP := requirements/bootstrap.txt
INSTALLER ?= uv
PROFILE ?= phantom
SEED ?= 0
SEEDS ?= $(SEED)
CLUSTER ?=
JOBS ?=
SLURM ?=
WORKERS ?= 2
do = $(strip $(if $(CLUSTER),submit,run) $(1) $(SLURM) --profile $(PROFILE) --seeds $(SEEDS) $(if $(CLUSTER),--cluster $(CLUSTER)) $(if $(JOBS),--jobs $(JOBS)))
export UV_PYTHON_DOWNLOADS := never

.DEFAULT_GOAL := help
.PHONY: help setup ablation-table1 ablation-table2 fig5-masks smoke table status show test test-faults test-slurm bench bench-loader bench-evaluation bench-sensitivity lint types format lock clean

help:  ## Print the targets
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-18s %s\n", $$1, $$2}'
	@echo "  variables: PROFILE=$(PROFILE) SEED=$(SEED) SEEDS=\"$(SEEDS)\" CLUSTER=slurm|local|debug SLURM=\"slurm.KEY=VALUE ...\" JOBS=N VENV=$(VENV) PYTHON=$(PYTHON) INSTALLER=uv|pip"

$(PY):
	@test -n "$(PYTHON)" || { echo "need Python 3.11, 3.12 or 3.13 with venv (Debian/Ubuntu: apt install python3-venv), or: make PYTHON=/path/to/python"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install -q --require-hashes -r $(BOOTSTRAP)

$(VENV)/.installed: $(PY) $(LOCK) $(BOOTSTRAP) pyproject.toml
ifeq ($(INSTALLER),pip)
	$(PY) -m pip install -q --no-deps --require-hashes -r $(LOCK)
	$(PY) -m pip install -q --no-deps --no-build-isolation -e .
else
	$(UV) pip sync -q --python $(PY) --require-hashes $(LOCK) $(BOOTSTRAP)
	$(UV) pip install -q --python $(PY) --no-deps --no-build-isolation -e .
endif
	touch $@

setup: $(VENV)/.installed  ## Create .venv with the locked packages (about 5 GB on Linux)

ablation-table1: setup  ## Train, generate and score every row of Table 1, then print it
	$(PY) -m experiments $(call do,experiments/table1.yaml)

ablation-table2: setup  ## Score the rows of Table 2 (FID, FVD, CLIP score), then print it
	$(PY) -m experiments $(call do,experiments/table2.yaml)

fig5-masks: setup  ## The mask-granularity study of Fig. 5
	$(PY) -m experiments $(call do,experiments/fig5_masks.yaml)

smoke: setup  ## Table 1 with tiny settings: the whole path in about a minute
	$(PY) -m experiments run experiments/table1.yaml --profile smoke

table: setup  ## Print Table 1 again from the scores on disk
	$(PY) -m evaluation table experiments/table1.yaml --profile $(PROFILE) --seeds $(SEEDS)

status: setup  ## Show which stages of Table 1 are done
	$(PY) -m experiments status experiments/table1.yaml --profile $(PROFILE) --seeds $(SEEDS)

test: setup  ## Run the tests (TRACE_DATA=folder adds those on real CT, TRACE_WEIGHTS=folder on weights)
	OMP_NUM_THREADS=1 $(PY) -m pytest -n $(WORKERS) --dist loadfile

test-faults: setup  ## Kill, fill, corrupt and starve runs in every stage; write docs/reliability.md (Linux; root adds a full disk)
	OMP_NUM_THREADS=1 TRACE_RELIABILITY=docs/reliability.md $(PY) -m pytest -m faults tests/faults

test-slurm: setup  ## Jobs on a Slurm that is started for it (slurm-wlm and munge, as root)
	$(PY) -m pytest -m slurm tests/cluster

bench: setup  ## Samplers on one set of weights: slices/s beside quality, and what is asked of them
	$(PY) -m experiments bench ours --profile $(PROFILE) --seeds $(SEEDS)

bench-loader: setup  ## Training pairs/s from the cache against decoding .nii.gz, and memory by volumes (Linux)
	$(PY) benchmarks/loader.py

OTHERS := benchmarks/.venv
$(OTHERS)/.installed: $(PY) benchmarks/requirements.txt
	-$(UV) venv -q --clear --python $(PY) $(OTHERS) && $(UV) pip install -q --python $(OTHERS)/bin/python -r benchmarks/requirements.txt && touch $@

bench-evaluation: setup $(OTHERS)/.installed  ## Our measures beside other implementations: value and seconds
	OMP_NUM_THREADS=1 $(PY) -m benchmarks.evaluation --others $(OTHERS)/bin/python

bench-sensitivity: setup  ## Which metric sees what, checked, on the phantom (TRACE_WEIGHTS=folder adds LPIPS, FD AlexNet and FVD)
	$(PY) -m benchmarks.sensitivity --out runs/sensitivity

lint: setup  ## Check style with ruff
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

types: setup  ## Check types with mypy
	$(PY) -m mypy

format: setup  ## Apply ruff's fixes and formatting
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

lock: $(PY)  ## Refresh the hash-locked requirements from pyproject.toml
	$(UV) pip compile pyproject.toml --extra train --extra cluster --extra metrics --extra itk --extra dev --universal --python-version 3.11 --generate-hashes \
	  --no-header --no-annotate -q -o $(LOCK)

clean:  ## Remove runs and caches (asks nothing; the environment stays)
	rm -rf runs cache
