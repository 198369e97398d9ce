"""One model's runs: each done once, and held as its checkpoint is stored."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from moetool.catalogue.gpus import find_gpu
from moetool.errors import InputError, UsageError
from moetool.memory.gpu_overhead import find_workspace_bytes
from moetool.memory.scenario import CacheKind, Scenario
from moetool.memory.simulated import model_runs, runs
from moetool.simulation.memory.memory_run import MemoryRun
from moetool.simulation.memory.replay import second_process
from moetool.simulation.memory.replay.second_process import SecondProcess
from tests.memory.saved_configs import make_runs, save_config

MIB = 2**20
SCENARIO = Scenario(batch_size=2, num_prompt_tokens=16, num_new_tokens=6, dtype="float32")
# Stored so that another library lays the weights out.
GPTQ = {"quant_method": "gptq", "bits": 4}


@pytest.fixture
def simulated(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Scenario, bool]]:
    """The simulations of a test in order, and whether they are brief."""
    seen: list[tuple[Scenario, bool]] = []
    record_scenario: Any = runs.record_scenario

    def watched(skeleton: Any, scenario: Scenario, *, is_brief: bool, **options: Any) -> Any:
        seen.append((scenario, is_brief))
        return record_scenario(skeleton, scenario, is_brief=is_brief, **options)

    monkeypatch.setattr(model_runs, "record_scenario", watched)
    return seen


def test_a_scenario_is_simulated_once(simulated: list[Any], tmp_path: Path) -> None:
    runs = make_runs(save_config("olmoe", tmp_path))
    first = runs.run(SCENARIO)
    assert runs.run(SCENARIO) is first
    assert runs.run(SCENARIO, is_brief=True) is first
    assert simulated == [(SCENARIO, False)]


def test_a_brief_run_does_not_replace_a_whole_one(simulated: list[Any], tmp_path: Path) -> None:
    runs = make_runs(save_config("olmoe", tmp_path))
    brief = runs.run(SCENARIO, is_brief=True)
    assert runs.run(SCENARIO, is_brief=True) is brief
    assert runs.run(SCENARIO) is not brief
    assert simulated == [(SCENARIO, True), (SCENARIO, False)]


@pytest.mark.parametrize("cache", [CacheKind.STATIC, CacheKind.OFFLOADED_STATIC])
def test_a_longer_run_before_leaves_no_trace(tmp_path: Path, cache: CacheKind) -> None:
    """`generate` keeps the length of the longest static cache on the model."""
    path = save_config("olmoe", tmp_path)
    short = replace(SCENARIO, cache=cache)
    after_another, alone = make_runs(path), make_runs(path)
    after_another.run(replace(short, num_prompt_tokens=64))
    runs = [each.run(short) for each in (after_another, alone)]
    assert runs[0] is not None
    assert runs[1] is not None
    assert runs[0].figures == runs[1].figures


WIDE = replace(SCENARIO, batch_size=512, num_prompt_tokens=64)


def test_a_run_within_some_memory_is_replayed_not_simulated_again(
    simulated: list[Any], tmp_path: Path
) -> None:
    runs = make_runs(save_config("olmoe", tmp_path))
    whole = runs.run(WIDE)
    assert whole is not None
    total_bytes = whole.figures.total_device_bytes
    assert runs.run_within(WIDE, total_bytes) is whole
    limited = runs.run_within(WIDE, total_bytes - 1)
    assert limited is not None
    assert runs.run_within(WIDE, total_bytes - 1, is_brief=True) is limited
    assert runs.run_within(WIDE, total_bytes // 2) is None
    assert simulated == [(WIDE, False)]


def test_what_old_runs_did_is_dropped_and_simulated_again_if_it_is_asked_for(
    simulated: list[Any], tmp_path: Path
) -> None:
    runs = make_runs(save_config("olmoe", tmp_path))
    first = runs.run(WIDE)
    assert first is not None
    total_bytes = first.figures.total_device_bytes
    for number in range(1, 10):
        runs.run(replace(WIDE, batch_size=number))
    assert runs.run(WIDE) == first
    assert simulated.count((WIDE, False)) == 1
    assert sum(run.replay is not None for run in runs._runs.values()) == 4
    assert runs.run_within(WIDE, total_bytes - 1) is not None
    assert simulated.count((WIDE, False)) == 2


def test_other_runs_are_prepared_while_a_second_process_replays_one(
    simulated: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(second_process, "_FEWEST_EVENTS_OF_LONG", 0)
    path = save_config("olmoe", tmp_path)
    whole = replace(SCENARIO, num_new_tokens=32)
    wide, too_long = replace(whole, batch_size=5), replace(whole, num_prompt_tokens=128)
    alone = make_runs(path)
    expected = [alone.simulate(each) for each in (whole, wide)]
    simulated.clear()
    with SecondProcess() as second:
        runs = replace(make_runs(path), second=second)

        def meanwhile(work: int) -> None:
            assert work == expected[0].work
            for each in (wide, too_long):
                runs.prepare(each)

        assert runs.simulate(whole, meanwhile=meanwhile) == expected[0]
        assert runs.simulate(wide) == expected[1]
    assert simulated == [(whole, False), (wide, False)]
    for _ in range(2):
        with pytest.raises(UsageError, match="past the context"):
            runs.simulate(too_long)


def test_the_context_is_never_passed(tmp_path: Path) -> None:
    runs = make_runs(save_config("olmoe", tmp_path))
    with pytest.raises(UsageError, match="past the context"):
        runs.run(replace(SCENARIO, num_prompt_tokens=128))


def test_code_that_needs_data_can_not_be_simulated(tmp_path: Path) -> None:
    runs = make_runs(save_config("glm5_next", tmp_path))
    with pytest.raises(InputError, match=r"can't be simulated: its forward needs data: ") as caught:
        runs.run(SCENARIO)
    assert "moetool inspect" in caught.value.hint


@pytest.mark.parametrize(
    ("gpu", "workspace_bytes"),
    [
        ("h200", 32 * MIB),
        ("b200", 32 * MIB),
        ("a100-80gb", 8 * MIB + 128 * 1024),
        ("rtx-4090", 8 * MIB + 128 * 1024),
        ("24GiB", 32 * MIB),
    ],
)
def test_products_of_matrices_keep_what_torch_gives_them_on_a_gpu(
    gpu: str, workspace_bytes: int
) -> None:
    assert find_workspace_bytes(find_gpu(gpu)) == workspace_bytes


def test_weights_stored_in_fp8_are_held_so() -> None:
    """A linear layer's bytes in fp8, and a float32 for each block of 128 x 128 of them."""
    scenario = replace(SCENARIO, dtype="auto", num_new_tokens=2)
    stored = make_runs("qwen3-30b-a3b-fp8").run(scenario)
    assert stored is not None
    plain = make_runs("qwen3-30b-a3b").simulate(scenario)
    layer_weights = 128 * 3 * 2048 * 768 + 2 * 2048 * 4096 + 2 * 2048 * 512
    saved_bytes = 48 * layer_weights * (2 - 1 - 4 / 128**2)
    difference = plain.figures.weights_bytes - stored.figures.weights_bytes
    # The allocator may leave up to 1 MiB each of embeddings and output layer unsplit.
    assert abs(difference - saved_bytes) <= 2 * MIB


