"""The lexers of apparmor_parser as data: one Dialect for each version that changed the lexer.

The tables follow parser_lex.l of apparmor 3.0 to 6.0~alpha1. A version that is not listed has the
lexer of the preceding listed version. tests/include_search.py compares the tables with real
parsers.
"""

from collections.abc import Sequence
from typing import Final

from agent.backends.apparmor.lexer_rules import Dialect, Rule, State, Table, TokenKind

_BLANK: Final = r"[ \t]"
_SPACE: Final = r"(?:[ \t]|\r?\n)++"
_WORD: Final = r"[A-Za-z][A-Za-z0-9_]*"
# This pattern ends at the first quote that has no backslash.
_QUOTED: Final = r'"[^"\0]*+(?:(?<=\\)"[^"\0]*+)*"'
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


_SPACES: Final = Rule(r"[ \t\r\n]", _SPACE)
_BLANKS: Final = Rule(_BLANK, rf"{_BLANK}+")
_COMMA: Final = Rule(",", ",+")
_END_OF_RULE: Final = Rule(",", ",", TokenKind.END, pop=True)
_ANY_ID: Final = (Rule(_IDS_FIRST, _IDS), Rule('"', _QUOTED))
_CONDITIONS: Final = (
    Rule("[px]", rf"(?:peer|xattrs)(?={_BLANK}*={_BLANK}*\()", push=State.EXTCONDLIST_MODE),
    Rule("[A-Za-z]", rf"{_WORD}(?={_BLANK}*=)", push=State.EXTCOND_MODE),
    Rule("[A-Za-z]", rf"{_WORD}(?={_BLANK}+in{_BLANK}*\()", push=State.EXTCOND_MODE),
)
_PRIORITY: Final = Rule("p", rf"priority(?={_BLANK}*=)", push=State.INTEGER_MODE)
_LIST: Final = Rule(r"\(", r"\(", push=State.LIST_VAL_MODE)
_COMMENT: Final = Rule("#", r"#[^\n]*\n(?:[ \t]*#(?!include)[^\n]*\n)*+", TokenKind.COMMENT)
# This pattern matches a comment at the end of an assignment.
_LAST_COMMENT: Final = Rule("#", r"#[^\n]*\n", TokenKind.COMMENT, pop=True)
_CONTINUED: Final = Rule(r"\\", r"\\\n")
_LAST_LINE_BREAK: Final = Rule(r"[\r\n]", r"\r?\n", pop=True)

