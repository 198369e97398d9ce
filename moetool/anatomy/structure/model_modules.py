"""The modules of a model, found in one walk and found again only after they have changed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property

import torch
from torch import nn

from moetool.anatomy.routing.walk import walk_modules


class ModelModules:
    """The modules of a model at one time.

    Attributes:
        model: The one whose modules they are.
        by_path: All its modules by their paths, each once, in the order of `named_modules`.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.by_path: Mapping[str, nn.Module] = dict(walk_modules(model))
        modules = self.by_path.values()
        self._members = [(each, list(each._modules.items())) for each in modules if each._modules]
        self._leaves = [each for each in modules if not each._modules]

    @classmethod
    def of(cls, model: nn.Module | ModelModules) -> ModelModules:
        """Return the modules of a model, which is walked unless they are given in its place."""
        return model if isinstance(model, ModelModules) else cls(model)

    @property
    def are_current(self) -> bool:
        """Whether a walk would find the same modules in the same places and order now.

        Looking takes a small part of the time of a walk.
        """
        return not any(leaf._modules for leaf in self._leaves) and all(
            list(module._modules.items()) == members for module, members in self._members
        )

    @cached_property
    def path_by_id(self) -> Mapping[int, str]:
        """The path of each module by its id."""
        return {id(module): path for path, module in self.by_path.items()}

    def list_tensors(self) -> Iterator[torch.Tensor]:
        """Yield the parameters and buffers that the modules hold now, module by module."""
        for module in self.by_path.values():
            for held in (module._parameters, module._buffers):
                if held:
                    yield from (tensor for tensor in held.values() if tensor is not None)


class KnownModules:
    """Keeps the modules of one model from one use to the next."""

    def __init__(self) -> None:
        self._last: ModelModules | None = None

    def of(self, model: nn.Module) -> ModelModules:
        """Return the modules of a model as they are now.

        The model is walked the first time, when it is another one than the last time, and when its
        modules have changed since then.
        """
        last = self._last
        if last is None or last.model is not model or not last.are_current:
            last = self._last = ModelModules(model)
        return last
