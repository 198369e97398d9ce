"""Render the specialization of experts by domain as tables, JSON or CSV."""

from __future__ import annotations

from rich.table import Table

from moetool.analysis.specialization.lift import DomainExpert
from moetool.analysis.specialization.measure import Specialization
from moetool.printable import printable
from moetool.report import envelope
from moetool.report.renderer import DEFAULT_VIEW, Renderers, ReportFormat, View
from moetool.report.text.lines import make_paragraphs
from moetool.report.text.numbers import format_p_value, format_place, format_stack
from moetool.report.text.page import render_page
from moetool.report.text.styles import Style, Words, style_words
from moetool.report.text.tables import make_table

_EXPERTS_SHOWN = 3
# In a column of numbers; a word would widen it.
_UNKNOWN = "–"


def render_table_text(result: Specialization, view: View = DEFAULT_VIEW) -> str:
    """Return both tables, what to know about them, and how to read them."""
    even = sorted({cell.even_share for cell in result.experts})
    shares = " or ".join(f"{share:.1%}" for share in even)
    listed = next((cells[0] for cells in result.most_lifted.values() if cells), None)
    legend = [
        "MI: mutual information between expert and domain, over assignments. permuted: its mean "
        f"over {result.num_permutations} permutations of the prompts' labels. excess: the "
        "difference, also as a fraction of the domains' entropy. p: how often a permutation "
        "reaches MI.",
        f"{_explain_place(listed)}share: fraction of the domain's tokens that the expert gets; even "
        f"routing gives {shares}. lift: that share over the expert's share of all tokens. 95%: the interval of "
        "each single lift, if the prompts are a sample of their domains. The experts shown have "
        "an interval above 1, and are ordered by its lower limit.",
        "A randomly initialised model is significant too: random routers route by vocabulary, "
        "and domains differ in vocabulary. p shows that routing differs between domains, not "
        "that the model has learned it.",
    ]
    blocks = (
        [_make_layers(result)],
        [_make_domains(result)],
        make_paragraphs(result.notes, Style.WARNING),
        make_paragraphs(legend, Style.MUTED),
    )
    return render_page(blocks, view)


def _make_layers(result: Specialization) -> Table:
    return make_table(
        ("layer", "MI (nats)", "permuted", "excess", "of H(domain)", "p"),
        [
            (
                f"{format_stack(layer.stack)}{layer.layer}",
                _format(layer.mutual_information_nats, ".4f"),
                _format(layer.null_nats, ".4f"),
                style_words(_format(layer.excess_nats, ".4f"), Style.STRONG),
                _format(layer.normalized, ".1%"),
                _UNKNOWN
                if layer.p_value is None
                else format_p_value(layer.p_value, num_permutations=result.num_permutations),
            )
            for layer in result.layers
        ],
        right=(1, 2, 3, 4, 5),
    )


def _make_domains(result: Specialization) -> Table:
    """Return a table of each domain's most over-represented experts."""
    rows: list[tuple[Words, ...]] = []
    for size in result.domains:
        domain = (printable(size.domain), f"{size.prompts:,}", f"{size.tokens:,}")
        shown = result.most_lifted[size.domain][:_EXPERTS_SHOWN]
        for cell in shown:
            rows.append(
                (
                    *domain,
                    format_place(cell.stack, cell.layer, cell.expert),
                    _format(cell.share, ".0%"),
                    style_words(_format(cell.lift, ".1f"), Style.STRONG),
                    f"{_format(cell.lift_low, '.1f')}–{_format(cell.lift_high, '.1f')}",
                )
            )
            domain = ("", "", "")
        if not shown:
            rows.append((*domain, "none for certain", "", "", ""))
    headers = ("domain", "prompts", "tokens", "over-represented", "share", "lift", "95%")
    return make_table(headers, rows, right=(1, 2, 4, 5, 6))


def _explain_place(cell: DomainExpert | None) -> str:
    """Return the meaning of an expert's short name, if one is shown."""
    if cell is None:
        return ""
    place = format_place(cell.stack, cell.layer, cell.expert)
    return f"{place}: expert {cell.expert} of {format_stack(cell.stack)}layer {cell.layer}. "


def _format(value: float | None, spec: str) -> str:
    return _UNKNOWN if value is None else format(value, spec)


def render_json(result: Specialization, view: View = DEFAULT_VIEW) -> str:
    """Return everything as one JSON object, numbers unrounded and unknown values as null."""
    payload = result.to_dict()
    if view.source is not None:
        payload["trace"] = view.source
    return envelope.render_json("moetool.specialize/1", payload)


def render_csv(result: Specialization, _: View = DEFAULT_VIEW) -> str:
    """Return one row per domain, layer and expert."""
    return envelope.render_rows([result])


RENDERERS: Renderers[Specialization] = {
    ReportFormat.TABLE: render_table_text,
    ReportFormat.JSON: render_json,
    ReportFormat.CSV: render_csv,
}
