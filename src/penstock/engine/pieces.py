"""From token ids to text, one token at a time: what bytes a vocabulary piece stands for, and how bytes become text.

A vocabulary writes its pieces in one of a few alphabets, named by `decoder` in tokenizer.json. `Alphabet` undoes it
piece by piece; `TextStream` joins the bytes to text and lets an unfinished character wait for its rest.

Invalid UTF-8 becomes U+FFFD as the Unicode standard recommends, for every alphabet. The `tokenizers` library does so
for byte-level vocabularies; under byte fallback it turns every byte of a run into U+FFFD if one of them is invalid,
which cannot be streamed: it would take back characters that were shown. On valid text the two agree.
"""

from __future__ import annotations

import codecs
import re
from dataclasses import dataclass
from typing import Any, Final

from penstock.errors import UnsupportedModel

_Utf8Decoder: Final = codecs.getincrementaldecoder("utf-8")
_BYTE_PIECE: Final = re.compile(r"<0x([0-9A-Fa-f]{2})>\Z")


def _byte_level_alphabet() -> dict[str, int]:
    """GPT-2's: printable Latin-1 stands for itself, the 68 other bytes for the characters from U+0100 on, in order."""
    itself = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(itself)]
    return {chr(byte): byte for byte in itself} | {chr(0x100 + i): byte for i, byte in enumerate(others)}


_BYTE_LEVEL: Final = _byte_level_alphabet()


def is_byte_piece(piece: str) -> bool:
    """Whether a byte-fallback vocabulary means one byte by it, as in <0x0A>."""
    return _BYTE_PIECE.match(piece) is not None


@dataclass(frozen=True, slots=True)
class Alphabet:
    """How pieces spell bytes."""

    byte_level: bool = False
    byte_fallback: bool = False
    replace: tuple[tuple[str, str], ...] = ()
    drop_from_first: str = ""
    """Left out wherever it stands in the first piece of a text."""
    separator: str = ""
    """Between two pieces."""
    strip: tuple[str, int] = ("", 0)
    """(character, how many at most) to take off the start of a text."""

    @classmethod
    def parse(cls, decoder: dict[str, Any] | None) -> Alphabet:
        """The alphabet that `decoder` of a tokenizer.json undoes. Raises UnsupportedModel for one that is not known."""
        if decoder is None:
            return cls(separator=" ")
        steps = decoder["decoders"] if decoder["type"] == "Sequence" else [decoder]
        parsed: dict[str, Any] = {"replace": ()}
        fused = False
        for step in steps:
            match step:
                case {"type": "ByteLevel"} if len(steps) == 1:
                    parsed["byte_level"] = True
                case {"type": "ByteFallback"} if not fused:
                    parsed["byte_fallback"] = True
                case {"type": "Replace", "pattern": {"String": str(old)}, "content": str(new)} if not fused:
                    parsed["replace"] += ((old, new),)
                case {"type": "Metaspace", "replacement": str(mark)} if not fused:
                    if step.get("prepend_scheme", "always") != "never":
                        parsed["drop_from_first"] = mark
                    parsed["replace"] += ((mark, " "),)
                case {"type": "Fuse"}:
                    fused = True
                case {"type": "Strip", "content": str(char), "start": int(start), "stop": 0} if fused:
                    parsed["strip"] = (char, start)
                case _:
                    raise UnsupportedModel(
                        field="tokenizer.json: decoder",
                        value=decoder,
                        why=f"text cannot be streamed through its step {step.get('type')!r}",
                        remedy="one whose decoder is ByteLevel, Metaspace, or Replace, ByteFallback, Fuse, Strip",
                    )
        return cls(**parsed)

    def spell(self, piece: str, *, first: bool = False) -> bytes:
        """The bytes of a piece of the vocabulary. `first`: no piece comes before it."""
        if self.byte_level:
            try:
                return bytes(map(_BYTE_LEVEL.__getitem__, piece))
            except KeyError:  # as the library does: not written in the alphabet, so it means itself
                return piece.encode("utf-8", "replace")
        if self.byte_fallback and (byte := _BYTE_PIECE.match(piece)):
            return bytes([int(byte[1], 16)])
        if first and self.drop_from_first:
            piece = piece.replace(self.drop_from_first, "")
        for old, new in self.replace:
            piece = piece.replace(old, new)
        if not first:
            piece = self.separator + piece
        return piece.encode("utf-8", "replace")


class TextStream:
    """Joins bytes to text. O(1) per byte."""

    def __init__(self, strip: tuple[str, int] = ("", 0)) -> None:
        self._utf8 = _Utf8Decoder("replace")
        self._strip, self._to_strip = strip
        self.between = not self._to_strip
        """No character is unfinished and nothing is to be taken off: whole characters would come out as they are."""

    def feed(self, data: bytes, *, final: bool = False) -> str:
        """Text that is complete with `data`; `final` completes an unfinished character as U+FFFD."""
        text = self._utf8.decode(data, final)
        if self._to_strip and text:
            start = 0
            while start < min(self._to_strip, len(text)) and text[start] == self._strip:
                start += 1
            self._to_strip = self._to_strip - start if start == len(text) else 0
            text = text[start:]
        self.between = not self._to_strip and not self._utf8.getstate()[0]
        return text
