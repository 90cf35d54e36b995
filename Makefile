# make demo        set everything up and run the main job on the embedded default, here
# make install     only set everything up; REQUIREMENTS=requirements-gpu.txt for a machine with a GPU
# make test        every test but those of SLURM and of backends; sets everything up as well
# make test-slurm  those: they start two SLURMs of two nodes each on this machine (Debian: apt-get install slurm-wlm munge)
# make test-backends  those of a real vLLM, unsloth and bitsandbytes, in an environment of their own (.venv-backends, 4 GB)
# make static      lint, types, import order
# make check       the same, and unit tests
# make bench       every benchmark, one table each

PYTHON ?= python3
REQUIREMENTS ?= requirements.txt
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready-$(REQUIREMENTS)
READY_DEV := $(VENV)/.ready-dev
BACKENDS := .venv-backends

.PHONY: install demo test test-slurm test-backends static check bench clean
.DELETE_ON_ERROR:

# Tests and stages are hundreds of processes: each would compile the project anew.
unexport PYTHONDONTWRITEBYTECODE

install: $(READY)

demo: $(READY)
	@$(BIN)/python tuning/run_sweetspot_pipeline.py --model tiny --dataset arith --task math \
		--total_data 3000 --sft_data 2000 --perplexity_thresholds 2.0 1.6 1.4 \
		--do_sft --do_dpo --do_inference --do_evaluation --launcher local

test: $(READY_DEV)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder tests --ignore tests/slurm --ignore tests/backends

test-slurm: $(READY_DEV)
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder tests/slurm

test-backends: $(BACKENDS)/.ready
	OMP_NUM_THREADS=1 $(BACKENDS)/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder tests/backends

static: $(READY_DEV)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

check: static
	OMP_NUM_THREADS=2 $(BIN)/python -m pytest -m unit tests

bench: $(READY_DEV)
	@for file in benchmarks/*.py; do echo "== $$file"; PYTHONPATH=. $(BIN)/python $$file || exit 1; done

$(READY): requirements.txt pyproject.toml $(REQUIREMENTS)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r $(REQUIREMENTS)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	@touch $@

$(READY_DEV): $(READY) requirements-dev.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	@touch $@

# What vLLM pulls in for pictures and sound needs a GPU build of torch, and stops transformers beside any other.
$(BACKENDS)/.ready: requirements.txt requirements-backends.txt requirements-backends-alone.txt
	test -x $(BACKENDS)/bin/python || $(PYTHON) -m venv $(BACKENDS)
	$(BACKENDS)/bin/python -m pip install --quiet --disable-pip-version-check -r requirements-backends.txt
	$(BACKENDS)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r requirements-backends-alone.txt
	$(BACKENDS)/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	$(BACKENDS)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	@touch $@

clean:
	rm -rf $(VENV) $(BACKENDS) build *.egg-info
