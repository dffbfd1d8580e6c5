# Set-up happens by itself: every target makes .venv and installs the tested set when they are missing or out of date.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
FAULTS := faults

.PHONY: demo test test-cluster test-faults fuzz simulations audit check format clean

demo: $(READY)  ## Run every shipped study in miniature (digits, narrow networks) and print the report.
	$(BIN)/cifar-ablate run experiments/*.yaml --profile smoke --jobs 2
	$(BIN)/cifar-ablate report

test: $(READY)  ## What it does; tests on real images need CIFAR_ABLATE_TEST_DATA, a folder with the image archives.
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not gpu and not cluster and not faults and not fuzz and not simulations"

test-cluster: $(READY)  ## What it does on several machines, played on this one: Ray, SLURM, the servers of docs/deploy.md.
	$(BIN)/python -m pytest -m "cluster and not faults" --durations=15

test-faults: $(READY)  ## What it survives: processes killed, MLflow away, disks full; prints how often each was tried.
	$(BIN)/python -m pytest -m "$(FAULTS)" --durations=15

fuzz: $(READY)  ## What a study file may hold: ten thousand of them, each valid or refused at its line, within a second.
	$(BIN)/python -m pytest -m fuzz -s

simulations: $(READY)  ## What verdicts are worth: studies whose truth is known, against docs/statistics.md.
	$(BIN)/python -m pytest -m simulations

audit: .venv/.audit/bin/pip-audit  ## Known vulnerabilities in the tested set; needs a network that reaches the advisories.
	.venv/.audit/bin/pip-audit --strict --no-deps --disable-pip -r constraints.txt

.venv/.audit/bin/pip-audit: $(READY)
	$(PYTHON) -m venv .venv/.audit
	.venv/.audit/bin/python -m pip install --quiet --disable-pip-version-check 'pip-audit>=2.9,<3'

check: $(READY)  ## Lint, format and types.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv build *.egg-info .pytest_cache .ruff_cache .mypy_cache

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $(READY)
