# What needs a GPU, and a bundle of it for a machine that has a GPU and PyTorch, but not our other libraries.
.PHONY: test-gpu gpu-bundle test-peft
GPU_TESTS = $(addprefix $(B)/tests/,test_model test_model_engine test_model_kernels test_model_optim bench-decode)
GPU_TOOLS = $(addprefix $(B)/bin/,sft train-bench generate eval-loss merge-lora tokenizer-train token-filter split step-round step-restructure step-restore)

test-gpu: $(GPU_TOOLS) $(GPU_TESTS) $(KERNELS)
	@scripts/test-gpu.sh $(B)

# Programs, tests and the shared libraries that they need beyond the C library and PyTorch's, in build/gpu.
gpu-bundle: $(GPU_TOOLS) $(GPU_TESTS) $(KERNELS)
	@rm -rf build/gpu && mkdir -p build/gpu/bin build/gpu/tests build/gpu/lib/bundled
	@cp $(GPU_TOOLS) build/gpu/bin && cp $(GPU_TESTS) build/gpu/tests && strip build/gpu/bin/* build/gpu/tests/*
	@$(if $(KERNELS),cp $(KERNELS) build/gpu/lib,:)
	@ldd $(GPU_TOOLS) $(GPU_TESTS) | awk '$$3 ~ /^\// { print $$3 }' | sort -u | \
	  grep -vE '/(libc|libm|libpthread|libdl|librt|libutil|libmvec|libstdc\+\+|libgcc_s|ld-linux.*)\.so|/torch/|/nvidia/' | xargs -I{} cp -L {} build/gpu/lib/bundled
	@du -sh build/gpu

# 200 steps of LoRA on models/demo, parts of families that are new to it, beside Transformers and PEFT (REFPYTHON= a Python that has them): float32 on a
# CPU (some ten minutes on two cores), also bfloat16 and fp8 on a GPU.  t32-train-guards has a tiny model's curve, stored.
test-peft: all
	@$(B)/bin/synth --count 100 --families pulley,u-bracket,stairs --seed 77 --out $(B)/peft/parts --db none -q > /dev/null
	RECORDS=$(B)/peft/parts LR=1e-3 $(REFPYTHON) tests/gpu/compare_peft.py curve models/demo $(B)/bin $(B)/peft models/demo
