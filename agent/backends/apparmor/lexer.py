"""Split AppArmor policy into the tokens that apparmor_parser's own lexer reads.

The tables follow parser_lex.l of apparmor 3.0 to 6.0~alpha1 (one Dialect for each difference). Only
the start condition of that lexer decides whether a `#` begins a comment and whether `include` opens
a file.
As in flex, the longest match wins, and the first rule of the table where two are equally long.

This module is pure and knows no grammar: it continues where the parser would report a syntax error,
so it can find too many includes and never too few. It stops where the parser's lexer stops.
"""

import enum
import functools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple


class State(enum.Enum):
    """A start condition of the parser's lexer, under the parser's name for it."""

    INITIAL = enum.auto()
    SUB_ID = enum.auto()
    SUB_ID_WS = enum.auto()
    SUB_VALUE = enum.auto()
    IDENTITY_VALUE = enum.auto()
    EXTCOND_MODE = enum.auto()
    EXTCONDLIST_MODE = enum.auto()
    NETWORK_MODE = enum.auto()
    LIST_VAL_MODE = enum.auto()
    LIST_COND_MODE = enum.auto()
    LIST_COND_VAL = enum.auto()
    LIST_COND_PAREN_VAL = enum.auto()
    ASSIGN_MODE = enum.auto()
    RLIMIT_MODE = enum.auto()
    MOUNT_MODE = enum.auto()
    DBUS_MODE = enum.auto()
    SIGNAL_MODE = enum.auto()
    PTRACE_MODE = enum.auto()
    UNIX_MODE = enum.auto()
    CHANGE_PROFILE_MODE = enum.auto()
    INCLUDE = enum.auto()  # and INCLUDE_EXISTS
    ABI_MODE = enum.auto()
    USERNS_MODE = enum.auto()
    MQUEUE_MODE = enum.auto()
    INTEGER_MODE = enum.auto()
    EXPR_MODE = enum.auto()
    ASSIGN_EXPR_MODE = enum.auto()
    ASSIGN_EXPR_START = enum.auto()


class TokenKind(enum.Enum):
    """What a token is, as far as this package needs to know."""

    COMMENT = enum.auto()
    INCLUDE_PATH = enum.auto()
    ABI_PATH = enum.auto()
    NAME = enum.auto()  # follows `profile`, `hat` or `^`
    LABEL = enum.auto()  # begins with `/`, `@`, `:` or `&`, outside of a rule with its own state
    ASSIGN = enum.auto()  # the operator of a variable's assignment
    OPEN = enum.auto()  # the brace that begins a block
    CLOSE = enum.auto()
    END = enum.auto()  # the comma that ends a rule
    OTHER = enum.auto()
    REST = enum.auto()  # what the lexer does not read, perhaps nothing


class Token(NamedTuple):
    """One token and its place in the text."""

    kind: TokenKind
    start: int
    end: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One pattern of the lexer, and what it does to the stack of states."""

    first_characters: re.Pattern[str]
    """The characters with which a match can begin."""
    pattern: re.Pattern[str]
    """The token; a lookahead with the group `context` is flex's trailing context."""
    kind: TokenKind
    pop: bool
    push: State | None
    pushes_by_keyword: bool
    """The word itself decides which state is pushed."""
    first_wins: bool
    """No other rule is longer, and no later one is taken; it needs a line break behind it."""


Table = Mapping[State, Sequence[Rule]]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Dialect:
    """The lexer of one generation of apparmor_parser."""

    name: str
    table: Table
    keywords: Mapping[str, State]


