"""Compare the decisions of llama.cpp with those of transformers, for the demonstration model in F32.

Needs llama-cpp-python and a folder of llama.cpp (see `convert_families`), whose converter writes the
file. Whole traces of some prompts and their continuations are compared row by row:

    python -m benchmarks.gguf.routing.demo vendor/llama.cpp
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import pandas as pd
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import moetool
from benchmarks.gguf.convert_families import import_converter
from benchmarks.gguf.routing.compare import EXACTLY, compare_file
from benchmarks.gguf.routing.demo_file import write_demo
from moetool.catalogue.names import demo_folder
from moetool.library.trace_gguf import trace_gguf
from moetool.tracing.llama_cpp.options import LlamaCppOptions
from moetool.tracing.prompts.prompts import read_prompts
from tests.command import REPOSITORY

_PROMPTS = REPOSITORY / "sample_prompts"
_NUM_PROMPTS, _MOST_TOKENS, _NUM_NEW_TOKENS = 14, 200, 8
_KEY = ["prompt_id", "layer", "position", "rank"]
_EXACT_COLUMNS = ["domain", "phase", "token_id", "token", "expert"]
_MOST_OFF = 1e-4


def compare_traces(path: Path) -> str:
    """Trace prompts and their continuations by both, and return how many rows agree in all columns.

    Raises:
        SystemExit: One does not.
    """
    folder = path.parent
    moetool.trace_model(
        demo_folder(),
        _PROMPTS,
        output=folder / "transformers.parquet",
        limit=_NUM_PROMPTS,
        max_prompt_tokens=_MOST_TOKENS,
        dtype="float32",
        max_new_tokens=_NUM_NEW_TOKENS,
    )
    options = {**vars(EXACTLY), "with_margins": False}
    options |= {"max_new_tokens": _NUM_NEW_TOKENS, "max_prompt_tokens": _MOST_TOKENS}
    prompts = read_prompts(str(_PROMPTS))[:_NUM_PROMPTS]
    target = folder / "llama_cpp.parquet"
    trace_gguf(path, prompts, target, options=LlamaCppOptions(**options))
    mine, others = (
        pd.read_parquet(each).set_index(_KEY).sort_index()
        for each in (target, folder / "transformers.parquet")
    )
    if not mine.index.equals(others.index):
        sys.exit("the traces have other rows")
    is_equal = (mine["weight"] - others["weight"]).abs() <= _MOST_OFF
    for name in _EXACT_COLUMNS:
        is_equal &= mine[name].astype(str) == others[name].astype(str)
    if not is_equal.all():
        sys.exit(f"{(~is_equal).sum()} of {len(mine)} rows differ:\n{mine[~is_equal].head()}")
    return f"{len(mine):,} rows of whole traces agree in all columns, texts of tokens included"


def main() -> None:
    """Print what agrees; exit with 1 if more than ties differ."""
    source = import_converter(Path(sys.argv[1]))
    tokenizer = AutoTokenizer.from_pretrained(demo_folder())
    texts = [prompt.text for prompt in read_prompts(str(_PROMPTS))]
    prompts = [tokenizer(text)["input_ids"][:_MOST_TOKENS] for text in texts[::12]]
    model = AutoModelForCausalLM.from_pretrained(demo_folder(), dtype=torch.float32)
    are_same = True
    with tempfile.TemporaryDirectory() as name:
        for is_wide in (False, True):
            path = Path(name, f"demo-{'wide' if is_wide else 'narrow'}.gguf")
            write_demo(source, path, is_wide=is_wide)
            found = compare_file(path, model, prompts, num_new_tokens=1, ubatch=64)
            sys.stdout.write(f"{path.stem}: {found.describe()}\n")
            are_same = are_same and found.are_same
        sys.stdout.write(f"{compare_traces(Path(name, 'demo-narrow.gguf'))}\n")
    sys.exit(not are_same)


if __name__ == "__main__":
    main()
