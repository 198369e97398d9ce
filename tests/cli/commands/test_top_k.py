"""Tokens that run no expert, or more than there are: one error line, whatever is asked."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers import CONFIG_MAPPING

from moetool.anatomy.parameters import ActiveDefinition
from moetool.catalogue.published import read_published_config, read_published_models
from moetool.checkpoint.config import make_config
from moetool.checkpoint.stated.top_k_fields import check_top_k
from moetool.errors import InputError
from moetool.inspection.inspect import inspect_model
from tests.cli.bad_input.refusals import Refusal, assert_refused
from tests.command import run_main

COMMANDS: dict[str, tuple[str, ...]] = {
    "inspect": ("--source", "skeleton"),
    "memory-estimate": ("--prompt-tokens", "8", "--new-tokens", "1"),
    "route-trace": ("--prompt", "hello", "--device", "cpu", "--format", "csv"),
}


def copy_demo(demo: Path, folder: Path, **fields: object) -> Path:
    """Return a copy of the demonstration checkpoint whose config.json states something else."""
    copied = shutil.copytree(demo, folder / "checkpoint")
    config = json.loads((copied / "config.json").read_text("utf-8"))
    (copied / "config.json").write_text(json.dumps({**config, **fields}), encoding="utf-8")
    return copied


@pytest.mark.parametrize("top_k", [0, -1, 9, 10**6])
@pytest.mark.parametrize("command", COMMANDS)
def test_a_top_k_that_no_model_has_is_refused_by_name(
    command: str, top_k: int, demo: Path, tmp_path: Path
) -> None:
    folder = copy_demo(demo, tmp_path, num_experts_per_tok=top_k)

    completed = run_main(command, folder, *COMMANDS[command])

    error = f"describes no model: num_experts_per_tok is {top_k:,}"
    error += ", and num_local_experts is 8." if top_k >= 0 else "."
    assert_refused(completed, Refusal(3, error=error, hint="config.json"), target=None)


@pytest.mark.parametrize("top_k", [0, -1, 9])
@pytest.mark.parametrize("source", ["auto", "headers"])
def test_files_are_counted_all_the_same_and_what_is_active_is_unknown(
    source: str, top_k: int, demo: Path, tmp_path: Path
) -> None:
    folder = copy_demo(demo, tmp_path, num_experts_per_tok=top_k)

    inspected = inspect_model(str(folder), source=source)

    assert inspected.parameters is not None
    assert inspected.parameters.total == 2_924_160
    assert inspected.parameters.active[ActiveDefinition.ALL] is None
    assert inspected.top_k is None
    said = " ".join(inspected.notes)
    assert "Active parameters unknown" in said
    if source == "auto":
        assert f"describes no model: num_experts_per_tok is {top_k}" in said
    elif top_k > 0:
        assert "config.json states top-9 of 8 experts" in said


@pytest.mark.parametrize(
    ("config", "is_possible"),
    [
        ({"num_experts": 8, "moe_topk": [8, 8]}, True),
        ({"num_experts": 8, "moe_topk": [0, 8]}, True),
        ({"num_experts": 8, "moe_topk": [2, 9]}, False),
        ({"moe_num_experts": [8, 16], "moe_k": 16}, True),
        ({"n_routed_experts": 8, "zero_expert_num": 4, "moe_topk": 12}, True),
        ({"n_routed_experts": 8, "zero_expert_num": 4, "moe_topk": 13}, False),
        # Dense models of families that may have experts.
        ({"num_experts": 1, "num_experts_per_tok": 2}, True),
        ({"num_experts": 0, "num_experts_per_tok": 0}, True),
        ({"num_experts": None, "top_k_experts": None}, True),
        ({"num_experts_per_tok": 4}, True),
    ],
)
def test_what_a_family_may_state_is_let_pass(config: dict[str, Any], is_possible: bool) -> None:
    if is_possible:
        check_top_k(config, label="here")
        return
    with pytest.raises(InputError, match="'here' describes no model"):
        check_top_k(config, label="here")


def test_no_family_and_no_published_model_is_refused() -> None:
    for config_class in CONFIG_MAPPING.values():
        try:
            config = config_class()
        except Exception:  # noqa: BLE001 - a default that can't be built is of another's making.
            continue
        check_top_k(config, label="here")
    for name, model in read_published_models().items():
        if model.can_be_counted:
            raw = read_published_config(name)
            make_config(raw, name=name, label=name, code=None, trust_remote_code=False)
