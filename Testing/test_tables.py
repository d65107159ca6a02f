"""Tables as spreadsheet programs of several countries write them."""

from __future__ import annotations

import pytest

from DeepRegistrationLib.errors import InputError
from DeepRegistrationLib.tables import read_figures, read_rows

ROWS = [{"subject": "Müller, A", "age": "12.5"}, {"subject": "b", "age": ""}]


@pytest.mark.parametrize("text, encoding", [
    ('subject,age\n"Müller, A",12.5\nb,\n', "utf-8"), ('subject, age\r\n"Müller, A", 12.5\r\n\r\nb\r\n,,\r\n', "utf-8-sig"),
    ("subject;age\r\nMüller, A;12,5\r\nb;\r\n;\r\n", "cp1252"), ("subject\tage\r\nMüller, A\t12.5\r\nb\t\r\n", "utf-16"),
    ("subject\tage\t\nMüller, A\t12.5\t\nb\t\t\n", "utf-8")],
    ids=["commas", "trailing-commas", "semicolons", "unicode-text", "tabs"])
def test_separators_decimal_marks_and_encodings(tmp_path, text, encoding):
    (tmp_path / "people.csv").write_bytes(text.encode(encoding))
    assert read_rows(tmp_path / "people.csv") == (["subject", "age"], ROWS)


def test_a_comma_in_an_english_number_is_not_taken_for_a_decimal_mark(tmp_path):
    (tmp_path / "people.csv").write_text('subject,weight\na,"3,450"\n', "utf-8")
    assert read_rows(tmp_path / "people.csv")[1] == [{"subject": "a", "weight": "3,450"}]


def test_one_column_a_text_over_two_lines_and_nothing(tmp_path):
    (tmp_path / "one.csv").write_text('image\na.nii\n"b\nc.nii"\n', "utf-8")
    assert read_rows(tmp_path / "one.csv") == (["image"], [{"image": "a.nii"}, {"image": "b\nc.nii"}])
    (tmp_path / "empty.csv").write_bytes(b"")
    assert read_rows(tmp_path / "empty.csv") == ([], [])


def test_a_row_that_is_longer_than_its_header_is_told_by_its_line(tmp_path):
    (tmp_path / "people.csv").write_text("subject,age\na,1\nb,2,3\n", "utf-8")
    with pytest.raises(InputError, match="line 3: it has 3 cells and the header 2"):
        read_rows(tmp_path / "people.csv")


def test_figures_are_numbers_and_subjects_are_names(tmp_path):
    (tmp_path / "quality.csv").write_text("subject,dice,site\n007,0.5,A\n1e3,,B\n", "utf-8")
    assert read_figures(tmp_path / "quality.csv") == [{"subject": "007", "dice": 0.5, "site": "A"}, {"subject": "1e3", "dice": "", "site": "B"}]


def test_an_image_is_no_table(tmp_path):
    (tmp_path / "scan.nii").write_bytes(bytes(range(256)))
    with pytest.raises(InputError, match="scan.nii is no table of text"):
        read_rows(tmp_path / "scan.nii")