_INITIAL: Final = (
    _SPACES,
    Rule("#", rf"#include{_BLANK}+if{_BLANK}+exists(?={_BLANK})", first_wins=True,
          push=State.INCLUDE),
    Rule("#", "#include", first_wins=True, push=State.INCLUDE),
    _COMMENT,
    Rule("i", rf"include{_BLANK}+if{_BLANK}+exists(?={_BLANK})", push=State.INCLUDE),
    Rule("i", rf"include(?={_BLANK})", push=State.INCLUDE),
    Rule("[hp]", rf"(?:hat|profile)(?![A-Za-z0-9_]|{_BLANK}*=|{_BLANK}+in{_BLANK}*\(){_BLANK}*",
          push=State.SUB_ID),
    Rule("[A-Za-z]", _WORD, pushes_by_keyword=True),
    Rule(r"\^", r"\^", push=State.SUB_ID),
    Rule("-", "->", push=State.SUB_ID_WS),
    Rule("=", "=", TokenKind.ASSIGN, push=State.ASSIGN_MODE),
    Rule(r"\+", r"\+=", TokenKind.ASSIGN, push=State.ASSIGN_MODE),
    Rule("@", _VARIABLE, TokenKind.LABEL),
    Rule(r"\$", _BOOLEAN),
    Rule(r"\{", r"\{", TokenKind.OPEN),
    Rule(r"\}", r"\}", TokenKind.CLOSE),
    Rule('"', _QUOTED_LABEL, TokenKind.LABEL),
    Rule(":", ":"),
    _LIST,
    Rule(",", ",+", TokenKind.END),
)  # fmt: skip
_SUB_ID: Final = (
    Rule(_IDS_FIRST, _IDS, TokenKind.NAME, pop=True),
    Rule('"', _QUOTED, TokenKind.NAME, pop=True),
)
_SUB_VALUE: Final = (
    Rule(_IDS_FIRST, _IDS, pop=True),
    Rule('"', _QUOTED, pop=True),
)
_LIST_VALUES: Final = (Rule(_LIST_VALUE_FIRST, _LIST_VALUE), Rule('"', _QUOTED_VALUE))
_COMMON: Final[Table] = {
    State.SUB_ID: _SUB_ID,
    State.SUB_ID_WS: (_SPACES, *_SUB_VALUE),
    State.SUB_VALUE: _SUB_VALUE,
    State.EXTCOND_MODE: (
        _SPACES,
        Rule("=", rf"={_BLANK}*(?=[^(\n \t])", pop=True, push=State.SUB_VALUE),
        Rule("=", "="),
        Rule(r"\(", r"\(", pop=True, push=State.LIST_VAL_MODE),
        Rule("i", "in"),
    ),
    State.EXTCONDLIST_MODE: (
        _SPACES,
        Rule("=", "="),
        Rule(r"\(", r"\(", pop=True, push=State.LIST_COND_MODE),
    ),
    State.LIST_VAL_MODE: (
        _SPACES,
        Rule(r"\)", r"\)", pop=True),
        _COMMA,
        Rule(_LIST_VALUE_FIRST, _LIST_VALUE),
        Rule('"', _QUOTED),
    ),
    State.LIST_COND_MODE: (
        _SPACES,
        Rule(r"\)", r"\)", pop=True),
        _COMMA,
        Rule(r'[^ \t\n"!,=)]', r'[^ \t\n"!,=)]+'),
        Rule("=", rf"={_BLANK}*\(", push=State.LIST_COND_PAREN_VAL),
        Rule("=", "=", push=State.LIST_COND_VAL),
    ),
    State.LIST_COND_VAL: (
        _SPACES,
        Rule(_LIST_VALUE_FIRST, _LIST_VALUE, pop=True),
        Rule('"', _QUOTED_VALUE, pop=True),
    ),
    State.LIST_COND_PAREN_VAL: (
        _SPACES,
        Rule(r"\)", r"\)", pop=True),
        *_LIST_VALUES,
    ),
    State.RLIMIT_MODE: (
        _SPACES,
        Rule("[-0-9]", "-?[0-9]+"),
        Rule("[A-Za-z_]", "[A-Za-z_]+"),
        Rule("<", "<="),
        _END_OF_RULE,
    ),
    State.CHANGE_PROFILE_MODE: (
        _SPACES,
        Rule("-", "->", push=State.SUB_ID_WS),
        *_ANY_ID,
        _END_OF_RULE,
    ),
    State.INCLUDE: (_SPACES, Rule(r"[^ \t\r\n!>]", _PATH, TokenKind.INCLUDE_PATH, pop=True)),
    State.ABI_MODE: (_SPACES, Rule(r"[^ \t\r\n!>]", _PATH, TokenKind.ABI_PATH), _END_OF_RULE),
}  # fmt: skip


def _mode(*rules: Rule, identifier: Sequence[Rule], conditions: Sequence[Rule]) -> Sequence[Rule]:
    """Return the rules of a state for one type of policy rule, such as mount rules."""
    return (_SPACES, *conditions, *rules, *identifier, _END_OF_RULE)


def _modes(identifier: Sequence[Rule], conditions: Sequence[Rule]) -> Table:
    """Return the states of mount rules, and of rules with permissions in parentheses."""
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
    """Return the lexer of apparmor_parser 3.x."""
    identifier = (
        Rule(r'[^ \t\n"!,=()+&]', _NO_EQUALS),
        Rule(_LABEL_FIRST, _LABEL),
        Rule('"', _QUOTED),
    )
    table = {
        **_COMMON,
        **_modes(identifier, _CONDITIONS),
        State.INITIAL: (*_CONDITIONS, Rule(_LABEL_FIRST, _LABEL, TokenKind.LABEL), *_INITIAL),
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
    State.USERNS_MODE: (_SPACES, Rule("c", "create"), _END_OF_RULE),
}
_COMMON_4: Final[Table] = {
    **_COMMON_40,
    State.ASSIGN_MODE: _ASSIGNED_4,
    State.INTEGER_MODE: (
        _BLANKS,
        Rule("=", "="),
        Rule(r"[-+0-9]", r"[-+]?[0-9]+", pop=True),
    ),
}


