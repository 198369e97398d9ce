"""Every export holds the placement, by the reading rules of the engine that loads it."""

from __future__ import annotations

import io
import json
import shlex
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moetool.errors import UsageError
from moetool.interchange.exports.files import FORMATS, Engine, check_suffix, list_remarks
from moetool.interchange.exports.slots import SlotPlan, say_layers
from tests.interchange.exports.reading_rules import (
    read_eplb,
    read_ktransformers,
    read_sglang,
    read_tensorrt_llm,
    read_vllm_ascend,
)

# Three hidden layers, of which the first is dense; 4 experts and 2 replicas on 2 GPUs.
TOY = SlotPlan(
    layers=(1, 2),
    slots=((2, 0, 1, 3, 2, 0), (3, 1, 0, 2, 3, 1)),
    load=((2, 1, 3, 0), (1, 2, 0, 3)),
    num_gpus=2,
    num_hidden_layers=3,
)
HELD = {1: [[2, 0, 1], [3, 2, 0]], 2: [[3, 1, 0], [2, 3, 1]]}


@st.composite
def plans(draw: st.DrawFn) -> SlotPlan:
    """Return a plan with dense layers in any place, and replicas."""
    num_gpus, num_experts = draw(st.integers(1, 4)), draw(st.integers(1, 8))
    num_slots = num_experts + -num_experts % num_gpus + num_gpus * draw(st.integers(0, 2))
    num_hidden_layers = draw(st.integers(1, 6))
    layers = draw(st.sets(st.integers(0, num_hidden_layers - 1), min_size=1))
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    return SlotPlan(
        layers=tuple(sorted(layers)),
        slots=tuple(
            tuple(rng.permutation(np.arange(num_slots) % num_experts).tolist()) for _ in layers
        ),
        load=tuple(tuple(rng.integers(0, 2**20, size=num_experts).tolist()) for _ in layers),
        num_gpus=num_gpus,
        num_hidden_layers=num_hidden_layers,
    )


def test_toy_model() -> None:
    contents = {engine: form.render(TOY) for engine, form in FORMATS.items()}
    assert json.loads(contents[Engine.SGLANG]) == {
        "physical_to_logical_map": [[0, 1, 2, 3, 0, 1], [2, 0, 1, 3, 2, 0], [3, 1, 0, 2, 3, 1]]
    }
    assert contents[Engine.TENSORRT_LLM].decode() == (
        "initial_global_assignments:\n"
        "  1: [2, 0, 1, 3, 2, 0]\n"
        "  2: [3, 1, 0, 2, 3, 1]\n"
        "layer_updates_per_iter: 0\n"
        "num_slots: 6\n"
    )
    ascend = json.loads(contents[Engine.VLLM_ASCEND])
    assert ascend["layer_list"][1] == {
        "layer_id": 1,
        "device_count": 2,
        "device_list": [
            {"device_id": 0, "device_expert": [3, 1, 0]},
            {"device_id": 1, "device_expert": [2, 3, 1]},
        ],
    }
    eplb = torch.load(io.BytesIO(contents[Engine.EPLB]), weights_only=True)
    assert eplb["log2phy"][0].tolist() == [[1, 5], [2, -1], [0, 4], [3, -1]]
    assert eplb["logcnt"].tolist() == [[2, 1, 2, 1], [1, 2, 1, 2]]
    counts = torch.load(io.BytesIO(contents[Engine.KTRANSFORMERS]), weights_only=True)
    assert counts["logical_count"].tolist() == [[[0, 0, 0, 0], [2, 1, 3, 0], [1, 2, 0, 3]]]


@settings(max_examples=40)
@given(plan=plans())
def test_engines_read_what_was_placed(plan: SlotPlan) -> None:
    assert plan.num_hidden_layers is not None
    held = {
        layer: plan.split_by_gpu(slots)
        for layer, slots in zip(plan.layers, plan.slots, strict=True)
    }
    by_ordinal = dict(enumerate(held.values()))
    contents = {
        engine: form.render(plan)
        for engine, form in FORMATS.items()
        if engine is not Engine.VLLM_ASCEND
    }
    sglang = read_sglang(
        contents[Engine.SGLANG],
        num_hidden_layers=plan.num_hidden_layers,
        num_experts=plan.num_experts,
        num_redundant=plan.num_redundant_experts,
        ep_size=plan.num_gpus,
    )
    assert {layer: sglang[layer] for layer in plan.layers} == held
    assert (
        read_tensorrt_llm(
            contents[Engine.TENSORRT_LLM], moe_layers=plan.layers, ep_size=plan.num_gpus
        )
        == held
    )
    assert read_eplb(contents[Engine.EPLB], num_gpus=plan.num_gpus) == by_ordinal
    kept = read_ktransformers(
        contents[Engine.KTRANSFORMERS],
        num_hidden_layers=plan.num_hidden_layers,
        num_experts=plan.num_experts,
        num_gpu_experts=3,
    )
    load = {
        (layer, expert): number
        for layer, row in zip(plan.layers, plan.load, strict=True)
        for expert, number in enumerate(row)
    }
    busiest = sorted(load.values(), reverse=True)[:3]
    assert [load.get(cell, 0) for cell in kept][: len(busiest)] == busiest


