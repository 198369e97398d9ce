"""`moetool gpus` as users run it."""

from __future__ import annotations

import json
from pathlib import Path

from tests.cli.bad_input.refusals import Refusal, assert_refused
from tests.cli.process.test_startup import modules_imported_by
from tests.command import RunMoetool


def test_gpus_are_listed_and_filtered(run_moetool: RunMoetool, tmp_path: Path) -> None:
    completed = run_moetool("gpus")
    assert (completed.returncode, completed.stderr) == (0, "")
    for word in ("rtx-4090", "24.0 GiB", "hopper", "AMD", "48 GPUs and 4 TPUs."):
        assert word in completed.stdout
    output = tmp_path / "gpus.json"
    assert run_moetool("gpus", "--vendor", "amd", "-o", output).returncode == 0
    listed = json.loads(output.read_text(encoding="utf-8"))["gpus"]
    assert {gpu["vendor"] for gpu in listed} == {"AMD"}
    completed = run_moetool("gpus", "--min-memory", "140GiB", "--format", "csv")
    assert completed.stdout.splitlines()[1].startswith("h200,")


def test_filters_that_mean_nothing_are_refused(run_moetool: RunMoetool) -> None:
    refusal = Refusal(2, error="'intel'", hint="AMD, Google or NVIDIA")
    assert_refused(run_moetool("gpus", "--vendor", "intel"), refusal, target=None)
    refusal = Refusal(2, error="'80'", hint="24GiB")
    assert_refused(run_moetool("gpus", "--min-memory", "80"), refusal, target=None)


def test_listing_imports_no_torch() -> None:
    assert not modules_imported_by("gpus") & {"torch", "transformers", "pandas", "numpy"}
