# `make train` and `make test` need Python >= 3.10 and pip, nothing else: whatever is missing goes into .venv first,
# in the versions of constraints.txt, and again whenever setup.cfg or constraints.txt has changed.

PYTHON = python3

# make train ENV=Hopper-v5 STEPS=100000 SEED=1 ARGS='--save-freq 50000'
ENV = HalfCheetah-v5
SEED = 0
# Environment steps; empty: what sb3_trpo/shipped/hyperparams/trpo.yml says for the task (1M for MuJoCo's).
STEPS =
# Small networks run fastest on one CPU thread.
DEVICE = cpu
THREADS = 1
LOGS = logs
# Processes that share the tests; 0 runs them in pytest's own, as a debugger wants.
WORKERS = 2
# Any further option of `sb3-trpo train` or of pytest.
ARGS =

BIN = .venv/bin
VERSION = $(shell sed -n 's/^__version__ = "\(.*\)"/\1/p' sb3_trpo/__init__.py)
PIP_INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-input -c constraints.txt

.PHONY: help train test test-slow test-gpu test-contrib test-versions lint format audit dist docs release-ready release bench-speed campaign soak kill-campaign report clean
.DEFAULT_GOAL := help

help:
	@echo 'make train [ENV=HalfCheetah-v5] [STEPS=1000000] [SEED=0] [ARGS=...]   train, evaluate, draw the learning curve'
	@echo 'make test [WORKERS=2] [ARGS=...]                                      run the tests'
	@echo 'make test-slow                                                        run the long tests'
	@echo 'make test-gpu                                                         run the tests on a GPU'
	@echo 'make test-contrib                                                     run the tests of sb3-contrib on this TRPO'
	@echo 'make test-versions                                                    run the tests on Python 3.10, 3.12 and 3.13, where they are installed'
	@echo 'make lint                                                             ruff, codespell and mypy'
	@echo 'make format                                                           let ruff format and fix the sources'
	@echo 'make audit                                                            look up known vulnerabilities of all that constraints.txt pins'
	@echo 'make dist                                                             build wheel and source distribution, twice, and compare'
	@echo 'make docs                                                             build the pages of docs/ into build/docs'
	@echo 'make release                                                          check, build and tag a release; nothing is uploaded'
	@echo 'make bench-speed [ARGS=...]                                           measure speed against the peers, some hours'
	@echo 'make campaign [ARGS=...]                                              train for the table of results: 150 runs of 1M steps, many hours'
	@echo 'make soak [ARGS=...]                                                  train for 10M steps, and see what grows'
	@echo 'make kill-campaign [ARGS=...]                                         kill one training at random moments, and see what is lost'
	@echo 'make report                                                           make benchmarks/RESULTS.md from the raw files'
	@echo 'make clean                                                            remove .venv and the caches'

# Without STEPS the evaluations keep RL Zoo's interval; with it there are 20 of them.
train: .venv/train.stamp
	@$(BIN)/sb3-trpo train --env $(ENV) --seed $(SEED) $(if $(STEPS),--n-timesteps $(STEPS) --eval-freq $$(( $(STEPS) / 20 ))) \
		--n-eval-envs 5 --device $(DEVICE) --num-threads $(THREADS) --log-folder $(LOGS) \
		--tensorboard-log $(LOGS)/tensorboard --verbose 0 --progress $(ARGS)

# A file's tests run in one process, in their order, so that what they share is made once.
test: .venv/dev.stamp
	@$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder $(ARGS)

test-slow: .venv/slow.stamp
	@$(BIN)/python -m pytest -m slow $(ARGS)

# Skipped, each of them, where torch finds no GPU.
test-gpu: .venv/dev.stamp
	@$(BIN)/python -m pytest -m gpu $(ARGS)

test-contrib: .venv/dev.stamp
	@$(BIN)/python benchmarks/contrib_suite.py $(ARGS)

test-versions: .venv/release.stamp
	@$(BIN)/nox $(ARGS)

lint: .venv/dev.stamp
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/codespell
	@$(BIN)/mypy

format: .venv/dev.stamp
	@$(BIN)/ruff check --fix
	@$(BIN)/ruff format

# Every pin whose marker holds for this Python. Without --strict a package that the service doesn't know, or an index that
# isn't PyPI and knows no vulnerabilities, would count as a success.
audit: .venv/release.stamp
	@$(BIN)/pip-audit --strict --disable-pip --no-deps --requirement constraints.txt $(ARGS)

# Of what is committed, not of what lies about; pip's own build environment would have the newest setuptools.
dist: .venv/release.stamp
	@rm -rf dist build/first build/second && mkdir -p build/first build/second
	@set -e; for copy in first second; do git archive HEAD | tar -x -m -C build/$$copy; \
		SOURCE_DATE_EPOCH=$$(git log -1 --format=%ct) $(BIN)/python -m build --quiet --no-isolation build/$$copy; done
	@diff -r build/first/dist build/second/dist && mv build/first/dist dist
	@cd dist && sha256sum *

