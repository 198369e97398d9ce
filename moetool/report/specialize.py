"""How far experts specialize by domain: as a table, JSON or CSV."""

from __future__ import annotations

import csv
import io
import json
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import asdict, fields

import moetool
from moetool.analysis.lift import DomainExpert, find_most_lifted
from moetool.analysis.specialization import Specialization
from moetool.printable import escape_json, printable
from moetool.report.text.numbers import format_p_value, format_place, format_stack
from moetool.report.text.tables import WIDTH, render_table

_EXPERTS_SHOWN = 3
_ENOUGH_PROMPTS = 20
_DOMAINS_NAMED = 12
_LONGEST_NOTE = 1000
_UNKNOWN = "–"


def render_table_text(result: Specialization, *, trace: str) -> str:
    """Return both tables and how to read them."""
    del trace
    even = sorted({cell.even_share for cell in result.experts})
    shares = " or ".join(f"{share:.1%}" for share in even)
    notes = [
        "MI: mutual information of expert and domain, over assignments. permuted: its mean "
        f"over {result.num_permutations} permutations of the prompts' labels. excess: the "
        "difference, also as a part of the domains' entropy. p: how often a permutation "
        "reaches MI.",
        "share: part of the domain's tokens that the expert gets; even routing gives "
        f"{shares}. lift: that share over the expert's share of all tokens. 95%: its "
        "interval, of each lift by itself, if the prompts are a sample of their domains. Shown "
        "are the experts whose interval lies above 1, ordered by its lower limit.",
        "A randomly initialised model is significant too: random routers route by vocabulary, "
        "and domains differ in vocabulary. p shows that the routing differs between domains, "
        "not that the model has learned it.",
        *_warn_of_few_prompts(result),
        *(printable(note, max_length=_LONGEST_NOTE) for note in result.notes),
    ]
    wrapped = [line for note in notes for line in textwrap.wrap(note, WIDTH)]
    return "\n".join([_render_layers(result), "", _render_domains(result), "", *wrapped, ""])


def _render_layers(result: Specialization) -> str:
    return render_table(
        ("layer", "MI (nats)", "permuted", "excess", "of H(domain)", "p"),
        [
            (
                f"{format_stack(layer.stack)}{layer.layer}",
                _format(layer.mutual_information_nats, ".4f"),
                _format(layer.null_nats, ".4f"),
                _format(layer.excess_nats, ".4f"),
                _format(layer.normalized, ".1%"),
                _UNKNOWN
                if layer.p_value is None
                else format_p_value(layer.p_value, num_permutations=result.num_permutations),
            )
            for layer in result.layers
        ],
        right=(1, 2, 3, 4, 5),
    )


def _render_domains(result: Specialization) -> str:
    """Return a table with a line for each domain's first over-represented experts."""
    ranked = find_most_lifted(result.experts, limit=_EXPERTS_SHOWN)
    rows = []
    for size in result.domains:
        domain = (printable(size.domain), f"{size.prompts:,}", f"{size.tokens:,}")
        for cell in ranked[size.domain]:
            rows.append(
                (
                    *domain,
                    format_place(cell.stack, cell.layer, cell.expert),
                    _format(cell.share, ".0%"),
                    _format(cell.lift, ".1f"),
                    f"{_format(cell.lift_low, '.1f')}–{_format(cell.lift_high, '.1f')}",
                )
            )
            domain = ("", "", "")
        if not ranked[size.domain]:
            rows.append((*domain, "none with certainty", "", "", ""))
    headers = ("domain", "prompts", "tokens", "over-represented", "share", "lift", "95%")
    return render_table(headers, rows, right=(1, 2, 4, 5, 6))


def _format(value: float | None, spec: str) -> str:
    return _UNKNOWN if value is None else format(value, spec)


def render_json(result: Specialization, *, trace: str) -> str:
    """Return everything as one JSON object, numbers unrounded; what is unknown is null."""
    value = {
        "schema": "moetool.specialize/1",
        "moetool": moetool.__version__,
        "trace": trace,
        "num_permutations": result.num_permutations,
        "seed": result.seed,
        "domains": [asdict(size) for size in result.domains],
        "layers": [asdict(layer) for layer in result.layers],
        "experts": [asdict(cell) for cell in result.experts],
        "notes": [*_warn_of_few_prompts(result), *result.notes],
    }
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, indent=1)
    return escape_json(text) + "\n"


def render_csv(result: Specialization, *, trace: str) -> str:
    """Return one row for every domain, layer and expert."""
    del trace
    text = io.StringIO()
    rows = [asdict(cell) for cell in result.experts]
    names = [field.name for field in fields(DomainExpert)]
    writer = csv.DictWriter(text, fieldnames=names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


RENDERERS: Mapping[str, Callable[..., str]] = {
    "table": render_table_text,
    "json": render_json,
    "csv": render_csv,
}


def _warn_of_few_prompts(result: Specialization) -> list[str]:
    few = [size.domain for size in result.domains if size.prompts < _ENOUGH_PROMPTS]
    if not few:
        return []
    shown = ", ".join(printable(domain, max_length=80) for domain in few[:_DOMAINS_NAMED])
    more = f" and {len(few) - _DOMAINS_NAMED} more" if len(few) > _DOMAINS_NAMED else ""
    return [
        f"fewer than {_ENOUGH_PROMPTS} prompts in {shown}{more}: p-values are coarse there, and "
        "intervals wide."
    ]
