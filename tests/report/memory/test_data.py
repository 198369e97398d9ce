"""JSON and CSV of hand-made estimates: unrounded, complete, and as the schema promises."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import asdict, fields, replace
from types import MappingProxyType

import pandas as pd
import pytest

import moetool
from moetool.memory.answers.on_gpus import Fit
from moetool.memory.result import Estimate
from moetool.memory.scenario import CacheKind, Scenario
from moetool.memory.sweep import list_scenarios
from moetool.quantizing.kinds import Quantization
from moetool.report.memory.data import RENDERERS, render_csv, render_json
from moetool.report.renderer import ReportFormat
from tests.report.memory.estimates import (
    DECODE,
    FIGURES,
    FITS,
    GIB,
    MEASURED,
    MIB,
    OFFLOAD,
    SPEED,
    make_estimate,
    make_fit,
    make_full_estimate,
)

# Of the schema that is promised, in its order; whatever else there is comes after.
ESTIMATE_KEYS = [
    *("model", "scenario", "method", "weights_bytes", "cache_bytes", "peak_allocated_bytes"),
    *("peak_reserved_bytes", "context_bytes", "total_device_bytes", "at_peak", "peaks", "variants"),
    *("fits", "notes"),
]
FURTHER_KEYS = [
    *("gpu", "stored", "limits", "ranks", "offload", "speed", "measured", "fits_dequantized"),
    *("confirmed_on", "prefill_peak_allocated_bytes", "decode_peak_allocated_bytes", "stored_as"),
    *("weights_basis", "loaded_dtype", "smallest_fits", "smallest_gpu"),
    *("does_fit", "headroom_bytes", "host_cache_bytes", "layouts", "serving", "training"),
    *("assistant", "reported"),
]
PEAK_KEYS = [
    *("phase", "layer", "operation", "weights_bytes", "cache_bytes", "activation_bytes"),
    *("workspace_bytes", "gradient_bytes", "optimizer_state_bytes"),
]
FIT_KEYS = ["gpu", "memory_bytes", "quantization", "num_gpus", "fits", "headroom_bytes"]


def read_json(*estimates: Estimate) -> list[dict[str, object]]:
    value = json.loads(render_json(estimates), parse_constant=lambda word: pytest.fail(word))
    assert list(value) == ["schema", "moetool", "versions", "estimates"]
    assert (value["schema"], value["moetool"]) == (
        "moetool.memory-estimate/1",
        moetool.__version__,
    )
    found = value["estimates"]
    assert isinstance(found, list)
    return found


def test_json_has_the_promised_keys_in_their_order() -> None:
    (estimate,) = read_json(make_full_estimate())
    assert list(estimate) == ESTIMATE_KEYS + FURTHER_KEYS
    peaks, fits = estimate["peaks"], estimate["fits"]
    assert isinstance(peaks, list)
    assert isinstance(fits, list)
    assert [list(peak) for peak in peaks] == [PEAK_KEYS, PEAK_KEYS]
    assert {tuple(fit) for fit in fits} == {tuple(FIT_KEYS)}
    assert [fit["gpu"] for fit in fits] == ["small", "small"]
    assert estimate["smallest_fits"] == {}


def test_the_smallest_gpu_is_there_for_each_storage_of_the_weights() -> None:
    too_large = make_fit("big", memory_gib=80, needs_gib=90, quantization=Quantization.INT8)
    unknown = replace(too_large, quantization=Quantization.FP4, fits=None)
    (estimate,) = read_json(make_estimate(fits=(*FITS, too_large, unknown)))
    smallest = estimate["smallest_fits"]
    assert isinstance(smallest, dict)
    assert {name: fit and fit["gpu"] for name, fit in smallest.items()} == {
        "none": "big",
        "nf4": "small",
        "int8": None,
    }
    assert set(smallest["none"]) == set(FIT_KEYS)
    (row,) = csv.DictReader(io.StringIO(render_csv([make_estimate(fits=FITS)])))
    assert row["smallest_gpu"] == "big"
    (own,) = [fit for fit in FITS if (fit.gpu, fit.quantization) == ("big", Quantization.NONE)]
    assert (row["does_fit"], row["headroom_bytes"]) == ("True", str(own.headroom_bytes))


def test_json_holds_plain_integers_whose_parts_add_up() -> None:
    (estimate,) = read_json(make_estimate())
    peak = estimate["at_peak"]
    assert isinstance(peak, dict)
    assert peak["phase"] == "decode"
    parts = [peak[name] for name in PEAK_KEYS[3:]]
    assert all(type(part) is int for part in parts)
    assert sum(parts) == estimate["peak_allocated_bytes"] == 20 * GIB
    assert estimate["peak_reserved_bytes"] == 21 * GIB
    assert estimate["context_bytes"] == 512 * MIB
    assert estimate["total_device_bytes"] == 21 * GIB + 512 * MIB


def test_a_scenario_is_its_fields_by_name() -> None:
    scenario = Scenario(
        batch_size=8,
        quantization=Quantization.NF4,
        is_double_quantized=True,
        cache=CacheKind.STATIC,
        attention="eager",
    )
    (estimate,) = read_json(make_estimate(scenario=scenario))
    assert estimate["scenario"] == {
        "batch_size": 8,
        "num_prompt_tokens": 2048,
        "num_new_tokens": 256,
        "task": "generate",
        "dtype": "auto",
        "attention": "eager",
        "experts_implementation": None,
        "cache": "static",
        "has_padding": False,
        "quantization": "nf4",
        "is_double_quantized": True,
        "experts": "as-loaded",
        "optimizer": None,
        "has_checkpointing": False,
        "frozen": "none",
        "cache_dtype": None,
        "num_beams": 1,
        "num_return_sequences": 1,
        "assistant": None,
        "lora_rank": None,
        "lora_targets": None,
        "trained_experts": None,
    }


def test_what_is_absent_is_null_or_empty() -> None:
    figures = replace(FIGURES, peak_reserved_bytes=None, total_device_bytes=None)
    (estimate,) = read_json(make_estimate(figures=figures, peaks=(), fits=()))
    for name in ("at_peak", "peak_reserved_bytes", "total_device_bytes"):
        assert estimate[name] is None
    for name in ("stored", "limits", "offload", "speed", "measured"):
        assert estimate[name] is None
    for name in ("peaks", "fits", "notes", "ranks"):
        assert estimate[name] == []
    assert estimate["variants"] == {}


def test_each_variant_has_the_five_figures() -> None:
    variants = MappingProxyType({"transformers": FIGURES, "experts_quantized": FIGURES})
    (estimate,) = read_json(make_estimate(variants=variants))
    assert estimate["variants"] == dict.fromkeys(variants, asdict(FIGURES))


def test_what_was_measured_has_the_names_of_what_was_estimated() -> None:
    (estimate,) = read_json(make_full_estimate())
    assert estimate["measured"] == {
        "gpu": "NVIDIA Big",
        "weights_bytes": 16 * GIB,
        "cache_bytes": 2 * GIB,
        "peak_allocated_bytes": 20 * GIB + 512 * MIB,
        "peak_reserved_bytes": None,
        "context_bytes": 500 * MIB,
        "total_device_bytes": 21 * GIB,
        "seconds": 12.34,
        "prefill_s": None,
        "decode_s_per_token": None,
        "bus": None,
    }


def test_what_several_gpus_and_the_host_would_hold_is_in_the_json() -> None:
    offload = replace(OFFLOAD, flags=MappingProxyType({"llama.cpp": "--n-cpu-moe 7"}))
    (estimate,) = read_json(replace(make_full_estimate(), offload=offload))
    ranks, found, speed = estimate["ranks"], estimate["offload"], estimate["speed"]
    assert isinstance(ranks, list)
    assert isinstance(found, dict)
    assert isinstance(speed, dict)
    assert ranks[0]["weights_bytes"] == [6 * GIB, 6 * GIB, 4 * GIB]
    assert found["flags"] == {"llama.cpp": "--n-cpu-moe 7"}
    assert speed["decode_s_per_token"] == SPEED.decode_s_per_token


def test_a_number_that_is_not_finite_is_null_because_json_has_no_word_for_it() -> None:
    (estimate,) = read_json(make_estimate(speed=replace(SPEED, prefill_s=float("inf"))))
    speed = estimate["speed"]
    assert isinstance(speed, dict)
    assert speed["prefill_s"] is None


def test_pandas_reads_a_sweep_from_csv() -> None:
    scenarios = list_scenarios(Scenario(), batch_sizes=(1, 8), prompt_tokens=(64, 128, 256))
    text = render_csv([make_estimate(scenario=scenario) for scenario in scenarios])
    table = pd.read_csv(io.StringIO(text))
    assert len(table) == 6
    assert table.columns[0] == "model"
    assert table["batch_size"].tolist() == [1, 1, 1, 8, 8, 8]
    assert table["num_prompt_tokens"].tolist() == [64, 128, 256] * 2
    parts = [f"at_peak_{name}" for name in PEAK_KEYS[3:]]
    assert (table[parts].sum(axis=1) == table["peak_allocated_bytes"]).all()
    assert (table["peak_reserved_bytes"] + table["context_bytes"]).equals(
        table["total_device_bytes"]
    )
    assert (table["decode_peak_allocated_bytes"] == DECODE.allocated_bytes).all()


def test_csv_has_a_column_for_every_field_of_a_scenario() -> None:
    header = render_csv([make_estimate()]).splitlines()[0].split(",")
    names = [field.name for field in fields(Scenario)]
    # Later options come after all other columns.
    of_caches = ["cache_dtype", "num_beams", "num_return_sequences"]
    of_training = ["optimizer", "has_checkpointing", "frozen"]
    latest = ["assistant", "lora_rank", "lora_targets", "trained_experts"]
    first = [name for name in names if name not in (*of_caches, *of_training, *latest)]
    assert header[1 : 1 + len(first)] == first
    last = [*of_caches, "host_cache_bytes", *of_training]
    last += ["at_peak_gradient_bytes", "at_peak_optimizer_state_bytes", *latest]
    assert header[-len(last) :] == last
    assert len(header) == len(set(header))


def test_a_small_csv_is_this_one() -> None:
    estimate = make_estimate(peaks=(DECODE,), measured=MEASURED, loaded_dtype="bfloat16")
    assert render_csv([estimate]) == (
        "model,batch_size,num_prompt_tokens,num_new_tokens,task,dtype,attention,"
        "experts_implementation,cache,has_padding,quantization,is_double_quantized,experts,"
        "method,gpu,weights_bytes,cache_bytes,peak_allocated_bytes,peak_reserved_bytes,"
        "context_bytes,total_device_bytes,at_peak_phase,at_peak_layer,at_peak_operation,"
        "at_peak_weights_bytes,at_peak_cache_bytes,at_peak_activation_bytes,"
        "at_peak_workspace_bytes,prefill_peak_allocated_bytes,decode_peak_allocated_bytes,"
        "measured_weights_bytes,measured_cache_bytes,measured_peak_allocated_bytes,"
        "measured_peak_reserved_bytes,measured_context_bytes,measured_total_device_bytes,"
        "stored_as,weights_basis,loaded_dtype,smallest_gpu,does_fit,headroom_bytes,"
        "cache_dtype,num_beams,num_return_sequences,host_cache_bytes,optimizer,"
        "has_checkpointing,frozen,at_peak_gradient_bytes,at_peak_optimizer_state_bytes,"
        "assistant,lora_rank,lora_targets,trained_experts\n"
        "small-4x,1,2048,256,generate,auto,,,dynamic,False,none,False,as-loaded,simulated,big,"
        "17179869184,2147483648,21474836480,22548578304,536870912,23085449216,decode,"
        "model.layers.3,index in mlp.experts,17179869184,2147483648,1879048192,268435456,,"
        "21474836480,17179869184,2147483648,22011707392,,524288000,22548578304,,,bfloat16,,True,62813896704,"
        ",1,1,,,False,none,0,0,,,,\n"
    )


def test_what_is_unknown_is_an_empty_cell() -> None:
    estimate = make_estimate(peaks=(), context_bytes=None)
    (row,) = csv.DictReader(io.StringIO(render_csv([estimate])))
    empty = {name for name, cell in row.items() if cell == ""}
    assert {"context_bytes", "at_peak_layer", "prefill_peak_allocated_bytes"} <= empty
    assert row["weights_bytes"] == str(16 * GIB)


@pytest.mark.parametrize("form", ReportFormat)
def test_a_path_that_is_not_unicode_can_be_written(form: ReportFormat) -> None:
    estimate = make_estimate(model="caf\udce9")
    for estimates in ([estimate], [estimate, make_estimate()]):
        assert "caf" in RENDERERS[form](estimates).encode().decode()


def test_fits_keep_their_fields_in_the_promised_order() -> None:
    assert [field.name for field in fields(Fit)] == FIT_KEYS
