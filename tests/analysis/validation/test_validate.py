"""Every fault of a trace is found by its check, with its place, whatever else is wrong."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moetool import read_trace, validate_trace
from moetool.analysis.validation.result import Check, Validation
from moetool.errors import InputError
from moetool.report.questions.validate import render_table_text
from tests.trace.examples import describe_layers
from tests.trace.reading.frames import METADATA, ORDERS, change, make_frame, order, write

# Rows 8 and 9 are the decision of p0 in layer 1 at position 0.
PLACE = ("p0", 1, 0)
Spoil = Callable[[pd.DataFrame], pd.DataFrame]


def swap_weights(frame: pd.DataFrame) -> pd.DataFrame:
    frame = frame.copy()
    frame.loc[frame.index[8:10], "weight"] = [0.1, 0.9]
    return frame


def same_expert(frame: pd.DataFrame) -> pd.DataFrame:
    return change("expert", frame["expert"].iloc[8])(frame)


def pad_one(frame: pd.DataFrame) -> pd.DataFrame:
    return change("expert", -1)(frame)


def third_row(frame: pd.DataFrame) -> pd.DataFrame:
    row = frame.iloc[9:10].assign(rank=2, expert=-1, weight=0)
    return pd.concat([frame.iloc[:9], row, frame.iloc[9:]])


def idle_layer(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.assign(
        expert=frame["expert"].where(frame["layer"] == 0, -1),
        weight=frame["weight"].where(frame["layer"] == 0, 0),
    )


# Each with the check that fails, the number of faults, what the message says, and the place.
FAULTS: dict[str, tuple[Spoil, str, int, str, tuple[Any, ...]]] = {
    "rows twice": (
        lambda frame: pd.concat([frame, frame.iloc[8:10]]),
        *("distinct experts", 1, "twice for one decision", PLACE),
    ),
    "an expert twice": (same_expert, "distinct experts", 1, "twice for one decision", PLACE),
    "a rank twice": (change("rank", 0), "ranks", 1, "has a decision with the ranks 0, 0", PLACE),
    "a rank below zero": (
        change("rank", -1),
        "values in range",
        1,
        "rank -1, below 0, in row 9 ",
        PLACE,
    ),
    "a position below zero": (
        change("position", -5),
        *("values in range", 1, "position -5, below 0", ("p0", 1, -5)),
    ),
    "a weight below zero": (
        change("weight", -0.5),
        "weights",
        1,
        "a weight of -0.5 in row 9 ",
        PLACE,
    ),
    "an infinite weight": (change("weight", float("inf")), "weights", 1, "weight of inf", PLACE),
    "a first choice of less weight": (
        swap_weights,
        "first choice",
        1,
        "than that of rank 0",
        PLACE,
    ),
    "two domains": (
        change("domain", "y"),
        *("one domain", 1, "'p0' under two domains, 'x' and 'y'", ("p0", None, None)),
    ),
    "an expert beyond all": (change("expert", 6), "known experts", 1, "has expert 6", PLACE),
    "a layer beyond all": (
        change("layer", 7),
        *("known layers", 1, "has rows of layer 7", ("p0", 7, 0)),
    ),
    "a pad with a weight": (pad_one, "weights without an expert", 1, "of no expert", PLACE),
    "three rows for top-2": (
        third_row,
        *("rows per decision", 1, "layer 1 has up to 3 rows", (None, 1, None)),
    ),
    "an idle layer": (
        idle_layer,
        *("layers in use", 1, "no expert ran for any token in layer 1", (None, 1, None)),
    ),
}


def validate(frame: pd.DataFrame, folder: Path, **metadata: Any) -> Validation:
    counts = {"num_prompts": 3, "num_decisions": 24}
    described = replace(METADATA, **{**counts, **metadata})
    return validate_trace(write(folder / "trace.parquet", frame, metadata=described))


def find(result: Validation, name: str) -> Check:
    (check,) = [check for check in result.checks if check.check == name]
    return check


def failed(result: Validation) -> list[str]:
    return [check.check for check in result.checks if check.result == "failed"]


def test_a_sound_trace_passes_every_check(tmp_path: Path) -> None:
    result = validate(make_frame(), tmp_path)
    assert {check.result for check in result.checks} == {"passed"}
    assert result.is_valid
    assert (result.trace.num_prompts, result.trace.num_tokens, result.num_decisions) == (3, 12, 24)
    assert [(item.num_experts, item.top_k, item.num_tokens) for item in result.layers] == [
        (6, 2, 12)
    ] * 2
    assert result.domains == ("x", "y")
    missing = {answer.command: answer.missing for answer in result.answers}
    assert missing.pop("balance --by phase") == "all tokens are prefill"
    assert set(missing.values()) == {None}


@pytest.mark.parametrize("what", FAULTS)
def test_each_fault_fails_its_check(what: str, tmp_path: Path) -> None:
    spoil, name, number, message, place = FAULTS[what]
    result = validate(spoil(make_frame()), tmp_path)
    check = find(result, name)
    assert (check.result, check.num_faults) == ("failed", number)
    assert check.message is not None
    assert message in check.message
    assert (check.prompt_id, check.layer, check.position) == place
    assert not result.is_valid


@settings(deadline=None, max_examples=25)
@given(
    names=st.lists(
        st.sampled_from(
            ["an expert twice", "a weight below zero", "two domains", "a pad with a weight"]
        ),
        unique=True,
    ),
    columns=st.sampled_from(list(ORDERS.values())),
    rows=st.sampled_from([2, 7, 1000]),
)
def test_faults_hide_none_of_the_others_in_any_order_of_rows(
    names: list[str],
    columns: list[str] | None,
    rows: int,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    frame = make_frame()
    number = {"an expert twice": 10, "two domains": 30}
    for name in names:
        part = slice(number.get(name, 40), number.get(name, 40) + 2)
        if name == "an expert twice":
            frame.loc[frame.index[part], "expert"] = 3
        elif name == "a weight below zero":
            frame.loc[frame.index[21], "weight"] = -0.5
        elif name == "two domains":
            frame["domain"] = frame["domain"].astype(object)
            frame.loc[frame.index[part], "domain"] = "elsewhere"
        else:
            frame.loc[frame.index[part], "expert"] = -1
    folder = tmp_path_factory.mktemp("trace")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("moetool.trace.reading.reader._ROWS_PER_TABLE", rows)
        result = validate(order(frame, columns), folder)
    expected = {FAULTS[name][1] for name in names}
    assert set(failed(result)) == expected
    assert find(result, "distinct experts").num_faults == ("an expert twice" in names)
    assert find(result, "weights").num_faults == ("a weight below zero" in names)


def test_what_is_legal_is_noted(tmp_path: Path) -> None:
    frame = make_frame()
    short = frame[~((frame["prompt_id"] == "p2") & (frame["position"] == 1))]
    result = validate(short, tmp_path, num_decisions=22)
    assert failed(result) == []
    assert (
        find(result, "positions without gaps").message == "prompt 'p2' has 4 tokens, but position 4"
    )
    fewer = frame[~((frame["rank"] == 1) & (frame["position"] == 0) & (frame["layer"] == 1))]
    check = find(validate(fewer, tmp_path), "assignments are tokens x top-k")
    assert (check.result, check.num_faults) == ("failed", 3)
    one_less = frame[~((frame["layer"] == 1) & (frame["prompt_id"] == "p1"))]
    check = find(validate(one_less, tmp_path, num_decisions=21), "tokens of each layer")
    assert check.message == "prompt 'p1' has 3 tokens in layer 0, but 0 in layer 1"
    unfinished = validate(frame, tmp_path, complete=False, exact=False)
    assert find(unfinished, "counts of the metadata").result == "skipped"
    assert find(unfinished, "complete and exact").num_faults == 2
    missing = validate(frame, tmp_path, layers=describe_layers(top_k=(2, 2, 2)))
    assert "lists layer 2" in (find(missing, "layers in use").message or "")


def test_counts_that_contradict_the_metadata_fail(tmp_path: Path) -> None:
    check = find(validate(make_frame(), tmp_path, num_decisions=25), "counts of the metadata")
    assert check.result == "failed"
    assert check.message == "the metadata counts 25 decisions, but the rows hold 24"


def test_a_foreign_trace_says_what_it_lacks(tmp_path: Path) -> None:
    frame = make_frame()[["prompt_id", "position", "layer", "expert"]]
    result = validate_trace(write(tmp_path / "trace.parquet", frame))
    assert result.is_valid
    skipped = {check.check: check.message for check in result.checks if check.result == "skipped"}
    assert skipped["ranks"] == "there is no column 'rank'"
    assert skipped["known experts"] == "the trace has no metadata"
    assert len(skipped) == 9
    missing = {answer.command: answer.missing for answer in result.answers}
    assert missing["specialize"] == "no column 'domain'"
    assert missing["select --by gate"] == "no column 'weight'"
    assert missing["coactivation"] is None


def test_sizes_of_the_model_are_those_of_the_metadata(tmp_path: Path) -> None:
    sized = replace(
        METADATA,
        total_parameters=2_000,
        active_parameters=500,
        flops_per_token=3200.25,
        flops_prompt_tokens=512,
        dense_flops_per_token=6400.5,
    )
    path = write(tmp_path / "trace.parquet", make_frame(), metadata=sized)
    result = validate_trace(path)
    assert result.model_counts == sized.model_counts
    assert result.to_dict()["model_counts"] == {
        "total_parameters": 2_000,
        "active_parameters": 500,
        "flops_per_token": 3200.25,
        "flops_prompt_tokens": 512,
        "dense_flops_per_token": 6400.5,
        "active_share": 0.25,
        "flops_ratio": 0.5,
    }
    page = " ".join(render_table_text(result).split())
    assert "parameters 2.000K, of which a token runs 500 (25.0%)" in page
    assert "prefill 3.200K FLOPs per token (of 512), 50.0% of a dense model's" in page

    for metadata in (METADATA, None):
        bare = validate_trace(write(tmp_path / "bare.parquet", make_frame(), metadata=metadata))
        assert set(bare.to_dict()["model_counts"].values()) == {None}
        assert "FLOPs" not in render_table_text(bare)


def test_a_frame_is_checked_as_its_file_is(tmp_path: Path) -> None:
    path = write(tmp_path / "trace.parquet", same_expert(make_frame()), metadata=METADATA)
    from_file = validate_trace(path)
    from_frame = validate_trace(read_trace(path, validate=False))
    assert failed(from_frame) == failed(from_file) == ["distinct experts"]
    assert from_frame.to_frame().shape == from_file.to_frame().shape


def test_a_trace_without_rows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no rows"):
        validate(make_frame().iloc[:0], tmp_path)
