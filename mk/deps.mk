# What the machine must have: see scripts/deps.sh and, for versions, scripts/deps.lock.
#
# The Makefile looks for libraries as it is read, so a target that needs them gets them first and then
# calls make again:   demo: ; @$(MAKE) --no-print-directory deps && $(MAKE) --no-print-directory demo-only

.PHONY: deps deps-cuda info

# What the user named; a default is not "named".
named = $(if $(filter environment command% override,$(firstword $(origin $(1)))),$(value $(1)))
DEPS_ENV = LIBTORCH='$(call named,LIBTORCH)' ENCODER='$(call named,ENCODER)' PYTHON='$(PYTHON)'

deps:
	@$(DEPS_ENV) scripts/deps.sh
deps-cuda:
	@$(DEPS_ENV) scripts/deps.sh --cuda
info:
	@$(DEPS_ENV) scripts/deps.sh --info
