# Benchmarks.  ORIGINAL= a checkout of the original, to time it beside ours; STEPS= files to work on.
.PHONY: bench bench-prep
STEPS ?= datasets/sample/steps
bench: bench-prep
bench-prep: all
	@ORIGINAL='$(ORIGINAL)' B=$(B) PYTHON=$(PYTHON) scripts/bench-prep.sh $(STEPS)
