"""Values that are known although no data is: masks, positions, lengths and token ids."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Self

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_map_only
from torch.utils.weak import WeakTensorKeyDictionary

from moetool.simulation.dispatch import DispatchMode

aten = torch.ops.aten

# A mask over all pairs of 4,096 positions has 16 million; more than that takes longer than it tells.
_MOST_ELEMENTS = 2**22
# They make no tensor, or one on the CPU.
_READS = (aten.item, aten._local_scalar_dense, aten.is_nonzero, aten.equal)
_TAKES_MASKS = (aten.index, aten.index_put, aten.index_put_, aten._unsafe_index)
# Where nothing but logits tells which token comes next, any ordinary one does.
_CHOOSES_TOKENS = (aten.argmax, aten.multinomial)
_CHOOSES_EXPERTS = (aten.topk, aten.argmax, aten.max)
_LEAVES_UNSET = (aten.empty, aten.empty_strided, aten.empty_permuted)


class KnownValues(DispatchMode):
    """Computes what follows from no weight, beside the meta device.

    A model on the meta device has no data, but much that its code asks for is known all the same:
    whether a mask hides anything, how long a sequence is, which positions a prompt has. Every such
    tensor has a twin on the CPU from which it is read.

    Values that follow from weights stay unknown: whoever reads one gets torch's own error. There
    are two exceptions. Outside of `inside_model`, tokens chosen by their logits are `token_id`. And
    on request, what is chosen by scores within the model is taken to be chosen in turns: routers
    then send every expert as many tokens as any other.

    Args:
        token_id: The token that generation writes.
        is_routing_balanced: Take it that routers choose experts in turns.
    """

    def __init__(self, *, token_id: int, is_routing_balanced: bool = False) -> None:
        super().__init__()
        self._token_id = token_id
        self._is_routing_balanced = is_routing_balanced
        self._twins: Any = WeakTensorKeyDictionary()
        self._is_in_model = False
        self._literals = _Literals(self)

    @contextmanager
    def inside_model(self) -> Iterator[None]:
        """Take what is chosen by the greatest value for routing, not for the next token."""
        before, self._is_in_model = self._is_in_model, True
        try:
            yield
        finally:
            self._is_in_model = before

    def __enter__(self) -> Self:
        super().__enter__()
        self._literals.__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *reason: object) -> None:
        self._literals.__exit__(*reason)  # type: ignore[no-untyped-call]
        super().__exit__(*reason)

    def know(self, tensor: torch.Tensor, value: torch.Tensor) -> None:
        """Take a tensor on the CPU for the values of one on the meta device."""
        self._twins[tensor] = value

    def find_value(self, tensor: torch.Tensor) -> torch.Tensor | None:
        """Return a tensor on the CPU with the values of another; None if they are unknown."""
        value: torch.Tensor | None = self._twins.get(tensor)
        return value

    def run(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Return an operation's result, and take note of its values where they are known."""
        leaves, _ = tree_flatten((args, kwargs))
        given = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
        packet = func.overloadpacket
        are_known = torch.Tag.nondeterministic_seeded not in func.tags and all(
            tensor.device.type != "meta" or tensor in self._twins for tensor in given
        )
        if are_known and (packet in _READS or _is_copy_to_host(packet, given, kwargs)):
            return func(*(tree_map_only(torch.Tensor, self._twin_of, args)), **kwargs)
        if are_known and packet is aten.nonzero:
            return self._make_known(func(self._twin_of(args[0])))
        if packet in _TAKES_MASKS:
            args = (args[0], self._find_where(args[1]), *args[2:])
        result = func(*args, **kwargs)
        if not are_known:
            self._forget_written(func, args, kwargs)
            self._choose(packet, args, result)
            return result
        if given or _is_factory(func, kwargs):
            self._keep_twin(func, args, kwargs, result)
        return result

    def _make_known(self, values: torch.Tensor) -> torch.Tensor:
        """Return a tensor on the meta device whose values are known."""
        tensor = torch.empty_like(values, device="meta")
        self._twins[tensor] = values
        return tensor

    def _find_where(self, indices: Sequence[torch.Tensor | None]) -> list[torch.Tensor | None]:
        """Return indices with known masks replaced by the positions that they let through."""
        found: list[torch.Tensor | None] = []
        for index in indices:
            if index is None or index.dtype != torch.bool or index not in self._twins:
                found.append(index)
            else:
                positions = self._twins[index].nonzero(as_tuple=True)
                found.extend(self._make_known(position) for position in positions)
        return found

    def _choose(self, operation: Any, args: tuple[Any, ...], result: Any) -> None:
        """Take it as known what is chosen by scores that are not."""
        if self._is_in_model:
            if self._is_routing_balanced and operation in _CHOOSES_EXPERTS:
                chosen = result[1] if isinstance(result, tuple | list) else result
                # Without a dimension, `max` tells a value, not where it is.
                if not chosen.is_floating_point():
                    self._twins[chosen] = _choose_in_turns(chosen, num_choices=args[0].shape[-1])
        elif operation in _CHOOSES_TOKENS:
            self._twins[result] = torch.full(result.shape, self._token_id, dtype=result.dtype)

    def _keep_twin(
        self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any
    ) -> None:
        results, _ = tree_flatten(result)
        made = [leaf for leaf in results if isinstance(leaf, torch.Tensor)]
        if not all(_can_be_known(tensor) for tensor in made):
            self._forget_written(func, args, kwargs)
            return
        twin_args, twin_kwargs = tree_map_only(torch.Tensor, self._twin_of, (args, kwargs))
        if "device" in twin_kwargs:
            twin_kwargs["device"] = torch.device("cpu")
        try:
            twins, _ = tree_flatten(func(*twin_args, **twin_kwargs))
        except NotImplementedError:  # such as a histogram of whole numbers, which only GPUs take
            self._forget_written(func, args, kwargs)
            return
        for tensor, twin in zip(results, twins, strict=True):
            if isinstance(tensor, torch.Tensor):
                self._twins[tensor] = twin

    def _twin_of(self, tensor: torch.Tensor) -> torch.Tensor:
        twin: torch.Tensor = self._twins[tensor] if tensor.device.type == "meta" else tensor
        return twin

    def _forget_written(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Forget what an operation writes unknown values to, with all that shares its memory."""
        if not func._schema.is_mutable:
            return
        for place, argument in enumerate(func._schema.arguments):
            if argument.alias_info is None or not argument.alias_info.is_write:
                continue
            value = args[place] if place < len(args) else kwargs.get(argument.name)
            if isinstance(value, torch.Tensor) and value in self._twins:
                address = self._twins[value].untyped_storage()._cdata
                for tensor, twin in list(self._twins.items()):
                    if twin.untyped_storage()._cdata == address:
                        del self._twins[tensor]


def _choose_in_turns(chosen: torch.Tensor, *, num_choices: int) -> torch.Tensor:
    """Return numbers below `num_choices`, each as often as any other."""
    turns = torch.arange(chosen.numel(), dtype=chosen.dtype) % max(num_choices, 1)
    return turns.reshape(chosen.shape)


def _is_copy_to_host(operation: Any, given: Sequence[torch.Tensor], kwargs: dict[str, Any]) -> bool:
    device = kwargs.get("device")
    return (
        operation is aten._to_copy
        and device is not None
        and torch.device(device).type == "cpu"
        and given[0].device.type == "meta"
    )


def _is_factory(func: Any, kwargs: dict[str, Any]) -> bool:
    return kwargs.get("device") is not None and func.overloadpacket not in _LEAVES_UNSET


def _can_be_known(tensor: torch.Tensor) -> bool:
    return tensor.numel() <= _MOST_ELEMENTS


class _Literals(TorchFunctionMode):
    """Sees what never reaches the dispatcher, or reaches it without its values.

    That is `torch.tensor` of plain numbers, and a tensor of one number written into a text.
    """

    def __init__(self, known: KnownValues) -> None:
        super().__init__()
        self._known = known

    def __torch_function__(
        self, func: Any, types: object, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        del types
        kwargs = kwargs or {}
        if func is torch.Tensor.__format__:
            value = self._known.find_value(args[0])
            shown = args[0] if value is None else value
            return func(shown, *args[1:])  # type: ignore[no-untyped-call]
        result = func(*args, **kwargs)
        if func is torch.tensor and result.device.type == "meta" and _can_be_known(result):
            self._known.know(result, func(*args, **{**kwargs, "device": "cpu"}))
        return result
