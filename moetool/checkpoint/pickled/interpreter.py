"""An interpreter of pickle opcodes that imports nothing and runs nothing that a pickle names.

Python's own unpickler imports what a pickle names and calls it. Here, a name is looked up in a fixed
table of stand-ins. Whatever is not in it ends the reading.
"""

from __future__ import annotations

import pickle as opcodes
import struct
from collections.abc import Callable, Hashable, Mapping
from typing import Any

from moetool.checkpoint.pickled.stand_ins import ForbiddenNameError, Instance, Named, PickleError
from moetool.printable import printable

# The most opcodes that are read: those of a file with a million tensors or so.
_MOST_OPCODES = 60_000_000
_SCALARS = (str, bytes, int, float, type(None))
# The longest numbers and names that are written as lines of text.
_LONGEST_LINE = 1000


def read_pickle(
    content: bytes,
    *,
    names: Mapping[str, Named],
    load_storage: Callable[[object], object] | None = None,
    start: int = 0,
) -> tuple[Any, int]:
    """Return the value in a pickle, made of plain values and stand-ins, and where the pickle ends.

    Args:
        content: Bytes that hold the pickle.
        names: What it may name, by module and name with a dot between.
        load_storage: Returns the stand-in for a persistent id, which torch writes for the data of
            tensors. None if there can't be any.
        start: Where the pickle begins.

    Raises:
        ForbiddenNameError: It names something else.
        PickleError: It is not a pickle, breaks off, or has opcodes that torch never writes.
    """
    interpreter = _Interpreter(content, start, names, load_storage)
    try:
        return interpreter.run(), interpreter.at
    except PickleError:
        raise
    # A pickle that is cut short or made up may fail anywhere: in an opcode's argument, at an empty
    # stack, at a missing mark or number, with values of other types.
    except Exception as error:
        words = printable(str(error).partition("\n")[0], max_length=100)
        raise PickleError(f"its opcodes make no sense ({words or type(error).__name__})") from error


