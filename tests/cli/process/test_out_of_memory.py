"""A run that doesn't fit into memory says so, and what to make smaller."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Protocol

import pytest

from tests.cli.bad_input.refusals import Refusal, assert_refused
from tests.cli.process.started import finish, forked_moetool
from tests.command import Completed
from tests.forked import Forks

# Enough to load the demonstration checkpoint (12 MB), far too little for a batch of 64 Ki tokens,
# which takes about 700 MB.
SPARE_BYTES = 250_000_000


# A limit on memory, counted from what the imported libraries already use.
LIMIT = f"""
import resource

with open("/proc/self/statm") as file:
    used = int(file.read().split()[0]) * resource.getpagesize()
limit = used + {SPARE_BYTES}
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
"""


class RunLimited(Protocol):
    """Runs `moetool ARGS` in a process that may take little more memory than its libraries."""

    def __call__(self, *args: str | Path) -> Completed: ...


@pytest.fixture
def run_limited(forks: Forks) -> RunLimited:
    def run(*args: str | Path) -> Completed:
        with forked_moetool(forks, *args, setting=LIMIT) as process:
            return finish(process)

    return run


def write_huge_weights(path: Path, *, num_bytes: int) -> None:
    """Write one tensor of zeros, of which a file system stores nothing."""
    tensor = {"dtype": "F32", "shape": [num_bytes // 4], "data_offsets": [0, num_bytes]}
    header = json.dumps({"zeros": tensor}).encode()
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + num_bytes)


def test_a_batch_that_does_not_fit_is_named_with_its_size(
    tmp_path: Path, target: Path, run_limited: RunLimited
) -> None:
    prompts = tmp_path / "prompts.jsonl"
    line = json.dumps({"text": "def add(a, b): return a + b " * 60})
    prompts.write_text(f"{line}\n" * 128, encoding="utf-8")
    expected = Refusal(
        6, error="in a batch of 128 prompts of up to 512 tokens on cpu", hint="--batch-size"
    )

    completed = run_limited(
        *("route-trace", "demo", "--prompts", prompts, "-o", target),
        *("--batch-size", "4000", "--max-prompt-tokens", "512", "--device", "cpu"),
    )

    assert_refused(completed, expected, target=target)


def test_weights_that_cannot_be_mapped_end_in_the_same_exit_code(
    demo: Path, tmp_path: Path, target: Path, run_limited: RunLimited
) -> None:
    checkpoint = tmp_path / "checkpoint"
    shutil.copytree(demo, checkpoint)
    write_huge_weights(checkpoint / "model.safetensors", num_bytes=16 * SPARE_BYTES)
    expected = Refusal(6, error="Out of memory while loading", hint="more memory")

    completed = run_limited("route-trace", checkpoint, "--prompt", "hello", "-o", target)

    assert_refused(completed, expected, target=target)
