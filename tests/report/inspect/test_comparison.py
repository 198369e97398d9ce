"""Several inspections side by side: no label folds, and blocks are as wide as fits."""

from __future__ import annotations

import pytest

from moetool.inspection.figures import PublishedFigures
from moetool.report.inspect.data import render_table_text
from moetool.report.renderer import View
from tests.report.inspect.inspections import make_inspection, make_reported

TERMINAL = View(width=80)

LABELS = [
    *("source", "total", "active, all", "  without input embedding"),
    *("  without embedding and head", "active / total", "routed experts / total", "layers"),
    *("layers with experts", "experts", "top-k", "shared experts", "prefill FLOPs per token"),
    *("decode FLOPs per token", "bytes, unquantized"),
]


def render(*names: str) -> str:
    return render_table_text([make_inspection(model=name) for name in names], TERMINAL)


def test_two_models_are_shown_like_this() -> None:
    published = PublishedFigures(
        total_b="0.005",
        active_b=None,
        meets_total=True,
        meets_active=(),
        closest_active=None,
        source="model card",
        note=None,
    )
    models = [make_inspection(published=published), make_reported()]
    assert render_table_text(models, TERMINAL) == (
        """\
                               small-4x    closed-1
───────────────────────────────────────────────────
source                         skeleton    reported
total                            5.223M    1.6–1.8T
active, all                      1.623M     unknown
  without input embedding        1.523M     unknown
  without embedding and head     1.423M     unknown
active / total                    31.1%     unknown
routed experts / total            91.9%     unknown
vendor's total                   0.005B     unknown
layers                                4     unknown
layers with experts                   3     unknown
experts                               8   16, top-2
top-k                                 2     unknown
shared experts                        0     unknown
prefill FLOPs per token          2.000M     unknown
decode FLOPs per token           2.500M     unknown
bytes, unquantized             10.0 MiB     unknown

closed-1: Reported, never computed.
closed-1: Unconfirmed.
"""
    )


@pytest.mark.parametrize(
    "names",
    [
        ["one", "two", "three"],
        ["nemotron-3-ultra-550b-a55b", "llama-4-maverick-17b-128e", "deepseek-v3.2-nvfp4"],
        ["a" * 49, "b"],
        ["/a/very/long/path/" * 8, "short", "org/name-" + "x" * 90],
    ],
    ids=["short", "long", "as long as fits", "longer than a line"],
)
def test_every_label_stands_whole_on_its_line_in_every_block(names: list[str]) -> None:
    blocks = [block for block in render(*names).split("\n\n") if "source" in block]
    for block in blocks:
        lines = [line[:28].rstrip() for line in block.splitlines()]
        assert [line for line in lines if line][-len(LABELS) :] == LABELS


def test_as_many_models_stand_side_by_side_as_fit() -> None:
    assert render("a", "b", "c", "d").count("source") == 1
    assert render("a" * 14, "b" * 14, "c" * 14).count("source") == 1
    assert render("a" * 15, "b" * 15, "c" * 15).count("source") == 2
    assert render(*["a" * 30] * 4).count("source") == 4


def test_a_model_named_twice_is_shown_twice() -> None:
    header = render("same", "same").splitlines()[0]
    assert header.split() == ["same", "same"]


def test_a_row_that_no_model_has_anything_for_is_left_out() -> None:
    text = render_table_text([make_reported(), make_reported()], TERMINAL)
    labels = [line.split()[0] for line in text.split("\n\n")[0].splitlines()[2:]]
    assert labels == ["source", "total", "experts"]
