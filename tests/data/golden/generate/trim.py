#!/usr/bin/env python3
"""Drops the bulky expectations that the tests do without: the key/value states of e-draft-b for all but the
shortest prompt (1.5 MB; e-draft-d keeps all of its own).

    python trim.py e-draft-b.expect.safetensors
"""
import re
import sys

from safetensors import safe_open
from safetensors.numpy import load_file, save_file

for path in sys.argv[1:]:
    with safe_open(path, "numpy") as f:
        meta = f.metadata()
    x = load_file(path)
    lengths = sorted({int(k[1:].split(".")[0]) for k in x})
    keep = {k: v for k, v in x.items() if not re.match(r"p\d+\.kv_", k) or k.startswith(f"p{lengths[0]}.")}
    print(path, "dropped", sorted(set(x) - set(keep)))
    save_file(keep, path, metadata=meta)
