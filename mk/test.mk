# Tests, checks and formatting.

.PHONY: test test-only sanitize all-sanitize format lint hdr-check clean

# The newcomer's `make test` and `make demo` build on all cores; a -j of the user's stands.
PARALLEL = $(if $(findstring -j,$(MAKEFLAGS)),,-j$(shell nproc))

# Everything a fresh machine needs, then all tests.  TESTS="test_json t10-step-tools" runs some.
test:
	@$(MAKE) --no-print-directory deps
	@$(MAKE) --no-print-directory $(PARALLEL) test-only

test-only: all $(UNIT_BIN) $(TEST_PROGRAMS)
	@tests/run.sh $(B) $(TESTS)

# The test of killed tools at length: every tool, KILLS times, at other moments each time (SEED= repeats them).
.PHONY: torture
KILLS ?= 25
torture: all
	@BIN=$(B)/bin KILLS=$(KILLS) bash tests/e2e/t05-kill.sh

# AddressSanitizer and UndefinedBehaviorSanitizer.
sanitize:
	@$(MAKE) --no-print-directory $(PARALLEL) CONFIG=sanitize all-sanitize

SAN_ENV := ASAN_OPTIONS=detect_leaks=1:allocator_may_return_null=1 UBSAN_OPTIONS=print_stacktrace=1 \
  LSAN_OPTIONS='suppressions="$(CURDIR)/tests/lsan.supp":print_suppressions=0'
all-sanitize: all $(UNIT_BIN) $(TEST_PROGRAMS)
	@$(SAN_ENV) tests/run.sh $(B) $(TESTS)

OWN_C := $(wildcard lib/*.[ch] model/*.[ch] shim/*.h shim/*.c shim/*.cc prep/*.c train/*.c infer/*.c eval/*.c tests/unit/*.c)
# The lines changed since BASE (see .clang-format); nothing where nothing was changed.
BASE ?= HEAD
format:
	@command -v clang-format-diff >/dev/null || { echo 'make format needs clang-format: apt-get install clang-format'; exit 1; }
	@git diff -U0 --no-color $(BASE) -- '*.c' '*.h' '*.cc' '*.cu' | clang-format-diff -p1 -i
lint: hdr-check
	@! grep -nP '\s+$$' $(OWN_C) || { echo 'lint: trailing white space'; exit 1; }
	@if command -v cppcheck >/dev/null; then cppcheck -q --error-exitcode=1 --std=c11 --enable=warning,portability \
	  --inline-suppr --suppressions-list=tests/cppcheck.supp -I. $(filter %.c,$(OWN_C)); \
	  else echo 'lint: cppcheck is not installed; headers and white space were checked'; fi

# Every header compiles alone, as C11.
hdr-check:
	@for h in $(wildcard lib/*.h model/*.h shim/*.h); do \
	  echo "#include \"$$h\"" | $(CC) $(ARCH) $(CPPFLAGS) -std=c11 -Wall -Wextra -fsyntax-only -x c - || exit 1; done
	@echo 'headers compile alone'

clean:
	rm -rf build
