"""Splitting identifiers."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from searchr3.words import beginning, split_identifiers


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


@pytest.mark.parametrize(
    ("text", "words", "cut"),
    [
        ("def parse_date(text):\n    return text", 3, "def parse_date"),
        ("A dog, a cat. A bird", 4, "A dog, a cat"),
        ("getFileName(x)", 2, "getFile"),
        ("getFile日本", 1, "get"),
        ("删除文件 now", 2, "删除"),
        (" whole (text) ", 9, "whole (text)"),
        ("none", 0, ""),
    ],
)
def test_a_beginning_ends_with_its_last_word(text, words, cut):
    assert beginning(text, words) == cut


@given(st.text(), st.integers(0, 12))
def test_a_beginning_is_the_texts_own_and_has_no_word_too_many(text, words):
    cut = beginning(text, words)
    assert text.lstrip().startswith(cut) or text.startswith(cut)
    assert len(split_identifiers(cut)) <= words
    assert beginning(cut, words) == cut
    if text.isascii():
        assert split_identifiers(cut) == split_identifiers(text)[:words]
