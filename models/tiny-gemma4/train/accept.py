#!/usr/bin/env python3
"""Write acceptance.json: how many drafted tokens are accepted on the two validation texts.

usage: accept.py (--ckpt DIR | --gguf DIR) --tokenizer tokenizer.json --texts DIR --out acceptance.json [--kv tq3_0]

`held_out` and `accepted` in train.py state the protocol.  Arithmetic is fp32, on whatever device there is, on the f16 weights of
a checkpoint or on those of the shipped q8_0 files.  The target's cache is exact or, with --kv, rounded as TQ3_0.
"""
import argparse
import json
from types import SimpleNamespace

import torch
from tokenizers import Tokenizer

from export_gguf import from_gguf
from model import Config, DFlash, Mtp
from train import accepted, held_out, load_small, load_target


def main():
    ap = argparse.ArgumentParser()
    weights = ap.add_mutually_exclusive_group(required=True)
    weights.add_argument("--ckpt")
    weights.add_argument("--gguf")
    for o in ("tokenizer", "texts", "out"):
        ap.add_argument("--" + o, required=True)
    ap.add_argument("--prompts", type=int, default=64)
    ap.add_argument("--kv", choices=["f16", "tq3_0"], default="f16")
    a = ap.parse_args()
    c = Config()
    dev = "cuda" if torch.cuda.is_available() else "cpu"
    tok = Tokenizer.from_file(a.tokenizer)
    read = lambda k: tok.encode(open(f"{a.texts}/val-{k}.txt").read(), add_special_tokens=False).ids
    data = SimpleNamespace(s={k + "-val": torch.tensor(read(k), device=dev) for k in ("code", "prose")})
    if a.gguf:
        target, *models = (from_gguf(a.gguf, kind, c).to(dev) for kind in ("target", "mtp", "dflash"))
    else:
        target = load_target(c, a.ckpt, dev)
        models = [load_small(make(c), f"{a.ckpt}/{name}.safetensors").to(dev) for name, make in (("mtp", Mtp), ("dflash", DFlash))]
    texts = held_out(target, data, c, torch.float32, a.prompts, tq3=a.kv == "tq3_0")
    r = accepted(target, *models, texts, c, torch.float32)
    with open(a.out, "w") as f:
        f.write("{\n")
        for i, (text, res) in enumerate(r.items()):
            print(text, a.kv, {n: round(x["accepted"], 3) for n, x in res.items()}, flush=True)
            res["written"] = texts[text].y[:, texts[text].P:].tolist()
            rows = ",\n".join(f"  {json.dumps(n)}: {json.dumps(x)}" for n, x in res.items())
            f.write(f" {json.dumps(text.replace('-val', ''))}: {{\n{rows}\n }}{',' if i + 1 < len(r) else ''}\n")
        f.write("}\n")


if __name__ == "__main__":
    main()
