# The newcomer's command: everything from nothing.
.PHONY: demo
demo:
	@$(MAKE) --no-print-directory deps
	@$(MAKE) --no-print-directory $(PARALLEL) all
	@MAKE='$(MAKE)' B=$(B) scripts/demo.sh
