"""Run the layers of installed frameworks in small models: each is exact, or refused.

    python -m tests.frameworks.prove

Not a test that pytest collects: `make frameworks` installs the frameworks into a separate
environment.
"""

from __future__ import annotations

import functools
import importlib.metadata
import logging
import sys
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from moetool import RoutingRecorder, inspect_model
from moetool.errors import MoetoolError
from moetool.tracing.recording.calls import RecordedLayer
from tests.frameworks import layers, models
from tests.frameworks.layers import (
    HIDDEN_SIZE,
    VOCAB_SIZE,
    FrameworkLayer,
    NotInThisVersionError,
)
from tests.tracing.oracle import UndeterminedError, find_difference, fit_weights

# By package: what its layer is, and how it is made.
CASES: list[tuple[str, str, Callable[[], FrameworkLayer]]] = [
    ("fairscale", "MOELayer with Top2Gate", layers.fairscale),
    ("deepspeed", "MoE", layers.deepspeed),
    ("deepspeed", "MoE, no tokens dropped", functools.partial(layers.deepspeed, drop_tokens=False)),
    ("deepspeed", "MoE, residual", functools.partial(layers.deepspeed, use_residual=True)),
    ("mixture-of-experts", "MoE", layers.mixture_of_experts),
    ("mixture-of-experts", "HeirarchicalMoE", layers.hierarchical),
    ("st-moe-pytorch", "MoE", functools.partial(layers.st_moe, is_straight=True)),
    (
        "st-moe-pytorch",
        "MoE, not straight through",
        functools.partial(layers.st_moe, is_straight=False),
    ),
    ("soft-moe-pytorch", "SoftMoE", layers.soft_moe),
    ("pytorch-mixtures", "TopkMoE", functools.partial(layers.pytorch_mixtures, "TopkMoE")),
    (
        "pytorch-mixtures",
        "ExpertChoiceMoE",
        functools.partial(layers.pytorch_mixtures, "ExpertChoiceMoE"),
    ),
    ("PEER-pytorch", "PEER", layers.peer),
    ("labml-nn", "SwitchFeedForward", layers.labml),
    ("litgpt", "LLaMAMoE", layers.litgpt),
    ("megatron-core", "MoELayer, allgather", functools.partial(layers.megatron, "allgather")),
    ("megatron-core", "MoELayer, alltoall", functools.partial(layers.megatron, "alltoall")),
    (
        "megatron-core",
        "MoELayer, alltoall with capacity",
        functools.partial(layers.megatron, "alltoall", moe_expert_capacity_factor=1.0),
    ),
    ("mixlora", "adapters of a Llama", models.mixlora),
    ("transformer-lens", "TransformerBridge of a Mixtral", models.transformer_lens),
    ("tutel", "moe_layer", functools.partial(layers.tutel, "top")),
    ("tutel", "moe_layer, cosine router", functools.partial(layers.tutel, "cosine_top")),
    (
        "tutel",
        "moe_layer, weighted input",
        functools.partial(layers.tutel, "top", weighs_input=True),
    ),
    ("torchtitan", "MoE, softmax", layers.torchtitan),
    ("torchtitan", "MoE, sigmoid", functools.partial(layers.torchtitan, score_func="sigmoid")),
    ("torchtitan", "MoE, score_before_experts", layers.torchtitan_before),
    ("ai2-olmo-core", "MoE", functools.partial(layers.olmo_core, "default")),
    ("ai2-olmo-core", "DroplessMoE", functools.partial(layers.olmo_core, "dropless")),
]


