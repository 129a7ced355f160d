import pytest

from mmlab.widgets.table import Table


def test_markdown_aligns_numbers_right():
    table = Table(["name", "count"], [("a", 1), ("b|c", 22)])
    assert table.markdown() == "| name | count |\n| :-- | --: |\n| a | 1 |\n| b\\|c | 22 |"


def test_plain_text_lines_up():
    assert str(Table(["name", "count"], [("a", 1), ("bc", 22)])) == (
        "name  count\na         1\nbc       22"
    )


def test_every_row_must_fit_the_header():
    with pytest.raises(ValueError, match="must have 2 cells"):
        Table(["name", "count"], [("a", 1), ("b",)])
    with pytest.raises(ValueError, match="must have 2 cells"):
        Table(["name", "count"], [], align="l")
