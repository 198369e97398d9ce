"""Every command's help: complete, as wide as the terminal, and with examples that work."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from moetool.catalogue.published import read_published_models
from moetool.cli.commands.figures import plot as plots
from moetool.cli.commands.models import models
from moetool.cli.errors import EXIT_CODES
from moetool.cli.main import _COMMANDS, app
from tests.command import RunMoetool

FIGURES = {f"plot {name}": module for name, _, module, _ in plots.COMMANDS}
MODULES = {name: module for name, _, module, _ in _COMMANDS} | {"plot": plots} | FIGURES
COMMON = {"--format", "--output", "-o", "--force", "--quiet", "-q", "--help", "-h"}
# Their format is that of the file's name.
WITHOUT_FORMAT = {"merge", "quantize", "report", *FIGURES}
OF_MODELS = {"--revision", "--trust-remote-code"}
OF_TRACES = {"--layers", "--num-experts", "--top-k", "--no-validate"}
OPTIONS = {
    "inspect": {"--per-layer", "--summary", "--source"} | OF_MODELS,
    "memory-estimate": OF_MODELS
    | {"--batch-size", "--prompt-tokens", "--new-tokens", "--dtype", "--gpu", "--task", "--cache"}
    | {"--cache-dtype", "--num-beams", "--num-return-sequences", "--assistant"}
    | {"--attention", "--experts-implementation", "--padding", "--quantization", "--experts"}
    | {"--engine", "--gpu-memory-utilization", "--kv-cache-dtype", "--tensor-parallel"}
    | {"--engine-overhead", "--parallel", "--nodes"}
    | {"--n-gpu-layers", "--n-cpu-moe", "--override-tensor", "--ctx-size", "--ubatch-size"}
    | {"--cache-type-k", "--cache-type-v", "--flash-attn", "--tensor-split"}
    | {"--optimizer", "--gradient-checkpointing", "--freeze", "--lora-rank"}
    | {"--lora-targets"}
    | {"--double-quantization", "--trace", "--measure", "--save"},
    "route-trace": OF_MODELS
    | {
        "--prompts",
        "--prompt",
        "--limit",
        "--limit-per-domain",
        "--show",
        "--resume",
        "--chat",
        "--special-tokens",
        "--no-special-tokens",
    }
    | {"--max-prompt-tokens", "--id-field", "--text-field", "--domain-field", "--batch-size"}
    | {"--max-batch-tokens", "--verbose", "-v", "--resume"}
    | {"--dtype", "--device", "--device-map", "--parallel", "--layers", "--probabilities"}
    | {"--quantization", "--double-quant", "--quantize-experts", "--no-quantize-experts"}
    | {"--allow-inexact"}
    | {"--saliency", "--report"}
    | {"--max-new-tokens", "--temperature", "--top-p", "--seed", "--cache", "--save-text"}
    | {"--n-gpu-layers", "--threads", "--ctx-size", "--ubatch-size"}
    | {"--cache-type-k", "--cache-type-v", "--flash-attn"},
    "import": {"--detect", "--model", "--layers", "--num-layers", "--num-experts", "--top-k"}
    | {"--layer-offset", "--micro-batch-size"},
    "validate": set(),
    "merge": {"--prefix-prompts"},
    "balance": OF_TRACES | {"--by", "--tokens-per-batch"},
    "specialize": OF_TRACES | {"--permutations", "--min-count", "--seed", "--by"},
    "coactivation": OF_TRACES | {"--by", "--pairs"},
    "tokens": OF_TRACES
    | {"--layer", "--expert", "--stack", "--token", "--token-id", "--prompt", "--top"}
    | {"--by", "--min-count"},
    "compare": OF_TRACES | {"--by", "--common-tokens", "--min-count"},
    "cache": OF_TRACES | {"--budget", "--by", "--expert-bytes", "--model", "--tokens-per-batch"},
    "place": OF_TRACES
    | {"--gpus", "--nodes", "--redundant", "--groups", "--tokens-per-batch", "--seed", "--by"}
    | {"--balance-weight", "--export", "--method", "--model", "--hidden-size"}
    | {"--num-hidden-layers"},
    "select": OF_TRACES
    | {"--by", "--average", "--model", "--top-p", "--shared-experts", "--export"}
    | {"--non-expert-modules", "--freeze-list", "--prune-ratio", "--groups", "--saliency"}
    | {"--domain"},
    "report": OF_TRACES | {"--by", "--compare", "--redact-text"},
    "fits": {
        "--gpu",
        "--family",
        "--batch-size",
        "--prompt-tokens",
        "--new-tokens",
        "--all",
        "--sort",
    }
    | {"--no-cache", "--quantization", "--double-quantization", "--experts"},
    "plot load": OF_TRACES | {"--by", "--width"},
    "plot capacity": OF_TRACES | {"--by", "--tokens-per-batch", "--width"},
    "plot confidence": OF_TRACES | {"--width"},
    "plot specialization": OF_TRACES | {"--by", "--permutations", "--seed", "--width"},
    "plot domains": OF_TRACES | {"--by", "--layer", "--permutations", "--seed", "--width"},
    "plot coactivation": OF_TRACES | {"--layer", "--width"},
    "plot parameters": OF_MODELS | {"--width"},
    "plot memory": OF_MODELS
    | {"--batch-size", "--prompt-tokens", "--new-tokens", "--gpu", "--dtype", "--quantization"}
    | {"--width"},
    "quantize": OF_MODELS
    | {"--quantization", "--double-quant", "--quantize-experts", "--no-quantize-experts"},
    "models": {"--family", "--kind", "--max-total", "--max-active", "--sort"},
    "gpus": {"--vendor", "--min-memory"},
}
PANELS = {
    "Models": ["inspect", "memory-estimate", "fits", "quantize", "models", "gpus"],
    "Traces": ["route-trace", "import", "validate", "merge"],
    "Questions to a trace": [
        *("report", "balance", "specialize", "coactivation", "tokens", "compare", "place"),
        *("select", "cache"),
    ],
    "Figures": ["plot"],
}


def read_help(*command: str, columns: int = 80) -> str:
    arguments = [*command, "--help"]
    result = CliRunner().invoke(app, arguments, env={"COLUMNS": str(columns), "NO_COLOR": "1"})
    assert result.exit_code == 0
    assert result.stderr == ""
    return result.stdout


@pytest.mark.parametrize("command", OPTIONS)
def test_help_names_exactly_the_options_there_are(command: str) -> None:
    text = read_help(*command.split(), columns=200)
    rows = [line.removeprefix("│ ").split("  ") for line in text.splitlines() if "│" in line]
    words = {word for row in rows for cell in row for word in cell.strip().split(",")}
    common = COMMON - {"--format"} if command in WITHOUT_FORMAT else COMMON
    assert {word for word in words if word.startswith("-")} == OPTIONS[command] | common


@pytest.mark.parametrize("columns", [80, 120])
@pytest.mark.parametrize("command", OPTIONS)
def test_help_is_as_wide_as_the_terminal_and_cuts_nothing(command: str, columns: int) -> None:
    text = read_help(*command.split(), columns=columns)
    assert max(map(len, text.splitlines())) == columns
    assert "…" not in text


@pytest.mark.parametrize("command", OPTIONS)
def test_no_panel_of_options_has_more_than_ten(command: str) -> None:
    panels = read_help(*command.split()).split("╭─")[1:]
    # A star marks what is required, and moves the other options of its panel to the right.
    sizes = [len(re.findall(r"^│ \*? *--?[a-z]", panel, re.M)) for panel in panels]
    assert max(sizes) <= 10
    assert sum(sizes) >= 5


@pytest.mark.parametrize("command", OPTIONS)
def test_help_ends_in_examples_on_a_line_each(command: str) -> None:
    text = read_help(*command.split())
    _, _, end = text.partition("\n Examples:")
    lines = [line.rstrip() for line in end.rstrip().splitlines()[1:]]
    assert lines == [f"   {example}" for example in MODULES[command].EXAMPLES]
    assert 2 <= len(lines) <= 3


@pytest.mark.parametrize("columns", [60, 80, 120])
def test_commands_stand_in_panels_in_the_order_of_a_first_hour_with_a_summary_on_their_line(
    columns: int,
) -> None:
    panels = read_help(columns=columns).split("╭─ ")[1:]
    shown = {
        panel.partition(" ─")[0]: [
            tuple(line.strip("│ ").split("  ", 1))
            for line in panel.splitlines()
            if line.startswith("│ ")
        ]
        for panel in panels
    }
    del shown["Options"]
    assert list(shown) == list(PANELS)
    for title, commands in PANELS.items():
        assert [name for name, _ in shown[title]] == commands
        for name, summary in shown[title]:
            assert summary.strip() == MODULES[name].SUMMARY


@pytest.mark.parametrize("columns", [60, 80, 120])
def test_the_first_help_fits_the_width_and_ends_in_examples_and_then_exit_codes(
    columns: int,
) -> None:
    text = read_help(columns=columns)
    assert max(map(len, text.splitlines())) == columns
    assert "…" not in text
    before, _, examples = text.partition("\n Examples:")
    examples, _, codes = examples.partition("\n Exit codes:")
    assert "moetool inspect mixtral-8x7b" in examples
    assert "Exit codes" not in before
    assert [line.strip() for line in codes.rstrip().splitlines()[1:]] == [
        f"{code:<3}  {meaning}" for code, meaning in EXIT_CODES
    ]


def test_a_flag_shows_no_type() -> None:
    assert "bool" not in read_help()
    assert "bool" not in read_help("inspect")


def test_examples_are_muted_where_the_terminal_has_colour() -> None:
    terminal = {"FORCE_COLOR": "1", "TERM": "xterm", "COLUMNS": "80"}
    coloured = CliRunner().invoke(app, ["models", "--help"], env=terminal)
    assert f"\x1b[2m{models.EXAMPLES[0]}\x1b[0m" in coloured.stdout
    assert "\x1b" not in read_help("models")


def test_help_without_rich_ends_in_the_same_lines() -> None:
    completed = subprocess.run(
        [sys.executable, "-m", "moetool", "models", "--help"],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "TYPER_USE_RICH": "0"},
    )
    assert completed.stdout.endswith(
        "\n\nExamples:\n" + "".join(f"  {example}\n" for example in models.EXAMPLES)
    )


@pytest.mark.parametrize(
    "example", [example for module in MODULES.values() for example in module.EXAMPLES]
)
def test_an_example_names_options_and_models_that_exist(example: str) -> None:
    program, command, *arguments = shlex.split(example)
    assert program == "moetool"
    if command == "plot":
        command = f"plot {arguments.pop(0)}"
    given = {word for word in arguments if word.startswith("-")}
    assert given <= OPTIONS[command] | COMMON
    if command in ("inspect", "memory-estimate", "plot parameters", "plot memory"):
        end = next((index for index, word in enumerate(arguments) if word[0] == "-"), None)
        for model in arguments[:end]:
            assert model in read_published_models() or model.startswith("./")


@pytest.mark.parametrize(
    "arguments", [("models",), ("inspect", "demo", "--source", "headers")], ids=" ".join
)
def test_a_quiet_run_prints_its_data_and_nothing_else(
    arguments: tuple[str, ...], run_moetool: RunMoetool
) -> None:
    loud, quiet = run_moetool(*arguments), run_moetool(*arguments, "-q")
    assert loud.stdout
    assert (quiet.returncode, quiet.stdout, quiet.stderr) == (0, loud.stdout, "")


@pytest.mark.parametrize("arguments", [["--help"], ["inspect", "--help"], ["--version"]])
def test_a_reader_that_closes_the_pipe_ends_the_help_in_success(arguments: list[str]) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "moetool", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait() == 0


def test_an_option_is_not_named_after_its_placeholder() -> None:
    # Typer 0.27 derives the name of an option from a placeholder with the same letters.
    options = [
        (name, option)
        for group in (app, plots.plots)
        for name, command in get_command(group).commands.items()  # type: ignore[attr-defined]
        for parameter in command.params
        for option in parameter.opts
        if option.startswith("-")
    ]
    assert len(options) > 80
    assert [(name, option) for name, option in options if option != option.lower()] == []
