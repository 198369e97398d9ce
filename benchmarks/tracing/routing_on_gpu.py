"""Measure the cost of saliency, and how much routing differs between runs, on a GPU.

    python -m benchmarks.tracing.routing_on_gpu [GEOMETRY ...]

Published geometries with random weights in bfloat16 read the sample prompts. The saliency of the
first routed layer is compared with a plain loop over the raw weights in float64. The same weights are
then run in other batches and by another implementation of the experts, and traces are compared.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.tracing.geometries import make_config
from benchmarks.tracing.recording_on_gpu import NAMES
from moetool import Trace, compare_traces, trace_model

PROMPTS = Path("sample_prompts")
TOKENIZER = Path("moetool/catalogue/demo")
NUM_LAYERS = 8
PER_DOMAIN = 8
ROUNDS = 3


def main() -> None:
    """Measure the geometries named on the command line, or all."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "names", metavar="GEOMETRY", nargs="*", help=f"by default {', '.join(NAMES)}"
    )
    names = parser.parse_args().names or NAMES
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}")
    print(f"transformers {transformers.__version__}\n", flush=True)
    tokenizer = AutoTokenizer.from_pretrained(TOKENIZER)
    for geometry in names:
        config = make_config(geometry, num_hidden_layers=NUM_LAYERS)
        torch.manual_seed(0)
        with torch.device("cuda"):
            model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()
        print(f"{geometry}, {NUM_LAYERS} layers", flush=True)
        show_saliency(model, tokenizer)
        show_differences(model, tokenizer)
        del model
        torch.cuda.empty_cache()


def show_saliency(model: Any, tokenizer: Any) -> None:
    """Print what saliency costs, and its largest error in the first routed layer."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "trace.parquet")
        seconds: dict[bool, list[float]] = {False: [], True: []}
        for round_ in range(ROUNDS + 1):
            for is_measured in seconds:
                start = time.perf_counter()
                run(model, tokenizer, output=path, saliency=is_measured)
                if round_:
                    seconds[is_measured].append(time.perf_counter() - start)
        ratios = sorted(b / a for a, b in zip(*seconds.values(), strict=True))
        print(f"  time with saliency over time without, {ROUNDS} pairs: {ratios}")
        with ReferenceSums(model) as reference:
            run(model, tokenizer, output=path, saliency=True)
        seen = torch.load(path.with_name("trace.saliency.pt"), weights_only=True)[0]
        for name, wanted in (
            ("ean_sum", reference.norms),
            ("weighted_ean_sum", reference.weighted),
        ):
            found = seen[name].double().cpu()
            error = ((found - wanted.cpu()).abs() / wanted.cpu().clamp_min(1e-30)).max()
            print(f"  {name}: largest relative error {error:.1e} over {len(found)} experts")
        print(f"  assignments: {int(seen['expert_frequency'].sum())}, by hand {reference.number}")


class ReferenceSums:
    """Sums of the norms of the first layer's expert outputs, by a loop over the raw weights."""

    def __init__(self, model: Any) -> None:
        self.experts = model.model.layers[0].mlp.experts
        number = self.experts.gate_up_proj.shape[0]
        self.norms = torch.zeros(number, dtype=torch.float64, device="cuda")
        self.weighted = torch.zeros_like(self.norms)
        self.number = 0
        self.inner = self.experts.forward

    def __enter__(self) -> ReferenceSums:
        self.experts.register_forward_pre_hook(self.add)
        return self

    def __exit__(self, *_: object) -> None:
        self.experts._forward_pre_hooks.clear()

    def add(self, module: Any, inputs: tuple[Any, ...]) -> None:
        """Add the sums of a call. Pads, whose attention is masked, are not among the prompts' tokens."""
        hidden, ids, weights = inputs[:3]
        # Calls with one expert per token are those that measure saliency.
        if ids.shape[-1] == 1:
            return
        hidden = hidden.reshape(-1, hidden.shape[-1]).double()
        for expert in range(len(self.norms)):
            token, place = torch.nonzero(ids == expert, as_tuple=True)
            gate, up = (hidden[token] @ module.gate_up_proj[expert].double().T).chunk(2, dim=-1)
            output = (torch.nn.functional.silu(gate) * up) @ module.down_proj[expert].double().T
            norms = output.norm(dim=-1)
            self.norms[expert] += norms.sum()
            self.weighted[expert] += (norms * weights[token, place].double()).sum()
            self.number += len(token)


def show_differences(model: Any, tokenizer: Any) -> None:
    """Print how much of the routing changes between runs of the same weights."""
    reference = run(model, tokenizer, batch_size=8)
    show("again", compare_traces(run(model, tokenizer, batch_size=8).to_frame(), reference))
    show("in batches of 1", compare_traces(run(model, tokenizer, batch_size=1), reference))
    # batched_mm copies the weights of each token's experts, so its batches are small.
    for implementation, batch_size in (("eager", 8), ("batched_mm", 1)):
        model.set_experts_implementation(implementation)
        other = run(model, tokenizer, batch_size=batch_size)
        show(f"{implementation}, in batches of {batch_size}", compare_traces(other, reference))


def show(name: str, result: Any) -> None:
    """Print the figures of one comparison."""
    overall, last = result.overall, result.layers[-1]
    print(
        f"  {name}: sets differ in {overall.changed_decisions:.2%} of decisions (last layer "
        f"{last.changed_decisions:.2%}), first choice in {overall.first_choice_flips:.2%}",
        flush=True,
    )


def run(model: Any, tokenizer: Any, **options: Any) -> Trace:
    """Return the trace of the sample prompts."""
    options = {"batch_size": 1, "limit_per_domain": PER_DOMAIN, "overwrite": True, **options}
    return trace_model((model, tokenizer), PROMPTS, **options)


if __name__ == "__main__":
    main()
