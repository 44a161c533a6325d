"""The text of a trace: what a large model is asked for, and what of its answer is kept. Pure functions."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from searchr3.errors import DataError
from searchr3.words import split_identifiers

_ASK = (
    "Somebody will search a collection of documents with the query below. Help the search: write down what "
    "the wanted document is likely to speak of. First the core concepts, then key terms, with a meaning of a "
    "few words where a term has several, then synonyms and other spellings, then related topics.\n\n"
    "Plain text on one line, at most {words} words. Be brief and particular to this query. No introduction, "
    "no list marks, nothing about yourself or the task. Do not answer the query, and invent no names or "
    "figures."
)
_HINT = (
    " The wanted document stands below, so that you see which meaning of the query is meant. Write only what "
    "somebody who knows the field could foresee from the query alone, and quote nothing."
)
BLIND = f"{_ASK}\n\nQuery: {{query}}"
"""What is asked when the model sees the query alone."""

SHOWN = f"{_ASK}{_HINT}\n\nQuery: {{query}}\n\nDocument: {{document}}"
"""What is asked when the model sees a relevant document too."""

DOCUMENT_CHARACTERS = 4_000  # of a document that is shown
QUOTE_WORDS, LEAST_WORDS = 8, 4  # of a run that is a quotation; of a short document that can be quoted
_UNSPACED = "\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"  # Chinese and Japanese

_PLACE = re.compile(r"\{(query|document|words)\}")
_THOUGHT = re.compile(r"<(think|thinking)>.*?</\1>", re.DOTALL | re.IGNORECASE)
_THOUGHT_BEFORE = re.compile(r"\A.*</(think|thinking)>", re.DOTALL | re.IGNORECASE)
_THOUGHT_AFTER = re.compile(r"<(think|thinking)>.*\Z", re.DOTALL | re.IGNORECASE)
_LAST_WORD = re.compile(rf"[^\s{_UNSPACED}]+\Z")
_IS_UNSPACED = re.compile(f"[{_UNSPACED}]").match
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_ENDS = re.compile(r"(?: ?(?:<\|[^\s<>|]+\|>|</s>))+\Z")


@dataclass(frozen=True)
class TracePrompt:
    """The wording of a request. Its places: `{query}`, `{words}` and, where it is shown, `{document}`."""

    text: str = BLIND
    shows_document: bool = False

    @classmethod
    def load(cls, path: str | Path | None, shows_document: bool = False) -> TracePrompt:
        """The prompt in a UTF-8 text file, or ours.

        Raises:
            DataError: the file cannot be read, or has not the places that it needs.
        """
        if path is None:
            return cls(SHOWN if shows_document else BLIND, shows_document)
        try:
            text = Path(path).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            why = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
            raise DataError(f"{path}: cannot read the prompt ({why})") from None
        places = set(_PLACE.findall(text))
        if "query" not in places:
            raise DataError(f"{path}: the prompt has no place for the query; write {{query}} where it goes")
        if shows_document and "document" not in places:
            raise DataError(
                f"{path}: the prompt has no place for the document of --show-document; "
                "write {document} where it goes"
            )
        if "document" in places and not shows_document:
            raise DataError(f"{path}: the prompt has a place for the document; add --show-document")
        return cls(text, shows_document)

    def render(self, query: str, document: str, words: int) -> str:
        """The request for one query. Braces in query or document are only text."""
        values = {"query": query, "document": document[:DOCUMENT_CHARACTERS], "words": str(words)}
        return _PLACE.sub(lambda place: values[place[1]], self.text)


def clean_trace(answer: str, words: int, cut_off: bool = False) -> str:
    """What a model said as a trace: no thoughts of its own, one line, at most `words` words.

    Thoughts are what stands in think tags, before one that only closes, or after one that only opens. Special
    tokens at the end, which some servers leave there, go too; elsewhere they are only text, as in any trace.

    Args:
        answer: as the server gave it.
        words: most words, separated by white space.
        cut_off: the answer ended at its token limit; its last word, which may be half of one, is dropped,
            unless it is Chinese or Japanese.

    >>> clean_trace("<think>Hm.</think>\\nopening hours,  visits<|im_end|>", words=8)
    'opening hours, visits'
    """
    said = _THOUGHT_AFTER.sub("", _THOUGHT_BEFORE.sub("", _THOUGHT.sub("", answer)))
    line = _ENDS.sub("", " ".join(_CONTROL.sub(" ", said).split()))
    if cut_off:
        line = _LAST_WORD.sub("", line)
    return _ENDS.sub("", " ".join(line.split()[:words]))


def quotes(trace: str, documents: Iterable[str], query: str = "", words: int = QUOTE_WORDS) -> bool:
    """Whether a trace repeats a document: a run of `words` words of it that is not in the query too.

    A document of fewer words (but at least four) is quoted when it is there as a whole. Words are those of
    `split_identifiers`, so case, punctuation and line breaks hide nothing; there each Chinese or Japanese
    character is one, so of a document in them it takes twice as many.
    """
    said, asked = split_identifiers(trace), split_identifiers(query)
    for document in documents:
        text = split_identifiers(document)
        times = 2 if 2 * sum(1 for _ in filter(_IS_UNSPACED, text)) > len(text) else 1
        length = min(times * words, len(text))
        if length >= times * LEAST_WORDS and (_runs(said, length) & _runs(text, length)) - _runs(
            asked, length
        ):
            return True
    return False


def _runs(words: list[str], length: int) -> set[tuple[str, ...]]:
    return {tuple(words[start : start + length]) for start in range(len(words) - length + 1)}
