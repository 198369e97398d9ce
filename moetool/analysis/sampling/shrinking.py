"""A smaller sample from a sample."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from moetool.analysis.sampling.choosing import choose_prompts
from moetool.analysis.sampling.places import find_places
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
        _take(sample, mine),
        prompts=tuple(prompt for prompt in sample.prompts if prompt.prompt_id in wanted),
        prompt=(np.cumsum(is_kept) - 1)[sample.prompt[mine]],
        is_complete=sample.is_complete and bool(is_kept.all()),
    )


def _take(sample: PromptSample, mine: NDArray[np.bool_]) -> PromptSample:
    """Return some of the tokens, without changing what is said of prompts."""
    return replace(
        sample,
        stack=[stack for stack, kept in zip(sample.stack, mine.tolist(), strict=True) if kept],
        position=sample.position[mine],
        token_id=None if sample.token_id is None else sample.token_id[mine],
        phase=None if sample.phase is None else sample.phase[mine],
        layers=tuple(_keep(layer, mine) for layer in sample.layers),
    )


def _keep(layer: SampledLayer, is_kept: NDArray[np.bool_]) -> SampledLayer:
    mine = is_kept[layer.token]
    return replace(
        layer,
        token=(np.cumsum(is_kept) - 1)[layer.token[mine]],
        experts=layer.experts[mine],
        weights=None if layer.weights is None else layer.weights[mine],
    )


def keep_beginning(sample: PromptSample, *, share: float) -> PromptSample:
    """Return the first tokens of each prompt and stack of a sample: a share, at least one."""
    stacks = sorted(set(sample.stack))
    stack = np.array([stacks.index(each) for each in sample.stack])
    place, size = find_places(sample.prompt, stack)
    mine = place < np.maximum(1, (share * size).astype(np.int64))
    kept = np.bincount(sample.prompt[mine], minlength=len(sample.prompts)).tolist()
    return replace(
        _take(sample, mine),
        prompts=tuple(
            replace(
                prompt,
                num_tokens=number,
                num_left_out=prompt.num_left_out + prompt.num_tokens - number,
            )
            for prompt, number in zip(sample.prompts, kept, strict=True)
        ),
        prompt=sample.prompt[mine],
        is_complete=False,
    )


def shrink(
    sample: PromptSample, other: PromptSample | None, *, share: float
) -> tuple[PromptSample, PromptSample | None]:
    """Return a sample with at most a share of its tokens, and the same tokens of another trace.

    Whole prompts are left out, but of a single one, the end.
    """
    if len(sample.prompts) > 1:
        prompts = choose_fewer(sample, share=share)
        return keep_prompts(sample, prompts), other and keep_prompts(other, prompts)
    return (
        keep_beginning(sample, share=share),
        other and keep_beginning(other, share=share),
    )
