"""CSV files that people write: a header, then rows of cells, read alike wherever a setting names one."""

import csv
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from sparcl_core.foreign import printable

SHOWN = 5


@dataclass(eq=False)
class Table:
    """What a file holds, and what is wrong with it.

    A byte order mark, blanks around cells, rows of nothing but blanks and commas, and empty columns behind the last one count for nothing.

    Attributes:
        path: of the file.
        header: the names of the columns; none twice.
        rows: (line, from 1; column -> cell). A row with another number of cells than the header is a problem instead.
        problems: (line, what is wrong with it); whoever reads the cells adds to them.
    """

    path: str | Path
    header: list[str]
    rows: list[tuple[int, dict[str, str]]]
    problems: list[tuple[int, str]] = field(default_factory=list)

    @contextmanager
    def line(self, number: int) -> Iterator[None]:
        """A ValueError within becomes a problem of this line."""
        try:
            yield
        except ValueError as error:
            self.problems.append((number, str(error)))

    def check(self) -> None:
        """Raises ValueError with the first problems, if there are any, and how many there are more."""
        if self.problems:
            more = f"; and {len(self.problems) - SHOWN:,} lines more" if len(self.problems) > SHOWN else ""
            raise ValueError(f"{self.path}, " + "; ".join(f"line {line}: {what}" for line, what in sorted(self.problems)[:SHOWN]) + more)


def read_table(path: str | Path, what: str, form: str) -> Table:
    """The table in a file.

    Args:
        what: the file is, for messages: "trace".
        form: what is in it: "the columns device,on,off".

    Raises:
        ValueError: naming the file, if it cannot be read, is no CSV in UTF-8, or has two columns of one name.
    """
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file, strict=True, skipinitialspace=True)
            lines = [(reader.line_num, cells) for row in reader if any(cells := [cell.strip() for cell in row])]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        why = getattr(error, "strerror", None) or error
        raise ValueError(f"{what} {path} cannot be read ({printable(why)}); it must be a CSV file in UTF-8 with {form}") from error
    number, header = lines[0] if lines else (1, [])
    while header and not header[-1]:
        header = header[:-1]
    if twice := [name for position, name in enumerate(header) if name in header[:position]]:
        raise ValueError(f"{path}, line {number}: there are two columns {printable(twice[0])!r}; leave one out")
    table = Table(path, header, [])
    for number, cells in lines[1:]:
        while len(cells) > len(header) and not cells[-1]:
            cells = cells[:-1]
        if len(cells) == len(header):
            table.rows.append((number, dict(zip(header, cells, strict=True))))
        else:
            table.problems.append((number, f"{len(cells)} of {len(header)} cells, and a row needs one for each column"))
    return table
