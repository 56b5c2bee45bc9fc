"""The types that describe the lexer of apparmor_parser.

A lexer that flex generates has a table of rules for each start condition. The class State lists the
start conditions. Each rule has a pattern and a start condition for the text after its token.
lexer_dialects.py contains the tables, and lexer.py applies them.
"""

import enum
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass


class State(enum.Enum):
    """A start condition of the parser's lexer, under the name that the parser uses."""

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
    INCLUDE = enum.auto()
    """This state also represents the parser's state INCLUDE_EXISTS."""
    ABI_MODE = enum.auto()
    USERNS_MODE = enum.auto()
    MQUEUE_MODE = enum.auto()
    INTEGER_MODE = enum.auto()
    EXPR_MODE = enum.auto()
    ASSIGN_EXPR_MODE = enum.auto()
    ASSIGN_EXPR_START = enum.auto()


class TokenKind(enum.Enum):
    """The types of tokens that the checks of profile texts distinguish."""

    COMMENT = enum.auto()
    INCLUDE_PATH = enum.auto()
    ABI_PATH = enum.auto()
    NAME = enum.auto()
    """A word after `profile`, `hat` or `^`."""
    LABEL = enum.auto()
    """A word that begins with `/`, `@`, `:` or `&`, in State.INITIAL only."""
    ASSIGN = enum.auto()
    """The operator of an assignment to a variable."""
    OPEN = enum.auto()
    """The brace that begins a block."""
    CLOSE = enum.auto()
    """The brace that ends a block."""
    END = enum.auto()
    """The comma that ends a rule."""
    OTHER = enum.auto()
    """Any other token, which the lexer does not return."""
    REST = enum.auto()
    """The part of the text that the lexer does not read. For a readable text, this token is empty.
    """


@dataclass(frozen=True, slots=True)
class Rule:
    """One pattern of the lexer, and the effect of its token on the stack of states."""

    first_characters: str
    """A regular expression for the characters that a match can begin with."""
    pattern: str
    """A regular expression for the token. A lookahead in the expression represents the trailing
    context of a flex rule."""
    kind: TokenKind = TokenKind.OTHER
    _: KW_ONLY
    pop: bool = False
    """Whether the token ends the current state."""
    push: State | None = None
    """The state that begins after the token. A rule with both `push` and `pop` replaces the current
    state.
    """
    pushes_by_keyword: bool = False
    """Whether the word of the token selects the next state (Dialect.keywords)."""
    first_wins: bool = False
    """Whether a match of this rule is accepted without comparing its length with other matches.

    A rule with this flag needs a line break somewhere after the token.
    """


Table = Mapping[State, Sequence[Rule]]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Dialect:
    """The lexer of one generation of apparmor_parser."""

    name: str
    """The oldest version of apparmor_parser that has this lexer."""
    table: Table
    """The rules of each state, in the order of the parser's own lexer."""
    keywords: Mapping[str, State]
    """The words that begin a rule with its own state."""
