"""The processes that share a model, as torchrun started them."""

from __future__ import annotations

import os
from typing import TypeVar

Value = TypeVar("Value")


class EnvironmentGroup:
    """This process and the others, as torchrun's environment names them."""

    def __init__(self) -> None:
        self.rank = int(os.environ.get("RANK", "0"))
        self.number = int(os.environ.get("WORLD_SIZE", "1"))
        self.local_rank = int(os.environ.get("LOCAL_RANK", "0"))
        self.local_number = int(os.environ.get("LOCAL_WORLD_SIZE", str(self.number)))

    def gather(self, value: Value) -> list[Value]:
        """Return the values of all processes, in the order of ranks; on the others, nothing."""
        import torch.distributed as dist

        values: list[Value] | None = [value] * self.number if self.rank == 0 else None
        dist.gather_object(value, values)
        return values or []

    def broadcast(self, value: Value) -> Value:
        """Return the value that the first process gives."""
        import torch.distributed as dist

        values = [value]
        dist.broadcast_object_list(values)
        return values[0]
