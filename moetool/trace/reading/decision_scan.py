"""Counting and checking of a trace's decisions, table by table, whatever the order of rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from moetool.errors import InputError
from moetool.printable import printable
from moetool.trace.decisions import NO_DOMAIN, NO_EXPERT
from moetool.trace.reading.rows_of_decisions import Fault, Rows, find_fault, find_starts, join_rows
from moetool.trace.reading.words import count_values, encode_words

if TYPE_CHECKING:
    from moetool.trace.reading.reader import TraceSource

# Columns that a scan reads in addition to the required ones.
_OPTIONAL = ("domain", "stack", "rank", "weight")
_LAYER_BITS, _STACK_BITS = 15, 12
_PLACE_BITS = _LAYER_BITS + _STACK_BITS
_PLACE = (1 << _PLACE_BITS) - 1
# Pairs of stack and layer; no model comes near.
_MOST_PLACES = 1 << _STACK_BITS
# Rows of an unordered trace that are held at a time: about 300 MB.
_ROWS_AT_ONCE = 4_000_000
_LEAST = {"position": 0, "layer": 0, "rank": 0, "expert": NO_EXPERT}
_VALUES_HINT = "See docs/traces/trace-format.md for the values that a trace has."
_TWICE_HINT = (
    "Remove the repetition; `specialize --no-validate` (validate=False in Python) counts it twice."
)
_REPAIR_HINT = "Trace again; `specialize --no-validate` (validate=False in Python) counts the rows as they are."


@dataclass(frozen=True)
class LayerRows:
    """A summary of the rows of a layer.

    Attributes:
        num_decisions: Number of decisions by their number of rows.
        largest: Place of the decision with the most rows, in words.
        smallest: Place of the decision with the fewest rows, in words.
        num_ids: Largest expert id plus one.
    """

    num_decisions: Counter[int]
    largest: str
    smallest: str
    num_ids: int

    @property
    def most_rows(self) -> int:
        """The most rows of a decision."""
        return max(self.num_decisions)

    def join(self, later: LayerRows) -> LayerRows:
        """Return the summary of these and later rows together."""
        mine, others = self.num_decisions, later.num_decisions
        return LayerRows(
            num_decisions=mine + others,
            largest=self.largest if max(mine) >= max(others) else later.largest,
            smallest=self.smallest if min(mine) <= min(others) else later.smallest,
            num_ids=max(self.num_ids, later.num_ids),
        )


class DecisionScan:
    """Counts the decisions of a trace and checks the rows of each.

    A decision's rows may be spread over tables and files. While each (prompt, stack, layer) has its
    positions in ascending order, as in traces of moetool and most others, the scan remembers only
    one position for each, and the rows of its latest decision. If the order is different, it reads
    the rows once more, a group of prompts at a time.

    Attributes:
        prompts: In order of first occurrence.
        domains: Domain of each prompt.
        num_decisions: By stack and layer, for each prompt. # (num_prompts,)
        layers: Summaries of the rows by stack and layer.

    Args:
        source: The trace.
        is_checked: Refuse rows that no trace has. Otherwise, they are counted as they are.
    """

    def __init__(self, source: TraceSource, *, is_checked: bool = True) -> None:
        self.prompts: list[str] = []
        self.domains: list[str] = []
        self.num_decisions: dict[tuple[str, int], NDArray[np.int64]] = {}
        self.layers: dict[tuple[str, int], LayerRows] = {}
        self._source = source
        self._is_checked = is_checked
        self._index_of: dict[str, int] = {}
        self._stacks: dict[str, int] = {}
        self._places: set[int] = set()
        self._num_rows = 0
        self._is_scattered = False
        self._carried: Rows | None = None
        self._fault: InputError | None = None
        # Every key seen, in ascending order, and the last position seen for it.
        self._keys = np.zeros(0, dtype=np.int64)
        self._last = np.zeros(0, dtype=np.int64)

    def iter_tables(self, columns: Sequence[str]) -> Iterator[pa.Table]:
        """Yield the tables of the source with at least these columns, each after its scan.

        The attributes are complete after the last table.

        Raises:
            InputError: A column is missing, a value does not fit its column, or the rows are not
                those of a trace.
        """
        mine = [name for name in self._source.columns if name in _OPTIONAL]
        needed = ("prompt_id", "position", "layer", "expert", *mine)
        names = list(dict.fromkeys([*columns, *needed]))
        for path, table in self._source.iter_file_tables(names):
            if table.num_rows:
                self._check_values(path, table)
                self._add(self._number(path, table))
            yield table
        if self._is_scattered:
            self._scan_again(list(needed))
        elif self._carried is not None:
            self._close(self._carried, find_starts(self._carried.key, self._carried.position))
        if self._fault is not None and not self._is_scattered:
            raise self._fault

    def _check_values(self, path: Path, table: pa.Table) -> None:
        for name, least in _LEAST.items():
            if name in table.column_names:
                seen = pc.min(table.column(name)).as_py()
                if seen < least:
                    raise InputError(
                        f"'{printable(path)}' can't be read as a trace.",
                        hint=_VALUES_HINT,
                        facts=[f"seen: {name} {seen}, below {least}"],
                    )
        if self._is_checked and "weight" in table.column_names:
            weight = table.column("weight").to_numpy()
            is_wrong = ~(np.isfinite(weight) & (weight >= 0))
            if is_wrong.any():
                row = int(is_wrong.argmax())
                raise InputError(
                    f"'{printable(path)}' has a weight of {weight[row]}.",
                    hint=_REPAIR_HINT,
                    facts=[f"seen: {_describe_row(table, row)}"],
                )

    def _number(self, path: Path, table: pa.Table) -> Rows:
        """Return the rows of a table as numbers, after noting its prompts and their domains."""
        words, prompt = encode_words(table, "prompt_id", default="")
        index = self._register_prompts(words)
        self._register_domains(path, table, index[prompt])
        stacks, stack = encode_words(table, "stack", default="decoder")
        if len(stacks) > _MOST_PLACES:
            raise _too_many(path)
        codes = np.array([self._stacks.setdefault(word, len(self._stacks)) for word in stacks])
        place = (codes[stack] << _LAYER_BITS) + table.column("layer").to_numpy()
        self._places.update(np.unique(place[find_starts(place)]).tolist())
        if len(self._places) > _MOST_PLACES:
            raise _too_many(path)
        names = table.column_names
        return Rows(
            key=(index[prompt] << _PLACE_BITS) + place,
            position=table.column("position").to_numpy().astype(np.int64),
            expert=table.column("expert").to_numpy().astype(np.int64),
            rank=table.column("rank").to_numpy().astype(np.int64) if "rank" in names else None,
            weight=table.column("weight").to_numpy() if "weight" in names else None,
            file=np.full(table.num_rows, self._source.files.index(path), dtype=np.int32),
            is_carried=np.zeros(table.num_rows, dtype=bool),
        )

    def _register_prompts(self, words: Sequence[str]) -> NDArray[np.int64]:
        for word in words:
            if word not in self._index_of:
                self._index_of[word] = len(self.prompts)
                self.prompts.append(word)
        return np.array([self._index_of[word] for word in words], dtype=np.int64)

    def _register_domains(self, path: Path, table: pa.Table, prompt: NDArray[np.int64]) -> None:
        """Record the domain of each new prompt, and check that no prompt has two."""
        words, domain = encode_words(table, "domain", default=NO_DOMAIN)
        pairs = prompt * len(words) + domain
        pairs = np.unique(pairs[find_starts(pairs)])
        for index, code in zip(*np.divmod(pairs, len(words)), strict=True):
            word = words[code]
            if index >= len(self.domains):
                self.domains.append(word)
            elif self._is_checked and self.domains[index] != word:
                raise InputError(
                    f"'{printable(path)}' has prompt '{_short(self.prompts[index])}' under two "
                    f"domains, '{_short(self.domains[index])}' and '{_short(word)}'.",
                    hint="Give each prompt its own id and one domain.",
                )

    def _add(self, rows: Rows) -> None:
        self._num_rows += len(rows)
        if self._is_scattered:
            return
        rows = rows if self._carried is None else join_rows([self._carried, rows])
        rows = rows.group()
        starts = find_starts(rows.key, rows.position)
        blocks = find_starts(rows.key[starts])  # Among decisions.
        if not self._are_ascending(rows, starts, blocks):
            # Rows of a decision come after those of later ones: all are known only at the end.
            self._is_scattered = True
            self._carried = None
            self.num_decisions, self.layers = {}, {}
            return
        # The last decision of a key may continue in the next table, unless this one had no more of it.
        last = np.append(blocks[1:], len(starts)) - 1
        ends = np.append(starts[1:], len(rows))
        is_open = np.zeros(len(starts), dtype=bool)
        is_open[last] = ~rows.is_carried[ends[last] - 1]
        row_is_open = np.repeat(is_open, ends - starts)
        self._carried = rows.take(row_is_open).carry()
        closed = rows.take(~row_is_open)
        if len(closed):
            self._close(closed, find_starts(closed.key, closed.position))

    def _are_ascending(
        self, rows: Rows, starts: NDArray[np.intp], blocks: NDArray[np.intp]
    ) -> bool:
        """Return whether the positions of each key ascend from those seen before; record the last."""
        key, position = rows.key[starts], rows.position[starts]
        falls = np.diff(position) < 0
        falls[blocks[1:] - 1] = False
        keys, first = key[blocks], position[blocks]
        last = position[np.append(blocks[1:], len(starts)) - 1]
        place = np.searchsorted(self._keys, keys)
        known = np.zeros(len(keys), dtype=bool)
        inside = place < len(self._keys)
        known[inside] = self._keys[place[inside]] == keys[inside]
        is_new = ~rows.is_carried[starts[blocks]]
        before = self._last[place[known]]
        if falls.any() or (is_new[known] & (first[known] <= before)).any():
            return False
        self._last[place[known]] = last[known]
        order = np.argsort(keys[~known])
        place = place[~known][order]
        self._keys = np.insert(self._keys, place, keys[~known][order])
        self._last = np.insert(self._last, place, last[~known][order])
        return True

    def _scan_again(self, columns: Sequence[str]) -> None:
        """Read the rows of a group of prompts at a time, and close their decisions in order."""
        num_passes = -(-self._num_rows // _ROWS_AT_ONCE)
        for number in range(num_passes):
            parts = []
            for path, table in self._source.iter_file_tables(columns):
                if table.num_rows:
                    rows = self._number(path, table)
                    prompt = rows.key >> _PLACE_BITS
                    parts.append(rows.take(prompt % num_passes == number))
            rows = join_rows(parts).sort()
            if len(rows):
                self._close(rows, find_starts(rows.key, rows.position))

    def _close(self, rows: Rows, starts: NDArray[np.intp]) -> None:
        """Check and count decisions whose rows lie together and are complete."""
        fault = find_fault(rows, starts) if self._is_checked else None
        if fault is not None:
            error = self._name_fault(fault, rows)
            # A repetition remains one; other faults may still turn out to be rows that are scattered.
            if fault.is_repeated or self._is_scattered:
                raise error
            self._fault = self._fault or error
        key = rows.key[starts]
        sizes = np.diff(starts, append=len(rows))
        num_ids = np.maximum.reduceat(rows.expert, starts) + 1
        stacks = list(self._stacks)
        order = np.argsort(key & _PLACE, kind="stable")
        for mine in np.split(order, find_starts((key & _PLACE)[order])[1:]):
            stack, layer = divmod(int(key[mine[0]] & _PLACE), 1 << _LAYER_BITS)
            place = (stacks[stack], layer)
            number = self.num_decisions.get(place, np.zeros(0, dtype=np.int64))
            number = np.pad(number, (0, len(self.prompts) - len(number)))
            prompts, counts = np.unique(key[mine] >> _PLACE_BITS, return_counts=True)
            number[prompts] += counts
            self.num_decisions[place] = number
            largest, smallest = mine[sizes[mine].argmax()], mine[sizes[mine].argmin()]
            values, counts = count_values(sizes[mine])
            seen = LayerRows(
                Counter(dict(zip(values.tolist(), counts.tolist(), strict=True))),
                largest=self._describe(key[largest], rows.position[starts[largest]]),
                smallest=self._describe(key[smallest], rows.position[starts[smallest]]),
                num_ids=int(num_ids[mine].max()),
            )
            self.layers[place] = self.layers[place].join(seen) if place in self.layers else seen

    def _name_fault(self, fault: Fault, rows: Rows) -> InputError:
        first, second = (self._source.files[rows.file[row]] for row in (fault.other, fault.row))
        facts = [f"seen: {self._describe(rows.key[fault.row], rows.position[fault.row])}"]
        if first != second:
            facts.append(f"first: in '{printable(first)}'")
        return InputError(
            f"'{printable(second)}' {fault.words}.",
            hint=_TWICE_HINT if fault.is_repeated else _REPAIR_HINT,
            facts=facts,
        )

    def _describe(self, key: np.int64, position: np.int64) -> str:
        prompt, place = divmod(int(key), 1 << _PLACE_BITS)
        stack, layer = divmod(place, 1 << _LAYER_BITS)
        name = list(self._stacks)[stack]
        return describe_place(self.prompts[prompt], stack=name, layer=layer, position=int(position))


def describe_place(prompt: str, *, stack: str, layer: int, position: int) -> str:
    """Return the place of a row in words."""
    name = "" if stack == "decoder" else f"stack '{_short(stack)}', "
    return f"prompt '{_short(prompt)}', {name}layer {layer}, position {position}"


def _describe_row(table: pa.Table, row: int) -> str:
    values = table.slice(row, 1).to_pylist()[0]
    return describe_place(
        values["prompt_id"],
        stack=values.get("stack", "decoder"),
        layer=values["layer"],
        position=values["position"],
    )


def _too_many(path: Path) -> InputError:
    return InputError(
        f"'{printable(path)}' has more than {_MOST_PLACES:,} layers.",
        hint="See docs/traces/trace-format.md for the meaning of layer and stack.",
    )


def _short(word: str) -> str:
    return printable(word, max_length=60)
