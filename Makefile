# make serve   answers on http://127.0.0.1:8000 with the model in the box
# make test    everything that must hold; the aim is 15 minutes on 2 cores
# make help    every other target
# Each makes its own .venv first; all that is needed before is python3 (3.11 or later), pip, make and a C compiler.

VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
PAIRS = $(shell [ "$$(getconf _NPROCESSORS_ONLN)" -ge 2 ] && echo "-n 2 --dist loadfile")
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: help setup setup-dev setup-measured serve test lint types unit properties fuzz test-slow format bench-control bench-azure bench-life bench-guide bench-overload \
	bench-engine bench-products bench-weights bench-engine-serving bench-stack bench-gpu bench-adapters bench-start bench-recovery soak bench-twin bench-step bench-attention schedule-identity fidelity bench-silicon bench-vidur bench-learned model model-score clean

help:  ## this list
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/\1|\2/p' $(MAKEFILE_LIST) | sort | awk -F'|' '{printf "%-21s %s\n", $$1, $$2}'

$(VENV)/.serve: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) --editable .
	$(BIN)/python -c 'import torch; from penstock.engine.ops.kernels import kernels_for; kernels_for(torch.device("cpu"))'
	touch $@

$(VENV)/.dev: $(VENV)/.serve
	$(PIP) --editable '.[dev]'
	touch $@

setup: $(VENV)/.serve  ## .venv with what serving needs
setup-dev: $(VENV)/.dev  ## and with what tests need

serve: setup  ## the server, with the model in the box; FLAGS="--server.port 9000" for more
	$(BIN)/penstock serve $(FLAGS)

test: lint types unit  ## everything that must hold

lint: setup-dev  ## ruff, and which room may import which
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: setup-dev  ## mypy
	$(BIN)/mypy

unit: setup-dev  ## the tests but the slow ones, two files at a time where there are two cores; FLAGS="-n 0": one after the other
	-$(BIN)/python -c "from penstock.engine.ops.build import load_library; load_library()"  # once, before tests wait for it
	$(BIN)/pytest -m "not slow and not gpu" $(PAIRS) $(FLAGS)

properties: setup-dev  ## tests of properties with examples that no run had before; FLAGS="-k NAME": some of them
	$(BIN)/pytest -m "hypothesis and not slow and not gpu" --hypothesis-profile=new-examples $(PAIRS) $(FLAGS)

test-slow: setup-dev  ## the slow tests: minutes to hours; figures go to benchmarks/RESULTS.md
	$(BIN)/pytest -m slow

format: setup-dev  ## ruff, repairing
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

fuzz: setup-dev  ## 100,000 fuzzed requests against a running server: no 5xx, step loop alive, memory flat; 7 to 70 minutes
	$(BIN)/python tests/serve/fuzz_server.py $(FLAGS)

bench-control: setup  ## planning time per step by batch size, and its share of a real step
	$(BIN)/python benchmarks/control_overhead.py $(FLAGS)

bench-azure: setup  ## the Azure trace at 40, 80 and 150 % of this machine's capacity
	$(BIN)/python benchmarks/azure_replay.py $(FLAGS)

bench-life: setup-dev  ## start to first token, memory at rest, the pause when the worker is killed
	$(BIN)/python benchmarks/server_life.py

bench-step: setup-dev  ## where a step's time goes, beside its limits: products, attention, the rest, sampling, host
	$(BIN)/python benchmarks/step_anatomy.py $(FLAGS)

bench-attention: setup  ## the CPU's attention kernel beside torch's, and where a shared prefix pays
	$(BIN)/python benchmarks/attention.py $(FLAGS)

bench-guide: setup-dev  ## grammars: compilation, masks, and what a batch pays for guided sequences
	$(BIN)/python benchmarks/guide.py

bench-stack: setup-dev  ## throughput over HTTP against the bare engine at batch 64, and the front end's CPU per token
	$(BIN)/python benchmarks/stack.py $(FLAGS)

