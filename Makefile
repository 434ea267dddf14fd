# Each target installs what it needs: a virtual environment in .venv, the locked packages in it.

VENV := .venv
PY := $(VENV)/bin/python
PYTHON ?=
SWEEP_FLAGS ?=
LEDGER_FLAGS ?=
PYTEST_FLAGS ?=
PYTHONS_FLAGS ?=
WORKERS ?= 2

# The project's own plugins alone: of packages with others, pytest would rewrite every module at every start.
export PYTEST_DISABLE_PLUGIN_AUTOLOAD := 1
# Workers, and the processes that tests start, read what the first compiled of the sources.
unexport PYTHONDONTWRITEBYTECODE
PYTEST = $(PY) -m pytest -p xdist -n $(WORKERS) --dist=worksteal
QUICK := not costly and not slow and not long

CANDIDATES := $(or $(PYTHON),python3 python3.13 python3.12 python3.11)
SUITABLE := import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))
IDENTITY := import sys; print(sys.version, sys.base_prefix)

.DEFAULT_GOAL := help
.PHONY: help sweep figures check test costly slow long ledger pages docs pythons lint types lock clean gpu wheels reproduce FORCE
# Two installations must not write to one environment at the same time (make -j).
.NOTPARALLEL:

help: ## list the targets and variables
	@sed -n 's/^\([a-z]*\):[^#]*## \(.*\)/\1 \2/p' Makefile | while read -r name text; do printf '  make %-7s %s\n' "$$name" "$$text"; done
	@echo 'Variables: PYTHON=python3.12 (any >= 3.11)  SWEEP_FLAGS="--seeds=8"  LEDGER_FLAGS="--only=T2"  WORKERS=2 (pytest processes; 0: none)  PYTEST_FLAGS="-k name"  PYTHONS_FLAGS=--sample'

sweep: $(VENV)/core ## run the default experiment; results and figure go to runs/sweep_spurious
	$(PY) -m sims.sweep_spurious --out runs/sweep_spurious $(SWEEP_FLAGS)

DIAGRAMS := robustness same_class_weight whitening caption_policy align_predict sharing

figures: $(VENV)/core ## make the figures of docs/ again (about 10 minutes)
	for name in sweep_spurious dynamics sweep_captions; do \
		$(PY) -m sims.$$name --out runs/$$name && cp runs/$$name/$$name.png docs/ || exit 1; \
	done
	for name in $(DIAGRAMS); do \
		$(PY) -m sims.phase_diagram --diagram=$$name --out runs/phase_$$name && \
		cp runs/phase_$$name/phase_diagram_$$name.png docs/ || exit 1; \
	done

check: lint types ## lint, types, and the quick tests of what has changed since the last commit
	@tests=$$(.ci/touched) || exit 1; echo "tests of what has changed: $${tests:-none}"; \
	[ -z "$$tests" ] || $(PYTEST) -m '$(QUICK)' $$tests $(PYTEST_FLAGS)

test: lint types ## lint, types, and the quick tests
	$(PYTEST) -m '$(QUICK)' $(PYTEST_FLAGS)

costly: $(VENV)/test ## the tests that take seconds each; CI runs these too
	$(PYTEST) -m 'costly and not slow and not long' $(PYTEST_FLAGS)

slow: $(VENV)/docs ## checks of what goes beyond the paper, and of whole runs, stopped and gone on
	$(PYTEST) -m 'slow and not long' $(PYTEST_FLAGS)

long: $(VENV)/test ## laws over thousands of runs, more sizes, devices and faults of what the others check once (half an hour; not in CI)
	$(PYTEST) -m long $(PYTEST_FLAGS)

ledger: $(VENV)/test ## judge every statement: prediction, measurement, and wrong theories that must be rejected
	$(PY) -m proofs_checks $(LEDGER_FLAGS)

pythons: ## the quick tests, a sample of the ledger and the first command on each Python of 3.11, 3.12, 3.13 that is installed
	WORKERS=$(WORKERS) .ci/pythons $(PYTHONS_FLAGS)

pages: $(VENV)/test ## judge every statement and write docs/statements again
	mkdir -p runs && $(PY) -m proofs_checks --json=runs/ledger.json
	$(PY) -m proofs_checks.pages --json=runs/ledger.json --out=docs/statements

docs: $(VENV)/docs ## build the site of docs/ into build/site, with its notebooks; a warning is an error (3 minutes)
	$(PY) -m sphinx -E -W --keep-going -b html docs build/site
	@echo 'The site: build/site/index.html'

lint: $(VENV)/test ## ruff: rules and format
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

types: $(VENV)/test ## mypy on the library, the engine and what experiments share
	$(PY) -m mypy

# The folders that --data=idx:DIR of sims.digits and --train=DIR of sims.features take. Without one, the report has what was
# measured before, if anything. FEATURES stands for the paper's setting 1: heads on frozen features. PAPER_FLAGS go to the
# digits; of its four seeds, --seeds=2 takes half the time.
MNIST ?=
FEATURES ?=
PAPER_FLAGS ?=

