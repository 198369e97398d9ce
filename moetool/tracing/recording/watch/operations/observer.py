"""Observes the operations of a block: which rows meet which expert's weights, and what comes out.

Operations are seen below torch's own functions, so that it makes no difference whether a block calls
einsum, bmm, index or a grouped product.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.utils._python_dispatch import TorchDispatchMode

from moetool.tracing.recording.watch.operations.labels import (
    Label,
    all_equal,
    combine_experts,
    is_move,
    keeps_order,
    move,
    name_of,
    storage_of,
    tensors_in,
    union,
)
from moetool.tracing.recording.watch.operations.products import (
    FACTORS,
    Product,
    ProductLayout,
    lay_out,
)

_MULTIPLICATIONS = ("mul", "div")
# A factor of a row is still one after these; after any other operation it is not.
_KEEPS_FACTORS = frozenset({"_to_copy", "mul", "div"})
_UNKNOWN = torch.tensor(torch.nan)


class NotObservedError(Exception):
    """An operation on the weights of experts that is not understood."""


class _Meeting(NamedTuple):
    """Rows, and the label of the weights that they meet."""

    rows: torch.Tensor
    label: Label
    layout: ProductLayout


class Observer(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Follows the weights of experts and the hidden states through one run of a block.

    Attributes:
        products: In the order in which they ran.
        outputs: Copies of the products' outputs, as experts returned them, if asked for.
        chooses_tokens: Whether the largest of the numbers of all tokens were looked for.

    Args:
        labels: Parameters, and the expert of each of their numbers.
        hidden: The hidden states that the block runs on.
        lengths: Numbers of tokens that experts could choose from: those of the call, of a sequence.
        scaled: Numbers of the products whose output is multiplied by -2.
        keeps_outputs: Whether to keep copies of the products' outputs.
    """

    def __init__(
        self,
        labels: Iterable[tuple[torch.Tensor, torch.Tensor]],
        hidden: torch.Tensor,
        *,
        lengths: Collection[int],
        scaled: Collection[int] = (),
        keeps_outputs: bool = False,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.products: list[Product] = []
        self.outputs: list[torch.Tensor] = []
        self.chooses_tokens = False
        self._lengths = frozenset(lengths)
        self._scaled = frozenset(scaled)
        self._keeps_outputs = keeps_outputs
        self._labels = {
            id(parameter): Label(experts, frozenset((number,)))
            for number, (parameter, experts) in enumerate(labels)
        }
        # By storage: the products that a tensor made from the hidden states is made of.
        self._sources: dict[int, frozenset[int]] = {storage_of(hidden): frozenset()}
        # Numbers that a tensor's own were multiplied by on their way from an expert's first product.
        self._factors: dict[int, torch.Tensor] = {}
        self._weighed: set[int] = set()
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
        labelled = [value for value in given if id(value) in self._labels]
        derived = [value for value in given if storage_of(value) in self._sources]
        sources = frozenset().union(*(self._sources[storage_of(value)] for value in derived))
        # Ids and masks choose weights, but are not rows that meet them.
        if labelled and any(value.is_floating_point() for value in derived):
            return self._meet(operation, args, kwargs, sources)
        self._note_choice(operation, args, kwargs, is_derived=bool(derived))
        result = operation(*args, **kwargs)
        self._kept.append((args, kwargs, result))
        if labelled:
            self._move_labels(operation, args, kwargs, result, labelled)
        elif derived:
            self._derive(result, given, operation, sources)
            if sources:
                self._follow_factors(operation, args, kwargs, result, given)
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
                experts = across[..., :1, :].expand(*across.shape[:-2], *_sides(result, side))
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
                    self._factors[id(result)] = _UNKNOWN.to(result.device).expand(result.shape)
                    self._weighed.add(storage_of(result))
                return result
        elif torch.Tag.pointwise not in operation.tags and not is_move(operation):
            raise NotObservedError(f"its experts' weights go into {name}, which is not understood")
        result = operation(*args, **kwargs)
        self._kept.append((args, kwargs, result))
        self._derive(result, given, operation, sources)
        if sources:
            self._follow_factors(operation, args, kwargs, result, given)
        return result

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
        return _Meeting(rows, label, layout)

    def _make_product(self, operation: Any, meeting: _Meeting, shape: torch.Size) -> Product:
        rows, label, layout = meeting
        factors = next(self._find_factors(rows), None)
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
            experts=layout.experts,
            to_rows=layout.to_rows,
            incoming=layout.incoming,
            to_incoming=layout.to_incoming,
            shape=shape,
            num_summands=layout.num_summands,
            factors=of_rows,
        )

    def _follow_factors(
        self, operation: Any, args: Any, kwargs: Any, result: Any, given: list[torch.Tensor]
    ) -> None:
        """Follow what rows are multiplied by between the products of an expert."""
        own = {id(value): factors for value in given for factors in self._find_factors(value)}
        if is_move(operation):
            moved = move(operation, args, kwargs, result, own) if own else ()
            found = [_UNKNOWN] * len(tensors_in(result)) if moved is None else tensors_in(moved)
        elif torch.Tag.pointwise in operation.tags and isinstance(result, torch.Tensor):
            factors = self._multiply(operation, given, result, own)
            found = [] if factors is None else [factors]
        else:
            is_weighed = own or any(map(self._is_from_elsewhere, given))
            found = [_UNKNOWN] * len(tensors_in(result)) if is_weighed else []
        for value, factors in zip(tensors_in(result) if found else (), found, strict=True):
            self._factors[id(value)] = factors.to(value.device).expand(value.shape)
            self._weighed.add(storage_of(value))

    def _find_factors(self, value: torch.Tensor) -> Iterator[torch.Tensor]:
        """Yield the factors of a tensor if it has any: unknown ones if it was changed in place."""
        if id(value) in self._factors:
            yield self._factors[id(value)]
        elif storage_of(value) in self._weighed:
            yield _UNKNOWN.to(value.device).expand(value.shape)

    def _multiply(
        self,
        operation: Any,
        given: list[torch.Tensor],
        result: torch.Tensor,
        own: Mapping[int, torch.Tensor],
    ) -> torch.Tensor | None:
        """Return the factors of the result of an operation on single numbers."""
        name, found = name_of(operation), None
        for value in given:
            factors = own.get(id(value))
            if factors is None and name != "add" and self._is_from_elsewhere(value):
                is_factor = name in _MULTIPLICATIONS and _has_one_number(value, result.shape)
                factors = value.detach() if is_factor else _UNKNOWN.to(value.device)
                factors = factors.reciprocal() if name == "div" else factors
            if factors is not None:
                found = factors if found is None else found * factors
        if found is None or name in _KEEPS_FACTORS:
            return found
        return _UNKNOWN

    def _is_from_elsewhere(self, value: torch.Tensor) -> bool:
        """Return whether a tensor is made of hidden states, but not by an expert."""
        sources = self._sources.get(storage_of(value))
        return sources is not None and not sources and value.is_floating_point()


def _has_one_number(value: torch.Tensor, shape: torch.Size) -> bool:
    """Return whether a factor of rows has the same number all along each row."""
    if not value.dim() or shape[-1] == 1:
        return False
    return value.shape[-1] == 1 or (value.shape[-1] == shape[-1] and all_equal(value, -1))


def _find_edge(tensor: torch.Tensor) -> GradientEdge | None:
    return None if tensor.grad_fn is None else get_gradient_edge(tensor)


def _sides(result: torch.Tensor, side: int) -> tuple[int, int]:
    """Return the numbers of rows and columns of a product, for its transpose if asked for."""
    height, width = result.shape[-2:]
    return (width, height) if side == 0 else (height, width)
