"""Text as it streams is the text of the whole, cut at characters and before stop strings, however it was fed."""

from __future__ import annotations

from itertools import pairwise

import pytest
import tiny_tokenizers as tiny
from hypothesis import example, given, settings
from hypothesis import strategies as st

from penstock.engine.detokenizer import Detokenizer
from penstock.engine.tokenizer import Tokenizer
from penstock.errors import InvalidRequest

KINDS = ("byte_level", "byte_fallback", "metaspace", "words")


@pytest.fixture(scope="module")
def tokenizers_by_kind(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tokenizer]:
    root = tmp_path_factory.mktemp("tokenizers")
    words = tiny.byte_level(tiny.CHATML)
    words.decoder = None  # type: ignore[assignment]
    return {
        "byte_level": Tokenizer.load(tiny.save(tiny.byte_level(tiny.CHATML), root / "b")),
        "byte_fallback": Tokenizer.load(tiny.save(tiny.byte_fallback(), root / "f")),
        "metaspace": Tokenizer.load(tiny.save(tiny.metaspace(), root / "m")),
        "words": Tokenizer.load(tiny.save(words, root / "w")),
    }


@st.composite
def chunked(draw: st.DrawFn, size: int) -> list[list[int]]:
    """Random ids in random chunks; byte pieces are frequent, so that characters break across tokens."""
    ids = draw(st.lists(st.integers(0, 270) | st.integers(0, size + 2), max_size=30))
    cuts = sorted(draw(st.lists(st.integers(0, len(ids)), max_size=6)))
    return [ids[start:end] for start, end in zip([0, *cuts], [*cuts, len(ids)], strict=True)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("skip", [True, False])
@settings(max_examples=120, deadline=None)
@given(data=st.data())
def test_the_parts_of_any_ids_join_to_the_decoded_whole(
    tokenizers_by_kind: dict[str, Tokenizer], kind: str, skip: bool, data: st.DataObject
) -> None:
    tokenizer = tokenizers_by_kind[kind]
    chunks = data.draw(chunked(tokenizer.vocab_size))
    detokenizer = Detokenizer(tokenizer, skip_special_tokens=skip)
    parts = [detokenizer.feed(chunk) for chunk in chunks]
    ids = [id for chunk in chunks for id in chunk]
    assert "".join([*parts, detokenizer.flush()]) == tokenizer.decode(ids, skip_special_tokens=skip)
    assert detokenizer.tokens_used == len(ids)


@pytest.mark.parametrize("kind", ["byte_level", "byte_fallback"])
@settings(max_examples=100, deadline=None)
@given(text=st.text(max_size=60))
@example(text="🙂 水 é\u0301 👩‍👩‍👧")
@example(text="  two spaces first")
def test_any_text_comes_back_in_whole_characters(
    tokenizers_by_kind: dict[str, Tokenizer], kind: str, text: str
) -> None:
    tokenizer = tokenizers_by_kind[kind]
    detokenizer = Detokenizer(tokenizer)
    so_far = ""
    for id in tokenizer.encode(text, add_special_tokens=False):
        so_far += detokenizer.feed([id])
        assert text.startswith(so_far)
    assert so_far == text
    assert detokenizer.flush() == ""


@pytest.mark.parametrize("kind", ["byte_level", "byte_fallback"])
def test_an_unfinished_character_waits_and_is_replaced_only_at_the_end(
    tokenizers_by_kind: dict[str, Tokenizer], kind: str
) -> None:
    tokenizer = tokenizers_by_kind[kind]
    ids = tokenizer.encode("a𝄞", add_special_tokens=False)
    detokenizer = Detokenizer(tokenizer)
    assert "".join(detokenizer.feed([id]) for id in ids[:-1]) == "a"
    assert detokenizer.flush() == "\ufffd"


def naive(tokens: list[str], stop: list[str], include_stop: bool) -> tuple[str, str | None, int]:
    """(text, stop string found, tokens used) by looking at every beginning of the text."""
    text = "".join(tokens)
    ends = [sum(map(len, tokens[: index + 1])) for index in range(len(tokens))]
    for end in range(1, len(text) + 1):
        found = [string for string in stop if text[:end].endswith(string)]
        if found:
            longest = max(found, key=len)
            used = next(index for index, token_end in enumerate(ends) if token_end >= end) + 1
            return text[: end if include_stop else end - len(longest)], longest, used
    return text, None, len(tokens)


@settings(max_examples=400, deadline=None)
@given(
    text=st.text("ab", max_size=30),
    stop=st.lists(st.text("ab", min_size=1, max_size=5), min_size=1, max_size=4),
    include_stop=st.booleans(),
    cuts=st.lists(st.integers(0, 30), max_size=6),
)
@example(text="aab", stop=["ab", "b"], include_stop=False, cuts=[])
@example(text="abaabab", stop=["abab"], include_stop=False, cuts=[3])
def test_stop_strings_are_found_as_a_search_of_the_whole_text_finds_them(
    tokenizers_by_kind: dict[str, Tokenizer], text: str, stop: list[str], include_stop: bool, cuts: list[int]
) -> None:
    tokenizer = tokenizers_by_kind["byte_level"]
    ids = tokenizer.encode(text, add_special_tokens=False)
    expected, found, used = naive([tokenizer.decode([id]) for id in ids], stop, include_stop)
    detokenizer = Detokenizer(tokenizer, stop=stop, include_stop=include_stop)
    borders = [0, *sorted(min(cut, len(ids)) for cut in cuts), len(ids)]
    parts = [detokenizer.feed(ids[start:end]) for start, end in pairwise(borders)]
    assert "".join([*parts, detokenizer.flush()]) == expected
    assert (detokenizer.stopped, detokenizer.tokens_used) == (found, used)


@settings(max_examples=200, deadline=None)
@given(text=st.text("abc", max_size=20), stop=st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=3))
def test_exactly_the_text_that_may_become_a_stop_string_is_held_back(
    tokenizers_by_kind: dict[str, Tokenizer], text: str, stop: list[str]
) -> None:
    tokenizer = tokenizers_by_kind["byte_level"]
    ids = tokenizer.encode(text, add_special_tokens=False)
    detokenizer = Detokenizer(tokenizer, stop=stop)
    shown = "".join(map(detokenizer.feed, [[id] for id in ids]))
    if detokenizer.stopped is None:
        may_grow = max(
            (length for string in stop for length in range(1, len(string)) if text.endswith(string[:length])), default=0
        )
        assert shown == text[: len(text) - may_grow]


