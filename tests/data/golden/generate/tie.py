#!/usr/bin/env python3
"""What a near tie of the router is worth: the logits of one step with the first expert that was dropped in place of the last
that was chosen, a layer at a time. Says whether a distance that was measured elsewhere is a tie that fell the other way.

    python generate/tie.py c-moe p150 20
"""
import json
import sys

import torch
from safetensors.numpy import load_file
from transformers.models.gemma4.modeling_gemma4 import Gemma4TextRouter

import expect
import variants


def main(path, prompt, step):
    recorded = load_file(f"{path}.expect.safetensors")
    name = path.rsplit("/", 1)[-1]
    variant = variants.TARGETS[name]
    with open(f"{path}.config.json") as f:
        seed = json.load(f)["seed_used"]
    model = expect.build_target(variant).eval()
    expect.fill(model, seed, variant["hidden"])
    tokens = [*recorded[f"{prompt}.tokens"], *recorded[f"{prompt}.greedy_ids"][:step]]
    tokens = torch.tensor([[int(t) for t in tokens]])
    ids = recorded[f"{prompt}.greedy_top8_ids"].reshape(-1, 8)[step]
    values = recorded[f"{prompt}.greedy_top8_values"].reshape(-1, 8)[step]

    routers = [m for m in model.modules() if isinstance(m, Gemma4TextRouter)]
    gaps = {}

    def swap(router, result):
        """The last token's choice, with the runner-up."""
        probabilities, weights, experts = result
        row = probabilities.reshape(-1, probabilities.shape[-1])[-1]
        k = experts.shape[-1]
        order = row.argsort(descending=True)
        gaps[router] = float(row[order[k - 1]] - row[order[k]])
        if router is not swapped:
            return result
        chosen = order[[*range(k - 1), k]]
        experts, weights = experts.clone(), weights.clone()
        experts.reshape(-1, k)[-1] = chosen
        weights.reshape(-1, k)[-1] = row[chosen]/row[chosen].sum()*router.per_expert_scale[chosen]
        return probabilities, weights, experts

    for router in routers:
        router.register_forward_hook(lambda module, _inputs, result: swap(module, result))
    swapped = None
    with torch.no_grad():
        print("as recorded", abs(model(tokens).logits[0, -1].numpy()[ids] - values).max())
        for layer, swapped in enumerate(routers):
            logits = model(tokens).logits[0, -1].numpy()
            print(f"layer {layer}: gap {gaps[swapped]:.2e}, best logits move by {abs(logits[ids] - values).max():.3f},",
                  "same choice" if logits.argmax() == ids[0] else "another choice")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
