"""Recompute the sum of a layer's experts in a plain loop over experts: the first referee.

Independent of moetool and of transformers' experts implementations: the reference reads the raw
expert weights and takes nothing from the model but the rows that its experts received. Of a
module's own code it uses the activation (`act_fn`, `_apply_gate`), the norm after each expert, and
the flags that say how the weights are laid out; never its forward.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch
from torch import nn

Tensors = tuple[torch.Tensor, ...]


class RoutedLayer(Protocol):
    """A routed layer as the referees need it, such as moetool's `MoeLayer`."""

    @property
    def experts_path(self) -> str: ...


def apply_decisions(
    experts: nn.Module,
    hidden_states: torch.Tensor,
    ids: torch.Tensor,
    weights: torch.Tensor,
) -> torch.Tensor:
    """Return `sum_j weights[t, j] * FFN_{ids[t, j]}(hidden_states[t])` in float64.

    Id -1 contributes nothing. An id beyond the experts with weights is an identity expert. In
    Llama 4 the weight scales the expert's input and not its output.

    Args:
        experts: The module at a routed layer's `experts_path`. It is not changed.
        hidden_states: The input of the experts. # (num_tokens, hidden_size)
            For JetMoE's attention experts, the input of their output half: a row for each of a
            token's slots. # (num_tokens, top_k, head_size)
        ids: # (num_tokens, top_k)
        weights: # (num_tokens, top_k)

    Returns:
        # (num_tokens, hidden_size)
    """
    inputs, scales = hidden_states.double(), weights.double()
    num_tokens, width = len(ids), _output_width(experts, hidden_states)
    output = torch.zeros(num_tokens, width, dtype=torch.float64)
    for expert in ids.unique().tolist():
        assert expert >= -1, f"{expert} is not an expert"
        if expert == -1:
            continue
        tokens, slots = torch.where(ids == expert)
        rows = inputs[tokens] if inputs.dim() == 2 else inputs[tokens, slots]
        scale = scales[tokens, slots, None]  # (num_rows, 1)
        if scales_input(experts):
            contribution = run_expert(experts, expert, rows * scale)
        else:
            contribution = run_expert(experts, expert, rows) * scale
        output.index_add_(0, tokens, contribution)
    return output


def scales_input(experts: nn.Module) -> bool:
    """Return whether routing weights were multiplied into the experts' input (Llama 4)."""
    return type(experts).__name__ == "Llama4TextExperts"


def is_attention_experts(experts: nn.Module) -> bool:
    """Return whether these are JetMoE's: pairs of query and output projections, never called."""
    return type(experts).__name__ == "JetMoeMoA"


def has_own_forward(experts: nn.Module) -> bool:
    """Return whether the experts run as one call, and not as separate ones or in two halves."""
    is_bare_container = type(experts).forward in (nn.ModuleList.forward, nn.ModuleDict.forward)
    return not is_bare_container and not is_attention_experts(experts)


# How one expert computes. Every function takes and returns float64 rows.


def run_expert(experts: nn.Module, expert: int, rows: torch.Tensor) -> torch.Tensor:
    """Return one expert's output, without its routing weight. # (num_rows, hidden_size)"""
    if isinstance(experts, nn.ModuleDict | nn.ModuleList):
        # In its own code, because it may be any module; in a copy, to leave the model as it is.
        with torch.no_grad():
            return cast(
                torch.Tensor, copy.deepcopy(separate_experts(experts)[expert]).double()(rows)
            )
    matrices = {name: matrix for name, matrix in _matrices(experts).items() if expert < len(matrix)}
    slices = {name: matrix[expert].double() for name, matrix in matrices.items()}
    if "down" not in slices:
        return rows
    return _apply_norm(experts, _apply_matrices(experts, slices, rows))


def _apply_matrices(
    experts: nn.Module, slices: dict[str, torch.Tensor], rows: torch.Tensor
) -> torch.Tensor:
    """Return what one expert's matrices make of rows, each matrix as (input, output)."""
    if "gate_up" in slices:
        rows = _apply_gate(experts, rows @ slices["gate_up"] + slices.get("gate_up_bias", 0))
    elif "gate" in slices:
        rows = _activation(experts)(rows @ slices["gate"]) * (rows @ slices["up"])
    elif "up" in slices:
        rows = _activation(experts)(rows @ slices["up"] + slices.get("up_bias", 0))
    return rows @ slices["down"] + slices.get("down_bias", 0)


