"""The GPUs that experts are placed on, and which layers they can hold."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moetool.errors import UsageError
from moetool.wording import join_words, number_of


@dataclass(frozen=True)
class Cluster:
    """GPUs on nodes; each GPU holds the same number of experts of every layer.

    Attributes:
        num_redundant_experts: Slots of each layer for replicas of its experts.
        num_groups: Groups that the router limits its choice to, in the order of expert ids; 1 if
            it doesn't.
    """

    num_gpus: int
    num_nodes: int = 1
    num_redundant_experts: int = 0
    num_groups: int = 1

    def __post_init__(self) -> None:
        if self.num_gpus % self.num_nodes:
            raise UsageError(
                f"{number_of(self.num_gpus, 'GPU')} can't be shared out evenly to "
                f"{number_of(self.num_nodes, 'node')}.",
                hint=f"Give a number of GPUs that is a multiple of {self.num_nodes}.",
            )

    @property
    def keeps_groups_together(self) -> bool:
        """Whether EPLB places the experts of a group on one node."""
        return self.num_groups % self.num_nodes == 0

    def count_slots(self, num_experts: int) -> int:
        """Return the experts that all GPUs hold of a layer, replicas included."""
        return num_experts + self.num_redundant_experts

    def check_layer(self, name: str, num_experts: int) -> None:
        """Check that a layer's experts can be shared out evenly.

        Args:
            name: The layer in words, such as `layer 3`.
            num_experts: Its routed experts.

        Raises:
            UsageError: They can't.
        """
        num_slots = self.count_slots(num_experts)
        if num_slots % self.num_gpus:
            redundant = (
                f" and {number_of(self.num_redundant_experts, 'redundant one')}"
                if self.num_redundant_experts
                else ""
            )
            raise UsageError(
                f"{name[0].upper()}{name[1:]} has {number_of(num_experts, 'expert')}{redundant}: "
                f"{number_of(num_slots, 'slot')} can't be shared out evenly to "
                f"{number_of(self.num_gpus, 'GPU')}.",
                hint=f"Give --redundant {join_words(self._find_redundant(num_experts), last='or')}"
                ", or another number of GPUs.",
            )
        if num_experts % self.num_groups:
            raise UsageError(
                f"{name[0].upper()}{name[1:]} has {number_of(num_experts, 'expert')}, which can't "
                f"be divided into {number_of(self.num_groups, 'group')} of equal size.",
                hint="Give the number of groups of the model's router (n_group in its config.json).",
            )

    def _find_redundant(self, num_experts: int) -> list[str]:
        """Return the two smallest numbers of redundant experts that would do."""
        least = -num_experts % self.num_gpus
        return [str(least), str(least + self.num_gpus)]


def spread_evenly(num_experts: int, cluster: Cluster) -> NDArray[np.int64]:
    """Return the expert of each slot in the order of ids, as engines place them by default.

    Redundant slots repeat the first experts, as in SGLang and vLLM.

    Returns:
        # (num_slots,)
    """
    return np.arange(cluster.count_slots(num_experts)) % num_experts
