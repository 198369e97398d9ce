"""Options that mean nothing, or nothing for this model, are refused by their names."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from tests.cli.bad_input.refusals import Attempt, Refusal, assert_refused
from tests.cli.conftest import TryAll
from tests.command import RunMoetool

# By what is wrong with them: options for the demonstration checkpoint, and what is said of them.
BAD_OPTIONS: dict[str, tuple[list[str], Refusal]] = {
    "neither --prompts nor --prompt": (
        [],
        Refusal(2, error="No prompts are given", hint="--prompts"),
    ),
    "both --prompts and --prompt": (
        ["--prompts", "sample_prompts", "--prompt", "hello"],
        Refusal(2, error="single prompt exclude each other", hint="--prompts"),
    ),
    "an unknown option": (
        ["--prompt", "hello", "--unheard-of"],
        Refusal(2, error="no option --unheard-of", hint="Run `moetool route-trace --help`"),
    ),
    "a misspelt option": (
        ["--promts", "sample_prompts"],
        Refusal(2, error="no option --promts", hint="Did you mean --prompts?"),
    ),
    "a second model": (
        ["another", "--prompt", "hello"],
        Refusal(2, error="'another' is one too many", hint="moetool route-trace --help"),
    ),
    "words for layers": (
        ["--prompt", "hello", "--layers", "first"],
        Refusal(2, error="--layers: 'first'", hint="0,2-5"),
    ),
    "a range of layers without an end": (
        ["--prompt", "hello", "--layers", "0,2-"],
        Refusal(2, error="--layers: '2-'", hint="0,2-5"),
    ),
    "a range of layers from high to low": (
        ["--prompt", "hello", "--layers", "5-2"],
        Refusal(2, error="--layers: '5-2'", hint="0,2-5"),
    ),
    "batches of nothing": (
        ["--prompt", "hello", "--batch-size", "0"],
        Refusal(2, error="--batch-size can't be '0'", hint="at least 1"),
    ),
    "batches of no tokens": (
        ["--prompt", "hello", "--max-batch-tokens", "0"],
        Refusal(2, error="--max-batch-tokens can't be '0'", hint="at least 1"),
    ),
    "a limit of nothing": (
        ["--prompt", "hello", "--limit", "0"],
        Refusal(2, error="--limit can't be '0'", hint="at least 1"),
    ),
    "a dtype of integers": (
        ["--prompt", "hello", "--dtype", "int8"],
        Refusal(2, error="--dtype can't be 'int8'", hint="auto, float32, bfloat16 or float16"),
    ),
    "a layer beyond the last": (
        ["--prompt", "hello", "--layers", "0,6"],
        Refusal(2, error="Layer 6 has no routed experts; these have: [0, 1, 2, 3, 4, 5]"),
    ),
    "a prompt beyond the context": (
        ["--prompt", "hello " * 600],
        Refusal(
            3,
            error="tokens; the model's context holds 512",
            hint="--max-prompt-tokens 512",
        ),
    ),
    "a limit beyond the context": (
        ["--prompt", "hello", "--max-prompt-tokens", "513"],
        Refusal(2, error="limit of 513 tokens for prompts", hint="512 or less"),
    ),
    "a chat without a template": (
        ["--prompt", "hello", "--chat"],
        Refusal(3, error="no chat template", hint="--chat"),
    ),
    "a device of no kind": (
        ["--prompt", "hello", "--device", "nonsense"],
        Refusal(2, error="no device 'nonsense'", hint="cpu, cuda"),
    ),
    "a device that computes nothing": (
        ["--prompt", "hello", "--device", "meta"],
        Refusal(2, error="device 'meta'", hint="cpu, cuda"),
    ),
}


@pytest.fixture(scope="module")
def attempts(try_all: TryAll) -> Mapping[str, Attempt]:
    """A try at tracing with every one of the options."""
    return try_all(
        {what: ("route-trace", "demo", *options) for what, (options, _) in BAD_OPTIONS.items()}
    )


@pytest.mark.parametrize("what", BAD_OPTIONS)
def test_options_that_cannot_be_carried_out_are_refused(
    what: str, attempts: Mapping[str, Attempt]
) -> None:
    attempt = attempts[what]

    assert_refused(attempt.completed, BAD_OPTIONS[what][1], target=attempt.target)


def test_a_command_that_does_not_exist_is_refused_by_its_name(run_moetool: RunMoetool) -> None:
    expected = Refusal(2, error="no command 'route-trce'", hint="`moetool route-trace`")

    assert_refused(run_moetool("route-trce", "demo"), expected, target=None)


def test_a_command_without_its_model_is_refused(run_moetool: RunMoetool) -> None:
    expected = Refusal(2, error="`moetool route-trace` needs a MODEL", hint="route-trace --help")

    assert_refused(run_moetool("route-trace"), expected, target=None)


def test_the_command_alone_shows_its_help_as_help(run_moetool: RunMoetool) -> None:
    completed = run_moetool()

    shown = completed.stdout + completed.stderr
    assert shown.startswith(run_moetool("--help").stdout.splitlines()[0])
    assert "error: " not in shown
