"""HTML to text with Markdown's headings and lists, each line with the line of the file that it stands on."""

from __future__ import annotations

import re
from html.parser import HTMLParser

_UNSEEN = {"script", "style", "template", "noscript", "svg", "head"}
_HEAD = {"base", "link", "meta", "noscript", "script", "style", "template", "title"}  # others end it
_NAMES = """address article aside blockquote body br dd details div dl dt fieldset figcaption figure footer
form h1 h2 h3 h4 h5 h6 header hr li main nav ol p pre section summary table tbody td tfoot th thead title
tr ul"""
_BLOCKS = set(_NAMES.split())
_APART = {"h1", "h2", "h3", "h4", "h5", "h6", "p", "pre", "table", "ul", "ol"}  # a blank line before them
_SPACE = re.compile(r"\s+")
# What begins no whole tag is only a character. HTMLParser would look for the tag's end again and again: in
# some versions of Python it takes hours for a hundred kilobytes of `<a <a <a`.
_STRAY = re.compile(r"""<(?![A-Za-z/!?](?:[^<>"']++|"[^"]*+"|'[^']*+')*+>)""")


def html_text(html: str) -> tuple[str, list[int]]:
    """The text that a reader of the page sees, and the line of `html`, from 1, of each of its lines.

    Scripts and styles are left out. Broken HTML is read as far as it goes.

    >>> html_text("<h2>A <b>title</b></h2>\\n<p>one\\ntwo")
    ('## A title\\n\\none two', [1, 2, 2])
    """
    reader = _Reader()
    html = _without_comments(html).replace("<![", "<! [")  # HTMLParser fails at some sections of SGML
    reader.feed(_STRAY.sub("&lt;", html))
    reader.close()
    reader.end_line()
    while reader.lines and not reader.lines[-1]:
        reader.lines.pop()
    return "\n".join(reader.lines), reader.numbers[: len(reader.lines)]


def _without_comments(html: str) -> str:
    """`html` with as many lines."""
    first, *parts = html.split("<!--")
    for part in parts:
        inside, end, rest = part.partition("-->")
        first += "\n" * inside.count("\n") + rest if end else part
    return first


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.lines: list[str] = []
        self.numbers: list[int] = []
        self._line, self._number, self._mark = list[str](), 0, ""
        self._unseen: str | None = None  # the element whose end is waited for
        self._title = self._kept = False

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag == "title" and self._unseen == "head":
            self._title = True
        if self._unseen:
            if self._unseen == "head" and tag not in _HEAD and not self._title:
                self._unseen = None
            else:
                return
        if tag in _UNSEEN:
            self._unseen = tag
        elif tag in _BLOCKS:
            self.end_line()
            if tag in _APART and self.lines and self.lines[-1]:
                self._put("", self.getpos()[0])
            if tag[0] == "h" and tag[1:].isdigit():
                self._mark = "#" * int(tag[1:]) + " "
            elif tag == "li":
                self._mark = "- "
            self._kept = tag == "pre" or (self._kept and tag != "p")

    def handle_startendtag(self, tag: str, attrs: object) -> None:
        if tag not in _UNSEEN:
            self.handle_starttag(tag, attrs)

    def handle_endtag(self, tag: str) -> None:
        if tag == "title" and self._title:
            self._title = False
            self.end_line()
        if tag == self._unseen:
            self._unseen = None
        elif tag in _BLOCKS and not self._unseen:
            self.end_line()
            if tag in _APART:
                self._mark = ""
            if tag == "pre":
                self._kept = False

    def handle_data(self, data: str) -> None:
        if self._unseen and not self._title:
            return
        number = self.getpos()[0]
        if self._kept:
            first, *rest = data.split("\n")
            self._add(first, number)
            for step, text in enumerate(rest, start=1):
                self.end_line(blank=True)
                self._add(text, number + step)
            return
        for step, text in enumerate(data.split("\n")):  # so that each word's own line is known
            self._add(_SPACE.sub(" ", text) if step == 0 else " " + _SPACE.sub(" ", text), number + step)

    def end_line(self, blank: bool = False) -> None:
        """What comes next stands on a line of its own."""
        line = "".join(self._line)
        text = line.rstrip() if self._kept else line.strip()
        if text or blank:
            self._put(self._mark + text, self._number or self.getpos()[0])
            self._mark = ""
        self._line, self._number = [], 0

    def _add(self, text: str, number: int) -> None:
        if not self._kept and (not self._line or self._line[-1].endswith(" ")):
            text = text.lstrip()
        if text:
            self._number = self._number if self._line else number
            self._line.append(text)

    def _put(self, line: str, number: int) -> None:
        self.lines.append(line)
        self.numbers.append(number)
