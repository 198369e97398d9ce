"""Scenarios for every combination of several sizes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace

from moetool.choices import take_sizes
from moetool.errors import UsageError
from moetool.memory.scenario import Scenario, Task

_MOST_SCENARIOS = 1_000


def list_scenarios(
    common: Scenario,
    *,
    batch_sizes: Sequence[int] = (),
    prompt_tokens: Sequence[int] = (),
    new_tokens: Sequence[int] = (),
) -> list[Scenario]:
    """Return one scenario for each combination of sizes, with the last list changing fastest.

    Args:
        common: The options that all share, and the sizes for which no list is given.
        batch_sizes: Sequences at once.
        prompt_tokens: Tokens of each sequence's prompt.
        new_tokens: Tokens generated for each sequence.

    Raises:
        UsageError: A size is not possible, the task generates no new tokens, or there would be more
            than 1,000 scenarios.
    """
    new_tokens = take_sizes(new_tokens, name="numbers of new tokens")
    if common.task is Task.FORWARD and any(new_tokens):
        raise UsageError(
            "A forward pass makes no new tokens.",
            hint="Leave out --new-tokens, or choose --task generate.",
        )
    choices = [
        take_sizes(sizes, name=name) or (own,)
        for name, sizes, own in (
            ("batch sizes", batch_sizes, common.batch_size),
            ("numbers of prompt tokens", prompt_tokens, common.num_prompt_tokens),
            ("numbers of new tokens", new_tokens, common.num_new_tokens),
        )
    ]
    number = math.prod(map(len, choices))
    if number > _MOST_SCENARIOS:
        raise UsageError(
            f"These sizes make {number:,} scenarios; at most {_MOST_SCENARIOS:,} are possible.",
            hint="Give fewer sizes.",
        )
    return [
        replace(
            common,
            batch_size=batch_size,
            num_prompt_tokens=num_prompt_tokens,
            num_new_tokens=num_new_tokens,
        )
        for batch_size, num_prompt_tokens, num_new_tokens in itertools.product(*choices)
    ]
