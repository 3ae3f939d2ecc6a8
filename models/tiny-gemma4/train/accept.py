#!/usr/bin/env python3
"""Write acceptance.json: how many drafted tokens are accepted on the two validation texts.

usage: accept.py --ckpt DIR --tokenizer tokenizer.json --texts DIR --out acceptance.json

`acceptance` in train.py states the protocol.  Arithmetic is fp32 on the f16 weights, on whatever device there is.
"""
import argparse
import json
from types import SimpleNamespace

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer

from model import Config, DFlash, Mtp
from train import acceptance, load_target


def main():
    ap = argparse.ArgumentParser()
    for o in ("ckpt", "tokenizer", "texts", "out"):
        ap.add_argument("--" + o, required=True)
    ap.add_argument("--prompts", type=int, default=64)
    a = ap.parse_args()
    c = Config()
    dev = "cuda" if torch.cuda.is_available() else "cpu"
    tok = Tokenizer.from_file(a.tokenizer)
    read = lambda k: tok.encode(open(f"{a.texts}/val-{k}.txt").read(), add_special_tokens=False).ids
    data = SimpleNamespace(s={k + "-val": torch.tensor(read(k), device=dev) for k in ("code", "prose")})
    models = []
    for name, make in (("mtp", Mtp), ("dflash", DFlash)):
        m = make(c)
        m.load_state_dict({k: v.float() for k, v in load_file(f"{a.ckpt}/{name}.safetensors").items()})
        models.append(m.to(dev))
    own = SimpleNamespace(win=c.window, gamma=4)
    r = acceptance(load_target(c, a.ckpt, dev), *models, data, own, c, dev, torch.float32, a.prompts)
    with open(a.out, "w") as f:
        f.write("{\n")
        for i, (text, res) in enumerate(r.items()):
            rows = ",\n".join(f"  {json.dumps(n)}: {json.dumps(x)}" for n, x in res.items())
            f.write(f" {json.dumps(text.replace('-val', ''))}: {{\n{rows}\n }}{',' if i + 1 < len(r) else ''}\n")
        f.write("}\n")


if __name__ == "__main__":
    main()
