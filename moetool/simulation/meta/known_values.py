"""Known values of a forward without data: masks, positions, lengths and token ids."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, Self

import torch

from moetool.simulation.meta.deferred_values import (
    DeferredCall,
    DeferredValue,
    PendingCalls,
    find_written,
    is_view,
    write_to_copy,
)
from moetool.simulation.meta.dispatch import DispatchMode, find_tensors, flatten, map_only
from moetool.simulation.meta.generation import CantSimulate
from moetool.simulation.meta.literals import knowing_literals
from moetool.simulation.meta.tensor_table import TensorTable

aten = torch.ops.aten

# Larger tensors take torch some time, and several threads. They are computed only if they are read.
_MOST_ELEMENTS = 2**15
# The size of a mask over all pairs of 32,768 positions.
_MOST_BYTES = 2**30
# Their results are numbers, or tensors on the CPU.
_READS = (aten.item, aten._local_scalar_dense, aten.is_nonzero, aten.equal)
_TAKES_MASKS = (aten.index, aten.index_put, aten.index_put_, aten._unsafe_index)
# If only logits decide on the next token, any ordinary token will do.
_CHOOSES_TOKENS = (aten.argmax, aten.multinomial)
_CHOOSES_BEAMS = (aten.topk,)
_CHOOSES_EXPERTS = (aten.topk, aten.argmax, aten.max)
_LEAVES_UNSET = (aten.empty, aten.empty_strided, aten.empty_permuted)
_CHOOSES = (*_CHOOSES_TOKENS, *_CHOOSES_BEAMS, *_CHOOSES_EXPERTS)


class KnownValues(DispatchMode):
    """Computes values that don't depend on weights, alongside the meta device.

    A model on the meta device has no data, but much of what its code reads is known nevertheless:
    whether a mask hides anything, the length of a sequence, the positions of a prompt. Every such
    tensor has a twin on the CPU from which it is read.

    Values that depend on weights stay unknown: reading one raises torch's own error. There are two
    exceptions. Outside `inside_model`, tokens chosen by their logits are `token_id`, each beam's equally
    good, and all beams are continued in turns. And on request, indices chosen by scores inside the
    model are assumed to take turns: routers then send every expert the same number of tokens.

    Large tensors, and those that depend on them, have no twin until one is read (see `num_reads`).

    Args:
        token_id: The token that is generated.
        num_beams: The beams whose scores stand in one row.
        is_routing_balanced: Assume that routers choose experts in turns.
        most_elements: Tensors with at most this many elements are computed when they are made.
        most_bytes: Larger tensors of at most this size are computed when they are read. Reading one
            that depends on an even larger one raises `CantSimulate`.
    """

    def __init__(
        self,
        *,
        token_id: int,
        num_beams: int = 1,
        is_routing_balanced: bool = False,
        most_elements: int = _MOST_ELEMENTS,
        most_bytes: int = _MOST_BYTES,
    ) -> None:
        super().__init__()
        self._most_elements = most_elements
        self._most_bytes = most_bytes
        self._pending = PendingCalls()
        self._token_id = token_id
        self._num_beams = num_beams
        self._is_routing_balanced = is_routing_balanced
        self._twins = TensorTable[torch.Tensor | DeferredValue]()
        self._is_in_model = False
        self.num_reads = 0
        self._literals = ExitStack()

    @contextmanager
    def inside_model(self) -> Iterator[None]:
        """Regard choices of the greatest value as routing, not as the next token."""
        before, self._is_in_model = self._is_in_model, True
        try:
            yield
        finally:
            self._is_in_model = before

    def __enter__(self) -> Self:
        super().__enter__()
        self._literals.enter_context(knowing_literals(self.know, self.find_value))
        return self

    def __exit__(self, *reason: object) -> None:
        self._literals.close()
        super().__exit__(*reason)

    def know(self, tensor: torch.Tensor, value: torch.Tensor) -> None:
        """Set the values of a meta tensor to those of a CPU tensor."""
        self._twins[tensor] = value

    def know_filled(self, tensor: torch.Tensor, number: int) -> None:
        """Set all values of a meta tensor to one number."""
        self._twins[tensor] = self._call_later(
            tensor, aten.full.default, tensor.shape, number, dtype=tensor.dtype
        )

    def count_known(self, tensors: Sequence[torch.Tensor]) -> int:
        """Return the number of tensors whose values are known, or would be if they were read."""
        return sum(tensor in self._twins for tensor in tensors)

    def find_value(self, tensor: torch.Tensor) -> torch.Tensor | None:
        """Return a CPU tensor with the values of another tensor; None if they are unknown.

        Raises:
            CantSimulate: They depend on a tensor that is too large.
        """
        self.num_reads += 1
        twin = self._twins.get(tensor)
        if not isinstance(twin, DeferredValue):
            return twin
        try:
            return twin.compute()
        except NotImplementedError:  # such as a histogram of integers, which only GPUs support
            del self._twins[tensor]
            return None

    def run(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Return an operation's result, and keep its values if they are known."""
        given = find_tensors((*args, *kwargs.values()))
        packet = func.overloadpacket
        are_known = torch.Tag.nondeterministic_seeded not in func.tags and all(
            tensor.device.type != "meta" or tensor in self._twins for tensor in given
        )
        is_read = packet in _READS or packet is aten.nonzero
        if are_known and (is_read or _is_copy_to_host(packet, given, kwargs)):
            values = map_only(torch.Tensor, self._find_on_host, args)
            if all(value is not None or args[index] is None for index, value in enumerate(values)):
                result = self.pass_on(func, values, kwargs)
                return self._make_known(result) if packet is aten.nonzero else result
            are_known = False
        if packet in _TAKES_MASKS:
            args = (args[0], self._find_where(args[1]), *args[2:])
        result = self.pass_on(func, args, kwargs)
        if not are_known:
            self._forget_written(func, args, kwargs)
            self._choose(packet, args, result)
            return result
        self.keep(func, args, kwargs, result)
        return result

    def keep(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        """Keep the values of a result that follows from known values alone.

        The operation need not have run here, if it has no effects and `passes_unknown` allows it.
        """
        is_random = torch.Tag.nondeterministic_seeded in func.tags
        has_values = find_tensors((*args, *kwargs.values())) or _is_factory(func, kwargs)
        if has_values and not is_random:
            self._keep_twin(func, args, kwargs, result)

    def _make_known(self, values: torch.Tensor) -> torch.Tensor:
        """Return a meta tensor whose values are known."""
        tensor = torch.empty_like(values, device="meta")
        self._twins[tensor] = values
        return tensor

    def _find_where(self, indices: Sequence[torch.Tensor | None]) -> list[torch.Tensor | None]:
        """Return indices with known masks replaced by the positions that they select."""
        found: list[torch.Tensor | None] = []
        for index in indices:
            is_mask = index is not None and index.dtype == torch.bool
            mask = self.find_value(index) if index is not None and is_mask else None
            if mask is None:
                found.append(index)
            else:
                positions = mask.nonzero(as_tuple=True)
                found.extend(self._make_known(position) for position in positions)
        return found

    def _choose(self, operation: Any, args: tuple[Any, ...], result: Any) -> None:
        """Set the values of what is chosen by unknown scores."""
        if self._is_in_model:
            if self._is_routing_balanced and operation in _CHOOSES_EXPERTS:
                chosen = result[1] if isinstance(result, tuple | list) else result
                # Without a dimension, `max` returns a value, not its index.
                if not chosen.is_floating_point():
                    self._twins[chosen] = self._call_later(
                        chosen,
                        _choose_in_turns,
                        chosen.shape,
                        dtype=chosen.dtype,
                        num_choices=args[0].shape[-1],
                    )
        elif operation in _CHOOSES_TOKENS:
            self.know_filled(result, self._token_id)
        elif operation in _CHOOSES_BEAMS and self._num_beams > 1:
            self._choose_beams(*result, num_scores=args[0].shape[-1])

    def _choose_beams(self, scores: torch.Tensor, chosen: torch.Tensor, *, num_scores: int) -> None:
        """Set the values of continuations that were chosen among all beams' tokens."""
        turns = torch.arange(chosen.shape[-1]) % self._num_beams
        values = turns * (num_scores // self._num_beams) + self._token_id
        self._twins[chosen] = values.expand(chosen.shape).clone()
        self._twins[scores] = torch.zeros(scores.shape, dtype=scores.dtype)

    def _keep_twin(
        self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any
    ) -> None:
        results = flatten(result)
        made = [leaf for leaf in results if isinstance(leaf, torch.Tensor)]
        twin_args, twin_kwargs = map_only(torch.Tensor, self._twin_of, (args, kwargs))
        if "device" in twin_kwargs:
            twin_kwargs["device"] = "cpu"
        if func._schema.is_mutable and self._write_later(
            func, args, kwargs, (twin_args, twin_kwargs)
        ):
            return
        call = DeferredCall(
            func,
            twin_args,
            twin_kwargs,
            shapes=[tensor.shape for tensor in made],
            num_bytes=0 if is_view(func) else sum(tensor.nbytes for tensor in made),
            most_bytes=self._most_bytes,
        )
        if func._schema.is_mutable:
            for tensor in find_written(func, args, kwargs):
                self._settle_before_writing(tensor)
        is_deferred = any(
            isinstance(leaf, DeferredValue) for leaf in flatten((twin_args, *twin_kwargs.values()))
        ) or any(tensor.numel() > self._most_elements for tensor in made)
        twins: list[Any] = [DeferredValue(call, index) for index in range(len(results))]
        if is_deferred and not func._schema.is_mutable:
            self._pending.add(call)
        else:
            try:
                twins = call.run()
            except NotImplementedError:
                self._forget_written(func, args, kwargs)
                return
            except CantSimulate:
                # Reading what was to be written raises this error.
                self._forget_written(func, args, kwargs)
        for tensor, twin in zip(results, twins, strict=True):
            if isinstance(tensor, torch.Tensor):
                self._twins[tensor] = twin

    def _write_later(self, func: Any, args: Any, kwargs: Any, twins: tuple[Any, Any]) -> bool:
        """Defer a write to a large tensor that nothing shares memory with; False if it can't wait.

        The tensor's value is then that of a copy that was written to. What followed from it earlier
        keeps the value that it had.
        """
        written = list(find_written(func, args, kwargs))
        if len(written) != 1 or written[0] is not args[0]:
            return False
        tensor = written[0]
        address = tensor.untyped_storage()._cdata
        if not isinstance(self._twins.get(tensor), DeferredValue) or any(
            other is not tensor and other.untyped_storage()._cdata == address
            for other in list(self._twins)
        ):
            return False
        call = DeferredCall(
            partial(write_to_copy, func),
            *twins,
            shapes=[tensor.shape],
            num_bytes=tensor.nbytes,
            most_bytes=self._most_bytes,
        )
        self._pending.add(call)
        self._twins[tensor] = DeferredValue(call)
        return True

    def _call_later(
        self, tensor: torch.Tensor, compute: Callable[..., torch.Tensor], *args: Any, **kwargs: Any
    ) -> torch.Tensor | DeferredValue:
        """Return a tensor's values, or a deferred value if there are many."""
        if tensor.numel() <= self._most_elements:
            return compute(*args, **kwargs)
        call = DeferredCall(
            *(compute, args, kwargs),
            shapes=[tensor.shape],
            num_bytes=tensor.nbytes,
            most_bytes=self._most_bytes,
        )
        return DeferredValue(call)

    def _settle_before_writing(self, tensor: torch.Tensor) -> None:
        """Compute what depends on a tensor that is about to be written to."""
        twin = self._twins.get(tensor) if tensor.device.type == "meta" else tensor
        if isinstance(twin, DeferredValue):
            twin.call.settle()
            twin = twin.find()
        if twin is not None:
            self._pending.settle(twin)

    def _find_on_host(self, tensor: torch.Tensor) -> torch.Tensor | None:
        return self.find_value(tensor) if tensor.device.type == "meta" else tensor

    def _twin_of(self, tensor: torch.Tensor) -> torch.Tensor | DeferredValue:
        twin: torch.Tensor | DeferredValue
        twin = self._twins[tensor] if tensor.device.type == "meta" else tensor
        return twin

    def _forget_written(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Forget the tensors that an operation writes unknown values to, and all that share their memory."""
        for written in find_written(func, args, kwargs):
            if written in self._twins:
                address = written.untyped_storage()._cdata
                for tensor in list(self._twins):
                    if tensor.untyped_storage()._cdata == address:
                        del self._twins[tensor]


def passes_unknown(operation: Any) -> bool:
    """Return whether `KnownValues` leaves an operation to torch if none of its values is known."""
    return operation not in (*_READS, aten.nonzero, *_TAKES_MASKS, *_CHOOSES)


def _choose_in_turns(shape: torch.Size, *, dtype: torch.dtype, num_choices: int) -> torch.Tensor:
    """Return numbers below `num_choices` in turns, each equally often."""
    turns, num_chosen = torch.arange(max(num_choices, 1), dtype=dtype), math.prod(shape)
    # Copies take less than half the time of as many remainders.
    return turns.repeat(-(-num_chosen // len(turns)))[:num_chosen].reshape(shape)


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
