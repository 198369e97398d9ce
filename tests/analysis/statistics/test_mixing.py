"""Mixed numbers are those of splitmix64, and different keys stay different."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from moetool.analysis.statistics.mixing import mix_bits

WORD = 2**64


def mix(key: int) -> int:
    key = (key ^ (key >> 30)) * 0xBF58476D1CE4E5B9 % WORD
    key = (key ^ (key >> 27)) * 0x94D049BB133111EB % WORD
    return key ^ (key >> 31)


@given(st.lists(st.integers(0, WORD - 1), max_size=9, unique=True))
def test_numbers_are_those_of_plain_integers(keys: list[int]) -> None:
    before = np.array(keys, dtype=np.uint64)
    mixed = mix_bits(before)
    assert mixed.tolist() == [mix(key) for key in keys]
    assert len(set(mixed.tolist())) == len(keys)
    assert before.tolist() == keys