def _version_4(name: str, common: Table, conditions: Sequence[Rule]) -> Dialect:
    """Return the lexer of one apparmor_parser 4.x version."""
    identifier = (
        Rule(r'[^ \t\n"!,=()+&]', _NO_EQUALS),
        Rule(_LABEL_FIRST, _LABEL),
        Rule('"', _QUOTED),
    )
    listing = _mode(_LIST, identifier=identifier, conditions=conditions)
    table = {
        **common,
        **_modes(identifier, conditions),
        State.INITIAL: (*conditions, Rule(_LABEL_FIRST, _LABEL, TokenKind.LABEL), *_INITIAL),
        State.NETWORK_MODE: listing,
        State.MQUEUE_MODE: listing,
    }
    return Dialect(name=name, table=table, keywords=_KEYWORDS_4)


def _expression_modes(identifier: Sequence[Rule]) -> Table:
    """Return the states of the expressions in conditions and in assignments to booleans."""
    expression = (
        Rule("@", _VARIABLE),
        Rule(r"\$", _BOOLEAN),
        Rule(r"[()]", r"[()]"),
        Rule("[=!<>]", r"[=!]=|[<>]=?"),
        *identifier,
    )
    return {
        State.EXPR_MODE: (_SPACES, Rule(r"\{", r"\{", TokenKind.OPEN, pop=True), *expression),
        State.ASSIGN_EXPR_MODE: (
            _BLANKS,
            _LAST_COMMENT,
            _CONTINUED,
            _LAST_LINE_BREAK,
            *expression,
        ),
        State.ASSIGN_EXPR_START: (
            _SPACES,
            Rule(r"[=+?:]", r"[+?:]?=", pop=True, push=State.ASSIGN_EXPR_MODE),
        ),
    }


def _version_5(name: str, word: str, condition: Rule) -> Dialect:
    """Return the lexer of one apparmor_parser 5.x version."""
    identifier = (
        Rule(r'[^ \t\n"!,=()+&]', word),
        Rule(_LABEL_FIRST, _LABEL_5),
        Rule('"', _QUOTED),
    )
    listing = _mode(_LIST, identifier=identifier, conditions=_CONDITIONS_4)
    table = {
        **_COMMON_4,
        **_modes(identifier, _CONDITIONS_4),
        **_expression_modes(identifier),
        State.INITIAL: (
            *_CONDITIONS_4,
            Rule(r"\$", rf"{_BOOLEAN}(?={_BLANK}*[+?:]?=)", push=State.ASSIGN_EXPR_START),
            Rule(_LABEL_FIRST, _LABEL_5, TokenKind.LABEL),
            Rule(r"\+", r"\+", push=State.IDENTITY_VALUE),
            Rule("[?:]", "[?:]=", TokenKind.ASSIGN, push=State.ASSIGN_MODE),
            *_INITIAL,
        ),
        State.NETWORK_MODE: listing,
        State.MQUEUE_MODE: listing,
        State.IDENTITY_VALUE: (
            _BLANKS,
            Rule("i", rf"identities(?={_BLANK}*=)", pop=True, push=State.EXTCOND_MODE),
            Rule(r'[^ \t\r\n"!,{}\\=]', r'[^ \t\r\n"!,{}\\=]+', pop=True),
            Rule('"', _QUOTED, pop=True),
        ),
        State.EXTCOND_MODE: (
            *_COMMON[State.EXTCOND_MODE],
            Rule(":", rf":={_BLANK}*(?=[^(\n \t])", pop=True, push=State.SUB_VALUE),
            Rule(":", ":="),
        ),
        State.LIST_COND_MODE: (
            _SPACES,
            Rule(r"\)", r"\)", pop=True),
            _COMMA,
            condition,
            Rule("[=:]", rf":?={_BLANK}*\(", push=State.LIST_COND_PAREN_VAL),
            Rule("[=:]", ":?=", push=State.LIST_COND_VAL),
        ),
    }
    return Dialect(name=name, table=table, keywords={**_KEYWORDS_4, "if": State.EXPR_MODE})


DIALECTS: Final = (
    _version_3(),
    _version_4("4.0.0", _COMMON_40, _CONDITIONS),
    _version_4("4.0.2", {**_COMMON_40, State.ASSIGN_MODE: _ASSIGNED_4}, _CONDITIONS),
    _version_4("4.1.0", _COMMON_4, _CONDITIONS_4),
    _version_5("5.0.0", _NO_ASSIGN_500, Rule(r'[^ \t\n"!,=:)]', r'[^ \t\n"!,=:)]+')),
    _version_5("5.0.1", _NO_ASSIGN, Rule(r'[^ \t\n"!,=()+&]', _NO_ASSIGN)),
)
