# make demo     the demo study: environment, workflow, report
# make smoke    the same workflow on a pocket-size study, in about a minute and a half
# make controls what the workflow finds in cohorts of which the truth is known
# make test     the tests
# make check    ruff and mypy
# make bench    speed against named baselines, as JSON lines (BENCH=--quick: a few minutes)
# make dashboard  the MLflow dashboard, on this machine only
SHELL := /bin/bash
.DELETE_ON_ERROR:
.PHONY: demo smoke controls test check bench dashboard clean

VENV := .venv
BIN := $(VENV)/bin
CORES ?= 2
READY := $(VENV)/.ready
# MLflow opens as a dashboard of language-model applications, without any run, unless told otherwise.
DASHBOARD := http://127.0.0.1:5000/\#/experiments?workflowType=machine_learning

demo: $(READY)
	$(BIN)/snakemake --cores $(CORES) --configfile pipelines/studies/demo.yaml
	@echo
	@echo "Report:    results/demo/report/index.html"
	@echo "Notebooks: overview, copy_forwarding, irregular_intervals, disease_progression (.html), beside it"
	@echo "Dashboard: make dashboard, then open $(DASHBOARD)"

smoke: $(READY)
	$(BIN)/snakemake --cores $(CORES) --configfile pipelines/studies/smoke.yaml

controls: $(READY)
	$(BIN)/snakemake --cores $(CORES) --configfile pipelines/studies/controls.yaml
	@echo "Controls: results/controls/report/index.html"
	@: "the last column says what holds"; if grep -q ',false$$' results/controls/report/controls.csv; then echo "error: not every statement holds" >&2; exit 1; fi

test: $(READY)
	$(BIN)/python -m pytest --numprocesses $(CORES) --dist loadfile

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(READY)
	@for name in simulate scan long_conv rms_norm token_loss training_step batches tokenization store embed probe bootstrap interval_coverage; do $(BIN)/python benchmarks/$$name.py $(BENCH) || exit 1; done

dashboard: $(READY)
	@echo "Open $(DASHBOARD)"
	MLFLOW_DISABLE_TELEMETRY=true $(BIN)/mlflow server --backend-store-uri sqlite:///results/mlflow.db --host 127.0.0.1 --port 5000

# The environment: the first Python of 3.11 and 3.12 that works, femr where it can be installed (Linux), pinned versions.
$(READY): pyproject.toml constraints.txt
	@python=; for candidate in $(PYTHON) python3 python3.11 python3.12; do \
	  if $$candidate -c 'import sys; sys.exit(not ((3, 11) <= sys.version_info[:2] < (3, 13)))' 2>/dev/null; then python=$$candidate; break; fi; \
	done; \
	if [ -z "$$python" ]; then echo "error: Python 3.11 or 3.12 is needed (name one with: make PYTHON=/path/to/python3.11)." >&2; exit 2; fi; \
	if ! $$python -c 'import ensurepip' 2>/dev/null; then \
	  echo "error: $$python cannot make environments. On Debian or Ubuntu: apt-get install python3-venv" >&2; exit 2; fi; \
	echo "Installing into $(VENV) with $$($$python --version) …"; \
	: "an activated environment is made again by the Python that it came from"; \
	python=$$($$python -c 'import sys; print(sys._base_executable)'); \
	rm -rf $(VENV) && $$python -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[femr,notebooks,dev]'
	@touch $@

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache
