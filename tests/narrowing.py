"""Narrows the types of values: a value of another type fails the test."""

from typing import TypeVar

_Value = TypeVar("_Value")


def not_none(value: _Value | None) -> _Value:
    """Return a value that is not None."""
    assert value is not None
    return value


def instance_of(value: object, type_: type[_Value]) -> _Value:
    """Return a value that is an instance of a type."""
    assert isinstance(value, type_), value
    return value
