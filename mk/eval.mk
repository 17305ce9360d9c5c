# The metrics at length: the original's own figures, variants of parts that must be told apart, and mangled files.
.PHONY: test-ordering
ORDERING_PARTS ?= 500
TEST_PROGRAMS += $(if $(HAVE_OCCT),$(B)/tests/ordering)
$(eval $(call executable,$(B)/tests/ordering,$(O)/tests/golden/chamfer/ordering.o,occt))

# ORDERING_PARTS made-up parts, each against moved, scaled, cut, boxed and noisy variants of itself (7 minutes on 2 cores)
test-ordering: all $(if $(HAVE_OCCT),$(B)/tests/ordering)
	@$(B)/bin/synth --count $(ORDERING_PARTS) --seed 7 --out $(B)/ordering --db none -q > /dev/null
	$(B)/tests/ordering $(B)/ordering/steps

-include $(O)/tests/golden/chamfer/ordering.d
