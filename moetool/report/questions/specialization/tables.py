"""Lay out the tables of a specialization by domain."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from rich.table import Table

from moetool.analysis.specialization.result import LayerSpecialization, Specialization
from moetool.printable import printable
from moetool.report.text.numbers import format_p_value, format_place, format_stack
from moetool.report.text.styles import Style, Words, style_words
from moetool.report.text.tables import make_table
from moetool.wording import number_of

# Lines of a table of layers, and of one of domains.
LAYERS_SHOWN = 12
_LINES_OF_DOMAINS = 30
_EXPERTS_SHOWN = 3
# Columns of the matrix of domains.
MOST_COMPARED = 9
# In a column of numbers; a word would widen it.
UNKNOWN = "–"

Item = TypeVar("Item")


def choose_layers(layers: Sequence[Item]) -> list[Item]:
    """Return the layers to show: all, or some from the first to the last."""
    if len(layers) <= LAYERS_SHOWN:
        return list(layers)
    last = len(layers) - 1
    return [layers[index * last // (LAYERS_SHOWN - 1)] for index in range(LAYERS_SHOWN)]


def word_left_out(num_layers: int) -> str:
    """Return how many layers are not shown, and how to see them; nothing if all are."""
    if num_layers <= LAYERS_SHOWN:
        return ""
    return (
        f"{LAYERS_SHOWN} of {number_of(num_layers, 'layer')} are shown; --layers chooses others, "
        "--format json has all."
    )


def make_layers(result: Specialization) -> Table:
    """Return a table with the information of each layer."""
    return make_table(
        ("layer", "MI (nats)", "permuted", "excess", f"of H({_name(result)})", "p"),
        [
            (
                name_layer(layer.stack, layer.layer),
                format_known(layer.mutual_information_nats, ".4f"),
                format_known(layer.null_nats, ".4f"),
                style_words(format_known(layer.excess_nats, ".4f"), Style.STRONG),
                format_known(layer.normalized, ".1%"),
                _format_p(layer.p_value, result),
            )
            for layer in choose_layers(result.layers)
        ],
        right=(1, 2, 3, 4, 5),
    )


def make_vocabulary(result: Specialization) -> Table | None:
    """Return a table of what is left when the token is known; None if that is unknown."""
    known = [layer for layer in result.layers if layer.conditional_excess_nats is not None]
    if not known:
        return None
    rows = [_list_conditional(layer, result) for layer in choose_layers(known)]
    return make_table(
        ("layer", "MI | token", "chance", "excess", "of H", "same", "other", "random", "p"),
        rows,
        right=range(1, 9),
    )


def _list_conditional(layer: LayerSpecialization, result: Specialization) -> tuple[Words, ...]:
    return (
        name_layer(layer.stack, layer.layer),
        format_known(layer.conditional_information_nats, ".4f"),
        format_known(layer.conditional_null_nats, ".4f"),
        style_words(format_known(layer.conditional_excess_nats, ".4f"), Style.STRONG),
        format_known(layer.conditional_normalized, ".1%"),
        format_known(layer.same_domain_overlap, ".0%"),
        format_known(layer.other_domain_overlap, ".0%"),
        _word_random_overlap(layer),
        _format_p(layer.conditional_p_value, result),
    )


def _word_random_overlap(layer: LayerSpecialization) -> str:
    """Return the overlap of a random router, twice where tokens of some domains run fewer experts."""
    if layer.baseline is None:
        return UNKNOWN
    same, other = (
        format_known(value, ".0%")
        for value in (layer.baseline.same_domain_overlap, layer.baseline.other_domain_overlap)
    )
    return same if same == other else f"{same}, {other}"


def make_domains(result: Specialization) -> Table:
    """Return a table of each domain's most over-represented experts."""
    rows: list[tuple[Words, ...]] = []
    shown_of_each = max(1, min(_EXPERTS_SHOWN, _LINES_OF_DOMAINS // len(result.domains)))
    for size in result.domains[:_LINES_OF_DOMAINS]:
        domain = (printable(size.domain), f"{size.prompts:,}")
        shown = [cell for cell in result.most_lifted[size.domain] if cell.is_domain_expert]
        for cell in shown[:shown_of_each]:
            rows.append(
                (
                    *domain,
                    format_place(cell.stack, cell.layer, cell.expert),
                    format_known(cell.share, ".0%"),
                    format_known(cell.share_elsewhere, ".0%"),
                    style_words(format_known(cell.lift, ".1f"), Style.STRONG),
                    f"{format_known(cell.lift_low, '.1f')}–{format_known(cell.lift_high, '.1f')}",
                    _format_q(cell.q_value),
                )
            )
            domain = ("", "")
        if not shown:
            rows.append((*domain, "none for certain", "", "", "", "", ""))
    headers = (_name(result), "prompts", "expert", "share", "elsewhere", "lift", "95%", "q")
    return make_table(headers, rows, right=(1, 3, 4, 5, 6, 7))


def word_domains_left_out(result: Specialization) -> str:
    """Return how many domains are not shown; nothing if all are."""
    number = len(result.domains)
    if number <= _LINES_OF_DOMAINS:
        return ""
    return f"{_LINES_OF_DOMAINS} of {number:,} values are shown; --format json has all."


def make_divergences(result: Specialization) -> Table | None:
    """Return a matrix of the divergence between domains; None if there are too many domains."""
    means = result.mean_divergences
    names = [size.domain for size in result.domains]
    if not means or len(names) > MOST_COMPARED:
        return None
    rows = [
        (
            f"{row} {printable(one, max_length=30)}",
            *(
                "" if column > row else _format_divergence(means, names[column - 1], one)
                for column in range(1, len(names) + 1)
            ),
        )
        for row, one in enumerate(names, start=1)
    ]
    headers = ("divergence", *(str(column) for column in range(1, len(names) + 1)))
    return make_table(headers, rows, right=range(1, len(names) + 1))


def _format_divergence(means: dict[tuple[str, str], float | None], one: str, other: str) -> str:
    return UNKNOWN if one == other else format_known(means.get((one, other)), ".3f")


def make_repetition(result: Specialization) -> Table | None:
    """Return a table of how often consecutive tokens share experts; None if unknown."""
    layers = [each for each in result.repetition if each.domain is None and each.num_pairs]
    if not layers:
        return None
    return make_table(
        ("layer", "first repeated", "shuffled", "random", "any repeated", "shuffled", "random"),
        [
            (
                name_layer(each.stack, each.layer),
                style_words(format_known(each.first, ".1%"), Style.STRONG),
                format_known(each.shuffled.first, ".1%"),
                format_known(each.baseline.first, ".1%"),
                style_words(format_known(each.any, ".1%"), Style.STRONG),
                format_known(each.shuffled.any, ".1%"),
                format_known(each.baseline.any, ".1%"),
            )
            for each in choose_layers(layers)
        ],
        right=range(1, 7),
    )


def name_layer(stack: str, layer: int) -> str:
    """Return the name of a layer in the first column."""
    return f"{format_stack(stack)}{layer}"


def format_known(value: float | None, spec: str) -> str:
    """Return a number, or a dash if it is unknown."""
    if value is None:
        return UNKNOWN
    text = format(value, spec)
    # What rounds to zero has no sign.
    return text.removeprefix("-") if not text.strip("-0.%") else text


def _format_p(value: float | None, result: Specialization) -> str:
    if value is None:
        return UNKNOWN
    return format_p_value(value, num_permutations=result.num_permutations)


def _format_q(value: float | None) -> str:
    if value is None:
        return UNKNOWN
    return "< 0.001" if value < 0.0005 else f"{value:.3f}"


def _name(result: Specialization) -> str:
    return printable(result.by, max_length=20)
