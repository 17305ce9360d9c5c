# --grammar part21 at length: every token of restructured files is permitted, texts of random tokens are valid, speed.
# Needs the sample; takes more tokenizers (TOKENIZERS) and files (GRAMMAR_CORPUS: folders) where they are.
.PHONY: test-grammar test-grammar-models
$(B)/tests/grammar-check: $(O)/tests/grammar/check.o $(B)/lib/libcore.a
	$(call say,LINK,$@)
	@mkdir -p $(@D)
	$(Q)$(CC) $(LDFLAGS) -o $@ $^ $(BASE_LIBS)

test-grammar: $(B)/tests/grammar-check $(B)/bin/step-restructure
	@B=$(B) TOKENIZERS='$(wildcard $(TOKENIZERS) models/demo)' SHARED='$(SHARED)' tests/grammar/run.sh

# The same through generate, with models of random weights (N= captions for each of 45 kinds).
test-grammar-models: all
	@tests/grammar/models.sh $(B) models/demo $(wildcard $(TOKENIZERS))

-include $(O)/tests/grammar/check.d
# The table is part of the program (see lib/schema.c).
$(O)/lib/schema.o: lib/schema.tsv
