"""Watch which slice of which expert's weights is multiplied with which token: the second referee.

It looks at the matrix products themselves, below all modules. The expert comes from the address of
the product's weight operand, the token from its other operand, row by row. The router's
choices, the arguments of the experts module and moetool's records are not used anywhere.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, Self

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from moetool.simulation.meta.dispatch import is_composite, run_composite
from tests.families.tiny.dense_reference import (
    RoutedLayer,
    find_scope,
    read_rows,
    scales_input,
)
from tests.families.tiny.expert_slices import Slices, expert_parameters, find_slices

aten = torch.ops.aten

# Where the two factors of a product are among its arguments.
_FACTORS = {aten.mm: (0, 1), aten.addmm: (1, 2), aten.bmm: (0, 1), aten.baddbmm: (1, 2)}
_GROUPED = ("aten::_grouped_mm", "transformers::grouped_mm_fallback")
# Where the source and the indices are of an operation that copies experts' weights together.
_GATHERS = {aten.index: (0, 1), aten.index_select: (0, 2), aten.embedding: (0, 1)}

# Two rows whose cosine is closer to 1 than this are multiples of one another in float32.
_SAME_DIRECTION = 1e-6


@dataclass
class _LayerAudit:
    """One layer's weights, the tokens of its present call, and the products seen so far.

    Attributes:
        path: The `experts_path` of the layer.
        has_scaled_rows: Whether tokens reach the experts scaled, and as zeros if not chosen.
        slices: Where its experts' weights are.
        num_tokens: Tokens of its earlier calls.
        tokens: The tokens of its present call. # (num_tokens, hidden_size)
        index_of_row: The index among those tokens by the bytes of a row.
        gathered: The places of copies of its weights that the present call made, and the copies.
        products: By projection, in order: expert and token; None for a row that is not a token.
    """

    path: str
    has_scaled_rows: bool
    slices: list[Slices]
    num_tokens: int = 0
    tokens: torch.Tensor | None = None
    index_of_row: dict[bytes, int] = field(default_factory=dict)
    gathered: list[tuple[Slices, torch.Tensor]] = field(default_factory=list)
    products: dict[str, list[tuple[int, int | None]]] = field(default_factory=dict)

    def begin_call(self, tokens: torch.Tensor) -> None:
        self.tokens = tokens
        self.index_of_row = {row: index for index, row in enumerate(_row_bytes(tokens))}
        assert len(self.index_of_row) == len(tokens), f"{self.path} received two equal rows"

    def end_call(self) -> None:
        assert self.tokens is not None
        self.num_tokens += len(self.tokens)
        self.tokens = None
        self.gathered.clear()

    def locate(self, tensor: torch.Tensor) -> Slices | None:
        """Return the slices that a tensor is a view of."""
        address = tensor.data_ptr()
        candidates = [*self.slices, *(slices for slices, _ in self.gathered)]
        return next((slices for slices in candidates if address in slices), None)

    def follow(self, slices: Slices, indices: torch.Tensor, copied: torch.Tensor) -> None:
        """Note whose weights an operation copied. The copy is kept, to keep its address its own."""
        assert indices.dtype in (torch.int64, torch.int32), "experts' weights were masked"
        experts = tuple(slices.experts[index] for index in indices.flatten().tolist())
        step = copied.numel() // max(len(experts), 1) * copied.element_size()
        assert copied.is_contiguous(), "experts' weights were copied into an unknown order"
        if step:
            copy = Slices(slices.projection, copied.data_ptr(), step, experts)
            self.gathered.append((copy, copied))

    def see_product(self, slices: Slices, matrix: torch.Tensor, rows: torch.Tensor) -> None:
        """Note a product of experts' weights and rows. # (num_rows, width)"""
        if self.has_scaled_rows:
            rows = rows[rows.any(dim=1)]
        if len(rows) == 0:
            return
        experts = slices.find_experts(matrix)
        seen = self.products.setdefault(slices.projection, [])
        seen += [(expert, token) for token in self._find_tokens(rows) for expert in experts]

    def _find_tokens(self, rows: torch.Tensor) -> list[int | None]:
        assert self.tokens is not None
        if rows.shape[1] != self.tokens.shape[1]:
            return [None] * len(rows)
        if self.has_scaled_rows:
            found = _find_directions(rows, self.tokens)
        else:
            found = [self.index_of_row.get(row) for row in _row_bytes(rows)]
        return [None if index is None else self.num_tokens + index for index in found]

    def count_pairs(self) -> Counter[tuple[int, int]]:
        """Return how often each expert met each token.

        A projection is one of tokens or one of what an earlier product made of them; those of
        tokens must agree, and the others must have met the same experts in the same order.
        """
        of_tokens = [
            [(expert, token) for expert, token in product if token is not None]
            for product in self.products.values()
            if any(token is not None for _, token in product)
        ]
        if not self.products:
            return Counter()
        assert of_tokens, f"no product of {self.path} was one of its tokens"
        first = of_tokens[0]
        for projection, product in self.products.items():
            tokens = [token for _, token in product if token is not None]
            assert len(tokens) in (0, len(product)), f"{self.path}: strange rows in {projection}"
            assert [expert for expert, _ in product] == [expert for expert, _ in first], (
                f"{self.path}: {projection} met other experts than the first product"
            )
        assert all(product == first for product in of_tokens), f"{self.path}: tokens differ"
        return Counter(first)


