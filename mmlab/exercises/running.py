"""Runs a reader's function: on copies, with a fixed seed, with words in place of a traceback."""

from __future__ import annotations

import copy
import dis
import inspect
import sysconfig
import traceback
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from mmlab.exercises.result import Hint, Unanswered
from mmlab.exercises.values import kind_of, shorten

PACKAGE = Path(__file__).resolve().parent.parent
LIBRARIES = tuple({str(PACKAGE), *map(sysconfig.get_path, ("stdlib", "purelib", "platlib"))})
# What beartype and Python make up on the fly.
GENERATED = ("<@", "<frozen")
# A body of these alone computes nothing: `...`, `pass`, `return ...`, a docstring.
IDLE = {"RESUME", "NOP", "LOAD_CONST", "LOAD_GLOBAL", "POP_TOP", "RETURN_CONST", "RETURN_VALUE"}


def call(function: Callable, inputs: tuple) -> object:
    """``function(*inputs)`` on these very inputs; torch's seed is 0 meanwhile, then as before."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return function(*inputs)


def call_on_copy(function: Callable, inputs: tuple) -> tuple[object, tuple]:
    """The result, and the copied inputs as ``function`` left them."""
    given = copy.deepcopy(inputs)
    return call(function, given), given


def require_function(answer: object, signature: str) -> None:
    """``Hint`` unless ``answer`` can be called as ``signature`` says."""
    if isinstance(answer, type) and issubclass(answer, nn.Module):
        raise Hint(f"`{answer.__name__}` is a class; give one module: `{answer.__name__}(...)`.")
    if not callable(answer):
        name = signature.partition("(")[0]
        raise Hint(
            f"The answer is {kind_of(answer)}, but this exercise asks for the function itself: "
            f"`{name}` without parentheses behind it."
        )


def require_result(result: object, function: Callable, signature: str) -> None:
    """``Unanswered`` or ``Hint`` if a function gave back nothing."""
    if result is not None and result is not ...:
        return
    if is_stub(function):
        raise Unanswered
    if result is ...:
        raise Hint("The function still returns `...`.")
    raise Hint(f"`{signature}` returns None. Is the `return` missing?")


def is_stub(function: Callable) -> bool:
    """Whether a function's body computes nothing at all."""
    function = function.forward if isinstance(function, nn.Module) else inspect.unwrap(function)
    code = getattr(function, "__code__", None)
    return code is not None and all(step.opname in IDLE for step in dis.get_instructions(code))


def explain(error: Exception, signature: str) -> str:
    """One or two sentences: which exception, what it says, in which line of the reader's."""
    text = shorten(" ".join(str(error).split()), 200)
    # Backticks would end the code markup around the message.
    what = f"{type(error).__name__}: {text}" if text else type(error).__name__
    what = what.replace("`", "'")
    where = _line(error)
    if "ellipsis" in text:
        return f"A `...` still stands in the function{where}. It stops with `{what}`."
    if not where and isinstance(error, TypeError):
        return f"The exercise calls `{signature}`, and that stops with `{what}`."
    return f"The function stops{where} with `{what}`."


def _line(error: Exception) -> str:
    """`` in line 3, `x = y` `` for the innermost frame that is no library's; else nothing."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if not f.filename.startswith((*LIBRARIES, *GENERATED))]
    if not own:
        return ""
    code = shorten((own[-1].line or "").replace("`", "'"), 80)
    return f" in line {own[-1].lineno}" + (f", `{code}`," if code else "")
