"""Memory of every family, compared with a real run on the CPU and between layers run once or always."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from moetool.simulation.caches.kinds import CacheKind, CachePlan
from moetool.simulation.memory.memory_run import MemoryRun, RunOptions
from moetool.simulation.memory.steps.unrolled_loops import unroll_whole
from moetool.simulation.memory.timeline import Timeline
from moetool.simulation.meta.generation import CantSimulate
from tests.families.tiny.models import ENCODER_DECODERS, available, build_family
from tests.simulation.memory.memory_runs import (
    LOOK_UP_EXPERTS,
    NOT_GENERATING,
    NOT_SIMULATED,
    ONLY_SDPA,
    generate_on_cpu,
    options_for,
    set_up,
    summarize,
)
from tests.simulation.skeletons import build_family_skeleton, deepen

LENGTHS = {"num_prompt_tokens": 20, "num_new_tokens": 2}

# Modules whose tensors are made on the CPU in each call and copied to the GPU. Inkling's loop copies
# slots of its cache before they are filled, with the length of their window on the CPU.
MADE_ON_CPU = {
    family: path
    for family, path in {
        "inkling2_loop_text": "model",
        "phimoe": "model.rotary_emb",
    }.items()
    if family in available()
}
# It numbers its layers and the two attentions of each differently.
ALL_DIFFERENT = ("longcat_flash",)
# In a real run of the others, experts get other numbers of tokens.
AS_ON_CPU = [
    name
    for name in available()
    if name not in NOT_GENERATING + NOT_SIMULATED + LOOK_UP_EXPERTS + ONLY_SDPA
]


@pytest.mark.parametrize("family", AS_ON_CPU)
def test_memory_comes_and_goes_as_in_a_real_run(family: str) -> None:
    """Layers that are the same run once in the simulation, and each time in the real run."""
    summaries = compare_with_cpu(family, **deepen(family))
    assert summaries[0] == summaries[1]


@pytest.mark.parametrize("family", MADE_ON_CPU)
def test_what_is_left_out_of_the_comparison_has_to_be(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(MADE_ON_CPU, family)
    summaries = compare_with_cpu(family)
    assert summaries[0] != summaries[1]


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("mixtral", {"batch_size": 3, "has_padding": True}),
        ("gemma4_text", {"batch_size": 2, "has_padding": True}),
        ("qwen3_next", {"batch_size": 2}),
        ("deepseek_v3", {"cache": CachePlan(CacheKind.STATIC)}),
        ("gpt_oss", {"cache": CachePlan(CacheKind.STATIC), "batch_size": 2, "has_padding": True}),
        ("mixtral", {"attention": "sdpa"}),
        ("unlimited_ocr", {"attention": "sdpa"}),
    ],
)
def test_memory_comes_and_goes_as_in_a_real_run_of_another_kind(
    family: str, changes: dict[str, Any]
) -> None:
    summaries = compare_with_cpu(family, changes)
    assert summaries[0] == summaries[1]


def compare_with_cpu(family: str, changes: dict[str, Any] | None = None, **overrides: Any) -> Any:
    """Return summaries of a simulation and of a real run."""
    options = dict(changes or {})
    attention = options.pop("attention", "eager")
    run_options = options_for(family, **options)
    skeleton = set_up(build_family_skeleton(family, **overrides), attention=attention)
    model = set_up(build_family(family, **overrides), attention=attention)
    real = generate_on_cpu(model, run_options, **LENGTHS)
    simulated = MemoryRun(skeleton, run_options).generate(**LENGTHS)
    return [
        summarize(timeline, with_numbers=False, without=MADE_ON_CPU.get(family))
        for timeline in (simulated, real)
    ]


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        *((family, {}) for family in LOOK_UP_EXPERTS if family in available()),
        ("deepseek_v3", {}),
        ("mixtral", {"has_padding": True, "batch_size": 2}),
        ("gemma4_text", {"cache": CachePlan(CacheKind.STATIC)}),
        ("qwen3_next", {"workspace_bytes": 2**20}),
    ],
)
def test_layers_run_once_leave_the_timeline_of_layers_run_each_time(
    family: str, changes: dict[str, Any]
) -> None:
    """With the kernels that GPUs take: attention in one, experts in groups and then in batches."""
    overrides, options = deepen(family), options_for(family, **changes)
    run = MemoryRun(build_family_skeleton(family, **overrides).eval(), options)
    shortened = run.generate(**LENGTHS)
    assert bool(run.repeated_layers) == (family not in ALL_DIFFERENT)
    in_full = generate_in_full(build_family_skeleton(family, **overrides), options, **LENGTHS)
    assert summarize(unroll_whole(shortened)) == summarize(in_full)


@pytest.mark.parametrize("family", ENCODER_DECODERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_layers_of_encoder_decoders_run_once_leave_the_timeline_of_layers_run_each_time(
    family: str, dtype: torch.dtype
) -> None:
    """In bfloat16, routers of Switch convert their weights to float32 when they are first called.

    A run after others repeats their layers, except where tokens generated before make it differ.
    """
    overrides = deepen(family)
    options = options_for(family, workspace_bytes=2**20)
    run = MemoryRun(build_in(dtype, family, **overrides), options)
    for lengths in (LENGTHS, {**LENGTHS, "num_tokens_before": 3}, LENGTHS):
        shortened = run.generate(**lengths)
        skeleton = build_in(dtype, family, **overrides)
        assert summarize(shortened) == summarize(generate_in_full(skeleton, options, **lengths))
    repeated = {
        path.partition(".layers.")[0].partition(".block.")[0] for path in run.repeated_layers
    }
    assert len(repeated) == 2
    # Of six layers in each stack, the first dense one, one other and a sparse one run.
    assert len(run.repeated_layers) >= 2 * 3


@pytest.mark.parametrize("family", ["deepseek_v3", "gemma4_text", "qwen3_next"])
def test_a_run_that_repeats_an_earlier_one_leaves_the_timeline_of_layers_run_each_time(
    family: str,
) -> None:
    options = options_for(family, workspace_bytes=2**20, lt_workspace_bytes=2**18)
    run = MemoryRun(build_family_skeleton(family).eval(), options)
    for num_tokens_before in (0, 1, 0):
        lengths = {**LENGTHS, "num_tokens_before": num_tokens_before}
        shortened = run.generate(**lengths)
        in_full = generate_in_full(build_family_skeleton(family), options, **lengths)
        assert summarize(shortened) == summarize(in_full)
        assert shortened.workspace_block is not None


def build_in(dtype: torch.dtype, family: str, **overrides: Any) -> PreTrainedModel:
    skeleton: Any = build_family_skeleton(family, **overrides).eval()
    built: PreTrainedModel = skeleton.to(dtype)
    return built


def generate_in_full(skeleton: PreTrainedModel, options: RunOptions, **lengths: int) -> Timeline:
    """Return the timeline of a generation in which no layer stands for another."""
    run = MemoryRun(skeleton.eval(), options, is_each_layer_run=True)
    timeline = run.generate(**lengths)
    assert not run.repeated_layers
    return timeline


@pytest.mark.parametrize("family", [name for name in LOOK_UP_EXPERTS if name in available()])
def test_families_that_look_up_experts_run_only_if_routing_is_taken_to_be_balanced(
    family: str,
) -> None:
    skeleton = build_family_skeleton(family).eval()
    with pytest.raises(CantSimulate, match=r"^its forward needs data: it (looks up|reads values)"):
        MemoryRun(skeleton, RunOptions()).generate(num_prompt_tokens=8, num_new_tokens=1)
    balanced = MemoryRun(skeleton, RunOptions(is_routing_balanced=True))
    assert balanced.generate(num_prompt_tokens=8, num_new_tokens=2).calls[1].cache_bytes > 0


# `torch.distributions` warns of torch's own code.
@pytest.mark.filterwarnings("ignore:`torch.jit")
@pytest.mark.parametrize("is_routing_balanced", [False, True])
@pytest.mark.parametrize("family", [name for name in NOT_SIMULATED if name in available()])
def test_some_families_need_data_that_nothing_tells(family: str, is_routing_balanced: bool) -> None:
    options = RunOptions(is_routing_balanced=is_routing_balanced)
    with pytest.raises(CantSimulate, match="its forward needs data"):
        MemoryRun(build_family_skeleton(family).eval(), options).generate(
            num_prompt_tokens=8, num_new_tokens=1
        )


@pytest.mark.parametrize("family", [name for name in NOT_GENERATING if name in available()])
def test_some_families_do_not_generate(family: str) -> None:
    assert not hasattr(build_family_skeleton(family), "generate")
