"""The documentation's console blocks show what the commands really print."""

from __future__ import annotations

import re
from pathlib import Path

from tests.command import REPOSITORY
from tools.refresh_docs import DOCUMENTS, make_workplace, refresh, without_timings


def test_the_output_shown_is_the_output_of_the_command(tmp_path: Path) -> None:
    workplace = make_workplace(tmp_path)
    for name in DOCUMENTS:
        shown = (REPOSITORY / name).read_text(encoding="utf-8")
        real = refresh(shown, folder=workplace)
        assert without_timings(shown) == without_timings(real), f"{name} is stale"


def test_every_link_within_the_project_leads_somewhere() -> None:
    for document in REPOSITORY.glob("*.md"):
        for target in re.findall(r"\]\((?!http)([^)#]+)\)", document.read_text(encoding="utf-8")):
            assert (document.parent / target).exists(), f"{document.name} links to {target}"
