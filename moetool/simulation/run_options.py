"""Options of simulated runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from moetool.simulation.caches.kinds import DYNAMIC_CACHE, CachePlan


@dataclass(frozen=True)
class BlockBudget:
    """The number of blocks by which a layer that goes from token to token is recognized.

    Layers that work in chunks make far fewer than a prompt has tokens; one that goes from token to
    token makes three or more for each.

    Attributes:
        per_layer: Blocks that any layer may make.
        per_token: Blocks for each token of the prompt, if that is more.
    """

    per_layer: int = 4000
    per_token: int = 2

    def allow(self, num_prompt_tokens: int) -> int:
        """Return the number of blocks that a layer may make."""
        return max(self.per_layer, self.per_token * num_prompt_tokens)


DEFAULT_BLOCK_BUDGET = BlockBudget()


@dataclass(frozen=True)
class RunOptions:
    """Options of a simulated run.

    Attributes:
        batch_size: Number of sequences.
        has_padding: Whether the first sequence begins with a pad, so that masks are needed.
        cache: The cache that `generate` uses; a static one is not compiled.
        num_beams: Beams for each sequence; 1 for a greedy search.
        num_return_sequences: Sequences returned for each prompt; without beams, they are sampled.
        is_routing_kept: Whether the routers' choices are copied and kept until the end, as
            `moetool route-trace` does.
        is_routing_balanced: Assume that routers choose experts in turns, where the model's code
            reads their choices.
        workspace_bytes: Memory that the first matrix product takes for good.
        lt_workspace_bytes: Memory that the first product with a bias takes for good.
        may_scan: Whether layers may go from token to token, as in some state-space models. They take
            minutes for a long prompt, and are refused otherwise.
        block_budget: The blocks beyond which a layer counts as going from token to token.
    """

    batch_size: int = 1
    has_padding: bool = False
    cache: CachePlan = DYNAMIC_CACHE
    num_beams: int = 1
    num_return_sequences: int = 1
    is_routing_kept: bool = False
    is_routing_balanced: bool = False
    workspace_bytes: int = 0
    lt_workspace_bytes: int = 0
    may_scan: bool = False
    block_budget: BlockBudget = DEFAULT_BLOCK_BUDGET

    @property
    def may_repeat_layers(self) -> bool:
        """Whether a layer may do the same as one that ran before.

        An offloaded cache's layers change the next one's slot. Layers of a static one count their
        tokens, and a search with beams reads the counts.
        """
        return not (self.cache.is_offloaded or (self.cache.is_static and self.num_beams > 1))

    @property
    def is_led_by_sizes(self) -> bool:
        """Whether the first steps of a generation depend on the sizes of its prompts alone.

        A static cache is as long as the whole generation, and a quantized one is quantized anew
        after some of its steps.
        """
        return self.cache == DYNAMIC_CACHE and self.num_beams == self.num_return_sequences == 1

    def choose_search(self) -> dict[str, Any]:
        """Return the arguments by which `generate` searches for the best tokens, or samples them."""
        return choose_search(self.num_beams, self.num_return_sequences)


def choose_search(num_beams: int, num_return_sequences: int) -> dict[str, Any]:
    """Return the arguments of `generate` for a search with beams, or for samples."""
    if num_beams == num_return_sequences == 1:
        return {}
    return {
        "num_beams": num_beams,
        "num_return_sequences": num_return_sequences,
        "do_sample": num_beams == 1,
    }
