"""Active parameters are the ones that the forward of a token reads."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from transformers import PreTrainedConfig, PreTrainedModel

from moetool.anatomy.components import Component
from moetool.anatomy.parameters import (
    ActiveDefinition,
    ActiveRange,
    ParameterRow,
    ParameterTable,
)
from moetool.anatomy.routing.moe_layers import MoeLayer
from moetool.anatomy.skeleton.active_experts import list_expert_parameters
from moetool.anatomy.skeleton.routed_skeleton import RoutedSkeleton
from moetool.anatomy.skeleton.table import count_skeleton
from tests.anatomy.counting import CountedFamily, count_family
from tests.anatomy.parameter_audit import ParameterAudit
from tests.families.tiny.models import (
    CANVAS_FAMILIES,
    EMBEDDING_FAMILIES,
    ENCODER_DECODERS,
    LOOPED_FAMILIES,
    available,
    build_family,
    text_inputs,
)
from tests.families.tiny.proof import unreadable_families
from tests.families.tiny.sizes import HIDDEN_SIZE

# Its layers run all experts on every token, those not chosen on zeros.
RUNS_ALL_EXPERTS = ("llama4", "llama4_text")

# Enough that attention which compresses what it sees has something to do.
NUM_TOKENS = 128


def run_eagerly(model: PreTrainedModel) -> None:
    """Let experts run one by one, so that what each reads can be seen."""
    for module in model.modules():
        config = getattr(module, "config", None)
        if isinstance(config, PreTrainedConfig) and hasattr(config, "_experts_implementation"):
            config.get_text_config()._experts_implementation = "eager"


def read_by(model: PreTrainedModel, *, num_tokens: int) -> dict[str, int]:
    """Return how many elements of each parameter the text path reads."""
    inputs = text_inputs(model, num_rows=1, num_columns=num_tokens)
    audit = ParameterAudit(model)
    with torch.inference_mode(), audit:
        model(**inputs)
    return audit.count_read()


def split_by_experts(family: CountedFamily, model: PreTrainedModel) -> tuple[set[str], set[str]]:
    """Return the names of the parameters of experts, and those of all others."""
    experts = {path for layer in family.layers for path in list_expert_parameters(model, layer)}
    names = {name for name, _ in model.named_parameters()}
    return experts & names, names - experts


@pytest.mark.parametrize("name", available())
def test_active_parameters_are_those_that_one_token_reads(name: str) -> None:
    family = count_family(name)
    model = build_family(name)
    run_eagerly(model)
    experts, others = split_by_experts(family, model)
    sizes = {path: parameter.numel() for path, parameter in model.named_parameters()}

    # Two texts of different tokens have to fit the vocabulary.
    has_two_texts = name in ENCODER_DECODERS + CANVAS_FAMILIES
    long = read_by(model, num_tokens=NUM_TOKENS // 2 if has_two_texts else NUM_TOKENS)
    short = read_by(model, num_tokens=1)

    # What is read in part, such as a row of the embedding, is counted whole.
    read_at_all = sum(sizes[path] for path in others if long[path])
    if name in EMBEDDING_FAMILIES:
        embedding = model.get_input_embeddings()
        assert embedding is not None
        read_at_all += embedding.get_parameter("weight").numel()
    read_of_experts = sum(short[path] for path in experts)
    active = family.table.count_active(ActiveDefinition.ALL)
    if name in unreadable_families():
        assert active is None
        return
    assert active is not None
    if name in RUNS_ALL_EXPERTS:
        assert read_of_experts == sum(sizes[path] for path in experts)
        chosen = family.table.count_active_of(Component.ROUTED_EXPERTS)
        assert chosen is not None
        assert chosen.exact is not None
        read_of_experts = chosen.exact
    if name in LOOPED_FAMILIES:
        # Counted is one pass: the layers that run again read other experts in the second.
        assert active.exact is not None
        assert active.exact < read_at_all + read_of_experts <= 2 * active.exact
        return
    assert active.fewest <= read_at_all + read_of_experts <= active.most


def test_identity_experts_make_active_parameters_a_range() -> None:
    family = count_family("longcat_flash")
    layer = family.layers[0]
    per_expert = 3 * HIDDEN_SIZE * 40

    active = family.table.count_active_of(Component.ROUTED_EXPERTS)

    assert (layer.num_experts, layer.num_identity_experts) == (8, 4)
    # Two layers; a token chooses three of twelve, of which four may be identity experts.
    assert active == ActiveRange(0, 2 * 3 * per_expert)
    assert family.table.count_active(ActiveDefinition.ALL) is not None


def test_what_is_allocated_for_identity_experts_is_counted_and_never_active() -> None:
    family = count_family("longcat_flash")
    allocated = family.table.count_components()[Component.ROUTED_EXPERTS]
    gate_and_up, down = 2 * 40 * HIDDEN_SIZE, 40 * HIDDEN_SIZE

    assert allocated == 2 * (12 * gate_and_up + 8 * down)


def test_stacks_that_share_experts_may_run_the_same_or_others() -> None:
    family = count_family("diffusion_gemma")
    per_expert = 3 * HIDDEN_SIZE * 40

    active = family.table.count_active_of(Component.ROUTED_EXPERTS)

    assert active == ActiveRange(4 * 3 * per_expert, 4 * 6 * per_expert)


class _UnknownTopK(RoutedSkeleton):
    @property
    def top_k(self) -> Mapping[MoeLayer, int | None]:
        return dict.fromkeys(self.layers)


def test_an_unknown_top_k_makes_active_parameters_unknown() -> None:
    family = count_family("mixtral")

    table = count_skeleton(_UnknownTopK(family.skeleton, family.routed.experts), dtype=None)

    assert table.count_active(ActiveDefinition.ALL) is None
    assert table.count_active_of(Component.MIXER) is not None
    assert table.total == family.table.total


@pytest.mark.parametrize(
    ("is_tied", "without_input", "without_both"), [(False, 87, 80), (True, 100, 80)]
)
def test_a_tied_embedding_is_the_head_too(
    is_tied: bool, without_input: int, without_both: int
) -> None:
    components = {Component.EMBEDDING: 20 if is_tied else 13, Component.MIXER: 80}
    if not is_tied:
        components[Component.LM_HEAD] = 7
    table = ParameterTable(
        rows=tuple(
            ParameterRow("decoder", None, component, n, ActiveRange(n, n), None, None)
            for component, n in components.items()
        ),
        is_tied=is_tied,
    )

    counted = {name.value: table.count_active(name) for name in ActiveDefinition}

    assert counted == {
        "all": ActiveRange(100, 100),
        "without_input_embedding": ActiveRange(without_input, without_input),
        "without_embedding_and_head": ActiveRange(without_both, without_both),
    }
