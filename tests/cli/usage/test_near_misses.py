"""Command lines that nearly say what was meant: the hint says the rest."""

from __future__ import annotations

import pytest

from tests.cli.bad_input.refusals import Refusal, assert_refused
from tests.command import RunMoetool

MEMORY = ("memory-estimate", "mixtral-8x7b")
TRACE = ("route-trace", "demo")
INSPECT = ("inspect", "mixtral-8x7b")

# By command line: what is said of it.
USAGE: dict[tuple[str, ...], Refusal] = {
    # Values.
    (*INSPECT, "--format", "yaml"): Refusal(
        2, error="--format can't be 'yaml'.", hint="Did you mean json? Choose table, json or csv."
    ),
    ("report", "t.parquet", "--format", "json"): Refusal(
        2,
        error="`moetool report` has no option --format.",
        hint="report writes HTML; its figures: `moetool balance --format json`.",
    ),
    (*INSPECT, "--source", "header"): Refusal(
        2, error="--source can't be 'header'.", hint="Did you mean headers? Choose auto, headers"
    ),
    (*MEMORY, "--quantization", "int4"): Refusal(
        2, error="--quantization can't be 'int4'.", hint="Did you mean nf4? Choose none, int8, nf4"
    ),
    (*MEMORY, "--quantization", "fp8"): Refusal(
        2, error="--quantization can't be 'fp8'.", hint="Name a checkpoint published in fp8"
    ),
    (*MEMORY, "--task", "training"): Refusal(
        2,
        error="--task can't be 'training'.",
        hint="Did you mean train? Choose generate, forward, trace or train.",
    ),
    (*MEMORY, "--experts", "all"): Refusal(
        2, error="--experts can't be 'all'.", hint="Choose as-loaded or quantized."
    ),
    (*MEMORY, "--cache", "offload"): Refusal(
        2,
        error="--cache can't be 'offload'.",
        hint="Did you mean offloaded? Choose dynamic, static",
    ),
    (*MEMORY, "--attention", "flash_attn"): Refusal(
        2,
        error="--attention can't be 'flash_attn'.",
        hint="Did you mean flash_attention_2? Choose eager, sdpa, flash_attention_2, "
        "flash_attention_3 or flex_attention.",
    ),
    (*MEMORY, "--attention", "flex_attn"): Refusal(
        2, error="--attention can't be 'flex_attn'.", hint="Did you mean flex_attention?"
    ),
    (*MEMORY, "--experts-implementation", "triton"): Refusal(
        2, error="--experts-implementation can't be 'triton'.", hint="grouped_mm or batched_mm."
    ),
    (*TRACE, "--format", "json"): Refusal(
        2, error="--format can't be 'json'.", hint="Choose parquet or csv."
    ),
    (*TRACE, "--dtype", "bf17"): Refusal(
        2, error="--dtype can't be 'bf17'.", hint="auto, float32, bfloat16 or float16."
    ),
    (*TRACE, "--batch-size", "many"): Refusal(
        2, error="--batch-size can't be 'many'.", hint="Give a whole number."
    ),
    (*TRACE, "--temperature=hot"): Refusal(
        2, error="--temperature can't be 'hot'.", hint="Give a number."
    ),
    ("specialize", "t.csv", "--top-k", "99999"): Refusal(
        2, error="--top-k can't be '99999'.", hint="Give a number of at most 32768."
    ),
    ("fits", "--gpu", ",", ","): Refusal(
        2, error="`moetool fits` takes no argument: ',' is one too many.", hint="Leave it out"
    ),
    ("specialize", "t.csv", "--output", ",", ","): Refusal(
        2, error="`moetool specialize` takes one argument: ',' is one too", hint="Leave it out"
    ),
    (*TRACE, "--prompt"): Refusal(2, error="--prompt needs a value.", hint="route-trace --help"),
    (*INSPECT, "--quiet=yes"): Refusal(2, error="--quiet takes no value.", hint="--quiet alone"),
    # Options.
    (*MEMORY, "--int4"): Refusal(
        2, error="`moetool memory-estimate` has no option --int4.", hint="--quantization nf4?"
    ),
    (*MEMORY, "--4bit"): Refusal(2, error="no option --4bit.", hint="--quantization nf4?"),
    (*MEMORY, "--load-in-4bit"): Refusal(2, error="--load-in-4bit", hint="--quantization nf4?"),
    (*MEMORY, "--load_in_8bit"): Refusal(2, error="--load_in_8bit", hint="--quantization int8?"),
    (*MEMORY, "--int8"): Refusal(2, error="--int8", hint="--quantization int8?"),
    (*MEMORY, "--quantisation", "nf4"): Refusal(
        2, error="--quantisation", hint="Did you mean --quantization?"
    ),
    (*MEMORY, "--bf16"): Refusal(2, error="--bf16", hint="Did you mean --dtype bfloat16?"),
    (*TRACE, "--half"): Refusal(2, error="--half", hint="Did you mean --dtype float16?"),
    (*INSPECT, "--json"): Refusal(2, error="--json", hint="Did you mean --format json?"),
    (*MEMORY, "--ctx-size", "8"): Refusal(
        2, error="no GGUF file is named", hint="A checkpoint takes --prompt-tokens,"
    ),
    (*TRACE, "--max_tokens", "8"): Refusal(2, error="--max_tokens", hint="mean --max-new-tokens?"),
    (*MEMORY, "--max-new-tokens", "8"): Refusal(
        2, error="--max-new-tokens", hint="Did you mean --new-tokens? Use --max-new-tokens with"
    ),
    (*INSPECT, "--gpu", "h100"): Refusal(
        2, error="`moetool inspect` has no option --gpu.", hint="Use --gpu with `moetool memory-e"
    ),
    (*INSPECT, "--unheard-of"): Refusal(
        2, error="no option --unheard-of.", hint="Run `moetool inspect --help` to list its options."
    ),
    ("--unheard-of",): Refusal(2, error="`moetool` has no option", hint="Run `moetool --help`"),
    # Sizes with spaces.
    (*MEMORY, "--batch-size", "1", "8", "32"): Refusal(
        2, error="'8' is a number, not a model.", hint="by commas alone: --batch-size 1,8,32."
    ),
    ("memory-estimate", "--batch-size", "1,", "8", "mixtral-8x7b"): Refusal(
        2, error="'8' is a number, not a model.", hint="by commas alone: --batch-size 1,8."
    ),
    (*MEMORY, "--prompt-tokens=512", "1024"): Refusal(
        2, error="'1024' is a number, not a model.", hint="--prompt-tokens 512,1024."
    ),
    (*TRACE, "--prompt", "x", "--batch-size", "1", "8"): Refusal(
        2, error="--batch-size takes one number, not 2.", hint="Give it one"
    ),
    (*MEMORY, "--prompt-tokens", "4,096"): Refusal(
        2, error="--prompt-tokens: '4,096' is read as several numbers.", hint="comma: 4096."
    ),
    # Arguments.
    (*TRACE, "--prompt", "sample_prompts/german.jsonl"): Refusal(
        2, error="'sample_prompts/german.jsonl' is a file.", hint="mean --prompts sample_prompts/g"
    ),
    (*TRACE, "my.csv"): Refusal(
        2, error="'my.csv' is one too many.", hint="Did you mean --prompts my.csv?"
    ),
    (*TRACE, "sample_prompts"): Refusal(
        2, error="'sample_prompts' is one too many.", hint="Did you mean --prompts sample_prompts?"
    ),
    (*TRACE, "some words"): Refusal(
        2, error="'some words' is one too many.", hint="Did you mean --prompt 'some words'?"
    ),
    ("specialize", "a.csv", "b.csv"): Refusal(
        2, error="`moetool specialize` takes one argument: 'b.csv'", hint="specialize --help"
    ),
    ("models", "qwen"): Refusal(
        2, error="`moetool models` takes no argument: 'qwen' is one", hint="models --help"
    ),
    ("inspect",): Refusal(2, error="`moetool inspect` needs a MODEL.", hint="inspect --help"),
    ("specialize",): Refusal(
        2, error="needs a TRACE.", hint="Name one, or run `moetool specialize"
    ),
    # Commands.
    ("inspct", "demo"): Refusal(
        2, error="There is no command 'inspct'.", hint="Did you mean `moetool inspect`?"
    ),
    ("mixtral-8x7b",): Refusal(
        2, error="no command 'mixtral-8x7b'.", hint="as in `moetool inspect mixtral-8x7b`."
    ),
    ("version",): Refusal(2, error="no command 'version'.", hint="Run `moetool --version`."),
    ("-v",): Refusal(2, error="`moetool` has no option -v.", hint="Did you mean --version?"),
    ("anything",): Refusal(2, error="no command 'anything'.", hint="Run `moetool --help` to list"),
    # Models.
    ("inspect", "qwen3"): Refusal(
        3, error="catalogue names begin with it.", hint="qwen3-235b-a22b, qwen3-30b-a3b, "
    ),
    ("inspect", "maverick"): Refusal(
        3, error="No model 'maverick'", hint="Did you mean 'llama-4-maverick-17b-128e'?"
    ),
    ("inspect", "Mixtral-8x7B-v0.1"): Refusal(
        3, error="No model 'Mixtral", hint="Did you mean 'mistralai/Mixtral-8x7B-v0.1'?"
    ),
    ("inspect", "deepsek-v3"): Refusal(
        3, error="No model 'deepsek-v3'", hint="Did you mean 'deepseek-v3', 'deepseek-v3.2' or"
    ),
    ("inspect", "sample_prompts/german.jsonl"): Refusal(
        3, error="is a file, but not a model.", hint="--prompts sample_prompts/german.jsonl"
    ),
    ("inspect", "mixtral-8x7b,deepseek-v3"): Refusal(
        3, error="No model 'mixtral-8x7b,deepseek-v3'", hint="Separate several models by spaces."
    ),
    ("inspect", "nowhere/german.jsonl"): Refusal(
        3, error="No model at 'nowhere/german.jsonl': no such path", hint="org/name"
    ),
}


