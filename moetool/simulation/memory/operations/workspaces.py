"""The workspaces that matrix products take once and keep."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from moetool.simulation.memory.layer_events import Taking, Workspace
from moetool.simulation.memory.operations.ledger import Ledger
from moetool.simulation.memory.operations.outcomes import Need


class Workspaces:
    """Takes workspaces when products first need them.

    Attributes:
        taken: The block of each workspace taken so far.
        needed: The first product since the layer began that needs each of them.
        needs: The products so far that need one.

    Args:
        ledger: Writes down their births.
        sizes: The size of each.
    """

    def __init__(self, ledger: Ledger, sizes: Mapping[Workspace, int]) -> None:
        self.taken: dict[Workspace, int] = {}
        self.needed: dict[Workspace, Taking] = {}
        self.needs: list[Need] = []
        self._ledger = ledger
        self._sizes = sizes

    def need(self, kind: Workspace, operation: str, origin: int) -> None:
        """Let a product have a workspace.

        Args:
            kind: The kind of workspace.
            operation: The product.
            origin: The place of the product.
        """
        self.needs.append(Need(len(self._ledger.events), kind, operation))
        if self._is_taken_by_products(kind):
            self.take(kind, origin)

    def need_again(self, need: Need, origin: int) -> None:
        """Let a product have a workspace that has been taken."""
        self.needs.append(need)
        if need.workspace in self.taken:
            self.needed.setdefault(need.workspace, Taking(need.num_events, origin, None))

    def are_taken(self, needs: Sequence[Need]) -> bool:
        """Return whether products take no further workspace."""
        return all(
            kind in self.taken or not self._is_taken_by_products(kind) for _, kind, _ in needs
        )

    def take(self, kind: Workspace, origin: int, *, block: int | None = None) -> None:
        """Take the workspace that products keep from now on, unless it has been taken.

        Args:
            kind: The kind of workspace.
            origin: The place of the product.
            block: Its block; None for a new one.
        """
        num_events, is_new = len(self._ledger.events), kind not in self.taken
        if is_new:
            self.taken[kind] = self._ledger.bear(self._sizes[kind], origin, block=block)
        taken = self.taken[kind] if is_new else None
        self.needed.setdefault(kind, Taking(num_events, origin, taken))

    def _is_taken_by_products(self, kind: Workspace) -> bool:
        # Versions of torch in which cublasLt uses cuBLAS's workspace take none for it.
        return kind is Workspace.CUBLAS or self._sizes[kind] > 0
