"""Steps of training: what they hold, against real optimizers and an H200."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks.memory.training import simulate_line
from moetool.errors import UsageError
from moetool.memory.estimate import estimate_memory
from moetool.memory.scenario import Scenario, Task
from moetool.memory.training.freezing import trained_except
from moetool.memory.training.frozen_parts import FrozenPart
from moetool.simulation.training.backward_kernels import find_training_temporaries
from moetool.simulation.training.optimizer_kinds import Optimizer
from moetool.simulation.training.steps import TrainingTimeline
from moetool.simulation.training.training_run import (
    NUM_STEPS,
    TrainingOptions,
    run_training,
)
from tests.families.tiny.configs import build_config
from tests.simulation.skeletons import build_family_skeleton

_MEASURED = Path(__file__).parents[3] / "benchmarks/memory/measured/training_h200.jsonl"
aten = torch.ops.aten


def count_bytes(timeline: TrainingTimeline, blocks: frozenset[int]) -> int:
    return sum(
        event.num_bytes
        for event in timeline.events
        if event.block in blocks and event.num_bytes > 0
    )


@pytest.mark.parametrize("frozen", [FrozenPart.NONE, FrozenPart.EXPERTS, FrozenPart.ROUTER])
def test_gradients_are_as_large_as_what_is_trained(frozen: FrozenPart) -> None:
    skeleton = build_family_skeleton("olmoe")
    with trained_except(skeleton, frozen):
        trained = sum(each.nbytes for each in skeleton.parameters() if each.requires_grad)
        timeline = run_training(skeleton, TrainingOptions(2, 8))
    assert count_bytes(timeline, timeline.gradient_blocks) == NUM_STEPS * trained


@pytest.mark.parametrize("optimizer", [Optimizer.ADAMW, Optimizer.SGD])
def test_states_are_those_of_a_real_optimizer(optimizer: Optimizer) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_config(build_config("olmoe"))
    kinds = {Optimizer.ADAMW: torch.optim.AdamW, Optimizer.SGD: torch.optim.SGD}
    real = kinds[optimizer](model.parameters())
    ids = torch.arange(16).reshape(2, 8)
    model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    for parameter in model.parameters():
        # An expert that no token chose has no gradient in some implementations.
        assert parameter.grad is not None
    real.step()
    expected = sum(
        value.nbytes
        for state in real.state.values()
        for name, value in state.items()
        if name != "step" and isinstance(value, torch.Tensor)
    )
    skeleton = build_family_skeleton("olmoe")
    with trained_except(skeleton, FrozenPart.NONE):
        timeline = run_training(skeleton, TrainingOptions(2, 8, optimizer=optimizer))
    assert count_bytes(timeline, timeline.state_blocks) == expected


@pytest.mark.parametrize(
    "words",
    [
        {"frozen": "experts"},
        {"lora_rank": 16, "has_checkpointing": True},
        {"optimizer": "adamw-8bit"},
    ],
    ids=str,
)
def test_peak_is_an_h200s(words: dict[str, object]) -> None:
    lines = map(json.loads, _MEASURED.read_text().splitlines())
    wanted = {"sizes": [4, 1024], **words}
    line = next(
        each for each in lines if each["model"] == "mixtral-8x7b" and each["options"] == wanted
    )
    found = simulate_line(line)
    assert found.peak_allocated_bytes == pytest.approx(line["peak_allocated_bytes"], rel=1e-5)
    assert found.peak_reserved_bytes == pytest.approx(line["peak_reserved_bytes"], rel=1e-3)


def test_workspace_of_attention_is_an_h200s() -> None:
    # Shapes and sizes of single operations on an H200.
    for heads, kv_heads, tokens, width, width_out, seen in (
        (16, 16, 1024, 128, 128, 33816832),
        (32, 4, 1024, 128, 128, 134742272),
        (16, 16, 1024, 192, 128, 50594048),
    ):
        query = torch.empty(4, heads, tokens, width, dtype=torch.bfloat16, device="meta")
        key = torch.empty(4, kv_heads, tokens, width, dtype=torch.bfloat16, device="meta")
        value = key[..., :width_out]
        operation = aten._scaled_dot_product_cudnn_attention_backward
        found = find_training_temporaries(operation, (query, query, key, value), {})
        assert found is not None
        assert found.after == (seen,)


def test_partial_sums_of_rows_are_an_h200s() -> None:
    rows = torch.empty(4096, 2048, dtype=torch.bfloat16, device="meta")
    found = find_training_temporaries(aten.sum, (rows, [0]), {})
    assert found is not None
    assert found.after == (67108864, 64)


def test_indices_whose_values_are_added_are_sorted_as_on_an_h200() -> None:
    # The number of tokens, of experts of each, and the last of the blocks that were seen.
    for num_tokens, top_k, seen in (
        (1920, 2, 67071),
        (4096, 2, 137727),
        (1920, 6, 191999),
        (4096, 6, 403967),
        (4096, 8, 537087),
    ):
        indices = torch.empty(num_tokens * top_k, dtype=torch.long, device="meta")
        rows = torch.empty(num_tokens, 2048, device="meta")
        added = rows.new_empty(len(indices), 2048)
        found = find_training_temporaries(aten.index_put, (rows, [indices], added, True), {})
        assert found is not None
        assert found.after == (*4 * (8 * len(indices),), seen)
        assert find_training_temporaries(aten.index_put, (rows, [indices], added), {}) is None


def test_options_without_training_are_refused() -> None:
    for words in ({"optimizer": "sgd"}, {"has_checkpointing": True}, {"frozen": "router"}):
        with pytest.raises(UsageError, match="no effect: nothing is trained"):
            Scenario(**words)
    with pytest.raises(UsageError, match="can't be trained"):
        Scenario(task=Task.TRAIN, quantization="nf4")  # type: ignore[arg-type]


def test_a_part_that_the_model_lacks_is_refused() -> None:
    skeleton = build_family_skeleton("olmoe")
    with (
        pytest.raises(UsageError, match="no parameters under shared-experts"),
        trained_except(skeleton, FrozenPart.SHARED_EXPERTS),
    ):
        pass


def test_parts_add_up_to_the_peak() -> None:
    (estimate,) = estimate_memory(
        "demo", [Scenario(task=Task.TRAIN, batch_size=2, num_prompt_tokens=64)]
    )
    at_peak = estimate.to_dict()["at_peak"]
    parts = sum(value for name, value in at_peak.items() if name.endswith("_bytes"))
    assert parts == estimate.peak_allocated_bytes
    training = estimate.training
    assert training is not None
    peaks = (
        training.forward_peak_bytes,
        training.backward_peak_bytes,
        training.optimizer_peak_bytes,
    )
    assert max(peaks) == estimate.peak_allocated_bytes
    assert training.optimizer_state_bytes == pytest.approx(2 * training.gradient_bytes, rel=0.01)
