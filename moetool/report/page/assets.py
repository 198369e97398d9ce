"""The page's scripts: modules in their own files, put into one script in the order of imports."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from posixpath import dirname, join, normpath

_ENTRY = "main.js"
# The forms of import and export that the modules keep to; a test checks that there are no others.
_IMPORT = re.compile(r'^import \{([^}]*)\} from "(\.[^"]+)";\n', re.MULTILINE)
_EXPORT = re.compile(r"^export (?=(?:async )?(?:function|const|class) (\w+))", re.MULTILINE)


@cache
def join_scripts() -> str:
    """Return one strict script that runs all modules.

    Each module becomes a function that is called once and returns what the module exports.
    """
    order: list[str] = []
    _visit(_ENTRY, order, path=())
    body = "".join(_wrap(name) for name in order)
    return f'(() => {{\n"use strict";\nconst modules = {{}};\n{body}}})();\n'


def read_asset(folder: str, name: str) -> str:
    """Return a file of the page: a script, a style sheet or a template."""
    found: Traversable = files("moetool.report.page").joinpath(folder)
    for part in name.split("/"):
        found = found.joinpath(part)
    return found.read_text(encoding="utf-8")


def _visit(name: str, order: list[str], *, path: tuple[str, ...]) -> None:
    """Add a module after all that it imports."""
    if name in path:
        raise ValueError(f"{name} imports itself: {' → '.join((*path, name))}")
    if name in order:
        return
    for imported in _list_imports(name):
        _visit(imported, order, path=(*path, name))
    order.append(name)


def _list_imports(name: str) -> Iterator[str]:
    for match in _IMPORT.finditer(read_asset("scripts", name)):
        yield _resolve(name, match[2])


def _resolve(name: str, target: str) -> str:
    return normpath(join(dirname(name), target))


def _wrap(name: str) -> str:
    text = read_asset("scripts", name)
    exported = [match[1] for match in _EXPORT.finditer(text)]

    def bind(match: re.Match[str]) -> str:
        names = match[1].replace(" as ", ": ")
        return f'const {{{names}}} = modules["{_resolve(name, match[2])}"];\n'

    body = _EXPORT.sub("", _IMPORT.sub(bind, text))
    return f'modules["{name}"] = (() => {{\n{body}return {{ {", ".join(exported)} }};\n}})();\n'
