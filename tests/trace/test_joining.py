"""Traces of one model are merged into one valid trace, or refused."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moetool import merge_traces, read_trace, validate_trace
from moetool.errors import InputError, UsageError
from moetool.trace.metadata import TraceMetadata
from moetool.trace.writing.partial import partial_folder
from tests.trace.examples import describe_layers, make_rows, write_trace
from tests.trace.reading.frames import make_frame, repeat_rows, write

METADATA = TraceMetadata(
    complete=True,
    model="demo",
    layers=describe_layers(),
    num_prompts=2,
    num_tokens=5,
    num_decisions=10,
    dtype="float32",
    prompts_sha256="0" * 64,
    versions={"torch": "2", "transformers": "5"},
)


def make_trace(path: Path, *names: str, seed: int = 0, **metadata: Any) -> Path:
    table = make_rows((3, 2), seed=seed, prompt_ids=names)
    return write_trace(path, table, metadata=replace(METADATA, **metadata))


def assert_nothing_written(path: Path) -> None:
    assert not path.exists()
    assert not partial_folder(path).exists()


@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
def test_a_merged_trace_holds_the_rows_of_all_in_their_order(suffix: str, tmp_path: Path) -> None:
    one = make_trace(tmp_path / "one.parquet", "a", "b")
    other = make_trace(tmp_path / "other.csv", "c", "d", seed=1)
    target = tmp_path / f"all{suffix}"
    merged = merge_traces([one, other], target)
    expected = pd.concat([read_trace(one), read_trace(other)]).to_dict("list")
    assert read_trace(target).to_dict("list") == expected
    assert (merged.num_rows, merged.num_prompts, merged.num_files) == (40, 4, 2)
    result = validate_trace(target)
    assert result.is_valid
    assert {check.result for check in result.checks} == {"passed"}


def test_the_metadata_are_those_that_hold_for_all(tmp_path: Path) -> None:
    one = make_trace(tmp_path / "one.parquet", "a", "b", notes=("first",), seed=1)
    other = make_trace(
        tmp_path / "other.parquet",
        *("c", "d"),
        dtype="bfloat16",
        prompts_sha256="1" * 64,
        versions={"torch": "2", "transformers": "6"},
        complete=False,
    )
    merge_traces([one, other], tmp_path / "all.parquet")
    metadata = read_trace(tmp_path / "all.parquet").attrs["moetool"]
    assert (metadata["num_prompts"], metadata["num_tokens"], metadata["num_decisions"]) == (
        4,
        10,
        20,
    )
    assert (metadata["model"], metadata["dtype"], metadata["prompts_sha256"]) == (
        "demo",
        None,
        None,
    )
    assert metadata["versions"] == {"torch": "2"}
    assert metadata["complete"] is False
    assert metadata["notes"] == ["first", "The merged traces differ in dtype: float32, bfloat16."]


SIZES: dict[str, Any] = {
    "total_parameters": 100,
    "active_parameters": 30,
    "flops_per_token": 60.5,
    "flops_prompt_tokens": 512,
    "dense_flops_per_token": 200.0,
}
FLOPS = {"flops_per_token", "flops_prompt_tokens", "dense_flops_per_token"}


@pytest.mark.parametrize(
    ("changes", "lost"),
    [
        ({}, set()),
        ({"active_parameters": 31}, {"active_parameters"}),
        ({"flops_prompt_tokens": 2048}, FLOPS),
        ({"dense_flops_per_token": None}, FLOPS),
        (dict.fromkeys(SIZES), set(SIZES)),
    ],
)
def test_sizes_of_the_model_are_kept_where_all_traces_state_the_same(
    changes: dict[str, Any], lost: set[str], tmp_path: Path
) -> None:
    one = make_trace(tmp_path / "one.parquet", "a", "b", **SIZES)
    other = make_trace(tmp_path / "other.parquet", "c", "d", **(SIZES | changes))
    for order in ([one, other], [other, one]):
        merge_traces(order, tmp_path / "all.parquet", overwrite=True)
        metadata = read_trace(tmp_path / "all.parquet").attrs["moetool"]
        assert {name: metadata[name] for name in SIZES} == SIZES | dict.fromkeys(lost)


def test_prompts_of_one_id_are_refused_or_get_the_name_of_their_trace(tmp_path: Path) -> None:
    for folder in ("x", "y"):
        (tmp_path / folder).mkdir()
    paths = [
        make_trace(tmp_path / "x" / "run.parquet", "a", "b"),
        make_trace(tmp_path / "y" / "run.parquet", "b", "c"),
    ]
    target = tmp_path / "all.parquet"
    with pytest.raises(InputError, match="1 prompt id in common, such as 'b'") as caught:
        merge_traces(paths, target)
    assert "--prefix-prompts" in caught.value.hint
    assert_nothing_written(target)
    merge_traces(paths, target, prefix_prompts=True)
    assert list(read_trace(target)["prompt_id"].unique()) == [
        "run/a",
        "run/b",
        "run-2/b",
        "run-2/c",
    ]
    assert validate_trace(target).is_valid


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "another"}, "come from different models"),
        ({"revision": "abc"}, "come from different models"),
        ({"layers": describe_layers(top_k=(2, 3))}, "come from different models"),
    ],
)
def test_traces_of_different_models_are_refused(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    one = make_trace(tmp_path / "one.parquet", "a", "b")
    other = make_trace(tmp_path / "other.parquet", "c", "d", **changes)
    with pytest.raises(InputError, match=message) as caught:
        merge_traces([one, other], tmp_path / "all.parquet")
    assert "moetool compare" in caught.value.hint
    assert_nothing_written(tmp_path / "all.parquet")


def test_traces_of_different_columns_are_refused(tmp_path: Path) -> None:
    one = make_trace(tmp_path / "one.parquet", "a", "b")
    frame = make_frame()[["prompt_id", "position", "layer", "expert"]]
    other = write(tmp_path / "other.parquet", frame, metadata=METADATA)
    with pytest.raises(InputError, match=r"other\.parquet' has no column 'domain', unlike"):
        merge_traces([one, other], tmp_path / "all.parquet")
    empty = write(tmp_path / "empty.parquet", make_frame().assign(weight=None), metadata=METADATA)
    with pytest.raises(
        InputError, match=r"empty\.parquet' has no value in its column 'weight', unl"
    ):
        merge_traces([one, empty], tmp_path / "all.parquet")
    assert_nothing_written(tmp_path / "all.parquet")
    merged = merge_traces([empty], tmp_path / "all.parquet")
    assert merged.notes == ("The column 'weight' holds no value, so it is left out.",)


def test_traces_of_different_top_k_are_refused(tmp_path: Path) -> None:
    one = write(tmp_path / "one.parquet", make_frame())
    first = make_frame()
    other = write(tmp_path / "other.parquet", first[first["rank"] == 0])
    with pytest.raises(InputError) as refused:
        merge_traces([one, other], tmp_path / "all.parquet", prefix_prompts=True)
    assert refused.value.message == (
        "The traces together have 12 of 24 decisions with fewer than 2 rows in layer 0."
    )
    assert refused.value.facts == ("first: prompt 'other/p0', layer 0, position 0",)
    assert "--no-validate" not in refused.value.hint
    assert_nothing_written(tmp_path / "all.parquet")


def test_traces_without_metadata_are_merged_with_each_other_only(tmp_path: Path) -> None:
    frame = make_frame()
    one = write(tmp_path / "one.parquet", frame)
    other = write(tmp_path / "other.parquet", frame.assign(language="German"))
    merged = merge_traces([one, other], tmp_path / "all.parquet", prefix_prompts=True)
    assert merged.notes == (
        "Not exact: the merged traces don't say how they were made.",
        "1 column that the format doesn't have is left out: language.",
    )
    assert validate_trace(tmp_path / "all.parquet").is_valid
    known = make_trace(tmp_path / "known.parquet", "a", "b")
    with pytest.raises(InputError, match="has no metadata, so it is not known to be of the model"):
        merge_traces([known, one], tmp_path / "new.parquet")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (repeat_rows, "twice for one decision"),
        (
            lambda frame: frame.assign(expert=frame["expert"] + 3),
            r"expert \d+ in row \d+ .*lists 6 experts in layer 0",
        ),
        (lambda frame: frame.iloc[:0], "hold no rows"),
    ],
)
def test_rows_that_no_trace_has_are_refused(spoil: Any, message: str, tmp_path: Path) -> None:
    path = write(tmp_path / "one.parquet", spoil(make_frame()), metadata=METADATA)
    with pytest.raises(InputError, match=message):
        merge_traces([path], tmp_path / "all.parquet")
    assert_nothing_written(tmp_path / "all.parquet")


def test_a_trace_twice_or_an_output_that_exists_is_refused(tmp_path: Path) -> None:
    path = make_trace(tmp_path / "one.parquet", "a", "b")
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "link.parquet").symlink_to(path)
    with pytest.raises(UsageError, match="is given twice"):
        merge_traces([path, folder], tmp_path / "all.parquet", prefix_prompts=True)
    with pytest.raises(UsageError, match="exists"):
        merge_traces([folder], path)
    with pytest.raises(UsageError, match="as a list of paths"):
        merge_traces(str(path), tmp_path / "all.parquet")


@settings(deadline=None, max_examples=15)
@given(cuts=st.lists(st.integers(1, 39), max_size=3, unique=True), rows=st.sampled_from([3, 1000]))
def test_the_parts_of_a_trace_merge_to_the_trace(
    cuts: list[int], rows: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("trace")
    (folder / "parts").mkdir()
    table = make_rows((6, 4), prompt_ids=["a", "b"])
    bounds = [0, *sorted(cuts), table.num_rows]
    for number, (start, end) in enumerate(pairwise(bounds)):
        part = table.slice(start, end - start)
        text = replace(METADATA, num_prompts=0, num_decisions=0).to_json()
        pq.write_table(
            part.replace_schema_metadata({"moetool": text}),
            folder / "parts" / f"{number}.parquet",
        )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("moetool.trace.reading.reader._ROWS_PER_TABLE", rows)
        merge_traces([folder / "parts"], folder / "all.parquet")
    assert read_trace(folder / "all.parquet").to_dict("list") == table.to_pydict()
