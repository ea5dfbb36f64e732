# Everything from a fresh clone; a machine with Python >= 3.11 and make is enough.
#
#   make demo         train on real cells, fill in hidden counts, score that beside plain baselines (runs/demo)
#   make test         lint, then all tests
#   make lint         ruff alone; `make format` mends what it can
#   make clean-ish    remove what was made (data/, runs/, caches), keep .venv
#
# Another interpreter: make PYTHON=python3.12 demo

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
DATA := data/demo
RUN := runs/demo
# Test processes. More threads than cores make small tests slow, so that each process has one.
JOBS ?= 2

# Said in full, because accelerate warns about each that it has to guess. Devices and precision are left to train.py.
# It also gives a process on CPU a single thread, where it is not told otherwise.
CORES := $(shell getconf _NPROCESSORS_ONLN)
LAUNCH := accelerate launch --num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no \
	--num_cpu_threads_per_process $(CORES)

.PHONY: demo test lint format clean-ish

demo: $(INSTALLED)
	@echo; echo "1/4  700 real blood cells, counts recovered; 580 to train on, 120 held out"
	$(BIN)/python data_prep/demo.py --output-dir $(DATA)
	@echo; echo "2/4  a masked diffusion model is trained on the 580"
	$(BIN)/$(LAUNCH) train.py --config configs/tiny.yaml --data.dir $(DATA)/shards --output-dir $(RUN)
	@echo; echo "3/4  80% of the held-out counts are hidden, and drawn anew by the model"
	$(BIN)/python sample.py --checkpoint $(RUN) --mask-ratio 0.8 --output $(RUN)/filled.h5ad
	@echo; echo "4/4  hidden counts are scored against the truth, beside baselines"
	$(BIN)/python evaluate.py inpaint --checkpoint $(RUN) --mask-ratios 0.2 0.5 0.8 \
		--json $(RUN)/scores.json --report $(RUN)/report.png
	@echo; echo "Done. $(RUN)/report.png is the picture, scores.json the numbers, filled.h5ad the filled cells."

test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(JOBS) --dist loadfile --no-loadscope-reorder

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean-ish:
	rm -rf data runs build dist .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

# torch comes first and alone: a build that is there already, for CPU or CUDA, then stays.
$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "mdsc needs Python 3.11 or newer; name one: make PYTHON=python3.12 ..." >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt "$$(grep '^torch==' constraints.txt)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[demo,test]'
	touch $@
