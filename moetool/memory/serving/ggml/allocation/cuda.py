"""Memory that CUDA's backend adds to a graph (ggml/src/ggml-cuda).

- Attention over a cache that isn't F16 has a copy of keys and values in F16 behind its result
  (`ggml_cuda_flash_attn_ext_get_alloc_size`, fattn.cu), unless a kernel for vectors reads the cache.
- Operations that one kernel may run keep what they read until the last of them has run
  (`ggml_backend_cuda_graph_optimize`, ggml-cuda.cu): the choice of experts, and their weighted sum.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from moetool.memory.serving.ggml.tensors import Tensor

_ADA, _TURING, _VOLTA = (8, 9), (7, 5), (7, 0)
# Sizes of heads whose keys are as wide as their values.
_HEAD_DIMS = (40, 64, 72, 80, 96, 112, 128, 256)
# Others, with the width of their values and the least number that heads per key are a multiple of.
_UNEQUAL_HEAD_DIMS = {192: (128, 8), 320: (256, 32), 512: (512, 1), 576: (512, 1)}
_VECTOR_HEAD_DIMS = (64, 128, 256)
# Pairs of types that the kernel for vectors is built for (`GGML_CUDA_FA_QUANTS`).
_VECTOR_TYPES = ("f16", "bf16", "q8_0", "q4_0")
_CACHE_TYPES = ("f32", "f16", "bf16", "q4_0", "q4_1", "q5_0", "q5_1", "q8_0")
_PLAIN_TYPES = ("f32", "f16", "bf16")
_ALIGNMENT = 128
_HALF_BYTES = 2
# Experts of a token whose sum one kernel runs; numbers of experts whose choice one kernel runs.
_MOST_SUMMED, _MOST_EXPERTS, _OTHER_EXPERTS = 15, 512, (288, 576)
# Tensors that one entry of the graph keeps (`GGML_MAX_SRC`).
_MOST_KEPT = 10
_NORM = ("reshape", "sum_rows", "clamp", "div", "reshape")

Capability = tuple[int, int]


def has_attention(
    *, head_dim: int, value_dim: int, heads_per_key: int, type_k: str, type_v: str
) -> bool:
    """Return whether CUDA has a kernel of flash attention (`ggml_cuda_get_best_fattn_kernel`).

    Args:
        head_dim: Numbers of a key.
        value_dim: Numbers of a value, or of what latent attention reads.
        heads_per_key: Heads of queries for each of keys.
        type_k: The type of cached keys.
        type_v: The type of cached values.
    """
    if type_k not in _CACHE_TYPES or type_v not in _CACHE_TYPES:
        return False
    if head_dim in _HEAD_DIMS:
        return value_dim == head_dim
    if head_dim not in _UNEQUAL_HEAD_DIMS:
        return False
    values, multiple = _UNEQUAL_HEAD_DIMS[head_dim]
    return value_dim == values and heads_per_key >= 2 and heads_per_key % multiple == 0


def count_attention_bytes(node: Tensor, capability: Capability, *, type_k: str, type_v: str) -> int:
    """Return the bytes of an attention's result with the copies behind it.

    Args:
        node: The operation; its first sources are queries, keys and values.
        capability: The GPU's compute capability.
        type_k: The type of cached keys.
        type_v: The type of cached values.
    """
    queries, keys, values = node.sources[:3]
    reads_vectors = _reads_vectors(
        capability,
        num_rows=queries.shape[1],
        num_streams=queries.shape[3],
        head_dim=queries.shape[0],
        heads_per_key=queries.shape[2] // keys.shape[2],
        num_cells=keys.shape[1],
        is_plain=type_k in _PLAIN_TYPES and type_v in _PLAIN_TYPES,
    )
    is_built = type_k == type_v and type_k in _VECTOR_TYPES
    end = node.num_bytes
    are_same = values.base is not None and values.base is keys.base
    for cached, kind in ((keys, type_k), (values, type_v)):
        is_copied = kind == "f32" if reads_vectors and is_built else kind != "f16"
        if is_copied and not (cached is values and are_same):
            end = -(-end // _ALIGNMENT) * _ALIGNMENT + cached.num_values * _HALF_BYTES
    return end


def _reads_vectors(
    capability: Capability,
    *,
    num_rows: int,
    num_streams: int,
    head_dim: int,
    heads_per_key: int,
    num_cells: int,
    is_plain: bool,
) -> bool:
    """Return whether the kernel for vectors runs, which few tokens have."""
    if head_dim not in _VECTOR_HEAD_DIMS:
        return False
    if capability >= _TURING:
        if is_plain:
            is_long = heads_per_key > 4 and (head_dim >= 256 or num_cells >= 8192)
            is_single = num_rows == 1 and num_streams == 1
            if capability >= _ADA and is_single and not is_long:
                return True
            return heads_per_key < 2 and num_rows == 1
        return num_rows <= (2 if capability >= _ADA else 1)
    if capability >= _VOLTA:
        effective = 1
        while heads_per_key % (2 * effective) == 0 and effective < 8:
            effective *= 2
        return num_rows * effective <= 2
    return (heads_per_key < 2 and num_rows == 1) if is_plain else num_rows <= 2


def keep_for_fusion(nodes: Sequence[Tensor], uses: Counter[Tensor]) -> list[Tensor]:
    """Return the nodes of one part of a graph, with entries that keep others until they have run.

    Args:
        nodes: The part's, in order.
        uses: How often the whole graph reads each tensor.
    """
    kept: dict[Tensor, dict[Tensor, None]] = {}
    number = 0
    while number < len(nodes):
        count = _match_weighted_sum(nodes, number, uses)
        if count:
            read = nodes[number].sources
            kept.setdefault(nodes[number + count - 1], {}).update(dict.fromkeys(read))
            number += count - 1
        count = _match_choice(nodes, number, uses)
        if count and number + count < len(nodes):
            for node in nodes[number : number + count]:
                read = (node, *node.sources)
                kept.setdefault(nodes[number + count], {}).update(dict.fromkeys(read))
            number += count - 1
        number += 1
    return [each for node in nodes for each in (node, *_make_entries(list(kept.get(node, ()))))]


def _make_entries(kept: Sequence[Tensor]) -> Iterator[Tensor]:
    """Yield entries that take no memory, and whose sources are what is kept."""
    for start in range(0, len(kept), _MOST_KEPT):
        first = kept[start]
        entry = Tensor(first.kind, first.shape, first.strides, is_external=True)
        entry.sources = tuple(kept[start : start + _MOST_KEPT])
        yield entry


def _match_weighted_sum(nodes: Sequence[Tensor], start: int, uses: Counter[Tensor]) -> int:
    """Return how many nodes sum a token's experts (`ggml_cuda_match_moe_weighted_reduction`)."""
    product = nodes[start]
    if product.operation != "mul" or len(product.sources) != 2:
        return 0
    outputs, weights = product.sources
    num_chosen = product.shape[1]
    is_weighted = outputs.shape == product.shape and weights.shape == (1, *product.shape[1:])
    are_packed = outputs.is_contiguous and weights.is_contiguous
    if not (is_weighted and are_packed and 2 <= num_chosen <= _MOST_SUMMED):
        return 0
    count = 2 * num_chosen
    found = nodes[start : start + count]
    operations = Counter(node.operation for node in found)
    if operations != Counter({"mul": 1, "view": num_chosen, "add": num_chosen - 1}):
        return 0
    views = [node for node in found if node.operation == "view"]
    sums = [node for node in found if node.operation == "add"]
    if any(each.sources != (product,) for each in views):
        return 0
    before = views[0]
    for each, part in zip(sums, views[1:], strict=True):
        if each.sources != (before, part):
            return 0
        before = each
    return count if _are_inner(found, {start + count - 1}, start, uses) else 0


