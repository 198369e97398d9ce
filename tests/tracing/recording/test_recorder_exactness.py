"""The recorded decisions are the ones the experts carried out: proven family by family."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from moetool import RoutingRecorder
from moetool.tracing.recording.calls import RecordedCall
from tests.tiny_models import FAMILIES, build_model
from tests.tracing.recording.dense_reference import apply_decisions

TOLERANCE = 1e-5
NUM_ROWS, NUM_COLUMNS = 2, 7


@dataclass(frozen=True)
class ObservedLayer:
    """One experts module: what it received and returned, and what the recorder says it chose."""

    experts: nn.Module
    hidden_states: torch.Tensor
    output: torch.Tensor
    ids: torch.Tensor
    weights: torch.Tensor

    def relative_error(self, ids: torch.Tensor, weights: torch.Tensor) -> float:
        """How far the module's output is from that of a dense loop with these decisions."""
        reference = apply_decisions(self.experts, self.hidden_states, ids, weights)
        error = (self.output.double() - reference).abs().max() / self.output.double().abs().max()
        return float(error)


def observe(model: PreTrainedModel) -> list[ObservedLayer]:
    """Run a model once under the recorder, and beside it catch its experts' inputs and outputs."""
    seen: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}

    def catch(path: str) -> object:
        def hook(_module: nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            seen[path] = (args[0].clone(), output.clone())

        return hook

    with RoutingRecorder(model) as recorder, torch.inference_mode():
        handles = [
            model.get_submodule(layer.experts_path).register_forward_hook(
                catch(layer.experts_path)  # type: ignore[arg-type]
            )
            for layer in recorder.layers
        ]
        model(**random_inputs())
        for handle in handles:
            handle.remove()
    (call,) = recorder.calls
    return [
        ObservedLayer(
            experts=model.get_submodule(layer.layer.experts_path),
            hidden_states=seen[layer.layer.experts_path][0].flatten(0, -2),
            output=seen[layer.layer.experts_path][1].flatten(0, -2),
            ids=torch.from_numpy(layer.experts),
            weights=torch.from_numpy(layer.weights),
        )
        for layer in call.layers
    ]


def random_inputs(seed: int = 1) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, 250, (NUM_ROWS, NUM_COLUMNS), generator=generator)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def observed(family: str) -> list[ObservedLayer]:
    return observe(build_model(family))


def test_recorded_decisions_reproduce_the_experts_output(observed: list[ObservedLayer]) -> None:
    for layer in observed:
        assert layer.relative_error(layer.ids, layer.weights) <= TOLERANCE


def test_one_wrong_id_is_caught_by_that_check(observed: list[ObservedLayer]) -> None:
    for layer in observed:
        wrong = layer.ids.clone()
        unchosen = set(range(8)) - set(wrong[3].tolist())
        wrong[3, 0] = min(unchosen)
        assert layer.relative_error(wrong, layer.weights) > TOLERANCE


def test_one_weight_off_by_one_per_cent_is_caught_by_that_check(
    observed: list[ObservedLayer],
) -> None:
    for layer in observed:
        wrong = layer.weights.clone()
        wrong[3, wrong[3].argmax()] *= 1.01
        assert layer.relative_error(layer.ids, wrong) > TOLERANCE


@pytest.mark.parametrize("implementation", ["eager", "grouped_mm", "batched_mm"])
def test_every_experts_implementation_is_recorded_alike(family: str, implementation: str) -> None:
    model = build_model(family)
    model.set_experts_implementation(implementation)
    for layer in observe(model):
        assert layer.relative_error(layer.ids, layer.weights) <= TOLERANCE


def test_recomputing_top_k_from_the_logits_would_have_been_wrong() -> None:
    """The reason for all this: DeepSeek-V3 does not choose by its logits alone."""
    with RoutingRecorder(build_model("deepseek_v3"), keep_scores=True) as recorder:
        run(recorder.model)
    (call,) = recorder.calls
    layer = call.layers[0]
    assert layer.scores is not None
    recomputed = torch.from_numpy(layer.scores).topk(3).indices.sort().values
    recorded = torch.from_numpy(layer.experts).long().sort().values
    assert not torch.equal(recomputed, recorded)


def run(model: nn.Module) -> torch.Tensor:
    with torch.inference_mode():
        logits: torch.Tensor = model(**random_inputs()).logits
    return logits


def test_logits_are_bit_equal_with_and_without_the_recorder(family: str) -> None:
    model = build_model(family)
    plain = run(model)
    with RoutingRecorder(model, keep_scores=True):
        recorded = run(model)
    assert torch.equal(plain, recorded)


def count_hooks(model: nn.Module) -> int:
    return sum(
        len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()
    )


def test_no_hook_stays_behind(family: str) -> None:
    model = build_model(family)
    before = count_hooks(model)
    with RoutingRecorder(model, keep_scores=True):
        run(model)
        assert count_hooks(model) > before
    assert count_hooks(model) == before


def test_no_hook_stays_behind_after_an_exception() -> None:
    model = build_model("mixtral")
    before = count_hooks(model)
    with pytest.raises(RuntimeError, match="on purpose"), RoutingRecorder(model):
        raise RuntimeError("on purpose")
    assert count_hooks(model) == before


def test_an_exception_within_the_forward_leaves_no_half_call() -> None:
    model = build_model("mixtral")

    def fail(*_: object) -> None:
        raise RuntimeError("on purpose")

    with RoutingRecorder(model) as recorder:
        handle = model.get_submodule("model.layers.2.mlp").register_forward_pre_hook(fail)
        with pytest.raises(RuntimeError, match="on purpose"):
            run(model)
        handle.remove()
        run(model)
    calls: list[RecordedCall] = recorder.calls
    assert [call.call for call in calls] == [0]
    assert len(calls[0].position) == NUM_ROWS * NUM_COLUMNS
