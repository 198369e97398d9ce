"""The architecture page describes the tree and the layers that there are."""

from __future__ import annotations

import re
import tomllib

from tools.refresh_docs import REPOSITORY

PAGE = (REPOSITORY / "docs" / "architecture.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```text\n(.*?)^```$", PAGE, re.M | re.S)
PACKAGE = REPOSITORY / "moetool"


def test_the_tree_shows_every_folder() -> None:
    shown: set[str] = set()
    parent = ""
    for indent, name in re.findall(r"^( +)(\w+)/", BLOCKS[0], re.M):
        parent = name if len(indent) == 2 else parent
        shown.add(name if len(indent) == 2 else f"{parent}/{name}")
    folders = {str(init.parent.relative_to(PACKAGE)) for init in PACKAGE.rglob("__init__.py")}
    assert shown == {folder for folder in folders if folder.count("/") < 2} - {"."}


def test_the_layers_are_those_of_the_contract() -> None:
    settings = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))
    contracts = settings["tool"]["importlinter"]["contracts"]
    (layers,) = [item["layers"] for item in contracts if item["name"] == "Imports point one way"]
    assert BLOCKS[1].split("\n")[:-1] == layers[1:]


def test_every_path_named_exists() -> None:
    named = re.findall(r"`((?:\w+/)+(?:\w+\.py)?)`", PAGE)
    assert len(named) > 20
    parents = ("", "memory")  # the sub-packages of memory are named without it, in one list
    for path in named:
        assert any((PACKAGE / parent / path).exists() for parent in parents), path
