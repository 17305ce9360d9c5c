# How fast the decoding engine is.  The GPU's figures: make bench-generate on a machine that has one.
.PHONY: bench-generate
$(B)/tests/bench-decode: $(O)/tests/bench/bench_decode.o $(call archives,torch)
	$(call say,LINK,$@)
	@mkdir -p $(@D)
	$(Q)$(CXX) $(LDFLAGS) -o $@ $^ $(call libs,torch)
-include $(O)/tests/bench/bench_decode.d

# What drafts get right, without a model: on records that are made for it, in build/draft.
.PHONY: bench-draft
DRAFT_TOKENIZER ?= $(firstword $(wildcard $(SHARED)/tokenizers/qwen2.5) models/demo)
$(B)/tests/bench-draft: $(O)/tests/bench/bench_draft.o $(O)/model/draft.o $(B)/lib/libcore.a
	$(call say,LINK,$@)
	@mkdir -p $(@D)
	$(Q)$(CC) $(LDFLAGS) -o $@ $^ $(BASE_LIBS)
-include $(O)/tests/bench/bench_draft.d

.PHONY: draft-records
draft-records: all
	@ENCODER='$(ENCODER)' GOLDEN='$(SHARED)/golden' scripts/draft-records.sh $(B) $(B)/draft $(DRAFT_TOKENIZER)
bench-draft: all $(B)/tests/bench-draft
	@test -e $(B)/draft/synth.json || $(MAKE) --no-print-directory draft-records
	@for k in 7 15 31; do echo "at most $$k tokens guessed"; \
	  $(B)/tests/bench-draft $(DRAFT_TOKENIZER) -k $$k $$(ls $(B)/draft/golden*.json 2> /dev/null) $(B)/draft/synth.json; \
	  $(B)/tests/bench-draft models/demo -k $$k $(B)/draft/compact.json --experience $(B)/draft/compact.json; done

# Beside Transformers, with adapter, grammar and draft rows: a table.  The records are made here if they are not there (DRAFT_RECORDS= a folder of them).
DRAFT_RECORDS ?= $(B)/draft
bench-generate: $(B)/tests/bench-decode $(KERNELS)
	@test -e $(DRAFT_RECORDS)/synth.json || $(MAKE) --no-print-directory draft-records
	@PYTHON=$(PYTHON) scripts/bench-generate.sh $(B) $(DRAFT_RECORDS) $(DRAFT_TOKENIZER)