def _matrices(experts: nn.Module) -> dict[str, torch.Tensor]:
    """Return the raw weights by role: matrices as (num_experts, input, output), biases flat."""
    parameters = {name: parameter.detach() for name, parameter in experts.named_parameters()}
    if is_attention_experts(experts):
        return {"down": parameters["output_linear.weight"].mT}
    if "input_linear.weight" in parameters:  # JetMoE's MLP
        return {
            "gate_up": parameters["input_linear.weight"].mT,
            "down": parameters["output_linear.weight"].mT,
        }
    if "fc1.weight" in parameters:  # Aria in transformers 5.17
        return {"gate_up": parameters["fc1.weight"], "down": parameters["fc2.weight"]}
    if "mlp.w1" in parameters:  # DBRX stacks its experts along the rows of a matrix
        num_experts = cast(int, experts.num_experts)
        w1, v1, w2 = (
            parameters[f"mlp.{name}"].unflatten(0, (num_experts, -1)) for name in ("w1", "v1", "w2")
        )
        return {"gate": w1.mT, "up": v1.mT, "down": w2}
    if "down_embed.weight" in parameters:  # Doge: an expert is one row in, one row out
        return {
            "up": parameters["down_embed.weight"].unsqueeze(-1),
            "down": parameters["up_embed.weight"].unsqueeze(-2),
        }
    is_transposed = scales_input(experts) or getattr(experts, "is_transposed", False)
    matrices = {}
    for role in ("gate_up", "up", "down"):
        if f"{role}_proj" in parameters:
            matrix = parameters[f"{role}_proj"]
            matrices[role] = matrix if is_transposed else matrix.mT
        if f"{role}_proj_bias" in parameters:
            matrices[f"{role}_bias"] = parameters[f"{role}_proj_bias"]
    return matrices


def _apply_gate(experts: nn.Module, gate_up: torch.Tensor) -> torch.Tensor:
    own = getattr(experts, "_apply_gate", None)
    if own is not None:
        return cast(torch.Tensor, own(gate_up)).double()
    gate, up = gate_up.chunk(2, dim=-1)
    return _activation(experts)(gate) * up


def _activation(experts: nn.Module) -> Callable[[torch.Tensor], torch.Tensor]:
    owner = experts.mlp if hasattr(experts, "mlp") else experts
    for name in ("act_fn", "activation_fn", "activation"):
        if hasattr(owner, name):
            return cast(Callable[[torch.Tensor], torch.Tensor], getattr(owner, name))
    return nn.functional.silu  # Aria in transformers 5.17 writes it out


def _apply_norm(experts: nn.Module, rows: torch.Tensor) -> torch.Tensor:
    if not getattr(experts, "has_post_expert_norm", False):
        return rows
    norm = cast(Callable[[torch.Tensor], torch.Tensor], experts.post_expert_norm)
    with torch.no_grad():
        return norm(rows).double()


def _output_width(experts: nn.Module, hidden_states: torch.Tensor) -> int:
    if is_attention_experts(experts):
        return _matrices(experts)["down"].shape[-1]
    return hidden_states.shape[-1]


def separate_experts(experts: nn.Module) -> list[nn.Module]:
    """Return the experts that are separate modules, by id; a container may hold others too."""
    return [child for child in experts.children() if any(True for _ in child.parameters())]


@dataclass(frozen=True)
class ObservedExperts:
    """The input and output of a layer's experts, in the order of the calls.

    Attributes:
        experts: The module at the layer's `experts_path`.
        hidden_states: See `apply_decisions`.
        output: The weighted sum over each token's experts. # (num_tokens, hidden_size)
    """

    experts: nn.Module
    hidden_states: torch.Tensor
    output: torch.Tensor

    def relative_error(self, ids: torch.Tensor, weights: torch.Tensor) -> float:
        """Return how far the output is from that of these decisions, relative to its largest."""
        reference = apply_decisions(self.experts, self.hidden_states, ids, weights)
        error = (self.output.double() - reference).abs().max()
        return float(error / reference.abs().max().clamp(min=torch.finfo(torch.float64).tiny))


