# make demo : set up and run the main job (a small federation on generated data, results in runs/demo)
# make test : set up and run lint, types and tests
# make test-all : what make test does not: every bundle on a simulated CUDA device (minutes; needs a C++ compiler)
# make gpu : the same on a real device where there is one, and a timed step of every bundle
# make bundles : write what the bundles have in common from bundles_source
# make lint-bundles : the static check of every bundle
# make package : build sdist and wheel, install the wheel elsewhere, run a federation with it (dist/)
# make integration : the tests that start real processes, NVFlare among them (minutes)
# make integration-flower : those on Flower, in an environment of its own

# one thread per process, processes in parallel: with more, threads of small tensors wait for each other most of the time
export OMP_NUM_THREADS ?= 1

PYTHON ?= python3
BIN := .venv/bin
INSTALL := $(BIN)/python -m pip install --quiet --constraint constraints.txt
BUNDLE := bundles/fl_mr
DEMO := $(abspath runs/demo)
# the range of requires-python in pyproject.toml
IN_RANGE := import sys; sys.exit(None if (3, 10) <= sys.version_info < (3, 14) else "Python 3.10 to 3.13 is needed; this is " + sys.version.split()[0] + ". Name another: make PYTHON=python3.12")

.PHONY: demo test test-all gpu bundles lint-bundles package integration integration-flower clean

.venv/package: pyproject.toml constraints.txt constraints-common.txt
	@$(PYTHON) -c '$(IN_RANGE)'
	$(PYTHON) -m venv .venv
	$(INSTALL) --editable .
	@touch $@

.venv/development: .venv/package
	$(INSTALL) --editable '.[test,package,onnx,mlflow,privacy]'
	@touch $@

demo: .venv/package
	cd $(BUNDLE) && $(abspath $(BIN))/python -m monai.bundle run --config_file "['configs/federated.yaml','configs/demo.yaml']" --output_dir $(DEMO) --resume True

test: .venv/development
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest --numprocesses auto --dist loadfile

# the simulated device must be there before torch is, so it has a process of its own
ON_DEVICE := PYTHONPATH=tests/gpu_simulated $(BIN)/python -m pytest -p simulated_cuda -m gpu tests/gpu_simulated tests/transforms tests/metrics tests/losses

test-all: .venv/development
	$(ON_DEVICE)

gpu: .venv/development
	$(ON_DEVICE) --durations=10

bundles: .venv/development
	$(BIN)/python scripts/build_bundles.py

lint-bundles: .venv/package
	@status=0; for bundle in bundles/*/; do $(BIN)/fedmonai lint $$bundle || status=1; done; exit $$status

package: .venv/development
	$(BIN)/python scripts/try_package.py

.venv/deployment: .venv/development
	$(INSTALL) --editable '.[test,onnx,mlflow,nvflare]'
	@touch $@

integration: .venv/deployment
	$(BIN)/python -m pytest -m integration

.venv-flower/deployment: pyproject.toml constraints-flower.txt constraints-common.txt
	@$(PYTHON) -c '$(IN_RANGE)'
	$(PYTHON) -m venv .venv-flower
	.venv-flower/bin/python -m pip install --quiet --constraint constraints-flower.txt --editable '.[test,flower]'
	@touch $@

integration-flower: .venv-flower/deployment
	.venv-flower/bin/python -m pytest -m integration tests/integration/test_flower.py tests/integration/test_flower_masks.py

clean:
	rm -rf .venv .venv-flower runs dist
