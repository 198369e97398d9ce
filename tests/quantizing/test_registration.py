"""transformers knows moetool's format, whichever of the two is imported first."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from moetool.registration import METHOD
from tests.command import REPOSITORY

REGISTRY = "AUTO_QUANTIZATION_CONFIG_MAPPING = {}\nAUTO_QUANTIZER_MAPPING = {}\n"
IMPORTS = ("import moetool", "import transformers.quantizers.auto as registry")


@pytest.mark.parametrize("imports", [IMPORTS, IMPORTS[::-1]])
def test_the_format_is_registered_without_importing_its_classes(
    imports: tuple[str, str], tmp_path: Path
) -> None:
    # A stand-in for transformers, whose own import takes seconds.
    package = tmp_path / "transformers" / "quantizers"
    package.mkdir(parents=True)
    (package.parent / "__init__.py").touch()
    (package / "__init__.py").touch()
    (package / "auto.py").write_text(REGISTRY, encoding="utf-8")
    code = "\n".join(
        (
            "import sys",
            *imports,
            "print(*registry.AUTO_QUANTIZATION_CONFIG_MAPPING, *registry.AUTO_QUANTIZER_MAPPING)",
            "print('torch' in sys.modules, registry.__spec__.loader is registry.__loader__)",
            "print(type(registry.__loader__).__name__)",
        )
    )
    run = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{REPOSITORY}"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout.split() == [METHOD, METHOD, "False", "True", "SourceFileLoader"]
