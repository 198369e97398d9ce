"""Placement from Python: frames, paths and sizes of models."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import moetool
from moetool.errors import UsageError
from moetool.library.questions.place import place_on_each
from moetool.library.sizes.model_sizes import find_model_sizes, read_model_sizes
from tests.analysis.random_traces import Router, make_random_trace


def test_a_frame_gives_what_its_file_gives(short_demo_trace: Path) -> None:
    frame = moetool.read_trace(short_demo_trace)
    from_frame = moetool.place_experts(frame, num_gpus=4, layers=[2])
    from_file = moetool.place_experts(short_demo_trace, num_gpus=4, layers=[2])
    assert from_frame.methods == from_file.methods
    assert from_frame.hidden_size == 128
    assert repr(from_file).startswith(f"<Placement of {short_demo_trace}: 1 layer on 4 GPUs; batch")


def test_another_column_can_be_spread_over_both_halves(short_demo_trace: Path) -> None:
    frame = moetool.read_trace(short_demo_trace)
    frame["language"] = (frame["domain"].astype(str) == "german").map({True: "de", False: "en"})
    result = moetool.place_experts(frame, num_gpus=4, layers=[2], by="language")
    assert {group.group: group.num_prompts for group in result.groups} == {"en": 24, "de": 4}
    assert any("one language, 'en'" in note for note in result.notes)


def test_export_writes_the_file_and_returns_its_options(
    short_demo_trace: Path, tmp_path: Path
) -> None:
    result = moetool.place_experts(short_demo_trace, num_gpus=4, num_redundant_experts=4)
    target = tmp_path / "map.json"
    options = moetool.export_placement(result, "sglang", target, method="eplb")
    assert options == (
        "--ep-size 4 --ep-num-redundant-experts 4 --ep-dispatch-algorithm dynamic "
        f"--init-expert-location {target}"
    )
    eplb = result.methods["eplb"]
    assert eplb is not None
    rows = json.loads(target.read_text())["physical_to_logical_map"]
    assert rows == [list(row) for row in eplb.physical_to_logical.values()]
    with pytest.raises(UsageError, match="exists"):
        moetool.export_placement(result, "sglang", target)
    moetool.export_placement(result, "sglang", target, overwrite=True, num_hidden_layers=8)
    rows = json.loads(target.read_text())["physical_to_logical_map"]
    assert rows[6:] == [[*range(8), *range(4)]] * 2


@pytest.mark.parametrize(
    "options",
    [
        {"num_gpus": 1},
        {"num_gpus": 4, "num_redundant_experts": -1},
        {"num_gpus": 4, "tokens_per_batch": 0},
        {"num_gpus": 4, "balance_weight": float("nan")},
        {"num_gpus": 4, "hidden_size": "64"},
        {"num_gpus": 4, "advises_vllm": 1},
    ],
)
def test_arguments_out_of_range_are_refused(
    short_demo_trace: Path, options: dict[str, object]
) -> None:
    with pytest.raises(UsageError):
        moetool.place_experts(short_demo_trace, **options)  # type: ignore[arg-type]


def test_sizes_of_catalogue_models() -> None:
    sizes = read_model_sizes("deepseek-v3")
    assert (sizes.hidden_size, sizes.num_hidden_layers, sizes.num_groups) == (7168, 61, 8)
    assert sizes.bytes_per_value == 2
    assert find_model_sizes("deepseek-ai/DeepSeek-V3") == sizes


@pytest.mark.parametrize("model", [None, "some/unknown-model", "no such file", ""])
def test_models_that_are_not_at_hand_have_no_sizes(model: str | None) -> None:
    sizes = find_model_sizes(model)
    assert set(vars(sizes).values()) == {None}


def test_several_numbers_of_gpus_are_placed_in_one_reading_as_one_by_one() -> None:
    frame = make_random_trace((30, 40, 20, 30), router=Router(num_experts=8)).to_pandas()
    found = place_on_each(
        frame,
        [2, 4, 8],
        by="domain",
        layers=[0, 2],
        num_experts=None,
        top_k=None,
        validate=True,
    )
    expected = [
        moetool.place_experts(frame, num_gpus=number, layers=[0, 2]) for number in (2, 4, 8)
    ]
    assert [each.to_dict() for each in found] == [each.to_dict() for each in expected]
