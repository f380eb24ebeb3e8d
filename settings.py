"""Settings: frozen dataclasses that check their values against the annotations of their fields when they are created.

    @dataclass(frozen=True)
    class Sampling(Settings, section="sampling"):
        views: Annotated[int, at_least(1)] = 1
        points: Literal["random", "first"] = "random"

Values from recipes, the command line, files of students and Python are all checked here, so that no value of the wrong
type, sign or size is used. A list is accepted as a tuple, a mapping as nested settings, a NumPy number as its value,
and 2.0 as the whole number 2. Booleans and text are not accepted as numbers.
"""

from __future__ import annotations

import collections.abc
import math
import operator
import os
import reprlib
import textwrap
from collections.abc import Callable
from dataclasses import MISSING, fields
from functools import cache
from numbers import Real
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

import numpy as np

from .errors import ScalrError, StudentError
from .paths import expanded

MANY = 1_000_000_000  # larger counts would overflow, or never end

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 80  # characters
_SHORT.maxlevel = 3


class Bound(NamedTuple):
    """A bound of a number, or of the number of items in a tuple or dict."""

    words: str
    holds: Callable[[Any, float], bool]
    limit: float

    def __str__(self) -> str:
        return f"{self.words} {self.limit:,}" if isinstance(self.limit, int) else f"{self.words} {self.limit:.6g}"


def at_least(limit: float) -> Bound:
    """A bound for `Annotated`: `limit` or more."""
    return Bound("at least", operator.ge, limit)


def above(limit: float) -> Bound:
    """A bound for `Annotated`: more than `limit`."""
    return Bound("above", operator.gt, limit)


def up_to(limit: float) -> Bound:
    """A bound for `Annotated`: `limit` or less."""
    return Bound("at most", operator.le, limit)


def below(limit: float) -> Bound:
    """A bound for `Annotated`: less than `limit`."""
    return Bound("below", operator.lt, limit)


Count = Annotated[int, at_least(1), up_to(MANY)]
CountOrZero = Annotated[int, at_least(0), up_to(MANY)]
Workers = Annotated[int, at_least(0), up_to(1024)]  # processes
Seed = Annotated[int, at_least(0), up_to(2**63 - 1)]  # both torch and NumPy accept these
Amount = Annotated[float, at_least(0), up_to(MANY)]
PositiveAmount = Annotated[float, above(0), up_to(MANY)]
Weight = Annotated[float, at_least(1e-6), up_to(1_000_000)]  # relative weights: float32 can represent all their ratios


class Settings:
    """Base class of frozen dataclasses, which checks their fields.

    A subclass with its own `__post_init__` calls this one first.

    Args:
        section: section of a recipe, for errors. Without a section, the fields are options of the command line.

    Raises:
        StudentError: a field of a section has an invalid value.
        ScalrError: an option has an invalid value.
    """

    _section: ClassVar[str | None] = None

    def __init_subclass__(cls, section: str | None = None, **rest: Any) -> None:
        super().__init_subclass__(**rest)
        cls._section = section or cls._section

    def __post_init__(self) -> None:
        for name, kind in _kinds(type(self)).items():
            object.__setattr__(self, name, checked(getattr(self, name), kind, self._place(name), self._error()))

    @classmethod
    def refused(cls, name: str, value: Any, fix: str) -> ScalrError:
        """The error for a value that a field does not accept, for checks that depend on other fields."""
        return _refused(value, cls._place(name), fix, cls._error())

    @classmethod
    def _place(cls, name: str) -> str:
        return f"{cls._section}.{name}" if cls._section else f"--{name.replace('_', '-')}"

    @classmethod
    def _error(cls) -> type[ScalrError]:
        return StudentError if cls._section else ScalrError


def checked(value: Any, kind: Any, where: str, error: type[ScalrError] = ScalrError) -> Any:
    """Convert a value to an annotated type, such as `Count` or `tuple[Path, ...] | None`.

    Raises:
        ScalrError: of type `error`; the value has another type, is not finite, or is out of bounds.
    """
    try:
        return _fitted(value, kind)
    except (ValueError, OverflowError):
        raise _refused(value, where, _advice(kind, where), error) from None


def shown(value: Any) -> str:
    """A short text for a value of any type and size."""
    try:
        return textwrap.shorten(_SHORT.repr(value), 160, placeholder=" …")
    except ValueError:  # Python does not convert whole numbers of more than 4,300 digits to text
        return "a number of thousands of digits"


@cache
def _kinds(settings: type) -> dict[str, Any]:
    """The annotation of each field."""
    hints = get_type_hints(settings, include_extras=True)
    return {field.name: hints[field.name] for field in fields(settings)}


