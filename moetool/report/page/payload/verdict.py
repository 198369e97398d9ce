"""The first lines of the page: what the numbers say, in words, and tiles with the sizes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from moetool.analysis.specialization.result import Specialization
from moetool.report.page.contents import PageContents
from moetool.report.page.payload.experts import count_experts
from moetool.report.page.payload.names import show_name
from moetool.report.questions.specialization.verdict import word_verdict
from moetool.trace.facts import LayerFacts
from moetool.wording import number_of


def make_verdict(contents: PageContents) -> list[str]:
    """Return sentences, the most important first."""
    return list(_say(contents))


def _say(contents: PageContents) -> Iterator[str]:
    result = contents.specialization
    if result is not None:
        yield str(word_verdict(result)[0])
        strongest = _find_strongest(result)
        if strongest:
            yield strongest
    balance = contents.balance
    if balance is not None:
        uneven = [layer.is_uneven for layer in balance.layers]
        if any(uneven):
            yield (
                f"The load is uneven in {sum(map(bool, uneven))} of "
                f"{number_of(len(uneven), 'layer')}, beyond what a random router and the choice of "
                "prompts give."
            )


def _find_strongest(result: Specialization) -> str | None:
    """Return a sentence on the largest lift that is certain, and beyond vocabulary if any is."""
    certain = [cell for cell in result.experts if cell.is_certain_expert]
    beyond = [cell for cell in certain if cell.is_beyond_vocabulary]
    cells = beyond or certain
    if not cells:
        return None
    cell = max(cells, key=lambda one: one.lift or 0.0)
    stack = "" if cell.stack == "decoder" else f"{cell.stack} "
    interval = (
        f" (95% interval {cell.lift_low:.1f} to {cell.lift_high:.1f})"
        if cell.lift_low is not None and cell.lift_high is not None
        else ""
    )
    return (
        f"The largest such difference: {stack}layer {cell.layer}, expert {cell.expert} takes "
        f"{cell.lift:.1f} times its share of all tokens in {show_name(cell.domain)}{interval}."
    )


def make_tiles(contents: PageContents, layers: Sequence[LayerFacts]) -> list[dict[str, Any]]:
    """Return sizes and a few figures, each with what a random router would have."""
    return list(_list_tiles(contents, layers))


def _list_tiles(contents: PageContents, layers: Sequence[LayerFacts]) -> Iterator[dict[str, Any]]:
    facts = contents.facts
    for label, number in (("prompts", facts.num_prompts), ("tokens", facts.num_tokens)):
        # A load table has neither.
        if number is not None:
            yield {"label": label, "value": f"{number:,}"}
    if layers:
        top_k = sorted({layer.top_k for layer in layers})
        sizes = sorted({layer.num_experts for layer in layers})
        yield {"label": "routed layers", "value": f"{len(layers):,}"}
        yield {
            "label": "experts per layer",
            "value": " to ".join(f"{size:,}" for size in dict.fromkeys((sizes[0], sizes[-1]))),
            "note": f"top-{'/'.join(str(k) for k in top_k)}" if all(top_k) else "",
        }
    balance = contents.balance
    if balance is not None:
        known = [one.max_violation for one in balance.layers if one.max_violation is not None]
        random = [
            one.baseline.max_violation
            for one in balance.layers
            if one.baseline.max_violation is not None
        ]
        if known:
            yield {
                "label": "busiest expert",
                "value": f"{1 + max(known):.2f}×",
                "note": f"the mean load; at random {1 + max(random):.2f}×" if random else "",
            }
        yield {
            "label": "never chosen",
            "value": f"{sum(len(one.dead) for one in balance.layers):,}",
            "note": f"of {count_experts(layers):,} experts",
        }
