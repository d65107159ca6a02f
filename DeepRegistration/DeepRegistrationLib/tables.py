"""Tables of texts (.csv) as spreadsheet programs write them: a header line; separated by commas, tabs, or semicolons, where the comma is the decimal
mark; in UTF-8, UTF-16 or the Western code page."""

from __future__ import annotations

import codecs
import csv
import io
import re
from pathlib import Path

from .errors import InputError

DELIMITERS = ",;\t"
DECIMAL_COMMA = re.compile(r"^([+-]?\d+),(\d+)$")


def read_rows(path) -> tuple[list[str], list[dict[str, str]]]:
    """(header, rows by its columns) of the file ``path``; rows without any text are left out, and in a table with semicolons 12,5 is 12.5. InputError
    for a file that is no such table."""
    text = decoded(Path(path).read_bytes())
    if "\0" in text:
        raise InputError(f"{path} is no table of text; give a .csv file with a header line")
    header = next(iter(text.splitlines()), "")
    delimiter = max(DELIMITERS, key=header.count)
    try:
        lines = list(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True))
    except csv.Error as error:
        raise InputError(f"{path} cannot be read as a table ({error}); give a .csv file with a header line") from None
    heads = [cell.strip() for cell in lines[0]] if lines else []
    while heads and not heads[-1]:
        heads.pop()
    rows = []
    for number, line in enumerate(lines[1:], 2):
        cells = [cell.strip() if delimiter != ";" else DECIMAL_COMMA.sub(r"\1.\2", cell.strip()) for cell in line]
        if any(cells[len(heads) :]):
            raise InputError(f"{path}, line {number}: it has {len(cells)} cells and the header {len(heads)}; put texts with '{delimiter}' in quotation marks")
        if any(cells):
            rows.append(dict(zip(heads, cells + [""] * len(heads))))
    return heads, rows


def read_figures(path) -> list[dict]:
    """The rows of ``read_rows`` with numbers where a text is one, except for the subject: 007 is a name."""

    def figure(text):
        try:
            return float(text)
        except ValueError:
            return text

    return [{key: text if key == "subject" else figure(text) for key, text in row.items()} for row in read_rows(path)[1]]


def decoded(data: bytes) -> str:
    """The text of a file that may be in any of these encodings."""
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return data.decode("utf-16", "replace")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return data.decode("cp1252", "replace")
