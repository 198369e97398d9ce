"""Numbers for the prompts, stacks and layers of a trace, in the order that they come in."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from moetool.errors import InputError
from moetool.printable import printable
from moetool.trace.scanning.columns import CodedWords
from moetool.trace.scanning.fault_log import DOMAINS, FaultLog, LoggedFault
from moetool.trace.scanning.places import (
    LAYER_BITS,
    PLACE,
    PLACE_BITS,
    STACK_BITS,
    describe_place,
    shorten,
)
from moetool.trace.scanning.rows_of_decisions import find_starts

# Pairs of stack and layer; no model comes near.
_MOST_PLACES = 1 << STACK_BITS


class Registry:
    """Gives each (prompt, stack, layer) a number, its key.

    Attributes:
        prompts: In order of first occurrence.
        domains: Domain of each prompt.

    Args:
        is_checked: Refuse a prompt under two domains. Otherwise, its first one counts.
        log: Note a prompt under two domains there instead of refusing it.
    """

    def __init__(self, *, is_checked: bool, log: FaultLog | None = None) -> None:
        self.prompts: list[str] = []
        self.domains: list[str] = []
        self._is_checked = is_checked
        self._log = log
        self._conflicting: set[int] = set()
        self._index_of: dict[str, int] = {}
        self._stacks: dict[str, int] = {}
        self._places: set[int] = set()

    def register(
        self,
        path: Path,
        prompts: CodedWords,
        domains: CodedWords,
        stacks: CodedWords,
        layer: NDArray[np.int16],
    ) -> NDArray[np.int64]:
        """Return the key of each row, or run of rows, of a table.

        Raises:
            InputError: A prompt has two domains, or there are more layers than any model has.
        """
        words, prompt = prompts
        index = self._register_prompts(words)[prompt]
        self._register_domains(path, domains, index)
        words, stack = stacks
        if len(words) > _MOST_PLACES:
            raise _too_many(path)
        codes = np.array([self._stacks.setdefault(word, len(self._stacks)) for word in words])
        place = (codes[stack] << LAYER_BITS) + layer
        self._places.update(np.unique(place[find_starts(place)]).tolist())
        if len(self._places) > _MOST_PLACES:
            raise _too_many(path)
        key: NDArray[np.int64] = (index << PLACE_BITS) + place
        return key

    def find_place(self, key: np.int64) -> tuple[str, int]:
        """Return the stack and the layer of a key."""
        stack, layer = divmod(int(key) & PLACE, 1 << LAYER_BITS)
        return list(self._stacks)[stack], layer

    def describe(self, key: np.int64, position: np.int64) -> str:
        """Return the place of a decision in words."""
        stack, layer = self.find_place(key)
        prompt = self.prompts[int(key) >> PLACE_BITS]
        return describe_place(prompt, stack=stack, layer=layer, position=int(position))

    def _register_prompts(self, words: Sequence[str]) -> NDArray[np.int64]:
        for word in words:
            if word not in self._index_of:
                self._index_of[word] = len(self.prompts)
                self.prompts.append(word)
        return np.array([self._index_of[word] for word in words], dtype=np.int64)

    def _register_domains(self, path: Path, domains: CodedWords, prompt: NDArray[np.int64]) -> None:
        """Record the domain of each new prompt, and check that no prompt has two."""
        words, domain = domains
        pairs = prompt * len(words) + domain
        pairs = np.unique(pairs[find_starts(pairs)])
        for index, code in zip(*np.divmod(pairs, len(words)), strict=True):
            word = words[code]
            if index >= len(self.domains):
                self.domains.append(word)
            elif self._is_checked and self.domains[index] != word:
                self._refuse_domain(path, int(index), word)

    def _refuse_domain(self, path: Path, prompt: int, domain: str) -> None:
        name = self.prompts[prompt]
        words = (
            f"has prompt '{shorten(name)}' under two domains, '{shorten(self.domains[prompt])}' "
            f"and '{shorten(domain)}'"
        )
        if self._log is None:
            raise InputError(
                f"'{printable(path)}' {words}.", hint="Give each prompt its own id and one domain."
            )
        if prompt not in self._conflicting:
            self._conflicting.add(prompt)
            fault = LoggedFault(words, printable(path), prompt_id=name)
            self._log.add(DOMAINS, fault, number=1)


def _too_many(path: Path) -> InputError:
    return InputError(
        f"'{printable(path)}' has more than {_MOST_PLACES:,} layers.",
        hint="See docs/traces/trace-format.md for the meaning of layer and stack.",
    )
