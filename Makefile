# make demo, make test: see README.md. `make help` lists the rest.

# The environment, made by the first target that needs it. PYTHON=... names the interpreter to make it
# with; INSTALLED=... an interpreter that has the requirements already, and then none is made.
VENV = .venv
PYTHON =
INSTALLED =

# Twice quiet: errors alone.
INSTALL = $(VENV)/bin/python -m pip install -qq --disable-pip-version-check
RUN_PYTHON = $(or $(INSTALLED),$(VENV)/bin/python)

# A stamp's name holds the checksum of what was installed: changed requirements are installed again,
# and unchanged ones never.
checksum = $(firstword $(shell cat $(1) | cksum))
READY = $(if $(INSTALLED),,$(VENV)/.program-$(call checksum,requirements.txt))
DEV_READY = $(if $(INSTALLED),,$(VENV)/.dev-$(call checksum,requirements.txt requirements-dev.txt))

# The first interpreter of the right version that can make an environment; empty if there is none.
CHOSEN = $(shell for python in $(or $(PYTHON),python3.11 python3.10 python3); do \
	$$python -c 'import sys, ensurepip; sys.exit(sys.version_info[:2] not in [(3, 10), (3, 11)])' \
	>/dev/null 2>&1 && echo $$python && break; done)
NEEDED = Python 3.10 or 3.11 with venv is needed, since TensorFlow 2.15 has no wheels for others: \
	install one, or name it as in `make demo PYTHON=/usr/bin/python3.11`
REFUSAL = $(if $(PYTHON),PYTHON=$(PYTHON) will not do. )$(NEEDED)

# The demo, or with QUICK=1 the same in less than two minutes.
DEMO_DATA = data/demo
DEMO_RUN = runs/demo$(if $(QUICK),_quick)
DEMO_FLAGS = --model demo --model_path $(DEMO_RUN) $(if $(QUICK),$(QUICK_FLAGS))
QUICK_FLAGS = --set train_steps=200 --set n_layer=2 --set n_ctx=64 --set steps_per_checkpoint=200
DEMO_PROMPT = The "for" statement

.DELETE_ON_ERROR:
.PHONY: help demo test lint venv clean clean-venv

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /make \1	/p' Makefile | expand -t 18

demo: $(DEMO_DATA)/demo_manifest.json  ## train a small GPT on text and sample it; QUICK=1 for less
	$(RUN_PYTHON) main.py $(DEMO_FLAGS)
	@echo
	@$(RUN_PYTHON) -c 'import json; \
	    last = json.loads(open("$(DEMO_RUN)/metrics.jsonl").readlines()[-1]); \
	    print("Step {step}: validation loss {eval_loss:.3f} nats per token, {bits_per_byte:.3f}" \
	          " bits per byte. Two samples:\n".format(**last), flush=True)'
	@$(RUN_PYTHON) main.py $(DEMO_FLAGS) --quiet --predict --prompt '$(DEMO_PROMPT)' \
	    --num_samples 2 --max_new_tokens $(if $(QUICK),40,150) --temperature 0.7

# Python's documentation of itself, a tokenizer trained on it, and the text as TFRecords.
$(DEMO_DATA)/python_docs.jsonl: | $(READY)
	$(RUN_PYTHON) datasets/python_docs.py --out $@

$(DEMO_DATA)/demo_tokenizer.json: $(DEMO_DATA)/python_docs.jsonl
	$(RUN_PYTHON) datasets/train_tokenizer.py $< --vocab_size 1024 --out $@ --overwrite

$(DEMO_DATA)/demo_manifest.json: $(DEMO_DATA)/demo_tokenizer.json
	$(RUN_PYTHON) datasets/create_tfrecords.py --input_dir $(DEMO_DATA)/python_docs.jsonl --name demo \
	    --output_dir $(DEMO_DATA) --encoder $< --val_fraction 0.1 --val_tail --overwrite

test: $(DEV_READY)  ## run the tests, fast ones first; PYTEST_FLAGS="-k words" for some
	$(RUN_PYTHON) -m pytest $(PYTEST_FLAGS)

lint: $(DEV_READY)  ## check the style with ruff
	$(RUN_PYTHON) -m ruff check .

venv: $(DEV_READY)  ## make the environment and do no more

clean:  ## delete what the demo made
	rm -rf $(DEMO_DATA) runs/demo runs/demo_quick

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
