"""Tokens of a sample that another trace of the same prompts routes to other experts."""

from __future__ import annotations

import numpy as np

from moetool.analysis.sampling.result import PromptSample, SampledLayer
from moetool.trace.decisions import NO_EXPERT


def find_changed_tokens(sample: PromptSample, other: PromptSample) -> list[dict[int, list[int]]]:
    """Return, for each layer, the tokens whose set of experts the other trace changed.

    Returns:
        By token of the sample, the experts that the other trace chose.
    """
    theirs = {(each.layer.stack, each.layer.layer): each for each in other.layers}
    return [
        _list_changed(mine, theirs.get((mine.layer.stack, mine.layer.layer)))
        for mine in sample.layers
    ]


def _list_changed(mine: SampledLayer, theirs: SampledLayer | None) -> dict[int, list[int]]:
    if theirs is None:
        return {}
    shared, at, other_at = np.intersect1d(mine.token, theirs.token, return_indices=True)
    width = max(mine.experts.shape[1], theirs.experts.shape[1])
    sets = [
        np.sort(
            np.pad(experts, ((0, 0), (0, width - experts.shape[1])), constant_values=-1), axis=1
        )
        for experts in (mine.experts[at], theirs.experts[other_at])
    ]
    is_changed = (sets[0] != sets[1]).any(axis=1)
    experts = theirs.experts[other_at[is_changed]].tolist()
    return {
        token: [expert for expert in chosen if expert != NO_EXPERT]
        for token, chosen in zip(shared[is_changed].tolist(), experts, strict=True)
    }
