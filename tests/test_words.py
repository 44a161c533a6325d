"""Splitting identifiers."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from searchr3.words import split_identifiers


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("getFileName_v2", ["get", "file", "name", "v2"]),
        ("HTTPServer", ["http", "server"]),
        ("MD5Hash", ["md5", "hash"]),
        ("self.utf8_decoder(x86_64)", ["self", "utf8", "decoder", "x86", "64"]),
        ("XMLHttpRequest2Parser", ["xml", "http", "request2", "parser"]),
        ("__init__", ["init"]),
        ("Größe der Datei", ["größe", "der", "datei"]),
        ("删除文件 now", ["删", "除", "文", "件", "now"]),
        ("--- !", []),
    ],
)
def test_splits(text, words):
    assert split_identifiers(text) == words


@given(st.text())
def test_loses_no_letter_and_leaves_nothing_in_upper_case(text):
    words = split_identifiers(text)
    assert "".join(words) == "".join(one for one in text if one.isalnum()).lower() or not text.isascii()
    assert all(word and word == word.lower() for word in words)


@given(st.text(alphabet=st.characters(codec="ascii")))
def test_splitting_the_joined_words_changes_nothing(text):
    words = split_identifiers(text)
    assert split_identifiers(" ".join(words)) == words


@given(st.text(alphabet=st.characters(codec="ascii")))
def test_a_letter_of_another_alphabet_elsewhere_changes_nothing(text):
    assert split_identifiers(f"{text} é") == [*split_identifiers(text), "é"]
