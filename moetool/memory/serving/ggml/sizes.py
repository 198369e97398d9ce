"""The sizes of a model and of a run that decide the graph that llama.cpp builds."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto

# Cells of a cache are reserved in multiples of it.
_CELLS = 256
_FLOAT_BYTES = 4


class QueryNorm(Enum):
    """Norms of queries and keys: none, one for each head, or one for all heads together."""

    NONE = auto()
    HEADS = auto()
    ROWS = auto()


@dataclass(frozen=True)
class LatentSizes:
    """Sizes of latent attention (MLA); `query` is None without a latent of queries."""

    query: int | None
    keys: int
    plain: int
    rotary: int
    values: int


@dataclass(frozen=True)
class LayerStyle:
    """Parts of layers that only some architectures have.

    Attributes:
        has_layer_norms: Whether norms subtract the mean.
        has_norm_biases: Whether norms have biases.
        has_one_projection: Whether queries, keys and values come from one product.
        clamps_projections: Whether they are limited.
        norms_after_rotation: Whether queries and keys are normalised after their rotation.
        has_plain_norm: Whether queries and keys that were rotated are normalised without weights.
        scales_queries: Whether queries are multiplied by a number before attention.
        unrotated: Layers whose queries and keys aren't rotated.
        is_tempered: Whether queries of those layers are multiplied by a number of their position.
        has_output_bias: Whether attention's last projection has a bias.
        gates_attention: Whether what attention reads is multiplied by a gate before it.
        has_post_norms: Whether what attention and experts add is normalised.
        scales_embedding: Whether embeddings are multiplied by a number.
        scales_residuals: Whether what attention and experts add is.
        scales_logits: Whether logits are.
        has_head_bias: Whether the head has a bias.
        is_parallel: Whether attention and experts read the same numbers.
        halves_shared: Whether the sum of routed and shared experts is halved.
        selects_late: Whether tokens whose logits are computed are chosen after the last norm.
        routes_early: Whether experts are chosen from the input of the layer.
        weighs_inputs: Whether weights multiply the experts' inputs, not their outputs.
        moe_step: How many layers there are for each one with experts.
    """

    has_layer_norms: bool = False
    has_norm_biases: bool = False
    has_one_projection: bool = False
    clamps_projections: bool = False
    norms_after_rotation: bool = False
    has_plain_norm: bool = False
    scales_queries: bool = False
    unrotated: frozenset[int] = frozenset()
    is_tempered: bool = False
    has_output_bias: bool = False
    gates_attention: bool = False
    has_post_norms: bool = False
    scales_embedding: bool = False
    scales_residuals: bool = False
    scales_logits: bool = False
    has_head_bias: bool = False
    is_parallel: bool = False
    halves_shared: bool = False
    selects_late: bool = False
    routes_early: bool = False
    weighs_inputs: bool = False
    moe_step: int = 1


@dataclass(frozen=True)
class ModelSizes:
    """A model's sizes, as a GGUF file's header has them.

    Attributes:
        architecture: llama.cpp's name of it.
        num_groups: Groups of experts that are chosen first; 1 for none.
        shared_width: The width of all shared experts together; 0 for none.
        num_dense: Leading layers with a dense MLP, whose width is `dense_width`.
        window: Tokens of a sliding window; None without one.
        sliding: For each layer, whether it is a sliding-window layer.
        norms_weights: Whether the chosen experts' weights are divided by their sum.
        scales_weights: Whether they are multiplied by a factor other than 1.
        query_norm: The norms of queries and keys.
        has_biases: Whether the projections to queries, keys and values have biases.
        has_score_bias: Whether scores are sigmoids, with a bias that only chooses experts.
        style: Parts of layers that only some architectures have.
    """

    architecture: str
    vocab: int
    hidden: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    num_experts: int
    num_chosen: int
    width: int
    num_groups: int = 1
    num_chosen_groups: int = 1
    shared_width: int = 0
    num_dense: int = 0
    dense_width: int = 0
    window: int | None = None
    sliding: tuple[bool, ...] = ()
    latent: LatentSizes | None = None
    norms_weights: bool = False
    scales_weights: bool = False
    query_norm: QueryNorm = QueryNorm.NONE
    has_biases: bool = False
    has_score_bias: bool = False
    style: LayerStyle = LayerStyle()

    def is_dense(self, number: int) -> bool:
        """Return whether a layer has no experts."""
        return number < self.num_dense or (number + 1) % self.style.moe_step != 0


@dataclass(frozen=True)
class RunSizes:
    """The largest graph that llama.cpp reserves memory for.

    Attributes:
        num_tokens: Tokens of a micro-batch, a multiple of `num_streams`.
        num_outputs: Tokens whose logits are computed.
        num_streams: Sequences, each with separate cells.
        num_cells: Cells of each sequence in layers that keep all tokens.
        num_window_cells: Cells of each sequence in sliding-window layers.
        has_flash_attention: Whether attention is one operation.
        has_quantized_cache: Whether keys are quantized, which rotates them before.
        has_quantized_values: Whether values are; None for the same as keys.
    """

    num_tokens: int
    num_outputs: int
    num_streams: int
    num_cells: int
    num_window_cells: int
    has_flash_attention: bool = True
    has_quantized_cache: bool = False
    has_quantized_values: bool | None = None


def pad_cells(number: int) -> int:
    """Return the cells that llama.cpp reserves in its cache for a number: a multiple of 256.

    See llama-kv-cache.cpp and llama-kv-cache-iswa.cpp.
    """
    return -(-number // _CELLS) * _CELLS


def count_window_cells(cells: int, *, window: int, ubatch: int) -> int:
    """Return the cells of each sequence in sliding-window layers: a window and one micro-batch."""
    return pad_cells(min(cells, window + ubatch))


def count_output_bytes(vocab_size: int, *, num_sequences: int) -> int:
    """Return the bytes of the output buffer, which is in the host's memory.

    A row of logits for each sequence: `llama_context::output_reserve` (src/llama-context.cpp).
    """
    return vocab_size * num_sequences * _FLOAT_BYTES