class _UseOfWeights(TorchDispatchMode):
    """Reports every operation, short of views, that some tensors enter.

    Args:
        is_weight: Whether a tensor is one of those.
        report: Called with the operation, its arguments, and its result.
    """

    def __init__(
        self, is_weight: Callable[[torch.Tensor], bool], report: Callable[..., None]
    ) -> None:
        super().__init__()
        self._is_weight = is_weight
        self._report = report

    def __torch_dispatch__(
        self, func: Any, types: object, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if is_composite(func):
            with self:
                return run_composite(func, args, kwargs)
        result = func(*args, **kwargs)
        if not func.is_view and any(map(self._is_weight, _tensors(args, kwargs))):
            self._report(func, args, kwargs, result)
        return result


class GemmAudit:
    """Sees every matrix product of a model's routed experts while it runs.

        with GemmAudit(model, layers) as audit:
            model(**inputs)
        audit.pairs(layer)

    Tokens are identified by their values: a layer's rows must be distinct (no equal pads). Any use
    of the experts' weights other than a product, a view or a gather is an error, so nothing can
    happen unseen.

    Args:
        model: A model whose expert weights lie in memory as they are.
        layers: All its routed layers.
    """

    def __init__(self, model: nn.Module, layers: Iterable[RoutedLayer]) -> None:
        self._model = model
        self._layers = {
            layer.experts_path: _audit_layer(model, layer.experts_path) for layer in layers
        }
        self._current: _LayerAudit | None = None
        self._exit = ExitStack()
        # Of the experts' weights, and of what was copied from them in the present call.
        self._storages = {
            parameter.untyped_storage().data_ptr()
            for path in self._layers
            for _, _, parameter in expert_parameters(model.get_submodule(path))
        }
        self._copies: set[int] = set()

    def pairs(self, layer: RoutedLayer) -> Counter[tuple[int, int]]:
        """Return how often each expert met each token: `{(token, expert): count}`.

        Tokens are numbered by row, on through the calls; identity experts make no product.
        """
        counted = self._layers[layer.experts_path].count_pairs()
        return Counter({(token, expert): count for (expert, token), count in counted.items()})

    def __enter__(self) -> Self:
        for path, layer in self._layers.items():
            scope = find_scope(self._model, path)
            begin = scope.register_forward_pre_hook(self._begin(layer), with_kwargs=True)
            end = scope.register_forward_hook(self._end)
            self._exit.callback(begin.remove)
            self._exit.callback(end.remove)
        self._exit.enter_context(_UseOfWeights(self._is_weight, self._look))
        return self

    def __exit__(self, *_: object) -> None:
        self._exit.close()

    def _begin(self, layer: _LayerAudit) -> Any:
        def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            assert self._current is None, f"{layer.path} ran within another routed layer"
            layer.begin_call(read_rows(args, kwargs))
            self._current = layer

        return hook

    def _end(self, _module: nn.Module, _args: object, _output: object) -> None:
        assert self._current is not None
        self._current.end_call()
        self._current = None
        self._copies.clear()

    def _is_weight(self, tensor: torch.Tensor) -> bool:
        storage = tensor.untyped_storage().data_ptr()
        return storage in self._storages or storage in self._copies

    def _look(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        """Note an operation that read experts' weights."""
        layer, packet = self._current, func.overloadpacket
        assert layer is not None, f"{func} used experts' weights outside of their layer's call"
        if packet in _GATHERS:
            source, indices = (args[index] for index in _GATHERS[packet])
            if isinstance(indices, list):
                (indices,) = indices
            slices = layer.locate(source)
            assert slices is not None, f"{func} used another layer's experts"
            assert source.data_ptr() == slices.start, f"{func} used a part of the experts"
            layer.follow(slices, indices, result)
            if result.numel():  # all empty tensors share an address
                self._copies.add(result.untyped_storage().data_ptr())
            return
        if packet in _FACTORS:
            left, right = (args[index] for index in _FACTORS[packet])
            products = _split_batch(left, right, weight_first=self._is_weight(left))
        elif func.name() in _GROUPED:
            offsets = args[2] if len(args) > 2 else kwargs["offs"]
            products = _split_groups(args[0], args[1], offsets)
        else:
            raise AssertionError(f"{func} used experts' weights in a way that is not followed")
        for matrix, rows in products:
            slices = layer.locate(matrix)
            assert slices is not None, f"{func} used another layer's experts"
            layer.see_product(slices, matrix, rows)


def _audit_layer(model: nn.Module, path: str) -> _LayerAudit:
    experts = model.get_submodule(path)
    return _LayerAudit(
        path, has_scaled_rows=scales_input(experts), slices=find_slices(experts, path)
    )


def _split_batch(
    left: torch.Tensor, right: torch.Tensor, *, weight_first: bool
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield the weight matrix of each product of a batch, and the other factor's rows."""
    if left.dim() == 2:
        left, right = left[None], right[None]
    for a, b in zip(left, right, strict=True):
        yield (a, b.T) if weight_first else (b, a)


def _split_groups(
    rows: torch.Tensor, weight: torch.Tensor, offsets: torch.Tensor
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    start = 0
    for matrix, end in zip(weight, offsets.tolist(), strict=True):
        yield matrix, rows[start:end]
        start = end


def _find_directions(rows: torch.Tensor, tokens: torch.Tensor) -> list[int | None]:
    """Return the token that each row is a positive multiple of."""
    rows, tokens = (nn.functional.normalize(t.double(), dim=1) for t in (rows, tokens))
    is_multiple = rows @ tokens.T > 1 - _SAME_DIRECTION  # (num_rows, num_tokens)
    assert int(is_multiple.sum(dim=1).max()) <= 1, "two tokens are multiples of one another"
    return [found.index(True) if any(found) else None for found in is_multiple.tolist()]


def _row_bytes(rows: torch.Tensor) -> list[bytes]:
    return [row.tobytes() for row in rows.detach().contiguous().view(torch.uint8).cpu().numpy()]


def _tensors(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[torch.Tensor]:
    for value in (*args, *kwargs.values()):
        for item in value if isinstance(value, list | tuple) else (value,):
            if isinstance(item, torch.Tensor):
                yield item