_BLANK: Final = r"[ \t]"
_SPACE: Final = r"(?:[ \t]|\r?\n)+"
_WORD: Final = r"[A-Za-z][A-Za-z0-9_]*"
_QUOTED: Final = r'"[^"\0]*+(?:(?<=\\)"[^"\0]*+)*"'  # ends at the first quote without a backslash
_ID: Final = r'[^ \t\r\n"!,\\]*+(?:(?:\\[ \t"!,]?|,[^ \t\r\n"!,])[^ \t\r\n"!,\\]*+)*+'
_IDS: Final = rf'(?=[^ \t\r\n"!,]|,[^ \t\r\n"!,]){_ID}'
_IDS_FIRST: Final = r'[^ \t\r\n"!]'
_VARIABLE: Final = rf"@(?:\{{{_WORD}\}}|{_WORD})"
_BOOLEAN: Final = rf"\$(?:\{{{_WORD}\}}|{_WORD})"
_AFTER_VARIABLE: Final = r'(?:\\[ \t"!,()]|,[^ \t\n"!,=+]|[^ \t\n"!,=+])'
_LABEL: Final = rf"(?:[/:&]|{_VARIABLE}{_AFTER_VARIABLE}){_ID}"
_AFTER_VARIABLE_5: Final = r'(?:\\[ \t"!,()]|,[^ \t\n"!,=+?]|[^ \t\n"!,=+]\?|[^ \t\n"!,=+?])'
_LABEL_5: Final = rf"(?:[/&]|:[^=]|{_VARIABLE}{_AFTER_VARIABLE_5}){_ID}"
_QUOTED_LABEL: Final = rf"(?=\"[/@:&]){_QUOTED}"
_NO_EQUALS: Final = r'[^ \t\n"!,=()+&](?:[^ \t\n"!,=)]|,[^ \t\n"!,=)])*+'
_NO_ASSIGN: Final = (
    r'(?:[^ \t\n"!,=()+&:]|:[^ \t\n"!,=()+&])(?:[^ \t\n"!,=:)]|:[^ \t\n"!,=)]|,[^ \t\n"!,=:)])*+'
)
_NO_ASSIGN_500: Final = r'[^ \t\n"!,=()+&](?:[^ \t\n"!,=:)]|,[^ \t\n"!,=:)])*+'
_LIST_VALUE: Final = r'(?:[^ \t\n"!,()\\]|\\[ \t"!,()]?)++'
_LIST_VALUE_FIRST: Final = r'[^ \t\n"!,()]'
_QUOTED_VALUE: Final = rf'(?!""){_QUOTED}'
_PATH: Final = (
    rf'<(?:[^">\t\r\n]++|{_QUOTED})>|{_QUOTED}'
    r'|(?:[^ \t\r\n"!,<>\\]|\\[ \t"!,]?|,[^ \t\r\n"!,<>])++'
)


def _rule(
    first: str,
    pattern: str,
    kind: TokenKind = TokenKind.OTHER,
    *flags: str,
    to: State | None = None,
) -> Rule:
    """Build a rule.

    flags: the fields of Rule that are true. to: the state to push; with "pop" it replaces the
    current one.
    """
    return Rule(
        first_characters=re.compile(first),
        pattern=re.compile(pattern),
        kind=kind,
        pop="pop" in flags,
        push=to,
        pushes_by_keyword="by_keyword" in flags,
        first_wins="first_wins" in flags,
    )


_SPACES: Final = _rule(r"[ \t\r\n]", _SPACE)
_BLANKS: Final = _rule(_BLANK, rf"{_BLANK}+")
_COMMA: Final = _rule(",", ",+")
_END_OF_RULE: Final = _rule(",", ",", TokenKind.END, "pop")
_ANY_ID: Final = (_rule(_IDS_FIRST, _IDS), _rule('"', _QUOTED))
_CONDITIONS: Final = (
    _rule("[px]", rf"(?:peer|xattrs)(?={_BLANK}*={_BLANK}*\()", to=State.EXTCONDLIST_MODE),
    _rule("[A-Za-z]", rf"{_WORD}(?={_BLANK}*=)", to=State.EXTCOND_MODE),
    _rule("[A-Za-z]", rf"{_WORD}(?={_BLANK}+in{_BLANK}*\()", to=State.EXTCOND_MODE),
)
_PRIORITY: Final = _rule("p", rf"priority(?={_BLANK}*=)", to=State.INTEGER_MODE)
_LIST: Final = _rule(r"\(", r"\(", to=State.LIST_VAL_MODE)
_COMMENT: Final = _rule("#", r"#[^\n]*\n(?:[ \t]*#(?!include)[^\n]*\n)*+", TokenKind.COMMENT)
_LAST_COMMENT: Final = _rule("#", r"#[^\n]*\n", TokenKind.COMMENT, "pop")  # ends an assignment
_CONTINUED: Final = _rule(r"\\", r"\\\n")
_LAST_LINE_BREAK: Final = _rule(r"[\r\n]", r"\r?\n", TokenKind.OTHER, "pop")

