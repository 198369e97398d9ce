"""Every family's memory: as in a real model's run on the CPU, and with layers run once or each time."""

from __future__ import annotations

from typing import Any

import pytest

from moetool.simulation.memory.memory_run import MemoryRun, RunOptions
from moetool.simulation.meta.generation import CantSimulate
from moetool.simulation.repeated.repeated_layers import RepeatedLayers
from tests.families.tiny.models import ENCODER_DECODERS, available, build_family
from tests.simulation.memory.memory_runs import (
    LOOK_UP_EXPERTS,
    NOT_GENERATING,
    NOT_SIMULATED,
    ONLY_SDPA,
    generate_on_cpu,
    options_for,
    run_each_layer,
    set_up,
    tell,
)
from tests.simulation.skeletons import build_family_skeleton, deepen

LENGTHS = {"num_prompt_tokens": 20, "num_new_tokens": 2}

# What a module makes on the CPU in each call is not on a GPU, where it is copied to. Inkling's loop
# copies slots of its cache before they are filled, with the length of their window on the CPU.
MADE_ON_CPU = {
    family: path
    for family, path in {
        "inkling2_loop_text": "model",
        "phimoe": "model.rotary_emb",
    }.items()
    if family in available()
}
# Each has one layer of a kind, or numbers its layers and the two attentions of each differently.
ALL_DIFFERENT = (*ENCODER_DECODERS, "longcat_flash")
# A real run of the others chooses other experts, and another number of tokens for each.
AS_ON_CPU = [
    name
    for name in available()
    if name not in NOT_GENERATING + NOT_SIMULATED + LOOK_UP_EXPERTS + ONLY_SDPA
]


@pytest.mark.parametrize("family", AS_ON_CPU)
def test_memory_comes_and_goes_as_in_a_real_run(family: str) -> None:
    """Layers that are the same run once in the simulation, and each time in the real run."""
    told = compare_with_cpu(family, **deepen(family))
    assert told[0] == told[1]


@pytest.mark.parametrize("family", MADE_ON_CPU)
def test_what_is_left_out_of_the_comparison_has_to_be(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(MADE_ON_CPU, family)
    told = compare_with_cpu(family)
    assert told[0] != told[1]


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("mixtral", {"batch_size": 3, "has_padding": True}),
        ("gemma4_text", {"batch_size": 2, "has_padding": True}),
        ("qwen3_next", {"batch_size": 2}),
        ("deepseek_v3", {"is_cache_static": True}),
        ("gpt_oss", {"is_cache_static": True, "batch_size": 2, "has_padding": True}),
        ("mixtral", {"attention": "sdpa"}),
        ("unlimited_ocr", {"attention": "sdpa"}),
    ],
)
def test_memory_comes_and_goes_as_in_a_real_run_of_another_kind(
    family: str, changes: dict[str, Any]
) -> None:
    told = compare_with_cpu(family, changes)
    assert told[0] == told[1]


def compare_with_cpu(family: str, changes: dict[str, Any] | None = None, **overrides: Any) -> Any:
    """Return what is told of a simulation, and of a real run."""
    options = dict(changes or {})
    attention = options.pop("attention", "eager")
    run_options = options_for(family, **options)
    skeleton = set_up(build_family_skeleton(family, **overrides), attention=attention)
    model = set_up(build_family(family, **overrides), attention=attention)
    real = generate_on_cpu(model, run_options, **LENGTHS)
    simulated = MemoryRun(skeleton, run_options).generate(**LENGTHS)
    return [
        tell(timeline, with_numbers=False, without=MADE_ON_CPU.get(family))
        for timeline in (simulated, real)
    ]


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        *((family, {}) for family in LOOK_UP_EXPERTS if family in available()),
        ("deepseek_v3", {}),
        ("mixtral", {"has_padding": True, "batch_size": 2}),
        ("gemma4_text", {"is_cache_static": True}),
        ("qwen3_next", {"workspace_bytes": 2**20}),
    ],
)
def test_layers_run_once_leave_the_timeline_of_layers_run_each_time(
    family: str, changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the kernels that GPUs take: attention in one, experts in groups and then in batches."""
    repeated = count_repeated(monkeypatch)
    skeleton = build_family_skeleton(family, **deepen(family)).eval()
    run = MemoryRun(skeleton, options_for(family, **changes))
    shortened = run.generate(**LENGTHS)
    assert bool(repeated) == (family not in ALL_DIFFERENT)
    repeated.clear()
    in_full = run_each_layer(run, monkeypatch, **LENGTHS)
    assert not repeated
    assert tell(shortened) == tell(in_full)


def count_repeated(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list that will hold the paths of layers that stand for others."""
    repeated: list[str] = []
    repeat: Any = RepeatedLayers._repeat

    def watched(self: Any, layer: Any, *args: Any, **kwargs: Any) -> Any:
        repeated.append(layer.path)
        return repeat(self, layer, *args, **kwargs)

    monkeypatch.setattr(RepeatedLayers, "_repeat", watched)
    return repeated


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
