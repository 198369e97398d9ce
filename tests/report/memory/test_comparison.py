"""Several estimates: differences in columns, and common facts once above them."""

from __future__ import annotations

from dataclasses import replace

import pytest
from rich.cells import cell_len

from moetool.memory.answers.figures import Method
from moetool.memory.result import Estimate
from moetool.memory.scenario import Scenario, Task
from moetool.memory.sweep import list_scenarios
from moetool.quantized.kinds import Quantization, QuantizedExperts
from moetool.report.memory.data import render_table_text
from moetool.report.renderer import View
from tests.report.memory.estimates import (
    FIGURES,
    FITS,
    FITS_OF_SMALL,
    GIB,
    make_estimate,
    make_fit,
)

TERMINAL = View(width=80)

WIDTH = 80


def make_sweep(model: str = "small-4x") -> list[Estimate]:
    scenarios = list_scenarios(Scenario(), batch_sizes=(1, 8), prompt_tokens=(1024, 8192))
    return [
        make_estimate(
            model=model,
            scenario=scenario,
            figures=replace(FIGURES, total_device_bytes=number * 40 * GIB),
            fits=(make_fit("big", memory_gib=80, needs_gib=number * 40),),
            notes=("Of all.",),
        )
        for number, scenario in enumerate(scenarios, start=1)
    ]


def test_a_sweep_is_shown_like_this() -> None:
    assert render_table_text(make_sweep(), TERMINAL) == (
        """\
2 of 4 fit on 1 × big (80.0 GiB).

Of all.

model       small-4x
task        generate
new         256
loaded      in the configuration's dtype
method      simulated
gpu         big
weights     16.0 GiB

batch   prompt     cache   allocated       total   fits
────────────────────────────────────────────────────────────
    1    1,024   2.0 GiB    20.0 GiB    40.0 GiB   yes +40.0
    1    8,192   2.0 GiB    20.0 GiB    80.0 GiB   yes +0.01
    8    1,024   2.0 GiB    20.0 GiB   120.0 GiB   no -40.0
    8    8,192   2.0 GiB    20.0 GiB   160.0 GiB   no -80.0

cache: after the last token that runs. allocated: the peak. total: as the device
shows it. fits: on one GPU, with the GiB to spare or missing.
"""
    )


def test_models_side_by_side_have_a_row_each() -> None:
    models = [
        make_estimate(model="one", notes=("Of all.", "Its own.")),
        make_estimate(
            model="another",
            figures=replace(FIGURES, weights_bytes=GIB, total_device_bytes=None),
            fits=(),
            notes=("Of all.",),
        ),
    ]
    text = render_table_text(models, TERMINAL)
    assert (
        """
model      weights     cache   allocated      total   fits
───────────────────────────────────────────────────────────────
one       16.0 GiB   2.0 GiB    20.0 GiB   21.5 GiB   yes +58.5
another    1.0 GiB   2.0 GiB    20.0 GiB    unknown   unknown
"""
        in text
    )
    assert text.startswith("1 of 1 fit on 1 × big (80.0 GiB).\n")
    assert "\n\nOf all.\none: Its own.\n\ntask " in text


def test_several_models_in_a_sweep_have_a_table_each() -> None:
    names = ("mixtral-8x7b", "qwen3-235b-a22b", "/a/long/path" * 9)
    text = render_table_text(
        [estimate for name in names for estimate in make_sweep(name)], TERMINAL
    )
    assert text.startswith("6 of 12 fit on 1 × big (80.0 GiB).\n")
    assert text.count("\nbatch   prompt ") == 3
    for name in names[:2]:
        assert f"\n\n{name}\n\nbatch   prompt " in text
    assert text.count("no -80.0") == 3
    assert text.count("Of all.") == 1
    assert max(cell_len(line) for line in text.splitlines()) <= WIDTH


def test_each_gpu_has_a_verdict_of_its_own() -> None:
    estimates = [
        make_estimate(),
        make_estimate(gpu="small", fits=FITS_OF_SMALL),
        make_estimate(model="another"),
    ]
    text = render_table_text(estimates, TERMINAL)
    assert text.startswith(
        "2 of 2 fit on 1 × big (80.0 GiB).\n0 of 1 fit on 1 × small (16.0 GiB).\n\n"
    )


