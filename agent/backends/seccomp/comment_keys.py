"""Recognises the JSON keys that authors of profiles use for comments.

No runtime reads such a key, so the canonical form omits the key. A misspelt or disabled field is
not a comment, because its author may expect the field to have an effect.
"""

import re
from typing import Final

# Authors of profiles use keys with these names or prefixes for comments. A key that consists of
# such a prefix and the name of a field is not a comment (see is_comment).
_COMMENT: Final = re.compile(
    r"(?:[$_#/@-].*|comments?|description|title|notes?|name|version|author|\$schema)",
    re.IGNORECASE | re.DOTALL,
)
_PREFIX: Final = "$_#/@- "


def is_comment(key: str, keys: frozenset[str]) -> bool:
    """Return whether a key is a comment, and not a misspelt or disabled field."""
    bare = key.lstrip(_PREFIX).casefold()
    fields = {field.casefold() for field in keys if field != "comment"}
    return _COMMENT.fullmatch(key) is not None and bare not in fields
