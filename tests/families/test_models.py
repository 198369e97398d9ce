"""Tests of the tiny models themselves: that what other tests conclude from them means something."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import chain
from typing import Any

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from tests.families.tiny.families import FAMILIES, NOT_ROUTED
from tests.families.tiny.models import available, broken, build_family, text_inputs
from tests.families.tiny.sizes import NUM_EXPERTS

# What transformers 5.17, the oldest supported, or 5.23 lacks or cannot run.
NEW_FAMILIES = {
    "bailing_hybrid",
    "beam",
    "doge",
    "dots3_note",
    "dots3_note_text",
    "flint",
    "hy_v4_vl",
    "inkling2_loop_text",
    "inkling2_text",
    "kolibri1",
    "lara_mini",
    "mistral_large4",
    "muse_spark",
    "nemotron_h_omni",
    "sarvam_mla",
    "sarvam_moe",
    "unlimited_ocr",
    "unlimited_ocr_text",
}


# Other numbers of experts than the table's; LongCat's are 8, and 4 that return what they are given.
NUMBERS_OF_EXPERTS = {"doge": 16, "longcat_flash": 12}


def columns_in_use(scores: torch.Tensor) -> torch.Tensor:
    """Return the last index of the entries that are not zero."""
    return scores.nonzero()[:, -1]


def integers(tensors: Iterable[torch.Tensor]) -> list[torch.Tensor]:
    return [one for one in tensors if one.dtype == torch.int64]


# Routers whose choices don't reach the experts, or reach them in another form.
ROUTER_CHOICES: dict[str, Callable[[Any, Any], torch.Tensor]] = {
    "JetMoeTopKGating": lambda router, outputs: outputs[4].topk(router.top_k).indices,
    "Llama4Router": lambda _, outputs: columns_in_use(outputs[0]),
    "NllbMoeTop2Router": lambda _, outputs: columns_in_use(outputs[1]),
    "SwitchTransformersTop1Router": lambda _, outputs: columns_in_use(integers(outputs)[0]),
}


@contextmanager
def poisoned_memory() -> Iterator[None]:
    """Fill new memory with NaN, so that weights that are never initialised are seen."""
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.fixture(scope="module", params=available())
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    with poisoned_memory():
        return build_family(request.param)


def tensors_of(model: nn.Module) -> dict[str, torch.Tensor]:
    return dict(chain(model.named_parameters(), model.named_buffers()))


def test_installed_transformers_lacks_only_new_families() -> None:
    assert set(FAMILIES) - {*available(), *broken()} <= NEW_FAMILIES


def test_broken_families_fail_in_transformers_own_code() -> None:
    for name, message in broken().items():
        model = build_family(name)
        with pytest.raises(Exception, match=re.escape(message)) as raised:
            model(**text_inputs(model))
        assert "transformers/models" in str(raised.traceback[-1].path)


@pytest.mark.parametrize("name", NOT_ROUTED)
def test_family_without_routing_builds(name: str) -> None:
    assert build_family(name).config.model_type == name


def test_weights_are_initialised_and_in_float32(model: PreTrainedModel) -> None:
    for name, tensor in tensors_of(model).items():
        assert not tensor.isnan().any(), name
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert not model.training


def test_same_seed_gives_same_weights_and_leaves_random_state(model: PreTrainedModel) -> None:
    torch.manual_seed(5)
    state = torch.get_rng_state()
    again = tensors_of(build_family(model.config.model_type))
    assert torch.equal(torch.get_rng_state(), state)
    first = tensors_of(model)
    assert first.keys() == again.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor, again[name]), name


def test_forward_is_finite_and_repeatable(model: PreTrainedModel) -> None:
    with torch.inference_mode():
        first = model(**text_inputs(model))[0]
        second = model(**text_inputs(model.config.model_type))[0]
    assert first.shape[:2] == (2, 7)
    assert first.isfinite().all()
    assert torch.equal(first, second)


def test_most_experts_of_each_layer_are_used(model: PreTrainedModel) -> None:
    num_experts = NUMBERS_OF_EXPERTS.get(model.config.model_type, NUM_EXPERTS)
    chosen = read_chosen_experts(model)
    assert chosen
    for name, experts in chosen.items():
        assert len(experts) > num_experts / 2, name


def read_chosen_experts(model: PreTrainedModel) -> dict[str, set[int]]:
    """Return the experts that any token went to, by the name of the module that says so."""
    chosen: dict[str, set[int]] = defaultdict(set)

    def note_router(name: str, router: nn.Module, outputs: Any) -> None:
        experts = ROUTER_CHOICES[type(router).__name__](router, outputs)
        chosen[name].update(experts.flatten().tolist())

    def note_received(name: str, module: Any, args: tuple[torch.Tensor, ...]) -> None:
        if hasattr(module, "route_tokens_to_experts"):
            # Before transformers 5.18, Aria's experts choose among themselves.
            args = module.route_tokens_to_experts(args[1])
        for experts in integers(args):
            chosen[name].update(experts.flatten().tolist())

    modules = dict(model.named_modules())
    routers = {name for name, one in modules.items() if type(one).__name__ in ROUTER_CHOICES}
    for name, module in modules.items():
        if name in routers:
            module.register_forward_hook(
                lambda router, _, outputs, name=name: note_router(name, router, outputs)
            )
        elif not routers and (
            type(module).__name__.endswith("Experts") or name.endswith("down_embed")
        ):
            module.register_forward_pre_hook(partial(note_received, name))
    with torch.inference_mode():
        model(**text_inputs(model))
    return chosen
