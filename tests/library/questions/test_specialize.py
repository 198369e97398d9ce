"""`measure_specialization` gives the command's answer, wherever the rows are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from moetool import measure_specialization, read_trace, trace_model
from moetool.analysis.specialization.result import Specialization
from moetool.errors import InputError, UsageError
from tests.command import RunMoetool

FEW = 49


@pytest.fixture(scope="module")
def answer(run_moetool: RunMoetool, short_demo_trace: Path) -> dict[str, Any]:
    """The command's answer, without what names it."""
    completed = run_moetool(
        "specialize",
        short_demo_trace,
        "--permutations",
        str(FEW),
        "--seed",
        "3",
        "--format",
        "json",
    )
    assert completed.returncode == 0, completed.stderr
    value: dict[str, Any] = json.loads(completed.stdout)
    del value["schema"], value["moetool"]
    return value


def measure(trace: Any, **options: Any) -> Specialization:
    result = measure_specialization(trace, num_permutations=FEW, seed=3, **options)
    assert isinstance(result, Specialization)
    return result


def test_a_path_gives_the_json_of_the_command(
    short_demo_trace: Path, answer: dict[str, Any]
) -> None:
    assert measure(short_demo_trace).to_dict() == measure(str(short_demo_trace)).to_dict() == answer


def test_a_frame_gives_the_numbers_of_the_command(
    short_demo_trace: Path, answer: dict[str, Any]
) -> None:
    frame = read_trace(short_demo_trace)
    renamed = frame.rename(columns={"domain": "subject"})
    facts = {**answer["trace"], "trace": None}
    for by, result in (("domain", measure(frame)), ("subject", measure(renamed, by="subject"))):
        assert {**result.to_dict(), "by": "domain"} == {**answer, "trace": facts}
        assert result.by == by


def test_the_order_of_rows_changes_no_count(short_demo_trace: Path) -> None:
    frame = read_trace(short_demo_trace)
    counted = ["domain", "layer", "expert", "assignments", "tokens"]
    given, shuffled = (
        measure(rows).to_frame()[counted].sort_values(counted, ignore_index=True)
        for rows in (frame, frame.sample(frac=1, random_state=0))
    )
    pd.testing.assert_frame_equal(given, shuffled)


def test_a_trace_in_memory_and_one_in_a_file_give_the_same(tmp_path: Path) -> None:
    prompts = [
        {"text": text, "domain": domain}
        for domain, texts in {"a": ["The cat.", "A dog."], "b": ["1 + 1 = 2", "2 + 3"]}.items()
        for text in texts
    ]
    kept = trace_model("demo", prompts)
    path = kept.save(tmp_path / "trace.parquet")
    expected = measure(path).to_dict()
    facts = expected.pop("trace")
    assert facts["trace"] == str(path)
    assert {**measure(kept).to_dict(), "trace": None} == {**expected, "trace": None}
    assert measure(kept).trace is not None
    other = tmp_path / "other.parquet"
    stored = trace_model("demo", prompts, output=other)
    assert measure(stored).to_dict() == {**expected, "trace": {**facts, "trace": str(other)}}


def test_a_frame_of_four_columns_needs_the_shape_as_the_command_does() -> None:
    frame = pd.DataFrame(
        {
            "prompt_id": ["a", "a", "b", "b"],
            "position": [0, 1, 0, 1],
            "layer": 0,
            "expert": [0, 1, 2, 2],
            "kind": ["x", "x", "y", "y"],
        }
    )
    result = measure(frame, by="kind", num_experts=4, top_k=1)
    assert [size.domain for size in result.domains] == ["x", "y"]
    assert len(result.experts) == 8
    assert "4 experts are assumed" not in " ".join(result.notes)
    assert "3 experts are assumed" in " ".join(measure(frame, by="kind").notes)
    with pytest.raises(InputError, match="has no column 'domain'"):
        measure(frame)
    twice = pd.concat([frame, frame])
    with pytest.raises(InputError, match="has expert 0 twice"):
        measure(twice, by="kind")
    assert measure(twice, by="kind", validate=False).experts[0].assignments == 2


def test_an_empty_frame_is_refused_as_a_frame(short_demo_trace: Path) -> None:
    with pytest.raises(InputError, match="holds no rows") as caught:
        measure(read_trace(short_demo_trace).iloc[:0])
    assert caught.value.hint == "Give a frame with the rows of at least one prompt."


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_permutations": 0}, "number of permutations can't be 0"),
        ({"seed": -1}, "seed can't be -1"),
        ({"num_experts": 0}, "number of experts can't be 0"),
        ({"top_k": "2"}, "top-k can't be '2'"),
        ({"validate": 1}, "validate can't be 1"),
        ({"by": 3}, "column of the domains can't be 3"),
        ({"layers": [7]}, "has no routed layer 7"),
        ({"by": "phase"}, "All prompts have the same phase, 'prefill'"),
        ({"by": "prompt_id"}, "Each prompt has its own prompt_id"),
        ({"by": "position"}, "has two values of 'position'"),
        ({"by": "language"}, "has no column 'language' to group by"),
    ],
)
def test_options_out_of_range_are_refused(
    options: dict[str, Any], message: str, short_demo_trace: Path
) -> None:
    with pytest.raises((UsageError, InputError), match=message):
        measure_specialization(short_demo_trace, **options)


def test_a_result_of_a_frame_is_a_frame_again(short_demo_trace: Path) -> None:
    result = measure(read_trace(short_demo_trace))
    frame = result.to_frame()
    assert len(frame) == len(result.experts) == 7 * 6 * 8
    layers = result.to_frame("layers")
    assert layers["layer"].tolist() == list(range(6))
    assert (layers["p_value"] == 1 / (FEW + 1)).all()