_INITIAL: Final = (
    _SPACES,
    _rule("#", rf"#include{_BLANK}+if{_BLANK}+exists(?={_BLANK})", TokenKind.OTHER, "first_wins",
          to=State.INCLUDE),
    _rule("#", "#include", TokenKind.OTHER, "first_wins", to=State.INCLUDE),
    _COMMENT,
    _rule("i", rf"include{_BLANK}+if{_BLANK}+exists(?={_BLANK})", to=State.INCLUDE),
    _rule("i", rf"include(?={_BLANK})", to=State.INCLUDE),
    _rule("[hp]", rf"(?:hat|profile)(?![A-Za-z0-9_]|{_BLANK}*=|{_BLANK}+in{_BLANK}*\(){_BLANK}*",
          to=State.SUB_ID),
    _rule("[A-Za-z]", _WORD, TokenKind.OTHER, "by_keyword"),
    _rule(r"\^", r"\^", to=State.SUB_ID),
    _rule("-", "->", to=State.SUB_ID_WS),
    _rule("=", "=", TokenKind.ASSIGN, to=State.ASSIGN_MODE),
    _rule(r"\+", r"\+=", TokenKind.ASSIGN, to=State.ASSIGN_MODE),
    _rule("@", _VARIABLE, TokenKind.LABEL),
    _rule(r"\$", _BOOLEAN),
    _rule(r"\{", r"\{", TokenKind.OPEN),
    _rule(r"\}", r"\}", TokenKind.CLOSE),
    _rule('"', _QUOTED_LABEL, TokenKind.LABEL),
    _rule(":", ":"),
    _LIST,
    _rule(",", ",+", TokenKind.END),
)  # fmt: skip
_SUB_ID: Final = (
    _rule(_IDS_FIRST, _IDS, TokenKind.NAME, "pop"),
    _rule('"', _QUOTED, TokenKind.NAME, "pop"),
)
_SUB_VALUE: Final = (
    _rule(_IDS_FIRST, _IDS, TokenKind.OTHER, "pop"),
    _rule('"', _QUOTED, TokenKind.OTHER, "pop"),
)
_LIST_VALUES: Final = (_rule(_LIST_VALUE_FIRST, _LIST_VALUE), _rule('"', _QUOTED_VALUE))
_COMMON: Final[Table] = {
    State.SUB_ID: _SUB_ID,
    State.SUB_ID_WS: (_SPACES, *_SUB_VALUE),
    State.SUB_VALUE: _SUB_VALUE,
    State.EXTCOND_MODE: (
        _SPACES,
        _rule("=", rf"={_BLANK}*(?=[^(\n \t])", TokenKind.OTHER, "pop", to=State.SUB_VALUE),
        _rule("=", "="),
        _rule(r"\(", r"\(", TokenKind.OTHER, "pop", to=State.LIST_VAL_MODE),
        _rule("i", "in"),
    ),
    State.EXTCONDLIST_MODE: (
        _SPACES,
        _rule("=", "="),
        _rule(r"\(", r"\(", TokenKind.OTHER, "pop", to=State.LIST_COND_MODE),
    ),
    State.LIST_VAL_MODE: (
        _SPACES,
        _rule(r"\)", r"\)", TokenKind.OTHER, "pop"),
        _COMMA,
        _rule(_LIST_VALUE_FIRST, _LIST_VALUE),
        _rule('"', _QUOTED),
    ),
    State.LIST_COND_MODE: (
        _SPACES,
        _rule(r"\)", r"\)", TokenKind.OTHER, "pop"),
        _COMMA,
        _rule(r'[^ \t\n"!,=)]', r'[^ \t\n"!,=)]+'),
        _rule("=", rf"={_BLANK}*\(", to=State.LIST_COND_PAREN_VAL),
        _rule("=", "=", to=State.LIST_COND_VAL),
    ),
    State.LIST_COND_VAL: (
        _SPACES,
        _rule(_LIST_VALUE_FIRST, _LIST_VALUE, TokenKind.OTHER, "pop"),
        _rule('"', _QUOTED_VALUE, TokenKind.OTHER, "pop"),
    ),
    State.LIST_COND_PAREN_VAL: (
        _SPACES,
        _rule(r"\)", r"\)", TokenKind.OTHER, "pop"),
        *_LIST_VALUES,
    ),
    State.RLIMIT_MODE: (
        _SPACES,
        _rule("[-0-9]", "-?[0-9]+"),
        _rule("[A-Za-z_]", "[A-Za-z_]+"),
        _rule("<", "<="),
        _END_OF_RULE,
    ),
    State.CHANGE_PROFILE_MODE: (
        _SPACES,
        _rule("-", "->", to=State.SUB_ID_WS),
        *_ANY_ID,
        _END_OF_RULE,
    ),
    State.INCLUDE: (_SPACES, _rule(r"[^ \t\r\n!>]", _PATH, TokenKind.INCLUDE_PATH, "pop")),
    State.ABI_MODE: (_SPACES, _rule(r"[^ \t\r\n!>]", _PATH, TokenKind.ABI_PATH), _END_OF_RULE),
}  # fmt: skip


def _mode(*rules: Rule, identifier: Sequence[Rule], conditions: Sequence[Rule]) -> Sequence[Rule]:
    """Return the table of a state in which one kind of rule is read."""
    return (_SPACES, *conditions, *rules, *identifier, _END_OF_RULE)


