"""One expert, one token and one prompt, next to plain Python."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pyarrow as pa
import pytest

from moetool.analysis.tokens.one_expert import list_expert_tokens
from moetool.analysis.tokens.one_prompt import tabulate_prompt
from moetool.analysis.tokens.one_token import list_token_experts
from moetool.analysis.tokens.pieces import (
    find_similar_pieces,
    find_token_ids,
    read_piece,
    spell_piece,
)
from moetool.errors import InputError, UsageError
from moetool.trace.windows import reader as windows
from moetool.trace.windows.reader import DecisionReader
from tests.analysis.dropped_choices import drop_choices_by_rank
from tests.analysis.random_traces import (
    Decision,
    Router,
    list_decisions,
    make_random_trace,
    open_rows,
)

COLUMNS = ("token_id", "token", "weight", "phase")
ROUTER = Router(num_experts=4, top_k=2, num_layers=2, popularity=(4, 2, 1, 1))
LENGTHS = (40, 25, 9, 60, 31, 22)


@pytest.fixture(scope="module")
def table() -> pa.Table:
    return make_random_trace(LENGTHS, router=ROUTER, num_token_ids=12, num_prompt_tokens=20, seed=4)


@pytest.fixture
def reader(table: pa.Table) -> DecisionReader:
    return DecisionReader(open_rows(table, router=ROUTER), columns=COLUMNS)


@pytest.fixture(scope="module")
def decisions(table: pa.Table) -> list[Decision]:
    return list_decisions(table)


@pytest.mark.parametrize("expert", range(4))
def test_the_tokens_of_an_expert_are_those_of_plain_python(
    reader: DecisionReader, decisions: list[Decision], expert: int
) -> None:
    result = list_expert_tokens(reader, layer=1, expert=expert)
    mine = [one for one in decisions if one.layer == 1]
    chosen = [one for one in mine if expert in one.experts]
    occurrences = Counter(one.token_id for one in mine)
    counts = Counter(one.token_id for one in chosen)
    first = Counter(one.token_id for one in chosen if one.experts[0] == expert)
    assert (result.count, result.num_tokens) == (len(chosen), len(mine))
    assert result.share == pytest.approx(len(chosen) / len(mine))
    assert result.baseline.share == 2 / 4
    assert (result.num_token_ids, result.num_layer_ids) == (len(counts), len(occurrences))
    order = sorted(counts, key=lambda one: (-counts[one], one))
    assert [token.token_id for token in result.all_tokens] == order
    assert result.tokens == result.all_tokens[:20]
    for token in result.all_tokens:
        one = token.token_id
        assert (token.count, token.first_count) == (counts[one], first[one])
        assert (token.num_tokens, token.token) == (occurrences[one], f"t{one}")
        assert token.share == pytest.approx(counts[one] / occurrences[one])
        assert token.lift == pytest.approx(token.share / result.share)


@pytest.mark.parametrize("by", ["domain", "phase", "prompt_id"])
def test_the_tokens_of_each_group_are_those_of_its_rows_alone(table: pa.Table, by: str) -> None:
    table = drop_choices_by_rank(table, (0.1, 0.4))
    whole = list_expert_tokens(read_by(table, by), layer=1, expert=2, by=by)
    names = np.array(table.column(by).to_pylist())
    assert [group.group for group in whole.by_group] == sorted(set(names.tolist()))
    assert sum(group.num_tokens for group in whole.by_group) == whole.num_tokens
    assert sum(group.count for group in whole.by_group) == whole.count
    for group in whole.by_group:
        alone = list_expert_tokens(
            read_by(table.filter(pa.array(names == group.group)), by), layer=1, expert=2, by=by
        )
        assert (group.num_tokens, group.count) == (alone.num_tokens, alone.count)
        assert (group.share, group.baseline) == (alone.share, alone.baseline)
        assert group.tokens == alone.tokens[:5]
        assert alone.by_group == ()


def read_by(table: pa.Table, by: str, *, router: Router = ROUTER) -> DecisionReader:
    return DecisionReader(open_rows(table, router=router), by=by, columns=COLUMNS)


def test_a_random_router_lands_on_the_share_of_as_many_experts() -> None:
    router = Router(num_experts=8, top_k=2, num_layers=1)
    table = drop_choices_by_rank(make_random_trace([400] * 8, router=router), (0.1, 0.6))
    shares = []
    for expert in range(8):
        result = list_expert_tokens(read_by(table, "domain", router=router), layer=0, expert=expert)
        ran = (table.column("expert").to_numpy() >= 0).sum()
        assert result.baseline.share == pytest.approx(ran / 3_200 / 8)
        error = np.sqrt(result.baseline.share / 3_200)
        assert abs(result.share - result.baseline.share) < 5 * error
        shares.append(result.share)
        assert any(note.endswith("choices ran no expert.") for note in result.notes)
    assert np.mean(shares) == pytest.approx(result.baseline.share)
    assert result.baseline.share < 0.7 * 2 / 8


@pytest.mark.parametrize("rows_per_window", [30, 1_000_000])
def test_contexts_are_of_the_largest_weights_and_stay_in_their_prompt(
    table: pa.Table,
    decisions: list[Decision],
    rows_per_window: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(windows, "_ROWS_PER_WINDOW", rows_per_window)
    monkeypatch.setattr("moetool.trace.reading.reader._ROWS_PER_TABLE", 17)
    reader = DecisionReader(open_rows(table, router=ROUTER), columns=COLUMNS)
    result = list_expert_tokens(reader, layer=0, expert=1, num_contexts=5)
    mine = [one for one in decisions if one.layer == 0]
    pieces = {(one.prompt_id, one.position): f"t{one.token_id}" for one in mine}
    best: dict[int, tuple[float, Decision]] = {}
    for one in mine:
        if 1 in one.experts:
            weight = one.weights[one.experts.index(1)]
            if one.token_id not in best or weight > best[one.token_id][0]:
                best[one.token_id] = (weight, one)
    wanted = sorted(best.values(), key=lambda item: -item[0])
    assert [context.weight for context in result.contexts] == [
        pytest.approx(weight) for weight, _ in wanted[:5]
    ]
    for context, (_, one) in zip(result.contexts, wanted, strict=False):
        place = one.prompt_id, one.position
        assert (context.prompt_id, context.position, context.token_id) == (*place, one.token_id)
        length = LENGTHS[int(one.prompt_id[1:])]
        before = range(max(0, one.position - 8), one.position)
        after = range(one.position + 1, min(length, one.position + 9))
        assert context.before == tuple(pieces[one.prompt_id, at] for at in before)
        assert context.after == tuple(pieces[one.prompt_id, at] for at in after)
    rows = {row["token_id"]: row for row in result.to_rows()}
    assert {token: row["position"] for token, row in rows.items()} == {
        token: one.position for token, (_, one) in best.items()
    }


def test_without_weights_contexts_are_a_sample_that_no_order_changes(table: pa.Table) -> None:
    bare = table.drop_columns(["weight"])
    prompt = np.array(bare.column("prompt_id").to_pylist())
    parts = [bare.filter(pa.array(prompt == f"p{one}")) for one in (3, 5, 0, 4, 2, 1)]
    one, other = (
        list_expert_tokens(
            DecisionReader(open_rows(each, router=ROUTER), columns=COLUMNS), layer=0, expert=1
        )
        for each in (bare, pa.concat_tables(parts))
    )
    assert one.contexts == other.contexts
    assert len({context.prompt_id for context in one.all_contexts}) > 1
    assert {context.weight for context in one.all_contexts} == {None}


def test_an_expert_or_layer_that_does_not_exist_is_refused(reader: DecisionReader) -> None:
    with pytest.raises(UsageError, match="Layer 1 has no expert 4") as caught:
        list_expert_tokens(reader, layer=1, expert=4)
    assert caught.value.hint == "Its experts are 0 to 3."
    with pytest.raises(UsageError, match="The stack 'encoder' has no layer 1"):
        list_expert_tokens(reader, layer=1, expert=0, stack="encoder")


@pytest.mark.parametrize("asked", [{"token_id": 7}, {"token": "t7"}])
def test_the_experts_of_a_token_are_those_of_plain_python(
    reader: DecisionReader, decisions: list[Decision], asked: dict[str, object]
) -> None:
    result = list_token_experts(reader, **asked)  # type: ignore[arg-type]
    assert (result.token_ids, result.token) == ((7,), "t7")
    for layer in result.layers:
        mine = [one for one in decisions if one.layer == layer.layer]
        found = [one for one in mine if one.token_id == 7]
        loads = Counter(expert for one in mine for expert in one.experts)
        counts = Counter(expert for one in found for expert in one.experts)
        first = Counter(one.experts[0] for one in found)
        assert layer.count == len(found) == result.count
        assert result.num_prompts == len({one.prompt_id for one in found})
        assert layer.usual_share == pytest.approx(max(first.values()) / len(found))
        assert first[layer.usual_expert or 0] == max(first.values())
        assert [expert.expert for expert in layer.experts] == sorted(
            counts, key=lambda one: (-counts[one], one)
        )
        for expert in layer.experts:
            one = expert.expert
            assert (expert.count, expert.first_count) == (counts[one], first[one])
            assert expert.share == pytest.approx(counts[one] / len(found))
            assert expert.lift == pytest.approx(expert.share / (loads[one] / len(mine)))
    assert len(result.to_rows()) == sum(len(layer.experts) for layer in result.layers)


def test_a_token_that_does_not_occur_is_refused(reader: DecisionReader) -> None:
    with pytest.raises(UsageError, match="No token of the trace has the id 99"):
        list_token_experts(reader, token_id=99)
    with pytest.raises(UsageError, match="No token of the trace is spelled 'T1'") as caught:
        list_token_experts(reader, token="T1")
    assert caught.value.hint == "Similar ones are 't1', 't10', 't11'."


def test_a_text_needs_pieces(table: pa.Table) -> None:
    bare = open_rows(table.drop_columns(["token"]), router=ROUTER)
    with pytest.raises(UsageError, match="no column 'token'"):
        list_token_experts(DecisionReader(bare, columns=COLUMNS), token="t1")
    result = list_token_experts(DecisionReader(bare, columns=COLUMNS), token_id=7)
    assert result.token is None
    nothing = open_rows(table.drop_columns(["token", "token_id"]), router=ROUTER)
    with pytest.raises(InputError, match="no column 'token_id'"):
        list_token_experts(DecisionReader(nothing, columns=COLUMNS), token_id=7)


def test_a_prompt_has_the_rows_of_the_trace(reader: DecisionReader, table: pa.Table) -> None:
    result = tabulate_prompt(reader, "p3")
    names = ["stack", "position", "token_id", "token", "phase", "layer", "rank", "expert", "weight"]
    wanted = [
        {name: row[name] for name in names} for row in table.to_pylist() if row["prompt_id"] == "p3"
    ]
    by_place = sorted(wanted, key=lambda row: (row["position"], row["layer"], row["rank"]))
    assert result.to_rows() == by_place
    assert list(result.column_types()) == names
    assert [layer.num_tokens for layer in result.layers] == [60, 60]
    (stack,) = result.excerpt(num_listed=4)
    assert [token.position for token in stack.tokens] == [0, 1, 18, 19, 20, 21, 58, 59]
    assert [token.is_new for token in stack.tokens] == [False] * 4 + [True] * 4
    assert stack.tokens[0].experts == tuple(
        decision.experts for decision in result.tokens[0].decisions
    )


def test_a_prompt_of_bare_rows_has_no_more_than_they_say(table: pa.Table) -> None:
    bare = table.select(["prompt_id", "position", "layer", "expert"])
    kept = bare.filter(
        pa.array((bare.column("layer").to_numpy() == 0) | (table.column("position").to_numpy() > 2))
    )
    result = tabulate_prompt(DecisionReader(open_rows(kept, router=ROUTER), columns=COLUMNS), "p2")
    assert result.to_rows()[0]["token_id"] is result.to_rows()[0]["weight"] is None
    (stack,) = result.excerpt(num_listed=4)
    assert stack.tokens[0].experts[1] == (-1,)


def test_a_prompt_that_does_not_exist_is_refused(reader: DecisionReader) -> None:
    with pytest.raises(UsageError, match="no prompt 'p33'") as caught:
        tabulate_prompt(reader, "p33")
    assert "Similar ids are 'p3'" in caught.value.hint
    with pytest.raises(UsageError) as other:
        tabulate_prompt(reader, "q")
    assert other.value.hint == "Its prompts are 'p0', 'p1', 'p2', 'p3', 'p4', …."


@pytest.mark.parametrize(
    ("piece", "text"),
    [
        ("Ġthe", " the"),
        ("▁the", " the"),
        ("Ċ", "\n"),
        ("Ã©", "é"),
        ("ä½ł", "你"),
        ("the", "the"),
        ("<s>", "<s>"),
        ("", ""),
        ("你", "你"),
    ],
)
def test_a_piece_is_read_as_its_text(piece: str, text: str) -> None:
    assert read_piece(piece) == text
    assert {piece, text} <= {*spell_piece(piece)}
    assert find_token_ids({3: "other", 5: piece}, text) == (5,)


def test_a_part_of_a_letter_stays_a_piece() -> None:
    assert read_piece("Ã") == "Ã"
    assert find_token_ids({1: "Ã"}, "Ã") == (1,)
    assert find_similar_pieces(["Ġthe", "ĠThen", "x"], " the ") == ["Ġthe", "ĠThen"]
