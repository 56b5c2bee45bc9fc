"""Tests of agent.backends.apparmor.lexer with texts that different parser versions read
differently.

The expected values come from lexers that were built from parser_lex.l of the versions 3.0.8, 4.0.1,
4.0.3, 4.1.8, 5.0.0 and 5.0.2.
"""

import itertools

import pytest

from agent.backends.apparmor import lexer, lexer_dialects
from agent.backends.apparmor.lexer_rules import TokenKind

ALL = ("3.0", "4.0.0", "4.0.2", "4.1.0", "5.0.0", "5.0.1")
VERSIONS_THAT_READ_THE_INCLUDE = {
    'include "/p"\n': ALL,
    'include\n"/p"\n': (),
    '# include "/p"\n': (),
    '#include "/p"\n': ALL,
    '#include "/p"': (),  # The parser needs a line break after the path.
    '{ : include "/p"\n': ("3.0", "4.0.0", "4.0.2", "4.1.0"),
    'priority=#x\ninclude "/p"\n': ("3.0", "4.0.0", "4.0.2"),
    'priority=5include "/p"\n': ("4.1.0", "5.0.0", "5.0.1"),
    '@{X}=a #"\n include "/p" #"\n': ("4.0.2", "4.1.0", "5.0.0", "5.0.1"),
    'mqueue #"\n, include "/p" #"\n': ("3.0",),
    'network ( #",\n include "/p"\n': (),
    'if #"\n{ include "/p" #"\n': ("3.0", "4.0.0", "4.0.2", "4.1.0"),
    'umount a:,\ninclude "/p"\n': ("3.0", "4.0.0", "4.0.2", "4.1.0"),
    'signal peer=( x:y=z ), include "/p"\n': ("3.0", "4.0.0", "4.0.2", "4.1.0", "5.0.1"),
}


@pytest.mark.parametrize(
    ("text", "versions"), VERSIONS_THAT_READ_THE_INCLUDE.items(), ids=itertools.count()
)
def test_each_version_reads_its_own_includes(text: str, versions: tuple[str, ...]) -> None:
    """A parser version reads an include rule if its lexer is in the initial state at this
    position.
    """
    readers = tuple(
        dialect.name
        for dialect in lexer_dialects.DIALECTS
        if any(token.kind is TokenKind.INCLUDE_PATH for token in lexer.tokens(text, dialect))
    )
    assert readers == versions
