"""Escapes unsafe characters in names and messages that come from other programs."""


def printable(text: str) -> str:
    """Return a text in which every character that is not printable is escaped.

    These characters include control characters and bytes that are not UTF-8.
    """
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)
