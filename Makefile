# `make train` and `make test` need Python >= 3.10 and pip, nothing else: whatever is missing goes into .venv first,
# in the versions of constraints.txt, and again whenever setup.cfg or constraints.txt has changed.

PYTHON = python3

# make train ENV=Hopper-v5 STEPS=100000 SEED=1 ARGS='--save-freq 50000'
ENV = HalfCheetah-v5
SEED = 0
# Environment steps; empty: what sb3_trpo/hyperparams/trpo.yml says for the task (1M for MuJoCo's).
STEPS =
# Small networks run fastest on one CPU thread.
DEVICE = cpu
THREADS = 1
LOGS = logs
# Any further option of `sb3-trpo train` or of pytest.
ARGS =

BIN = .venv/bin
PIP_INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-input -c constraints.txt

.PHONY: help train test test-slow lint format bench-speed report clean
.DEFAULT_GOAL := help

help:
	@echo 'make train [ENV=HalfCheetah-v5] [STEPS=1000000] [SEED=0] [ARGS=...]   train, evaluate, draw the learning curve'
	@echo 'make test [ARGS=...]                                                  run the tests'
	@echo 'make test-slow                                                        run the long tests'
	@echo 'make lint                                                             ruff and mypy'
	@echo 'make format                                                           let ruff format and fix the sources'
	@echo 'make bench-speed [ARGS=...]                                           measure speed against the peers, half an hour'
	@echo 'make report                                                           make benchmarks/RESULTS.md from the raw files'
	@echo 'make clean                                                            remove .venv and the caches'

# Without STEPS the evaluations keep RL Zoo's interval; with it there are 20 of them.
train: .venv/train.stamp
	@$(BIN)/sb3-trpo train --env $(ENV) --seed $(SEED) $(if $(STEPS),--n-timesteps $(STEPS) --eval-freq $$(( $(STEPS) / 20 ))) \
		--n-eval-envs 5 --device $(DEVICE) --num-threads $(THREADS) --log-folder $(LOGS) \
		--tensorboard-log $(LOGS)/tensorboard --verbose 0 --progress $(ARGS)

test: .venv/dev.stamp
	@$(BIN)/python -m pytest $(ARGS)

test-slow: .venv/dev.stamp
	@$(BIN)/python -m pytest -m slow $(ARGS)

lint: .venv/dev.stamp
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy

format: .venv/dev.stamp
	@$(BIN)/ruff check --fix
	@$(BIN)/ruff format

# Without other load: what is measured already is kept (ARGS=--replace measures anew).
bench-speed: .venv/bench.stamp
	@$(BIN)/python benchmarks/speed.py $(ARGS)

report: .venv/train.stamp
	@$(BIN)/python benchmarks/report.py

clean:
	rm -rf .venv build dist *.egg-info .coverage htmlcov .mypy_cache .ruff_cache .pytest_cache .hypothesis

# A stamp is written when its installation is complete: after an interruption, `make` goes on where it was.
.venv/train.stamp: setup.cfg constraints.txt | .venv/venv.stamp
	@echo 'Installing sb3-trpo, PyTorch, MuJoCo and RL Zoo into .venv (minutes, the first time) ...'
	@$(PIP_INSTALL) -e '.[zoo,mujoco]'
	@touch $@

.venv/dev.stamp: .venv/train.stamp
	@echo 'Installing the test and lint tools into .venv ...'
	@$(PIP_INSTALL) -e '.[dev]'
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
