# make demo   the three stages on the toy world, a table and a figure, in about five minutes on 2 cores
# make test   the default test suite;   make test-slow   every test
# make bench  every piece's cost beside the published recipe's, into bench/RESULTS.md (an hour); make bench-ROW  one row
# make toy-table  the accuracy table of the README: the demo on seeds 0, 1, 2
# Each installs into .venv first, once.

PYTHON ?= python3
SEED ?= 0
RUN := .venv/bin/python
TOY := config/toy

.PHONY: demo test test-slow bench toy-table clean

.venv/.installed: requirements.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or newer is needed; say make PYTHON=...")'
	$(PYTHON) -m venv .venv
	.venv/bin/pip install -q -r requirements.txt
	touch $@

demo: .venv/.installed
	$(RUN) -m dataset.toy --root data/toy --seed $(SEED)
	$(RUN) run_so.py --config $(TOY)/so_config.yml seed=$(SEED)
	$(RUN) run.py --config $(TOY)/ld_config.yml seed=$(SEED)
	$(RUN) run.py --config $(TOY)/be_config.yml seed=$(SEED)
	$(RUN) eval.py --config $(TOY)/be_config.yml snapshot/toy/source_only.pth snapshot/toy/ld.pth snapshot/toy/be.pth \
		--json miou_result/toy/table.json --figure miou_result/toy/figure.png
	@echo "figure: miou_result/toy/figure.png; checkpoints: snapshot/toy/"

test: .venv/.installed
	$(RUN) -m pytest -q -m "not slow" tests

test-slow: .venv/.installed
	$(RUN) -m pytest -q tests

bench: .venv/.installed
	$(RUN) -m bench --markdown bench/RESULTS.md

bench-%: .venv/.installed
	$(RUN) -m bench $*

toy-table: .venv/.installed
	$(RUN) -m bench.toy_accuracy --seeds 0 1 2

clean:
	rm -rf data/toy data/bench snapshot/toy log/toy plabel/toy miou_result/toy
