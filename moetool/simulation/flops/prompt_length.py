"""Extrapolate the FLOPs of a long prompt from short ones, where one polynomial fits all."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from itertools import pairwise

# Equally spaced, and one more than determine a polynomial of the second degree.
SHORT_PROMPTS = (8, 16, 24, 32)


def extrapolate(flops: Sequence[int], *, num_prompt_tokens: int) -> int | None:
    """Return the FLOPs of a prompt by extrapolation from short ones, if that is exact.

    FLOPs are a polynomial of the second degree in the length of the prompt if tokens attend to all
    tokens (second degree) or pass on a state (first). It is evaluated by Newton's forward differences.

    Args:
        flops: FLOPs of prompts of `SHORT_PROMPTS` tokens.
        num_prompt_tokens: Length of the long prompt.

    Returns:
        The FLOPs; None if those of the short prompts don't fit such a polynomial.
    """
    first = [b - a for a, b in pairwise(flops)]
    second = [b - a for a, b in pairwise(first)]
    if len(set(second)) > 1:
        return None
    steps = Fraction(num_prompt_tokens - SHORT_PROMPTS[0], SHORT_PROMPTS[1] - SHORT_PROMPTS[0])
    value = flops[0] + steps * first[0] + steps * (steps - 1) / 2 * second[0]
    return int(value) if value.denominator == 1 else None
