"""Parts of a layer as llama.cpp's graphs compute them (src/llama-graph.cpp)."""

from __future__ import annotations

from moetool.memory.serving.ggml.graph import Graph
from moetool.memory.serving.ggml.sizes import ModelSizes
from moetool.memory.serving.ggml.tensors import (
    Tensor,
    apply,
    choose_top,
    compute,
    copy_packed,
    get_rows,
    make_weight,
    multiply,
    multiply_experts,
    reshape,
    set_rows,
    view,
)


def norm(
    values: Tensor,
    name: str,
    *,
    layer: int | None = None,
    subtracts_mean: bool = False,
    has_bias: bool = False,
) -> Tensor:
    """Return `build_norm`: a norm times its weight.

    Args:
        values: What is normalised.
        name: The weight's name without `.weight`.
        layer: The layer that it belongs to; None for the last norm.
        subtracts_mean: Whether it is not a root-mean-square norm.
        has_bias: Whether it has a bias.
    """
    normed = apply("norm" if subtracts_mean else "rms_norm", values)
    normed.layer = layer
    scaled = apply("mul", normed, make_weight(f"{name}.weight", values.shape[0]))
    return (
        apply("add", scaled, make_weight(f"{name}.bias", values.shape[0])) if has_bias else scaled
    )


def project(values: Tensor, size: int, name: str, *, has_bias: bool = False) -> Tensor:
    """Return a product with a matrix of `size` rows, and a bias if it has one."""
    product = multiply(make_weight(f"{name}.weight", values.shape[0], size), values)
    return apply("add", product, make_weight(f"{name}.bias", size)) if has_bias else product


def rotate_positions(values: Tensor, positions: Tensor) -> Tensor:
    """Return `ggml_rope_ext`."""
    return apply("rope", values, positions)


def dense_mlp(values: Tensor, width: int, block: str, *, suffix: str = "") -> Tensor:
    """Return `build_ffn` with SiLU and a gate.

    Args:
        values: Its input.
        width: Numbers between its matrices.
        block: The beginning of its weights' names.
        suffix: Their end.
    """
    up = project(values, width, f"{block}.ffn_up{suffix}")
    gate = project(values, width, f"{block}.ffn_gate{suffix}")
    acted = compute("glu", "f32", gate.shape, gate, up)
    return project(acted, values.shape[0], f"{block}.ffn_down{suffix}")


def route(model: ModelSizes, values: Tensor, block: str) -> Tensor:
    """Return the router's logits."""
    has_bias = model.architecture == "gpt-oss"
    return project(values, model.num_experts, f"{block}.ffn_gate_inp", has_bias=has_bias)


def mix_experts(
    graph: Graph, model: ModelSizes, values: Tensor, block: str, *, logits: Tensor | None = None
) -> Tensor:
    """Return `build_moe_ffn`: the weighted sum of each token's experts.

    Args:
        graph: The graph so far.
        model: The model's sizes.
        values: The experts' input.
        block: The beginning of their weights' names.
        logits: The router's, if it has run before.
    """
    has_biases = model.architecture == "gpt-oss"
    chosen, weights = _choose(
        model, route(model, values, block) if logits is None else logits, block
    )
    graph.expand(weights)
    hidden, num_tokens = values.shape[:2]
    values = reshape(values, hidden, 1, num_tokens)
    weighs_inputs = model.style.weighs_inputs
    if weighs_inputs:
        repeated = compute("repeat", "f32", (hidden, model.num_chosen, num_tokens), values)
        values = apply("mul", repeated, weights)

    def run(numbers: Tensor, size: int, part: str) -> Tensor:
        name = f"{block}.ffn_{part}_exps"
        return _run_experts(model, numbers, chosen, size, name, has_bias=has_biases)

    up = run(values, model.width, "up")
    gate = run(values, model.width, "gate")
    acted = compute("glu", "f32", gate.shape, gate, up)
    outputs = run(acted, hidden, "down")
    outputs = graph.expand(outputs if weighs_inputs else apply("mul", outputs, weights))
    parts = [
        graph.expand(view(outputs, (hidden, num_tokens), outputs.strides[2:3]))
        for _ in range(model.num_chosen)
    ]
    total = parts[0]
    for part in parts[1:]:
        total = graph.expand(apply("add", total, part))
    return copy_packed(total) if model.num_chosen == 1 else total


def _choose(model: ModelSizes, logits: Tensor, block: str) -> tuple[Tensor, Tensor]:
    """Return the experts chosen for each token, and their weights."""
    num_tokens, count = logits.shape[1], model.num_chosen
    shares = logits
    if model.architecture != "gpt-oss":
        shares = apply("unary" if model.has_score_bias else "soft_max", logits)
    selection = logits if model.architecture == "llama4" else shares
    if model.has_score_bias:
        biases = make_weight(f"{block}.exp_probs_b.bias", model.num_experts)
        selection = apply("add", shares, biases)
    if model.num_groups > 1:
        selection = _mask_groups(model, selection)
    chosen = choose_top(selection, count)
    weights = get_rows(reshape(shares, 1, model.num_experts, num_tokens), chosen)
    if model.architecture == "gpt-oss":
        weights = apply("soft_max", reshape(weights, count, num_tokens))
        weights = reshape(weights, 1, count, num_tokens)
    if model.norms_weights:
        weights = reshape(weights, count, num_tokens)
        total = compute("sum_rows", "f32", (1, num_tokens), weights)
        weights = apply("div", weights, apply("clamp", total))
        weights = reshape(weights, 1, count, num_tokens)
    if model.scales_weights:
        weights = apply("scale", weights)
    return chosen, weights


def _mask_groups(model: ModelSizes, selection: Tensor) -> Tensor:
    """Return the experts' scores with those of groups that were not chosen masked."""
    num_tokens, num_groups = selection.shape[1], model.num_groups
    size = model.num_experts // num_groups
    groups = reshape(selection, size, num_groups, num_tokens)
    best = get_rows(reshape(groups, 1, size, num_groups, num_tokens), choose_top(groups, 2))
    best = reshape(best, *best.shape[1:])
    scores = compute("sum_rows", "f32", (1, *best.shape[1:]), best)
    chosen = choose_top(reshape(scores, *scores.shape[1:3]), model.num_chosen_groups)
    kept = get_rows(groups, chosen)
    masked = set_rows(apply("fill", groups), kept, chosen)
    return reshape(masked, model.num_experts, num_tokens)


def _run_experts(
    model: ModelSizes, values: Tensor, chosen: Tensor, size: int, name: str, *, has_bias: bool
) -> Tensor:
    experts = make_weight(f"{name}.weight", values.shape[0], size, model.num_experts)
    product = multiply_experts(experts, values, chosen)
    if not has_bias:
        return product
    return apply("add_id", product, make_weight(f"{name}.bias", size, model.num_experts), chosen)
