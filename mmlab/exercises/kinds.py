"""The two kinds of exercise: one asks for a value, the other for a function or a module."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from mmlab.exercises import running
from mmlab.exercises.result import Hint
from mmlab.exercises.values import (
    SMALL,
    as_tensor,
    first_difference,
    kind_of,
    same,
    show,
    untouched,
)

Facts = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class ValueExercise:
    """Asks for one number or one tensor.

    ``mistakes`` are pairs of a wrong value and its hint. The right value is never shown.
    """

    title: str
    solution: Any
    mistakes: tuple[tuple[Any, str], ...]
    shown: str

    def judge(self, answer: object) -> str:
        """The sentence of success; raises ``Hint``."""
        value, expected = as_tensor(answer), as_tensor(self.solution)
        if value is None:
            raise Hint(f"The answer is {kind_of(answer)}; give {_wanted(self.solution)}.")
        # One number may come as a tensor with one entry.
        if expected.ndim == 0 and value.numel() == 1:
            value = value.reshape(())
        if same(value, expected):
            return self.shown
        for wrong, hint in self.mistakes:
            if same(value, wrong):
                raise Hint(hint)
        raise Hint(self._general(value, expected))

    def _general(self, value: torch.Tensor, expected: torch.Tensor) -> str:
        if value.shape != expected.shape:
            return f"The answer is {kind_of(value)}; give {_wanted(self.solution)}."
        if value.isnan().any():
            return f"The answer is not a number (NaN){_at(value.isnan())}."
        if expected.ndim:
            return f"The first wrong entry is number {list(first_difference(value, expected))}."
        return f"{show(value.item())} is too {'small' if value < expected else 'large'}."


@dataclass(frozen=True)
class Case:
    """One input of a function; ``text`` writes the call down where the inputs are too large."""

    inputs: tuple
    text: str = ""


@dataclass(frozen=True)
class Mistake:
    """A function that is wrong in a way people are wrong, and what to tell them."""

    does: Callable
    hint: str


@dataclass(frozen=True)
class FunctionExercise:
    """Asks for a function or a module that gives what ``solution`` gives.

    ``cases`` run in their order, the smallest first. The first that fails is compared with what
    each of the ``mistakes`` makes of it, also when that is an exception. The hint is that of the
    first mistake that does the same.
    """

    title: str
    solution: Callable
    cases: tuple[Case, ...]
    mistakes: tuple[Mistake, ...]
    shown: str

    @property
    def signature(self) -> str:
        """``name(first, second)``, as the exercise calls the answer."""
        names = ", ".join(self._parameters)
        return f"{inspect.unwrap(self.solution).__name__}({names})"

    @property
    def _parameters(self) -> list[str]:
        return list(inspect.signature(self.solution).parameters)

    def judge(self, answer: object) -> str:
        """The sentence of success; raises ``Hint`` or ``Unanswered``."""
        running.require_function(answer, self.signature)
        for case in self.cases:
            self._judge_case(answer, case)
        return self.shown

    def _judge_case(self, answer: Callable, case: Case) -> None:
        expected, _ = running.call_on_copy(self.solution, case.inputs)
        try:
            result, left = running.call_on_copy(answer, case.inputs)
        except Exception as error:
            raise self._stopped(error, case) from None
        running.require_result(result, answer, self.signature)
        if not same(result, expected):
            raise Hint(self._diagnose(result, expected, case), self._facts(case, result, expected))
        self._require_untouched(case.inputs, left)

    def _stopped(self, error: Exception, case: Case) -> Hint:
        """The hint of a mistake that stops in the same way, else the exception in words."""
        call = (("call", self._call(case)),)
        for mistake in self.mistakes:
            try:
                running.call_on_copy(mistake.does, case.inputs)
            except Exception as other:
                if type(other) is type(error):
                    return Hint(mistake.hint, call)
        return Hint(running.explain(error, self.signature), call)

    def _diagnose(self, result: object, expected: object, case: Case) -> str:
        for mistake in self.mistakes:
            try:
                wrong, _ = running.call_on_copy(mistake.does, case.inputs)
            except Exception:
                continue
            if same(result, wrong):
                return mistake.hint
        return _in_general(result, expected)

    def _require_untouched(self, before: tuple, after: tuple) -> None:
        for name, old, new in zip(self._parameters, before, after, strict=True):
            if not untouched(new, old):
                raise Hint(
                    f"The result is right, but the function changes its input `{name}` in place, "
                    "and whoever calls it finds other data than before. Work on a copy: "
                    f"`{name}.clone()`."
                )

    def _call(self, case: Case) -> str:
        name = inspect.unwrap(self.solution).__name__
        return case.text or f"{name}({', '.join(map(show, case.inputs))})"

    def _facts(self, case: Case, result: object, expected: object) -> Facts:
        call = ("call", self._call(case))
        value, right = as_tensor(result), as_tensor(expected)
        if value is None or value.shape != right.shape or value.numel() <= SMALL:
            return (call, ("expected", show(expected)), ("got", show(result)))
        index = first_difference(value, right)
        pairs = (("expected", right), ("got", value))
        entries = ((name, show(tensor[index].item())) for name, tensor in pairs)
        return (call, ("at", str(list(index))), *entries)


Exercise = ValueExercise | FunctionExercise


def _in_general(result: object, expected: object) -> str:
    value, right = as_tensor(result), as_tensor(expected)
    if value is None:
        return f"The function returns {kind_of(result)}; it should return {_wanted(expected)}."
    if value.shape != right.shape:
        return f"The shape is {tuple(value.shape)}; it should be {tuple(right.shape)}."
    if value.isnan().any() and not right.isnan().any():
        return (
            f"There is a NaN{_at(value.isnan())}: a zero divided by zero, or a softmax over a row "
            "that is -inf everywhere."
        )
    if right.is_floating_point() and not value.is_floating_point():
        return f"The numbers are whole ({value.dtype}), so the fractions were cut off."
    if value.dtype in (torch.float16, torch.bfloat16):
        return (
            f"The result is {value.dtype}; compute in float32, half precision is too coarse here."
        )
    return "The shape is right, the values are not."


def _wanted(expected: object) -> str:
    right = as_tensor(expected)
    if right.ndim == 0:
        return "a number"
    sequence = isinstance(expected, list | tuple)
    return f"a list of {len(right)} numbers" if sequence else f"a tensor of {tuple(right.shape)}"


def _at(where: torch.Tensor) -> str:
    """`` at [0, 1]`` for the first True; nothing for a single number."""
    index = where.nonzero()[0].tolist()
    return f" at {index}" if index else ""
