"""The page's modules, and the one script that they are joined to."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from moetool.report.page import assets
from moetool.report.page.assets import join_scripts, read_asset

FOLDER = Path(assets.__file__).parent / "scripts"
MODULES = sorted(path.relative_to(FOLDER).as_posix() for path in FOLDER.rglob("*.js"))

# Statements that the modules use; `assets.py` turns each of them into plain code.
IMPORT = re.compile(r'^import \{([\w\s,]+)\} from "(\.{1,2}/[\w/.]+\.js)";$', re.MULTILINE)
EXPORT = re.compile(r"^export (?:async )?(?:function|const|class) (\w+)", re.MULTILINE)
STARTS = re.compile(r"^(?:import|export)\b", re.MULTILINE)


def list_imports(name: str) -> dict[str, list[str]]:
    """Return the names that a module takes from each other module."""
    return {
        (FOLDER / name).parent.joinpath(target).resolve().relative_to(FOLDER).as_posix(): [
            one.split(" as ")[0].strip() for one in names.split(",") if one.strip()
        ]
        for names, target in IMPORT.findall(read_asset("scripts", name))
    }


def list_exports(name: str) -> list[str]:
    return EXPORT.findall(read_asset("scripts", name))


@pytest.mark.parametrize("name", MODULES)
def test_every_import_and_export_has_a_form_that_is_joined(name: str) -> None:
    text = read_asset("scripts", name)
    joined = len(IMPORT.findall(text)) + len(EXPORT.findall(text))
    assert len(STARTS.findall(text)) == joined
    # Outside of comments, nothing is imported while the page runs.
    code = re.sub(r"/\*.*?\*/|//.*", "", text, flags=re.DOTALL)
    assert not re.search(r"\bimport\s*\(|\bimport\.meta\b|^\s*export\s*\{", code, re.MULTILINE)


@pytest.mark.parametrize("name", MODULES)
def test_every_imported_name_is_exported_by_its_module(name: str) -> None:
    for target, names in list_imports(name).items():
        assert set(names) <= set(list_exports(target)), target


def test_every_module_and_every_export_is_used() -> None:
    used = {"main.js": set[str]()}
    for name in MODULES:
        for target, names in list_imports(name).items():
            used.setdefault(target, set()).update(names)
    assert sorted(used) == MODULES
    exported = {name: set(list_exports(name)) for name in MODULES}
    # Types are made of what a module exports, too.
    assert {
        name: names - used[name] for name, names in exported.items() if names - used[name]
    } == {}


def test_modules_are_joined_once_and_after_what_they_import() -> None:
    script = join_scripts()
    places = {name: script.index(f'modules["{name}"] = ') for name in MODULES}
    for name in MODULES:
        assert script.count(f'modules["{name}"] = ') == 1
        assert all(places[target] < places[name] for target in list_imports(name))
    assert not STARTS.search(script)


def join(monkeypatch: pytest.MonkeyPatch, **modules: str) -> str:
    """Return the script of some modules, without that of the page in the cache."""
    monkeypatch.setattr(
        assets, "read_asset", lambda _, name: modules[name.removesuffix(".js").replace("/", "_")]
    )
    return join_scripts.__wrapped__()


def test_modules_that_import_each_other_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"main\.js → a\.js → main\.js"):
        join(
            monkeypatch,
            main='import { a } from "./a.js";\nexport const b = 1;\n',
            a='import { b } from "./main.js";\nexport const a = b;\n',
        )


def test_names_are_bound_under_another_name(monkeypatch: pytest.MonkeyPatch) -> None:
    script = join(
        monkeypatch,
        main='import { one as two } from "./in/a.js";\nconsole.log(two);\n',
        in_a='import { b } from "../b.js";\nexport const one = b;\n',
        b="export async function b() {}\n",
    )
    assert 'const {one: two} = modules["in/a.js"];' in script.replace("{ ", "{").replace(" }", "}")
    assert script.index('modules["b.js"] =') < script.index('modules["in/a.js"] =')
    assert "async function b() {}\nreturn { b };" in script
