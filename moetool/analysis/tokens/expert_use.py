"""Counts of one expert's tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from moetool.analysis.tokens.expert_tokens import ExpertShare, ExpertToken
from moetool.analysis.tokens.sparse_counts import SparseCounts

Ints = NDArray[np.int64]


@dataclass
class ExpertUse:
    """Counts of an expert by token id, for some tokens of its layer.

    Attributes:
        occurrences: Of each id.
        chosen: Decisions that choose the expert, by `2 * id`, plus 1 for first choices.
        num_tokens: Decisions.
        num_assignments: Assignments of all experts.
    """

    occurrences: SparseCounts = field(default_factory=SparseCounts)
    chosen: SparseCounts = field(default_factory=SparseCounts)
    num_tokens: int = 0
    num_assignments: int = 0

    def add(self, token_id: Ints, chosen: Ints, num_assignments: int) -> None:
        """Add decisions.

        Args:
            token_id: Of each. # (num_decisions,)
            chosen: Of those that choose the expert, see above. # (num_chosen,)
            num_assignments: Of all experts.
        """
        self.occurrences.add(token_id)
        self.chosen.add(chosen)
        self.num_tokens += len(token_id)
        self.num_assignments += num_assignments

    def join(self, other: ExpertUse) -> None:
        """Add the decisions of other tokens."""
        for mine, theirs in (
            (self.occurrences, other.occurrences),
            (self.chosen, other.chosen),
        ):
            mine.join(theirs)
        self.num_tokens += other.num_tokens
        self.num_assignments += other.num_assignments

    @property
    def count(self) -> int:
        """Decisions that choose the expert."""
        return int(self.chosen.collect()[1].sum())

    @property
    def num_layer_ids(self) -> int:
        """Distinct ids, whether or not the expert gets them."""
        return len(self.occurrences.collect()[0])

    def expect_share(self, num_experts: int) -> ExpertShare:
        """Return the expert's share under a uniform random router that runs as many experts."""
        return ExpertShare(self.num_assignments / max(1, self.num_tokens) / num_experts)

    def list_tokens(self, pieces: Mapping[int, str], *, has_first: bool) -> tuple[ExpertToken, ...]:
        """Return the ids that the expert gets, the most frequent first.

        Args:
            pieces: Of token ids.
            has_first: Whether first choices are known.
        """
        ids, occurrences = self.occurrences.collect()
        keys, counts = self.chosen.collect()
        number = dict(zip(ids.tolist(), occurrences.tolist(), strict=True))
        chosen: dict[int, list[int]] = {}
        for key, count in zip(keys.tolist(), counts.tolist(), strict=True):
            chosen.setdefault(key // 2, [0, 0])[key % 2] = count
        share = self.count / max(1, self.num_tokens)
        found = [
            ExpertToken(
                token_id=one,
                token=pieces.get(one),
                count=sum(each),
                first_count=each[1] if has_first else None,
                num_tokens=number[one],
                share=sum(each) / number[one],
                lift=sum(each) / number[one] / share,
            )
            for one, each in chosen.items()
        ]
        return tuple(sorted(found, key=lambda token: (-token.count, token.token_id)))