def test_nothing_comes_after_a_stop_string(tokenizers_by_kind: dict[str, Tokenizer]) -> None:
    tokenizer = tokenizers_by_kind["byte_level"]
    detokenizer = Detokenizer(tokenizer, stop=["water"])
    ids = tokenizer.encode("the water flows", add_special_tokens=False)
    assert detokenizer.feed(ids) == "the "
    used = detokenizer.tokens_used
    assert (detokenizer.feed(ids), detokenizer.flush()) == ("", "")
    assert (detokenizer.stopped, detokenizer.tokens_used) == ("water", used)


def test_a_stop_string_over_characters_of_several_tokens_is_found(tokenizers_by_kind: dict[str, Tokenizer]) -> None:
    for kind in ("byte_level", "byte_fallback"):
        tokenizer = tokenizers_by_kind[kind]
        detokenizer = Detokenizer(tokenizer, stop=["𝄞🙂"], include_stop=True)
        ids = tokenizer.encode("gate 𝄞🙂 water", add_special_tokens=False)
        assert "".join(detokenizer.feed([id]) for id in ids) == "gate 𝄞🙂"


def test_an_empty_stop_string_is_refused(tokenizers_by_kind: dict[str, Tokenizer]) -> None:
    with pytest.raises(InvalidRequest, match="stop"):
        Detokenizer(tokenizers_by_kind["byte_level"], stop=["a", ""])
