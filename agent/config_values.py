"""Reads the values of options, in the same way for flags, environment variables and YAML keys.

Each type of value has one function, which accepts a text or a value that YAML has already parsed.
The function raises ValueError with a message that describes the expected value. The options
themselves are declared in agent.config.
"""

import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Final, Generic, Self, TypeVar

from agent.backends.seccomp import releases
from agent.core import acknowledgements
from agent.core.dns_names import is_dns_label, is_dns_subdomain, is_qualified_name

T_co = TypeVar("T_co", covariant=True)
Word = TypeVar("Word", bound=str)
VARIABLE_PREFIX: Final = "PROFILE_LOADER_"
LONGEST_SECONDS: Final = 3600
HIGHEST_PORT: Final = 65535
_DURATION: Final = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m)?")
_CAPABILITY: Final = re.compile("CAP_[A-Z][A-Z_]*")
_UNITS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0}
_WEB_ADDRESS: Final = re.compile(r"https?://[^#\s]+")
_ADDRESS: Final = re.compile(r"(\[[0-9a-fA-F:.]+\]|[^\s:\[\]]*):([0-9]{1,5})")


class InvalidValueError(ValueError):
    """Raised if the value of an option is invalid. The text of the error describes the valid
    values.
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class ValueType(Generic[T_co]):
    """The type of the value of an option."""

    read: Callable[[object], T_co]
    metavar: str
    is_flag: bool = False
    """Whether the flag takes no value."""
    is_list: bool = False
    """Whether the flag can be passed more than once. A variable then contains one value per
    line."""
    short: str = ""
    """The letter of the short flag; empty if the option has no short flag."""
    unit: str = ""
    """The unit of the default value in the help."""

    def named(self, metavar: str) -> Self:
        """Return a copy of this type that has another placeholder in the help."""
        return replace(self, metavar=metavar)


def suggestion(text: str, known: Iterable[str]) -> str:
    """Return a sentence that suggests the most similar known word; return "" if no word is
    similar.
    """
    import difflib  # To save memory, this module is imported only after an error.

    words = {_without_prefix(word): word for word in known}
    close = difflib.get_close_matches(_without_prefix(text), list(words), n=1)
    return f" Did you mean {words[close[0]]}?" if close else ""


def _without_prefix(word: str) -> str:
    """Return the name of a flag or variable without the prefix that all flags or all variables
    have.
    """
    return word.removeprefix("--").removeprefix(VARIABLE_PREFIX)


def _read_flag(raw: object) -> bool:
    if isinstance(raw, bool):
        return raw
    if raw in ("true", "false", "1", "0"):
        return raw in ("true", "1")
    raise InvalidValueError(f'"{raw}" must be true or false')


def _read_text(raw: object) -> str:
    if not isinstance(raw, str):
        raise InvalidValueError(f'"{raw}" must be text')
    if not raw.isprintable():
        raise InvalidValueError(f"{raw!a} contains control characters")
    return raw


def _read_list(raw: object) -> tuple[str, ...]:
    values = [raw] if isinstance(raw, str) else raw
    if not isinstance(values, list):
        raise InvalidValueError(f'"{raw}" must be a list')
    if not values or "" in values:
        raise InvalidValueError("the value must not be empty")
    return tuple(_read_text(value) for value in values)


def _read_acknowledgements(raw: object) -> tuple[str, ...]:
    texts = _read_list(raw)
    mistakes = []
    for text in texts:
        try:
            acknowledgements.parse(text)
        except ValueError as error:
            mistakes.append(str(error))
    if mistakes:
        raise ValueError("; ".join(mistakes))
    return texts


def _read_seconds(raw: object) -> float:
    match = _DURATION.fullmatch(str(raw))
    seconds = float(match[1]) * _UNITS[match[2] or "s"] if match else math.nan
    if isinstance(raw, bool) or not 0 < seconds <= LONGEST_SECONDS:
        raise InvalidValueError(f'"{raw}" must be a time such as 30s, more than 0 and at most 60m')
    return seconds


def _read_machine(raw: object) -> str:
    from agent.backends.seccomp.resolve import MACHINES

    return choice(*sorted(MACHINES)).read(raw)


def _read_floor(raw: object) -> str:
    return str(releases.parse(_read_text(raw)))


def _read_kernel(raw: object) -> str:
    from agent.backends.seccomp import resolve

    text = _read_text(raw)
    if resolve.kernel(text) is None:
        raise InvalidValueError(f'"{text}" must be a kernel version such as 6.1')
    return text


def _read_capabilities(raw: object) -> tuple[str, ...]:
    names = tuple(filter(None, _read_text(raw).split(",")))
    for name in names:
        if not _CAPABILITY.fullmatch(name):
            raise InvalidValueError(f'"{name}" must be a capability such as CAP_NET_ADMIN')
    return names


def _text_type(metavar: str, is_valid: Callable[[str], bool], expectation: str) -> ValueType[str]:
    """Return a value type for texts that meet a condition."""

    def read(raw: object) -> str:
        text = _read_text(raw)
        if not is_valid(text):
            raise InvalidValueError(
                f'"{text}" {expectation}' if text else "the value must not be empty"
            )
        return text

    return ValueType(read=read, metavar=metavar)


def _is_address(text: str) -> bool:
    match = _ADDRESS.fullmatch(text)
    return text == "off" or (match is not None and int(match[2]) <= HIGHEST_PORT)


def _is_relative(text: str) -> bool:
    return not text or {"", ".", ".."}.isdisjoint(text.removesuffix("/").split("/"))


FLAG: Final = ValueType(read=_read_flag, metavar="", is_flag=True)
VERBOSE: Final = replace(FLAG, short="v")
QUIET: Final = replace(FLAG, short="q")
TEXT: Final = ValueType(read=_read_text, metavar="TEXT")
ACKNOWLEDGEMENTS: Final = ValueType(
    read=_read_acknowledgements, metavar="CODE@DIGEST", is_list=True
)
LIST: Final = ValueType(read=_read_list, metavar="TEXT", is_list=True)
DIRECTORIES: Final = ValueType(read=_read_list, metavar="DIR", is_list=True)
SECONDS: Final = ValueType(read=_read_seconds, metavar="TIME", unit="s")
MACHINE: Final = ValueType(read=_read_machine, metavar="ARCH")
KERNEL: Final = ValueType(read=_read_kernel, metavar="VERSION")
FLOOR: Final = ValueType(read=_read_floor, metavar="PROGRAM=VERSION,...")
CAPABILITIES: Final = ValueType(read=_read_capabilities, metavar="CAP_A,CAP_B")
PATH: Final = _text_type("DIR", bool, "")
ABSOLUTE_PATH: Final = _text_type(
    "DIR", lambda text: text.startswith("/"), "must be an absolute path"
)
PREFIX: Final = _text_type(
    "PREFIX", _is_relative, 'must be a relative path without empty parts, "." and ".."'
)
ADDRESS: Final = _text_type(
    "HOST:PORT",
    _is_address,
    f"must be HOST:PORT, :PORT or off, and a port is at most {HIGHEST_PORT}",
)
WEB_ADDRESS: Final = _text_type(
    "URL",
    lambda text: not text or _WEB_ADDRESS.fullmatch(text) is not None,
    'must be an address that begins with https:// or http://, without spaces and without "#"',
)
SUBDOMAIN: Final = _text_type(
    "NAME",
    is_dns_subdomain,
    'must be lower-case letters, digits and "-", in parts joined by ".", each with a letter or '
    "digit at both ends",
)
NAMESPACE: Final = _text_type(
    "NAMESPACE",
    is_dns_label,
    'must be lower-case letters, digits and "-", with a letter or digit at both ends',
)
TAINT: Final = _text_type(
    "KEY",
    lambda text: not text or is_qualified_name(text),
    'must be only the key of a taint, without "=" and ":"',
)


def choice(*words: Word) -> ValueType[Word]:
    """Return a value type that accepts exactly one of several words."""

    def read(raw: object) -> Word:
        text = _read_text(raw)
        for word in words:
            if word == text:
                return word
        raise InvalidValueError(
            f'"{text}" must be one of: {", ".join(words)}.{suggestion(text, words)}'
        )

    return ValueType(read=read, metavar="{" + ",".join(words) + "}")


def choices(*words: str) -> ValueType[frozenset[str]]:
    """Return a value type that accepts several words from a fixed list, separated by commas."""
    one_word = choice(*words)

    def read(raw: object) -> frozenset[str]:
        if not isinstance(raw, str | list):
            raise InvalidValueError(f'"{raw}" must be text or a list')
        parts = re.split("[,\n]", raw) if isinstance(raw, str) else raw
        values = [part.strip() if isinstance(part, str) else part for part in parts]
        selected = frozenset(one_word.read(value) for value in values if value != "")
        if not selected:
            raise InvalidValueError("at least one value is required")
        return selected

    return ValueType(read=read, metavar=",".join(words))


def whole_number(most: int) -> ValueType[int]:
    """Return a value type for a whole number from 0 to a limit."""

    def read(raw: object) -> int:
        text = str(raw)
        if isinstance(raw, bool) or not re.fullmatch("[0-9]{1,6}", text) or int(text) > most:
            raise InvalidValueError(
                f'"{raw}" must be a whole number from 0 to {most}, for example 200'
            )
        return int(text)

    return ValueType(read=read, metavar="NUMBER")
