# How fast the decoding engine is.  The GPU's figures: make bench-generate on a machine that has one.
.PHONY: bench-generate
$(B)/tests/bench-decode: $(O)/tests/bench/bench_decode.o $(call archives,torch)
	$(call say,LINK,$@)
	@mkdir -p $(@D)
	$(Q)$(CXX) $(LDFLAGS) -o $@ $^ $(call libs,torch)
-include $(O)/tests/bench/bench_decode.d

# PAIRS= pair records and TOKENIZER= a tokenizer's folder: what drafts bring, too.
bench-generate: $(B)/tests/bench-decode $(KERNELS)
	@PYTHON=$(PYTHON) scripts/bench-generate.sh $(B) $(PAIRS) $(TOKENIZER)
