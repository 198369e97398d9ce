"""Inspections for a terminal: never over eighty columns, with sums that are checked."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from moetool.anatomy.parameters import ActiveDefinition, ActiveRange
from moetool.report.inspect.data import render_table_text
from moetool.report.renderer import View
from tests.report.inspect.inspections import FILES, make_inspection, make_reported, make_table

TERMINAL = View(width=80)

WIDTH = 80


def test_a_small_model_is_shown_like_this() -> None:
    inspection = make_inspection(notes=("A note that is long enough to be cut: " + "so " * 14,))
    assert render_table_text([inspection], TERMINAL) == (
        """\
model       small-4x
source      its configuration
total       5.223M            5,223,300
active      1.623M            1,623,300   all: 31.1% of the total
            1.523M            1,523,300   without input embedding
            1.423M            1,423,300   without embedding and head
layers      4, 3 of them with experts
experts     top-2 of 8
as loaded   10.0 MiB in bfloat16
prefill     2.000M FLOPs per token (of 2,048), 25.0% of a dense model's
decode      2.500M FLOPs per token, 25.0% of a dense model's

component        parameters   share   of the total           active
───────────────────────────────────────────────────────────────────
embedding            100.0K    1.9%   ▍                      100.0K
lm head              100.0K    1.9%   ▍                      100.0K
mixer                160.0K    3.1%   ▋                      160.0K
router               2.400K   <0.1%                          2.400K
routed experts       4.800M   91.9%   ██████████████████▍    1.200M
dense mlp            60.00K    1.1%   ▎                      60.00K
norm                    900   <0.1%                             900

A note that is long enough to be cut: so so so so so so so so so so so so so
  so
"""
    )


def test_layers_that_are_alike_are_drawn_together() -> None:
    text = render_table_text([make_inspection(num_layers=62)], View(width=80, per_layer=True))
    assert (
        """
layers   component        parameters   active   dtype          bytes
────────────────────────────────────────────────────────────────────
–        embedding           100,000   100.0K   bfloat16   195.3 KiB
         norm                    100      100   bfloat16   200 bytes
         lm head             100,000   100.0K   bfloat16   195.3 KiB
0        mixer                40,000   40.00K   bfloat16    78.1 KiB
         dense mlp            60,000   60.00K   bfloat16   117.2 KiB
         norm                    200      200   bfloat16   400 bytes
1-61     mixer                40,000   40.00K   bfloat16    78.1 KiB
         router                  800      800   bfloat16     1.6 KiB
         routed experts    1,600,000   400.0K   bfloat16     3.1 MiB
         norm                    200      200   bfloat16   400 bytes
Numbers are for one layer; dtype and bytes: as loaded.
"""
        in text
    )


def test_files_and_differences_are_shown_like_this() -> None:
    text = render_table_text([make_inspection(files=FILES)], TERMINAL)
    assert (
        """
on disk     10.0 MiB in 1 file, 40 tensors: 9.9 MiB bfloat16, 87.9 KiB float32
"""
        in text
    )
    assert (
        """
files and model differ in                         in files   in model      bytes
────────────────────────────────────────────────────────────────────────────────
biases that select experts, which transformers          24          0   96 bytes
keeps as buffers
"""
        in text
    )


def test_a_reported_system_is_shown_like_this() -> None:
    assert render_table_text([make_reported()], View(width=80, per_layer=True)) == (
        """\
model       closed-1
source      reports only
total       1.6–1.8T, reported
active      unknown, reported
experts     16, top-2, reported
reported by press reports of 2023

Reported, never computed.
Unconfirmed.
"""
    )


def _count_layers(words: str) -> int:
    """Return the number of layers that words like `0-2, 5, 7, …, 13` stand for."""
    if words == "–":
        return 1
    parts = words.split(", ")
    number = 0
    for index, part in enumerate(parts):
        first, _, last = part.partition("-")
        if part == "…":
            step = int(parts[index - 1]) - int(parts[index - 2])
            number += (int(parts[index + 1]) - int(parts[index - 1])) // step - 1
        else:
            number += int(last or first) - int(first) + 1
    return number


def _add_up(text: str) -> int:
    """Return the sum of the printed parameters, each times the number of layers it stands for."""
    header, _, *lines = text[
        text.index("\nlayers  ", text.index("\ncomponent ")) + 1 :
    ].splitlines()
    start = header.index("component")
    groups: list[tuple[str, int]] = []
    for line in lines:
        if line.startswith("Numbers are"):
            break
        place = line[:start].strip()
        counts = re.findall(r"^\D*?([\d,]+) ", line[start:])
        number = int(counts[0].replace(",", "")) if counts else 0
        if place and not (groups and groups[-1][0].endswith(",")):
            groups.append((place, number))
        else:
            words, before = groups.pop()
            groups.append((f"{words} {place}".strip(), before + number))
    return sum(_count_layers(words) * number for words, number in groups)


@pytest.mark.parametrize("num_layers", [1, 2, 3, 61])
def test_the_printed_column_adds_up_to_the_printed_total(num_layers: int) -> None:
    text = render_table_text(
        [make_inspection(num_layers=num_layers)], View(width=80, per_layer=True)
    )
    (total,) = re.findall(r"^total +\S+ +([\d,]+)$", text, re.MULTILINE)
    assert _add_up(text) == int(total.replace(",", "")) == make_table(num_layers=num_layers).total


def test_layers_in_a_pattern_are_counted_once_each() -> None:
    inspection = make_inspection(num_layers=31)
    rows = tuple(
        replace(row, params=row.params + 7)
        if row.component == "mixer" and row.layer is not None and row.layer % 3 == 0
        else row
        for row in inspection.rows
        if row.params is not None
    )
    text = render_table_text([replace(inspection, rows=rows)], View(width=80, per_layer=True))
    assert "\n3, 6, …, 30 " in text
    assert _add_up(text) == make_table(num_layers=31).total + 11 * 7


def test_shares_of_the_total_add_up_to_all_of_it() -> None:
    text = render_table_text([make_inspection()], TERMINAL)
    shares = [float(share) for share in re.findall(r" (\d+\.\d)% +[█▏▎▍▌▋▊▉]", text)]
    assert len(shares) == 5
    assert abs(sum(shares) - 100) < 0.5


def test_what_is_unknown_is_said_to_be() -> None:
    parameters = make_inspection().parameters
    assert parameters is not None
    unknown = replace(
        parameters,
        total=None,
        active=dict.fromkeys(ActiveDefinition),
        expert_share=None,
        sparsity=None,
        num_bytes=None,
        is_tied=None,
    )
    inspection = make_inspection(parameters=unknown, top_k=None, num_experts=(8, None), flops=None)
    text = render_table_text([inspection], TERMINAL)
    assert "\ntotal       unknown\n" in text
    assert "\nactive      unknown" in text
    assert "\nexperts     unknown top-k of 8, some unknown\n" in text
    assert "FLOPs" not in text
    assert "None" not in text + render_table_text([inspection, inspection], TERMINAL)


def test_a_range_of_active_parameters_shows_both_ends() -> None:
    parameters = make_inspection().parameters
    assert parameters is not None
    active = {**parameters.active, ActiveDefinition.ALL: ActiveRange(723_300, 1_623_300)}
    ranged = make_inspection(parameters=replace(parameters, active=active, sparsity=None))
    text = render_table_text([ranged], TERMINAL)
    assert re.search(r"^active +723\.3K to 1\.623M +all$", text, re.MULTILINE)


# Anything at all
