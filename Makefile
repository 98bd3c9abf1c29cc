# make repro   run the whole pipeline (only what changed)      make lab     open the notebooks in JupyterLab
# make test    check style and run the tests                   make bench   measure speed
# make study   train and attack every defence, for hours        make pretrain   train the robust starts anew
#
# Each makes the environment it needs, once, in .venv. Set PYTHON to choose the interpreter (3.11.4 or newer), and JOBS
# how many stages or notebooks run side by side.

PYTHON ?= python3
VENV := .venv
READY := $(VENV)/.ready
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
export PYTHONPATH := $(CURDIR)
export DVC_NO_ANALYTICS := 1
export OMP_WAIT_POLICY ?= PASSIVE

.PHONY: repro test lab bench study pretrain env
repro: env
	@echo "Running the pipeline: data, standard training, robust training, attacks, figures"
	python -m dml check
	python -m dml repro $(JOBS:%=--jobs %)
	@echo "Done: open results/README.md"

test: env
	ruff check .
	ruff format --check .
	@# File by file in order: pytest-xdist would leave files of few tests, the longest here, to the end.
	python -m pytest -n auto --dist loadfile --no-loadscope-reorder

lab: env
	jupyter lab --notebook-dir notebooks

study: env
	python -m dml check
	python -m dml study $(JOBS:%=--jobs %)
	python -m dml notebook run notebooks/05_figures.ipynb artifacts/notebooks/05_figures.ipynb -p workspace .

pretrain: env
	@test -e data/tiny_imagenet/labels.csv || python -m dml datasets fetch tiny_imagenet
	python -m dml pretrain tiny_imagenet normalized_softmax joint pretrained/grid4.safetensors
	python -m dml pretrain tiny_imagenet_distilled normalized_softmax distilled artifacts/grid13.safetensors
	python -m dml join grids pretrained/grid4.safetensors artifacts/grid13.safetensors pretrained/grids.safetensors

bench: env
	@# Peers to compare with; torchattacks wants old versions of packages that the pipeline needs newer.
	@python -m pip install -q --no-deps torchattacks==3.5.1 faiss-cpu==1.15.1 \
	  || echo "Without torchattacks and faiss their rows are left out" >&2
	python -m benchmarks.report

env: $(READY)
	@# DVC expects a git repository; a downloaded archive has none.
	@git rev-parse --git-dir >/dev/null 2>&1 || dvc config --local core.no_scm true

$(READY): pyproject.toml tests/visdom/pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11, 4))' || \
	  { echo "$(PYTHON) is older than Python 3.11.4; set PYTHON to a newer one" >&2; exit 1; }
	@echo "Making the environment in $(VENV): about 6 GB and 2 to 6 minutes, once"
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet ./tests/visdom --editable '.[test]'
	@touch $(READY)
