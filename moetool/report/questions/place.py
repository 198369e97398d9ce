"""Render a comparison of placements as a page, JSON or CSV."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.table import Table

from moetool.analysis.placement.result import (
    COACTIVATION,
    CONTIGUOUS,
    EPLB,
    Direction,
    LayerPlacement,
    MethodPlacement,
    Placement,
)
from moetool.analysis.placement.scoring import PlacementScore
from moetool.report import envelope
from moetool.report.renderer import DEFAULT_VIEW, Renderers, ReportFormat, View
from moetool.report.text.lines import make_notes, make_paragraphs
from moetool.report.text.numbers import format_stack
from moetool.report.text.page import render_page
from moetool.report.text.styles import Style, Words, style_words
from moetool.report.text.tables import make_table
from moetool.wording import format_bytes, join_words, number_of

_LAYERS_SHOWN = 16
_UNKNOWN = "–"
_NAMES: Mapping[str, str] = {CONTIGUOUS: "contiguous", EPLB: "EPLB", COACTIVATION: "co-activation"}

# Without an interval, a change is stated without a direction.
_EVENNESS = {
    Direction.DOWN: "makes batches more even",
    Direction.NONE: "leaves batches as even",
    Direction.UP: "makes batches less even",
}
_FAN_OUT = {
    Direction.DOWN: "fewer GPUs",
    Direction.NONE: "about as many GPUs",
    Direction.UP: "more GPUs",
}


def render_table_text(result: Placement, view: View = DEFAULT_VIEW) -> str:
    """Return the verdict, the methods next to each other, the layers, and how to read them."""
    blocks = (
        make_paragraphs([_say_verdict(result)], Style.STRONG),
        make_notes(result.notes, Style.WARNING),
        [_make_methods(result)],
        [_make_layers(result)],
        make_paragraphs([_say_left_out(result)], Style.MUTED),
        make_paragraphs(_explain(result), Style.MUTED),
    )
    return render_page(blocks, view)


def _say_verdict(result: Placement) -> str:
    """Return what the numbers support: the changes that are beyond chance, and those that aren't."""
    start = result.methods[CONTIGUOUS]
    if start is None or start.fan_out is None:
        return _say_loads(result)
    said = [
        f"{_NAMES[method]} {_say_changes(found, start)}"
        for method, found in reversed(list(result.methods.items()))
        if found is not None and found is not start
    ]
    return f"Against contiguous placement, {'; '.join(said)}."


def _say_changes(found: MethodPlacement, start: MethodPlacement) -> str:
    said = []
    change, load = found.batch_imbalance_change, _format(found.batch_imbalance)
    if change is not None:
        said.append(
            f"{_EVENNESS[change.verdict]} (busiest GPU {load} times the mean, not "
            f"{_format(start.batch_imbalance)})"
            if change.verdict in _EVENNESS
            else f"has a busiest GPU of {load} times the mean (not {_format(start.batch_imbalance)})"
        )
    change, reached = found.fan_out_change, _format(found.fan_out)
    if change is not None:
        said.append(
            f"sends a token to {_FAN_OUT[change.verdict]} ({reached}, not "
            f"{_format(start.fan_out)}: {change.change:+.1%})"
            if change.verdict in _FAN_OUT
            else f"sends a token to {reached} GPUs, not {_format(start.fan_out)}"
        )
    return join_words(said, last="and")


def _say_loads(result: Placement) -> str:
    """Return the imbalance of each method, where nothing else is known."""
    has_batches = result.num_batches > 0
    shown = [
        f"{_NAMES[method]} {_format(value)}"
        for method, found in result.methods.items()
        if found is not None
        and (value := found.batch_imbalance if has_batches else found.global_imbalance) is not None
    ]
    where = "In a step, on average" if has_batches else "Over all tokens"
    return f"{where}, the busiest GPU's load is this many times the mean: {', '.join(shown)}."


def _make_methods(result: Placement) -> Table:
    """Return a row for each score, and one below it for what a random router has."""
    shown = [
        ("batch max/mean", "batch_imbalance", _format),
        ("all max/mean", "global_imbalance", _format),
        ("GPUs per token", "fan_out", _format),
        ("nodes per token", "node_fan_out", _format),
        ("sent per token", "all_to_all_bytes_per_token", _format_size),
        ("between nodes", "cross_node_bytes_per_token", _format_size),
    ]
    if not _has_fan_out(result):
        shown = shown[:2]  # Counts without tokens know nothing of traffic.
    if result.cluster.num_nodes == 1:
        shown = [item for item in shown if "node" not in item[1]]
    rows: list[Sequence[Words]] = []
    for label, name, write in shown:
        scores = result.methods.values()
        rows.append(
            (
                label,
                *(style_words(write(getattr(found, name, None)), Style.STRONG) for found in scores),
            )
        )
        rows.append(
            (
                style_words(f"{label}, random", Style.MUTED),
                *(
                    style_words(write(getattr(found and found.baseline, name, None)), Style.MUTED)
                    for found in scores
                ),
            )
        )
    headers = ["", *(_NAMES[method] for method in result.methods)]
    return make_table(headers, rows, right=range(1, len(headers)))