def _refused(value: Any, where: str, fix: str, error: type[ScalrError]) -> ScalrError:
    return error(f"{shown(value)} cannot be used", where=where, fix=fix)


def _fitted(value: Any, kind: Any) -> Any:
    """Convert a value to an annotated type. Raises ValueError or OverflowError if that is impossible."""
    origin, parts = get_origin(kind), get_args(kind)
    if origin is Annotated:
        fitted = _fitted(value, parts[0])
        size = len(fitted) if isinstance(fitted, tuple | dict) else fitted
        _require(all(bound.holds(size, bound.limit) for bound in parts[1:]))
        return fitted
    if origin in (Union, UnionType):
        return _fitted_to_one(value, parts)
    if origin is Literal:
        _require(isinstance(value, str) and value in parts)
        return str(value)
    if origin is tuple:
        _require(isinstance(value, list | tuple))
        parts = parts[:1] * len(value) if parts[-1] is ... else parts
        _require(len(value) == len(parts))
        return tuple(map(_fitted, value, parts))
    if origin is dict:
        _require(isinstance(value, collections.abc.Mapping))
        return {_fitted(key, parts[0]): _fitted(item, parts[1]) for key, item in value.items()}
    if origin is collections.abc.Callable:
        _require(callable(value))
        return value
    if kind in _SCALARS:
        return _SCALARS[kind](value)
    if issubclass(kind, Settings) and isinstance(value, collections.abc.Mapping):
        _require(_required(kind) <= set(value) <= set(_kinds(kind)))
        return kind(**value)
    _require(isinstance(value, kind))
    return value


def _fitted_to_one(value: Any, kinds: tuple) -> Any:
    for kind in kinds:
        try:
            return _fitted(value, kind)
        except (ValueError, OverflowError):
            continue
    raise ValueError


def _required(settings: type) -> set[str]:
    return {each.name for each in fields(settings) if each.default is MISSING and each.default_factory is MISSING}


def _require(fits: bool) -> None:
    if not fits:
        raise ValueError


def _true_or_false(value: Any) -> bool:
    _require(isinstance(value, bool | np.bool_))
    return bool(value)


def _whole_number(value: Any) -> int:
    _require(isinstance(value, Real) and not isinstance(value, bool))
    whole = int(value)
    _require(whole == value)
    return whole


def _number(value: Any) -> float:
    _require(isinstance(value, Real) and not isinstance(value, bool))
    number = float(value)
    _require(math.isfinite(number))
    return number


def _text(value: Any) -> str:
    _require(isinstance(value, str))
    return str(value)


def _path(value: Any) -> Path:
    _require(isinstance(value, str | os.PathLike))
    return expanded(value)


def _nothing(value: Any) -> None:
    _require(value is None)


_SCALARS: dict[type, Callable[[Any], Any]] = {
    bool: _true_or_false,
    int: _whole_number,
    float: _number,
    str: _text,
    Path: _path,
    NoneType: _nothing,
}
_NAMES = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    Path: "a path",
    NoneType: "null",
}


def _advice(kind: Any, where: str) -> str:
    """The advice of an error: what to give. Options of the command line are left out instead of set to null."""
    parts = get_args(kind)
    if where.startswith("--") and NoneType in parts:
        return f"Give {' or '.join(_wanted(part) for part in parts if part is not NoneType)}, or leave it out."
    return f"Give {_wanted(kind)}."


def _wanted(kind: Any) -> str:
    """A text that describes an annotated type."""
    origin, parts = get_origin(kind), get_args(kind)
    if origin is Annotated:
        bounds = " and ".join(map(str, parts[1:]))
        sized = get_origin(parts[0]) in (tuple, dict)
        return f"{_wanted(parts[0])}; {bounds} of them" if sized else f"{_wanted(parts[0])}, {bounds}"
    if origin in (Union, UnionType):
        return " or ".join(map(_wanted, parts))
    if origin is Literal:
        return f"one of {', '.join(parts)}" if len(parts) > 1 else parts[0]
    if origin is tuple:
        return f"a list{'' if parts[-1] is ... else f' of {len(parts)}'}, each item {_wanted(parts[0])}"
    if origin is dict:
        return f"a mapping, each key {_wanted(parts[0])} and each value {_wanted(parts[1])}"
    if origin is collections.abc.Callable:
        return "a function"
    if kind in _NAMES:
        return _NAMES[kind]
    if issubclass(kind, Settings):
        return f"a mapping of {', '.join(_kinds(kind))}"
    return f"a value of type {kind.__name__}"
