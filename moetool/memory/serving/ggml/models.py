"""The graphs of whole models, by src/models/*.cpp of llama.cpp."""

from __future__ import annotations

from moetool.memory.serving.ggml.attention import CacheInputs, attend, make_cache_inputs
from moetool.memory.serving.ggml.graph import Graph
from moetool.memory.serving.ggml.layers import (
    dense_mlp,
    mix_experts,
    norm,
    project,
    rotate_positions,
    route,
)
from moetool.memory.serving.ggml.sizes import LatentSizes, ModelSizes, QueryNorm, RunSizes
from moetool.memory.serving.ggml.tensors import (
    KIND_BYTES,
    Tensor,
    apply,
    concatenate,
    get_rows,
    make_leaf,
    make_weight,
    multiply,
    permute,
    reshape,
    view,
)


def build_graph(model: ModelSizes, run: RunSizes) -> Graph:
    """Return the graph that llama.cpp reserves memory for.

    Args:
        model: The model, of one of the architectures in `families`.
        run: The micro-batch and its cache.
    """
    return _Builder(model, run).build()


class _Builder:
    """A graph under construction, with the inputs that its layers share."""

    def __init__(self, model: ModelSizes, run: RunSizes) -> None:
        self._model, self._run, self._graph = model, run, Graph()
        self._positions = make_leaf("i32", run.num_tokens, is_input=True)
        self._temperatures = make_leaf("f32", 1, 1, run.num_tokens, is_input=True)
        self._outputs = make_leaf("i32", run.num_outputs, is_input=True)
        self._full = self._make_cache_inputs(run.num_cells)
        self._windowed = self._full
        if model.window is not None:
            self._windowed = self._make_cache_inputs(run.num_window_cells)

    def build(self) -> Graph:
        """Return the whole graph."""
        model, graph, style = self._model, self._graph, self._model.style
        values = self._embed()
        for number in range(model.num_layers):
            is_last = number == model.num_layers - 1
            selects_late = model.architecture == "gpt-oss" or style.selects_late
            values = self._add_layer(values, number, keeps_outputs=is_last and not selects_late)
        if model.architecture == "gpt-oss":
            values.is_output = True
            values = get_rows(values, self._outputs)
        values = self._norm(values, "output_norm", None)
        values.is_output = True
        if style.selects_late:
            values = get_rows(values, self._outputs)
            values.is_output = True
        logits = project(values, model.vocab, "output", has_bias=style.has_head_bias)
        if style.scales_logits:
            logits = apply("scale", logits)
        logits.is_output = True
        graph.expand(logits)
        return graph

    def _make_cache_inputs(self, num_cells: int) -> CacheInputs:
        model = self._model
        return make_cache_inputs(
            self._run,
            num_cells=num_cells,
            head_dim=model.head_dim,
            num_kv_heads=model.num_kv_heads,
            is_latent=model.latent is not None,
        )

    def _embed(self) -> Tensor:
        """Return `build_inp_embd`, whose input for embeddings takes memory without being used."""
        model, num_tokens = self._model, self._run.num_tokens
        tokens = make_leaf("i32", num_tokens, is_input=True)
        given = make_leaf("f32", model.hidden, num_tokens, is_input=True)
        table = make_weight("token_embd.weight", model.hidden, model.vocab)
        embedded = self._graph.expand(get_rows(table, tokens))
        self._graph.expand(given)
        if model.style.scales_embedding:
            embedded = self._graph.expand(apply("scale", embedded))
        return embedded

    def _norm(self, values: Tensor, name: str, number: int | None) -> Tensor:
        style = self._model.style
        return norm(
            values,
            name,
            layer=number,
            subtracts_mean=style.has_layer_norms,
            has_bias=style.has_norm_biases,
        )

    def _add_layer(self, values: Tensor, number: int, *, keeps_outputs: bool) -> Tensor:
        model, style, block = self._model, self._model.style, f"blk.{number}"
        logits = route(model, values, block) if style.routes_early else None
        normed = self._norm(values, f"{block}.attn_norm", number)
        attended = self._attend(normed, number)
        if style.has_post_norms:
            attended = self._norm(attended, f"{block}.post_attention_norm", number)
        if keeps_outputs:
            attended = get_rows(attended, self._outputs)
            values = get_rows(values, self._outputs)
            logits = None if logits is None else get_rows(logits, self._outputs)
        if style.is_parallel:
            mixed = self._mix(normed, number, logits)
            return apply("add", apply("add", mixed, values), attended)
        if style.scales_residuals:
            attended = apply("scale", attended)
        between = apply("add", attended, values)
        mixed = self._mix(self._norm(between, f"{block}.ffn_norm", number), number, logits)
        if style.has_post_norms:
            mixed = self._norm(mixed, f"{block}.post_ffw_norm", number)
        if style.scales_residuals:
            mixed = apply("scale", mixed)
        pair = (between, mixed) if model.architecture == "phimoe" else (mixed, between)
        return apply("add", *pair)

    def _mix(self, values: Tensor, number: int, logits: Tensor | None) -> Tensor:
        """Return what a layer's experts, or its dense MLP, add."""
        model, block = self._model, f"blk.{number}"
        if model.is_dense(number):
            return dense_mlp(values, model.dense_width, block)
        mixed = mix_experts(self._graph, model, values, block, logits=logits)
        if model.shared_width:
            mixed = apply("add", mixed, self._run_shared(values, block))
            mixed = apply("scale", mixed) if model.style.halves_shared else mixed
        return mixed

    def _run_shared(self, values: Tensor, block: str) -> Tensor:
        width = self._model.shared_width
        if self._model.architecture != "qwen2moe":
            return dense_mlp(values, width, block, suffix="_shexp")
        gate = project(values, 1, f"{block}.ffn_gate_inp_shexp")
        gate = apply("div", apply("unary", gate), gate)
        return apply("mul", dense_mlp(values, width, block, suffix="_shexp"), gate)

    def _project_heads(self, values: Tensor, number: int) -> list[Tensor]:
        """Return queries, keys and values by head (`build_qkv`), those of rows normalised."""
        model, style, num_tokens = self._model, self._model.style, self._run.num_tokens
        heads = (model.num_heads, model.num_kv_heads, model.num_kv_heads)
        if style.has_one_projection:
            width = sum(heads) * model.head_dim
            name = f"blk.{number}.attn_qkv"
            product = project(values, width, name, has_bias=model.has_biases)
            product = apply("clamp", product) if style.clamps_projections else product
            strides = (model.head_dim * KIND_BYTES["f32"], product.strides[1])
            shapes = [(model.head_dim, num_heads, num_tokens) for num_heads in heads]
            return [view(product, shape, strides) for shape in shapes]
        parts = []
        for place, num_heads in enumerate(heads):
            name = f"blk.{number}.attn_{'qkv'[place]}"
            part = project(values, num_heads * model.head_dim, name, has_bias=model.has_biases)
            part = apply("clamp", part) if style.clamps_projections else part
            if model.query_norm is QueryNorm.ROWS and place < len(heads) - 1:
                part = norm(part, f"{name}_norm", layer=number)
            parts.append(reshape(part, model.head_dim, num_heads, num_tokens))
        return parts

    def _norm_heads(self, queries: Tensor, keys: Tensor, number: int) -> tuple[Tensor, Tensor]:
        block = f"blk.{number}.attn"
        return (
            norm(queries, f"{block}_q_norm", layer=number),
            norm(keys, f"{block}_k_norm", layer=number),
        )

    def _attend(self, values: Tensor, number: int) -> Tensor:
        model, style = self._model, self._model.style
        if model.latent is not None:
            return self._attend_to_latents(values, model.latent, number)
        queries, keys, read = self._project_heads(values, number)
        has_norms = model.query_norm is QueryNorm.HEADS
        if has_norms and not style.norms_after_rotation:
            queries, keys = self._norm_heads(queries, keys, number)
        if number not in style.unrotated:
            queries, keys = (rotate_positions(each, self._positions) for each in (queries, keys))
            if style.has_plain_norm:
                queries, keys = (apply("rms_norm", each) for each in (queries, keys))
        elif style.is_tempered:
            queries = apply("mul", queries, self._temperatures)
        if has_norms and style.norms_after_rotation:
            queries, keys = self._norm_heads(queries, keys, number)
        if style.scales_queries:
            queries = apply("scale", queries)
        is_sliding = bool(model.sliding) and model.sliding[number]
        has_sinks = model.architecture == "gpt-oss"
        attended = attend(
            self._graph,
            self._run,
            self._windowed if is_sliding else self._full,
            queries,
            keys,
            read,
            layer=number,
            sinks=make_weight(f"blk.{number}.attn_sinks.weight", model.num_heads)
            if has_sinks
            else None,
            has_windows=model.window is not None,
        )
        if style.gates_attention:
            gate = project(values, attended.shape[0], f"blk.{number}.attn_gate")
            attended = apply("mul", attended, apply("unary", gate))
        name = f"blk.{number}.attn_output"
        has_bias = has_sinks or style.has_output_bias
        return project(attended, model.hidden, name, has_bias=has_bias)

    def _attend_to_latents(self, values: Tensor, latent: LatentSizes, number: int) -> Tensor:
        """Return attention of deepseek2, whose keys are one latent for all heads."""
        model, num_tokens, block = self._model, self._run.num_tokens, f"blk.{number}.attn"
        head_dim = latent.plain + latent.rotary
        queries, name = values, f"{block}_q"
        if latent.query is not None:
            queries, name = project(values, latent.query, f"{block}_q_a"), f"{block}_q_b"
            queries = norm(queries, f"{block}_q_a_norm", layer=number)
        queries = project(queries, head_dim * model.num_heads, name)
        queries = reshape(queries, head_dim, model.num_heads, num_tokens)
        packed = project(values, latent.keys + latent.rotary, f"{block}_kv_a_mqa")
        row = packed.strides[1]
        compressed = view(packed, (latent.keys, num_tokens), (row,))
        rotary = view(packed, (latent.rotary, 1, num_tokens), (row, row))
        rotary = rotate_positions(rotary, self._positions)
        compressed = norm(compressed, f"{block}_kv_a_norm", layer=number)
        shape = (model.num_heads, num_tokens)
        plain = view(queries, (latent.plain, *shape), queries.strides[1:3])
        turned = view(queries, (latent.rotary, *shape), queries.strides[1:3])
        turned = rotate_positions(turned, self._positions)
        shape_of = (latent.plain, latent.keys, model.num_heads)
        matrices = make_weight(f"{block}_k_b.weight", *shape_of)
        absorbed = permute(multiply(matrices, permute(plain, 0, 2, 1, 3)), 0, 2, 1, 3)
        queries = concatenate(absorbed, turned)
        compressed = reshape(compressed, latent.keys, 1, num_tokens)
        attended = attend(
            self._graph,
            self._run,
            self._full,
            queries,
            concatenate(compressed, rotary),
            compressed,
            layer=number,
            expansion=make_weight(
                f"{block}_v_b.weight", latent.keys, latent.values, model.num_heads
            ),
        )
        return project(attended, model.hidden, f"{block}_output")
