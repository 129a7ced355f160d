"""Reading a pickle without unpickling: plain values alone, and no code is ever run.

A pickle is a small program that may call any function of the machine that loads it. ViLBERT's
feature files hold pickles, of rows of a TSV: a dictionary of strings. This reads the program's
instructions and follows those that build dictionaries, lists, tuples, strings, bytes and numbers;
at any other one it stops with an error.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable
from typing import Any

_MARK = object()


class PlainPickleError(ValueError):
    """A pickle that is damaged or holds more than plain values; the message says what."""


class _OrderedDict:
    """Stands for the class that rows of Python's ``csv`` had before Python 3.8."""


_LITERALS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_MAKERS: dict[str, Callable[[], Any]] = {
    "EMPTY_DICT": dict,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
}
_VALUES = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING"),
    *("SHORT_BINBYTES", "BINBYTES", "BINBYTES8"),
}
_SIZED_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_IGNORED = {"PROTO", "FRAME", "STOP"}


def read_plain_pickle(data: bytes) -> Any:
    """The value: dictionaries, lists, tuples, strings, bytes, numbers, booleans and None.

    An ``OrderedDict`` comes back as a dictionary.

    Raises:
        PlainPickleError: the pickle is damaged, or would make or call anything else.
    """
    machine = _Machine()
    try:
        for code, argument, _ in pickletools.genops(data):
            machine.step(code.name, argument)
        (value,) = machine.stack
    except PlainPickleError:
        raise
    except (ValueError, IndexError, KeyError, TypeError, AttributeError) as error:
        raise PlainPickleError(f"the pickle is damaged: {error}") from None
    if isinstance(value, type) or value is _MARK:
        raise PlainPickleError("the pickle is damaged: it ends before its value is made")
    return value


class _Machine:
    """The stack and the memory of a pickle."""

    def __init__(self):
        self.stack: list[Any] = []
        self.memory: dict[int, Any] = {}

    def step(self, name: str, argument: Any) -> None:
        if name in _LITERALS:
            self.stack.append(_LITERALS[name])
        elif name in _MAKERS:
            self.stack.append(_MAKERS[name]())
        elif name in _VALUES:
            self.stack.append(argument)
        elif name in _SIZED_TUPLES:
            self._tuple(_SIZED_TUPLES[name])
        elif name not in _IGNORED:
            self._other(name, argument)

    def _other(self, name: str, argument: Any) -> None:
        if name == "MARK":
            self.stack.append(_MARK)
        elif name == "MEMOIZE":
            self.memory[len(self.memory)] = self.stack[-1]
        elif name in ("PUT", "BINPUT", "LONG_BINPUT"):
            self.memory[int(argument)] = self.stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            self.stack.append(self.memory[int(argument)])
        elif name in ("APPEND", "APPENDS"):
            items = self._take(name == "APPEND", 1)
            _of_type(self.stack[-1], list).extend(items)
        elif name in ("SETITEM", "SETITEMS"):
            items = self._take(name == "SETITEM", 2)
            pairs = zip(items[::2], items[1::2], strict=True)
            _of_type(self.stack[-1], dict).update(pairs)
        elif name == "TUPLE":
            self.stack.append(tuple(self._take(False, 0)))
        elif name == "LIST":
            self.stack.append(self._take(False, 0))
        elif name == "DICT":
            items = self._take(False, 0)
            self.stack.append(dict(zip(items[::2], items[1::2], strict=True)))
        elif name == "GLOBAL":
            self._class(*argument.split(" ", 1))
        elif name == "STACK_GLOBAL":
            attribute, module = self.stack.pop(), self.stack.pop()
            self._class(module, attribute)
        elif name == "REDUCE":
            self._call()
        else:
            raise PlainPickleError(f"it uses {name}, which makes more than plain values")

    def _take(self, single: bool, number: int) -> list[Any]:
        """The last ``number`` values, or else all down to the mark, which goes too."""
        if single:
            start, after = len(self.stack) - number, len(self.stack) - number
        else:
            after = len(self.stack) - self.stack[::-1].index(_MARK)
            start = after - 1
        items = self.stack[after:]
        del self.stack[start:]
        if any(item is _MARK or item is _OrderedDict for item in items):
            raise PlainPickleError("it holds a class, or a mark out of place")
        return items

    def _tuple(self, number: int) -> None:
        self.stack.append(tuple(self._take(True, number)))

    def _class(self, module: str, attribute: str) -> None:
        if (module, attribute) != ("collections", "OrderedDict"):
            raise PlainPickleError(
                f"it wants {module}.{attribute}, and only an unpickler could make or call that"
            )
        self.stack.append(_OrderedDict)

    def _call(self) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        if function is not _OrderedDict or arguments != ():
            raise PlainPickleError("it calls a function")
        self.stack.append({})


def _of_type(value: Any, wanted: type) -> Any:
    if not isinstance(value, wanted):
        raise PlainPickleError(f"the pickle is damaged: it fills a {type(value).__name__}")
    return value
