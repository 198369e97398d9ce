"""Half of each group is held out, whatever the order of the prompts."""

from __future__ import annotations

import random
from collections import Counter
from hashlib import blake2b

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from moetool.analysis.statistics.halves import hash_prompts, split_prompts

GROUPED_PROMPTS = st.dictionaries(st.text(max_size=4), st.sampled_from("abc"), max_size=24)


def hold_out(groups: dict[str, str], *, seed: int = 0) -> set[str]:
    held_out = split_prompts(list(groups), groups=list(groups.values()), seed=seed)
    return {prompt for prompt, is_held_out in zip(groups, held_out, strict=True) if is_held_out}


@given(GROUPED_PROMPTS, st.randoms())
def test_the_order_of_prompts_does_not_matter(
    groups: dict[str, str], shuffler: random.Random
) -> None:
    order = list(groups)
    shuffler.shuffle(order)
    assert hold_out({prompt: groups[prompt] for prompt in order}) == hold_out(groups)


@given(GROUPED_PROMPTS)
def test_halves_are_equal_to_one_prompt_in_each_group_and_over_all(groups: dict[str, str]) -> None:
    held_out = hold_out(groups)
    excess = {
        group: 2 * sum(groups[prompt] == group for prompt in held_out) - size
        for group, size in Counter(groups.values()).items()
    }
    assert all(abs(number) <= 1 for number in excess.values())
    assert sum(excess.values()) in (0, 1)


@given(st.text())
def test_a_single_prompt_is_held_out(prompt: str) -> None:
    assert split_prompts([prompt]).tolist() == [True]


def test_nothing_is_split_into_nothing() -> None:
    assert split_prompts([]).tolist() == []


def test_seeds_give_halves_that_have_nothing_in_common_but_chance() -> None:
    prompts = [str(number) for number in range(400)]
    halves = np.stack([split_prompts(prompts, seed=seed) for seed in range(30)]).astype(float)
    # The correlation of unrelated halves has a standard deviation of 1 / sqrt(399).
    correlation = np.corrcoef(halves)[np.triu_indices(30, 1)]
    assert np.abs(correlation).max() < 5 / 399**0.5
    assert abs(correlation.std() * 399**0.5 - 1) < 0.2


def test_hashes_are_the_same_in_every_process_and_differ_by_seed() -> None:
    digest = blake2b(b"a", digest_size=8, key=bytes(8)).digest()
    assert hash_prompts(["a"]).tolist() == [int.from_bytes(digest)]
    others = [*hash_prompts(["b", "\udcff"]).tolist(), *hash_prompts(["a"], seed=1).tolist()]
    assert len({int.from_bytes(digest), *others}) == 4
