# Each target sets up .venv by itself, once; PYTHON chooses the interpreter, TRAIN and TEST the arguments, WORKERS how
# many processes test side by side, each on a core.
PYTHON ?= python3
TRAIN  ?= --epochs 10 --batch-size 32 --channels-last
TEST   ?= -m 'not long'
WORKERS ?= auto
KERNELS ?= -UFASTGAT_ARCHITECTURES

export PIP_DISABLE_PIP_VERSION_CHECK = 1
MAKEFLAGS += --no-print-directory
BIN := .venv/bin
# -qq hides pip's remarks on the machine's own configuration; errors are still shown. Python byte-compiles what it
# imports, and keeps it, unless it was told not to; pip would take a minute for all that nobody imports.
PIP := $(BIN)/python -m pip install -qq --constraint constraints.txt $(if $(PYTHONDONTWRITEBYTECODE),,--no-compile)

.PHONY: train test test-all bench kernels gpu lint wheel docs format clean

train: .venv/trainer
	$(BIN)/fastgat train $(TRAIN)

test: .venv/developer
	$(BIN)/python -m pytest --numprocesses $(WORKERS) --dist worksteal --benchmark-disable $(TEST)

# With the tests that take a minute each.
test-all:
	$(MAKE) test TEST=

bench: .venv/developer
	$(BIN)/python -m pytest bench --benchmark-only

# Every kernel, compiled for GPUs that need not be here and held to its budget.
kernels: .venv/developer
	$(BIN)/cmake -S . -B build/cmake -DPython3_EXECUTABLE=$(CURDIR)/$(BIN)/python $(KERNELS)
	$(BIN)/cmake --build build/cmake --parallel 2
	$(BIN)/ctest --test-dir build/cmake --output-on-failure

# Everything that wants a GPU, in under ten minutes: its tests, the steps, the kernels; one table and one JSON file.
gpu: .venv/developer
	$(BIN)/python bench/gpu.py --json build/gpu.json

# mypy reads the packages as a wheel lays them out: kernels/ is fastgat.kernels there. Others may be writing __pycache__.
define LAY_OUT
import shutil
for folder in "fastgat", "tests", "bench", "kernels":
    to = "build/lint/" + ("fastgat/kernels" if folder == "kernels" else folder)
    shutil.copytree(folder, to, ignore=shutil.ignore_patterns("__pycache__"), dirs_exist_ok=True)
endef
export LAY_OUT
lint: .venv/developer
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@rm -rf build/lint
	@$(BIN)/python -c "$$LAY_OUT"
	cd build/lint && ../../$(BIN)/mypy --config-file ../../pyproject.toml fastgat tests bench
	$(BIN)/python -m pytest -q tests/test_imports.py

# The wheel, tried as users have it: in an environment of its own, from an empty folder, with .venv's packages but not
# its fastgat, which is this checkout.
define TRY_WHEEL
import pathlib, fastgat, fastgat.kernels, torch
assert "wheel/environment" in fastgat.__file__ and "wheel/environment" in fastgat.kernels.__file__, fastgat.__file__
summary = pathlib.Path("run/summary.json").read_text()
assert fastgat.load_classifier("run")(torch.rand(2, 3, 32, 32)).shape == (2, 10), summary
print(f"the wheel trains, and {fastgat.__file__} loads the run")
endef
export TRY_WHEEL
wheel: .venv/developer
	@rm -rf build/wheel
	@mkdir -p build/wheel/empty
	$(BIN)/python -m pip wheel -qq --no-deps --wheel-dir build/wheel .
	$(BIN)/python -m venv --without-pip build/wheel/environment
	@for to in build/wheel/environment/lib/python*/site-packages; do \
		$(BIN)/python -c "import pathlib, click; print(pathlib.Path(click.__file__).parents[1])" > $$to/dependencies.pth; done
	$(BIN)/python -m pip --python build/wheel/environment/bin/python install -qq --no-deps build/wheel/*.whl
	cd build/wheel/empty && ../environment/bin/fastgat train --dataset digits --train-images 256 --method baseline --epochs 1 --output run
	@cd build/wheel/empty && ../environment/bin/python -c "$$TRY_WHEEL"

# The pages of docs/ and the reference from the docstrings, as build/site; a warning is an error.
docs: .venv/developer
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

format: .venv/developer
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv build

.venv/created:
	@$(PYTHON) -c "$$CHECK_VERSION"
	@echo "setting up .venv (PyTorch is large: this takes a minute or more, once)"
	@$(PYTHON) -m venv .venv
	@touch $@

define CHECK_VERSION
import sys
if sys.version_info < (3, 11):
    sys.exit("fastgat needs Python 3.11 or newer, and $(PYTHON) is %d.%d: make PYTHON=python3.12 ..." % sys.version_info[:2])
endef
export CHECK_VERSION

.venv/trainer: .venv/created pyproject.toml constraints.txt
	@$(PIP) --editable .
	@touch $@

.venv/developer: .venv/trainer requirements-dev.txt
	@$(PIP) --requirement requirements-dev.txt
	@# An oracle of the tests, which uses nothing of the torchvision that it asks for.
	@$(PIP) --no-deps torchattacks
	@touch $@
