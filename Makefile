# Beyond the masker. `make` alone lists what there is.
#
# Options are variables here and in the environment; beyond_the_masker/options.py explains them:
#   make html N_IMAGES=2 N_REGIONS=6 DATA=synthetic PAUSE=0.5
#   make html FMRI=image.nii.gz ATLAS=atlas.nii.gz MEMORY=16G
# SITE_URL is where the site will be published: make html SITE_URL=https://example.org/site/
OPTIONS := N_IMAGES N_REGIONS DATA FMRI ATLAS MEMORY PAUSE
SETTINGS := PYTHON VENV SPHINXOPTS PYTEST_ARGS FAULTS PORT MASKER_CACHE MEASURED NILEARN_DATA SITE \
	SITE_URL REPOSITORY_URL

PYTHON ?= python3
VENV ?= .venv
SPHINXOPTS ?= -W --keep-going
PORT ?= 8000
MASKER_CACHE ?= $(CURDIR)/masker_cache
MEASURED ?= $(CURDIR)/doc/measured
HTML := doc/_build/html
AXE := tests/node_modules/axe-core/axe.min.js
BUILD := $(VENV)/bin/python -m sphinx -c . -b html -d doc/_build/doctrees $(SPHINXOPTS)
BEYOND := $(VENV)/bin/python -m beyond_the_masker
TEST := $(VENV)/bin/python -m pytest -n 2 --dist loadgroup --no-loadscope-reorder

export $(OPTIONS) MASKER_CACHE MEASURED SITE
export MPLBACKEND := agg
export PYTHONPATH := $(CURDIR)/examples

# A dollar sign is part of a file's name, not of a variable of make.
$(foreach name,$(OPTIONS),$(if $(value $(name)),$(eval override $(name) := $$(value $(name)))))

given := $(foreach name,$(.VARIABLES),$(if $(findstring command line,$(origin $(name))),$(name)))
unknown := $(filter-out $(OPTIONS) $(SETTINGS),$(given))
ifneq ($(strip $(unknown)),)
$(error Unknown option $(unknown); there are: $(OPTIONS))
endif

.DEFAULT_GOAL := help
.PHONY: help html html-noplot test test-all faults mprof benchmark record check-model serve linkcheck \
	lint clean check-options

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "%-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

html: check-options $(VENV)/.built ## prepare the data, run and measure every example, build the site
	@$(BEYOND) measure --prepare
	$(BUILD) doc $(HTML)
	@echo "The site is in $(HTML): open $(HTML)/index.html in a browser, or run 'make serve'."

html-noplot: check-options $(VENV)/.built ## build the prose only; run nothing
	$(BUILD) -D plot_gallery=0 doc $(HTML)
	@echo "The site is in $(HTML), without new measurements."

test: $(VENV)/.tested $(if $(shell command -v npm),$(AXE)) ## run the fast tests, in a few minutes
	$(TEST) -m "not extensive" $(PYTEST_ARGS)

test-all: $(VENV)/.tested $(if $(shell command -v npm),$(AXE)) ## run every test; with SITE=doc/_build/html, on that site's pages
	HYPOTHESIS_PROFILE=all $(TEST) $(PYTEST_ARGS)

faults: $(VENV)/.tested ## break runs in every way we know, and count what they survive
	$(VENV)/bin/python -m tests.faults $(FAULTS)

mprof: check-options $(VENV)/.built ## run the whole experiment under mprof: make mprof N_IMAGES=10 N_REGIONS=20
	PAUSE=$${PAUSE:-30} $(VENV)/bin/mprof run --include-children --multiprocess \
		$(BEYOND) experiment
	@echo "Draw it with: $(VENV)/bin/mprof plot"

benchmark: $(VENV)/.built ## time every method, and decompression, at full size, into doc/recorded
	MEASURED=$(CURDIR)/doc/recorded $(BEYOND) benchmark --full doc/recorded

record: $(VENV)/.built ## measure the model's grid, the published scale and a run of full size, into doc/recorded (an hour or more)
	N_IMAGES=10 N_REGIONS=20 MEASURED=$(CURDIR)/doc/recorded/published_scale $(BEYOND) measure
	$(BEYOND) record doc/recorded
	$(VENV)/bin/python -c "from beyond_the_masker.experiments.workers import record_full_run; record_full_run('doc/recorded')"

check-model: $(VENV)/.built ## compare the model of memory with repeated measurements
	$(BEYOND) check-model

serve: ## show the built site at http://localhost:8000
	$(PYTHON) -m http.server --bind 127.0.0.1 --directory $(HTML) $(PORT)

linkcheck: check-options $(VENV)/.built ## follow every link of the site (needs a network)
	$(VENV)/bin/python -m sphinx -c . -b linkcheck -D plot_gallery=0 doc doc/_build/linkcheck

lint: $(VENV)/.tested ## check style and spelling
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/codespell
	$(VENV)/bin/sphinx-lint --ignore doc/auto_examples --ignore doc/_build \
		--ignore doc/_report doc README.md CONTRIBUTING.md CHANGELOG.md
	$(VENV)/bin/check-jsonschema --builtin-schema vendor.citation-file-format CITATION.cff
	$(VENV)/bin/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml

clean: ## remove what was built, measured and prepared, and the environment
	rm -rf doc/_build doc/_report doc/auto_examples doc/measured masker_cache tests/node_modules $(VENV)
	rm -f mprofile_*.dat whole_experiment_phases.csv

# Before anything is installed: this needs only the standard library.
check-options:
	@$(PYTHON) -m beyond_the_masker options > /dev/null

# A stamp is written when the installation is complete.
$(VENV)/.built: requirements.txt examples/requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@

$(VENV)/.tested: requirements-test.txt $(VENV)/.built
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -r requirements-test.txt
	@touch $@

$(AXE): tests/package.json tests/package-lock.json
	npm ci --prefix tests --ignore-scripts --no-audit --no-fund --silent
	@touch $@
