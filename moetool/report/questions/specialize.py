"""Render the specialization of experts by domain as tables, JSON or CSV."""

from __future__ import annotations

from rich.console import RenderableType

from moetool.analysis.specialization.lift import DomainExpert
from moetool.analysis.specialization.result import Specialization
from moetool.analysis.specialization.verdict import find_strongest_lifts
from moetool.report import envelope
from moetool.report.questions.specialization.tables import (
    make_divergences,
    make_domains,
    make_layers,
    make_repetition,
    make_vocabulary,
    word_domains_left_out,
    word_left_out,
)
from moetool.report.questions.specialization.verdict import (
    name_group,
    name_groups,
    word_verdict,
)
from moetool.report.renderer import DEFAULT_VIEW, Renderers, ReportFormat, View
from moetool.report.text.heat_map import ABOVE_ONE, HeatMap, MapLayer, suits_map
from moetool.report.text.lines import make_paragraphs
from moetool.report.text.numbers import format_place, format_stack
from moetool.report.text.page import render_page
from moetool.report.text.styles import Style

# Of even routing, of which each layer may have another.
_SHARES_LISTED = 3


def render_table_text(result: Specialization, view: View = DEFAULT_VIEW) -> str:
    """Return the verdict, the tables, what to know about them, and how to read them."""
    vocabulary, divergences = make_vocabulary(result), make_divergences(result)
    repetition = make_repetition(result)
    legend = [
        _explain_information(result),
        _explain_vocabulary(result) if vocabulary else "",
        _explain_experts(result),
        _explain_divergences(result) if divergences else "",
        _explain_repetition() if repetition else "",
    ]
    blocks = (
        make_paragraphs(word_verdict(result)),
        _map_lifts(result, view),
        [make_layers(result)],
        [vocabulary] if vocabulary else [],
        [make_domains(result)],
        [divergences] if divergences else [],
        [repetition] if repetition else [],
        make_paragraphs(
            [word_left_out(len(result.layers)), word_domains_left_out(result)], Style.MUTED
        ),
        make_paragraphs(result.notes, Style.WARNING),
        make_paragraphs(legend, Style.MUTED),
    )
    return render_page(blocks, view)


def _map_lifts(result: Specialization, view: View) -> list[RenderableType]:
    if not result.verdict.num_domain_experts or not suits_map(view):
        return []
    layers = [
        MapLayer(each.stack, each.layer, each.lifts)
        for each in find_strongest_lifts(result.layers, result.experts)
    ]
    title = f"lift of each expert in the {name_group(result)} that prefers it most, at q ≤ 5%"
    return [HeatMap(title, layers, ABOVE_ONE, by="max")]


def _explain_information(result: Specialization) -> str:
    group = name_group(result)
    return (
        f"MI: mutual information between expert and {group}, over assignments. permuted: its mean "
        f"over {result.num_permutations} permutations of the prompts' labels. excess: the "
        f"difference, also as a fraction of the entropy of {group}. p: how often a permutation "
        "reaches MI."
    )


def _explain_vocabulary(result: Specialization) -> str:
    group, groups = name_group(result), name_groups(result)
    shared = max(layer.shared_share or 0 for layer in result.layers)
    return (
        f"MI | token: the same given the token id, for the {shared:.0%} of tokens whose id occurs "
        f"in several {groups}. chance: its mean if {groups} trade places among prompts that use "
        f"the id about as often. of H: excess as a fraction of H({group} | token id). same, other: "
        f"experts that a token has in common with the same token in another prompt, of its {group} "
        "and of another; a router that looks at the token alone gives both the same value. p: how "
        "often random signs of the prompts reach the difference."
    )


def _explain_experts(result: Specialization) -> str:
    ordered = sorted({cell.even_share for cell in result.experts})
    even = list(dict.fromkeys(f"{share:.1%}" for share in ordered))
    shares = " or ".join(even) if len(even) <= _SHARES_LISTED else f"{even[0]} to {even[-1]}"
    listed = next((cells[0] for cells in result.most_lifted.values() if cells), None)
    return (
        f"{_explain_place(listed)}share: fraction of the {name_group(result)}'s tokens that the "
        f"expert gets; even routing gives {shares}. elsewhere: the share that the same token ids give "
        f"it in other {name_groups(result)}. lift: that share over the expert's share of "
        "all tokens. 95%: the interval of each single lift, if the prompts are a sample. q: the "
        "rate of false discoveries among all experts of all layers that are at least as sure. The "
        "experts shown have q ≤ 5% and an interval above 1, and are ordered by its lower limit."
    )


def _explain_divergences(result: Specialization) -> str:
    return (
        f"divergence: Jensen-Shannon divergence between two {name_groups(result)} in nats, from 0 "
        "(the same use of experts) to 0.693 (none in common); the mean over layers, less what "
        "permuting the labels of both gives."
    )


def _explain_repetition() -> str:
    return (
        "repeated: share of consecutive tokens with the same first choice, and with any expert in "
        "common. shuffled: the same for tokens in random order. random: for a uniform random "
        "router that runs as many experts."
    )


def _explain_place(cell: DomainExpert | None) -> str:
    """Return the meaning of an expert's short name, if one is shown."""
    if cell is None:
        return ""
    place = format_place(cell.stack, cell.layer, cell.expert)
    return f"{place}: expert {cell.expert} of {format_stack(cell.stack)}layer {cell.layer}. "


def render_json(result: Specialization, _: View = DEFAULT_VIEW) -> str:
    """Return everything as one JSON object, numbers unrounded and unknown values as null."""
    return envelope.render_json("moetool.specialize/1", result.to_dict())


def render_csv(result: Specialization, _: View = DEFAULT_VIEW) -> str:
    """Return one row per domain, layer and expert."""
    return envelope.render_rows([result])


RENDERERS: Renderers[Specialization] = {
    ReportFormat.TABLE: render_table_text,
    ReportFormat.JSON: render_json,
    ReportFormat.CSV: render_csv,
}