def test_a_dtype_that_is_named_is_of_a_copy_in_it() -> None:
    runs = make_runs("qwen3-30b-a3b-fp8")
    scenario = replace(SCENARIO, num_new_tokens=2)
    auto, named = (runs.run(replace(scenario, dtype=dtype)) for dtype in ("auto", "bfloat16"))
    assert auto is not None
    assert named is not None
    assert named.figures.weights_bytes > 1.9 * auto.figures.weights_bytes


def test_without_files_a_run_with_weights_that_another_library_lays_out_is_unknown(
    tmp_path: Path,
) -> None:
    path = save_config("olmoe", tmp_path, dtype="float16", quantization_config=GPTQ)
    auto = replace(SCENARIO, dtype="auto")
    runs = make_runs(path)
    assert runs.run(auto) is None
    assert runs.run_within(auto, 2**60) is None
    (tmp_path / "plain").mkdir()
    plain = make_runs(save_config("olmoe", tmp_path / "plain", dtype="float16"))
    assert runs.simulate(auto) == plain.simulate(auto)


def test_brief_runs_of_a_model_that_needs_data_do_not_find_out_again(
    simulated: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    balanced: list[bool] = []
    generate: Any = MemoryRun.generate

    def watched(run: MemoryRun, **options: Any) -> Any:
        balanced.append(run._options.is_routing_balanced)
        return generate(run, **options)

    monkeypatch.setattr(MemoryRun, "generate", watched)
    runs = make_runs(save_config("dbrx", tmp_path))
    assert runs.simulate(SCENARIO).needs_data is not None
    assert balanced[:2] == [False, True]
    balanced.clear()
    other = replace(SCENARIO, batch_size=3)
    brief = runs.simulate(other, is_brief=True)
    assert balanced
    assert all(balanced)
    fresh = make_runs(save_config("dbrx", tmp_path))
    assert fresh.simulate(other, is_brief=True) == brief
    assert simulated[-1] == (other, True)
