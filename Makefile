# Set-up happens by itself: every target makes .venv and installs the tested set when they are missing or out of date.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
PYTEST := $(BIN)/python -m pytest
PARALLEL := -n 2 --dist worksteal
FAULTS := faults
SERIAL := cluster or faults or fuzz or simulations
PART := 1/6

.PHONY: demo test test-slow test-cluster test-faults test-part fuzz simulations audit check format clean

demo: $(READY)  ## Run every shipped study in miniature (digits, narrow networks) and print the report.
	$(BIN)/cifar-ablate run experiments/*.yaml --profile smoke --jobs 2
	$(BIN)/cifar-ablate report

test: $(READY)  ## What it does, in minutes; tests on real images need CIFAR_ABLATE_TEST_DATA, a folder with the image archives.
	$(PYTEST) $(PARALLEL) -m "not (gpu or slow or $(SERIAL))"

test-slow: $(READY)  ## The same for a browser, LaTeX, servers, packages in fresh environments, benchmarks, scale, long trainings.
	$(PYTEST) $(PARALLEL) -m "slow and not (gpu or $(SERIAL))" --durations=15

test-cluster: $(READY)  ## What it does on several machines, played on this one: Ray, SLURM, the servers of docs/deploy.md.
	$(PYTEST) -m "cluster and not faults" --durations=15

test-faults: $(READY)  ## What it survives: processes killed, MLflow away, disks full; prints how often each was tried.
	$(PYTEST) -m "$(FAULTS)" --durations=15

test-part: $(READY)  ## One part of all tests that `make test` leaves out, such as PART=2/6; all parts together are all of them.
	$(PYTEST) $(PARALLEL) -m "slow and not (gpu or $(SERIAL))" --part $(PART)
	$(PYTEST) -m "not gpu and ($(SERIAL))" --part $(PART)

fuzz: $(READY)  ## What a study file may hold: ten thousand of them, each valid or refused at its line, without delay.
	$(PYTEST) -m fuzz -s

simulations: $(READY)  ## What verdicts are worth: studies whose truth is known, against docs/statistics.md.
	$(PYTEST) -m simulations

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
