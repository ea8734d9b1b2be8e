# SPDX-License-Identifier: Apache-2.0
# Everything that people and CI type. `make help` lists it; each target sets up what it needs on a fresh machine.
SHELL := /bin/bash
VENV ?= .venv
JOBS ?= $(shell nproc)
export VENV JOBS
PY := $(VENV)/bin/python
INSTALLED := build/venv/bin/python

.DEFAULT_GOAL := help
.PHONY: help setup demo examples test test-hdfs rdma-test bench transports chaos lint format tidy fuzz wheel install develop clean distclean

help:  ## this list
	@grep -hE '^[a-z%-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | column -t -s $$'\t' -l 2 2>/dev/null || grep -hE '^[a-z%-]+:.*##' $(MAKEFILE_LIST)

setup:  ## distribution packages (as root) and .venv; does only what is missing
	@tools/setup.sh apt
	@tools/setup.sh venv requirements/dev.txt

demo: install  ## handwritten digits: Spark SQL, training on two executors, predictions; output in build/demo
	@echo "== demo: a Keras model trains on a two-executor Spark cluster on this machine (about two minutes)"
	@$(INSTALLED) examples/digits/train.py --output build/demo

test: setup  ## what CI runs: lint, native tests under sanitizers, wheel, consumer, pytest
	@tools/ci.sh

test-%: setup  ## one stage of it: lint asan tsan wheel consumer pytest; or release, long, rdma, yarn, browser, which are not part of it
	@tools/ci.sh $*

test-hdfs: setup  ## HDFS on real Hadoop, which Maven brings, and on a secure one with a Kerberos KDC
	@tools/setup.sh apt requirements/apt-hdfs.txt
	@tools/ci.sh hdfs

rdma-test: install  ## the transport and TensorFlow over real verbs: boots a guest with Soft-RoCE (many minutes); not part of `make test`
	@tools/setup.sh apt requirements/apt-rdma.txt
	@tools/ci.sh rdma

bench: $(addprefix bench-,feed collective tensors strategy coordinator restart hdfs scaling)  ## every bench (hours)

bench-%: install  ## one bench, e.g. bench-feed: prints its table, writes build/bench/<name>.json
	@cmake --preset bench -DPython_EXECUTABLE=$(CURDIR)/$(PY) >/dev/null
	@cmake --build --preset bench --target arcflow_bench_ops control_load --parallel $(JOBS)
	@$(INSTALLED) bench/$*/run.py --output build/bench/$*.json

examples: develop  ## every example on small data, both ways of reading (minutes; `make test` runs the short ones)
	@$(PY) -m pytest -q python/tests/test_examples.py python/tests/test_model_parallel.py python/tests/tf/test_placing.py

transports: develop  ## every test of how tensors travel between TensorFlow processes (minutes; `make test` runs most of them)
	@$(PY) -m pytest -q python/tests/test_transport.py python/tests/tf/test_transport.py python/tests/tf/test_tensors.py

chaos: install  ## the fault table: every victim, fault and stage (as root; about an hour); writes build/bench/chaos.json
	@$(INSTALLED) bench/chaos/run.py --output build/bench/chaos.json

lint: setup  ## ruff, mypy, codespell, clang-format
	@tools/lint.sh

format: setup  ## mends what ruff and clang-format can mend
	@tools/lint.sh fix

tidy: setup  ## clang-tidy over the whole core (minutes)
	cmake --preset tidy >/dev/null
	cmake --build --preset tidy --parallel $(JOBS)

FUZZ_SECONDS ?= 30
FUZZ_RUNS ?=
fuzz: setup  ## every fuzz target for FUZZ_SECONDS each, with new inputs under build/fuzz/corpus
	cmake --preset fuzz >/dev/null
	cmake --build --preset fuzz --parallel $(JOBS)
	@tools/fuzz.sh $(FUZZ_SECONDS) $(FUZZ_RUNS)

wheel: setup  ## the wheel, into build/wheel
	@tools/build_wheel.sh

install: wheel
	@tools/install_wheel.sh

develop: setup  ## native parts into python/arcflow, and a link in .venv: for work on the Python side
	@tools/develop.sh

clean:  ## removes everything that was built, keeps .venv
	rm -rf build python/arcflow/bin python/arcflow/_core*.so python/arcflow/tfops/*.so
	rm -f $(VENV)/lib/python3*/site-packages/arcflow-develop.pth

distclean: clean  ## removes .venv too
	rm -rf $(VENV)
