# STEP-LLM in C.  `make help` lists what there is to make.
#
#   CONFIG=release|debug|sanitize   (release builds into build/, others into build/CONFIG/)
#   LIBTORCH=DIR    libtorch to use instead of third_party/torch (holds include/ and lib/)
#   ENCODER=DIR     sentence encoder instead of third_party/minilm
#   V=1             show whole commands

CONFIG ?= release
B := $(if $(filter release,$(CONFIG)),build,build/$(CONFIG))
O := $(B)/obj
PYTHON ?= python3

LIBTORCH ?= $(firstword $(wildcard third_party/torch) /nonexistent)
ENCODER ?= third_party/minilm
NVCC ?= $(firstword $(wildcard third_party/nvidia/cu13/bin/nvcc) $(shell command -v nvcc) $(wildcard /usr/local/cuda/bin/nvcc))

# ---- what is here ----------------------------------------------------------
have = $(if $(wildcard $(1)),1,)
HAVE_TORCH := $(call have,$(LIBTORCH)/lib/libtorch_cpu.so)
HAVE_OCCT := $(call have,/usr/include/opencascade/STEPControl_Reader.hxx)
HAVE_FAISS := $(call have,/usr/include/faiss/IndexFlat.h)
HAVE_HTTPD := $(call have,/usr/include/microhttpd.h)
HAVE_NVCC := $(if $(NVCC),1,)
HAVE_BASE := $(and $(wildcard /usr/include/sqlite3.h),$(wildcard /usr/include/jansson.h))

# ---- compilers -------------------------------------------------------------
CC := gcc
CXX := g++
WARN := -Wall -Wextra -Wshadow -Wpointer-arith -Wvla
CWARN := $(WARN) -Wstrict-prototypes -Wmissing-prototypes
ifdef DEVELOPER
WARN += -Werror
endif
OPT_release := -O3 -g1
OPT_debug := -O0 -g
OPT_sanitize := -O1 -g -fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer
OPT := $(OPT_$(CONFIG))
$(if $(OPT),,$(error CONFIG=$(CONFIG): release, debug or sanitize is due))

# x86-64-v3 (AVX2, FMA) runs on every machine of the last ten years; ARCH= to change.
ARCH ?= $(if $(filter x86_64,$(shell uname -m)),-march=x86-64-v3 -mtune=native,)
CPPFLAGS := -I. -D_GNU_SOURCE
CFLAGS := -std=c11 $(OPT) $(ARCH) $(CWARN) -fno-math-errno
CXXFLAGS := -std=c++17 $(OPT) $(ARCH) $(WARN)
LDFLAGS := $(filter -fsanitize=%,$(OPT)) -Wl,--as-needed -pthread
DEP = -MMD -MP

