# The strict modes against OpenCASCADE on real files: counts, units, colours, area and volume must stay as they are.
.PHONY: test-geometry
TEST_PROGRAMS += $(if $(HAVE_OCCT),$(B)/tests/geometry)
$(eval $(call executable,$(B)/tests/geometry,$(O)/tests/golden/prep/geometry.o,occt))

test-geometry: all $(if $(HAVE_OCCT),$(B)/tests/geometry)
	@$(if $(HAVE_OCCT),BIN='$(CURDIR)/$(B)/bin' SHARED='$(SHARED)' GEOMETRY=all tests/e2e/t12-geometry.sh,echo 'SKIP: no OpenCASCADE')

-include $(O)/tests/golden/prep/geometry.d

# The sentence encoder beside sentence-transformers, in speed and result: make bench-embed REFPYTHON=a Python that has it.
$(eval $(call executable,$(B)/tests/embed,$(O)/tests/golden/encoder/embed.o,torch))
-include $(O)/tests/golden/encoder/embed.d
