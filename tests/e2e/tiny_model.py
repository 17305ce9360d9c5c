#!/usr/bin/env python3
"""tiny_model.py REPOSITORY DIR: configurations of tiny models (arch, wide, narrow) and short pair records made from the
sample's parts (data/), for tests that train and generate in seconds."""
import glob, json, os, sys

root, out = sys.argv[1:]
steps = [open(f).read() for f in sorted(glob.glob(root + "/datasets/sample/steps/*.step"))]
parts = [s[s.index("DATA;"):] for s in steps]
config = {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
          "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 600, "max_position_embeddings": 1024, "rms_norm_eps": 1e-6,
          "rope_theta": 1e6, "tie_word_embeddings": True, "hidden_act": "silu", "initializer_range": 0.1}


def record(i, **other):
    r = {"id_original": f"{i:08d}", "caption": f"Part {i % 7} with {i % 5} holes.", "id_retrieve": f"{i + 1:08d}",
         "relavant_step_file": parts[(i + 1) % len(parts)][:120], "output": parts[i % 3][:200 + 7 * (i % 4)]}
    return {**r, **other}


def dump(what, name):
    path = os.path.join(out, name)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w") as f:
        f.write(what if isinstance(what, str) else json.dumps(what, indent=4))


dump(config, "arch/config.json")
dump({**config, "hidden_size": 96}, "wide/config.json")
dump({**config, "vocab_size": 500}, "narrow/config.json")
train = [record(i) for i in range(40)]
dump(train, "data/train.json")
dump([record(i) for i in range(40, 52)], "data/val.json")
dump([record(i) for i in range(150)], "data/many.json")
dump([{k: v for k, v in r.items() if k not in ("id_retrieve", "relavant_step_file")} for r in train], "data/plain/train.json")
dump(train[:3] + [record(3, output="")], "data/empties/train.json")
dump(json.dumps(train[:4])[:1400], "data/broken/train.json")
