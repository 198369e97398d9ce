"""Words for layers, experts, routing and mixers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moetool.anatomy.parameters import ActiveDefinition
from moetool.anatomy.routing.routing_style import RoutingStyle
from moetool.anatomy.skeleton.description import Anatomy, LayerAnatomy
from moetool.anatomy.skeleton.mixers import Mixer, MixerKind
from moetool.inspection.figures import PublishedFigures
from moetool.report.inspect.words import (
    word_experts,
    word_indices,
    word_layers,
    word_mixer,
    word_numbers,
    word_published,
    word_routing,
)
from tests.report.inspect.inspections import make_inspection

SOFTMAX = RoutingStyle("softmax", True, 1.0, False, 1, 1, False, None)
GROUPED = RoutingStyle("sigmoid", True, 2.5, True, 8, 4, False, None)
HASHED = RoutingStyle("sqrt(softplus)", False, 1.0, False, 1, 1, True, None)
SWITCH = RoutingStyle(None, None, None, False, 1, 1, False, 64)


def make_anatomy(*styles: RoutingStyle | None, **changes: Any) -> Anatomy:
    fields: dict[str, Any] = {
        "model_class": "SmallForCausalLM",
        "num_layers": 1 + len(styles),
        "routed_layers": tuple(
            LayerAnatomy("decoder", 1 + number, 8, 0, 2, 128, style)
            for number, style in enumerate(styles)
        ),
        "dense_layers": {"decoder": (0,)},
        "num_shared_experts": 0,
        "mixers": (),
        "context_length": 512,
        "vocab_size": 2048,
        "is_encoder_decoder": False,
    }
    return Anatomy(**{**fields, **changes})


@pytest.mark.parametrize(
    ("numbers", "words"),
    [
        ([], ""),
        ([3], "3"),
        ([0, 1, 2, 5], "0-2, 5"),
        ([0, 1], "0-1"),
        ([1, 3, 5], "1, 3, 5"),
        ([1, 3, 5, 7], "1, 3, …, 7"),
        ([0, 1, 2, 3, 4, 6, 7, 8, 9, 10], "0-4, 6-10"),
        ([0, 4, 5, 6, 9, 12, 15, 18], "0, 4-6, 9, 12, …, 18"),
    ],
)
def test_indices_at_equal_distances_are_drawn_together(numbers: list[int], words: str) -> None:
    assert word_indices(numbers) == words


@given(st.sets(st.integers(0, 60)).map(sorted))
def test_words_for_indices_stand_for_exactly_those(numbers: list[int]) -> None:
    parts = word_indices(numbers).split(", ") if numbers else []
    meant: list[int] = []
    for index, part in enumerate(parts):
        first, _, last = part.partition("-")
        if part == "…":
            meant += range(2 * meant[-1] - meant[-2], int(parts[index + 1]), meant[-1] - meant[-2])
        else:
            meant += range(int(first), int(last or first) + 1)
    assert meant == numbers


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (8, "8"),
        (None, "unknown"),
        ((4, 8, 4), "4 to 8"),
        ((None, None), "unknown"),
        ((8, None), "8, some unknown"),
        ((4, None, 8), "4 to 8, some unknown"),
    ],
)
def test_numbers_that_differ_between_layers_are_a_range(
    number: int | tuple[int | None, ...] | None, words: str
) -> None:
    assert word_numbers(number) == words


@pytest.mark.parametrize(
    ("styles", "words"),
    [
        ([SOFTMAX, SOFTMAX], ["softmax, normalised"]),
        ([GROUPED], ["sigmoid, normalised, times 2.5, selection bias, 4 of 8 groups"]),
        (
            [HASHED, GROUPED, GROUPED],
            [
                "1 layer: sqrt(softplus), not normalised, chosen by token id",
                "2 layers: sigmoid, normalised, times 2.5, selection bias, 4 of 8 groups",
            ],
        ),
        ([SWITCH], ["scores unknown, capacity 64"]),
        ([None], []),
    ],
)
def test_every_way_of_routing_has_a_line(
    styles: list[RoutingStyle | None], words: list[str]
) -> None:
    assert word_routing(make_inspection(anatomy=make_anatomy(*styles))) == words


def test_layers_without_experts_are_listed() -> None:
    two_stacks = {"encoder": (0, 2), "decoder": (0, 2, 4, 6)}
    inspection = make_inspection(
        num_layers=12, num_moe_layers=6, anatomy=make_anatomy(dense_layers=two_stacks)
    )
    words = "12, 6 of them with experts; without: encoder 0, 2; decoder 0, 2, …, 6"
    assert word_layers(inspection) == words
    assert word_layers(make_inspection(num_moe_layers=0)) == "4, all dense"
    assert word_layers(make_inspection(num_moe_layers=4)) == "4, all with experts"


def test_shared_experts_and_widths_are_named() -> None:
    inspection = make_inspection(num_shared_experts=2, anatomy=make_anatomy(SOFTMAX))
    assert word_experts(inspection) == "top-2 of 8, 2 shared; 128 wide"
    # Without parameters of such a component, nothing shows that there are any.
    unknown = make_inspection(num_shared_experts=None)
    assert word_experts(unknown) == "top-2 of 8"
    assert unknown.parameters is not None
    components = {**unknown.parameters.components, "shared_experts": 5}
    some = replace(unknown, parameters=replace(unknown.parameters, components=components))
    assert word_experts(some) == "top-2 of 8, shared experts"
    assert word_experts(make_inspection(num_moe_layers=0)) == "none"


def test_a_mixer_is_named_with_its_heads_and_window() -> None:
    mixer = Mixer(MixerKind.GQA, 12, 32, 8, 128, 4096, is_sparse=False)
    words = "12 x grouped-query attention, 32 heads, 8 KV heads, 128 wide, window 4096"
    assert word_mixer(mixer) == words
    assert word_mixer(Mixer(MixerKind.MAMBA, 28, None, None, None, None, False)) == "28 x Mamba"


@pytest.mark.parametrize(
    ("total_b", "active_b", "meets", "words"),
    [
        (
            "46.7",
            "12.9",
            (ActiveDefinition.ALL,),
            '46.7B total and 12.9B active, which agrees with "all" above',
        ),
        (
            "671",
            "37",
            (ActiveDefinition.ALL, ActiveDefinition.WITHOUT_INPUT_EMBEDDING),
            "671B total and 37B active, which agrees with "
            '"all" and "without input embedding" above',
        ),
        ("46.7", None, (), "46.7B total"),
        (
            None,
            "9",
            (),
            '9B active, which agrees with none of the counts above; "all" is the closest',
        ),
        (None, None, (), None),
    ],
)
def test_the_vendors_figure_stands_with_the_definition_it_meets(
    total_b: str | None,
    active_b: str | None,
    meets: tuple[ActiveDefinition, ...],
    words: str | None,
) -> None:
    published = PublishedFigures(total_b, active_b, True, meets, ActiveDefinition.ALL, None, None)
    assert word_published(published) == words


def test_a_total_that_differs_from_the_count_says_so() -> None:
    differing = PublishedFigures("130", None, False, (), None, None, None)
    assert word_published(differing) == "130B total (the count above differs)"
    uncounted = PublishedFigures(None, "37", None, (), None, None, None)
    assert word_published(uncounted) == "37B active"
