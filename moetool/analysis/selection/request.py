"""The choices of a selection."""

from __future__ import annotations

from dataclasses import dataclass

from moetool.analysis.selection.choices import Average, Score
from moetool.analysis.selection.pruning.layers import SaliencyOfLayer


@dataclass(frozen=True)
class SelectionRequest:
    """Choices of a selection: the score, how much of it, and what else is listed.

    Attributes:
        by: Score of the experts.
        top_p: Cumulative score at which the selection of a layer ends.
        average: Average that the score is.
        domains: Domains whose prompts were summed; None for all.
        with_shared_experts: Also train the shared experts.
        with_other_modules: Also train all modules that hold no experts.
        prune_ratio: Share of experts to drop; None to drop none.
        num_groups: Groups that lose the same number; None for those of the model, if it is known.
        saliency: Of each expert, by layer number, for the score `saliency`.
        has_freeze_list: Make a freeze list.
    """

    by: Score = Score.TOKEN
    top_p: float = 0.2
    average: Average = Average.MICRO
    domains: tuple[str, ...] | None = None
    with_shared_experts: bool = False
    with_other_modules: bool = False
    prune_ratio: float | None = None
    num_groups: int | None = None
    saliency: SaliencyOfLayer | None = None
    has_freeze_list: bool = False

    @property
    def selects_by(self) -> Score:
        """The score of the selection: ESFT has none of saliency."""
        return Score.TOKEN if self.by is Score.SALIENCY else self.by
