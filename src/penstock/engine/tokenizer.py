"""Text to token ids and back, from the tokenizer.json of a checkpoint. Imports no torch: the HTTP front end uses it.

**Control tokens.** Text from outside must not become <|im_end|> by spelling it. The `tokenizers` library finds control
tokens by their spelling, wherever it stands; its switch against that (`encode_special_tokens`) is for whole texts, does
not cover tokens that are control tokens in all but name (`special: false`), and leaves vocabularies that hold the
spelling as an ordinary piece. So the spelling itself is changed: when the tokenizer is loaded, every control token gets
a prefix, the *marker*, with a random number that no client can know. Text as it comes holds no control tokens
then; where they are wanted, `mark` puts the marker in front of them, and one call of the library tokenises the whole
as it always does. Ids, the pieces around a control token and everything else stay what they were.
"""

from __future__ import annotations

import json
import os
import re
import secrets
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final, Self

import tokenizers
import tokenizers.pre_tokenizers
import tokenizers.processors

from penstock.engine.pieces import Alphabet, TextStream, is_byte_piece
from penstock.engine.token_settings import TokenSettings, read_json
from penstock.errors import InvalidDeployment, InvalidRequest, UnsupportedModel

# The library reads this at each call. For a batch of one text it would wake threads of its own and wait for them, on
# cores that the engine keeps busy.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

# Some models write their bars full width (U+FF5C).
_LOOKS_LIKE_CONTROL: Final = re.compile("<[|\uff5c].+[|\uff5c]>\\Z", re.DOTALL)

_LOSSY_BYTES_PER_TOKEN: Final = 1024
_NFC_SHRINKS: Final = 4  # at most, in UTF-8: Hangul by 3, U+1FBE U+0308 U+0301 by 3.5


