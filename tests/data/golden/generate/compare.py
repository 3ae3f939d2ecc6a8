#!/usr/bin/env python3
"""Runs the check program over a directory of golden files and prints the largest differences.

    python compare.py --check ./check --dir .. [--mode f32|f16] [--ubatch 512] [--weights f32|f16]
"""
import argparse
import glob
import os
import subprocess
import tempfile

import numpy as np
from safetensors import safe_open
from safetensors.numpy import load_file


def job(exp, lengths, draft):
    first = next((v for k, v in draft.items() if k.endswith(".drafted")), None) if draft else None
    out = [len(lengths), 0 if first is None else len(first)]
    for n in lengths:
        ids, greedy = exp[f"p{n}.tokens"], exp[f"p{n}.greedy_ids"]
        out += [len(ids), *ids, len(greedy), *greedy, int(greedy[0])]
    return np.array(out, dtype=np.int32)


def worst(a, b):
    return float(np.max(np.abs(a - b))) if a.size else 0.0


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("--check", required=True)
    ap.add_argument("--dir", required=True)
    ap.add_argument("--mode", default="f32")
    ap.add_argument("--ubatch", default="512")
    ap.add_argument("--weights", default="f32")
    ap.add_argument("--summary", action="store_true", help="one line per variant")
    args = ap.parse_args()
    for path in sorted(glob.glob(os.path.join(args.dir, "*.expect.safetensors"))):
        with safe_open(path, "numpy") as f:
            meta = f.metadata()
        name = meta["variant"]
        target = meta.get("target", name)
        draft = load_file(path) if target != name else None
        exp = load_file(os.path.join(args.dir, f"{target}.expect.safetensors"))
        lengths = sorted(int(k[1:].split(".")[0]) for k in exp if k.endswith(".tokens"))
        tgt = os.path.join(args.dir, f"{target}.{args.weights}.gguf")
        if not os.path.exists(tgt):
            continue
        with tempfile.TemporaryDirectory() as tmp:
            j, o = os.path.join(tmp, "job"), os.path.join(tmp, "out")
            job(exp, lengths, draft).tofile(j)
            cmd = [args.check, tgt, j, o, args.ubatch, args.mode]
            if draft:
                cmd.append(os.path.join(args.dir, f"{name}.{args.weights}.gguf"))
            r = subprocess.run(cmd, capture_output=True, text=True)
            if r.returncode:
                print(name, "FAILED", r.stderr[-800:])
                continue
            raw = np.fromfile(o, dtype=np.float32)
        vocab, embd = int(raw[0]), int(raw[1])
        at = 2

        def take(*shape):
            nonlocal at
            k = int(np.prod(shape))
            x = raw[at:at + k].reshape(shape)
            at += k
            return x

        rows = []
        for n in lengths:
            p = f"p{n}."
            steps = exp[p + "greedy_ids"]
            logits, hidden, step = take(n, vocab), take(n, embd), take(len(steps), vocab)
            if not draft:
                d = dict(
                    last=worst(logits[-1], exp[p + "logits_last"]),
                    top8=worst(np.take_along_axis(logits, exp[p + "top8_ids"], 1), exp[p + "top8_values"]),
                    hidden=worst(hidden[-1], exp[p + "hidden_last"]),
                    greedy=worst(np.take_along_axis(step, exp[p + "greedy_top8_ids"], 1), exp[p + "greedy_top8_values"]),
                    greedy_ids=int((step.argmax(1) != steps).sum()))
                gap = exp.get(p + "greedy_route_gap")
                if gap is not None:
                    safe = int(np.argmax(gap < 2e-3)) if (gap < 2e-3).any() else len(gap)
                    x = np.take_along_axis(step, exp[p + "greedy_top8_ids"], 1) - exp[p + "greedy_top8_values"]
                    d["greedy_before_tie"] = worst(x[:safe], 0 * x[:safe])
                    d["safe_steps"] = safe
            else:
                k = len(draft[p + "strict.full.drafted"])
                lg, hd, ids = take(k, vocab), take(k, embd), take(k)
                d = {}
                for win in ("strict", "wide"):
                    q = f"{p}{win}.full."
                    same = int((ids != draft[q + "drafted"]).sum())
                    d[win] = worst(lg[0], draft[q + "logits"][0])
                    d[win + "_chain"] = worst(lg, draft[q + "logits"])
                    d[win + "_hidden"] = worst(hd, draft[q + "hidden_out"])
                    d[win + "_ids"] = same
            rows.append((n, d))
        assert at == len(raw)
        if args.summary:
            keys = [k for k in rows[0][1] if not k.endswith(("ids", "steps")) and not k.startswith("wide")]
            wrong = sum(v for _, d in rows for k, v in d.items() if k.endswith("ids") and not k.startswith("wide"))
            print(f"{name:12s}", "  ".join(f"{k}={max(d[k] for _, d in rows):.1e}" for k in keys), f"wrong_ids={wrong}")
            continue
        for n, d in rows:
            print(f"{name:12s} p{n:<4d}", "  ".join(f"{k}={v:.3g}" if isinstance(v, float) else f"{k}={v}" for k, v in d.items()))


if __name__ == "__main__":
    main()
