# Benchmarks.  ORIGINAL= a checkout of the original, to time it beside ours; STEPS= files to work on.
.PHONY: bench bench-step bench-prep bench-growth
STEPS ?= datasets/sample/steps
bench: bench-step bench-prep
# Time of step-restructure by size, with a plot in docs/images/growth.svg.
bench-growth: all
	@B=$(B) scripts/bench-growth.sh
bench-prep: all
	@ORIGINAL='$(ORIGINAL)' B=$(B) PYTHON=$(PYTHON) scripts/bench-prep.sh $(STEPS)

# The Part 21 reader alone, one core.
$(B)/tests/bench-step: $(O)/tests/bench/bench_step.o $(B)/lib/libcore.a
	$(call say,LINK,$@)
	@mkdir -p $(@D)
	$(Q)$(CC) $(LDFLAGS) -o $@ $^ $(BASE_LIBS)
bench-step: $(B)/tests/bench-step
	@$< $(STEPS)
-include $(O)/tests/bench/bench_step.d

# Training on a GPU, beside Unsloth where it is installed (TOKENIZER= a folder with Qwen2.5's tokenizer).
.PHONY: bench-train
bench-train: $(B)/bin/train-bench $(KERNELS)
	@B=$(B) scripts/bench-train.sh

# The metrics, beside the original's figures.
.PHONY: bench-eval
bench-eval: all
	@B=$(B) SHARED='$(SHARED)' scripts/bench-eval.sh