class Tokenizer:
    """One model's vocabulary. Immutable after loading, and safe to share between threads."""

    def __init__(self, definition: dict[str, Any], settings: TokenSettings) -> None:
        """`definition`: the content of a tokenizer.json; it is changed. Raises UnsupportedModel."""
        self.settings = settings
        self.alphabet = Alphabet.parse(definition.get("decoder"))
        added = definition.get("added_tokens") or []
        byte_fallback = bool(definition["model"].get("byte_fallback"))
        self._added: dict[int, str] = {token["id"]: token["content"] for token in added}
        self.special_ids: frozenset[int] = frozenset(token["id"] for token in added if token["special"])
        self.control_tokens: dict[str, int] = {
            token["content"]: token["id"]
            for token in added
            if len(token["content"]) > 1
            and not (byte_fallback and is_byte_piece(token["content"]))
            and (
                token["special"]
                or _LOOKS_LIKE_CONTROL.match(token["content"])
                or (token["content"].strip() and token["content"] in settings.template_text)
            )
        }
        """Spelling to id: the special ones, and others that the chat template writes."""
        self.max_bytes_per_token: int = _max_bytes_per_token(definition, self._added.values())
        """No token stands for more bytes of text than this; see `_max_bytes_per_token` for where that is a guess."""
        self._marker = f"\ufdd0{secrets.randbits(64):020d}:"
        _rename(definition, {content: self._marker + content for content in self.control_tokens})
        definition["truncation"] = definition["padding"] = None
        try:
            self._library = tokenizers.Tokenizer.from_str(json.dumps(definition, ensure_ascii=False))
        except Exception as error:  # the library raises bare Exceptions
            raise UnsupportedModel(
                field="tokenizer.json", value=str(error), why="it cannot be loaded", remedy="download it again"
            ) from error
        self.bos_id: int | None = self.token_id(settings.bos_token) if settings.bos_token else None
        self._eos_id = self.token_id(settings.eos_token) if settings.eos_token else None
        if settings.frames_text is not None:
            self._frame_text(*settings.frames_text)
        self._control = _spelling_pattern(added, self._marker)
        model_ids = definition["model"].get("vocab", {})
        largest = max(model_ids.values(), default=-1) if isinstance(model_ids, dict) else len(model_ids) - 1
        self.vocab_size: int = max([largest, *self._added]) + 1
        """Largest id + 1. The model may have more rows, which mean nothing."""
        own_end = () if self._eos_id is None else (self._eos_id,)
        self.eos_ids: tuple[int, ...] = tuple(sorted({*settings.eos_ids, *own_end}))
        """The tokenizer's own end token, and those of generation_config.json, or of config.json if it names none."""
        self._bytes: dict[int, bytes] = {}
        self._texts: dict[int, str | None] = {}

    @classmethod
    def load(cls, directory: Path | str) -> Self:
        """Load tokenizer.json and what stands beside it.

        Raises:
            InvalidDeployment: there is no tokenizer.json, or a file beside it is not JSON.
            UnsupportedModel: it cannot be read, or text of its kind cannot be streamed.
        """
        path = Path(directory) / "tokenizer.json"
        if not path.is_file():
            raise InvalidDeployment(
                field="model.path",
                value=str(directory),
                why="the directory holds no tokenizer.json",
                remedy="the complete checkpoint; one with tokenizer.model or vocab.json alone becomes complete by "
                "AutoTokenizer.from_pretrained(directory).save_pretrained(directory)",
            )
        definition = read_json(path)
        if not isinstance(definition.get("model"), dict):
            raise UnsupportedModel(
                field="tokenizer.json", value=str(path), why="it describes no model", remedy="download it again"
            )
        try:
            return cls(definition, TokenSettings.load(directory))
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            raise UnsupportedModel(
                field="tokenizer.json", value=str(path), remedy="download these files again",
                why=f"something in it, or in a file beside it, cannot be so ({type(error).__name__}: {error})",
            ) from None  # fmt: skip

    @property
    def sampling_defaults(self) -> dict[str, float]:
        """What generation_config.json wants of temperature, top_k, top_p, min_p and repetition_penalty."""
        return self.settings.sampling_defaults

    def encode(self, text: str, *, add_special_tokens: bool, allow_special: bool = False) -> list[int]:
        """Token ids of `text`.

        Args:
            add_special_tokens: add what the tokenizer puts around a text, such as the token of its beginning; not
                a second one where the text begins with it.
            allow_special: spellings of control tokens become those tokens. Without it they are plain text.

        Raises: InvalidRequest: `text` is not Unicode text.
        """
        if allow_special:
            text = self.mark(text)
        try:
            # A batch, for `encode` keeps the interpreter lock throughout; `fast` keeps no offsets, which nobody reads.
            ids: list[int] = self._library.encode_batch_fast([text], add_special_tokens=add_special_tokens)[0].ids
        except (UnicodeError, TypeError) as error:
            raise InvalidRequest(
                field="text", value=text, why="it holds lone surrogates", remedy="text that can be written as UTF-8"
            ) from error
        if add_special_tokens and self.bos_id is not None and ids[:2] == [self.bos_id, self.bos_id]:
            return ids[1:]
        return ids

    def check_fits(self, texts: Iterable[str], max_tokens: int, *, field: str) -> None:
        """Refuse, without tokenising, texts that together cannot be `max_tokens` tokens or fewer.

        Raises: InvalidRequest, with code context_length_exceeded.
        """
        texts = list(texts)
        limit = max_tokens * self.max_bytes_per_token
        if 4 * sum(map(len, texts)) <= limit:  # no character has more bytes
            return
        size = sum(len(text.encode("utf-8", "surrogatepass")) for text in texts)
        if size > limit:
            least = -(-size // self.max_bytes_per_token)
            raise InvalidRequest(
                field=field, value=f"{size} bytes of text", code="context_length_exceeded",
                why=f"that is {least} tokens at the very least, and the context is {max_tokens} tokens",
                remedy=f"a prompt of fewer than {max_tokens} tokens",
            )  # fmt: skip

    def mark(self, text: str) -> str:
        """Put the marker in front of every control token spelled in `text`; never show the result to a client."""
        return self._control.sub(lambda match: self._marker + match[0], text)

    def decode(self, ids: Iterable[int], skip_special_tokens: bool = True) -> str:
        """Text of `ids`; ids that no token has are left out. See pieces.py for invalid UTF-8."""
        stream = TokenStream(self, skip_special_tokens=skip_special_tokens)
        return "".join([*map(stream.feed, ids), stream.end()])

    def token_bytes(self, id: int) -> bytes:
        """The bytes a token stands for inside a text: its spelling for added tokens, nothing for an id without one."""
        data = self._bytes.get(id)
        if data is None:
            data = self._bytes[id] = self._spell(id, first=False)
        return data

    def whole_text(self, id: int) -> str | None:
        """The text that a token adds between two characters; None if it begins or ends in the middle of one."""
        if id not in self._texts:
            try:
                self._texts[id] = self.token_bytes(id).decode()
            except UnicodeDecodeError:
                self._texts[id] = None
        return self._texts[id]

    def first_token_bytes(self, id: int) -> bytes | None:
        """The bytes a token stands for at the start of a text, where some vocabularies leave out a space.

        None for an id that no token has.
        """
        return self._spell(id, first=True) if self.has_token(id) else None

    def token_id(self, piece: str) -> int | None:
        """Id of a piece as the vocabulary spells it, None if there is none."""
        found: int | None = self.control_tokens.get(piece)
        return self._library.token_to_id(piece) if found is None else found

    def has_token(self, id: int) -> bool:
        """Whether a token has this id."""
        return id >= 0 and self._library.id_to_token(id) is not None

    def _frame_text(self, begin: bool, end: bool) -> None:
        """What add_special_tokens adds, where tokenizer_config.json says so and overrules tokenizer.json."""
        bos = [self.bos_id] if begin and self.bos_id is not None else []
        eos = [self._eos_id] if end and self._eos_id is not None else []
        self._library.post_processor = tokenizers.processors.TemplateProcessing(
            single=" ".join(["BOS"] * len(bos) + ["$A"] + ["EOS"] * len(eos)),
            special_tokens=[*(("BOS", id) for id in bos), *(("EOS", id) for id in eos)],
        )

    def _spell(self, id: int, *, first: bool) -> bytes:
        added = self._added.get(id)
        if added is not None and not (self.alphabet.byte_fallback and is_byte_piece(added)):
            for old, new in self.alphabet.replace:
                added = added.replace(old, new)
            return (added if first else self.alphabet.separator + added).encode()
        piece = self._library.id_to_token(id) if id >= 0 else None
        return b"" if piece is None else self.alphabet.spell(piece, first=first)


class TokenStream:
    """Text of one sequence, token by token, in whole characters."""

    def __init__(self, tokenizer: Tokenizer, *, skip_special_tokens: bool, keep: frozenset[int] = frozenset()) -> None:
        """`keep`: special tokens that are not skipped."""
        self._tokenizer = tokenizer
        special = tokenizer.special_ids - keep if keep else tokenizer.special_ids  # hundreds in some vocabularies
        self._skipped: frozenset[int] = special if skip_special_tokens else frozenset()
        self._text = TextStream(tokenizer.alphabet.strip)
        self._started = False

    def feed(self, id: int) -> str:
        """Text that is complete with this token."""
        if id in self._skipped:
            return ""
        if self._started:
            if self._text.between and (text := self._tokenizer.whole_text(id)) is not None:
                return text
            return self._text.feed(self._tokenizer.token_bytes(id))
        data = self._tokenizer.first_token_bytes(id)
        self._started = data is not None
        return self._text.feed(data or b"")

    def end(self) -> str:
        """U+FFFD if the last character is unfinished."""
        return self._text.feed(b"", final=True)


def _spelling_pattern(added: Sequence[dict[str, Any]], marker: str) -> re.Pattern[str]:
    """Finds the spellings of marked tokens as the library would: longest first, whole words where it wants those."""
    marked = [token for token in added if token["content"].startswith(marker)]
    patterns = []
    for token in sorted(marked, key=lambda token: len(token["content"]), reverse=True):
        spelling = re.escape(token["content"].removeprefix(marker))
        patterns.append(rf"(?<!\w){spelling}(?!\w)" if token["single_word"] else spelling)
    return re.compile("|".join(patterns) or r"(?!)")


def _max_bytes_per_token(definition: dict[str, Any], added: Iterable[str]) -> int:
    """Bytes of text that one token can stand for, at most.

    Exact for byte-level BPE that loses nothing: every byte is a piece, so nothing becomes <unk>; nothing is removed or
    stripped, and no normalizer but NFC is used. Then it is the longest piece. Other tokenizers may drop white space
    without limit or make one <unk> of a long run; for those it is a generous figure, which no text that anybody would
    want read exceeds: such text has a kilobyte to the token throughout.
    """
    model = definition["model"]
    vocabulary = model.get("vocab", {})
    pieces = vocabulary if isinstance(vocabulary, dict) else [piece for piece, _ in vocabulary]
    longest = max(map(len, pieces), default=1)
    longest = max([longest, *(len(content.encode("utf-8", "surrogatepass")) for content in added)])
    outer = definition.get("pre_tokenizer") or {}
    steps = outer.get("pretokenizers", [outer])
    keeps_all = (
        model.get("type", "BPE") == "BPE"
        and any(step.get("type") == "ByteLevel" for step in steps)
        and all(
            step.get("type") in ("ByteLevel", "Digits")
            or (step.get("type") == "Split" and step.get("behavior") != "Removed")
            for step in steps
        )
        and set(tokenizers.pre_tokenizers.ByteLevel.alphabet()) <= set(pieces)
        and not any(token["lstrip"] or token["rstrip"] for token in definition.get("added_tokens") or [])
    )
    match definition.get("normalizer"):
        case None if keeps_all:
            return longest
        case {"type": "NFC"} if keeps_all:
            return _NFC_SHRINKS * longest
    return max(4 * longest, _LOSSY_BYTES_PER_TOKEN)


def _rename(definition: dict[str, Any], names: dict[str, str]) -> None:
    """Change the spelling of tokens wherever a tokenizer.json looks them up by it."""
    for token in definition.get("added_tokens") or []:
        if token["content"] in names:
            token["content"] = names[token["content"]]
            # A normalizer that prepends to every text would hide all but the first from the library.
            token["normalized"] = False
    model = definition["model"]
    vocabulary: dict[str, int] | Sequence[Any] = model.get("vocab", {})
    if isinstance(vocabulary, dict):
        if not names.keys().isdisjoint(vocabulary):
            model["vocab"] = {names.get(piece, piece): id for piece, id in vocabulary.items()}
            if "merges" in model:
                model["merges"] = [merge for merge in model["merges"] if _touches_none(merge, names)]
    else:
        model["vocab"] = [[names.get(piece, piece), score] for piece, score in vocabulary]
    if model.get("unk_token") in names:
        model["unk_token"] = names[model["unk_token"]]


def _touches_none(merge: str | Sequence[str], names: dict[str, str]) -> bool:
    left, right = merge.split(" ", 1) if isinstance(merge, str) else merge
    return left not in names and right not in names and left + right not in names
