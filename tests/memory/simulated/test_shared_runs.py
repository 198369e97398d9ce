"""Variants that a copy of the command's process simulates give the answers of one process."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.process.started import finish, forked_moetool
from tests.command import RunMoetool
from tests.forked import Forks
from tests.memory.saved_configs import save_config

FP8 = {"quant_method": "fp8", "weight_block_size": [8, 8]}
SIZES = ("--batch-size", "2", "--prompt-tokens", "64", "--new-tokens", "20")
# Notes whether the process or its copy simulates each scenario. The process begins after its copy.
SETTING = """
import os, time
from moetool.memory.simulated.model_runs import ModelRuns
from moetool.process import fork

# Whatever cores this machine has.
fork.count_cores = lambda: 2

simulate, own = ModelRuns._simulate, os.getpid()
noted = os.open(os.environ["NOTED"], os.O_RDWR | os.O_CREAT | os.O_APPEND)

def noting(self, scenario, **options):
    whose = "process" if os.getpid() == own else "copy"
    deadline = time.monotonic() + 120
    while whose == "process" and not os.pread(noted, 1, 0):
        assert time.monotonic() < deadline, "no copy has begun"
        time.sleep(0.001)
    os.write(noted, f"{whose} {scenario.dtype} {scenario.quantization}\\n".encode())
    return simulate(self, scenario, **options)

ModelRuns._simulate = noting
"""


@pytest.mark.parametrize(
    ("is_packed", "gpu", "first_of_copy"),
    [
        # Runs take more than the GPU has, and are replayed with less.
        (False, "737MiB", "copy auto int8"),
        (True, "737MiB", "copy bfloat16 none"),
        (True, None, "copy bfloat16 none"),
    ],
)
def test_a_copy_simulates_variants_as_the_process_itself_does(
    is_packed: bool,
    gpu: str | None,
    first_of_copy: str,
    forks: Forks,
    run_moetool: RunMoetool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fields = {"quantization_config": FP8} if is_packed else {}
    path = save_config("qwen3_moe", tmp_path, dtype="bfloat16", **fields)
    words = ["memory-estimate", path, *SIZES, "--format", "json"]
    words += [] if gpu is None else ["--gpu", gpu]
    monkeypatch.setenv("NOTED", str(tmp_path / "noted"))
    with forked_moetool(forks, *words, setting=SETTING) as process:
        shared = finish(process)
    assert shared.returncode == 0, shared.stderr
    alone = run_moetool(*words)
    assert shared.stdout == alone.stdout
    noted = (tmp_path / "noted").read_text().splitlines()
    assert noted[0] == first_of_copy
    assert "process auto none" in noted
