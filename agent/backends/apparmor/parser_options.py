"""The command line options of apparmor_parser for each run.

The parser neither loads policy (`-Q`) nor uses its own cache (`-K`), because that cache identifies
a text only by file name and time. This module performs no I/O; parser.py runs the parser.
"""

from collections.abc import Collection
from typing import Final

_ALWAYS: Final = ("-Q", "-K", "-S", "--warn=rule-not-enforced", "--warn=rule-downgraded")
_QUICK: Final = ("-O", "no-expr-simplify")
# Parser 5.0 compresses the policy if the kernel has the feature policy/compressed_load.
_COMPRESSION_LEVEL: Final = "zstd-compress-level"


def uncompressed(words: Collection[str]) -> tuple[str, ...]:
    """Return the option for an uncompressed policy, if the parser has this option.

    Args:
        words: the words in the parser program.
    """
    return (f"--{_COMPRESSION_LEVEL}=0",) if _COMPRESSION_LEVEL in words else ()


def options(words: Collection[str], *, is_quick: bool) -> tuple[str, ...]:
    """Return the options of one run.

    Args:
        words: the words in the parser program.
        is_quick: whether the run omits the simplification of expressions.
    """
    return (*_ALWAYS, *uncompressed(words), *(_QUICK if is_quick else ()))
