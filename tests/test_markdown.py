from __future__ import annotations

from cwbass.markdown import markdown_table


def test_a_table_s_border_in_a_name_is_no_border() -> None:
    assert markdown_table(("method", "road|lane"), [("a|b", 1)]) == "| method | road\\|lane |\n| --- | --- |\n| a\\|b | 1 |"
