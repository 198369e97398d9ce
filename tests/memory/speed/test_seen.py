"""Recorded runs that are like a scenario, and why there are none."""

from __future__ import annotations

import re
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moetool.catalogue.gpus import find_gpu
from moetool.memory.answers.on_gpus import SpeedBound
from moetool.memory.scenario import CacheKind, Scenario, Task
from moetool.memory.speed.seen import RecordedSpeed, add_seen_speed, read_recorded_speeds

BOUND = SpeedBound("uniform", prefill_s=0.1, decode_s_per_token=0.01)


def make_run(
    batch_size: int, num_prompt_tokens: int, ratio: float, *, gpu: str = "h200", config: str = "a"
) -> RecordedSpeed:
    return RecordedSpeed(
        gpu, "m", config, "generate", batch_size, num_prompt_tokens, ratio, 10 * ratio
    )


RECORDED = [
    make_run(1, 2048, 1.5),
    make_run(1, 2048, 3.25, config="b"),
    make_run(1, 2048, 2.0, config="b"),
    make_run(8, 2048, 1.25),
    make_run(1, 2048, 99.0, gpu="h100"),
]


def add(
    scenario: Scenario,
    *,
    gpu: str = "h200",
    is_in_16_bits: bool = True,
    recorded: Sequence[RecordedSpeed] = RECORDED,
    bound: SpeedBound = BOUND,
) -> SpeedBound:
    return add_seen_speed(
        bound, scenario, find_gpu(gpu), is_in_16_bits=is_in_16_bits, recorded=recorded
    )


def test_the_range_is_that_of_runs_of_the_nearest_size_on_the_same_card() -> None:
    seen = add(Scenario(batch_size=1, num_prompt_tokens=2000)).prefill_seen
    assert seen is not None
    assert (seen.least_over_bound, seen.most_over_bound) == (1.5, 3.25)
    assert (seen.num_geometries, seen.num_runs) == (2, 3)
    assert (seen.batch_size, seen.num_prompt_tokens) == (1, 2048)
    decode = add(Scenario(batch_size=16)).decode_seen
    assert decode is not None
    assert (decode.least_over_bound, decode.num_runs, decode.batch_size) == (12.5, 1, 8)


@pytest.mark.parametrize(
    ("options", "gpu", "is_in_16_bits", "words"),
    [
        ({}, "rtx-4090", True, "only runs on .*H200.* and .*H100.* are recorded"),
        ({}, "24GiB", True, "only runs on"),
        ({}, "h200", False, "weights in 16 bits"),
        ({"task": Task.FORWARD}, "h200", True, "generate with transformers' defaults"),
        ({"attention": "eager"}, "h200", True, "generate with transformers' defaults"),
        ({"cache": CacheKind.STATIC}, "h200", True, "generate with transformers' defaults"),
        ({"batch_size": 64}, "h200", True, "within a factor of 4"),
        ({"num_prompt_tokens": 9000}, "h200", True, "within a factor of 4"),
    ],
)
def test_where_nothing_is_known_the_notes_say_why(
    options: dict[str, object], gpu: str, is_in_16_bits: bool, words: str
) -> None:
    bound = add(Scenario(**options), gpu=gpu, is_in_16_bits=is_in_16_bits)  # type: ignore[arg-type]
    assert (bound.prefill_seen, bound.decode_seen) == (None, None)
    (note,) = bound.notes
    assert re.search(words, note)


def test_a_phase_without_a_bound_has_no_range() -> None:
    bound = add(Scenario(), bound=SpeedBound("uniform", prefill_s=0.1))
    assert bound.prefill_seen is not None
    assert bound.decode_seen is None


def test_without_records_nothing_is_known() -> None:
    assert "no runs are recorded" in add(Scenario(), recorded=[]).notes[0]


@given(
    st.lists(
        st.tuples(st.sampled_from([1, 4, 32]), st.sampled_from([128, 2048]), st.floats(1, 99)),
        min_size=1,
    ),
    st.integers(1, 200),
    st.integers(1, 10_000),
)
def test_a_range_is_that_of_a_loop_over_all_runs(
    sizes: list[tuple[int, int, float]], batch_size: int, num_prompt_tokens: int
) -> None:
    recorded = [make_run(*size) for size in sizes]
    scenario = Scenario(batch_size=batch_size, num_prompt_tokens=num_prompt_tokens)
    seen = add(scenario, recorded=recorded).prefill_seen
    near = [
        size
        for size in sizes
        if max(size[0], batch_size) <= 4 * min(size[0], batch_size)
        and max(size[1], num_prompt_tokens) <= 4 * min(size[1], num_prompt_tokens)
    ]
    assert (seen is None) == (not near)
    if seen is not None:
        same = [size[2] for size in near if size[:2] == (seen.batch_size, seen.num_prompt_tokens)]
        assert (seen.least_over_bound, seen.most_over_bound) == (min(same), max(same))
        assert seen.num_runs == len(same)


def test_no_recorded_run_was_faster_than_its_bound() -> None:
    for run in read_recorded_speeds():
        assert run.prefill_over_bound >= 1
        assert run.decode_over_bound is None or run.decode_over_bound >= 1
