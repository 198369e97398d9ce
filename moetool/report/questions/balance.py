"""Render how evenly experts share the work as tables, JSON or CSV."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import RenderableType
from rich.table import Table

from moetool.analysis.balance.layer_result import LayerBalance
from moetool.analysis.balance.result import Balance, PartSummary, Verdict
from moetool.printable import printable
from moetool.report import envelope
from moetool.report.renderer import DEFAULT_VIEW, Renderers, ReportFormat, View
from moetool.report.text.lines import make_paragraphs
from moetool.report.text.numbers import format_stack
from moetool.report.text.page import render_page
from moetool.report.text.styles import Style, Words, style_words
from moetool.report.text.tables import make_table
from moetool.report.text.words import word_range, word_share
from moetool.wording import number_of

_LAYERS_SHOWN = 30
_PARTS_SHOWN = 12
_HOT_SHOWN = 3
# In a column of numbers; a word would widen it.
_UNKNOWN = "–"

_LOSS_WORDS = {
    "switch": "Switch, Megatron-LM",
    "huggingface": "transformers (layers pooled)",
    "olmoe": "OLMoE (per layer)",
    "mean_squared": "mean squared",
    "z_loss": "z-loss",
}


def render_table_text(result: Balance, view: View = DEFAULT_VIEW) -> str:
    """Return the verdict, the tables, what to know about them, and how to read them."""
    blocks = (
        list(_make_verdict(result)),
        list(_make_layers(result)),
        list(_make_parts(result)),
        list(_make_capacity(result)),
        list(_make_losses(result)),
        make_paragraphs(result.notes, Style.WARNING),
        make_paragraphs(_explain(result), Style.MUTED),
    )
    return render_page(blocks, view)


def _make_verdict(result: Balance) -> Iterator[RenderableType]:
    verdict = result.verdict
    if verdict is None:
        yield from make_paragraphs([style_words("No expert ran in any layer.", Style.STRONG)])
        return
    busiest = (
        f"The busiest expert of a layer gets {_times_range(verdict.max_violation)} times the mean "
        "load"
    )
    if verdict.random_max_violation is not None:
        largest = _times(verdict.random_max_violation)
        busiest += (
            f"; a random router's gets {largest} on average"
            if len(verdict.layers) == 1
            else f"; the busiest of all layers of a random router gets {largest} on average"
        )
    if verdict.max_violation_batch is not None and result.batches is not None:
        batch = {"prompt": "one prompt", "step": "one step"}.get(result.batches, "one batch")
        busiest += (
            f". Within {batch} it gets {_times_range(verdict.max_violation_batch)} times the mean, "
            "on average"
        )
        if verdict.random_max_violation_batch is not None:
            busiest += f"; at random, {_times(verdict.random_max_violation_batch)} on average"
    yield from make_paragraphs(
        [style_words(judge_load(verdict), Style.STRONG), f"{busiest}.", _word_dead(verdict)]
    )


def _word_dead(verdict: Verdict) -> str:
    experts = number_of(verdict.num_experts, "expert")
    if not verdict.num_dead:
        return f"All {experts} are chosen."
    never = (
        f"{verdict.num_dead:,} of {experts} {'is' if verdict.num_dead == 1 else 'are'} never chosen"
    )
    if verdict.random_num_dead is None:
        return f"{never}."
    return f"{never}; a random router would leave out {verdict.random_num_dead:,.1f}."


def judge_load(verdict: Verdict) -> str:
    """Return whether the load is uneven beyond chance, in words."""
    if verdict.num_uneven is None:
        return (
            "Whether the load is uneven beyond these prompts is unknown: counts without prompts, or "
            "fewer than three prompts, don't show how much prompts differ."
        )
    chance = "chance and the choice of prompts"
    if len(verdict.layers) == 1:
        name = _name(verdict.layers[0])
        return (
            f"The load of {name} is uneven, more than {chance} explain."
            if verdict.num_uneven
            else f"The load of {name} is not surely more uneven than {chance} make it."
        )
    layers = number_of(len(verdict.layers), "layer")
    return (
        f"The load is uneven in {verdict.num_uneven:,} of {layers}, more than {chance} explain."
        if verdict.num_uneven
        else f"In none of {layers} is the load surely more uneven than {chance} make it."
    )


def _make_layers(result: Balance) -> Iterator[RenderableType]:
    shown: Sequence[LayerBalance] = result.layers
    if len(shown) > _LAYERS_SHOWN:
        kept = sorted(shown, key=lambda layer: -(layer.cv or 0.0))[:_LAYERS_SHOWN]
        shown = [layer for layer in shown if layer in kept]
    rows: list[tuple[Words, ...]] = [
        (
            _name(layer).removeprefix("layer "),
            _format(layer.entropy, ".3f"),
            style_words(_format(layer.cv, ".2f"), Style.STRONG),
            _format(layer.baseline.cv, ".2f"),
            _format(layer.prompt_cv, ".2f"),
            style_words(_times(layer.max_violation), Style.STRONG),
            _times(layer.baseline.max_violation),
            f"{len(layer.dead):,}",
            _name_hot(layer),
        )
        for layer in shown
    ]
    headers = (
        *("layer", "entropy", "cv", "random", "prompts", "max", "random", "dead"),
        "hot",
    )
    yield make_table(headers, rows, right=range(1, 8))
    num_more = len(result.layers) - len(shown)
    if num_more:
        yield from make_paragraphs(
            [f"… and {number_of(num_more, 'more even layer')}: --format csv lists all"]
        )


def _make_parts(result: Balance) -> Iterator[RenderableType]:
    if not result.parts:
        return
    shown: Sequence[PartSummary] = result.parts
    if len(shown) > _PARTS_SHOWN:
        shown = sorted(shown, key=lambda part: -(part.cv or 0.0))[:_PARTS_SHOWN]
    rows = [
        (
            printable(part.name, max_length=40),
            f"{part.num_tokens:,}",
            style_words(_format(part.cv, ".2f"), Style.STRONG),
            _format(part.baseline.cv, ".2f"),
            style_words(_times(part.max_violation), Style.STRONG),
            _times(part.baseline.max_violation),
            f"{part.num_dead:,}",
            f"{part.baseline.num_dead:,.1f}",
        )
        for part in shown
    ]
    by = printable(result.by or "group", max_length=20)
    headers = (
        f"{by} or phase" if any(part.part == "phase" for part in result.parts) else by,
        *("tokens", "cv", "random", "max", "random", "dead", "random"),
    )
    yield make_table(headers, rows, right=range(1, 8))
    num_more = len(result.parts) - len(rows)
    if num_more:
        yield from make_paragraphs(
            [f"… and {num_more:,} with a smaller cv: --format csv lists all"]
        )


def _make_capacity(result: Balance) -> Iterator[Table]:
    choice = {each.factor: each for each in result.expert_choice}
    rows: list[tuple[Words, ...]] = []
    for share in result.capacity:
        if share.policy != "position":
            continue
        places = share.by_position or ()
        expected = share.baseline.by_position
        row: tuple[Words, ...] = (
            f"{share.factor:g}",
            style_words(_share(share.dropped_share), Style.STRONG),
            _share(share.baseline.dropped_share),
            _share(places[0] if places else None),
            _share(places[-1] if places else None),
            _share(expected[-1] if expected else None),
        )
        if choice:
            left = choice[share.factor]
            row += (_share(left.share_without_expert), _share(left.baseline))
        rows.append(row)
    headers = ["capacity", "dropped", "random", "first", "last", "random"]
    if choice:
        headers += ["unserved", "random"]
    if rows:
        yield make_table(headers, rows, right=range(1, len(headers)))


def _make_losses(result: Balance) -> Iterator[Table]:
    rows = [
        (
            _LOSS_WORDS[loss.name],
            style_words(_format(loss.value, ".4g"), Style.STRONG),
            _format(loss.baseline, ".4g"),
        )
        for loss in result.losses
        if loss.value is not None
    ]
    if len(rows) > 1:
        yield make_table(("auxiliary loss", "value", "even"), rows, right=(1, 2))


def _explain(result: Balance) -> Iterator[str]:
    """Yield the meaning of the columns."""
    sizes = [layer.top_k for layer in result.layers if layer.top_k is not None]
    random = (
        f"gives each token {word_range(sizes)} random experts, or fewer where fewer ran"
        if sizes
        else "chooses at random"
    )
    yield (
        "entropy: of the experts' load, over that of an even load. cv: standard deviation of load "
        f"over its mean. random: the same figure of a router that {random}. prompts: the cv that an "
        "even router would show because it routes whole prompts alike. max: the largest load over the mean load. dead: experts never chosen. "
        "hot: experts with a load surely above that of a random router's busiest (95 % interval "
        "over prompts), hottest first."
    )
    if result.parts:
        yield (
            "By group and phase: cv and max are means over layers, dead is a sum. Fewer tokens "
            "make any load less even: compare with random."
        )
    if result.capacity:
        size = result.capacity[0].tokens_per_batch
        of = (
            "a prompt"
            if result.batches == "prompt"
            else "a step"
            if size is None
            else f"a batch of {size:,.0f} tokens"
        )
        yield (
            "capacity: the most assignments that an expert takes, over its share under even "
            "routing. dropped: the share of assignments beyond it. first, last: of those in the "
            f"first and last tenth of {of}, where tokens that come first are served first."
        )
    if result.expert_choice:
        yield (
            "unserved: tokens that no expert would take if experts chose the tokens of their "
            "highest probability, at the same capacity."
        )
    if any(loss.value is not None for loss in result.losses[:3]):
        yield (
            "auxiliary loss: without its coefficient. even: of a uniform random router; of zero "
            "logits for z-loss."
        )


def _name(layer: LayerBalance) -> str:
    return f"{format_stack(layer.stack)}layer {layer.layer}"


def _name_hot(layer: LayerBalance) -> str:
    shown = " ".join(f"E{hot.expert}" for hot in layer.hot[:_HOT_SHOWN])
    num_more = len(layer.hot) - _HOT_SHOWN
    return f"{shown} +{num_more}" if num_more > 0 else shown or _UNKNOWN


def _times_range(violations: Sequence[float]) -> str:
    least, most = _times(min(violations)), _times(max(violations))
    return least if least == most else f"{least} to {most}"


def _times(violation: float | None) -> str:
    return _UNKNOWN if violation is None else f"{1 + violation:.2f}"


def _share(share: float | None) -> str:
    return _UNKNOWN if share is None else word_share(share)


def _format(value: float | None, spec: str) -> str:
    return _UNKNOWN if value is None else format(value, spec)


def render_json(result: Balance, view: View = DEFAULT_VIEW) -> str:
    """Return everything as one JSON object, numbers unrounded and unknown values as null."""
    del view
    return envelope.render_json("moetool.balance/1", result.to_dict())


def render_csv(result: Balance, _: View = DEFAULT_VIEW) -> str:
    """Return one row per layer and part: all tokens, each group, each phase."""
    return envelope.render_rows([result])


RENDERERS: Renderers[Balance] = {
    ReportFormat.TABLE: render_table_text,
    ReportFormat.JSON: render_json,
    ReportFormat.CSV: render_csv,
}
