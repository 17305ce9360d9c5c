# The tokenizer against Hugging Face's `tokenizers`, at length: made-up texts, every code point, and
# the files in TOKENIZER_TEXTS.  Needs a Python with that package (REFPYTHON=) and tokenizers to
# load: the committed small ones, and those in TOKENIZERS (folders) that exist.
REFPYTHON ?= $(PYTHON)
SHARED ?= ../shared
TOKENIZERS ?= $(SHARED)/tokenizers/qwen2.5 $(SHARED)/tokenizers/llama3.2
TOKENIZER_TEXTS ?= $(wildcard $(SHARED)/captions/*.csv datasets/sample/pairs.json datasets/sample/steps/*.step)

.PHONY: test-tokenizer
$(B)/tests/tokenizer-dump: $(O)/tests/golden/tokenizer/dump.o $(B)/lib/libcore.a
	$(call say,LINK,$@)
	@mkdir -p $(@D)
	$(Q)$(CC) $(LDFLAGS) -o $@ $^ $(BASE_LIBS)

test-tokenizer: $(B)/tests/tokenizer-dump
	@if ! $(REFPYTHON) -c 'import tokenizers' 2>/dev/null; then \
	  echo 'SKIP: $(REFPYTHON) has no package tokenizers (REFPYTHON= names another Python)'; exit 0; fi; \
	for t in tests/golden/tokenizer/small-qwen.json tests/golden/tokenizer/small-llama.json $(wildcard $(TOKENIZERS)); do \
	  echo "$$t"; $(REFPYTHON) tests/golden/tokenizer/compare.py $< $$t $(TOKENIZER_TEXTS) || exit 1; done

-include $(O)/tests/golden/tokenizer/dump.d
