"""Runs of `generate(assistant_model=...)` without data.

In each round the assistant drafts candidates, one after another, and the target checks all of them in
one call. transformers' own code does both; here every candidate is accepted, and the assistant is sure of
each of them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.generation import candidate_generator, stopping_criteria

from moetool.simulation.memory.allocations import AllocationRecorder
from moetool.simulation.memory.cache_tensors import find_cache_blocks
from moetool.simulation.meta.known_values import KnownValues
from moetool.simulation.meta.replaced import replaced, replacing_forward


def join_models(target: PreTrainedModel, assistant: PreTrainedModel | None) -> nn.Module:
    """Return a module with a target and its assistant, by these names; the target if it has none."""
    if assistant is None:
        return target
    joined = nn.Module()
    # Neither is changed, and the target comes first, as it would be loaded.
    joined.target, joined.assistant = target, assistant
    return joined


def find_num_candidates(assistant: PreTrainedModel) -> int:
    """Return how many tokens an assistant drafts in a round, by its configuration or the defaults."""
    config: Any = assistant.generation_config
    number: int | None = config.num_assistant_tokens
    return number or config._get_default_generation_params()["num_assistant_tokens"]


class Draft:
    """The calls of an assistant since the target's last one.

    Attributes:
        first_event: Number of events before its first call; None if it wasn't called.
        cache: The size of each block that its cache holds.
        held: The blocks that its cache held after any of these calls.
    """

    def __init__(self) -> None:
        self.first_event: int | None = None
        self.cache: dict[int, int] = {}
        self.held: frozenset[int] = frozenset()

    def begin(self, num_events: int) -> int:
        """Return the number of events before a round, at whose end the target is called."""
        first = num_events if self.first_event is None else self.first_event
        self.first_event = None
        return first

    def take_held(self) -> frozenset[int]:
        """Return the blocks that the cache held, and start anew."""
        held, self.held = self.held, frozenset()
        return held


@contextmanager
def drafting(
    assistant: PreTrainedModel | None,
    recorder: AllocationRecorder,
    known: KnownValues,
    *,
    on_call: Callable[[], None],
) -> Iterator[Draft]:
    """Follow the calls of an assistant, and let it be sure of each token; does nothing without one."""
    draft = Draft()
    if assistant is None:
        yield draft
        return
    forward = assistant.forward

    @functools.wraps(forward)
    def watched(*args: Any, **kwargs: Any) -> Any:
        if draft.first_event is None:
            draft.first_event = len(recorder.events)
        on_call()
        with known.inside_model():
            output = forward(*args, **kwargs)
        draft.cache = find_cache_blocks(output, recorder)
        draft.held |= draft.cache.keys()
        return output

    with ExitStack() as stack:
        stack.enter_context(
            replaced(stopping_criteria.ConfidenceCriteria, {"__call__": _go_on_for_sure})
        )
        # With scikit-learn, transformers adapts the threshold to what was accepted. What that takes made
        # no peak on an H200.
        stack.enter_context(replaced(candidate_generator, {"is_sklearn_available": lambda: False}))
        stack.enter_context(replacing_forward(assistant, watched))
        yield draft


def _go_on_for_sure(
    _: object, input_ids: torch.Tensor, scores: tuple[torch.Tensor, ...], **__: object
) -> bool:
    """Compute the probability of the last token, as transformers does, and go on."""
    probabilities = scores[-1].softmax(-1)
    probabilities[0, input_ids[0, -1]]
    return False
