"""First choices without ranks are those of the largest weights, unless these are equal."""

from __future__ import annotations

import numpy as np

from moetool.analysis.tokens.first_choices import find_first_choices
from moetool.trace.windows.window import LayerChoices

EXPERTS = np.array([[4, 2], [3, 1], [5, -1], [-1, -1], [0, 7]])
WEIGHTS = np.array([[0.2, 0.8], [0.5, 0.5], [1, 0], [0, 0], [0, 0]], dtype=np.float32)
CHOICES = LayerChoices(np.arange(5), EXPERTS, WEIGHTS)


def test_equal_weights_leave_the_first_choice_unknown() -> None:
    assert find_first_choices(CHOICES, has_ranks=False).tolist() == [2, -1, 5, -1, -1]


def test_ranks_say_which_came_first() -> None:
    assert find_first_choices(CHOICES, has_ranks=True).tolist() == [4, 3, 5, -1, 0]
