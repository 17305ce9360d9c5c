# The pipeline: each target calls a script of the same name, which documents its variables.
.PHONY: data train eval tables status help

PIPELINE = B=$(B) ENCODER='$(ENCODER)'
data: all
	@$(PIPELINE) scripts/data.sh
train: all
	@$(PIPELINE) scripts/train.sh
eval: all
	@$(PIPELINE) scripts/eval.sh

DB ?= runs/runs.db
tables: all
	@$(B)/bin/report --db $(DB)
	@$(B)/bin/report --db $(DB) --format html --out $(dir $(DB))report.html
	@echo; echo 'page: $(dir $(DB))report.html'
status: all
	@$(B)/bin/report --db $(DB) --status

define HELP
The pipeline
  make demo                       everything from nothing, on a small sample, on the CPU
  make data RAW=DIR [NAME=..]     parts and captions -> datasets/work/NAME   (scripts/data.sh lists the variables)
  make data CHUNKS=1-10 CAPTIONS=FILE    the same from chunks of ABC
  make train MODEL=qwen DATA=DIR  fine-tuning -> runs/MODEL                  (configs/: $(basename $(notdir $(wildcard configs/*.conf))))
                                  GPUS=n: as n processes; RESUME=1: only on from a checkpoint; scripts/train.sh lists the rest
  make eval CKPT=DIR DATA=DIR LABEL=TEXT   parts of the test split, their scores, the tables
  make eval PARTS=DIR LABEL=TEXT [TRUTH=DIR]   parts from elsewhere as a row of the tables
  make tables                     every table that the runs so far can fill, and runs/report.html
  make status                     what ran, is running or failed, and why

Building and checking
  make deps                       get what this machine lacks (make deps-cuda: for a GPU, too)
  make                            build all tools into build/bin      (CONFIG=debug or sanitize, LIBTORCH=DIR, V=1)
  make info                       what was found, what is missing, how to point at it
  make test                       set up, build, run all tests        (TESTS="test_json t10-step-tools" some)
  make sanitize                   the same under AddressSanitizer and UndefinedBehaviorSanitizer
  make torture                    every tool killed again and again on its way   (KILLS=25 SEED=1)
  make fuzz                       random and damaged STEP text, under sanitizers  (FUZZ_SECONDS=60)
  make test-metrics, test-ordering     the metrics against the original's figures; against 500 parts' variants
  make fuzz-occt                  10,000 damaged files through renderability and chamfer  (FUZZ_FILES=, FUZZ_CORPUS=DIR)
  make test-tokenizer             token ids against Hugging Face's library        (REFPYTHON=..)
  make test-gpu                   what needs a GPU
  make test-peft                  200 steps of LoRA beside Transformers and PEFT    (REFPYTHON=..)
  make bench                      speeds, beside the original's where ORIGINAL=DIR holds it
  make bench-eval, bench-train, bench-generate   speeds of the metrics, of training and of decoding
  make format, make lint, make clean      (format: the lines changed since the last commit, BASE= another)
endef
help:
	$(info $(HELP))
	@:
