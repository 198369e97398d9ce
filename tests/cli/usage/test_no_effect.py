"""Options that change nothing next to the others are refused, all in the same words."""

from __future__ import annotations

import pytest

from tests.cli.bad_input.refusals import Refusal, assert_refused
from tests.command import RunMoetool

TRACE = ("route-trace", "demo", "--prompt", "x")
QUESTION = ("specialize", "trace.parquet")
MEMORY = ("memory-estimate", "demo")
WRITE = (*TRACE, "--max-new-tokens", "3")

# By command line: what is said of it.
USELESS: dict[tuple[str, ...], Refusal] = {
    (*TRACE, "--seed", "3"): Refusal(
        2,
        error="Seed has no effect: no text is generated.",
        hint="Leave out --seed, or add --max-new-tokens.",
    ),
    (*TRACE, "--temperature", "1", "--top-p", "0.9", "--cache", "static"): Refusal(
        2,
        error="Temperature, top-p and cache have no effect: no text is generated.",
        hint="Leave out --temperature, --top-p and --cache, or add --max-new-tokens.",
    ),
    (*WRITE, "--seed", "3"): Refusal(
        2,
        error="Seed has no effect: the most likely token is always taken.",
        hint="Leave out --seed, or sample with --temperature.",
    ),
    (*TRACE, "--save-text", "nowhere.jsonl"): Refusal(
        2,
        error="Saving texts has no effect: no text is generated.",
        hint="Leave out --save-text, or add --max-new-tokens.",
    ),
    (*TRACE, "--limit", "3", "--text-field", "prompt"): Refusal(
        2,
        error="--limit and --text-field have no effect: a single prompt is given.",
        hint="Leave out --limit and --text-field, or give a file with --prompts.",
    ),
    (*TRACE, "--limit-per-domain", "3"): Refusal(
        2,
        error="--limit-per-domain has no effect: a single prompt is given.",
        hint="Leave out --limit-per-domain, or give a file with --prompts.",
    ),
    (*TRACE, "--chat", "--no-special-tokens"): Refusal(
        2,
        error="This choice of special tokens has no effect: the chat template adds its own.",
        hint="Leave out --no-special-tokens, or --chat.",
    ),
    (*TRACE, "--probabilities"): Refusal(
        2, error="must go to a file.", hint="Leave out --probabilities, or add -o trace.parquet."
    ),
    (*QUESTION, "--by", "token", "--permutations", "9"): Refusal(
        2,
        error="Permutations have no effect: specialization by token has no p-values.",
        hint="Leave out --permutations, or --by token.",
    ),
    (*QUESTION, "--min-count", "9"): Refusal(
        2,
        error="--min-count has no effect: domains are compared, not tokens.",
        hint="Leave out --min-count, or add --by token.",
    ),
    (*MEMORY, "--double-quantization"): Refusal(
        2,
        error="Double quantization has no effect: only nf4 and fp4 have scales that it quantizes.",
        hint="Leave out --double-quantization, or choose --quantization nf4 or fp4.",
    ),
    (*MEMORY, "--cache", "static", "--task", "forward"): Refusal(
        2,
        error="A static cache has no effect: no new tokens are generated.",
        hint="Leave out --cache, or ask for --new-tokens.",
    ),
    (*MEMORY, "--task", "forward", "--new-tokens", "3"): Refusal(
        2,
        error="A forward pass makes no new tokens.",
        hint="Leave out --new-tokens, or choose --task generate.",
    ),
    (*MEMORY, "--experts", "quantized"): Refusal(
        2,
        error="Quantized experts were asked for, but no quantization.",
        hint="Leave out --experts, or choose --quantization int8, nf4 or fp4.",
    ),
    (*MEMORY, "--trace", "nowhere.csv"): Refusal(
        2, error="no GPU was named.", hint="Leave out --trace, or name a GPU with --gpu."
    ),
}


@pytest.mark.parametrize("words", USELESS, ids=" ".join)
def test_an_option_without_effect_is_refused(
    words: tuple[str, ...], run_moetool: RunMoetool
) -> None:
    assert_refused(run_moetool(*words), USELESS[words], target=None)


@pytest.mark.parametrize("sampling", [("--temperature", "1"), ("--top-p", "0.5")])
def test_a_seed_is_taken_where_tokens_are_sampled(
    sampling: tuple[str, ...], run_moetool: RunMoetool
) -> None:
    completed = run_moetool(*WRITE, "--seed", "3", *sampling, "--format", "csv", "-q")

    assert completed.returncode == 0, completed.stderr
    assert '"decode"' in completed.stdout
