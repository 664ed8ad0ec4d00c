"""How text is read: byte order marks and line ends, wherever a text is cut into pieces."""

import re

from hypothesis import given
from hypothesis import strategies as st

from jaxgen.text import KEEP_NEWLINES, STANDARD, Reading, lines_with_ends, whole_lines

pieces_of_text = st.lists(st.text(st.sampled_from("a\r\n\ufeff\u2028\x85\x0b"), max_size=4), max_size=6)


@given(pieces_of_text)
def test_a_text_in_pieces_is_read_as_the_whole(pieces):
    whole = "".join(pieces)
    without = whole.removeprefix("\ufeff")
    assert "".join(STANDARD.pieces(pieces)) == STANDARD.text(whole) == re.sub("\r\n|\r", "\n", without)
    assert "".join(KEEP_NEWLINES.pieces(pieces)) == without
    assert "".join(Reading.of_level("byte").pieces(pieces)) == whole


@given(pieces_of_text)
def test_lines_end_at_lf_crlf_or_cr_only(pieces):
    whole = "".join(pieces)
    assert list(whole_lines(pieces)) == list(whole_lines(whole)) == re.split("\r\n|\r|\n", whole)
    assert "".join(lines_with_ends(pieces)) == whole + "\n"
