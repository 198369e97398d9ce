"""A call of a block that ends where its experts would start to compute."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


class _ExpertsReached(Exception):  # noqa: N818 - control flow, not an error
    """Ends the call."""


@contextmanager
def stopping_before(experts: nn.Module) -> Iterator[list[torch.Tensor]]:
    """Yield a list that gets the tensors which experts receive, hidden states excepted.

    A call of the block in the body of the `with` statement ends there, and the body with it. If the
    block never calls its experts, the list stays empty.
    """
    received: list[torch.Tensor] = []

    def stop(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        received.extend(v for v in (*args[1:], *kwargs.values()) if isinstance(v, torch.Tensor))
        raise _ExpertsReached

    handle = experts.register_forward_pre_hook(stop, with_kwargs=True)
    try:
        yield received
    except _ExpertsReached:
        pass
    finally:
        handle.remove()
