"""Results that a page shows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from moetool.analysis.balance.result import Balance
from moetool.analysis.caching.result import Caching
from moetool.analysis.coactivation.result import Coactivation
from moetool.analysis.comparison.result import Comparison
from moetool.analysis.placement.result import Placement
from moetool.analysis.sampling.result import PromptSample
from moetool.analysis.specialization.by_token.result import TokenSpecialization
from moetool.analysis.specialization.result import Specialization
from moetool.trace.facts import TraceFacts
from moetool.trace.metadata import TraceMetadata


@dataclass(frozen=True)
class PageContents:
    """Everything that a page shows; None for a result that the trace does not give.

    Attributes:
        facts: About the trace.
        metadata: None if the trace has none.
        by: Column that groups prompts, such as `domain`.
        balance: Load, and what a capacity would drop.
        specialization: By the column that groups prompts.
        token_specialization: Each expert's characteristic tokens.
        coactivation: Experts that are chosen together.
        placements: By rising number of GPUs; empty if there are none.
        caching: Experts touched by a batch.
        comparison: With another trace.
        sample: Prompts to read, of this trace.
        other_sample: The same prompts of the other trace.
        missing: Why a result is None, as a sentence, by the name of the attribute here.
        redacts_text: Leave prompts' and tokens' texts out.
    """

    facts: TraceFacts
    metadata: TraceMetadata | None
    by: str
    balance: Balance | None = None
    specialization: Specialization | None = None
    token_specialization: TokenSpecialization | None = None
    coactivation: Coactivation | None = None
    placements: tuple[Placement, ...] = ()
    caching: Caching | None = None
    comparison: Comparison | None = None
    sample: PromptSample | None = None
    other_sample: PromptSample | None = None
    missing: Mapping[str, str] = field(default_factory=dict)
    redacts_text: bool = False