TORCH_INC := -isystem $(LIBTORCH)/include -isystem $(LIBTORCH)/include/torch/csrc/api/include -D_GLIBCXX_USE_CXX11_ABI=1
# Libraries of NVIDIA's wheels, which libtorch_cpu itself needs even on the CPU.
TORCH_DIRS := $(LIBTORCH)/lib $(wildcard $(dir $(LIBTORCH:%/=%))nvidia/*/lib)
comma := ,
# (Quoted, and not $(abspath ...): there may be spaces in the path of this checkout.)
TORCH_LIBS := -L$(LIBTORCH)/lib -ltorch_cpu -lc10 $(foreach d,$(TORCH_DIRS),-Wl$(comma)-rpath$(comma)'$(if $(filter /%,$(d)),$(d),$(CURDIR)/$(d))') \
  -Wl,--allow-shlib-undefined
OCCT_INC := -isystem /usr/include/opencascade
OCCT_LIBS := -lTKSTEP -lTKSTEPBase -lTKSTEPAttr -lTKSTEP209 -lTKXSBase -lTKXDESTEP -lTKXCAF -lTKLCAF -lTKCAF -lTKOffset -lTKFillet -lTKBool -lTKBO -lTKPrim -lTKMesh -lTKShHealing -lTKTopAlgo \
  -lTKGeomAlgo -lTKBRep -lTKGeomBase -lTKG3d -lTKG2d -lTKMath -lTKernel
FAISS_C_API :=
FAISS_LIBS := $(FAISS_C_API) -lfaiss -fopenmp -lblas -llapack
BASE_LIBS := -lsqlite3 -ljansson -lcrypto -lpcre2-8 -lutf8proc -larchive -lcurl -lpng -lz -lm -ldl

# ---- sources ---------------------------------------------------------------
LIB_SRC := $(wildcard lib/*.c)
MODEL_SRC := $(wildcard model/*.c)
TOOL_SRC := $(wildcard prep/*.c train/*.c infer/*.c eval/*.c)
KERNEL_SRC := $(wildcard kernels/*.cu)

LIB_OBJ := $(LIB_SRC:%.c=$(O)/%.o) $(O)/version.o
MODEL_OBJ := $(MODEL_SRC:%.c=$(O)/%.o)
# A shim is shim/NAME*.cc (FAISS's is C over its C API, whose objects Debian lacks); tools and tests that need one are named here.
TORCH_OBJ := $(patsubst %.cc,$(O)/%.o,$(wildcard shim/torch*.cc))
OCCT_OBJ := $(patsubst %.cc,$(O)/%.o,$(wildcard shim/occt*.cc))
FAISS_OBJ := $(O)/shim/faiss_index.o $(if $(FAISS_C_API),,$(O)/shim/faiss_c_api.o)

NEED_TORCH := rag-pairs sft train-bench merge-lora generate serve eval-loss
NEED_OCCT := synth step-render renderability chamfer geometry-reward report
NEED_FAISS := rag-pairs

ALL_TOOLS := $(notdir $(TOOL_SRC:.c=))
LACKING := $(if $(HAVE_HTTPD),,serve) $(if $(HAVE_TORCH),,$(NEED_TORCH)) $(if $(HAVE_OCCT),,$(NEED_OCCT)) $(if $(HAVE_FAISS),,$(NEED_FAISS))
TOOLS := $(filter-out $(LACKING),$(ALL_TOOLS))
# The sanitizers see no kernel's memory: compute-sanitizer's work, on a GPU.
KERNELS := $(if $(and $(KERNEL_SRC),$(HAVE_NVCC),$(filter-out sanitize,$(CONFIG))),$(B)/lib/libkernels.so)

UNIT_SRC := $(wildcard tests/unit/test_*.c)
UNIT_TORCH := $(filter tests/unit/test_torch% tests/unit/test_model% tests/unit/test_encoder%,$(UNIT_SRC))
UNIT_OCCT := $(filter tests/unit/test_occt%,$(UNIT_SRC))
UNIT_FAISS := $(filter tests/unit/test_faiss%,$(UNIT_SRC))
UNIT := $(filter-out $(if $(HAVE_TORCH),,$(UNIT_TORCH)) $(if $(HAVE_OCCT),,$(UNIT_OCCT)) $(if $(HAVE_FAISS),,$(UNIT_FAISS)),$(UNIT_SRC))
UNIT_BIN := $(UNIT:tests/unit/%.c=$(B)/tests/%)

ifneq ($(V),1)
Q := @
say = @printf '  %-7s %s\n' '$(1)' '$(2)'
endif

.DEFAULT_GOAL := all
.DELETE_ON_ERROR:
.SUFFIXES:
.PHONY: all help FORCE

all: $(TOOLS:%=$(B)/bin/%) $(KERNELS)
	@$(if $(strip $(filter $(LACKING),$(ALL_TOOLS))),echo 'not built for want of a library (see make info): $(filter $(LACKING),$(ALL_TOOLS))',:)

# ---- objects ---------------------------------------------------------------
$(O)/%.o: %.c
	$(call say,CC,$<)
	@mkdir -p $(@D)
	$(Q)$(CC) $(CPPFLAGS) $(CFLAGS) $(DEP) -c $< -o $@

$(TORCH_OBJ): $(O)/%.o: %.cc
	$(call say,CXX,$<)
	@mkdir -p $(@D)
	$(Q)$(CXX) $(CPPFLAGS) $(TORCH_INC) $(CXXFLAGS) $(DEP) -c $< -o $@

$(OCCT_OBJ): $(O)/%.o: %.cc
	$(call say,CXX,$<)
	@mkdir -p $(@D)
	$(Q)$(CXX) $(CPPFLAGS) $(OCCT_INC) $(CXXFLAGS) $(DEP) -c $< -o $@

$(O)/shim/faiss_c_api.o: $(O)/%.o: %.cc
	$(call say,CXX,$<)
	@mkdir -p $(@D)
	$(Q)$(CXX) $(CPPFLAGS) $(CXXFLAGS) $(DEP) -c $< -o $@

# Sums of products without rounding in between: what vector code is for.
$(O)/model/engine_cpu.o: CFLAGS += -ffp-contract=fast -Wno-psabi

# The git revision, rewritten only when it changes.
$(O)/version.c: FORCE
	@mkdir -p $(@D)
	@{ echo '#include "lib/tool.h"'; \
	   echo 'const char tool_version[] = "$(shell cat VERSION)";'; \
	   echo "const char tool_git_rev[] = \"$$(git describe --always --dirty --abbrev=12 2>/dev/null || echo unknown)\";"; } > $@.new; \
	 cmp -s $@.new $@ && rm -f $@.new || mv -f $@.new $@
$(O)/version.o: $(O)/version.c
	@$(CC) $(CPPFLAGS) $(CFLAGS) -c $< -o $@

$(B)/lib/lib%.a:
	$(call say,AR,$@)
	@mkdir -p $(@D); rm -f $@
	$(Q)gcc-ar rcs $@ $^
$(B)/lib/libcore.a: $(LIB_OBJ)
$(B)/lib/libmodel.a: $(MODEL_OBJ)
$(B)/lib/libshim_torch.a: $(TORCH_OBJ)
$(B)/lib/libshim_occt.a: $(OCCT_OBJ)
$(B)/lib/libshim_faiss.a: $(FAISS_OBJ)

# ---- executables -----------------------------------------------------------
# link(binary, name): archives and libraries by what the name needs
parts = $(if $(filter $(1),$(NEED_TORCH)),torch) $(if $(filter $(1),$(NEED_OCCT)),occt) $(if $(filter $(1),$(NEED_FAISS)),faiss)
archives = $(if $(filter torch,$(1)),$(B)/lib/libmodel.a $(B)/lib/libshim_torch.a) $(if $(filter occt,$(1)),$(B)/lib/libshim_occt.a) \
  $(if $(filter faiss,$(1)),$(B)/lib/libshim_faiss.a) $(B)/lib/libcore.a
libs = $(if $(filter torch,$(1)),$(TORCH_LIBS)) $(if $(filter occt,$(1)),$(OCCT_LIBS)) $(if $(filter faiss,$(1)),$(FAISS_LIBS)) $(BASE_LIBS)
linker = $(if $(strip $(1)),$(CXX),$(CC))

define executable # binary, object, needs, more libraries
$(1): $(2) $(call archives,$(3))
	$$(call say,LINK,$$@)
	@mkdir -p $$(@D)
	$$(Q)$(call linker,$(3)) $(LDFLAGS) -o $$@ $(2) $(call archives,$(3)) $(4) $(call libs,$(3))
endef

$(foreach s,$(TOOL_SRC),$(eval $(call executable,$(B)/bin/$(notdir $(s:.c=)),$(O)/$(s:.c=.o),$(call parts,$(notdir $(s:.c=))),$(if $(filter %/serve.c,$(s)),-lmicrohttpd))))
unit_parts = $(if $(filter $(1),$(UNIT_TORCH)),torch) $(if $(filter $(1),$(UNIT_OCCT)),occt) $(if $(filter $(1),$(UNIT_FAISS)),faiss)
$(foreach s,$(UNIT_SRC),$(eval $(call executable,$(B)/tests/$(notdir $(s:.c=)),$(O)/$(s:.c=.o),$(call unit_parts,$(s)),-lcmocka)))

# CUDA kernels are a library that the tools load when a GPU is used.
NVCCFLAGS := -O3 -std=c++17 -gencode=arch=compute_90a,code=sm_90a -gencode=arch=compute_80,code=sm_80 -gencode=arch=compute_80,code=compute_80 -Xcompiler -fPIC -cudart shared -I.
$(O)/kernels/%.o: kernels/%.cu
	$(call say,NVCC,$<)
	@mkdir -p $(@D)
	$(Q)$(NVCC) $(NVCCFLAGS) -MMD -MP -c $< -o $@
$(B)/lib/libkernels.so: $(KERNEL_SRC:%.cu=$(O)/%.o)
	$(call say,LINK,$@)
	@mkdir -p $(@D)
	$(Q)$(NVCC) $(NVCCFLAGS) -shared $^ -o $@
# Those that the emulator can run, for tests without a GPU (kernels/emulate.h); without sanitizers, which do not know its fibers.
$(B)/lib/libkernels_emulated.so: kernels/decode.cu kernels/decode.h kernels/emulate.h
	$(call say,CXX,$@)
	@mkdir -p $(@D)
	$(Q)$(CXX) $(CPPFLAGS) -std=c++17 $(OPT_release) $(ARCH) -Wall -Wextra -Wno-unknown-pragmas -DEMULATE -fPIC -shared -x c++ $< -o $@
$(B)/tests/test_model_engine: | $(B)/lib/libkernels_emulated.so

include $(wildcard mk/*.mk)

-include $(LIB_OBJ:.o=.d) $(MODEL_OBJ:.o=.d) $(TORCH_OBJ:.o=.d) $(OCCT_OBJ:.o=.d) $(FAISS_OBJ:.o=.d) \
  $(TOOL_SRC:%.c=$(O)/%.d) $(UNIT_SRC:%.c=$(O)/%.d) $(KERNEL_SRC:%.cu=$(O)/%.d)