@pytest.mark.parametrize("words", USAGE, ids=" ".join)
def test_a_near_miss_is_refused_with_a_hint_at_what_was_meant(
    words: tuple[str, ...], run_moetool: RunMoetool
) -> None:
    assert_refused(run_moetool(*words), USAGE[words], target=None)


def test_at_most_five_names_are_listed(run_moetool: RunMoetool) -> None:
    hint = run_moetool("inspect", "qwen3").stderr.splitlines()[-1]

    assert hint.endswith(", …")
    assert hint.count("qwen3") == 5


@pytest.mark.parametrize("words", [("memory-estimate", "8"), ("memory-estimate", "8", "32")])
def test_numbers_without_an_option_are_names_like_others(
    words: tuple[str, ...], run_moetool: RunMoetool
) -> None:
    assert "error: No model '8'" in run_moetool(*words).stderr


@pytest.mark.parametrize(
    "words",
    [
        ("inspect", "mixtral-8x7b", "--format", "yaml"),
        ("memory-estimate", "mixtral-8x7b", "--int4"),
        ("memory-estimate", "mixtral-8x7b", "--batch-size", "1", "8"),
        ("route-trace", "demo", "some words"),
        ("inspect", "qwen3", "typo"),
    ],
    ids=" ".join,
)
def test_a_near_miss_is_refused_without_torch(
    words: tuple[str, ...], run_moetool_process: RunMoetool
) -> None:
    completed = run_moetool_process(*words, PYTHONPROFILEIMPORTTIME="1")

    assert completed.returncode in (2, 3)
    assert "moetool.cli.main" in completed.stderr
    imported = {line.rpartition("|")[2].strip() for line in completed.stderr.splitlines()}
    assert not imported & {"torch", "transformers", "pandas"}


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        (("inspect", "demo", "--source", "HEADERS", "--format", "JSON"), '"source": "headers"'),
        (("models", "--format", "Csv"), "mixtral-8x7b"),
    ],
)
def test_values_may_be_in_upper_case(
    words: tuple[str, ...], shown: str, run_moetool: RunMoetool
) -> None:
    completed = run_moetool(*words)

    assert completed.returncode == 0, completed.stderr
    assert shown in completed.stdout
