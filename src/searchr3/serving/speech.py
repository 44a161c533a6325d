"""Token ids as text while they are being said."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

HALF = "\N{REPLACEMENT CHARACTER}"  # what the bytes of a part of a character decode to


class Speech:
    """Text of a growing list of token ids, piece by piece; the pieces together are the text of the whole.

    A token may hold a part of a character, and what it decodes to may hang on the one before. So a piece is
    the difference between the decoded end of the list with and without the new ids, once it ends in no half.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.ids: list[int] = []
        self.text = ""  # that was given
        self._from, self._to = 0, 0  # ids before `_to` were given; decoding them begins at `_from`

    def push(self, ids: Sequence[int]) -> str:
        """The new piece after these further ids; "" while a character is not whole."""
        self.ids += ids
        if len(self.ids) == self._to:
            return ""
        known, longer = self._decode(self.ids[self._from : self._to]), self._decode(self.ids[self._from :])
        if longer.endswith(HALF) or not longer.startswith(known):
            return ""
        self._from, self._to = self._to, len(self.ids)
        return self._give(longer[len(known) :])

    def end(self) -> str:
        """The last piece, when nothing more will come."""
        whole = self._decode(self.ids)
        return self._give(whole[len(self.text) :]) if whole.startswith(self.text) else ""

    def _give(self, piece: str) -> str:
        self.text += piece
        return piece

    def _decode(self, ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True)) if ids else ""