class _Interpreter:
    """The state of one run.

    Attributes:
        at: The place of the next byte to be read.
        stack: Values since the last mark.
    """

    def __init__(
        self,
        content: bytes,
        start: int,
        names: Mapping[str, Named],
        load_storage: Callable[[object], object] | None,
    ) -> None:
        self.at = start
        self.stack: list[Any] = []
        self._below: list[list[Any]] = []
        self._memo: dict[int, Any] = {}
        self._content = content
        self._names = names
        self._load_storage = load_storage

    def run(self) -> Any:
        """Return the value of the pickle."""
        content = self._content
        for _ in range(_MOST_OPCODES):
            code = content[self.at] if self.at < len(content) else -1
            self.at += 1
            if code == opcodes.STOP[0]:
                (value,) = self.stack
                return value
            step = _STEPS.get(code)
            if step is None:
                raise PickleError(
                    "it breaks off"
                    if code < 0
                    else f"it has an opcode that torch never writes: {code}"
                )
            step(self)
        raise PickleError(f"it has more than {_MOST_OPCODES:,} opcodes")

    def take(self, num_bytes: int) -> bytes:
        """Return the next bytes."""
        start, self.at = self.at, self.at + num_bytes
        if not num_bytes >= 0 or self.at > len(self._content):
            raise PickleError("it breaks off")
        return self._content[start : self.at]

    def take_count(self, num_bytes: int) -> int:
        """Return the next bytes as an unsigned number."""
        return int.from_bytes(self.take(num_bytes), "little")

    def take_line(self, *, encoding: str = "utf-8") -> str:
        """Return the next line."""
        end = self._content.find(b"\n", self.at, self.at + _LONGEST_LINE)
        if end < 0:
            raise PickleError("it has a line without an end")
        line = self._content[self.at : end]
        self.at = end + 1
        return line.decode(encoding)

    def pop_to_mark(self) -> list[Any]:
        """Return the values since the last mark, and go back to those before it."""
        values = self.stack
        self.stack = self._below.pop()
        return values

    def mark(self) -> None:
        self._below.append(self.stack)
        self.stack = []

    def drop(self) -> None:
        if self.stack:
            self.stack.pop()
        else:
            self.pop_to_mark()

    def memoize(self) -> None:
        self._memo[len(self._memo)] = self.stack[-1]

    def put(self, number: int) -> None:
        self._memo[number] = self.stack[-1]

    def get(self, number: int) -> None:
        self.stack.append(self._memo[number])

    def push_last(self, size: int) -> None:
        values = [self.stack.pop() for _ in range(size)]
        self.stack.append(tuple(reversed(values)))

    def push_dict(self) -> None:
        values = self.pop_to_mark()
        self.stack.append({})
        self.set_items(values)

    def append(self, values: list[Any]) -> None:
        _expect(self.stack[-1], list).extend(values)

    def set_item(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self.set_items([key, value])

    def set_items(self, values: list[Any]) -> None:
        target = _expect(self.stack[-1], dict)
        for key, value in zip(values[::2], values[1::2], strict=True):
            target[_check_key(key)] = value

    def add_items(self) -> None:
        values = self.pop_to_mark()
        _expect(self.stack[-1], set).update(map(_check_key, values))

    def name_by_line(self) -> None:
        module = self.take_line()
        self._push_named(module, self.take_line())

    def name_by_stack(self) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        self._push_named(_expect(module, str), _expect(name, str))

    def _push_named(self, module: str, name: str) -> None:
        named = self._names.get(f"{module}.{name}")
        if named is None:
            raise ForbiddenNameError(printable(f"{module}.{name}", max_length=100))
        self.stack.append(named)

    def call(self) -> None:
        arguments, named = self.stack.pop(), self.stack.pop()
        if not isinstance(named, Named) or named.make is None or not isinstance(arguments, tuple):
            raise PickleError("it calls something that is not a function")
        self.stack.append(named.make(*arguments))

    def call_by_keywords(self) -> None:
        if self.stack.pop():
            raise PickleError("it makes an object by keywords")
        self.call()

    def set_state(self) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        if isinstance(target, Instance):
            target.state = state
        # An OrderedDict carries attributes, such as the versions of a state dict's modules.
        elif not isinstance(target, dict):
            raise PickleError("it gives a state to something that has none")

    def load_persistent(self) -> None:
        if self._load_storage is None:
            raise PickleError("it refers to data outside the pickle")
        self.stack.append(self._load_storage(self.stack.pop()))


def _read_int_line(interpreter: _Interpreter) -> object:
    line = interpreter.take_line()
    return {"00": False, "01": True}[line] if line in ("00", "01") else int(line.removesuffix("L"))


def _read_float(interpreter: _Interpreter) -> object:
    return struct.unpack(">d", interpreter.take(8))[0]


def _read_signed(interpreter: _Interpreter, num_bytes: int) -> object:
    return int.from_bytes(interpreter.take(num_bytes), "little", signed=True)


def _read_text(interpreter: _Interpreter, count_bytes: int) -> object:
    return str(interpreter.take(interpreter.take_count(count_bytes)), "utf-8", "surrogatepass")


def _read_old_text(interpreter: _Interpreter, count_bytes: int) -> object:
    return interpreter.take(interpreter.take_count(count_bytes)).decode("latin-1")


_Step = Callable[[_Interpreter], None]


def _list_steps() -> Mapping[int, _Step]:
    """Return what each opcode does, by its byte."""
    read: Mapping[bytes, Callable[[_Interpreter], object]] = {
        opcodes.NONE: lambda _: None,
        opcodes.NEWTRUE: lambda _: True,
        opcodes.NEWFALSE: lambda _: False,
        opcodes.INT: _read_int_line,
        opcodes.LONG: _read_int_line,
        opcodes.BININT: lambda i: _read_signed(i, 4),
        opcodes.BININT1: lambda i: i.take_count(1),
        opcodes.BININT2: lambda i: i.take_count(2),
        opcodes.LONG1: lambda i: _read_signed(i, i.take_count(1)),
        opcodes.LONG4: lambda i: _read_signed(i, i.take_count(4)),
        opcodes.FLOAT: lambda i: float(i.take_line()),
        opcodes.BINFLOAT: _read_float,
        opcodes.UNICODE: lambda i: i.take_line(encoding="raw-unicode-escape"),
        opcodes.SHORT_BINUNICODE: lambda i: _read_text(i, 1),
        opcodes.BINUNICODE: lambda i: _read_text(i, 4),
        opcodes.BINUNICODE8: lambda i: _read_text(i, 8),
        opcodes.SHORT_BINSTRING: lambda i: _read_old_text(i, 1),
        opcodes.BINSTRING: lambda i: _read_old_text(i, 4),
        opcodes.SHORT_BINBYTES: lambda i: i.take(i.take_count(1)),
        opcodes.BINBYTES: lambda i: i.take(i.take_count(4)),
        opcodes.BINBYTES8: lambda i: i.take(i.take_count(8)),
        opcodes.BYTEARRAY8: lambda i: i.take(i.take_count(8)),
        opcodes.EMPTY_TUPLE: lambda _: (),
        opcodes.EMPTY_LIST: lambda _: [],
        opcodes.EMPTY_DICT: lambda _: {},
        opcodes.EMPTY_SET: lambda _: set(),
        opcodes.TUPLE: lambda i: tuple(i.pop_to_mark()),
        opcodes.LIST: lambda i: i.pop_to_mark(),
        opcodes.FROZENSET: lambda i: frozenset(map(_check_key, i.pop_to_mark())),
    }
    steps: dict[bytes, _Step] = {
        opcodes.PROTO: lambda i: _skip(i, 1),
        opcodes.FRAME: lambda i: _skip(i, 8),
        opcodes.MARK: _Interpreter.mark,
        opcodes.POP: _Interpreter.drop,
        opcodes.POP_MARK: lambda i: _ignore(i.pop_to_mark()),
        opcodes.GET: lambda i: i.get(int(i.take_line())),
        opcodes.BINGET: lambda i: i.get(i.take_count(1)),
        opcodes.LONG_BINGET: lambda i: i.get(i.take_count(4)),
        opcodes.PUT: lambda i: i.put(int(i.take_line())),
        opcodes.BINPUT: lambda i: i.put(i.take_count(1)),
        opcodes.LONG_BINPUT: lambda i: i.put(i.take_count(4)),
        opcodes.MEMOIZE: _Interpreter.memoize,
        opcodes.TUPLE1: lambda i: i.push_last(1),
        opcodes.TUPLE2: lambda i: i.push_last(2),
        opcodes.TUPLE3: lambda i: i.push_last(3),
        opcodes.DICT: _Interpreter.push_dict,
        opcodes.APPEND: lambda i: i.append([i.stack.pop()]),
        opcodes.APPENDS: lambda i: i.append(i.pop_to_mark()),
        opcodes.SETITEM: _Interpreter.set_item,
        opcodes.SETITEMS: lambda i: i.set_items(i.pop_to_mark()),
        opcodes.ADDITEMS: _Interpreter.add_items,
        opcodes.GLOBAL: _Interpreter.name_by_line,
        opcodes.STACK_GLOBAL: _Interpreter.name_by_stack,
        opcodes.REDUCE: _Interpreter.call,
        opcodes.NEWOBJ: _Interpreter.call,
        opcodes.NEWOBJ_EX: _Interpreter.call_by_keywords,
        opcodes.BUILD: _Interpreter.set_state,
        opcodes.BINPERSID: _Interpreter.load_persistent,
    }
    return {
        **{code[0]: _push_result(function) for code, function in read.items()},
        **{code[0]: step for code, step in steps.items()},
    }


def _push_result(read: Callable[[_Interpreter], object]) -> _Step:
    def step(interpreter: _Interpreter) -> None:
        value = read(interpreter)
        interpreter.stack.append(value)

    return step


def _skip(interpreter: _Interpreter, num_bytes: int) -> None:
    interpreter.take(num_bytes)


def _ignore(_: object) -> None:
    return


def _check_key(key: Any) -> Hashable:
    """Return a value that may be a key. Deeply nested tuples would overflow Python's own stack."""
    parts = key if isinstance(key, tuple) else (key,)
    for part in parts:
        if not isinstance(part, (*_SCALARS, Instance, Named)):
            raise PickleError(f"it has a key of type {type(key).__name__}")
    checked: Hashable = key
    return checked


def _expect(value: Any, kind: type) -> Any:
    if not isinstance(value, kind):
        raise PickleError(f"it has a {type(value).__name__} in place of a {kind.__name__}")
    return value


_STEPS = _list_steps()
