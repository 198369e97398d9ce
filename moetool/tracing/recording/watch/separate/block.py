"""A block that calls each expert as a separate module, and what hooks see of its calls."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from moetool.anatomy.routing.moe_layers import MoeLayer
from moetool.anatomy.routing.walk import is_called, join_path
from moetool.errors import UntraceableError
from moetool.tracing.out_of_memory import is_out_of_memory
from moetool.tracing.recording.watch.separate.captures import iter_tensors


@dataclass(frozen=True)
class Part:
    """A module that a block calls: an expert, or next to its experts a router or shared experts.

    Attributes:
        path: Path within the block.
        parent: The module that holds it: the block, or a list within it.
        name: Its name there.
        module: The module itself.
    """

    path: str
    parent: nn.Module
    name: str
    module: nn.Module


@dataclass(frozen=True)
class Block:
    """A block with experts that are modules.

    Attributes:
        path: Path within the model.
        module: The block itself.
        experts: By id, the modules that an expert consists of: one, or one of each of several lists.
        parts: Everything else that it may call.
        passed: The modules between the block and its experts or parts, whose own code runs.
    """

    path: str
    module: nn.Module
    experts: tuple[tuple[Part, ...], ...]
    parts: tuple[Part, ...]
    passed: tuple[nn.Module, ...]

    @property
    def is_plain(self) -> bool:
        """Whether each expert is one module."""
        return all(len(members) == 1 for members in self.experts)

    @contextmanager
    def run_again(self) -> Iterator[None]:
        """Turn what a second run ends in into the error that the block can't be read.

        Raises:
            UntraceableError: The block fails. Out of memory stays what it is.
        """
        try:
            yield
        except UntraceableError:
            raise
        except Exception as error:
            if is_out_of_memory(error):
                raise
            raise self.unreadable(f"a second run of it ends in {error!r}") from error

    def unreadable(self, because: str) -> UntraceableError:
        """Return the error for a block whose routing can't be read."""
        return UntraceableError(
            f"Can't tell what {self.path or type(self.module).__name__} routes: {because}.",
            hint="moetool records blocks that send each token's hidden state to its experts and "
            "add up their outputs by weight.",
        )


@dataclass(frozen=True)
class Returned:
    """One call of a part.

    Attributes:
        output: A copy of its output.
        is_input: Whether that was the very object that it was given.
        args: Its positional arguments.
        kwargs: Its keyword arguments.
        states: Of the random generators, after it.
    """

    output: Any
    is_input: bool
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    states: list[torch.Tensor]


@dataclass(frozen=True)
class BlockCall:
    """Everything that hooks saw of one call of a block.

    Attributes:
        given: The hidden states that it was called with; None if it gets none. # (..., hidden_size)
        hidden: A copy made before it ran. # (..., hidden_size)
        devices: Those with a random generator that it may draw from.
        states: Of the random generators, before it.
        received: By path of an expert's module, the rows of each of its calls. # each (..., width)
        returned: By path of part, the outputs of its calls in order. Of an expert that is one module,
            an output may have its shape and no values.
        order: The paths of the experts' modules in the order in which they were called.
        args: Its positional arguments.
        kwargs: Its keyword arguments.
        output: What it returned, once it did.
        has_values: Whether all outputs in `returned` have their values.
    """

    given: torch.Tensor | None
    hidden: torch.Tensor | None
    devices: list[torch.device]
    states: list[torch.Tensor]
    received: dict[str, list[torch.Tensor]] = field(default_factory=dict)
    returned: dict[str, list[Returned]] = field(default_factory=dict)
    order: list[str] = field(default_factory=list)
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    output: Any = None
    has_values: bool = True

    def list_sizes(self) -> list[int]:
        """Return how many tokens there may be, by what went into the block and came out of it."""
        sizes = [
            value.numel() // value.shape[-1] if value.is_floating_point() else value.numel()
            for value in iter_tensors([self.given, self.args, self.kwargs, self.output])
            if value.numel() and value.dim()
        ]
        return list(dict.fromkeys(sizes))


def find_block(model: nn.Module, layer: MoeLayer) -> Block:
    """Return the block of a routed layer whose experts are modules."""
    module = model.get_submodule(layer.block_path)
    paths = layer.members or _list_members(model, layer)
    experts = tuple(tuple(_make_part(module, path) for path in members) for members in paths)
    taken = {id(part.module) for members in experts for part in members}
    passed: list[nn.Module] = []
    parts = tuple(_find_parts(module, taken, passed))
    return Block(layer.block_path, module, experts, parts, tuple(passed))


def _list_members(model: nn.Module, layer: MoeLayer) -> tuple[tuple[str, ...], ...]:
    container = model.get_submodule(layer.experts_path)
    path = layer.experts_path.removeprefix(f"{layer.block_path}.")
    return tuple((join_path(path, name),) for name, _ in container.named_children())


def _make_part(block: nn.Module, path: str) -> Part:
    parent, _, name = path.rpartition(".")
    return Part(path, block.get_submodule(parent), name, block.get_submodule(path))


def _find_parts(
    parent: nn.Module, taken: set[int], passed: list[nn.Module], *, prefix: str = ""
) -> Iterator[Part]:
    """Yield what a block may call next to its experts.

    Of lists, which are not called, it is the items, and of modules that hold experts their children.
    """
    for name, child in parent.named_children():
        if id(child) in taken:
            continue
        holds_experts = any(id(inner) in taken for inner in child.modules())
        if is_called(child) and not holds_experts:
            yield Part(f"{prefix}{name}", parent, name, child)
        else:
            passed.append(child)
            yield from _find_parts(child, taken, passed, prefix=f"{prefix}{name}.")
