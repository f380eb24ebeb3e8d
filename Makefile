# make demo | docs | notebook | test | test-newest | test-slow | mutants | bench | gpu | picture | study | study-real | lint | install
# Each target but gpu and test-newest first creates .venv, with the versions of constraints.txt.

PYTHON ?= python3
BIN := .venv/bin
# Threads that spin while they wait are slow on shared cores.
export OMP_WAIT_POLICY ?= PASSIVE
# Modules are compiled once, not by each of the many processes that tests start.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: install demo docs notebook test test-newest test-slow mutants bench gpu picture study study-real lint format clean

install: .venv/installed

# --no-compile: compiling modules that are never imported would double the time of the installation.
.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --no-compile --constraint constraints.txt --editable '.[dev]'
	touch $@

# Downloads a file of a real teacher's weights once. A target with "|| true" works without the file.
REAL_WEIGHTS = weights=$$($(BIN)/python tests/real_teacher.py)

demo: install
	$(REAL_WEIGHTS) || true; $(BIN)/scalr demo --out demo $${weights:+--weights "$$weights"}

# Builds the documentation site in build/site: half a minute. The variable silences a warning of mkdocs-material about a
# version of MkDocs that is not used here.
docs: install
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# Makes the notebook from examples/first_steps.py. Run it after each change of that file.
notebook: install
	$(BIN)/python docs/site/example_notebook.py

# --dist loadfile: each file of tests runs in one process, so that its fixtures are made once.
test: install
	$(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder

# Tests the parts of scalr that work with numpy 2, in an environment without nuscenes-devkit. numpy, zarr and pyarrow are the
# newest releases that PYTHON allows; other packages are as in constraints.txt. The second line tests predictions on simulated
# worlds with the devkit's files on the path: scalr reads the list of scenes in them and imports nothing.
NEWEST := .venv-newest
NEWEST_PYTEST := $(NEWEST)/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder
READER := $(patsubst %,tests/extract/store/test_%.py,reader gathered arrays format inspect writer draft)
STUDENT := $(patsubst %,tests/distill/%,waffleiron test_checkpoint.py test_voxels.py) \
  $(patsubst %,tests/distill/minkunet/test_%.py,network kernel_maps sparse_convolution)
test-newest: $(NEWEST)/installed
	$(NEWEST_PYTEST) tests/test_numpy2.py tests/extract/test_targets.py $(READER) $(STUDENT)
	PYTHONPATH=$(CURDIR)/$(NEWEST)/devkit $(NEWEST_PYTEST) tests/evaluate/test_scoring.py

$(NEWEST)/installed: pyproject.toml requirements-numpy2.txt constraints.txt
	$(PYTHON) -m venv $(NEWEST)
	grep -vE '^(numpy|zarr|pyarrow)==' constraints.txt > $(NEWEST)/constraints.txt
	$(NEWEST)/bin/pip install --quiet --no-compile --constraint $(NEWEST)/constraints.txt \
	  --requirement requirements-numpy2.txt pytest pytest-xdist hypothesis psutil
	$(NEWEST)/bin/pip install --quiet --no-compile --no-deps --editable .
	$(NEWEST)/bin/pip install --quiet --no-compile --no-deps --constraint constraints.txt --target $(NEWEST)/devkit nuscenes-devkit
	touch $@

# Installs SLURM for the tests of docs/batch.md. If that is impossible, these tests are skipped, with a message.
test-slow: install
	test -x /usr/sbin/slurmd || { apt-get -qq update && apt-get -qq install --yes slurm-wlm munge; } > /dev/null || true
	$(BIN)/pytest -m slow

# Checks whether the tests notice changes of the source: one to two hours on two cores.
SEED ?= 0
mutants: install
	$(BIN)/python tests/mutants.py --number 200 --seed $(SEED)

# Prints the measurements of docs/. Real frames are read from DATA, if it exists.
DATA ?= ../shared/data
# A checkout of valeoai/WaffleIron to compare the student with; may be empty.
PEER ?=
bench: install
	$(BIN)/python tests/benchmarks/startup.py
	$(BIN)/python tests/benchmarks/store_layout.py
	$(BIN)/python tests/benchmarks/store_index.py
	$(BIN)/python tests/benchmarks/extract_speed.py
	$(BIN)/python tests/benchmarks/teachers.py
	$(BIN)/python tests/benchmarks/nuscenes_start.py
	$(BIN)/python tests/benchmarks/occlusion.py
	$(BIN)/python tests/benchmarks/mixed_run.py
	$(BIN)/python tests/benchmarks/no_teacher.py
	$(BIN)/python tests/benchmarks/student.py $(if $(wildcard $(DATA)),--data $(DATA)) $(if $(PEER),--peer $(PEER))
	$(BIN)/python tests/benchmarks/minkunet.py $(if $(wildcard $(DATA)),--data $(DATA))
	test ! -d $(DATA) || { $(REAL_WEIGHTS) && $(BIN)/python tests/benchmarks/store_size.py $(DATA) --weights "$$weights"; }
	test ! -d $(DATA) || $(BIN)/python tests/benchmarks/store_size.py $(DATA)
	test ! -d $(DATA) || { $(REAL_WEIGHTS) && $(BIN)/python tests/benchmarks/encodings.py $(DATA) "$$weights"; }
	test ! -d $(DATA)/nuscenes || $(BIN)/python tests/benchmarks/nuscenes_size.py $(DATA)/nuscenes

# Writes every measurement that needs a GPU to gpu.json, in under nine minutes; `python tests/benchmarks/gpu_figures.py gpu.json`
# then writes the tables of docs/performance.md. scalr need not be installed in GPU_PYTHON.
GPU_PYTHON ?= $(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON))
gpu:
	$(GPU_PYTHON) tests/benchmarks/gpu.py $(if $(PEER),--peer $(PEER))

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Draws the picture of README.md: a real street if DATA has PandaSet and SemanticKITTI (15 minutes), else a simulated one (30 minutes).
picture: install
	$(REAL_WEIGHTS) && $(BIN)/python tests/benchmarks/readme_picture.py study "$$weights" docs/features.png $(if $(wildcard $(DATA)/pandaset),--data $(DATA))

# The simulated comparisons of docs/studies.md: losses, teachers, lidars and widths, a good hour on two cores; losses, and methods
# on two backbones, with a real teacher, forty minutes each; augmentations, ten minutes.
study: install
	$(BIN)/python tests/benchmarks/distillation_study.py study
	$(BIN)/python tests/benchmarks/augmentation_study.py study/augmentation
	$(REAL_WEIGHTS) && $(BIN)/python tests/benchmarks/real_study.py study/simulated "$$weights"
	$(REAL_WEIGHTS) && $(BIN)/python tests/benchmarks/methods_study.py study/methods "$$weights"

# Losses with a real teacher on real streets, probed on real labels: forty minutes.
study-real: install
	$(REAL_WEIGHTS) && $(BIN)/python tests/benchmarks/real_study.py study/real "$$weights" --data $(DATA)

clean:
	rm -rf .venv $(NEWEST) build demo *.egg-info
