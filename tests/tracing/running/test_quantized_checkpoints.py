"""Quantized checkpoints that can't be loaded here: errors name what is missing and do not blame config.json."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from moetool.anatomy.skeleton.build import find_auto_class, refuse_unbuildable
from moetool.checkpoint.config import load_config
from moetool.checkpoint.files import Checkpoint
from moetool.errors import InputError
from moetool.tracing.running.load_model import load_model
from tests.memory.loaded.packed_checkpoints import save_packed
from tests.tiny_models import build_config

QUANTIZERS = "transformers.quantizers.quantizer_"
MISSING = {
    "gptq": ("gptq.is_optimum_available", "optimum"),
    "awq": ("awq.is_gptqmodel_available", "gptqmodel"),
}


def load(name: str, folder: Path) -> Any:
    checkpoint = Checkpoint(name=name, folder=Path(save_packed(name, folder)), revision=None)
    config = load_config(checkpoint, trust_remote_code=False)
    return load_model(
        checkpoint, config, auto_class=find_auto_class(config), device_map={"": "cpu"}
    )


@pytest.mark.parametrize("name", MISSING)
def test_a_package_that_is_missing_is_named(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    function, package = MISSING[name]
    monkeypatch.setattr(f"{QUANTIZERS}{function}", lambda *_: False)
    with pytest.raises(InputError) as caught:
        load(name, tmp_path)
    assert caught.value.message == f"{name} needs a package that is not installed here: {package}."
    assert caught.value.hint == f"Install it: pip install {package}."
    assert "config.json" not in f"{caught.value.message}{caught.value.hint}"


@pytest.mark.parametrize("name", ["mlx", "modelopt", "unstated format"])
def test_a_format_that_transformers_does_not_load_is_named(name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        load(name, tmp_path)
    assert "in a format that transformers can't load" in caught.value.message
    assert name in caught.value.message.split("can't load: ")[1]
    assert "config.json" not in caught.value.hint


@pytest.mark.parametrize(
    ("words", "package", "command"),
    [
        ("Loading it requires optimum (`pip install optimum`)", "optimum", "optimum"),
        ("Run `pip install -U aqlm[gpu,cpu]`", "aqlm[gpu,cpu]", "'aqlm[gpu,cpu]'"),
        ("Use `pip install compressed-tensors>=0.15.0`.", "compressed-tensors>=0.15.0", None),
    ],
)
def test_what_a_family_misses_while_it_is_built_is_named(
    words: str, package: str, command: str | None
) -> None:
    with (
        pytest.raises(InputError) as caught,
        refuse_unbuildable("tiny", build_config("mixtral"), trust_remote_code=False),
    ):
        raise ImportError(words)
    assert caught.value.message.endswith(f"not installed here: {package}.")
    assert caught.value.hint == f"Install it: pip install {command or repr(package)}."


def test_an_import_that_names_no_command_is_named_by_its_module() -> None:
    with (
        pytest.raises(InputError, match=r"(?m)not installed here: flash_attn\.$"),
        refuse_unbuildable("tiny", build_config("mixtral"), trust_remote_code=True),
    ):
        raise ModuleNotFoundError("No module named 'flash_attn'", name="flash_attn")
