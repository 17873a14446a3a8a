# Two commands matter: `make run` and `make test`. Each sets up what it needs first.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/ready
COURSE := .venv/course
STUDIO := .venv/studio
# Large pages for large arrays: 163,000 page faults a training step become 1,300 (glibc 2.35 on).
export GLIBC_TUNABLES ?= glibc.malloc.hugetlb=1

.DEFAULT_GOAL := help
.PHONY: help run test test-slow lint train study scenes lessons assignments site studio studio-test bench clean

help:  ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## */\t/' | expand -t 13

run: $(READY)  ## the main job: captions to pictures, into out/first-light
	$(BIN)/python -m glide demo

test: $(READY) lint  ## style, and the tests that take minutes in all
	$(BIN)/python -m common.scenes prepare
	JAX_PLATFORMS=cpu $(BIN)/python -m pytest -n auto --dist worksteal -m "not slow"

test-slow: $(READY)  ## the others: lessons, commands and trainings from end to end
	$(BIN)/python -m common.scenes prepare
	JAX_PLATFORMS=cpu $(BIN)/python -m pytest -n auto --dist worksteal -m slow

lint: $(READY)  ## style
	$(BIN)/ruff check .

train: $(READY)  ## GLIDE from scratch (hours on 2 cores; the shipped weights: glide/README.md)
	$(BIN)/python -m glide train --preset small --out runs/glide

study: $(READY)  ## captions and guidance on GLIDE; more parts: glide/README.md
	$(BIN)/python -m glide study

scenes: $(READY)  ## a sheet of the data set, into out/scenes.png
	$(BIN)/python -m common.scenes show --out out/scenes.png

lessons: $(READY)  ## notebooks without solutions and outputs, from lessons/*.py
	$(BIN)/python lessons/build.py

assignments: $(COURSE)  ## students' notebooks and an nbgrader course, into build/assignments
	$(BIN)/python lessons/assignments.py

site: $(COURSE)  ## the lessons, run, with figures and API as web pages, into build/site
	$(BIN)/python docs/render.py
	$(BIN)/python docs/check.py

studio: $(STUDIO)  ## paint, type, mask and see: a page at 127.0.0.1
	$(BIN)/python -m studio

studio-test: $(READY)  ## the studio in a headless chromium, which must be there
	@command -v chromium >/dev/null || command -v chromium-browser >/dev/null || \
	  { echo "studio-test needs a chromium on the PATH: install the package chromium" >&2; exit 2; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c requirements.txt -e ".[studio-test]"
	$(BIN)/python -m common.scenes prepare
	JAX_PLATFORMS=cpu STUDIO_TEST=1 $(BIN)/python -m pytest -rs -s tests/test_studio_browser.py

bench: $(READY)  ## speed beside PyTorch, into lessons/figures/bench.json (installs PyTorch)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c requirements.txt -e ".[bench]"
	$(BIN)/python -m benchmarks.bench

clean:  ## remove what make installed and drew here; data and runs stay
	rm -rf .venv out build *.egg-info

$(READY): requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || \
	  { echo "guidebook needs Python 3.11 to 3.13; name one: make PYTHON=python3.12" >&2; exit 2; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -e .
	@touch $@

$(COURSE): $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c requirements.txt -e ".[course]"
	@touch $@

$(STUDIO): $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c requirements.txt -e ".[studio]"
	@touch $@