def test_a_long_name_is_cut_and_no_number_is() -> None:
    text = render_table_text(
        [make_estimate(model=name) for name in ("/a/long/path" * 9, "b")], TERMINAL
    )
    (line,) = (line for line in text.splitlines() if line.startswith("b "))
    assert " ".join(line.split()) == "b 2.0 GiB 20.0 GiB 21.5 GiB yes +58.5"
    assert max(cell_len(line) for line in text.splitlines()) <= WIDTH


@pytest.mark.parametrize(
    ("scenario", "words"),
    [
        (Scenario(task=Task.TRACE, num_new_tokens=256), ["generate", "trace"]),
        (Scenario(num_new_tokens=1), ["256", "1"]),
        (Scenario(dtype="bfloat16"), ["own dtype", "bfloat16"]),
        (Scenario(attention="eager"), ["", "eager attention"]),
        (
            Scenario(quantization=Quantization.INT8),
            ["own dtype", "int8"],
        ),
    ],
)
def test_whatever_differs_has_a_column(scenario: Scenario, words: list[str]) -> None:
    estimates = [make_estimate(), make_estimate(scenario=scenario)]
    rows = [
        line for line in render_table_text(estimates, TERMINAL).splitlines() if "20.0 GiB" in line
    ]
    assert len(rows) == 2
    for row, word in zip(rows, words, strict=True):
        assert row.strip().startswith(word[:12])


def test_a_scenario_that_all_share_is_said_once() -> None:
    scenario = Scenario(attention="eager", dtype="float32")
    text = render_table_text(
        [make_estimate(model=name, scenario=scenario) for name in "ab"], TERMINAL
    )
    assert text.count("eager attention") == text.count("float32") == 1
    assert "\noptions     eager attention\n" in text
    assert "\nloaded      in float32\n" in text


def test_without_known_fits_there_is_no_verdict() -> None:
    text = render_table_text([make_estimate(model=name, fits=()) for name in "ab"], TERMINAL)
    assert text.startswith("task        generate\n")


def test_without_a_gpu_each_row_names_the_smallest_that_is_enough() -> None:
    several = make_fit("big", memory_gib=80, needs_gib=200, num_gpus=3)
    small = make_fit("small", memory_gib=16, needs_gib=200, num_gpus=15)
    unknown = tuple(replace(fit, fits=None, num_gpus=None) for fit in (several, small))
    alone = (replace(several, num_gpus=None), small)
    estimates = [
        make_estimate(model=name, fits=fits)
        for name, fits in {
            "one": FITS,
            "two": (several, small),
            "three": unknown,
            "four": alone,
        }.items()
    ]
    text = render_table_text(estimates, TERMINAL)
    assert text.startswith("1 of 3 fit on one known GPU.\n")
    rows = [line.rsplit("   ", 1) for line in text.splitlines() if "20.0 GiB" in line]
    assert [row[-1] for row in rows] == ["big", "3 × big", "unknown", "none"]
    assert "\ngpu " not in text
    assert "fits on: the smallest known GPU" in text


def test_models_loaded_in_different_dtypes_share_a_table() -> None:
    estimates = [
        make_estimate(model="one", loaded_dtype="bfloat16"),
        make_estimate(model="two", loaded_dtype="float32", method=Method.APPROXIMATE),
        make_estimate(
            model="three",
            loaded_dtype="bfloat16",
            scenario=Scenario(quantization=Quantization.NF4, experts=QuantizedExperts.QUANTIZED),
        ),
    ]
    text = render_table_text(estimates, TERMINAL)
    rows = [line for line in text.splitlines() if "20.0 GiB" in line]
    assert [row.split("   ")[1].strip() for row in map(str.strip, rows)] == [
        "bfloat16",
        "float32",
        "nf4 with experts",
    ]
    assert ["≈" in row for row in rows] == [False, True, False]
    assert "≈: under an assumption" in " ".join(text.split())
    assert text.count("\nmodel ") == 1
