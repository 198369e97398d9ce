"""Estimates from a name and scenarios: figures, notes, and what is left out."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType

import pytest

from moetool.errors import InputError
from moetool.memory import estimate_scenario, named_gpu
from moetool.memory.answers.figures import Method
from moetool.memory.estimate import estimate_memory
from moetool.memory.result import Estimate
from moetool.memory.scenario import CacheKind, Scenario, Task
from moetool.memory.serving.answer import Engine, ServingOptions
from moetool.memory.sweep import list_scenarios
from moetool.quantizing.kinds import Quantization, QuantizedExperts
from moetool.report.memory.data import render_json
from moetool.simulation.memory import memory_run
from moetool.simulation.meta.known_values import KnownValues
from moetool.wording import format_bytes
from tests.memory.saved_configs import make_runs, save_config

TINY = Scenario(batch_size=2, num_prompt_tokens=16, num_new_tokens=3, dtype="float32")
SHORT = Scenario(batch_size=1, num_prompt_tokens=128, num_new_tokens=4, dtype="bfloat16")
FIGURES = (
    *("weights_bytes", "cache_bytes", "peak_allocated_bytes", "peak_reserved_bytes"),
    "total_device_bytes",
)
GB = 10**9
# Little more than CUDA and the tiny model take, so that the search for the largest batch ends soon.
SMALL_GPU = "750MiB"


@pytest.fixture(scope="module")
def mixtral() -> Estimate:
    """Mixtral's estimate at batch 32."""
    wide = Scenario(batch_size=32, num_prompt_tokens=512, num_new_tokens=16, dtype="bfloat16")
    (estimate,) = estimate_memory("mixtral-8x7b", [wide])
    return estimate


@pytest.fixture
def tiny(tmp_path: Path) -> str:
    """A tiny model's config.json."""
    return save_config("olmoe", tmp_path)


