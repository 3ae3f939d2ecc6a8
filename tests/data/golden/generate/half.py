#!/usr/bin/env python3
"""Writes a half-precision copy of golden GGUF files: NAME.f32.gguf -> NAME.f16.gguf.

    python half.py --out DIR NAME.f32.gguf ...

Matrices become float16; vectors, the router (`ffn_gate_inp.weight`) and integer tensors stay as they are.
The weights are chosen to be exact in both precisions: every value is compared, in memory and again in the
file that was written. Needs gguf and numpy.
"""
import argparse
import os

import gguf
import numpy as np


def halves(t):
    # numpy order: the row length comes last, so ndim >= 2 is a matrix or a stack of them
    return t.tensor_type == gguf.GGMLQuantizationType.F32 and t.data.ndim >= 2 and not t.name.endswith("ffn_gate_inp.weight")


def convert(src, dst):
    r = gguf.GGUFReader(src)
    w = gguf.GGUFWriter(dst, r.fields["general.architecture"].contents())
    for name, f in r.fields.items():
        if name.startswith("GGUF.") or name == "general.architecture":
            continue
        kind = f.types[0]
        sub = f.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
        value = gguf.LlamaFileType.MOSTLY_F16 if name == "general.file_type" else f.contents()
        w.add_key_value(name, value, kind, sub_type=sub)
    for t in r.tensors:
        x = t.data
        if halves(t):
            x = x.astype(np.float16)
            assert np.array_equal(x.astype(np.float32), t.data), f"{t.name} is not exact in float16"
        w.add_tensor(t.name, np.ascontiguousarray(x))
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
    return check(src, dst)


def check(src, dst):
    """Reads both files back and compares keys, names, shapes and every single value."""
    a, b = gguf.GGUFReader(src), gguf.GGUFReader(dst)
    assert list(a.fields) == list(b.fields), "keys"
    for k in a.fields:
        same = a.fields[k].contents() == b.fields[k].contents() and a.fields[k].types == b.fields[k].types
        assert same or k == "general.file_type", k
    assert [t.name for t in a.tensors] == [t.name for t in b.tensors], "tensor names"
    n = half = 0
    for s, d in zip(a.tensors, b.tensors):
        assert list(s.shape) == list(d.shape), s.name
        assert d.tensor_type == (gguf.GGMLQuantizationType.F16 if halves(s) else s.tensor_type), s.name
        assert np.array_equal(s.data, d.data.astype(s.data.dtype)), s.name
        n += s.n_elements
        half += s.n_elements if halves(s) else 0
    return n, half


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("--out", required=True)
    ap.add_argument("files", nargs="+")
    args = ap.parse_args()
    os.makedirs(args.out, exist_ok=True)
    for src in args.files:
        name = os.path.basename(src)
        assert name.endswith(".f32.gguf"), name
        dst = os.path.join(args.out, name.replace(".f32.gguf", ".f16.gguf"))
        n, half = convert(src, dst)
        print(f"{os.path.basename(dst)}: {n} values equal, {half} of them stored in half precision, {os.path.getsize(dst)} bytes")


if __name__ == "__main__":
    main()
