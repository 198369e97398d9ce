"""Measure a whole traced run against a bare loop over the same batches.

    python -m benchmarks.tracing.command                  # the demonstration model, on the CPU
    python -m benchmarks.tracing.command OLMoE-1B-7B      # a published geometry, on a GPU

The model is loaded once. Then rounds alternate between the bare loop, which makes the same batches
and puts them through the model, and `trace_model` to a file of each kind, from the prompts' texts to
the finished file. A random geometry reads texts of random words. The stages of `RunTimings` overlap:
they say what was under way, not what was waited for.
"""

from __future__ import annotations

import random
import resource
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import transformers

from benchmarks.tracing.recording_on_gpu import build
from moetool import Trace, trace_model
from moetool.process.cores import count_cores
from moetool.tracing.options import TraceOptions
from moetool.tracing.prompts.given import take_prompts
from moetool.tracing.prompts.tokens import choose_pad, tokenize_prompts
from moetool.tracing.running.batches import list_windows, make_batches

DEMO = Path("moetool/catalogue/demo")
NUM_PROMPTS = {"demo": 840, "OLMoE-1B-7B": 1200, "Qwen3-30B-A3B": 400, "Mixtral-8x7B": 300}
MOST_WORDS = 1000
MOST_TOKENS = 2048
KINDS = (".parquet", ".csv")
ROUNDS, WARM_UP = 3, 40


def main() -> None:
    """Measure the geometries named on the command line, or the demonstration model."""
    where = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    print(
        f"{where}, {count_cores()} cores, torch {torch.__version__}, transformers "
        f"{transformers.__version__}"
    )
    for name in sys.argv[1:] or ["demo"]:
        model, tokenizer, prompts = load(name)
        show(name, model, tokenizer, prompts)
        del model
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def load(name: str) -> tuple[Any, Any, list[str]]:
    """Return a model with its tokenizer, and texts for it."""
    number = NUM_PROMPTS[name]
    tokenizer = transformers.AutoTokenizer.from_pretrained(DEMO)
    if name == "demo":
        model = transformers.AutoModelForCausalLM.from_pretrained(DEMO).eval()
        read = take_prompts(Path("sample_prompts"))
        texts = [prompt.text or "" for prompt in read]
        return model, tokenizer, (texts * (number // len(texts) + 1))[:number]
    model, _ = build(name)
    words = Path("README.md").read_text().split()
    draw = random.Random(0)
    return (
        model,
        tokenizer,
        [" ".join(draw.choices(words, k=draw.randint(50, MOST_WORDS))) for _ in range(number)],
    )


def show(name: str, model: Any, tokenizer: Any, prompts: list[str]) -> None:
    """Print one table for a model."""
    with tempfile.TemporaryDirectory() as folder:
        times: dict[str, list[float]] = {"loop": [], **{kind: [] for kind in KINDS}}
        traces: dict[str, Trace] = {}
        for round_ in range(ROUNDS + 1):
            texts = prompts if round_ else prompts[:WARM_UP]
            for kind, measured in times.items():
                target = Path(folder, f"trace{kind}")
                # Replacing a long file takes time as well.
                target.unlink(missing_ok=True)
                synchronize()
                start = time.perf_counter()
                if kind == "loop":
                    num_tokens = loop(model, tokenizer, texts)
                else:
                    traces[kind] = trace_model(
                        (model, tokenizer),
                        texts,
                        output=target,
                        overwrite=True,
                        max_prompt_tokens=limit_tokens(model),
                    )
                synchronize()
                if round_:
                    measured.append(time.perf_counter() - start)
        print(f"\n{name}, {len(prompts)} prompts, {num_tokens:,} tokens\n")
        print("| run | tokens/s | of the loop | rows/s | stages, s |")
        print("|---|---:|---:|---:|---|")
        bare = statistics.median(times["loop"])
        print(f"| bare loop | {num_tokens / bare:,.0f} | 1 | | |")
        for kind, trace in traces.items():
            seconds = statistics.median(times[kind])
            ratios = [a / b for a, b in zip(times["loop"], times[kind], strict=True)]
            assert trace.timings is not None
            stages = ", ".join(
                f"{stage} {value:.2f}" for stage, value in trace.timings.stages_s.items()
            )
            print(
                f"| to {kind} | {num_tokens / seconds:,.0f} | {statistics.median(ratios):.3f} "
                f"({min(ratios):.2f} to {max(ratios):.2f}) "
                f"| {trace.num_rows / seconds:,.0f} | {stages} |",
                flush=True,
            )
        size = Path(folder, "trace.parquet").stat().st_size
        rows = traces[".parquet"].num_rows
        print(f"\n{rows:,} rows, {size / rows:.2f} bytes each as Parquet; peak RSS ", end="")
        print(f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB", flush=True)


def loop(model: Any, tokenizer: Any, texts: list[str]) -> int:
    """Put the batches that a traced run makes of texts through a model; return their tokens."""
    options = TraceOptions()
    prompts = tokenize_prompts(
        take_prompts(texts),
        tokenizer,
        special_tokens="tokenizer",
        context_tokens=None,
        max_prompt_tokens=limit_tokens(model),
    )
    pad = choose_pad(tokenizer, vocabulary=None)
    with torch.inference_mode():
        for window in list_windows(prompts, options):
            for batch in make_batches(
                window.prompts, batch_size=options.batch_size, pad_token_id=pad
            ):
                model(
                    input_ids=torch.from_numpy(batch.input_ids).to(model.device),
                    attention_mask=torch.from_numpy(batch.attention_mask).to(model.device),
                    use_cache=False,
                    logits_to_keep=1,
                )
    return sum(len(prompt.token_ids) for prompt in prompts)


def limit_tokens(model: Any) -> int:
    """Return the number of tokens to which prompts are cut."""
    return min(MOST_TOKENS, int(model.config.max_position_embeddings))


def synchronize() -> None:
    """Wait for the GPU, if there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
