"""Recorded decisions are those that the model ran, in every family: two referees agree.

The dense loop recomputes the experts' output from the recorded ids and weights. The audit sees
which expert's weights are multiplied with which token's row, and doesn't know any ids.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from moetool.anatomy.routing.moe_layers import find_moe_layers
from tests.families.tiny.models import available, build_family
from tests.families.tiny.proof import Proof, exact_families, proof_of, prove, why_refused

TOLERANCE = 1e-5
IMPLEMENTATIONS = ("eager", "grouped_mm", "batched_mm")

# Their experts have one implementation, which transformers does not let anyone choose.
WITHOUT_A_CHOICE = {
    *("dbrx", "jetmoe", "llama4", "llama4_text", "longcat_flash", "step3p7"),
    "switch_transformers",
}

# Zaya runs expert 0, with weight 0, on tokens that skip the layer.
RUNS_SKIPPED_TOKENS = {"zaya"}


@pytest.fixture(scope="module", params=exact_families())
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def proof(family: str) -> Proof:
    return proof_of(family)


def test_all_but_the_documented_families_are_claimed_to_be_exact() -> None:
    refused = {name for name in available() if why_refused(name)}
    assert refused == set(available()) - set(exact_families())


def test_recorded_decisions_reproduce_the_experts_output(proof: Proof) -> None:
    assert proof.layers
    for layer in proof.layers:
        assert layer.relative_error(layer.ids, layer.weights) <= TOLERANCE


def test_recorded_pairs_are_those_that_met_in_the_matrix_products(
    family: str, proof: Proof
) -> None:
    for layer in proof.layers:
        expected = layer.expected_pairs(layer.ids)
        if family in RUNS_SKIPPED_TOKENS:
            skipped = torch.nonzero(layer.ids[:, 0] < 0).flatten().tolist()
            expected.update((token, 0) for token in skipped)
        assert layer.pairs == expected


def test_a_planted_wrong_id_is_caught_by_both(proof: Proof) -> None:
    for layer in proof.layers:
        wrong = layer.ids.clone()
        token = int(layer.weights[:, 0].argmax())
        chosen = set(wrong[token].tolist())
        wrong[token, 0] = min(set(range(layer.place.num_experts)) - chosen)
        assert layer.relative_error(wrong, layer.weights) > TOLERANCE
        assert layer.expected_pairs(wrong) != layer.pairs


def test_a_planted_weight_off_by_one_per_cent_is_caught_by_the_dense_loop(proof: Proof) -> None:
    for layer in proof.layers:
        wrong = layer.weights.clone()
        token, slot = divmod(int(wrong.argmax()), wrong.shape[1])
        wrong[token, slot] *= 1.01
        assert layer.relative_error(layer.ids, wrong) > TOLERANCE


def test_the_output_is_bit_equal_with_and_without_the_recorder(proof: Proof) -> None:
    assert torch.equal(proof.plain, proof.recorded)


def test_no_hook_and_no_stand_in_stays_behind(proof: Proof) -> None:
    assert proof.modules_after == proof.modules_before


def find_switchable(model: PreTrainedModel) -> list[nn.Module]:
    """Return the experts whose implementation can be chosen."""
    experts = [model.get_submodule(layer.experts_path) for layer in find_moe_layers(model)]
    # What transformers' decorator of switchable experts leaves on them.
    return [module for module in experts if hasattr(module, "has_gate")]


def test_the_families_without_a_choice_of_implementation_are_known() -> None:
    without = {name for name in exact_families() if not find_switchable(build_family(name))}
    assert without == WITHOUT_A_CHOICE & set(exact_families())


@pytest.mark.parametrize(
    "name", [name for name in exact_families() if name not in WITHOUT_A_CHOICE]
)
def test_every_experts_implementation_is_recorded_and_proven_alike(name: str) -> None:
    model, proof = build_family(name), proof_of(name)
    switchable = find_switchable(model)
    default = switchable[0].config._experts_implementation  # type: ignore[union-attr]
    for implementation in set(IMPLEMENTATIONS) - {default}:
        for module in switchable:
            config: Any = module.config
            config._experts_implementation = implementation
        other = prove(model)
        for layer, first in zip(other.layers, proof.layers, strict=True):
            assert torch.equal(layer.ids.sort().values, first.ids.sort().values)
            assert layer.relative_error(layer.ids, layer.weights) <= TOLERANCE
            assert layer.pairs == first.pairs
