# Everything that a developer or a first-time user runs. Each step says what it does.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
LABEL_STUDIO := .venv-label-studio
LABEL_STUDIO_ML := .label-studio-ml
# Passed to pip as they are, such as PIP_ARGS="--index-url ..." to choose a build of torch.
PIP_ARGS ?=
BENCHMARKS := start webhook_latency page scoring training waiting store growth workers load \
	predict reordering clusters many_choices
DEMO_ARGS := $(if $(AUTO),--auto)

.PHONY: help install demo test test-unit lint docs screenshots fuzz format bench \
	bench-gpu bench-learning soak clean

help:
	@echo "make demo          a real Label Studio with a project of drawn pictures, connected"
	@echo "make demo AUTO=1   the same, annotating by itself and printing how accuracy rises"
	@echo "make test          every test"
	@echo "make test-unit     those that need neither Label Studio, Redis, PostgreSQL nor a browser"
	@echo "make lint          ruff, mypy, import-linter, pip-audit"
	@echo "make docs          the documentation, with its links checked, in build/site"
	@echo "make screenshots   the documentation's pictures of Label Studio, taken anew"
	@echo "make fuzz          200,000 hostile requests to the API (FUZZ_ARGS=\"--bodies N --seed N\")"
	@echo "make format        let ruff format the code"
	@echo "make bench         the benchmarks"
	@echo "make bench-gpu     predictions of two models and trainings, on a GPU"
	@echo "make bench-learning"
	@echo "                   strategies and heads against other libraries' (hours; can be stopped)"
	@echo "make soak          an hour of annotators, imports, deletions and kills, and what is left"
	@echo "make clean         remove what make has installed and the demo's data"

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml
	@echo "==> installing the backend and its tools into $(VENV) (torch is large: some minutes)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet $(PIP_ARGS) --editable ".[dev]"
	@touch $@

$(LABEL_STUDIO)/.installed:
	@echo "==> installing Label Studio into $(LABEL_STUDIO), apart from the backend"
	@test -x $(LABEL_STUDIO)/bin/python || $(PYTHON) -m venv $(LABEL_STUDIO)
	@$(LABEL_STUDIO)/bin/python -m pip install --quiet $(PIP_ARGS) "label-studio>=1.23"
	@touch $@

# The release on PyPI, beside our Flask instead of the one that it pins, and what it imports.
$(LABEL_STUDIO_ML)/.installed: $(VENV)/.installed
	@echo "==> installing label-studio-ml 1.0.9 into $(LABEL_STUDIO_ML), without its pins"
	@rm -rf $(LABEL_STUDIO_ML)
	@$(BIN)/python -m pip install --quiet $(PIP_ARGS) --target $(LABEL_STUDIO_ML) \
		appdirs attrs colorama label-studio-tools lxml requests
	@$(BIN)/python -m pip install --quiet $(PIP_ARGS) --target $(LABEL_STUDIO_ML) --no-deps \
		label-studio-ml==1.0.9
	@touch $@

demo: $(VENV)/.installed $(LABEL_STUDIO)/.installed
	@echo "==> starting the demo"
	@$(BIN)/clip-backend demo $(DEMO_ARGS)

test: $(VENV)/.installed $(LABEL_STUDIO)/.installed $(LABEL_STUDIO_ML)/.installed
	@scripts/install_programs
	@echo "==> running every test"
	@$(BIN)/python -m pytest $(PYTEST_ARGS)

test-unit: $(VENV)/.installed
	@echo "==> running the unit tests"
	@$(BIN)/python -m pytest tests/unit $(PYTEST_ARGS)

lint: $(VENV)/.installed
	@echo "==> ruff"
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@echo "==> mypy"
	@$(BIN)/mypy
	@$(BIN)/mypy --config-file benchmarks/mypy.ini benchmarks
	@echo "==> import-linter"
	@$(BIN)/lint-imports
	@echo "==> pip-audit"
	@scripts/audit $(BIN)

docs: $(VENV)/.installed
	@echo "==> building the documentation"
	@$(BIN)/mkdocs build --quiet --strict
	@echo "open build/site/index.html"

screenshots: $(VENV)/.installed $(LABEL_STUDIO)/.installed
	@scripts/install_programs
	@echo "==> taking the documentation's screenshots"
	@$(BIN)/python -m pytest tests/e2e/test_browser.py tests/e2e/test_page_browser.py \
		tests/e2e/test_page_insight.py \
		--screenshots docs/images

fuzz: $(VENV)/.installed
	@echo "==> hostile requests to the API"
	@PYTHONPATH=tests/integration $(BIN)/python scripts/fuzz.py $(FUZZ_ARGS)

format: $(VENV)/.installed
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

bench: $(VENV)/.installed $(LABEL_STUDIO)/.installed
	@scripts/install_programs
	@for name in $(BENCHMARKS); do \
		echo "==> benchmarks/$$name.py"; $(BIN)/python benchmarks/$$name.py || exit 1; done

bench-gpu: $(VENV)/.installed
	@for model in ViT-B-32 ViT-L-14; do \
		echo "==> benchmarks/predict.py, $$model"; \
		$(BIN)/python benchmarks/predict.py --model $$model --tasks 256 --rounds 3 || exit 1; done
	@echo "==> benchmarks/training.py"
	@$(BIN)/python benchmarks/training.py

bench-learning: $(VENV)/.installed-benchmark
	@echo "==> benchmarks/learning (hours; it goes on where it was stopped)"
	@$(BIN)/python benchmarks/learning/run.py --report docs/learning.md
	@$(BIN)/python benchmarks/learning/queue_rules.py --situations 2 --report docs/learning.md

soak: $(VENV)/.installed $(LABEL_STUDIO)/.installed
	@$(BIN)/python -m pytest tests/e2e/test_soak.py -s --soak-minutes 60

$(VENV)/.installed-benchmark: benchmarks/learning/requirements.txt $(VENV)/.installed
	@echo "==> installing what to compare with"
	@$(BIN)/python -m pip install --quiet $(PIP_ARGS) --no-deps --requirement $<
	@touch $@

clean:
	rm -rf $(VENV) $(LABEL_STUDIO) $(LABEL_STUDIO_ML) demo-data build *.egg-info
