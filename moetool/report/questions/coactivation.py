"""Render co-activation as tables, JSON or CSV."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.table import Table
from rich.text import Text

from moetool.analysis.coactivation.result import (
    Coactivation,
    ExpertPair,
    GroupSummary,
    LayerCoactivation,
)
from moetool.printable import printable
from moetool.report import envelope
from moetool.report.renderer import DEFAULT_VIEW, Renderers, ReportFormat, View
from moetool.report.text.lines import make_paragraphs
from moetool.report.text.numbers import format_stack
from moetool.report.text.page import Block, render_page
from moetool.report.text.styles import Style, Words, style_words
from moetool.report.text.tables import Cell, Items, make_table
from moetool.wording import number_of

_LAYERS_SHOWN = 30
_GROUPS_SHOWN = 12
_STRONGEST_SHOWN = 3
# In a column of numbers; a word would widen it.
_UNKNOWN = "–"


def render_table_text(result: Coactivation, view: View = DEFAULT_VIEW) -> str:
    """Return a verdict, a table of layers and one of predictions, and how to read them."""
    blocks: list[Block] = [make_paragraphs(_make_verdict(result))]
    with_pairs = [layer for layer in result.layers if layer.num_pairs]
    if with_pairs:
        blocks.append([_make_layers(with_pairs[:_LAYERS_SHOWN])])
    with_groups = [layer for layer in with_pairs if layer.expert_groups]
    if with_groups:
        blocks.append([_make_expert_groups(with_groups[:_LAYERS_SHOWN])])
    with_next = [
        layer for layer in result.layers if layer.next_layer and layer.next_layer.prediction
    ]
    groups = result.summarize_groups()
    if with_next:
        blocks.append([_make_predictions(with_next[:_LAYERS_SHOWN])])
    if with_pairs and groups:
        blocks.append([_make_groups(result.by, groups[:_GROUPS_SHOWN])])
    blocks += [
        make_paragraphs(_describe_cuts(result, len(groups)), Style.MUTED),
        make_paragraphs(result.notes, Style.WARNING),
        make_paragraphs(_make_legend(with_pairs, with_next, has_groups=bool(groups)), Style.MUTED),
    ]
    return render_page(blocks, view)


def _make_verdict(result: Coactivation) -> Iterator[Text]:
    answer = result.verdict
    pairs, above, below = answer.num_pairs, answer.num_above, answer.num_below
    if not pairs:
        verdict = "No decision chooses two experts: there are no pairs."
    elif not answer.is_tested:
        verdict = "Whether pairs of experts go together is unknown: no pair could be tested."
    elif not above and not below:
        verdict = (
            f"None of {number_of(pairs, 'pair')} of experts differs for certain from what the "
            "experts' loads explain."
        )
    else:
        verdict = (
            f"Of {number_of(pairs, 'pair')} of experts, {above:,} are chosen together more often "
            f"than the experts' loads explain, and {below:,} less often."
        )
    yield style_words(verdict, Style.STRONG)
    if result.hit_rate is not None and result.popularity is not None and result.baseline:
        helps = "predict" if answer.does_predict else "don't help to predict"
        yield style_words(
            f"A layer's experts {helps} the next layer's: they find {result.hit_rate:.0%} of them; "
            f"the most popular experts are {result.popularity:.0%}, random ones "
            f"{result.baseline.hit_rate:.0%}.",
            Style.STRONG,
        )


def _make_layers(layers: Sequence[LayerCoactivation]) -> Table:
    rows: list[tuple[Words, ...]] = []
    for layer in layers:
        pair = layer.surest_pair
        baseline = layer.baseline
        strongest: tuple[Words, ...] = ("none", "", "", "", "")
        if pair is not None:
            strongest = (
                _name_pair(pair),
                f"{pair.count:,}",
                style_words(f"{pair.lift:.2f}", Style.STRONG),
                f"{_format(pair.lift_low)}–{_format(pair.lift_high)}",
                _format(pair.expected_lift),
            )
        rows.append(
            (
                f"{format_stack(layer.stack)}{layer.layer}",
                f"{layer.num_above:,} of {layer.num_pairs:,}",
                f"{layer.num_below:,}",
                *strongest,
                _format(baseline.lift if baseline else None),
                _format(baseline.strongest_lift if baseline else None),
            )
        )
    headers = (
        "layer",
        "above",
        "below",
        "strongest",
        "count",
        "lift",
        "95%",
        "loads",
        "random",
        "max",
    )
    return make_table(headers, rows, right=(1, 2, 4, 5, 6, 7, 8, 9))


def _make_expert_groups(layers: Sequence[LayerCoactivation]) -> Table:
    rows = [
        (
            f"{format_stack(layer.stack)}{layer.layer}" if not number else "",
            " ".join(f"E{expert}" for expert in group.experts),
            style_words(f"{group.share_of_pairs:.1%}", Style.STRONG),
            f"{group.loads.share_of_pairs:.1%}",
            f"{group.baseline.share_of_pairs:.1%}",
        )
        for layer in layers
        for number, group in enumerate(layer.expert_groups[: _count_groups(layers)])
    ]
    headers = ("layer", "group of experts", "of all pairs", "loads", "random")
    return make_table(headers, rows, right=(2, 3, 4))


def _count_groups(layers: Sequence[LayerCoactivation]) -> int:
    """Return how many groups of a layer are shown: more if there are few layers."""
    return max(1, _LAYERS_SHOWN // (2 * len(layers)))


def _make_predictions(layers: Sequence[LayerCoactivation]) -> Table:
    rows: list[tuple[Words, ...]] = []
    for layer in layers:
        following = layer.next_layer
        assert following is not None
        prediction = following.prediction
        assert prediction is not None
        low, high = prediction.gain_low, prediction.gain_high
        more = following.prefetch[1] if len(following.prefetch) > 1 else None
        rows.append(
            (
                f"{format_stack(layer.stack)}{layer.layer} → {following.layer}",
                style_words(f"{prediction.hit_rate:.1%}", Style.STRONG),
                f"{prediction.popularity:.1%}",
                f"{prediction.baseline.hit_rate:.1%}",
                _UNKNOWN
                if low is None or high is None
                else f"{low * 100:+.1f} to {high * 100:+.1f}",
                f"{more.hit_rate:.1%}" if more else _UNKNOWN,
                f"{more.popularity:.1%}" if more else _UNKNOWN,
            )
        )
    headers = (
        *("layers", "predicted", "popular", "random", "gain (95%)"),
        *("2 × as many", "popular"),
    )
    return make_table(headers, rows, right=range(1, 7))


def _make_groups(by: str, groups: Sequence[GroupSummary]) -> Table:
    """Return a table of the strongest pairs of each group of tokens."""
    rows: list[tuple[Cell, ...]] = [
        (
            printable(group.group, max_length=40),
            f"{group.num_tokens:,}",
            Items(
                tuple(
                    f"{format_stack(layer.stack)}L{layer.layer}.{_name_pair(pair)} "
                    f"{_word_lift(pair)}"
                    for layer, pair in group.pairs[:_STRONGEST_SHOWN]
                )
                or ("none",)
            ),
        )
        for group in groups
    ]
    return make_table((printable(by), "tokens", "strongest pairs"), rows, right=(1,))


def _word_lift(pair: ExpertPair) -> str:
    if pair.is_significant is None:
        return f"{pair.lift:.1f} ({pair.count:,})"
    return f"{pair.lift:.1f} ({_format(pair.lift_low, '.1f')}–{_format(pair.lift_high, '.1f')})"


def _describe_cuts(result: Coactivation, num_groups: int) -> Iterator[str]:
    if len(result.layers) > _LAYERS_SHOWN:
        yield (
            f"The first {_LAYERS_SHOWN} layers of {len(result.layers)} are shown; --layers chooses "
            "others, and --format json has all."
        )
    if num_groups > _GROUPS_SHOWN:
        yield (
            f"The first {_GROUPS_SHOWN} groups of {num_groups:,} are shown; --format json has all."
        )


def _make_legend(
    with_pairs: Sequence[LayerCoactivation],
    with_next: Sequence[LayerCoactivation],
    *,
    has_groups: bool,
) -> Iterator[str]:
    if with_pairs:
        yield (
            "above, below: pairs whose lift differs from that of a router with the same loads, at "
            "a false discovery rate of 5%, with the prompts as the sample. strongest: of the pairs "
            "above in the JSON list, that whose interval begins highest. count: decisions that "
            "choose both. lift: decisions that "
            "choose both, over those expected if each expert were chosen independently. 95%: its "
            "interval. loads: the lift of a router with the same loads that chooses at random "
            "otherwise. random: that of a uniform random router, which is below 1 because experts "
            "of one decision exclude each other. max: the largest lift that such a router reaches "
            "in as many decisions, in half of all cases."
        )
        yield (
            "group of experts: every two of them are above; joined by complete linkage. of all "
            "pairs: share of the pairs that decisions choose which are within the group. loads, "
            "random: the same under these routers."
        )
    if with_next:
        yield (
            "predicted: share of the next layer's experts among the top-k that a linear predictor "
            "finds, fitted on half of the prompts and scored on the others. popular: the same for "
            "the experts that are chosen most, random: for a random set. gain: predicted minus "
            "popular, in percentage points, with the scored prompts as the sample. 2 × as many: "
            "the same if 2 × top-k experts are fetched. This is what prefetching by a layer's "
            "experts alone can expect; a predictor that reads hidden states may do better."
        )
    if with_pairs and has_groups:
        yield (
            "strongest pairs: those above within the group, with their lift there and its 95% "
            "interval; where groups are not tested, those of the largest lift, with their count."
        )


def _name_pair(pair: ExpertPair) -> str:
    return f"E{pair.experts[0]}+E{pair.experts[1]}"


def _format(value: float | None, spec: str = ".2f") -> str:
    return _UNKNOWN if value is None else format(value, spec)


def render_json(result: Coactivation, _: View = DEFAULT_VIEW) -> str:
    """Return everything except the whole matrices as one JSON object, numbers unrounded."""
    return envelope.render_json("moetool.coactivation/1", result.to_dict())


def render_csv(result: Coactivation, _: View = DEFAULT_VIEW) -> str:
    """Return one row for each pair of a layer, then one for each pair with the next layer."""
    return "".join(iter_csv(result))


def iter_csv(result: Coactivation) -> Iterator[str]:
    """Yield the same CSV in parts: whole, that of a large model would take gigabytes of memory."""
    return envelope.iter_csv(result.iter_rows(), list(result.column_types()))


RENDERERS: Renderers[Coactivation] = {
    ReportFormat.TABLE: render_table_text,
    ReportFormat.JSON: render_json,
    ReportFormat.CSV: render_csv,
}
