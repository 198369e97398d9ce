"""Find the option or value that was meant, also by the names that other tools have for it."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping, Sequence

from moetool.wording import join_words

_FOUR_BIT = "--quantization nf4"
_EIGHT_BIT = "--quantization int8"

# By the option that was typed: what to write instead, where the command has that option.
_MEANT_OPTION: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(("--int4", "--4bit", "--q4", "--nf4", "--load-in-4bit"), (_FOUR_BIT,)),
    "--fp4": ("--quantization fp4",),
    **dict.fromkeys(("--int8", "--8bit", "--q8", "--load-in-8bit"), (_EIGHT_BIT,)),
    **dict.fromkeys(("--quant", "--bits", "--quantize"), ("--quantization",)),
    **dict.fromkeys(("--bf16", "--bfloat16"), ("--dtype bfloat16",)),
    **dict.fromkeys(("--fp16", "--float16", "--half"), ("--dtype float16",)),
    **dict.fromkeys(("--fp32", "--float32", "--float"), ("--dtype float32",)),
    **dict.fromkeys(("--torch-dtype", "--precision"), ("--dtype",)),
    "--json": ("--format json",),
    "--csv": ("--format csv",),
    "--parquet": ("--format parquet",),
    **dict.fromkeys(("--out", "--outfile", "--output-file", "--save"), ("--output",)),
    **dict.fromkeys(("--overwrite", "-f", "--yes", "-y"), ("--force",)),
    **dict.fromkeys(("--silent", "-s"), ("--quiet",)),
    **dict.fromkeys(("--gpus", "--card", "--vram", "--gpu-name"), ("--gpu",)),
    **dict.fromkeys(("--cuda",), ("--device cuda", "--gpu")),
    "--cpu": ("--device cpu",),
    **dict.fromkeys(
        ("--context", "--context-length", "--ctx", "--ctx-size", "--max-model-len", "--seq-len"),
        ("--prompt-tokens", "--max-prompt-tokens"),
    ),
    **dict.fromkeys(("--max-tokens", "--max-length"), ("--max-new-tokens", "--new-tokens")),
    "--max-new-tokens": ("--new-tokens",),
    "--new-tokens": ("--max-new-tokens",),
    **dict.fromkeys(("--file", "--input", "--dataset", "--data", "--prompt-file"), ("--prompts",)),
    **dict.fromkeys(("--text", "-p"), ("--prompt",)),
    **dict.fromkeys(("--num-prompts", "--max-prompts", "-n"), ("--limit",)),
    **dict.fromkeys(("--chat-template", "--template", "--apply-chat-template"), ("--chat",)),
    "--branch": ("--revision",),
    **dict.fromkeys(("-v", "--v"), ("--version",)),
    "--attn-implementation": ("--attention",),
}

# By option and the value that was typed: the value that comes nearest.
_MEANT_VALUE: Mapping[tuple[str, str], str] = {
    **dict.fromkeys(
        [("--quantization", word) for word in ("int4", "4bit", "4-bit", "4", "q4", "bnb-4bit")],
        "nf4",
    ),
    **dict.fromkeys(
        [("--quantization", word) for word in ("8bit", "8-bit", "8", "q8", "i8")], "int8"
    ),
    **dict.fromkeys(
        [("--attention", word) for word in ("flash_attention", "flash-attention", "flash_attn")],
        "flash_attention_2",
    ),
    **dict.fromkeys(
        [("--attention", word) for word in ("flexattention", "flex-attention", "flex_attn")],
        "flex_attention",
    ),
    **dict.fromkeys([("--format", word) for word in ("text", "txt", "human", "md")], "table"),
    **dict.fromkeys([("--format", word) for word in ("yaml", "jsonl", "ndjson")], "json"),
    **dict.fromkeys([("--format", word) for word in ("tsv", "excel", "xlsx")], "csv"),
}

# By command and option that was typed: what to do where the command can't have such an option.
_INSTEAD: Mapping[tuple[str, str], str] = {
    ("report", option): "report writes HTML; its figures: `moetool balance --format json`."
    for option in ("--format", "--json", "--csv")
}

# Formats of published checkpoints, which bitsandbytes does not make.
_PUBLISHED_FORMATS = ("fp8", "mxfp4", "nvfp4", "awq", "gptq")


def find_instead(command: str, typed: str) -> str | None:
    """Return a hint at another command, for an option that a command can't have; else None."""
    return _INSTEAD.get((command, typed))


def find_option(typed: str, options: Collection[str]) -> str | None:
    """Return what was probably meant by an option that a command does not have.

    Args:
        typed: The option, such as `--int4`.
        options: The options that the command has.

    Returns:
        An option, perhaps with its value; None if nothing comes near.
    """
    typed = typed.lower().replace("_", "-")
    for meant in _MEANT_OPTION.get(typed, ()):
        if meant.partition(" ")[0] in options:
            return meant
    close = difflib.get_close_matches(typed, options, n=1, cutoff=0.7)
    return close[0] if close else None


def hint_at_value(typed: str, option: str, choices: Sequence[str]) -> str:
    """Return a hint at the values of an option, the nearest first."""
    choose = f"Choose {join_words(choices, last='or')}."
    typed = typed.lower()
    if option == "--quantization" and typed in _PUBLISHED_FORMATS:
        return f"Name a checkpoint published in {typed}, without this option. {choose}"
    meant = _MEANT_VALUE.get((option, typed))
    if meant not in choices:
        meant = next(iter(difflib.get_close_matches(typed, choices, n=1)), None)
    return choose if meant is None else f"Did you mean {meant}? {choose}"
