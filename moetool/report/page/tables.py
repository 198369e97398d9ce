"""Tables that the page shows without scripts: the strongest experts, and each layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

_NUM_STRONGEST = 20


@dataclass(frozen=True)
class StaticTable:
    """A table of the page.

    Attributes:
        caption: What its rows are.
        header: Names of the columns.
        rows: Texts.
    """

    caption: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def make_tables(payload: dict[str, Any]) -> list[StaticTable]:
    """Return the tables of a payload, without those that it has no values for."""
    tables = []
    if payload["specialization"]:
        tables += [_list_strongest(payload), _list_information(payload)]
    if payload["load"]:
        tables.append(_list_loads(payload))
    return [table for table in tables if table.rows]


def _list_strongest(payload: dict[str, Any]) -> StaticTable:
    cells = [
        (lift, low, high, layer["name"], expert, domain["name"])
        for layer, rows in zip(payload["layers"], payload["specialization"]["lifts"], strict=True)
        for domain, columns in zip(payload["domains"], rows, strict=True)
        for expert, (lift, low, high, sure) in enumerate(
            zip(*(columns[key] for key in ("lift", "low", "high", "certainty")), strict=True)
        )
        if sure > 0 and lift is not None
    ]
    cells.sort(key=lambda cell: -cell[0])
    return StaticTable(
        "Experts used most by one domain, relative to all tokens, beyond chance",
        ("layer", "expert", payload["by"], "lift", "95% interval"),
        tuple(
            (name, str(expert), domain, _show(lift), f"{_show(low)} to {_show(high)}")
            for lift, low, high, name, expert, domain in cells[:_NUM_STRONGEST]
        ),
    )


def _list_information(payload: dict[str, Any]) -> StaticTable:
    return StaticTable(
        f"What the choice of experts tells about the {payload['by']}",
        ("layer", f"share of H({payload['by']})", "p", "once the token is known"),
        tuple(
            (
                layer["name"],
                _show_share(each["normalized"]),
                _show(each["p_value"]),
                _show_share(each["conditional_normalized"]),
            )
            for layer, each in zip(
                payload["layers"], payload["specialization"]["information"], strict=True
            )
        ),
    )


def _list_loads(payload: dict[str, Any]) -> StaticTable:
    return StaticTable(
        "Load of the busiest expert over the mean load",
        ("layer", "busiest", "random router", "never chosen"),
        tuple(
            (
                layer["name"],
                _show(each["max_over_mean"]),
                _show(each["random_max_over_mean"]),
                str(each["num_dead"]),
            )
            for layer, each in zip(payload["layers"], payload["load"]["layers"], strict=True)
        ),
    )


def _show(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.2f}"


def _show_share(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.1%}"
