"""Windows hold the decisions that reading a trace row by row gives, whatever the rows' order."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from moetool.errors import InputError, UsageError
from moetool.trace.decisions import PHASES
from moetool.trace.reading.frames import open_table
from moetool.trace.reading.reader import TraceSource
from moetool.trace.windows import prompt_order, reader
from moetool.trace.windows.reader import DecisionReader
from tests.analysis.random_traces import (
    Decision,
    Router,
    describe_router,
    list_decisions,
    make_random_trace,
    open_rows,
)

COLUMNS = ("weight", "token_id", "phase", "token")


def read_decisions(source: TraceSource, **options: object) -> list[Decision]:
    """Return the decisions of all windows, in the order of `list_decisions`."""
    rows = DecisionReader(source, columns=COLUMNS, **options)  # type: ignore[arg-type]
    found = []
    for window in rows:
        for (stack, layer), choices in window.layers.items():
            assert choices.weights is not None
            for token, experts, weights in zip(
                choices.token, choices.experts, choices.weights, strict=True
            ):
                assert window.token_id is not None
                assert window.phase is not None
                prompt = int(window.prompt[token])
                ran = experts >= 0
                decision = Decision(
                    prompt_id=rows.prompts[prompt],
                    domain=rows.groups[window.group[token]],
                    phase=PHASES[window.phase[token]],
                    position=int(window.position[token]),
                    token_id=int(window.token_id[token]),
                    stack=stack,
                    layer=layer,
                    experts=tuple(experts[ran].tolist()),
                    weights=tuple(weights[ran].tolist()),
                )
                assert rows.domains[prompt] == decision.domain
                assert window.pieces[decision.token_id] == f"t{decision.token_id}"
                found.append((prompt, stack, layer, decision.position, decision))
    assert rows.facts.num_assignments == sum(len(item[-1].experts) for item in found)
    return [item[-1] for item in sorted(found, key=lambda item: item[:-1])]


@pytest.mark.parametrize("seed", range(4))
def test_windows_hold_every_decision(seed: int) -> None:
    table = make_random_trace((5, 3, 7, 4), num_prompt_tokens=4, seed=seed)
    assert read_decisions(open_rows(table)) == list_decisions(table)


@pytest.mark.parametrize("rows_at_once", [10, 4_000_000])
@pytest.mark.parametrize("rows_per_window", [1, 10, 1_000_000])
@pytest.mark.parametrize("order", ["as written", "shuffled", "by layer"])
def test_the_order_of_rows_and_the_size_of_windows_change_nothing(
    order: str, rows_per_window: int, rows_at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader, "_ROWS_PER_WINDOW", rows_per_window)
    monkeypatch.setattr(prompt_order, "_ROWS_AT_ONCE", rows_at_once)
    monkeypatch.setattr("moetool.trace.reading.reader._ROWS_PER_TABLE", 17)
    table = make_random_trace((5, 3, 7, 4))
    index = np.arange(table.num_rows)
    if order == "shuffled":
        index = np.random.default_rng(0).permutation(index)
    elif order == "by layer":
        index = np.argsort(table.column("layer").to_numpy(), kind="stable")
    mixed = table.take(pa.array(index))
    found = read_decisions(open_rows(mixed))
    assert sorted(map(repr, found)) == sorted(map(repr, list_decisions(table)))


def test_decisions_with_fewer_experts_are_padded() -> None:
    table = make_random_trace((5, 3))
    kept = table.filter(pa.array(np.arange(table.num_rows) != 3))
    assert read_decisions(open_rows(kept), is_checked=False) == list_decisions(kept)
    (window,) = DecisionReader(open_rows(kept), is_checked=False)
    assert [int((item.experts < 0).sum()) for item in window.layers.values()] == [1, 0, 0]


def test_a_trace_without_metadata_is_read_with_what_its_rows_show() -> None:
    table = make_random_trace((5, 3, 7, 4), router=Router(num_experts=5, top_k=3))
    source = open_table(table, metadata=describe_router(Router()))
    bare = TraceSource(**{**vars(source), "metadata": None})
    rows = DecisionReader(bare)
    assert [(item.layer, item.num_experts, item.top_k) for item in rows.layers] == [
        (0, 5, 3),
        (1, 5, 3),
        (2, 5, 3),
    ]
    assert len(rows.notes) == 2
    assert read_decisions(bare) == list_decisions(table)


def test_layers_are_chosen_by_number() -> None:
    table = make_random_trace()
    wanted = [decision for decision in list_decisions(table) if decision.layer in (0, 2)]
    assert read_decisions(open_rows(table), layers=[2, 0]) == wanted
    with pytest.raises(UsageError, match="no routed layer 7") as caught:
        DecisionReader(open_rows(table), layers=[0, 7])
    assert caught.value.hint == "Its routed layers are 0, 1, 2."


def test_any_column_groups_tokens() -> None:
    table = make_random_trace(num_prompt_tokens=4)
    source = open_rows(table)
    for column in ("phase", "prompt_id", "token_id"):
        rows = DecisionReader(source, by=column, columns=COLUMNS)
        for window in rows:
            assert window.token_id is not None
            assert window.phase is not None
            seen = {
                "phase": [PHASES[code] for code in window.phase],
                "prompt_id": [rows.prompts[index] for index in window.prompt],
                "token_id": [str(one) for one in window.token_id],
            }[column]
            assert [rows.groups[index] for index in window.group] == seen
    with pytest.raises(UsageError, match="no column 'language' to group by"):
        DecisionReader(source, by="language")


def test_rows_that_no_trace_has_are_refused_at_the_end() -> None:
    table = make_random_trace()
    twice = pa.concat_tables([table, table.slice(0, 2)])
    with pytest.raises(InputError, match="twice for one decision"):
        list(DecisionReader(open_rows(twice)))
    assert list(DecisionReader(open_rows(twice), is_checked=False))


def test_a_trace_without_rows_is_refused() -> None:
    with pytest.raises(InputError, match="holds no rows"):
        DecisionReader(open_rows(make_random_trace().slice(0, 0)))