@given(plan=plans())
def test_vllm_on_ascend_gets_one_replica_for_each_device(plan: SlotPlan) -> None:
    gpus = [experts for slots in plan.slots for experts in plan.split_by_gpu(slots)]
    if any(len(set(experts)) < len(experts) for experts in gpus):
        with pytest.raises(UsageError, match="Two replicas of expert"):
            FORMATS[Engine.VLLM_ASCEND].render(plan)
    else:
        by_ordinal = dict(enumerate(plan.split_by_gpu(slots) for slots in plan.slots))
        assert read_vllm_ascend(FORMATS[Engine.VLLM_ASCEND].render(plan)) == by_ordinal


def test_counts_beyond_32_bits_keep_their_proportions() -> None:
    plan = replace(TOY, load=((2**33, 2**32, 0, 0), (2**31, 0, 0, 2**34)))
    content = FORMATS[Engine.KTRANSFORMERS].render(plan)
    counts = torch.load(io.BytesIO(content), weights_only=True)["logical_count"]
    assert counts[0, 1:].tolist() == [[2**29, 2**28, 0, 0], [2**27, 0, 0, 2**30]]


@pytest.mark.parametrize("engine", [Engine.SGLANG, Engine.KTRANSFORMERS])
def test_rows_for_every_layer_need_their_number(engine: Engine) -> None:
    with pytest.raises(UsageError, match="number of those of this model is unknown"):
        FORMATS[engine].render(replace(TOY, num_hidden_layers=None))
    with pytest.raises(UsageError, match="has layer 2, but the model has only 2 hidden layers"):
        FORMATS[engine].render(replace(TOY, num_hidden_layers=2))


@pytest.mark.parametrize("engine", list(Engine))
def test_names_of_another_format_are_refused(engine: Engine) -> None:
    check_suffix(engine, Path(f"placement{FORMATS[engine].suffixes[0]}"))
    with pytest.raises(UsageError, match="is not a name for a file"):
        check_suffix(engine, Path("placement.txt"))


def test_flags_survive_a_shell() -> None:
    name = "my 'best' map.json"
    words = shlex.split(FORMATS[Engine.SGLANG].explain(TOY, name))
    assert words == [
        *("--ep-size", "2", "--ep-num-redundant-experts", "2"),
        *("--ep-dispatch-algorithm", "dynamic", "--init-expert-location", name),
    ]
    words = shlex.split(FORMATS[Engine.VLLM_ASCEND].explain(TOY, name))
    assert json.loads(words[-1]) == {"eplb_config": {"expert_map_path": name}}
    assert shlex.split(FORMATS[Engine.KTRANSFORMERS].explain(TOY, name))[-1] == name


def test_without_replicas_no_option_asks_for_them() -> None:
    plan = replace(TOY, slots=((2, 0, 1, 3), (3, 1, 0, 2)))
    assert FORMATS[Engine.SGLANG].explain(plan, "map.json") == (
        "--ep-size 2 --init-expert-location map.json"
    )


def test_layers_without_routing_are_named() -> None:
    assert list_remarks(Engine.SGLANG, TOY) == (
        "the trace has no routing in layer 0, so the file treats it as dense",
    )
    assert list_remarks(Engine.SGLANG, replace(TOY, layers=(0, 1), num_hidden_layers=2)) == ()
    assert list_remarks(Engine.TENSORRT_LLM, TOY) == (
        "tensorrt-llm needs every routed layer of the model; the file has layers 1-2",
    )
    assert list_remarks(Engine.EPLB, TOY) == ()


@pytest.mark.parametrize(
    ("layers", "words"),
    [((3,), "layer 3"), ((0, 1, 2, 5), "layers 0-2, 5"), ((1, 3, 4), "layers 1, 3-4")],
)
def test_layers_in_words(layers: tuple[int, ...], words: str) -> None:
    assert say_layers(layers) == words
