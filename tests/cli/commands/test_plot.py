"""`moetool plot` as users run it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from unittest.mock import patch

import pytest

from tests.analysis.random_traces import make_random_trace
from tests.cli.bad_input.refusals import Refusal, assert_refused
from tests.command import RunMoetool

TRACE_FIGURES = ("load", "capacity", "confidence", "specialization", "domains", "coactivation")
STARTS = {".png": b"\x89PNG", ".pdf": b"%PDF-", ".svg": b"<?xml"}


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("plot") / "trace.parquet"
    make_random_trace((30, 20, 25, 15)).to_pandas().to_parquet(path, index=False)
    return path


@pytest.mark.parametrize(
    ("figure", "suffix"),
    [(each, ".png") for each in TRACE_FIGURES] + [("load", ".pdf"), ("load", ".svg")],
)
def test_a_figure_of_a_trace_is_written_in_the_format_of_its_name(
    figure: str, suffix: str, run_moetool: RunMoetool, trace: Path, tmp_path: Path
) -> None:
    target = tmp_path / f"figure{suffix}"
    completed = run_moetool("plot", figure, trace, "-o", target)
    assert (completed.returncode, completed.stdout, completed.stderr) == (0, "", "")
    assert target.read_bytes().startswith(STARTS[suffix])
    assert list(tmp_path.iterdir()) == [target]


def test_figures_of_models_are_written(run_moetool: RunMoetool, tmp_path: Path) -> None:
    parameters, memory = tmp_path / "parameters.svg", tmp_path / "memory.svg"
    completed = run_moetool("plot", "parameters", "demo", "-o", parameters)
    assert completed.returncode == 0, completed.stderr
    sizes = ("--batch-size", "2", "--prompt-tokens", "16", "--new-tokens", "2")
    completed = run_moetool("plot", "memory", "demo", *sizes, "-o", memory)
    assert completed.returncode == 0, completed.stderr
    assert "<!-- 2.924M -->" in parameters.read_text(encoding="utf-8")
    words = memory.read_text(encoding="utf-8")
    for label in ("batch of 2", "memory of h200", "device memory (GiB)"):
        assert f"<!-- {label} -->" in words


def test_an_existing_figure_stays_unless_forced(
    run_moetool: RunMoetool, trace: Path, tmp_path: Path
) -> None:
    target = tmp_path / "load.svg"
    target.write_bytes(b"mine")
    refusal = Refusal(2, error="exists", hint="--force")
    completed = run_moetool("plot", "load", trace, "-o", target)
    assert_refused(completed, refusal, target=None)
    assert target.read_bytes() == b"mine"
    completed = run_moetool("plot", "load", trace, "-o", target, "--force", "--width", "6.9")
    assert completed.returncode == 0, completed.stderr
    assert b'width="496.8pt"' in target.read_bytes()


REFUSALS: dict[str, tuple[Sequence[str], Refusal]] = {
    "unknown figure": (
        ("laod", "{trace}"),
        Refusal(2, error="`moetool plot` has no figure 'laod'", hint="`moetool plot load`"),
    ),
    "trace first": (
        ("{trace}", "load"),
        Refusal(2, error="has no figure", hint="A figure comes first, as in `moetool plot load"),
    ),
    "unknown suffix": (
        ("load", "{trace}", "-o", "{target}.gif"),
        Refusal(2, error=".gif' is not the name of a figure", hint=".svg, .pdf or .png"),
    ),
    "no output": (
        ("load", "{trace}"),
        Refusal(2, error="`moetool plot load` needs --output", hint="Add it"),
    ),
    "too narrow": (
        ("load", "{trace}", "-o", "{target}.svg", "--width", "1"),
        Refusal(2, error="can't be 1 inches wide", hint="from 3 to 20"),
    ),
    "by token": (
        ("domains", "{trace}", "-o", "{target}.svg", "--by", "token"),
        Refusal(2, error="by token has no figure", hint="Group by domain"),
    ),
    "no such layer": (
        ("domains", "{trace}", "-o", "{target}.svg", "--layer", "9"),
        Refusal(2, error="no layer 9", hint="one of its layers"),
    ),
    "no weights": (
        ("confidence", "{bare}", "-o", "{target}.svg"),
        Refusal(3, error="has no column 'weight'", hint="route-trace"),
    ),
    "no domains": (
        ("domains", "{bare}", "-o", "{target}.svg"),
        Refusal(3, error="no column 'domain'", hint="Label the prompt"),
    ),
    "loads without tokens": (
        ("coactivation", "{loads}", "-o", "{target}.svg"),
        Refusal(3, error="is a load table", hint="give a trace"),
    ),
    "loads without batches": (
        ("capacity", "{loads}", "-o", "{target}.svg"),
        Refusal(3, error="batches of these loads are unknown", hint="each step"),
    ),
    "dense model": (
        ("parameters", "no-such-model", "-o", "{target}.svg"),
        Refusal(3, error="no-such-model", hint=""),
    ),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_what_cannot_be_drawn_is_one_error_and_one_hint(
    case: str, run_moetool: RunMoetool, trace: Path, tmp_path: Path
) -> None:
    words, refusal = REFUSALS[case]
    bare, loads = tmp_path / "bare.parquet", tmp_path / "loads.csv"
    frame = make_random_trace((9, 7)).to_pandas()
    frame[["prompt_id", "position", "layer", "expert"]].to_parquet(bare, index=False)
    loads.write_text("layer,expert,count\n0,0,5\n0,1,7\n", encoding="utf-8")
    target = tmp_path / "figure"
    places = {"trace": trace, "bare": bare, "loads": loads, "target": target}
    completed = run_moetool("plot", *(word.format(**places) for word in words))
    assert_refused(completed, refusal, target=target.with_suffix(".svg"))


def test_without_matplotlib_the_hint_is_the_command_that_installs_it(
    run_moetool: RunMoetool, trace: Path, tmp_path: Path
) -> None:
    target = tmp_path / "load.svg"
    with patch.dict(sys.modules, {"matplotlib": None}):
        completed = run_moetool("plot", "load", trace, "-o", target)
    refusal = Refusal(2, error="Figures need matplotlib", hint='pip install "moetool[plots]"')
    assert_refused(completed, refusal, target=target)


def test_a_load_table_is_drawn(run_moetool: RunMoetool, tmp_path: Path) -> None:
    loads, target = tmp_path / "loads.csv", tmp_path / "load.png"
    loads.write_text("layer,expert,count\n0,0,5\n0,1,7\n1,0,0\n1,1,9\n", encoding="utf-8")
    completed = run_moetool("plot", "load", loads, "-o", target)
    assert completed.returncode == 0, completed.stderr
    assert target.read_bytes().startswith(STARTS[".png"])