reproduce: $(VENV)/test ## statements, the paper's digits (MNIST=DIR; a day on 2 cores), heads (FEATURES=DIR), matched accuracies; runs/reproduction.html
	[ -z '$(FEATURES)' ] || $(PY) -m sims.features --train=$(FEATURES) --prompts=means --width=8,32,128 --epochs=2,5,15 \
		--arms=clip,clip_labels,supervised,sup_con,sim_clr --out=runs/paper_heads
	[ -z '$(MNIST)' ] || $(PY) -m sims.digits --preset=paper --data=idx:$(MNIST) --out=runs/paper $(PAPER_FLAGS)
	$(PY) -m sims.lines --points=paper:3c --at=20 --transform=plain --out=runs/paper_lines
	mkdir -p runs && $(PY) -m proofs_checks --json=runs/ledger.json
	$(PY) -m sims.report runs/ledger.json runs/paper_lines $$(ls -d runs/paper runs/paper_heads 2>/dev/null) --out=runs/reproduction.html

GPU_FLAGS ?=

gpu: ## what a GPU does with all of this, in 8 minutes, by the system's Python (3.12, with JAX and PyTorch); into runs/gpu
	$(or $(PYTHON),python3) -m sims.bench.gpu $(GPU_FLAGS)

# Of Linux with Python 3.12, beside JAX for CUDA, PyTorch, flax, optax, orbax, SciPy, Matplotlib, xarray, timm and pytest.
LACKING := array-record beartype donfig ftfy google-crc32c grain msgspec numcodecs open_clip_torch portpicker tensorboardX wcwidth zarr
GLIBC := 28 27 24 17 12 5

wheels: $(VENV)/whole ## collect the wheels that such a machine lacks (at most 64 MiB) into build/wheels, for `make gpu`
	rm -rf build/wheels && mkdir -p build/wheels
	sed "/< '3.12'/d; s/ ;.*//" requirements.lock >build/pins
	$(PY) -m pip download --quiet --no-deps --only-binary=:all: --python-version 3.12 --implementation cp \
		$(GLIBC:%=--platform manylinux_2_%_x86_64) --platform manylinux2014_x86_64 --platform manylinux1_x86_64 \
		-c build/pins -d build/wheels $(LACKING)
	@bytes=$$(cat build/wheels/*.whl | wc -c); echo "build/wheels: $$((bytes / 1048576)) MiB"; \
	if [ $$bytes -gt 67108864 ]; then echo 'more than 64 MiB: too much to carry along' >&2; exit 1; fi

# `whole` is absent while anything is being installed, so an environment cut short is made again, as is one of another PYTHON.
$(VENV)/whole: FORCE
	@set -e; \
	if [ -e $@ ] && here=$$($(PY) -c '$(IDENTITY)' 2>&1); then \
		[ -n '$(PYTHON)' ] || exit 0; \
		[ "$$here" != "$$('$(PYTHON)' -c '$(IDENTITY)' 2>&1)" ] || exit 0; \
	fi; \
	for python in $(CANDIDATES) ''; do \
		if "$$python" -c '$(SUITABLE)' >/dev/null 2>&1; then break; fi; \
	done; \
	if [ -z "$$python" ]; then \
		echo 'Found no Python >= 3.11 with the venv module (tried: $(CANDIDATES)); name one: make PYTHON=/path/to/python' >&2; \
		exit 1; \
	fi; \
	echo "Making $(VENV) with $$("$$python" --version)"; \
	rm -rf $(VENV); \
	"$$python" -m venv $(VENV); \
	touch $@

# Not compiled: of all modules a third is ever imported, and Python compiles those then. Pip would take 100 s for all.
define install
@rm -f $(VENV)/whole $(VENV)/core $(VENV)/test $(VENV)/docs
$(PY) -m pip install --no-compile -c requirements.lock -e '.$(1)'
@touch $(VENV)/whole && touch $(VENV)/core $@
endef

$(VENV)/core: $(VENV)/whole setup.cfg requirements.lock
	$(call install,[sims])

$(VENV)/test: $(VENV)/whole setup.cfg requirements.lock
	$(call install,[test])

# The notebooks need what the tests need.
SITE := [docs,test]

$(VENV)/docs: $(VENV)/whole setup.cfg requirements.lock
	$(call install,$(SITE))
	@touch $(VENV)/test

lock: $(VENV)/whole ## choose the newest versions that setup.cfg allows, for every Python >= 3.11, into requirements.lock
	rm -rf build/lock && $(PY) -m venv build/lock
	build/lock/bin/python -m pip install uv
	build/lock/bin/uv pip compile --universal --python-version 3.11 --all-extras --upgrade \
		--no-header --no-annotate --output-file build/lock/pins setup.cfg
	{ echo '# Made by `make lock`: pinned versions for every Python >= 3.11. Use: pip install -c requirements.lock -e .[sims]'; \
		cat build/lock/pins; } >build/lock/new
	mv build/lock/new requirements.lock

clean: ## remove .venv and all caches; results in runs/ stay
	rm -rf $(VENV) build dist *.egg-info .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
