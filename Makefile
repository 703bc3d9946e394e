# make demo, make test: see README.md. `make help` lists the rest.

# The environment, made by the first target that needs it. PYTHON=... names the interpreter to make it
# with; INSTALLED=... an interpreter that has the requirements already, and then none is made.
VENV = .venv
PYTHON =
INSTALLED =

# Test processes at once; a file's tests stay together.
WORKERS = 2

# Twice quiet: errors alone.
INSTALL = $(VENV)/bin/python -m pip install -qq --disable-pip-version-check
RUN_PYTHON = $(or $(INSTALLED),$(VENV)/bin/python)

# A stamp's name holds the checksum of what was installed: changed requirements are installed again,
# and unchanged ones never.
checksum = $(firstword $(shell cat $(1) | cksum))
READY = $(if $(INSTALLED),,$(VENV)/.program-$(call checksum,requirements.txt))
PREFLIGHT_READY = $(if $(INSTALLED),,$(VENV)/.preflight-$(call checksum,requirements.txt \
	requirements-preflight.txt))
DEV_READY = $(if $(INSTALLED),,$(VENV)/.dev-$(call checksum,requirements.txt \
	requirements-layouts.txt requirements-sweep.txt requirements-serve.txt requirements-wandb.txt \
	requirements-dev.txt))

# The first interpreter of the right version that can make an environment; empty if there is none.
CHOSEN = $(shell for python in $(or $(PYTHON),python3.11 python3.10 python3); do \
	$$python -c 'import sys, ensurepip; sys.exit(sys.version_info[:2] not in [(3, 10), (3, 11)])' \
	>/dev/null 2>&1 && echo $$python && break; done)
NEEDED = Python 3.10 or 3.11 with venv is needed, since TensorFlow 2.15 has no wheels for others: \
	install one, or name it as in `make demo PYTHON=/usr/bin/python3.11`
REFUSAL = $(if $(PYTHON),PYTHON=$(PYTHON) will not do. )$(NEEDED)

# The demo; with QUICK=1 the same in some two minutes, with FULL=1 with more seeds and sizes.
DEMO = demo$(if $(QUICK),_quick)$(if $(FULL),_full)
DEMO_FLAGS = $(if $(QUICK),--quick) $(if $(FULL),$(FULL_FLAGS),--checked 300)
FULL_FLAGS = --seeds 5 --teachers 3 --sizes 2x64 4x128 --texts 600 1200 --steps 800 1200 300 500 \
	--evaluations 3 --set_clip train_steps=400 --set_clip steps_per_checkpoint=400 \
	--set_student train_steps=600 --set_student steps_per_checkpoint=600 \
	--rows gpt gptc gptc_random gptc_shuffled gptc_text gptc_input gptc_input_random

.DELETE_ON_ERROR:
.PHONY: help demo test lint venv preflight-env clean clean-venv

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /make \1	/p' Makefile | expand -t 18

demo: $(READY)  ## CLIP, its student and language models with and without it; QUICK=1, FULL=1
	@$(RUN_PYTHON) benchmarks/clip_experiment.py --data data/$(DEMO) --out runs/$(DEMO) $(DEMO_FLAGS)

test: $(DEV_READY)  ## run the tests, fast ones first; PYTEST_FLAGS="-k words" for some
	$(RUN_PYTHON) -m pytest -n $(WORKERS) --dist loadgroup --no-loadscope-reorder $(PYTEST_FLAGS)

lint: $(DEV_READY)  ## check the style with ruff, and types with mypy
	$(RUN_PYTHON) -m ruff check .
	$(RUN_PYTHON) -m mypy

venv: $(DEV_READY)  ## make the environment and do no more

preflight-env: $(PREFLIGHT_READY)  ## add the TPU compiler, for main.py --preflight

clean:  ## delete what the demo made
	rm -rf $(foreach name,demo demo_quick demo_full,data/$(name) runs/$(name))

clean-venv:  ## delete the environment
	rm -rf $(VENV)

$(VENV)/.program-%:
	$(if $(CHOSEN),,$(error $(REFUSAL)))
	@echo "installing what the program needs into $(VENV); this takes a minute or two"
	@test -x $(VENV)/bin/python || $(CHOSEN) -m venv $(VENV)
	@$(INSTALL) -r requirements.txt
	@touch $@

$(VENV)/.dev-%: $(READY)
	@echo "installing what the tests need"
	@$(INSTALL) -r requirements-dev.txt
	@touch $@

$(VENV)/.preflight-%: $(READY)
	@echo "installing the TPU compiler, some 140 MB"
	@$(INSTALL) -r requirements-preflight.txt
	@touch $@
