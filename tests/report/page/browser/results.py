"""The library's answers about a trace, which a page must show."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pyarrow.parquet as pq

import moetool
from moetool.analysis.balance.result import Balance
from moetool.analysis.caching.result import Caching
from moetool.analysis.coactivation.result import Coactivation
from moetool.analysis.comparison.result import Comparison
from moetool.analysis.placement.result import Placement
from moetool.analysis.specialization.by_token.result import TokenSpecialization
from moetool.analysis.specialization.result import DomainExpertTest, Specialization
from tests.analysis.random_traces import Decision, list_decisions


@dataclass(frozen=True)
class Results:
    """Answers of the public functions, each asked for once."""

    trace: Path
    other: Path

    @cached_property
    def balance(self) -> Balance:
        return moetool.measure_balance(self.trace)

    @cached_property
    def specialization(self) -> Specialization:
        found = moetool.measure_specialization(self.trace)
        assert isinstance(found, Specialization)
        return found

    @cached_property
    def tests(self) -> dict[tuple[int, int, str], DomainExpertTest]:
        """Tests of specialization by layer, expert and domain."""
        return {(one.layer, one.expert, one.domain): one for one in self.specialization.experts}

    @cached_property
    def tokens(self) -> TokenSpecialization:
        found = moetool.measure_specialization(self.trace, by="token")
        assert isinstance(found, TokenSpecialization)
        return found

    @cached_property
    def coactivation(self) -> Coactivation:
        return moetool.measure_coactivation(self.trace)

    @cached_property
    def caching(self) -> Caching:
        return moetool.simulate_caches(self.trace)

    @cached_property
    def comparison(self) -> Comparison:
        return moetool.compare_traces(self.trace, self.other)

    def place(self, num_gpus: int) -> Placement:
        return moetool.place_experts(self.trace, num_gpus=num_gpus)

    @cached_property
    def decisions(self) -> list[Decision]:
        """Every decision, read row by row."""
        return list_decisions(pq.read_table(self.trace))

    @cached_property
    def other_decisions(self) -> list[Decision]:
        return list_decisions(pq.read_table(self.other))