@pytest.fixture(scope="module")
def whole_path(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The tiny model's config.json for all of this file."""
    return save_config("olmoe", tmp_path_factory.mktemp("whole"))


@pytest.fixture(scope="module")
def followed(whole_path: str) -> tuple[Estimate, list[str]]:
    """The estimate of the tiny model for a GPU, with nothing left out, and its progress in words."""
    words: list[str] = []
    (estimate,) = estimate_memory(whole_path, [TINY], gpu=SMALL_GPU, on_progress=words.append)
    return estimate, words


@pytest.fixture(scope="module")
def whole(followed: tuple[Estimate, list[str]]) -> Estimate:
    """The estimate of the tiny model for a GPU, with nothing left out."""
    return followed[0]


def test_json_has_every_key_that_was_promised(mixtral: Estimate) -> None:
    value = json.loads(render_json([mixtral]))
    assert set(value) == {"schema", "moetool", "versions", "estimates"}
    assert value["schema"] == "moetool.memory-estimate/1"
    (estimate,) = value["estimates"]
    assert {
        *("model", "scenario", "method", *FIGURES, "context_bytes", "at_peak", "peaks"),
        *("variants", "fits", "notes"),
    } <= set(estimate)
    parts = ["weights_bytes", "cache_bytes", "activation_bytes", "workspace_bytes"]
    parts += ["gradient_bytes", "optimizer_state_bytes"]
    assert set(estimate["at_peak"]) == {"phase", "layer", "operation", *parts}
    assert sum(estimate["at_peak"][part] for part in parts) == estimate["peak_allocated_bytes"]
    assert estimate["at_peak"] in estimate["peaks"]
    context_bytes = estimate["total_device_bytes"] - estimate["peak_reserved_bytes"]
    assert context_bytes == estimate["context_bytes"]
    fit = {"gpu", "memory_bytes", "quantization", "num_gpus", "fits", "headroom_bytes"}
    assert all(set(each) == fit for each in estimate["fits"])
    assert (estimate["variants"], estimate["method"]) == ({}, "simulated")


def test_a_step_copies_the_chosen_experts_weights_of_every_sequence(mixtral: Estimate) -> None:
    """`batched_mm`: two experts of three matrices each for every one of 32 sequences."""
    copied_bytes = 32 * 2 * 3 * 4096 * 14336 * 2
    prefill, decode = mixtral.peaks
    assert mixtral.at_peak == decode
    assert 22.5 * GB < copied_bytes < decode.parts.activation_bytes < 1.01 * copied_bytes
    assert prefill.parts.activation_bytes < decode.parts.activation_bytes / 4
    assert decode.operation.endswith(" in mlp.experts")
    assert decode.layer is not None
    assert decode.layer.startswith("model.layers.")


def test_the_cache_holds_all_tokens_but_the_last(mixtral: Estimate) -> None:
    per_position = 32 * 2 * 8 * 128 * 2
    assert mixtral.figures.cache_bytes == 32 * (512 + 16 - 1) * per_position


@pytest.mark.parametrize("batch_size", [1, 3])
def test_a_latent_cache_holds_latents_alone(batch_size: int) -> None:
    scenario = replace(SHORT, batch_size=batch_size)
    cache_bytes = make_runs("deepseek-v2-lite").simulate(scenario).figures.cache_bytes
    assert cache_bytes == 27 * (512 + 64) * 2 * (128 + 4 - 1) * batch_size


@pytest.mark.parametrize("num_prompt_tokens", [64, 1024])
def test_layers_with_windows_hold_no_more_than_those(num_prompt_tokens: int) -> None:
    """In gpt-oss, every second of 24 layers has a window of 128 and counts its tokens in an int64."""
    scenario = replace(SHORT, num_prompt_tokens=num_prompt_tokens)
    num_positions = num_prompt_tokens + 4 - 1
    per_position = 2 * 8 * 64 * 2
    expected = 12 * per_position * (num_positions + min(num_positions, 128)) + 12 * 8
    assert make_runs("gpt-oss-20b").simulate(scenario).figures.cache_bytes == expected


def test_quantized_experts_are_shown_next_to_those_that_transformers_loads() -> None:
    """Nf4 takes half a byte for a weight, and a float32 for 64 of them."""
    nf4 = replace(SHORT, quantization=Quantization.NF4)
    as_loaded, quantized = estimate_memory(
        "olmoe-1b-7b", [nf4, replace(nf4, experts=QuantizedExperts.QUANTIZED)]
    )
    assert as_loaded.variants == quantized.variants
    assert list(as_loaded.variants) == ["transformers", "experts_quantized"]
    assert as_loaded.figures == as_loaded.variants["transformers"]
    assert quantized.figures == quantized.variants["experts_quantized"]
    assert as_loaded.figures.weights_bytes == 13_452_481_536
    expert_weights = 16 * 64 * 3 * 2048 * 1024
    saved_bytes = expert_weights * 2 - expert_weights * (0.5 + 4 / 64)
    assert quantized.figures.weights_bytes == 13_452_481_536 - saved_bytes
    assert quantized.figures.weights_bytes / 2**30 == pytest.approx(3.9, abs=0.01)
    # The experts of a layer in bfloat16, more than the weights.
    loading_bytes = quantized.figures.weights_bytes + expert_weights // 16 * 2
    words = f"While it loads, it takes up to {format_bytes(loading_bytes)}: files that hold"
    assert sum(note.startswith(words) for note in quantized.notes) == 1
    assert not any("While it loads" in note for note in as_loaded.notes)


def test_weights_that_are_stored_in_fp8_are_shown_as_loaded() -> None:
    (estimate,) = estimate_memory("qwen3-30b-a3b-fp8", [replace(SHORT, dtype="auto")])
    assert estimate.method is Method.APPROXIMATE
    assert estimate.stored is not None
    assert estimate.figures.weights_bytes == estimate.stored.loaded_bytes
    assert not estimate.stored.is_dequantized
    assert estimate.at_peak is not None
    assert estimate.at_peak.allocated_bytes == estimate.figures.peak_allocated_bytes
    assert any("The checkpoint stores its weights in fp8" in note for note in estimate.notes)


def test_a_model_without_experts_is_estimated() -> None:
    """Llama 2 70B: 8 key and value heads of 128, in 80 layers."""
    (estimate,) = estimate_memory("llama-2-70b", [SHORT], gpu="140GiB")
    assert estimate.method is Method.SIMULATED
    assert estimate.figures.cache_bytes == 80 * 2 * 8 * 128 * 2 * (128 + 4 - 1)
    # Parameters and, in blocks of 512 bytes, the rotary frequencies.
    assert estimate.figures.weights_bytes is not None
    assert 0 <= estimate.figures.weights_bytes - 2 * 68_976_648_192 <= 2048
    assert estimate.offload is None
    assert estimate.speed is not None
    assert estimate.limits is not None


def test_the_same_estimate_comes_every_time(whole: Estimate, whole_path: str) -> None:
    assert estimate_memory(whole_path, [TINY], gpu=SMALL_GPU) == [whole]


def test_scenarios_do_not_change_one_another(tiny: str) -> None:
    scenarios = [
        TINY,
        replace(TINY, quantization=Quantization.NF4, experts=QuantizedExperts.QUANTIZED),
        replace(TINY, dtype="bfloat16"),
        replace(TINY, cache=CacheKind.STATIC, attention="eager"),
        replace(TINY, task=Task.TRACE, num_new_tokens=0),
    ]
    alone = [estimate_memory(tiny, [scenario])[0] for scenario in scenarios]
    assert estimate_memory(tiny, scenarios) == alone
    assert estimate_memory(tiny, scenarios[::-1]) == alone[::-1]
    assert len({estimate.figures for estimate in alone}) == len(alone)


def test_a_sweep_keeps_its_order_and_reports_its_progress(tiny: str) -> None:
    scenarios = list_scenarios(TINY, batch_sizes=(3, 1), prompt_tokens=(8, 4))
    words: list[str] = []
    estimates = estimate_memory(tiny, scenarios, on_progress=words.append)
    assert [estimate.scenario for estimate in estimates] == scenarios
    own = [word for word in words if word.startswith(f"simulating {tiny}: ")]
    assert list(dict.fromkeys(word.rpartition(": ")[2].partition(",")[0] for word in own)) == [
        *("3 × 8 tokens", "3 × 4 tokens", "1 × 8 tokens", "1 × 4 tokens")
    ]


def test_every_step_of_the_way_is_reported(
    followed: tuple[Estimate, list[str]], whole_path: str
) -> None:
    tiny, words = whole_path, followed[1]
    assert words[0] == f"loading {tiny}"
    assert f"loading {tiny} in nf4" in words
    assert f"simulating {tiny}: 2 × 16 tokens, pass 1, model.layers.0" in words
    assert f"simulating {tiny} in int8: 2 × 16 tokens, pass 2" in words
    assert any(word.startswith("looking for the longest prompt, trial 3: 2 × ") for word in words)
    assert any(word.startswith("looking for the largest batch, trial 2: ") for word in words)
    assert f"sharing {tiny} between GPUs and the host" in words
    assert "looking for" not in words[-1]


def test_details_are_about_the_gpu_that_is_named(tiny: str) -> None:
    (everywhere,), (named,) = (
        estimate_memory(tiny, [TINY]),
        estimate_memory(tiny, [TINY], gpu=f"2x{SMALL_GPU}", serving=ServingOptions(Engine.VLLM)),
    )
    assert everywhere.figures == named.figures
    details = (everywhere.limits, everywhere.offload, everywhere.speed, everywhere.ranks)
    assert details == (None, None, None, ())
    assert (everywhere.gpu, everywhere.is_gpu_named) == ("h200", False)
    assert (named.gpu, named.is_gpu_named) == (SMALL_GPU, True)
    assert {fit.gpu for fit in named.fits} == {SMALL_GPU}
    assert None not in (named.limits, named.offload, named.speed)
    assert named.ranks
    # An engine shares the model in place of transformers.
    assert named.layouts == ()
    assert named.serving is not None
    assert (named.serving.num_gpus, named.serving.tensor_parallel) == (2, 2)


def test_it_is_said_where_it_is_tight(tiny: str) -> None:
    (ample,) = estimate_memory(tiny, [TINY], gpu="1GiB")
    needed_bytes = ample.figures.total_device_bytes
    (just,), (short,) = (
        estimate_memory(tiny, [TINY], gpu=f"{memory_bytes}B")
        for memory_bytes in (needed_bytes, (needed_bytes or 0) - 1)
    )
    assert [each.fit.fits for each in (ample, just, short) if each.fit] == [True, True, False]
    tight = [
        any(note.startswith("Tight fit") for note in each.notes) for each in (ample, just, short)
    ]
    assert tight == [False, True, False]


@pytest.mark.parametrize(
    ("module", "name", "left_out", "words"),
    [
        (
            named_gpu,
            "find_limits",
            "limits",
            "The longest prompt and the largest batch that fit are unknown",
        ),
        (
            named_gpu,
            "list_ranks",
            "ranks",
            "The weights that each of several GPUs would hold are unknown",
        ),
        (
            named_gpu,
            "plan_offload",
            "offload",
            "The experts that would move to the host are unknown",
        ),
        (estimate_scenario, "list_fits_on", "fits", "The GPUs that it fits on are unknown"),
    ],
)
def test_what_can_not_be_found_out_leaves_the_rest_of_the_estimate_as_it_is(
    module: ModuleType,
    name: str,
    left_out: str,
    words: str,
    tiny: str,
    whole: Estimate,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise InputError("it can't be simulated: too large.", hint="None.")

    monkeypatch.setattr(module, name, refuse)
    (partial_estimate,) = estimate_memory(tiny, [TINY], gpu=SMALL_GPU)
    assert not getattr(partial_estimate, left_out)
    assert partial_estimate.figures == whole.figures
    assert f"{words}: it can't be simulated: too large." in partial_estimate.notes


def test_a_search_for_limits_ends_where_too_many_values_would_be_read(
    tiny: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    narrow = partial(KnownValues, most_elements=2**10, most_bytes=2**16)
    monkeypatch.setattr(memory_run, "KnownValues", narrow)
    eager = replace(TINY, experts_implementation="eager")
    (partial_estimate,) = estimate_memory(tiny, [eager], gpu="1GiB")
    assert partial_estimate.limits is not None
    assert partial_estimate.limits.largest_batch_size >= TINY.batch_size
    (note,) = [note for note in partial_estimate.notes if note.startswith("Batches of more than")]
    assert f"{partial_estimate.limits.largest_batch_size:,} sequences may fit too" in note
