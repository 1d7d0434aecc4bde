# The one door: `make` alone says what there is.
PYTHON ?= python3
VENV ?= .venv
DEMO ?= .demo
SNAPSHOTS ?= $(DEMO)/snapshots
BIN = $(VENV)/bin

.PHONY: help install demo serve test swaps train clean
help:
	@echo 'make demo      draw the demo collection, index it, serve it on 127.0.0.1:8000'
	@echo 'make test      lint, types and tests'
	@echo 'make install   the set-up step of both: a virtual environment in $(VENV)'
	@echo 'make serve     serve an existing folder of snapshots: make serve SNAPSHOTS=folder'
	@echo 'make swaps     20 reindexes through the admin route under load (minutes)'
	@echo 'make train     train the demo model anew into $(DEMO)/model (about half an hour)'
	@echo 'make clean     remove what these made'

install: $(VENV)/installed
$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --constraint constraints.txt --editable '.[cpu]'
	@touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(BIN)/python -m pip install --constraint constraints.txt --editable '.[dev]'
	@touch $@

# Files, so that a second `make demo` draws and encodes nothing.
$(DEMO)/pictures/metadata.jsonl: | $(VENV)/installed
	$(BIN)/python -m indexer demo $(DEMO)/pictures
$(DEMO)/snapshots/CURRENT: $(DEMO)/pictures/metadata.jsonl indexer/models/demo/open_clip_model.safetensors
	$(BIN)/python -m indexer build $(DEMO)/pictures --labels $< --snapshots $(DEMO)/snapshots --model demo

demo: install $(DEMO)/snapshots/CURRENT
	$(BIN)/python -m service --snapshots $(DEMO)/snapshots

serve: install
	$(BIN)/python -m service --snapshots $(SNAPSHOTS)

test: $(VENV)/installed-dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/pytest

swaps: $(VENV)/installed-dev $(DEMO)/snapshots/CURRENT
	$(BIN)/python -m tests.swaps $(DEMO)/pictures

train: install
	$(BIN)/python -m indexer train --out $(DEMO)/model

clean:
	rm -rf $(VENV) $(DEMO)
