"""A smaller sample from a sample."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

import numpy as np

from moetool.analysis.sampling.choosing import choose_prompts
from moetool.analysis.sampling.result import PromptSample, SampledLayer


def choose_fewer(sample: PromptSample, *, share: float) -> list[str]:
    """Return the ids of whole prompts with at most a share of a sample's tokens, at least one."""
    chosen = choose_prompts(
        [prompt.prompt_id for prompt in sample.prompts],
        [prompt.domain for prompt in sample.prompts],
        [prompt.num_tokens for prompt in sample.prompts],
        most_rows=int(share * sample.num_tokens),
    )
    shortest = min(range(len(sample.prompts)), key=lambda one: sample.prompts[one].num_tokens)
    return [sample.prompts[one].prompt_id for one in chosen or [shortest]]


def keep_prompts(sample: PromptSample, prompt_ids: Collection[str]) -> PromptSample:
    """Return the sample of some of its prompts alone."""
    wanted = set(prompt_ids)
    is_kept = np.array([prompt.prompt_id in wanted for prompt in sample.prompts], dtype=bool)
    mine = is_kept[sample.prompt]
    return replace(
        sample,
        prompts=tuple(prompt for prompt in sample.prompts if prompt.prompt_id in wanted),
        prompt=(np.cumsum(is_kept) - 1)[sample.prompt[mine]],
        stack=[stack for stack, kept in zip(sample.stack, mine.tolist(), strict=True) if kept],
        position=sample.position[mine],
        token_id=None if sample.token_id is None else sample.token_id[mine],
        phase=None if sample.phase is None else sample.phase[mine],
        layers=tuple(_keep(layer, mine) for layer in sample.layers),
        is_complete=sample.is_complete and bool(is_kept.all()),
    )


def _keep(layer: SampledLayer, is_kept: np.ndarray[tuple[int], np.dtype[np.bool_]]) -> SampledLayer:
    mine = is_kept[layer.token]
    return replace(
        layer,
        token=(np.cumsum(is_kept) - 1)[layer.token[mine]],
        experts=layer.experts[mine],
        weights=None if layer.weights is None else layer.weights[mine],
    )