def _modes(identifier: Sequence[Rule], conditions: Sequence[Rule]) -> Table:
    """Return the states of rules that list permissions in parentheses, and that of mount rules."""
    listing = _mode(_LIST, identifier=identifier, conditions=conditions)
    return {
        State.MOUNT_MODE: _mode(identifier=identifier, conditions=conditions),
        State.DBUS_MODE: listing,
        State.SIGNAL_MODE: listing,
        State.PTRACE_MODE: listing,
        State.UNIX_MODE: listing,
    }


_LABEL_FIRST: Final = "[/@:&]"
_ASSIGNED: Final = (_BLANKS, *_ANY_ID, _CONTINUED, _LAST_LINE_BREAK)
_KEYWORDS: Final = {
    "rlimit": State.RLIMIT_MODE,
    "network": State.NETWORK_MODE,
    "change_profile": State.CHANGE_PROFILE_MODE,
    "mount": State.MOUNT_MODE,
    "remount": State.MOUNT_MODE,
    "umount": State.MOUNT_MODE,
    "unmount": State.MOUNT_MODE,
    "dbus": State.DBUS_MODE,
    "signal": State.SIGNAL_MODE,
    "ptrace": State.PTRACE_MODE,
    "unix": State.UNIX_MODE,
    "abi": State.ABI_MODE,
}


def _version_3() -> Dialect:
    identifier = (
        _rule(r'[^ \t\n"!,=()+&]', _NO_EQUALS),
        _rule(_LABEL_FIRST, _LABEL),
        _rule('"', _QUOTED),
    )
    table = {
        **_COMMON,
        **_modes(identifier, _CONDITIONS),
        State.INITIAL: (*_CONDITIONS, _rule(_LABEL_FIRST, _LABEL, TokenKind.LABEL), *_INITIAL),
        State.ASSIGN_MODE: _ASSIGNED,
        State.NETWORK_MODE: (_SPACES, _ANY_ID[0], _END_OF_RULE),
    }
    return Dialect(name="3.0", table=table, keywords=_KEYWORDS)


_CONDITIONS_4: Final = (_PRIORITY, *_CONDITIONS)
_KEYWORDS_4: Final = {**_KEYWORDS, "userns": State.USERNS_MODE, "mqueue": State.MQUEUE_MODE}
_ASSIGNED_4: Final = (*_ASSIGNED, _LAST_COMMENT)
_COMMON_40: Final[Table] = {
    **_COMMON,
    State.ASSIGN_MODE: _ASSIGNED,
    State.USERNS_MODE: (_SPACES, _rule("c", "create"), _END_OF_RULE),
}
_COMMON_4: Final[Table] = {
    **_COMMON_40,
    State.ASSIGN_MODE: _ASSIGNED_4,
    State.INTEGER_MODE: (
        _BLANKS,
        _rule("=", "="),
        _rule(r"[-+0-9]", r"[-+]?[0-9]+", TokenKind.OTHER, "pop"),
    ),
}


def _version_4(name: str, common: Table, conditions: Sequence[Rule]) -> Dialect:
    identifier = (
        _rule(r'[^ \t\n"!,=()+&]', _NO_EQUALS),
        _rule(_LABEL_FIRST, _LABEL),
        _rule('"', _QUOTED),
    )
    listing = _mode(_LIST, identifier=identifier, conditions=conditions)
    table = {
        **common,
        **_modes(identifier, conditions),
        State.INITIAL: (*conditions, _rule(_LABEL_FIRST, _LABEL, TokenKind.LABEL), *_INITIAL),
        State.NETWORK_MODE: listing,
        State.MQUEUE_MODE: listing,
    }
    return Dialect(name=name, table=table, keywords=_KEYWORDS_4)