def _make_layers(result: Placement) -> Table:
    methods = [method for method, found in result.methods.items() if found is not None]
    rows = [
        (
            f"{format_stack(layer.stack)}{layer.layer}",
            *(_say_scores(layer.scores[method]) for method in methods),
        )
        for layer in _choose_shown(result)
    ]
    headers = ["layer", *(_NAMES[method] for method in methods)]
    return make_table(headers, rows, right=range(1, len(headers)))


def _say_scores(score: PlacementScore) -> str:
    if score.fan_out is None:
        return _format(score.batch_imbalance or score.global_imbalance)
    return f"{_format(score.batch_imbalance)} · {_format(score.fan_out)}"


def _choose_shown(result: Placement) -> Sequence[LayerPlacement]:
    return result.layers[:_LAYERS_SHOWN]


def _say_left_out(result: Placement) -> str:
    left = len(result.layers) - _LAYERS_SHOWN
    if left <= 0:
        return ""
    return f"{number_of(left, 'more layer')}: --format csv lists all, --format json every slot."


def _explain(result: Placement) -> list[str]:
    cluster = result.cluster
    batch = (
        "steps of the table"
        if result.tokens_per_batch is None
        else f"batches of {number_of(result.tokens_per_batch, 'consecutive token')}"
    )
    shown = [
        f"batch max/mean: load of the busiest GPU over the mean of all, averaged over {batch}; 1 is "
        "even, and a layer waits for its busiest GPU. all max/mean: the same of all tokens "
        "together, which hides that batches differ. random: the same placement under a "
        "router that chooses at random.",
    ]
    if _has_fan_out(result):
        shown.append(
            "GPUs per token: those that its experts are on, a mean over layers; in the lower table "
            "after batch max/mean. sent per token: bytes to GPUs other than its own and back, over "
            "all layers: 2 × other GPUs × hidden size × bytes of a value."
        )
    if cluster.num_redundant_experts:
        shown.append("An expert with replicas serves each token from one of them at random.")
    return shown


def _has_fan_out(result: Placement) -> bool:
    start = result.methods[CONTIGUOUS]
    return start is not None and start.fan_out is not None


def render_vllm_advice(result: Placement) -> str:
    """Return the settings of vLLM that suit the trace."""
    start = "No release of vLLM reads a placement from a file."
    advice = result.vllm
    if advice is None:
        return f"{start} Batches are needed to advise on its settings: give a longer trace."
    tried = ", ".join(
        f"{number}: {value:.2f}" for number, value in advice.imbalance_by_redundant.items()
    )
    eplb = (
        "--enable-expert-parallel --enable-eplb --eplb-config "
        f"'{{\"num_redundant_experts\": {advice.num_redundant_experts}}}'"
    )
    strategies = [f"{name} {value:.2f}" for name, value in advice.imbalance_by_strategy.items()]
    without = (
        f" Without EPLB: --expert-placement-strategy {advice.expert_placement_strategy} "
        f"({join_words(strategies, last='and')}); vLLM takes round_robin only for models with "
        "groups of experts."
        if strategies
        else ""
    )
    return (
        f"{start} Its own EPLB suits this trace with {eplb} (batch max/mean by redundant experts: "
        f"{tried}).{without}"
    )


def _format(value: float | None) -> str:
    return _UNKNOWN if value is None else f"{value:.2f}"


def _format_size(value: float | None) -> str:
    return _UNKNOWN if value is None else format_bytes(round(value))


def render_json(result: Placement, view: View = DEFAULT_VIEW) -> str:
    """Return everything as one JSON object, numbers unrounded and unknown values as null."""
    del view
    return envelope.render_json("moetool.place/1", result.to_dict())


def render_csv(result: Placement, _: View = DEFAULT_VIEW) -> str:
    """Return one row per layer and method."""
    return envelope.render_rows([result])


RENDERERS: Renderers[Placement] = {
    ReportFormat.TABLE: render_table_text,
    ReportFormat.JSON: render_json,
    ReportFormat.CSV: render_csv,
}
