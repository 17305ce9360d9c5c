# libFuzzer under ASan and UBSan.  make fuzz [FUZZ_SECONDS=60]; new inputs that reach new
# code go to build/fuzz/*-new, crashing ones to build/fuzz/.
.PHONY: fuzz
FUZZ_SECONDS ?= 60
FUZZ_CC ?= $(firstword $(foreach c,clang clang-14 clang-15 clang-16,$(shell command -v $(c))))
FUZZ_SRC := tests/fuzz/fuzz_step.c lib/step.c lib/step_round.c lib/step_restructure.c lib/step_compact.c lib/step_restore.c lib/step_reference.c lib/err.c lib/mem.c

$(B)/fuzz/fuzz_step: $(FUZZ_SRC) $(wildcard lib/step*.h)
	$(call say,FUZZ,$@)
	@mkdir -p $(@D)
	$(Q)$(FUZZ_CC) $(CPPFLAGS) -std=c11 -g -O1 -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=undefined -o $@ $(FUZZ_SRC) -lpcre2-8 -lm -lpthread

FUZZ_GRAMMAR_SRC := tests/fuzz/fuzz_grammar.c lib/grammar.c lib/schema.c lib/tokenizer.c lib/json.c lib/files.c $(wordlist 2,99,$(FUZZ_SRC))
$(B)/fuzz/fuzz_grammar: $(FUZZ_GRAMMAR_SRC) lib/grammar.h lib/schema.h lib/schema.tsv tests/grammar/walks.h
	$(call say,FUZZ,$@)
	@mkdir -p $(@D)
	$(Q)$(FUZZ_CC) $(CPPFLAGS) -std=c11 -g -O1 -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=undefined -o $@ $(FUZZ_GRAMMAR_SRC) \
	  $(BASE_LIBS) -lpthread

fuzz: $(if $(FUZZ_CC),$(B)/fuzz/fuzz_step $(B)/fuzz/fuzz_grammar)
	@$(if $(FUZZ_CC),:,echo 'make fuzz needs clang and its libFuzzer: apt-get install clang libclang-rt-14-dev'; exit 1)
	@mkdir -p $(B)/fuzz/step-new $(B)/fuzz/grammar-new
	$(B)/fuzz/fuzz_step -max_total_time=$(FUZZ_SECONDS) -max_len=4096 -timeout=5 -dict=tests/fuzz/step.dict \
	  -artifact_prefix=$(B)/fuzz/ $(B)/fuzz/step-new tests/fuzz/corpus-step
	$(B)/fuzz/fuzz_grammar -max_total_time=$(FUZZ_SECONDS) -max_len=1024 -timeout=20 -artifact_prefix=$(B)/fuzz/ $(B)/fuzz/grammar-new
