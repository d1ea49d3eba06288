# make demo      install, then serve the app at http://127.0.0.1:7860
# make test      install, then run the whole test suite
# make lint      install, then check style and formatting
# make smollm2   install, then serve a small language model with llama.cpp at http://127.0.0.1:8080/v1 (or PORT=...)

PYTHON ?= python3
PORT   ?= 8080
VENV   := .venv
BIN    := $(VENV)/bin

export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_ROOT_USER_ACTION := ignore
export PIP_NO_INPUT := 1

# A stamp is newer than pyproject.toml exactly when the environment has what that file asks for.
INSTALLED     := $(VENV)/.installed
INSTALLED_DEV := $(VENV)/.installed-dev

.PHONY: demo test lint smollm2
.DELETE_ON_ERROR:

demo: $(INSTALLED)
	@$(BIN)/python app.py --host 127.0.0.1 --port 7860

# Models this small gain little from a second thread; a second worker is worth more.
test: $(INSTALLED_DEV)
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

lint: $(INSTALLED_DEV)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

smollm2:
	@PYTHON='$(PYTHON)' sh pacore/smollm2-server.sh '$(PORT)'

$(INSTALLED): pyproject.toml | $(BIN)/python
	@echo "Installing Triptych into $(VENV); the first time downloads several GB, most of it PyTorch."
	@$(BIN)/python -m pip install --editable .
	@touch $@

$(INSTALLED_DEV): pyproject.toml | $(BIN)/python
	@echo "Installing Triptych and its test tools into $(VENV); the first time downloads several GB, most of it PyTorch."
	@$(BIN)/python -m pip install --editable '.[dev]'
	@touch $(INSTALLED) $@

# Some distributions ship Python and pip without ensurepip; there the outer pip furnishes the environment.
$(BIN)/python:
	@command -v $(PYTHON) >/dev/null || { echo "Triptych needs Python 3.11 or newer; '$(PYTHON)' was not found. Name one: make PYTHON=python3.11 $(MAKECMDGOALS)"; exit 1; }
	@$(PYTHON) -c 'import sys; v = sys.version_info; v >= (3, 11) or sys.exit("Triptych needs Python 3.11 or newer; $(PYTHON) is %d.%d. Name a newer one: make PYTHON=python3.11 $(MAKECMDGOALS)" % v[:2])'
	@if $(PYTHON) -c 'import ensurepip' 2>/dev/null; then \
		$(PYTHON) -m venv $(VENV); \
	else \
		$(PYTHON) -m venv --without-pip $(VENV) && $(PYTHON) -m pip --python $(BIN)/python install --quiet pip; \
	fi
