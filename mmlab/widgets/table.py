"""A table of measured values, shown alike in JupyterLab and on the site."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


class Table:
    """Rows of text and numbers under a header.

    Args:
        header: the names of the columns.
        rows: as many cells in each row; cells become text with ``str``.
        align: one letter a column, ``l`` or ``r``; by default the first column is text and the
            others are numbers.

    Raises:
        ValueError: a row or ``align`` has not as many cells as the header.
    """

    def __init__(self, header: Sequence[str], rows: Iterable[Sequence[object]], align: str = ""):
        self.header = list(header)
        self.align = align or "l" + "r" * (len(self.header) - 1)
        self.rows = [[str(cell) for cell in row] for row in rows]
        for cells in (self.align, *self.rows):
            if len(cells) != len(self.header):
                raise ValueError(f"{cells} must have {len(self.header)} cells, as {self.header}")

    def _line(self, cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    def markdown(self) -> str:
        """The table in Markdown."""
        rule = self._line([{"l": ":--", "r": "--:"}[letter] for letter in self.align])
        return "\n".join([self._line(self.header), rule, *map(self._line, self.rows)])

    def __str__(self) -> str:
        columns = list(zip(self.header, *self.rows, strict=True))
        widths = [max(map(len, column)) for column in columns]
        pad = {"l": str.ljust, "r": str.rjust}
        lines = [
            "  ".join(map(lambda c, w, a: pad[a](c, w), row, widths, self.align)).rstrip()
            for row in [self.header, *self.rows]
        ]
        return "\n".join(lines)

    def _repr_mimebundle_(self, include=None, exclude=None) -> dict[str, str]:
        return {"text/markdown": self.markdown(), "text/plain": str(self)}
