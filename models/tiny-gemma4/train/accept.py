#!/usr/bin/env python3
"""Write acceptance.json: how many drafted tokens are accepted on the two validation texts.

usage: accept.py (--ckpt DIR | --gguf DIR) --tokenizer tokenizer.json --texts DIR --out acceptance.json

`acceptance` in train.py states the protocol.  Arithmetic is fp32, on whatever device there is, on the f16 weights of
a checkpoint or on those of the shipped q8_0 files.
"""
import argparse
import json
from types import SimpleNamespace

import gguf
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer

from export_gguf import DF_LAYER, LAYER
from model import Config, DFlash, Mtp, Target
from train import acceptance, load_target

OTHERS = {"token_embd.weight": "embed_tokens.weight", "output_norm.weight": "norm.weight",
          "nextn.pre_projection.weight": "pre_projection.weight", "nextn.post_projection.weight": "post_projection.weight",
          "fc.weight": "fc.weight", "enc.output_norm.weight": "hidden_norm.weight"}


def from_gguf(path, model, layer):
    """The model with the weights of a file that export_gguf.py wrote."""
    back = {v: k for k, v in layer.items()}
    sd = {}
    for t in gguf.GGUFReader(path).tensors:
        if t.name == "rope_freqs.weight":
            continue
        w = torch.from_numpy(gguf.quants.dequantize(t.data, t.tensor_type).copy()).float()
        if t.name.startswith("blk."):
            _, i, rest = t.name.split(".", 2)
            sd[f"layers.{i}.{back[rest]}"] = w
        else:
            sd[OTHERS[t.name]] = w
    model.load_state_dict({k: w.reshape(model.state_dict()[k].shape) for k, w in sd.items()})
    return model


def main():
    ap = argparse.ArgumentParser()
    weights = ap.add_mutually_exclusive_group(required=True)
    weights.add_argument("--ckpt")
    weights.add_argument("--gguf")
    for o in ("tokenizer", "texts", "out"):
        ap.add_argument("--" + o, required=True)
    ap.add_argument("--prompts", type=int, default=64)
    a = ap.parse_args()
    c = Config()
    dev = "cuda" if torch.cuda.is_available() else "cpu"
    tok = Tokenizer.from_file(a.tokenizer)
    read = lambda k: tok.encode(open(f"{a.texts}/val-{k}.txt").read(), add_special_tokens=False).ids
    data = SimpleNamespace(s={k + "-val": torch.tensor(read(k), device=dev) for k in ("code", "prose")})
    if a.gguf:
        stem = f"{a.gguf}/tiny-gemma4"
        target = from_gguf(f"{stem}-q8_0.gguf", Target(c), LAYER).to(dev)
        models = [from_gguf(f"{stem}-mtp-q8_0.gguf", Mtp(c), LAYER).to(dev),
                  from_gguf(f"{stem}-dflash-q8_0.gguf", DFlash(c), DF_LAYER).to(dev)]
    else:
        target = load_target(c, a.ckpt, dev)
        models = []
        for name, make in (("mtp", Mtp), ("dflash", DFlash)):
            m = make(c)
            m.load_state_dict({k: v.float() for k, v in load_file(f"{a.ckpt}/{name}.safetensors").items()})
            models.append(m.to(dev))
    own = SimpleNamespace(win=c.window, gamma=4)
    texts = {}
    r = acceptance(target, *models, data, own, c, dev, torch.float32, a.prompts, texts=texts)
    with open(a.out, "w") as f:
        f.write("{\n")
        for i, (text, res) in enumerate(r.items()):
            res["written"] = texts[text]
            rows = ",\n".join(f"  {json.dumps(n)}: {json.dumps(x)}" for n, x in res.items())
            f.write(f" {json.dumps(text.replace('-val', ''))}: {{\n{rows}\n }}{',' if i + 1 < len(r) else ''}\n")
        f.write("}\n")


if __name__ == "__main__":
    main()