bench-engine: setup-dev  ## this engine beside others on this CPU, in turn; FLAGS="--sizes S,M,L --peers openvino"; peers in build/peers
	$(BIN)/python benchmarks/engine.py $(FLAGS)

bench-engine-serving: setup-dev  ## S over HTTP at 2, 8 and 90 %-of-capacity requests/s, beside other servers; a quarter of an hour
	$(BIN)/python benchmarks/engine_serving.py $(FLAGS)

bench-products: setup-dev  ## matrix products of packed weights beside torch; FLAGS="--models S M L --rows 1 64"
	$(BIN)/python benchmarks/products.py $(FLAGS)

bench-weights: setup-dev  ## what narrow weights cost in accuracy: perplexity and logits of the model in the box
	$(BIN)/python benchmarks/weight_error.py $(FLAGS)

bench-gpu: setup-dev  ## on a CUDA device: errors, limits, Llama 3 8B, a peer; minutes, FLAGS="--parts peaks,serve" for some
	PATH=$(abspath $(BIN)):$$PATH benchmarks/gpu_all.sh $(FLAGS)

bench-adapters: setup  ## a decode step with LoRA adapters: none, unused, one, four, sixteen in a batch
	$(BIN)/python benchmarks/adapters.py $(FLAGS)

bench-start: bench-life  ## the same as bench-life: phases of the start come first

bench-recovery: setup-dev  ## 200 SIGKILLs of the worker under load: errors, wrong tokens, time to recover; 4 minutes
	$(BIN)/python benchmarks/kill_worker.py $(FLAGS)

soak: setup-dev  ## an hour of load with cancellations: memory, descriptors, stuck requests; FLAGS="--minutes 12"
	$(BIN)/python benchmarks/soak.py $(FLAGS)

setup-measured: setup-dev  ## operator databases of GPUs, 200 MB
	$(PIP) --editable '.[measured]'

bench-overload: setup-dev  ## two tenants, one of which floods: throughput, the other's TTFT, the times that are told; 9 minutes; FLAGS=...
	$(BIN)/python benchmarks/overload.py $(FLAGS)

bench-twin: setup-dev  ## compiles the hot modules, then: simulated requests per second: one replica, sixteen, a million requests
	$(BIN)/python -m penstock.compiled.build
	$(BIN)/python benchmarks/twin_speed.py $(FLAGS)

schedule-identity: setup  ## Contract 3 on 2,000 requests of the Azure trace, every policy: minutes of real engine
	$(BIN)/python benchmarks/schedule_identity.py $(FLAGS)

fidelity: setup  ## calibrate, predict, then run the engine: the error of every cell; 20 minutes
	$(BIN)/python benchmarks/fidelity.py $(FLAGS)

.venv-peer/.aiconfigurator:
	$(PYTHON) -m venv .venv-peer
	.venv-peer/bin/python -m pip install --quiet --disable-pip-version-check 'aiconfigurator==0.12.0'
	touch $@

bench-silicon: setup-measured .venv-peer/.aiconfigurator  ## the twin and AIConfigurator against real GPUs; half an hour
	$(BIN)/python benchmarks/llmservingsim.py
	$(BIN)/python benchmarks/silicon.py --sample 1800 --fit-rows 28 --peer-python .venv-peer/bin/python --peer-rows 200

bench-vidur: setup-dev  ## Vidur's Sarathi schedule on Vidur's own tables
	$(BIN)/python benchmarks/vidur_schedule.py $(FLAGS)

bench-learned: setup-measured  ## the learned price: random split beside shapes held out
	$(BIN)/python benchmarks/learned_price.py $(FLAGS)

model: setup-dev  ## train the model in the box from nothing; the same command goes on where it stopped
	OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m recipes.millrace.train --out build/millrace

model-score: setup-dev  ## what the shipped weights can do, on held-out questions
	$(BIN)/python -m recipes.millrace.score src/penstock/catalog/models/millrace

clean:  ## removes what make and runs have left
	rm -rf $(VENV) .venv-peer build dist runs .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
