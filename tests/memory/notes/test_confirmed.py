"""Estimates that a GPU has confirmed."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

from moetool.memory.estimate import estimate_memory
from moetool.memory.notes.confirmed import find_confirmation, read_confirmations
from moetool.memory.scenario import Scenario
from moetool.quantizing.kinds import Quantization, QuantizedExperts
from moetool.report.memory.data import render_json, render_table_text
from tests.memory.saved_configs import make_builder, save_config

ROOT = Path(__file__).parents[3]
TINY = Scenario(num_prompt_tokens=16, num_new_tokens=2, dtype="float32")


def test_every_measured_run_is_counted_as_a_confirmation() -> None:
    lines = (
        (ROOT / "benchmarks" / "memory" / "measured" / "memory_h200.jsonl")
        .read_text(encoding="utf-8")
        .splitlines()
    )
    measured = [json.loads(line) for line in lines]
    rows = [row for row in read_confirmations() if row.source.endswith("memory_h200.jsonl")]
    assert sum(row.num_runs for row in rows) == len(measured)
    of_model = {name: row for row in rows for name in row.models}
    assert set(of_model) == {line["model"] for line in measured}
    for name, row in of_model.items():
        assert make_builder(name).make_config().model_type == row.model_type
        (versions,) = {
            (line["gpu"], line["torch"], line["transformers"])
            for line in measured
            if line["model"] == name
        }
        assert versions == (row.gpu, row.torch, row.transformers)
        assert 0 <= row.worst_error < 0.002


def test_every_run_of_a_mechanism_is_counted_as_a_confirmation() -> None:
    lines = (
        (ROOT / "benchmarks" / "memory" / "measured" / "mechanisms.jsonl")
        .read_text(encoding="utf-8")
        .splitlines()
    )
    measured = Counter((line["model"], line["gpu"]) for line in map(json.loads, lines))
    rows = [row for row in read_confirmations() if row.source.endswith("mechanisms.jsonl")]
    assert sum(row.num_runs for row in rows) == measured.total()
    counted = {(name, row.gpu): row.num_runs for row in rows for name in row.models}
    assert counted == measured
    assert all(row.worst_error < 0.01 for row in rows)


def test_every_run_with_packed_experts_is_counted_as_a_confirmation() -> None:
    lines = (ROOT / "benchmarks/memory/measured/packed_h200.jsonl").read_text(encoding="utf-8")
    measured = Counter(
        (line["model"], line["options"]["quantization"])
        for line in map(json.loads, lines.split("\n")[:-1])
    )
    rows = [row for row in read_confirmations() if row.source.endswith("packed_h200.jsonl")]
    assert {row.experts for row in rows} == {QuantizedExperts.QUANTIZED}
    assert {(*row.models, row.quantization): row.num_runs for row in rows} == measured
    assert all(0 <= row.worst_error < 0.022 for row in rows)


def test_every_run_of_a_published_format_is_counted_as_a_confirmation() -> None:
    lines = (ROOT / "benchmarks/memory/measured/formats/h200.jsonl").read_text(encoding="utf-8")
    measured = Counter(
        (line["model"], line["stored_as"]) for line in map(json.loads, lines.splitlines())
    )
    rows = [row for row in read_confirmations() if row.source.endswith("formats/h200.jsonl")]
    assert {(*row.models, row.stored_as): row.num_runs for row in rows} == measured
    assert all(0 <= row.worst_error < 0.001 for row in rows)


def test_every_step_of_training_is_counted_as_a_confirmation() -> None:
    lines = (
        (ROOT / "benchmarks" / "memory" / "measured" / "training_h200.jsonl")
        .read_text(encoding="utf-8")
        .splitlines()
    )
    measured = Counter(
        (
            line["model"],
            line["gpu"],
            line["transformers"],
            not {"lora_rank", "optimizer"}.isdisjoint(line["options"]),
        )
        for line in map(json.loads, lines)
    )
    rows = [row for row in read_confirmations() if row.is_training]
    counted = {
        (name, row.gpu, row.transformers, row.is_light): row.num_runs
        for row in rows
        for name in row.models
    }
    assert counted == measured
    assert all(row.worst_error <= 0.0005 for row in rows)
    assert find_confirmation("phimoe", Quantization.NONE, is_training=True) in rows
    assert find_confirmation("phimoe", Quantization.NONE, is_training=True, is_light=True) is None
    assert find_confirmation("jamba", Quantization.NONE, is_training=True) is None


def test_a_confirmation_is_of_one_way_to_store_weights() -> None:
    assert find_confirmation("olmoe", Quantization.NF4) is not None
    assert find_confirmation("olmoe", Quantization.FP4) is None
    assert find_confirmation("mixtral", Quantization.NONE) is not None
    assert find_confirmation("mixtral", Quantization.NF4) is None
    assert find_confirmation("mixtral", Quantization.NF4, QuantizedExperts.QUANTIZED) is not None
    assert find_confirmation("deepseek_v4", Quantization.INT8) is None


def test_an_estimate_names_the_gpu_that_confirmed_its_kind(tmp_path: Path) -> None:
    (estimate,) = estimate_memory(save_config("olmoe", tmp_path), [TINY])
    assert estimate.confirmed_on == "NVIDIA H100 80GB HBM3, 2026-11-26"
    assert not any(note.startswith("No GPU has confirmed") for note in estimate.notes)
    assert (
        json.loads(render_json([estimate]))["estimates"][0]["confirmed_on"] == estimate.confirmed_on
    )
    assert "NVIDIA H100 80GB HBM3, 2026-11-26" in render_table_text([estimate])


def test_an_estimate_that_no_gpu_has_confirmed_says_so(tmp_path: Path) -> None:
    (estimate,) = estimate_memory(save_config("hunyuan_v1_moe", tmp_path), [TINY])
    assert estimate.confirmed_on is None
    (note,) = [note for note in estimate.notes if note.startswith("No GPU has confirmed")]
    assert "hunyuan_v1_moe" in note
    assert json.loads(render_json([estimate]))["estimates"][0]["confirmed_on"] is None
    assert "no GPU yet" in render_table_text([replace(estimate, notes=())])


def test_runs_of_plain_weights_confirm_nothing_of_packed_ones(tmp_path: Path) -> None:
    fp8 = {"quant_method": "fp8", "weight_block_size": [8, 8]}
    scenario = replace(TINY, dtype="auto")
    plain, packed = (
        estimate_memory(save_config("mixtral", tmp_path, dtype="bfloat16", **fields), [scenario])[0]
        for fields in ({}, {"quantization_config": fp8})
    )
    assert plain.confirmed_on is not None
    assert packed.confirmed_on is None
    (note,) = [note for note in packed.notes if note.startswith("No GPU has confirmed")]
    assert "mixtral in fp8" in note


def test_runs_in_a_published_format_confirm_weights_in_that_format_alone() -> None:
    assert find_confirmation("gpt_oss", Quantization.NONE, stored_as="mxfp4") is not None
    assert find_confirmation("gpt_oss", Quantization.NONE, stored_as="fp8") is None
    assert find_confirmation("minimax_m2", Quantization.NONE, stored_as="fp8") is None
    (estimate,) = estimate_memory("gpt-oss-20b", [replace(TINY, dtype="auto")])
    assert estimate.confirmed_on == "NVIDIA H200, 2026-11-27"
