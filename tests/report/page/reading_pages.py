"""The data of a page, unpacked in Python as its scripts unpack it."""

from __future__ import annotations

import base64
import json
import re
import zlib
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class SampledDecisions:
    """The decisions of one layer, a row for each token of the sample.

    Attributes:
        experts: None where none ran.
        weights: None if the page has none.
    """

    experts: list[list[int | None]]
    weights: list[list[float]] | None


def read_payload(page: str) -> dict[str, Any]:
    payload: dict[str, Any] = json.loads(_unpack(page, "payload"))
    return payload


def read_decisions(page: str) -> list[SampledDecisions]:
    """Return the decisions of each layer, from the bytes that follow one another."""
    sample, data = read_payload(page)["sample"], _unpack(page, "decisions")
    number, layers, at = sample["num_tokens"], [], 0
    for (top_k, width), scale in zip(sample["shapes"], sample["weight_scale"], strict=True):
        nothing = 256**width - 1
        ids = [
            int.from_bytes(data[at + width * one : at + width * (one + 1)], "little")
            for one in range(number * top_k)
        ]
        at += width * number * top_k
        weights = None
        if sample["has_weights"]:
            flat = [byte / 255 * scale for byte in data[at : at + number * top_k]]
            at += number * top_k
            weights = [flat[one * top_k : (one + 1) * top_k] for one in range(number)]
        experts = [None if one == nothing else one for one in ids]
        layers.append(
            SampledDecisions(
                [experts[one * top_k : (one + 1) * top_k] for one in range(number)], weights
            )
        )
    assert at == len(data)
    return layers


def _unpack(page: str, name: str) -> bytes:
    found = re.search(rf'id="{name}">([^<]*)<', page)
    assert found is not None
    return zlib.decompress(base64.b64decode(found[1]), -zlib.MAX_WBITS)
