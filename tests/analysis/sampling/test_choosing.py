"""Choice of whole prompts, next to a plain one."""

from __future__ import annotations

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from moetool.analysis.sampling.choosing import choose_prompts
from tests.analysis.sampling.plain_samples import choose_plainly

Prompts = list[tuple[str, str, int]]


def prompts(*, most_rows_each: int = 9) -> st.SearchStrategy[Prompts]:
    """Prompts, each with its id, its group and its number of rows."""
    one = st.tuples(st.text(max_size=3), st.sampled_from("abc"), st.integers(1, most_rows_each))
    return st.lists(one, min_size=1, max_size=12, unique_by=lambda each: each[0])


def choose(given_prompts: Prompts, *, most_rows: int) -> list[str]:
    ids, groups, num_rows = zip(*given_prompts, strict=True)
    return [ids[one] for one in choose_prompts(ids, groups, num_rows, most_rows=most_rows)]


@settings(max_examples=40)
@given(prompts(), st.integers(0, 40))
def test_groups_take_turns_while_prompts_fit(given_prompts: Prompts, most_rows: int) -> None:
    ids, groups, num_rows = zip(*given_prompts, strict=True)
    chosen = choose_prompts(ids, groups, num_rows, most_rows=most_rows)
    assert chosen == choose_plainly(ids, groups, num_rows, most_rows=most_rows)
    left = most_rows - sum(num_rows[one] for one in chosen)
    assert left >= 0
    others = set(range(len(ids))) - set(chosen)
    assert all(num_rows[one] > left for one in others)


@settings(max_examples=40)
@given(prompts(), st.integers(0, 40), st.randoms(use_true_random=False))
def test_the_order_of_prompts_does_not_matter(
    given_prompts: Prompts, most_rows: int, random: object
) -> None:
    shuffled = list(given_prompts)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    before = choose(given_prompts, most_rows=most_rows)
    assert sorted(choose(shuffled, most_rows=most_rows)) == sorted(before)


@settings(max_examples=40)
@given(prompts(most_rows_each=1), st.integers(0, 15))
def test_prompts_of_one_size_are_shared_out_evenly(given_prompts: Prompts, most_rows: int) -> None:
    group_of = {prompt: group for prompt, group, _ in given_prompts}
    offered = Counter(group_of.values())
    chosen = Counter(group_of[one] for one in choose(given_prompts, most_rows=most_rows))
    most = max(chosen[group] for group in offered)
    for group, number in offered.items():
        assert chosen[group] >= min(number, most - 1)
