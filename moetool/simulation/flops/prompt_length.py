"""From the FLOPs of short prompts to those of a long one, where both are of one polynomial."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from itertools import pairwise

# Equally far apart, and one more than it takes to know a polynomial of the second degree.
SHORT_PROMPTS = (8, 16, 24, 32)


def extrapolate(flops: Sequence[int], *, num_prompt_tokens: int) -> int | None:
    """Return the FLOPs of a prompt from those of the short ones, if they tell them.

    FLOPs are a polynomial of the second degree in the length of the prompt where tokens attend to
    all tokens (second degree) or hand on a state (first), by Newton's forward differences.

    Args:
        flops: Those of prompts of `SHORT_PROMPTS` tokens.
        num_prompt_tokens: Length of the prompt in question.

    Returns:
        The FLOPs; None if those of the short prompts are no such polynomial.
    """
    first = [b - a for a, b in pairwise(flops)]
    second = [b - a for a, b in pairwise(first)]
    if len(set(second)) > 1:
        return None
    steps = Fraction(num_prompt_tokens - SHORT_PROMPTS[0], SHORT_PROMPTS[1] - SHORT_PROMPTS[0])
    value = flops[0] + steps * first[0] + steps * (steps - 1) / 2 * second[0]
    return int(value) if value.denominator == 1 else None
