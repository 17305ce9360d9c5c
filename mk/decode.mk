# How fast the decoding engine is.  The GPU's figures: make bench-generate on a machine that has one.
.PHONY: bench-generate
$(B)/tests/bench-decode: $(O)/tests/bench/bench_decode.o $(call archives,torch)
	$(call say,LINK,$@)
	@mkdir -p $(@D)
	$(Q)$(CXX) $(LDFLAGS) -o $@ $^ $(call libs,torch)
-include $(O)/tests/bench/bench_decode.d
