"""Hand-made excerpts of a trace, and their page."""

from __future__ import annotations

import re
from collections.abc import Sequence

from moetool.report.renderer import View
from moetool.report.text.page import render_page
from moetool.report.trace_excerpt import make_excerpts
from moetool.trace.excerpt import PromptExcerpt, RoutedToken, StackExcerpt
from moetool.trace.metadata import RoutedLayer

ESCAPE = re.compile(r"\x1b\[[0-9;]*m")
WIDE = 200


def describe_layers(
    num_layers: int, *, num_experts: int = 8, top_k: int = 2, stack: str = "decoder"
) -> tuple[RoutedLayer, ...]:
    return tuple(
        RoutedLayer(
            stack=stack,
            layer=number,
            module="",
            router=None,
            num_experts=num_experts,
            num_identity_experts=4,
            top_k=top_k,
        )
        for number in range(num_layers)
    )


def make_stack(
    experts: Sequence[Sequence[Sequence[int]]],
    *,
    num_given: int | None = None,
    positions: Sequence[int] | None = None,
    pieces: Sequence[str] | None = None,
    layers: Sequence[int] | None = None,
    stack: str = "decoder",
) -> StackExcerpt:
    """Return the experts of some tokens, by token, layer and rank."""
    num_given = len(experts) if num_given is None else num_given
    return StackExcerpt(
        stack=stack,
        layers=tuple(range(len(experts[0])) if layers is None else layers),
        tokens=tuple(
            RoutedToken(
                position=positions[index] if positions else index,
                piece=pieces[index] if pieces else f"t{index}",
                is_new=index >= num_given,
                experts=tuple(map(tuple, chosen)),
            )
            for index, chosen in enumerate(experts)
        ),
    )


def make_wide_stack(num_layers: int, *, num_experts: int, top_k: int) -> StackExcerpt:
    """Return a stack of three tokens, each of whose experts differ by layer and rank."""
    return make_stack(
        [
            [
                [(token + 7 * layer + rank) % num_experts for rank in range(top_k)]
                for layer in range(num_layers)
            ]
            for token in range(3)
        ]
    )


def make_prompt(
    *stacks: StackExcerpt,
    prompt: str = "Once",
    written: str | None = None,
    prompt_id: str = "1",
    domain: str = "(none)",
) -> PromptExcerpt:
    return PromptExcerpt(
        prompt_id=prompt_id, domain=domain, prompt=prompt, written=written, stacks=stacks
    )


def render(
    *excerpts: PromptExcerpt,
    layers: Sequence[RoutedLayer] | None = None,
    width: int | None = WIDE,
    has_color: bool = False,
) -> str:
    view = View(width=width, has_color=has_color)
    layers = describe_layers(64) if layers is None else layers
    return render_page(make_excerpts(excerpts, layers, view), view)