# The page that trains needs no display.
docs: .venv/docs.stamp
	@$(BIN)/python -m sphinx -q -W --keep-going -b html docs build/docs $(ARGS)
	@echo 'build/docs/index.html'

# What needs no tools comes first, so that a refusal comes at once.
release-ready:
	@test -z "$$(git status --porcelain)" || { echo 'There are changes that are not committed.'; exit 1; }
	@! grep -q '^REPOSITORY = ""' setup.py || { echo 'setup.py: set REPOSITORY to the address of the repository.'; exit 1; }
	@grep -q "^## $(VERSION) (20" CHANGELOG.md || { echo 'CHANGELOG.md: give $(VERSION) its date.'; exit 1; }
	@grep -q "^version: $(VERSION)$$" CITATION.cff || { echo 'CITATION.cff: set the version to $(VERSION).'; exit 1; }
	@! git rev-parse -q --verify refs/tags/v$(VERSION) > /dev/null || { echo 'v$(VERSION) is tagged already.'; exit 1; }

# Tags the commit that it has checked. Pushing the tag and uploading dist/ are left to a person.
release: release-ready .venv/release.stamp .venv/slow.stamp .venv/docs.stamp
	@$(MAKE) lint test test-slow test-contrib test-versions audit docs dist
	@$(BIN)/python -m twine check --strict dist/*
	@git tag -a v$(VERSION) -m 'sb3_trpo $(VERSION)'
	@echo 'Tagged v$(VERSION). To publish: git push origin v$(VERSION), then twine upload dist/*'

# Without other load: what is measured already is kept (ARGS=--replace measures anew).
bench-speed: .venv/bench.stamp
	@$(BIN)/python benchmarks/speed.py $(ARGS)

# Goes on where it was stopped.
campaign: .venv/train.stamp
	@$(BIN)/python benchmarks/learning.py --algos sb3_trpo --seeds 0-9 $(ARGS)
	@$(BIN)/python benchmarks/learning.py --algos sb3_contrib ppo policy_gradient --seeds 0-4 $(ARGS)

soak: .venv/dev.stamp
	@$(BIN)/python benchmarks/soak.py $(ARGS)

kill-campaign: .venv/dev.stamp
	@$(BIN)/python benchmarks/kill_campaign.py $(ARGS)

report: .venv/train.stamp
	@$(BIN)/python benchmarks/report.py

clean:
	rm -rf .venv .nox build dist *.egg-info .coverage htmlcov .mypy_cache .ruff_cache .pytest_cache .hypothesis

# A stamp is written when its installation is complete: after an interruption, `make` goes on where it was.
.venv/train.stamp: setup.cfg constraints.txt | .venv/venv.stamp
	@echo 'Installing sb3-trpo, PyTorch, MuJoCo and RL Zoo into .venv (minutes, the first time) ...'
	@$(PIP_INSTALL) -e '.[zoo,mujoco]'
	@touch $@

.venv/dev.stamp: .venv/train.stamp
	@echo 'Installing the test and lint tools into .venv ...'
	@$(PIP_INSTALL) -e '.[dev]'
	@touch $@

.venv/slow.stamp: .venv/dev.stamp
	@echo 'Installing the Atari games, OpenCV and Ray into .venv ...'
	@$(PIP_INSTALL) -e '.[atari,ray]'
	@touch $@

.venv/release.stamp: .venv/dev.stamp
	@echo 'Installing the tools that check a release into .venv ...'
	@$(PIP_INSTALL) -e '.[release]'
	@touch $@

.venv/docs.stamp: .venv/train.stamp
	@echo 'Installing Sphinx into .venv ...'
	@$(PIP_INSTALL) -e '.[docs]'
	@touch $@

.venv/bench.stamp: .venv/dev.stamp
	@echo 'Installing the peers of the speed benchmarks into .venv ...'
	@$(PIP_INSTALL) -e '.[bench]'
	@touch $@

# Debian's python3 has no ensurepip unless python3-venv is installed; its pip, run by the new Python, then installs pip.
.venv/venv.stamp:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "sb3-trpo needs Python >= 3.10, but $(PYTHON) is %d.%d; name another with PYTHON=..." % sys.version_info[:2])'
	@$(PYTHON) -m venv --clear .venv > /dev/null 2>&1 || { $(PYTHON) -m venv --clear --without-pip .venv \
		&& PYTHONPATH=$$($(PYTHON) -c 'import pathlib, pip; print(pathlib.Path(pip.__file__).parents[1])') \
		$(BIN)/python -m pip install --quiet --disable-pip-version-check --ignore-installed pip; }
	@touch $@
