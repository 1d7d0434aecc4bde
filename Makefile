# The one door: `make` alone says what there is.
PYTHON ?= python3
VENV ?= .venv
DEMO ?= .demo
SNAPSHOTS ?= $(DEMO)/snapshots
BIN = $(VENV)/bin

.PHONY: help install demo serve test swaps crash-test trust ray-test indexing-bench scale-bench search-bench serving-bench workers-bench schema-test language-bench recipes-smoke recipes train lock audit sbom clean
help:
	@echo 'make demo      draw the demo collection, index it, serve it on 127.0.0.1:8000'
	@echo 'make test      lint, types and tests'
	@echo 'make install   the set-up step of both: a virtual environment in $(VENV)'
	@echo 'make serve     serve an existing folder of snapshots: make serve SNAPSHOTS=folder'
	@echo 'make swaps     20 reindexes through the admin route under load (minutes)'
	@echo 'make crash-test  300 kills, and every failing call of a build (about half an hour)'
	@echo 'make trust     the reliability programme, with its figures in tests/RELIABILITY.md (a quarter of an hour)'
	@echo 'make ray-test  builds on a Ray cluster of two nodes, one of which dies (minutes)'
	@echo 'make indexing-bench  pictures per second against clip-retrieval (half an hour)'
	@echo 'make scale-bench  memory of a build from 10 thousand to 1 million rows (half an hour)'
	@echo 'make search-bench  the index against hnswlib, usearch, FAISS and autofaiss, a million vectors (an hour)'
	@echo 'make serving-bench  the service against clip-retrieval (half an hour)'
	@echo 'make workers-bench  memory of several service processes (minutes)'
	@echo 'make schema-test    thousands of requests to each route, after the OpenAPI document (an hour)'
	@echo 'make language-bench what the query language finds on the demo collection (a minute)'
	@echo 'make recipes-smoke  every recipe for a minute or two'
	@echo 'make recipes   every recipe, three seeds, side by side (an hour and a half)'
	@echo 'make train     train the demo model anew into $(DEMO)/tuned (about 40 minutes)'
	@echo 'make lock      lock every dependency anew, with hashes (needs uv)'
	@echo 'make audit     look for known vulnerabilities of what is locked'
	@echo 'make sbom      write a bill of materials of the image into $(DEMO)/sbom.json'
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
	$(BIN)/pytest --numprocesses 2 --dist loadfile

swaps: $(VENV)/installed-dev $(DEMO)/snapshots/CURRENT
	$(BIN)/python -m tests.swaps $(DEMO)/pictures

crash-test: $(VENV)/installed-dev
	$(BIN)/python -m tests.crash

# TRUST=full make trust: at the size of a release, hours.
trust: $(VENV)/installed-dev
	$(BIN)/python -m tests.trust

ray-test: $(VENV)/installed-dev
	$(BIN)/python -m pip install --constraint constraints.txt --editable '.[dev,ray]'
	$(BIN)/pytest tests/indexer/test_distribute.py

indexing-bench: $(VENV)/installed-dev
	$(BIN)/python -m tests.bench.indexing $(DEMO)/bench

scale-bench: $(VENV)/installed-dev
	$(BIN)/python -m tests.bench.scale compare $(DEMO)/scale

search-bench: $(VENV)/installed-dev
	$(BIN)/python -m tests.bench.search $(DEMO)/search
	$(BIN)/python -m tests.bench.search $(DEMO)/search --growth
	$(BIN)/python -m tests.bench.search_estimate $(DEMO)/search

serving-bench: $(VENV)/installed-dev
	$(BIN)/python -m tests.bench.serving $(DEMO)/serving

workers-bench: $(VENV)/installed-dev
	$(BIN)/python -m tests.bench.workers $(DEMO)/workers

schema-test: $(VENV)/installed-dev
	SCHEMA_PHASES=examples,coverage,fuzzing,stateful SCHEMA_EXAMPLES=200 $(BIN)/python -m pytest tests/test_schema.py

language-bench: $(VENV)/installed-dev $(DEMO)/snapshots/CURRENT
	$(BIN)/python -m tests.bench.query_language $(DEMO)/snapshots

recipes-smoke: $(VENV)/installed-dev
	$(BIN)/pytest tests/test_recipes_smoke.py

recipes: $(VENV)/installed-dev
	$(BIN)/python -m tests.bench.recipes demo $(DEMO)/recipes

# The demo model: its base, then MCIP and Re-A on instances that are not in the demo collection.
train: $(VENV)/installed-dev $(DEMO)/pictures/metadata.jsonl
	$(BIN)/python -m indexer pretrain --out $(DEMO)/base
	$(BIN)/python -m indexer demo $(DEMO)/train --count 24000 --seed 1 --fold train
	$(BIN)/python -m indexer finetune mcip-re-a --out $(DEMO)/tuned --model local-dir:$(DEMO)/base \
		--data $(DEMO)/train/metadata.jsonl --test $(DEMO)/pictures/metadata.jsonl \
		--label-column instance --class-column kind --templates indexer/models/demo/templates.txt \
		--config indexer/models/demo/tuning.toml --set half=true

# torch and what it brings come from PyTorch's own index, in the versions of constraints.txt: see docker/Dockerfile.
LOCK = uv pip compile pyproject.toml --generate-hashes --no-annotate --constraint constraints.txt \
	--python-version 3.11 --python-platform x86_64-unknown-linux-gnu --custom-compile-command 'make lock' \
	$(foreach name,kindred torch torchvision triton cuda-bindings cuda-pathfinder cuda-toolkit $(NVIDIA),--no-emit-package $(name))
NVIDIA = $(addprefix nvidia-,cublas cuda-cupti cuda-nvrtc cuda-runtime cudnn-cu13 cufft cufile curand cusolver \
	cusparse cusparselt-cu13 nccl-cu13 nvjitlink nvshmem-cu13 nvtx)

lock:
	$(LOCK) --quiet --extra cpu --extra otel --output-file docker/requirements-cpu.lock
	$(LOCK) --quiet --extra dev --output-file docker/requirements-dev.lock

audit: $(VENV)/installed-dev
	$(BIN)/python -m tests.audit

sbom: $(VENV)/installed-dev
	mkdir -p $(DEMO)
	$(BIN)/cyclonedx-py requirements docker/requirements-cpu.lock --output-format JSON --output-file $(DEMO)/sbom.json

clean:
	rm -rf $(VENV) $(DEMO)