class Model(nn.Module):
    """A layer between an embedding and a head."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCAB_SIZE, HIDDEN_SIZE)
        self.moe = block
        self.head = nn.Linear(HIDDEN_SIZE, VOCAB_SIZE)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        output = self.moe(self.embedding(input_ids))
        logits: torch.Tensor = self.head(output[0] if isinstance(output, tuple) else output)
        return logits


@dataclass(frozen=True)
class Outcome:
    """The result for one layer.

    Attributes:
        package: Name on PyPI.
        version: Installed version; empty if it is not installed.
        layer: The layer in words.
        traced: `exactly`, `refused`, `not installed`, `not in this version`, `not on the CPU`,
            `not built` or `wrong`.
        remark: The reason, or what else was seen.
    """

    package: str
    version: str
    layer: str
    traced: str
    remark: str


def prove(package: str, name: str, make: Callable[[], FrameworkLayer]) -> Outcome:
    """Record a layer in a small model, and compare the record with the oracle."""
    try:
        version = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return Outcome(package, "", name, "not installed", "")
    torch.manual_seed(0)
    try:
        layer = make()
    except NotInThisVersionError:
        return Outcome(package, version, name, "not in this version", "")
    except Exception as error:  # noqa: BLE001 - whatever a package raises is the result
        traceback.print_exc()
        return Outcome(package, version, name, "not built", f"{type(error).__name__}: {error}")
    model = layer.block if layer.is_model else Model(layer.block)
    model = model.to(layer.dtype).eval()
    with torch.no_grad():
        # Some packages make copies of one expert, which no oracle tells apart.
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    seen: dict[str, torch.Tensor] = {}

    def keep(_block: nn.Module, args: tuple[torch.Tensor, ...], output: object) -> None:
        tensors = output if isinstance(output, tuple) else (output,)
        total = next(
            value
            for value in tensors
            if isinstance(value, torch.Tensor) and value.numel() == args[0].numel()
        )
        seen.update(hidden=args[0].flatten(0, -2), output=total.flatten(0, -2))

    input_ids = torch.randint(VOCAB_SIZE, layer.shape)
    try:
        with torch.no_grad():
            model(input_ids)
    except Exception as error:  # noqa: BLE001
        return Outcome(package, version, name, "not on the CPU", f"{type(error).__name__}: {error}")
    try:
        with torch.no_grad(), RoutingRecorder(model) as recorder:
            block = model.get_submodule(recorder.layers[0].block_path)
            handle = block.register_forward_hook(keep)
            model(input_ids)
            handle.remove()
    except MoetoolError as error:
        facts = f" ({'; '.join(error.facts)})" if error.facts else ""
        if inspect_model(model).num_experts == 0:
            return Outcome(package, version, name, "wrong", "counted as a dense model")
        return Outcome(package, version, name, "refused", f"{error.args[0]}{facts}")
    except Exception as error:  # noqa: BLE001
        traceback.print_exc()
        return Outcome(package, version, name, "wrong", f"{type(error).__name__}: {error}")
    (recorded,) = recorder.calls[0].layers
    find = find_error_of_output if recorder.weighs_input(recorded.layer) else find_error_of_weights
    try:
        difference = find(layer, recorded, seen["hidden"], seen["output"])
    except UndeterminedError as error:
        return Outcome(package, version, name, "wrong", f"the oracle can't tell: {error}")
    traced = "exactly" if difference <= layer.tolerance else "wrong"
    wrong_count = find_wrong_count(model, layer, recorder, seen["hidden"])
    if wrong_count:
        return Outcome(package, version, name, "wrong", wrong_count)
    ids = recorded.experts
    dropped = int((ids < 0).sum())
    remark = f"{recorded.layer.rule}; differs by {difference:.1e}; {dropped} of {ids.size} empty"
    return Outcome(package, version, name, traced, remark)


@torch.no_grad()
def find_error_of_weights(
    layer: FrameworkLayer, recorded: RecordedLayer, hidden: torch.Tensor, output: torch.Tensor
) -> float:
    """Return the largest difference of recorded weights from those that explain the output.

    Args:
        hidden: What the block received. # (num_tokens, hidden_size)
        output: What it returned. # (num_tokens, hidden_size)
    """
    experts = range(recorded.layer.num_experts)
    fit = fit_weights(output, torch.stack([layer.run_expert(n, hidden) for n in experts]))
    ids, weights = (torch.from_numpy(values) for values in (recorded.experts, recorded.weights))
    return find_difference(fit, ids, weights)


@torch.no_grad()
def find_error_of_output(
    layer: FrameworkLayer, recorded: RecordedLayer, hidden: torch.Tensor, output: torch.Tensor
) -> float:
    """Return the largest difference of the output from what experts make of weighted hidden states.

    Args:
        hidden: What the block received. # (num_tokens, hidden_size)
        output: What it returned. # (num_tokens, hidden_size)
    """
    total = torch.zeros_like(output)
    for token, (ids, weights) in enumerate(zip(recorded.experts, recorded.weights, strict=True)):
        for expert, weight in zip(ids.tolist(), weights.tolist(), strict=True):
            if expert >= 0:
                total[token] += layer.run_expert(expert, weight * hidden[token, None])[0]
    return float((total - output).abs().max() / output.abs().max())


def find_wrong_count(
    model: nn.Module, layer: FrameworkLayer, recorder: RoutingRecorder, rows: torch.Tensor
) -> str | None:
    """Return how `inspect_model` counts the model otherwise than gradients do; None if it does not.

    The parameters of an expert are those that its output depends on.
    """
    frame = recorder.to_frame()
    counted = inspect_model(model, recording=frame).parameters
    assert counted is not None
    total = sum(parameter.numel() for parameter in model.parameters())
    if counted.active_params_min is None:
        # The page says why.
        return None if counted.total == total else f"counted {counted.total}, not {total}"
    sizes = [
        _count_by_gradients(model, layer, expert, rows)
        for expert in range(recorder.layers[0].num_experts)
    ]
    chosen = frame[frame["expert"] >= 0].groupby(["batch_index", "position"])["expert"]
    numbers = [0] * int(frame.groupby(["batch_index", "position"]).ngroups - chosen.ngroups)
    numbers += [sum(sizes[expert] for expert in ids) for _, ids in chosen]
    rest = total - sum(sizes)
    expected = (total, rest + min(numbers), rest + max(numbers))
    found = (counted.total, counted.active_params_min, counted.active_params_max)
    return None if found == expected else f"counted {found}, not {expected}"


def _count_by_gradients(
    model: nn.Module, layer: FrameworkLayer, expert: int, rows: torch.Tensor
) -> int:
    model.zero_grad()
    # Many rows, so that each unit of an expert is active for some of them.
    rows = rows.repeat(50, 1) + torch.randn(50 * len(rows), rows.shape[1], dtype=rows.dtype)
    output = layer.run_expert(expert, rows.detach())
    if not output.requires_grad:
        return 0
    (output * torch.randn_like(output)).sum().backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    number = sum(int(gradient.count_nonzero()) for gradient in gradients)
    model.zero_grad()
    return number


def main() -> int:
    """Print a table of all layers; fail if one is wrong."""
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    wanted = sys.argv[1:]
    outcomes = [
        prove(*case)
        for case in CASES
        if not wanted or any(word in f"{case[0]} {case[1]}" for word in wanted)
    ]
    print("| package | layer | traced | remarks |\n|---|---|---|---|")
    for each in outcomes:
        print(f"| {each.package} {each.version} | {each.layer} | {each.traced} | {each.remark} |")
    return any(each.traced in ("wrong", "not built") for each in outcomes)


if __name__ == "__main__":
    raise SystemExit(main())
