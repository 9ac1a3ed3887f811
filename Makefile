# make demo   the three stages on the toy world, a table and a figure, in about ten minutes on 2 cores
# make test   the default test suite;   make test-slow   the slower tests, an hour;   make lint   style, docstrings, types
# make docs   write docs/keys.md again from the declared keys, and draw img/method.svg
# make bench  every piece's cost beside the published recipe's, into bench/RESULTS.md (an hour); make bench-ROW  one row
# make toy-table  the tables of docs/results.md: the demo on seeds 0, 1, 2;   make methods-table  that of docs/methods.md
# make label-free  the tables of docs/label_free.md (two hours);   DATA=folder  with pairs of one's own
# Each installs into .venv first, once.

PYTHON ?= python3
SEED ?= 0
SLOW ?= slow
RUN := .venv/bin/python
TOY := config/toy

.PHONY: demo test test-slow lint docs bench toy-table methods-table label-free clean

.venv/.installed: requirements.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or newer is needed; say make PYTHON=...")'
	$(PYTHON) -m venv .venv
	.venv/bin/pip install -q -r requirements.txt
	touch $@

.venv/.installed-dev: requirements-dev.txt .venv/.installed
	.venv/bin/pip install -q -r requirements-dev.txt
	touch $@

demo: .venv/.installed
	$(RUN) -m dataset.toy --root data/toy --seed $(SEED)
	$(RUN) run_so.py --config $(TOY)/so_config.yml seed=$(SEED)
	$(RUN) run.py --config $(TOY)/ld_config.yml seed=$(SEED)
	$(RUN) run.py --config $(TOY)/be_config.yml seed=$(SEED)
	$(RUN) eval.py --config $(TOY)/be_config.yml snapshot/toy/source_only.pth snapshot/toy/ld.pth snapshot/toy/be.pth \
		snapshot/toy/be_chosen.pth --json miou_result/toy/table.json --figure miou_result/toy/figure.png
	$(RUN) -m trainer.report toy --config $(TOY)/be_config.yml
	@echo "figure: miou_result/toy/figure.png; page: miou_result/toy/report.html; checkpoints: snapshot/toy/"

test: .venv/.installed-dev
	OMP_NUM_THREADS=1 $(RUN) -m pytest -q -n auto --dist loadfile --no-loadscope-reorder -m "not slow" tests

test-slow: .venv/.installed-dev
	OMP_NUM_THREADS=1 $(RUN) -m pytest -q -n auto --dist worksteal -m "$(SLOW)" tests

lint: .venv/.installed-dev
	$(RUN) -m ruff check
	$(RUN) -m mypy

docs: .venv/.installed
	$(RUN) -m utils.key_reference > docs/keys.md.new && mv docs/keys.md.new docs/keys.md
	$(RUN) -m img.method

bench: .venv/.installed
	$(RUN) -m bench --markdown bench/RESULTS.md

bench-%: .venv/.installed
	$(RUN) -m bench $*

toy-table: .venv/.installed
	$(RUN) -m bench.methods source_only bn_adapt ld be bn_momentum=0.1 --trials 1 --classes

methods-table: .venv/.installed
	$(RUN) -m bench.methods

label-free: .venv/.installed
	$(RUN) -m bench.label_free $(if $(DATA),--data $(DATA))

clean:
	rm -rf data/toy data/bench data/label_free snapshot/toy log/toy plabel/toy miou_result/toy
