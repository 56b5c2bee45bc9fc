"""Renders the tables of the status page as HTML with a limited size.

Text from profiles, names and errors is always escaped. To keep tables small, the style sheet
defines everything that would otherwise need attributes in each cell. For example, a narrow screen
shows the name of the column in front of each cell, and these names are in the style sheet. An empty
cell has no content, and the style sheet shows a dash in it. agent.reporting.status_page selects the
content of the tables.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from agent.core.printable import printable


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One row of a table."""

    cells: tuple[str, ...]
    """The HTML of each cell; empty for a cell without content."""

    classes: str = ""
    """The classes of the row, separated by spaces."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """The declaration of one table."""

    name: str
    """The class of the table element."""

    caption: str
    columns: tuple[str, ...]
    """The headings of the columns. The first column contains the headings of the rows."""

    unbroken: frozenset[str]
    """The columns whose words are never broken."""

    max_bytes: int
    """The largest total size of the rows, in bytes."""

    def wide_style(self) -> str:
        """Return the style rules for the columns of this table that apply at every width."""
        return "".join(
            f"{self._cells(column)}{{overflow-wrap:normal;white-space:nowrap}}"
            for column in self.columns
            if column in self.unbroken
        )

    def narrow_style(self) -> str:
        """Return the style rules that show the name of a column in front of each of its cells.

        Cells whose words are never broken are short, so several of them share a line.
        """
        return "".join(
            f'{self._cells(column)}::before{{content:"{column}: "}}' for column in self.columns
        ) + "".join(
            f"{self._cells(column)}:not(:empty){{display:inline-block;margin-right:1rem}}"
            for column in self.columns
            if column in self.unbroken
        )

    def _cells(self, column: str) -> str:
        return f".{self.name} tbody>*>:nth-child({self.columns.index(column) + 1})"

    def html(self, rows: Sequence[Row], *, omitted: int = 0) -> str:
        """Return the table with the rows that fit, and the number of omitted rows.

        Args:
            rows: the rows, of which the last ones are omitted if they do not fit.
            omitted: the number of rows that the caller has already omitted.
        """
        lines: list[str] = []
        size = 0
        for row in rows:
            line = _line(row)
            size += len(line.encode("utf-8", "replace"))
            if size > self.max_bytes:
                break
            lines.append(line)
        omitted += len(rows) - len(lines)
        if not lines and not omitted:
            return "<p>None.</p>"
        # Each element has a role, because browsers ignore the meaning of table elements that a
        # style sheet displays as blocks.
        head = "".join(
            f"<th scope=col role=columnheader>{text(name)}</th>" for name in self.columns
        )
        more = (
            f"<p>{omitted} more are not shown here. The log contains them.</p>" if omitted else ""
        )
        return (
            f"<table role=table class={self.name}><caption>{text(self.caption)}</caption>"
            f"<thead role=rowgroup><tr role=row>{head}</tr></thead>"
            f"<tbody role=rowgroup>{''.join(lines)}</tbody></table>{more}"
        )


def text(value: str) -> str:
    """Return a text as escaped HTML."""
    return escape(printable(value))


def plain(*values: str) -> tuple[str, ...]:
    """Return the HTML of cells that contain only text."""
    return tuple(text(value) for value in values)


def _line(row: Row) -> str:
    first, *others = row.cells
    classes = f' class="{row.classes}"' if row.classes else ""
    cells = "".join(f"<td role=cell>{cell}</td>" for cell in others)
    return f"<tr role=row{classes}><th scope=row role=rowheader>{first}</th>{cells}</tr>"