@contextmanager
def observe_experts(
    model: nn.Module, layers: Iterable[RoutedLayer]
) -> Iterator[dict[str, ObservedExperts]]:
    """Observe the experts of a model while it runs, and yield the observations by `experts_path`.

    A bare container of separate experts is observed around its parent, the block. Shared experts
    that such a block adds are subtracted if they are a child called `shared_expert(s)` whose output
    is added as it is.
    """
    observed: dict[str, ObservedExperts] = {}
    with ExitStack() as stack:
        for layer in layers:
            stack.enter_context(_observe(model, layer.experts_path, observed))
        yield observed


def find_scope(model: nn.Module, experts_path: str) -> nn.Module:
    """Return the module whose call receives a layer's tokens and encloses the work of its experts.

    It is the experts module itself, unless that is never called or receives rows that are no longer
    tokens (Llama 4: scaled, and repeated for every expert); then it is the parent.
    """
    experts = model.get_submodule(experts_path)
    if has_own_forward(experts) and not scales_input(experts):
        return experts
    return model.get_submodule(experts_path.rpartition(".")[0])


def read_rows(args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor:
    """Return the tokens that a module was called with. # (num_tokens, hidden_size)"""
    hidden_states: torch.Tensor = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
    return hidden_states.detach().flatten(0, -2).clone()


@contextmanager
def _observe(model: nn.Module, path: str, observed: dict[str, ObservedExperts]) -> Iterator[None]:
    experts, scope = model.get_submodule(path), find_scope(model, path)
    if is_attention_experts(experts):
        with _observe_attention_experts(experts, path, observed):
            yield
        return
    received: list[torch.Tensor] = []
    others: list[torch.Tensor] = []

    def receive(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        received.append(read_rows(args, kwargs))
        others.clear()

    def catch_other(_module: nn.Module, _args: object, output: torch.Tensor) -> None:
        others.append(output.detach().flatten(0, -2).clone())

    def catch(_module: nn.Module, _args: object, output: Any) -> None:
        rows = _read_output(experts, output, num_tokens=len(received[-1]))
        _add(observed, path, experts, received.pop(), rows - sum(others))

    handles = [scope.register_forward_pre_hook(receive, with_kwargs=True)]
    handles += [child.register_forward_hook(catch_other) for child in _added_beside(experts, scope)]
    handles += [(experts if scales_input(experts) else scope).register_forward_hook(catch)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _added_beside(experts: nn.Module, scope: nn.Module) -> list[nn.Module]:
    """Return the children of the scope whose output is added to that of the experts."""
    names = {"down_proj"} if hasattr(experts, "down_embed") else set()
    if not has_own_forward(experts):
        names = {"shared_expert", "shared_experts"}
    return [child for name, child in scope.named_children() if name in names]


def _read_output(experts: nn.Module, output: Any, *, num_tokens: int) -> torch.Tensor:
    """Return the experts' part of what the scope returned, as one row per token."""
    rows: torch.Tensor = output[0] if isinstance(output, tuple) else output
    rows = rows.detach().flatten(0, -2).clone()
    if scales_input(experts):  # one row for every expert and token
        return rows.view(-1, num_tokens, rows.shape[-1]).sum(dim=0)
    # JetMoE's block is what holds the experts, and it adds a bias to their sum.
    bias = getattr(experts, "bias", None)
    return rows - bias.detach() if isinstance(bias, nn.Parameter) else rows


@contextmanager
def _observe_attention_experts(
    experts: Any, path: str, observed: dict[str, ObservedExperts]
) -> Iterator[None]:
    """Observe JetMoE's attention experts, which are summed by a plain method, not by a module.

    Each token's slots attend separately, so the output half receives a row per slot.
    """
    reduce = experts.reduce

    def observed_reduce(slots: torch.Tensor, topology: Tensors) -> torch.Tensor:
        output = cast(torch.Tensor, reduce(slots, topology))
        received = slots.detach().flatten(0, 1).clone()  # (num_tokens, top_k, head_size)
        _add(observed, path, experts, received, _read_output(experts, output, num_tokens=0))
        return output

    experts.reduce = observed_reduce
    try:
        yield
    finally:
        del experts.reduce


def _add(
    observed: dict[str, ObservedExperts],
    path: str,
    experts: nn.Module,
    hidden_states: torch.Tensor,
    output: torch.Tensor,
) -> None:
    before = observed.get(path)
    if before is not None:
        hidden_states = torch.cat([before.hidden_states, hidden_states])
        output = torch.cat([before.output, output])
    observed[path] = ObservedExperts(experts, hidden_states, output)
