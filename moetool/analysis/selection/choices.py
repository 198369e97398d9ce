"""Scores that experts are selected by, and averages that they are."""

from __future__ import annotations

from enum import StrEnum


class Score(StrEnum):
    """Scores of an expert.

    Attributes:
        TOKEN: Share of the assignments that it gets.
        GATE: Its mean routing weight, over all tokens.
        SALIENCY: Mean of weight times norm of its output, over its tokens (REAP).
    """

    TOKEN = "token"
    GATE = "gate"
    SALIENCY = "saliency"


class Average(StrEnum):
    """Averages of a score.

    Attributes:
        MICRO: Over tokens.
        MACRO: Over prompts, of each prompt's mean over tokens.
    """

    MICRO = "micro"
    MACRO = "macro"
