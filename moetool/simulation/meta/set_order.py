"""Sets in a model's code, gone through in the same order in every process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn

from moetool.simulation.meta.replaced import find_code, replaced


class _SortedSet(set[Any]):
    """A set that is gone through in the order of its members, if they have one."""

    def __iter__(self) -> Iterator[Any]:
        members = list(super().__iter__())
        try:
            return iter(sorted(members))
        except TypeError:
            return iter(members)


@contextmanager
def going_through_sets_in_order(model: nn.Module) -> Iterator[None]:
    """Have the code of a model go through sets in the order of their members.

    Python goes through strings in a set in an order that differs from process to process. Some
    families of transformers make masks or rotary embeddings in that order, which decides where
    torch's allocator puts them. The same question would have different answers.
    """
    modules = list(_walk_outside_lists(model))
    with ExitStack() as stack:
        for code in find_code(modules):
            if code.__name__.startswith("transformers.models."):
                stack.enter_context(replaced(code, {"set": _SortedSet}))
        for module in modules:
            own = {
                name: _SortedSet(value)
                for name, value in vars(module).items()
                # Those of torch itself have names that begin in this way.
                if type(value) is set and not name.startswith("_")
            }
            if own:
                stack.enter_context(replaced(module, own))
        yield


def _walk_outside_lists(module: nn.Module) -> Iterator[nn.Module]:
    """Yield a module and all below it, except the members of lists: they may be thousands."""
    yield module
    for child in module.children():
        if not isinstance(child, nn.ModuleList):
            yield from _walk_outside_lists(child)
