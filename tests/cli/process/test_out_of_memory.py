"""A run that doesn't fit into memory says so, and what to make smaller."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.cli.bad_input.refusals import Refusal, assert_refused
from tests.command import REPOSITORY, Completed

# Runs the command with a limit on memory, counted from what the imported libraries already use.
RUN_WITHIN_A_LIMIT = """
import resource, runpy, sys
{imports}

spare = int(sys.argv.pop(1))
with open("/proc/self/statm") as file:
    used = int(file.read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + spare, used + spare))
runpy.run_module("moetool", run_name="__main__")
"""
# Enough to load the demonstration checkpoint (12 MB), far too little for a batch of 64 Ki tokens,
# which takes about 700 MB.
SPARE_BYTES = 250_000_000


def run_moetool_within(spare_bytes: int, *args: str | Path, imports: str) -> Completed:
    code = RUN_WITHIN_A_LIMIT.format(imports=imports)
    # One thread and one heap: each further one reserves addresses that it does not use.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"}
    return subprocess.run(
        [sys.executable, "-c", code, str(spare_bytes), *map(str, args)],
        capture_output=True,
        cwd=REPOSITORY,
        env=environment,
        text=True,
        check=False,
    )


def write_huge_weights(path: Path, *, num_bytes: int) -> None:
    """Write one tensor of zeros, of which a file system stores nothing."""
    tensor = {"dtype": "F32", "shape": [num_bytes // 4], "data_offsets": [0, num_bytes]}
    header = json.dumps({"zeros": tensor}).encode()
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + num_bytes)


def test_a_batch_that_does_not_fit_is_named_with_its_size(tmp_path: Path, target: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    line = json.dumps({"text": "def add(a, b): return a + b " * 60})
    prompts.write_text(f"{line}\n" * 128, encoding="utf-8")
    expected = Refusal(
        6, error="in a batch of 128 prompts of up to 512 tokens on cpu", hint="--batch-size"
    )

    completed = run_moetool_within(
        SPARE_BYTES,
        *("route-trace", "demo", "--prompts", prompts, "-o", target),
        *("--batch-size", "4000", "--max-prompt-tokens", "512", "--device", "cpu"),
        imports="import pandas, pyarrow.csv, torch\nfrom transformers import MixtralForCausalLM",
    )

    assert_refused(completed, expected, target=target)


def test_weights_that_cannot_be_mapped_end_in_the_same_exit_code(
    demo: Path, tmp_path: Path, target: Path
) -> None:
    checkpoint = tmp_path / "checkpoint"
    shutil.copytree(demo, checkpoint)
    write_huge_weights(checkpoint / "model.safetensors", num_bytes=16 * SPARE_BYTES)
    expected = Refusal(6, error="Out of memory while loading", hint="more memory")

    completed = run_moetool_within(
        SPARE_BYTES,
        *("route-trace", checkpoint, "--prompt", "hello", "-o", target),
        imports="import pandas, pyarrow.csv, torch\nfrom transformers import MixtralForCausalLM",
    )

    assert_refused(completed, expected, target=target)
