"""The first lines of the page: what the numbers say, in words, and tiles with the sizes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from moetool.analysis.specialization.result import DomainExpertTest
from moetool.report.page.contents import PageContents
from moetool.report.page.payload.values.names import show_name, show_other, show_sentence
from moetool.report.questions import balance as balance_report
from moetool.report.questions import compare as comparison_report
from moetool.report.questions.specialization.verdict import word_verdict
from moetool.trace.facts import LayerFacts


def make_verdict(contents: PageContents) -> list[str]:
    """Return sentences, the most important first."""
    return list(_say(contents))


def _say(contents: PageContents) -> Iterator[str]:
    if contents.comparison is not None:
        other = show_other(contents.comparison)
        yield f"Next to {other}: {comparison_report.word_verdict(contents.comparison)[0]}"
    result = contents.specialization
    if result is not None:
        yield str(word_verdict(result)[0])
        if result.strongest is not None:
            yield _say_strongest(result.strongest)
    elif "specialization" in contents.missing:
        yield show_sentence(contents.missing["specialization"])
    balance = contents.balance.verdict if contents.balance is not None else None
    if balance is not None:
        yield balance_report.judge_load(balance)


def _say_random(number: float | None) -> str:
    return "" if number is None else f"; at random {number:.1f}"


def _say_strongest(cell: DomainExpertTest) -> str:
    stack = "" if cell.stack == "decoder" else f"{cell.stack} "
    interval = (
        f" (95% interval {cell.lift_low:.1f} to {cell.lift_high:.1f})"
        if cell.lift_low is not None and cell.lift_high is not None
        else ""
    )
    elsewhere = (
        f"; of the tokens that other prompts share, {cell.shared_share:.0%} go there, and "
        f"{cell.share_elsewhere:.0%} of the same tokens elsewhere"
        if cell.shared_share is not None and cell.share_elsewhere is not None
        else ""
    )
    return (
        f"The largest difference: in {show_name(cell.domain)}, expert {cell.expert} of "
        f"{stack}layer {cell.layer} gets {cell.lift:.1f} times its share of all tokens{interval}"
        f"{elsewhere}."
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
        described = contents.metadata.layers if contents.metadata is not None else ()
        by_experts = any(layer.is_chosen_by_experts for layer in described)
        sizes = sorted({layer.num_experts for layer in layers})
        yield {"label": "routed layers", "value": f"{len(layers):,}"}
        yield {
            "label": "experts per layer",
            "value": " to ".join(f"{size:,}" for size in dict.fromkeys((sizes[0], sizes[-1]))),
            "note": "experts choose tokens"
            if by_experts
            else f"top-{'/'.join(str(k) for k in top_k)}"
            if all(top_k)
            else "",
        }
    balance = contents.balance.verdict if contents.balance is not None else None
    if balance is not None:
        random = balance.random_max_over_mean
        yield {
            "label": "busiest expert",
            "value": f"{balance.max_over_mean:.2f}×",
            "note": "" if random is None else f"the mean load; at random {random:.2f}×",
        }
        yield {
            "label": "never chosen",
            "value": f"{balance.num_dead:,}",
            "note": f"of {balance.num_experts:,} experts{_say_random(balance.random_num_dead)}",
        }