def _version_5(name: str, word: str, condition: Rule) -> Dialect:
    identifier = (
        _rule(r'[^ \t\n"!,=()+&]', word),
        _rule(_LABEL_FIRST, _LABEL_5),
        _rule('"', _QUOTED),
    )
    listing = _mode(_LIST, identifier=identifier, conditions=_CONDITIONS_4)
    expression = (
        _rule("@", _VARIABLE),
        _rule(r"\$", _BOOLEAN),
        _rule(r"[()]", r"[()]"),
        _rule("[=!<>]", r"[=!]=|[<>]=?"),
        *identifier,
    )
    table = {
        **_COMMON_4,
        **_modes(identifier, _CONDITIONS_4),
        State.INITIAL: (
            *_CONDITIONS_4,
            _rule(r"\$", rf"{_BOOLEAN}(?={_BLANK}*[+?:]?=)", to=State.ASSIGN_EXPR_START),
            _rule(_LABEL_FIRST, _LABEL_5, TokenKind.LABEL),
            _rule(r"\+", r"\+", to=State.IDENTITY_VALUE),
            _rule("[?:]", "[?:]=", TokenKind.ASSIGN, to=State.ASSIGN_MODE),
            *_INITIAL,
        ),
        State.NETWORK_MODE: listing,
        State.MQUEUE_MODE: listing,
        State.IDENTITY_VALUE: (
            _BLANKS,
            _rule("i", rf"identities(?={_BLANK}*=)", TokenKind.OTHER, "pop", to=State.EXTCOND_MODE),
            _rule(r'[^ \t\r\n"!,{}\\=]', r'[^ \t\r\n"!,{}\\=]+', TokenKind.OTHER, "pop"),
            _rule('"', _QUOTED, TokenKind.OTHER, "pop"),
        ),
        State.EXTCOND_MODE: (
            *_COMMON[State.EXTCOND_MODE],
            _rule(":", rf":={_BLANK}*(?=[^(\n \t])", TokenKind.OTHER, "pop", to=State.SUB_VALUE),
            _rule(":", ":="),
        ),
        State.LIST_COND_MODE: (
            _SPACES,
            _rule(r"\)", r"\)", TokenKind.OTHER, "pop"),
            _COMMA,
            condition,
            _rule("[=:]", rf":?={_BLANK}*\(", to=State.LIST_COND_PAREN_VAL),
            _rule("[=:]", ":?=", to=State.LIST_COND_VAL),
        ),
        State.EXPR_MODE: (_SPACES, _rule(r"\{", r"\{", TokenKind.OPEN, "pop"), *expression),
        State.ASSIGN_EXPR_MODE: (
            _BLANKS,
            _LAST_COMMENT,
            _CONTINUED,
            _LAST_LINE_BREAK,
            *expression,
        ),
        State.ASSIGN_EXPR_START: (
            _SPACES,
            _rule(r"[=+?:]", r"[+?:]?=", TokenKind.OTHER, "pop", to=State.ASSIGN_EXPR_MODE),
        ),
    }
    return Dialect(name=name, table=table, keywords={**_KEYWORDS_4, "if": State.EXPR_MODE})


DIALECTS: Final = (
    _version_3(),
    _version_4("4.0.0", _COMMON_40, _CONDITIONS),
    _version_4("4.0.2", {**_COMMON_40, State.ASSIGN_MODE: _ASSIGNED_4}, _CONDITIONS),
    _version_4("4.1.0", _COMMON_4, _CONDITIONS_4),
    _version_5("5.0.0", _NO_ASSIGN_500, _rule(r'[^ \t\n"!,=:)]', r'[^ \t\n"!,=:)]+')),
    _version_5("5.0.1", _NO_ASSIGN, _rule(r'[^ \t\n"!,=()+&]', _NO_ASSIGN)),
)


@functools.lru_cache(maxsize=8192)
def _candidates(dialect: Dialect, state: State, character: str) -> tuple[Rule, ...]:
    """Return the rules of a state that a character can begin, in their order."""
    return tuple(
        rule
        for rule in dialect.table.get(state, ())
        if rule.first_characters.match(character) is not None
    )


def tokens(text: str, dialect: Dialect) -> Iterator[Token]:
    """Return the tokens of a text that are of a kind of their own, and the rest of the text."""
    states = [State.INITIAL]
    position, size, last_line_break = 0, len(text), text.rfind("\n")
    while position < size:
        rules = _candidates(dialect, states[-1], text[position])
        rule, end = _longest(rules, text, position, has_line_break=position < last_line_break)
        if rule is None:
            break
        push = dialect.keywords.get(text[position:end]) if rule.pushes_by_keyword else rule.push
        if rule.pop:
            states.pop()
        if push is not None:
            states.append(push)
        if rule.kind is not TokenKind.OTHER:
            yield Token(rule.kind, position, end)
        position = end
    yield Token(TokenKind.REST, position, size)


def _longest(
    rules: Sequence[Rule], text: str, position: int, *, has_line_break: bool
) -> tuple[Rule | None, int]:
    """Return the rule that the lexer takes at a position, and where its token ends."""
    chosen, end = None, position
    for rule in rules:
        match = rule.pattern.match(text, position)
        if match is None:
            continue
        if rule.first_wins:
            if has_line_break:
                return rule, match.end()
        elif match.end() > end:
            chosen, end = rule, match.end()
    return chosen, end
