#!/usr/bin/env python3
"""Makes the vectors beside it with Hugging Face's `tokenizers`.

    make.py [FOLDER_WITH_qwen2.5_AND_llama3.2]

small-qwen.json, small-llama.json   two tokenizers with the steps of the real ones, 450 entries
NAME.vectors.json                   [{"text", "ids", "decoded"}] for NAME.json; the real
                                    tokenizers' vectors are made if their folder is given
All texts are made up (texts.py)."""
import json
import os
import sys

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

import texts

HERE = os.path.dirname(os.path.abspath(__file__))
PATTERN = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*"
           r"|\s*[\r\n]+|\s+(?!\S)|\s+")
LATER = "\u0061\u0898\u0334 \u1ac1\u0323 \U00011935\U00011930 \U00011938 \U0002ebf0\U00010d41\u1c89\ua7cb x\u180ey"


def small(llama):
    t = Tokenizer(models.BPE(ignore_merges=llama))
    if not llama:
        t.normalizer = normalizers.NFC()
    t.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(PATTERN % ("{1,3}" if llama else "")), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    t.decoder = decoders.ByteLevel()
    t.train_from_iterator(texts.SENTENCES * 2, trainers.BpeTrainer(
        vocab_size=450, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    t.add_special_tokens(["<|begin|>", "<|end|>"])
    t.add_tokens([AddedToken("<tool>", normalized=False), AddedToken("ba\u1e69is", normalized=True),
                  AddedToken("<left>", lstrip=True, normalized=False),
                  AddedToken("<right>", rstrip=True, normalized=False),
                  AddedToken("plate", single_word=True, normalized=False),
                  AddedToken("<tool>>", normalized=False)])
    t.post_processor = processors.ByteLevel(trim_offsets=False)
    if llama:
        t.post_processor = processors.Sequence([t.post_processor, processors.TemplateProcessing(
            single="<|begin|> $A", special_tokens=[("<|begin|>", t.token_to_id("<|begin|>"))])])
    return t


def vectors(t, name, n):
    added = [a.content for a in t.get_added_tokens_decoder().values()]
    batch = list(texts.edges()) + [LATER] + list(texts.normal_forms()) + list(texts.mixed(n, seed=7, added=added))
    batch += [" a<left> \t<left>b <right> \n c<right>", "a plate plates _plate plate.", "bas\u0323\u0307is bas\u0307\u0323is ba\u1e69is", "<tool>>><tool"]
    batch = [s for s in batch if len(s) < 1200]
    rows = [{"text": s, "ids": (e := t.encode(s)).ids, "decoded": t.decode(e.ids, skip_special_tokens=False)}
            for s in batch]
    with open(os.path.join(HERE, name + ".vectors.json"), "w") as f:
        f.write("[\n" + ",\n".join(json.dumps(r, separators=(",", ":")) for r in rows) + "\n]\n")


for llama in (False, True):
    name = "small-llama" if llama else "small-qwen"
    t = small(llama)
    t.save(os.path.join(HERE, name + ".json"), pretty=False)
    vectors(t, name, 60)
if len(sys.argv) > 1:
    for name in ("qwen2.5", "llama3.2"):
        vectors(Tokenizer.from_file(os.path.join(sys.argv[1], name, "tokenizer.json")), name, 40)