def _match_choice(nodes: Sequence[Tensor], start: int, uses: Counter[Tensor]) -> int:
    """Return how many nodes choose experts and weigh them (`ggml_cuda_topk_moe_fusion`)."""
    if start >= len(nodes) or nodes[start].operation not in ("soft_max", "unary"):
        return 0
    if len(nodes[start].sources) != 1:
        return 0
    operations = [nodes[start].operation, "reshape"]
    has_bias = start + 2 < len(nodes) and nodes[start + 2].operation == "add"
    operations += ["add"] * has_bias + ["argsort", "view", "get_rows"]
    if not _has_operations(nodes, start, operations):
        return 0
    shares, reshaped, *others = nodes[start : start + len(operations)]
    scored = others.pop(0) if has_bias else shares
    order, chosen, weights = others
    is_chain = reshaped.sources == (shares,) and order.sources == (scored,)
    is_chain = is_chain and chosen.sources == (order,) and weights.sources == (reshaped, chosen)
    if not is_chain or (has_bias and scored.sources[0] is not shares):
        return 0
    ids = start + len(operations) - 2
    if _has_operations(nodes, start + len(operations), _NORM):
        operations += _NORM
    end = start + len(operations)
    if (
        end < len(nodes)
        and nodes[end].operation == "scale"
        and nodes[end].sources == (nodes[end - 1],)
    ):
        operations.append("scale")
    num_experts = order.shape[0]
    is_power = num_experts & (num_experts - 1) == 0 and num_experts <= _MOST_EXPERTS
    if not is_power and num_experts not in _OTHER_EXPERTS:
        return 0
    found = nodes[start : start + len(operations)]
    return len(found) if _are_inner(found, {ids, start + len(found) - 1}, start, uses) else 0


def _has_operations(nodes: Sequence[Tensor], start: int, operations: Sequence[str]) -> bool:
    found = [node.operation for node in nodes[start : start + len(operations)]]
    return found == list(operations)


def _are_inner(
    found: Sequence[Tensor], outputs: set[int], start: int, uses: Counter[Tensor]
) -> bool:
    """Return whether nothing else reads what a group computes (`ggml_can_fuse_subgraph`)."""
    group = set(found)
    inside = Counter(source for node in found for source in node.sources)
    for number, node in enumerate(found, start):
        if number in outputs:
            continue
        is_hidden = node.base is not None and node.base not in group
        if node.is_output or inside[node] != uses[node] or is_hidden:
            return False
    return True
