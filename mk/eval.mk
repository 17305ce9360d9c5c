# The metrics at length: the original's own figures, variants of parts that must be told apart, and mangled files.
.PHONY: test-ordering
ORDERING_PARTS ?= 500
TEST_PROGRAMS += $(if $(HAVE_OCCT),$(B)/tests/ordering)
$(eval $(call executable,$(B)/tests/ordering,$(O)/tests/golden/chamfer/ordering.o,occt))

# The original's recorded figures and the golden files: all of them (the default suite takes every sixth).
.PHONY: test-metrics
test-metrics: all
	@if [ -d '$(SHARED)/golden' ]; then $(PYTHON) tests/golden/chamfer/check.py $(B)/bin '$(SHARED)/golden' all; else echo 'SKIP: SHARED=DIR with the golden files is not here'; fi

# ORDERING_PARTS made-up parts, each against moved, scaled, cut, boxed and noisy variants of itself (7 minutes on 2 cores)
test-ordering: all $(if $(HAVE_OCCT),$(B)/tests/ordering)
	@$(B)/bin/synth --count $(ORDERING_PARTS) --seed 7 --out $(B)/ordering --db none -q > /dev/null
	$(B)/tests/ordering $(B)/ordering/steps

-include $(O)/tests/golden/chamfer/ordering.d

# Damaged files through the scoring tools, OpenCASCADE and all: every one accounted for, no process left (tests/fuzz/fuzz_occt.c).
# FUZZ_FILES damaged files, FUZZ_PAIRS of them through chamfer; FUZZ_SEED makes others; FUZZ_CORPUS adds real files.
.PHONY: fuzz-occt
FUZZ_FILES ?= 10000
FUZZ_PAIRS ?= 1000
FUZZ_SEED ?= 1
FUZZ_CORPUS ?=
TEST_PROGRAMS += $(if $(HAVE_OCCT),$(B)/tests/fuzz-occt)
$(eval $(call executable,$(B)/tests/fuzz-occt,$(O)/tests/fuzz/fuzz_occt.o,))

fuzz-occt: all $(B)/tests/fuzz-occt
	$(B)/tests/fuzz-occt $(B)/bin $(B)/fuzz/occt $(FUZZ_FILES) $(FUZZ_PAIRS) $(FUZZ_SEED) tests/fuzz/corpus-occt datasets/sample/steps $(FUZZ_CORPUS)

-include $(O)/tests/fuzz/fuzz_occt.d
