"""Errors as a user of the library sees them."""

from __future__ import annotations

import traceback

import pytest

from moetool import MoetoolError, inspect_model


def test_a_traceback_ends_with_the_hint() -> None:
    with pytest.raises(MoetoolError) as caught:
        inspect_model("mixtral-8x9b")
    *_, message, hint = "".join(traceback.format_exception_only(caught.value)).splitlines()
    assert message.endswith(caught.value.message)
    assert hint == f"hint: {caught.value.hint}"
