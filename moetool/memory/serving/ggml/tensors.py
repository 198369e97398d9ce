"""Tensors of a ggml graph: shapes, strides and sources, by the rules of ggml/src/ggml.c.

Shapes are in ggml's order, the fastest dimension first, and always have four entries. Values do
not exist: only what decides sizes, lifetimes and reuse is kept.
"""

from __future__ import annotations

from dataclasses import dataclass

Shape = tuple[int, int, int, int]
# Bytes of a number of the types that a graph computes in.
KIND_BYTES = {"f32": 4, "f16": 2, "i32": 4, "i64": 8}


@dataclass(eq=False, slots=True)
class Tensor:
    """A tensor of a graph, compared by identity.

    Attributes:
        kind: One of `KIND_BYTES`.
        shape: Numbers in each dimension.
        strides: Bytes from one entry of each dimension to the next.
        operation: What computes it; `none` for a leaf.
        sources: What it is computed from.
        base: The tensor whose memory a view shows, itself not a view; None for other tensors.
        is_external: Whether it is stored elsewhere: weights, and the cache.
        is_input: Whether it is filled in before the graph runs.
        is_output: Whether it is read after the graph has run.
        weight: The name of the tensor in a GGUF file; empty for all that are not weights.
        layer: The layer whose device a cache, or a norm, belongs to; None for all others.
        cached: `k` for cached keys, `v` for cached values; empty for all others.
        packed_bytes: Bytes where they don't follow from the shape, as of quantized weights.
    """

    kind: str
    shape: Shape
    strides: Shape
    operation: str = "none"
    sources: tuple[Tensor, ...] = ()
    base: Tensor | None = None
    is_external: bool = False
    is_input: bool = False
    is_output: bool = False
    weight: str = ""
    layer: int | None = None
    cached: str = ""
    packed_bytes: int | None = None

    @property
    def num_bytes(self) -> int:
        """Bytes from its first number to its last one (`ggml_nbytes`)."""
        if self.packed_bytes is not None:
            return self.packed_bytes
        steps = zip(self.shape, self.strides, strict=True)
        return KIND_BYTES[self.kind] + sum((size - 1) * stride for size, stride in steps)

    @property
    def num_values(self) -> int:
        """The product of its dimensions."""
        first, second, third, fourth = self.shape
        return first * second * third * fourth

    @property
    def is_contiguous(self) -> bool:
        """Whether its numbers follow each other without gaps."""
        return self.strides == _pack(self.kind, self.shape)

    def has_layout_of(self, other: Tensor) -> bool:
        """Return whether kind, shape and strides are the same."""
        return (self.kind, self.shape, self.strides) == (other.kind, other.shape, other.strides)


def make_leaf(kind: str, *shape: int, is_input: bool = False) -> Tensor:
    """Return a leaf: an input of the graph, or a tensor that is stored elsewhere."""
    padded = _pad_shape(shape)
    return Tensor(kind, padded, _pack(kind, padded), is_input=is_input, is_external=not is_input)


def make_weight(name: str, *shape: int) -> Tensor:
    """Return a tensor of the file, whose type does not matter for what is computed from it."""
    padded = _pad_shape(shape)
    return Tensor("f32", padded, _pack("f32", padded), is_external=True, weight=name)


def make_cache(layer: int, cached: str, *shape: int) -> Tensor:
    """Return the keys, or the values, that a layer caches, as if they were of f32."""
    padded = _pad_shape(shape)
    strides = _pack("f32", padded)
    return Tensor("f32", padded, strides, is_external=True, layer=layer, cached=cached)


def compute(operation: str, kind: str, shape: tuple[int, ...], *sources: Tensor) -> Tensor:
    """Return a new contiguous tensor that an operation computes."""
    padded = _pad_shape(shape)
    return Tensor(kind, padded, _pack(kind, padded), operation, sources)


def apply(operation: str, first: Tensor, *others: Tensor) -> Tensor:
    """Return a new contiguous tensor with the shape of an operation's first source."""
    return compute(operation, first.kind, first.shape, first, *others)


def multiply(matrix: Tensor, values: Tensor) -> Tensor:
    """Return `ggml_mul_mat`: rows of the matrix become the first dimension."""
    shape = (matrix.shape[1], *values.shape[1:])
    return compute("mul_mat", "f32", shape, matrix, values)


def multiply_experts(experts: Tensor, values: Tensor, chosen: Tensor) -> Tensor:
    """Return `ggml_mul_mat_id`: each token by the experts chosen for it."""
    shape = (experts.shape[1], chosen.shape[0], values.shape[2])
    return compute("mul_mat_id", "f32", shape, experts, values, chosen)


def get_rows(table: Tensor, rows: Tensor) -> Tensor:
    """Return `ggml_get_rows`: the table's rows at some indices."""
    kind = "i32" if table.kind == "i32" else "f32"
    return compute("get_rows", kind, (table.shape[0], *rows.shape[:3]), table, rows)


def set_rows(table: Tensor, values: Tensor, rows: Tensor) -> Tensor:
    """Return `ggml_set_rows`: a view of the table after its rows were replaced."""
    return _view("set_rows", table, table.shape, table.strides, (values, rows, table))


def concatenate(first: Tensor, second: Tensor) -> Tensor:
    """Return `ggml_concat` along the first dimension."""
    shape = (first.shape[0] + second.shape[0], *first.shape[1:])
    return compute("concat", first.kind, shape, first, second)


def choose_top(values: Tensor, count: int) -> Tensor:
    """Return `ggml_argsort_top_k`: a view of the first columns of sorted indices."""
    order = compute("argsort", "i32", values.shape, values)
    return view(order, (count, *order.shape[1:]), order.strides[1:])


def view(values: Tensor, shape: tuple[int, ...], strides: tuple[int, ...]) -> Tensor:
    """Return a view; strides are those after the first dimension's, as far as they are given."""
    padded = _pad_shape(shape)
    steps = [KIND_BYTES[values.kind], *strides]
    while len(steps) < len(padded):
        steps.append(steps[-1] * padded[len(steps) - 1])
    return _view("view", values, padded, _as_shape(steps), (values,))


def reshape(values: Tensor, *shape: int) -> Tensor:
    """Return a view of contiguous numbers in another shape."""
    padded = _pad_shape(shape)
    return _view("reshape", values, padded, _pack(values.kind, padded), (values,))


def permute(values: Tensor, *targets: int) -> Tensor:
    """Return a view whose dimension `targets[i]` is the old dimension `i`."""
    places = sorted(range(4), key=targets.__getitem__)
    return _view(
        "permute",
        values,
        _as_shape([values.shape[place] for place in places]),
        _as_shape([values.strides[place] for place in places]),
        (values,),
    )


def copy_packed(values: Tensor, *shape: int) -> Tensor:
    """Return `ggml_cont`: a contiguous copy, in another shape if one is given."""
    return compute("cont", values.kind, shape or values.shape, values)


def _view(
    operation: str,
    values: Tensor,
    shape: Shape,
    strides: Shape,
    sources: tuple[Tensor, ...],
) -> Tensor:
    base = values.base or values
    return Tensor(values.kind, shape, strides, operation, sources, base)


def _pack(kind: str, shape: Shape) -> Shape:
    steps = [KIND_BYTES[kind]]
    for size in shape[:3]:
        steps.append(steps[-1] * size)
    return _as_shape(steps)


def _pad_shape(shape: tuple[int, ...]) -> Shape:
    return _as_shape([*shape, *[1] * (4 - len(shape))])


def _as_shape(sizes: list[int]) -> Shape:
    first, second, third, fourth = sizes
    return first, second, third, fourth
