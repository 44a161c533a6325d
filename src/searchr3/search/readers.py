"""From the bytes of a file to text whose lines or pages are known."""

from __future__ import annotations

import codecs
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass

from searchr3.errors import DataError, first_line
from searchr3.search.html_text import html_text
from searchr3.search.kinds import Form

_MARKS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}
_CHARSET = re.compile(rb"""charset\s*=\s*["']?\s*([\w.:-]+)""", re.IGNORECASE)
_HEAD = 8192  # bytes that are looked at for what a file is


@dataclass(frozen=True)
class Section:
    """A text, and where its lines stand in the file.

    Attributes:
        text: lines with "\\n" between them.
        lines: the number of each line, from 1; of a page that of the page, once.
        page: whether the numbers are pages.
    """

    text: str
    lines: Sequence[int]
    page: bool = False

    def number(self, line: int) -> int:
        """The line or page of the file that line `line` of the text, from 0, stands on."""
        return self.lines[0] if self.page else self.lines[min(line, len(self.lines) - 1)]


def read(raw: bytes, form: Form) -> list[Section]:
    """The sections of a file: the pages of a PDF, else one.

    Raises:
        DataError: it is no text, or no such file as its name says; without the file's name.
    """
    if form == "pdf":
        return _pages(raw)
    text = decoded(raw, html=form == "html").replace("\r\n", "\n").replace("\r", "\n")
    if form == "html":
        text, lines = html_text(text)
        return [Section(text, lines)] if text.strip() else []
    return [Section(text, range(1, text.count("\n") + 2))] if text.strip() else []


def decoded(raw: bytes, html: bool = False) -> str:
    """Text of bytes: by their mark, by what an HTML page says of itself, as UTF-8, or by a guess.

    Raises:
        DataError: binary, or no encoding fits.
    """
    mark = next((mark for mark in _MARKS if raw.startswith(mark)), None)
    if mark:
        named: str | None = _MARKS[mark]
    elif b"\0" in raw[:_HEAD]:
        raise DataError("binary")
    else:
        said = _CHARSET.search(raw[:_HEAD]) if html else None
        named = said[1].decode("ascii") if said else None
    for encoding in (named, "utf-8"):
        try:
            if encoding:
                return raw.decode(encoding)
        except (UnicodeError, LookupError):
            continue
    from charset_normalizer import from_bytes

    guess = from_bytes(raw).best()
    if guess is None:
        raise DataError("not text in an encoding that can be told")
    return str(guess)


def _pages(raw: bytes) -> list[Section]:
    import logging

    from pypdf import PdfReader
    from pypdf.errors import PyPdfError

    logging.getLogger("pypdf").setLevel(logging.CRITICAL)  # it speaks of every flaw that it copes with
    try:
        reader = PdfReader(io.BytesIO(raw))
        if reader.is_encrypted and not reader.decrypt(""):
            raise DataError("locked with a password")
        texts = [page.extract_text() for page in reader.pages]
    except DataError:
        raise
    except (PyPdfError, ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        raise DataError(f"not a PDF that can be read ({first_line(error)})") from None
    except Exception as error:  # a broken file fails in any way, and must not end the work
        raise DataError(f"not a PDF that can be read ({first_line(error)})") from None
    texts = [text.encode("utf-8", "replace").decode().replace("\r", "\n") for text in texts]
    sections = [Section(text, (page,), page=True) for page, text in enumerate(texts, start=1) if text.strip()]
    if texts and not sections:
        raise DataError("a PDF without text; it may be scanned")
    return sections
