"""The tokens that two traces share, where they differ, and those that changed most."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from moetool.analysis.comparison.measure import COLUMNS, compare_traces
from moetool.analysis.comparison.pairs import reader as pair_reader
from moetool.errors import InputError
from moetool.trace.reading import reader as trace_reader
from moetool.trace.windows import reader as window_reader
from moetool.trace.windows.reader import DecisionReader
from tests.analysis.comparison.two_traces import compare_rows, make_pair
from tests.analysis.random_traces import Router, list_decisions, make_random_trace, open_rows


def replace_id(table: pa.Table, *, prompt: str, position: int, token_id: int) -> pa.Table:
    is_here = pc.and_(
        pc.equal(table.column("prompt_id").cast(pa.string()), prompt),
        pc.equal(table.column("position"), position),
    )
    ids = pc.if_else(is_here, pa.scalar(token_id, pa.int32()), table.column("token_id"))
    return table.set_column(table.column_names.index("token_id"), "token_id", ids)


def drop(table: pa.Table, *, prompt: str, position: int | None = None) -> pa.Table:
    is_here = pc.equal(table.column("prompt_id").cast(pa.string()), prompt)
    if position is not None:
        is_here = pc.and_(is_here, pc.equal(table.column("position"), position))
    return table.filter(pc.invert(is_here))


def test_another_token_id_is_refused_with_its_place() -> None:
    first, second = make_pair()
    other = replace_id(second, prompt="p2", position=3, token_id=99)
    with pytest.raises(InputError, match="at position 3 of prompt 'p2', the token id is") as caught:
        compare_rows(first, other)
    assert " and 99 in " in caught.value.message
    assert "--common-tokens" in caught.value.hint


def test_tokens_of_one_trace_alone_are_refused_with_their_place() -> None:
    first, second = make_pair()
    with pytest.raises(InputError, match="has the prompt 'p1', which"):
        compare_rows(first, drop(second, prompt="p1"))
    with pytest.raises(InputError, match="has the prompt 'p1', which"):
        compare_rows(drop(first, prompt="p1"), second)
    with pytest.raises(InputError, match=r"position 2 of prompt 'p4' \(token id \d+\), which"):
        compare_rows(first, drop(second, prompt="p4", position=2))


def test_the_first_difference_is_named_whatever_its_kind() -> None:
    first, second = make_pair()
    early_id = replace_id(
        drop(second, prompt="p2", position=6), prompt="p2", position=3, token_id=9
    )
    with pytest.raises(InputError, match="at position 3 of prompt 'p2', the token id is"):
        compare_rows(first, early_id)
    late_id = replace_id(drop(second, prompt="p2", position=1), prompt="p2", position=3, token_id=9)
    with pytest.raises(InputError, match="has position 1 of prompt 'p2'"):
        compare_rows(first, late_id)


def test_common_tokens_are_those_before_the_first_difference() -> None:
    first, second = make_pair()
    expected = compare_rows(
        *(
            drop(drop(drop(table, prompt="p2", position=5), prompt="p2", position=6), prompt="p1")
            for table in (first, second)
        )
    )
    shorter = drop(replace_id(second, prompt="p2", position=5, token_id=99), prompt="p1")
    result = compare_rows(first, shorter, is_common=True)
    assert result.overall == expected.overall
    assert result.layers == expected.layers
    assert sum("not compared, because the other trace lacks them" in note for note in result.notes)
    assert any(note.startswith("5 tokens of") for note in result.notes)
    assert any(note.startswith("2 tokens of") for note in result.notes)


def test_traces_without_ids_are_matched_by_position_and_say_so() -> None:
    first, second = make_pair()
    expected = compare_rows(first, second)
    result = compare_rows(first, second.drop_columns(["token_id", "token"]))
    assert result.overall == expected.overall
    assert any("has no token ids: tokens are taken to be the same" in note for note in result.notes)


def test_first_choices_are_unknown_without_ranks() -> None:
    first, second = make_pair()
    result = compare_rows(first, second.drop_columns(["rank"]))
    expected = compare_rows(first, second)
    assert result.overall.first_choice_flips is None
    assert result.layers[0].popularity is not None
    assert result.layers[0].popularity.first_choice_flips is None
    assert any("First choices are unknown" in note for note in result.notes)
    assert result.overall.overlap == expected.overall.overlap
    assert result.overall.weight_change == pytest.approx(expected.overall.weight_change)


def test_the_change_of_weights_is_unknown_without_weights() -> None:
    first, second = make_pair()
    result = compare_rows(first, second.drop_columns(["weight"]))
    assert result.overall.weight_change is None
    assert any("change of weights is unknown" in note for note in result.notes)


def test_layers_that_cannot_be_compared_are_named() -> None:
    first, second = make_pair()
    few = second.filter(pc.less(second.column("layer"), 2))
    result = compare_rows(first, few)
    assert [layer.layer for layer in result.layers] == [0, 1]
    assert any(note.startswith("layer 2: not compared") for note in result.notes)
    last = first.filter(pc.equal(first.column("layer"), 2))
    with pytest.raises(InputError, match="no decision in common"):
        compare_rows(last, few)
    readers = [
        DecisionReader(open_rows(table, router=Router(num_layers=1, first_layer=layer)))
        for table, layer in ((last, 2), (few.filter(pc.equal(few.column("layer"), 0)), 0))
    ]
    with pytest.raises(InputError, match="no layer in common"):
        compare_traces(*readers)


def test_other_prompt_orders_are_read_in_passes_of_few_rows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lengths = tuple(range(1, 19))
    first, second = make_pair(lengths=lengths)
    expected = compare_rows(first, second)
    prompts = [
        second.filter(pc.equal(second.column("prompt_id").cast(pa.string()), f"p{index}"))
        for index in np.random.default_rng(3).permutation(len(lengths))
    ]
    mixed = pa.concat_tables(prompts).unify_dictionaries()
    assert compare_rows(first, mixed) == expected
    monkeypatch.setattr(pair_reader, "_ROWS_AT_ONCE", 160)
    monkeypatch.setattr(window_reader, "_ROWS_PER_WINDOW", 1)
    monkeypatch.setattr(trace_reader, "_ROWS_PER_TABLE", 30)
    held: list[int] = []
    keep = pair_reader.PairReader._match

    def record(self, windows, ready):  # type: ignore[no-untyped-def]
        held.append(sum(len(window.prompt) for side in windows for window in side))
        return keep(self, windows, ready)

    monkeypatch.setattr(pair_reader.PairReader, "_match", record)
    result = compare_rows(first, mixed)
    assert result.overall.overlap == pytest.approx(expected.overall.overlap)
    assert result.layers[1].changed_decisions == pytest.approx(expected.layers[1].changed_decisions)
    # Both traces have 171 tokens of 6 rows.
    assert max(held) < 171


def test_the_most_changed_ids_and_tokens_are_those_of_a_plain_count() -> None:
    router = Router(num_experts=16, top_k=3)
    first, second = make_pair(router=router, lengths=(20, 30, 25), seed=5)
    result = compare_rows(first, second, router=router, min_count=4, num_listed=4)
    changes: dict[tuple[str, int, int], list[float]] = defaultdict(list)
    for one, other in zip(list_decisions(first), list_decisions(second), strict=True):
        shared = len(set(one.experts) & set(other.experts))
        changes[one.prompt_id, one.position, one.token_id].append(1 - shared / 3)
    by_id: dict[int, list[float]] = defaultdict(list)
    for (_, _, token_id), mine in changes.items():
        by_id[token_id].append(sum(mine) / len(mine))
    frequent = {
        token_id: sum(means) / len(means) for token_id, means in by_id.items() if len(means) >= 4
    }
    assert result.num_token_ids == len(frequent)
    ranked = sorted(frequent, key=lambda token_id: -frequent[token_id])[:4]
    assert [item.change for item in result.token_ids] == pytest.approx(
        [frequent[token_id] for token_id in ranked]
    )
    for item in result.token_ids:
        assert item.count == len(by_id[item.token_id])
        assert item.token == f"t{item.token_id}"
    largest = sorted((sum(mine) / len(mine) for mine in changes.values()), reverse=True)[:4]
    assert [token.change for token in result.tokens] == pytest.approx(largest)
    top = result.tokens[0]
    assert top.token_id is not None
    mine = changes[top.prompt_id, top.position, top.token_id]
    assert top.num_changed_layers == sum(change > 0 for change in mine)
    around = [
        token_id
        for prompt, position, token_id in changes
        if prompt == top.prompt_id and 0 <= top.position - position - 1 < 6
    ]
    assert top.before == tuple(f"t{token_id}" for token_id in around)
    any_changed = [max(mine) > 0 for mine in changes.values()]
    assert result.changed_tokens == pytest.approx(sum(any_changed) / len(any_changed))


def test_experts_of_another_number_are_refused_by_layer() -> None:
    first = make_random_trace(router=Router(num_experts=8))
    second = make_random_trace(router=Router(num_experts=16))
    readers = [
        DecisionReader(open_rows(table, router=Router(num_experts=number)), columns=COLUMNS)
        for table, number in ((first, 8), (second, 16))
    ]
    with pytest.raises(InputError, match=r"layer 0 .decoder. has 8 experts in .* and 16 in"):
        compare_traces(*readers)
