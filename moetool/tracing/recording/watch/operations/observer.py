"""Observes the operations of a block: which rows meet which expert's weights, and what comes out.

Operations are seen below torch's own functions, so that it makes no difference whether a block calls
einsum, bmm, index or a grouped product.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.utils._python_dispatch import TorchDispatchMode

from moetool.tracing.recording.watch.operations.factors import FactorTrail
from moetool.tracing.recording.watch.operations.labels import (
    Label,
    all_equal,
    combine_experts,
    is_move,
    keeps_order,
    move,
    name_of,
    sides_of,
    storage_of,
    tensors_in,
    union,
)
from moetool.tracing.recording.watch.operations.opaque import find_origins, is_opaque
from moetool.tracing.recording.watch.operations.products import (
    FACTORS,
    Product,
    ProductLayout,
    lay_out,
)
from moetool.tracing.recording.watch.operations.shared_layers import label_shared
from moetool.tracing.recording.watch.weighted_rows import WeightedRows, WeightTrail


class NotObservedError(Exception):
    """An operation on the weights of experts that is not understood."""


class _Meeting(NamedTuple):
    """Rows, and the label of the weights that they meet."""

    rows: torch.Tensor
    label: Label
    layout: ProductLayout
    weighted: WeightedRows | None


class Observer(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Follows the weights of experts and the hidden states through one run of a block.

    Attributes:
        products: In the order in which they ran.
        outputs: Copies of the products' outputs, as experts returned them, if asked for.
        trail: As given.
        chooses_tokens: Whether the largest of the numbers of all tokens were looked for.

    Args:
        labels: Parameters, and the expert of each of their numbers.
        hidden: The hidden states that the block runs on.
        trail: Follows the weights that they are multiplied by before they go into experts.
        lengths: Numbers of tokens that experts could choose from: those of the call, of a sequence.
        scaled: Numbers of the products whose output is multiplied by -2.
        pinned: By number, outputs that products return instead of theirs.
        keeps_outputs: Whether to keep copies of the products' outputs.
        shares_layers: Whether products of weights that are not an expert's may be parts of one.
    """

    def __init__(
        self,
        labels: Iterable[tuple[torch.Tensor, torch.Tensor]],
        hidden: torch.Tensor,
        *,
        trail: WeightTrail,
        lengths: Collection[int],
        scaled: Collection[int] = (),
        pinned: Mapping[int, torch.Tensor] | None = None,
        keeps_outputs: bool = False,
        shares_layers: bool = False,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.products: list[Product] = []
        self.outputs: list[torch.Tensor] = []
        self.chooses_tokens = False
        self.trail = trail
        self._lengths = frozenset(lengths)
        self._scaled = frozenset(scaled)
        self._pinned = pinned or {}
        self._keeps_outputs = keeps_outputs
        self._shares_layers = shares_layers
        self._labels = {
            id(parameter): Label(experts, frozenset((number,)))
            for number, (parameter, experts) in enumerate(labels)
        }
        self._start = hidden.grad_fn
        # By storage: the products that a tensor made from the hidden states is made of.
        self._sources: dict[int, frozenset[int]] = {storage_of(hidden): frozenset()}
        self._factors = FactorTrail(self._is_from_elsewhere)
        # Tensors whose identities are in use.
        self._kept: list[Any] = [hidden]
        # Of each product, its output, and what a wider dtype made of it.
        self._edges: list[list[GradientEdge | None]] = []
        self._unread: list[tuple[int, torch.Tensor]] = []
        self._outputs: dict[int, int] = {}

    def __torch_dispatch__(
        self, operation: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        self._read_edges()
        given = tensors_in(args, kwargs)
        self._note_opaque(given)
        labelled = [value for value in given if id(value) in self._labels]
        derived = [value for value in given if storage_of(value) in self._sources]
        sources = frozenset().union(*(self._sources[storage_of(value)] for value in derived))
        if not labelled and sources and self._shares_layers:
            shared = label_shared(
                operation, args, sources_of=self._sources_of, products=self.products
            )
            if shared is not None and not any(True for v in derived for _ in self._factors.find(v)):
                return self._meet_shared(*shared, operation, args, kwargs, sources)
        # Ids and masks choose weights, but are not rows that meet them.
        if labelled and any(value.is_floating_point() for value in derived):
            return self._meet(operation, args, kwargs, sources)
        self._note_choice(operation, args, kwargs, is_derived=bool(derived))
        result = self.trail.run(operation, args, kwargs, lambda: operation(*args, **kwargs))
        self._kept.append((args, kwargs, result))
        if labelled:
            self._move_labels(operation, args, kwargs, result, labelled)
        elif derived:
            self._derive(result, given, operation, sources)
            if sources:
                self._factors.follow(operation, args, kwargs, result, given)
                self._follow_output(operation, args, result)
        return result

    def find_edges(self, product: Product) -> list[GradientEdge | None]:
        """Return where gradients reach the output of a product; None if they don't.

        If the output was at once turned into a wider dtype, that is the second place.
        """
        self._read_edges()
        return self._edges[product.number]

    def _read_edges(self) -> None:
        """Note what the last product's output is to autograd, before anything changes it in place."""
        while self._unread:
            number, output = self._unread.pop()
            self._edges[number].append(_find_edge(output))

    def _note_opaque(self, given: Iterable[torch.Tensor]) -> None:
        """Note what tensors are made of that come from operations which were not seen."""
        for value in given:
            if not is_opaque(value) or storage_of(value) in self._sources:
                continue
            origins = find_origins(value, self._start, self._edges)
            if origins is not None:
                self._sources[storage_of(value)] = origins
                self._kept.append(value)
                if origins:
                    self._factors.forget(value)

    def _follow_output(self, operation: Any, args: Any, result: Any) -> None:
        """Note the first wider dtype of a product's output: its gradients have more digits."""
        number = self._outputs.get(id(args[0])) if args else None
        if number is None or not keeps_order(operation):
            return
        self._outputs[id(result)] = number
        if result.dtype.itemsize > args[0].dtype.itemsize and len(self._edges[number]) == 1:
            self._unread.append((number, result))

    def _derive(
        self, result: Any, given: Iterable[torch.Tensor], operation: Any, sources: frozenset[int]
    ) -> None:
        changed = (
            value
            for value, argument in zip(given, operation._schema.arguments, strict=False)
            if argument.alias_info is not None and argument.alias_info.is_write
        )
        for value in (*tensors_in(result), *changed):
            key = storage_of(value)
            self._sources[key] = self._sources.get(key, frozenset()) | sources
            # Some tensors get other memory later.
            self._kept.append(value.untyped_storage())

    def _note_choice(self, operation: Any, args: Any, kwargs: Any, *, is_derived: bool) -> None:
        if is_derived and name_of(operation) == "topk":
            dim = args[2] if len(args) > 2 else kwargs.get("dim", -1)
            self.chooses_tokens |= args[0].shape[dim] in self._lengths

    def _move_labels(
        self, operation: Any, args: Any, kwargs: Any, result: Any, labelled: list[torch.Tensor]
    ) -> None:
        """Label what an operation makes of weights alone."""
        labels = [self._labels[id(value)] for value in labelled]
        outputs = tensors_in(result)
        moved: Any = None
        if is_move(operation):
            own = {id(value): self._labels[id(value)].experts for value in labelled}
            moved = move(operation, args, kwargs, result, own)
        elif name_of(operation) in FACTORS:
            return self._label_product(operation, args, result)
        elif torch.Tag.pointwise in operation.tags and len(outputs) == 1:
            # Such as an update of low rank that is added to a weight.
            moved = combine_experts(labels, outputs[0].shape)
        if moved is None:
            # Statistics of weights, shapes and the like; as weights they would be missed later.
            return None
        for value, experts in zip(outputs, tensors_in(moved), strict=True):
            self._labels[id(value)] = Label(experts, union(labels))
        return None

    def _label_product(self, operation: Any, args: Any, result: torch.Tensor) -> None:
        """Label the product of two weights, such as an update of low rank."""
        for side, position in enumerate(FACTORS[name_of(operation)]):
            label = self._labels.get(id(args[position]))
            if label is None:
                continue
            across = label.experts.mT if side == 0 else label.experts  # (…, inner, width)
            if all_equal(across, -2):
                experts = across[..., :1, :].expand(*across.shape[:-2], *sides_of(result, side))
                experts = experts.mT if side == 0 else experts
                self._labels[id(result)] = Label(experts, label.roots)
                return

    def _meet(self, operation: Any, args: Any, kwargs: Any, sources: frozenset[int]) -> Any:
        """Run an operation on rows and weights, and note it."""
        name = name_of(operation)
        given = tensors_in(args, kwargs)
        number = len(self.products)
        if name in FACTORS:
            layout = self._lay_out(operation, args)
            if layout is not None:
                result = operation(*args, **kwargs)
                product = self._make_product(operation, layout, result.shape)
                if number in self._scaled:
                    result = -2 * result
                result = self._pinned.get(number, result)
                self.products.append(product)
                if self._keeps_outputs:
                    # A block may weight them in place.
                    self.outputs.append(result.clone())
                self._edges.append([])
                self._unread.append((number, result))
                self._outputs[id(result)] = number
                self._kept.append((args, kwargs, result))
                self._sources[storage_of(result)] = frozenset((number,))
                if product.factors is not None:
                    # Of no use to a later product of the same expert: weights come once.
                    self._factors.forget(result)
                return result
        elif torch.Tag.pointwise not in operation.tags and not is_move(operation):
            raise NotObservedError(f"its experts' weights go into {name}, which is not understood")
        result = operation(*args, **kwargs)
        self._kept.append((args, kwargs, result))
        self._derive(result, given, operation, sources)
        if sources:
            self._factors.follow(operation, args, kwargs, result, given)
        return result

    def _meet_shared(
        self,
        weight: torch.Tensor,
        label: Label,
        operation: Any,
        args: Any,
        kwargs: Any,
        sources: frozenset[int],
    ) -> Any:
        """Run an operation of a shared layer as if its weights were one expert's."""
        self._labels[id(weight)] = label
        try:
            return self._meet(operation, args, kwargs, sources)
        finally:
            del self._labels[id(weight)]

    def _lay_out(self, operation: Any, args: Any) -> _Meeting | None:
        """Return where rows and weights meet; None if only a bias is an expert's."""
        positions = FACTORS[name_of(operation)]
        sides = [side for side in (0, 1) if id(args[positions[side]]) in self._labels]
        if not sides:
            return None
        weight = sides[0]
        rows = args[positions[1 - weight]]
        if len(sides) > 1 or storage_of(rows) not in self._sources:
            raise NotObservedError("its experts' weights meet other tensors than its hidden states")
        label = self._labels[id(args[positions[weight]])]
        layout = lay_out(operation, args, weight, label)
        if layout is None:
            raise NotObservedError("one sum runs over the weights of several experts")
        weighted = self.trail.find(rows)
        if weighted is not None:
            of_both = (
                lay_out(operation, [part if v is rows else v for v in args], weight, label)
                for part in weighted
            )
            weighted = WeightedRows(*(part.rows for part in of_both if part is not None))
        return _Meeting(rows, label, layout, weighted)

    def _make_product(self, operation: Any, meeting: _Meeting, shape: torch.Size) -> Product:
        rows, label, layout, weighted = meeting
        factors = next(self._factors.find(rows), None)
        of_rows = None
        if factors is not None:
            of_rows = layout.read_factors(factors)
            is_sum = name_of(operation).startswith(("add", "badd"))
            if of_rows is None or bool(of_rows.isnan().any()) or is_sum:
                raise NotObservedError(
                    "weights are applied within its experts, not to their outputs"
                )
        return Product(
            number=len(self.products),
            inner=self._sources[storage_of(rows)],
            roots=label.roots,
            edge=_find_edge(rows),
            rows=layout.rows.detach(),
            weighted=weighted,
            experts=layout.experts,
            to_rows=layout.to_rows,
            incoming=layout.incoming,
            to_incoming=layout.to_incoming,
            shape=shape,
            num_summands=layout.num_summands,
            factors=of_rows,
        )

    def _is_from_elsewhere(self, value: torch.Tensor) -> bool:
        """Return whether a tensor is made of hidden states, but not by an expert.

        Where experts share layers, these make more of hidden states than scores.
        """
        if not value.is_floating_point() or self._sources_of(value) != frozenset():
            return False
        return not self._shares_layers or self.trail.is_scores(value)

    def _sources_of(self, value: torch.Tensor) -> frozenset[int] | None:
        return self._sources.get(storage_of(value))


def _find_edge(tensor: torch.Tensor) -> GradientEdge | None:
    return None if tensor.grad_fn is None else get_gradient_edge(tensor)
