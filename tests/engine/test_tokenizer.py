"""Text to ids and back: as the `tokenizers` library does it, and never a control token by spelling."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import tiny_tokenizers as tiny
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.engine.tokenizer import Tokenizer
from penstock.errors import InvalidDeployment, InvalidRequest, UnsupportedModel

KINDS = ("byte_level", "byte_fallback", "metaspace")
MILLRACE = Path(tiny.__file__).parents[2] / "src/penstock/catalog/models/millrace"


@pytest.fixture(scope="module")
def directories(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("tokenizers")
    return {
        "byte_level": tiny.save(
            tiny.byte_level(tiny.LLAMA3, bos="<|begin_of_text|>"),
            root / "byte_level",
            plain=("<think>", "<\uff5cUser\uff5c>"),
            bos_token="<|begin_of_text|>",
            eos_token="<|eot_id|>",
            chat_template="{{ '<think>' }}",
        ),
        "byte_fallback": tiny.save(
            tiny.byte_fallback(), root / "byte_fallback", bos_token="<s>", eos_token={"content": "</s>"}
        ),
        "metaspace": tiny.save(tiny.metaspace(), root / "metaspace", bos_token="<s>", eos_token="</s>"),
    }


@pytest.fixture(scope="module")
def loaded(directories: dict[str, Path]) -> dict[str, tuple[Tokenizer, tokenizers.Tokenizer]]:
    """Ours and the library's, by kind."""
    return {
        kind: (Tokenizer.load(path), tokenizers.Tokenizer.from_file(str(path / "tokenizer.json")))
        for kind, path in directories.items()
    }


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Tokenizer, tokenizers.Tokenizer]]:
    """Tokenizers whose control tokens swallow spaces, want to stand alone, or are matched in normalised text."""
    root = tmp_path_factory.mktemp("odd")
    found = {}
    for kind, library in (("byte_level", tiny.byte_level(tiny.CHATML)), ("byte_fallback", tiny.byte_fallback())):
        library.add_special_tokens(
            [
                tokenizers.AddedToken("<|left|>", lstrip=True, special=True),
                tokenizers.AddedToken("<|right|>", rstrip=True, special=True),
                tokenizers.AddedToken("<|word|>", single_word=True, special=True),
                tokenizers.AddedToken("<|norm|>", normalized=True, special=True),
            ]
        )
        found[kind] = (Tokenizer.load(tiny.save(library, root / kind)), library)
    return found


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=60, deadline=None)
@given(text=st.text(max_size=60), add_special_tokens=st.booleans())
def test_text_without_control_tokens_encodes_as_the_library_does(
    loaded: dict[str, tuple[Tokenizer, tokenizers.Tokenizer]], kind: str, text: str, add_special_tokens: bool
) -> None:
    ours, library = loaded[kind]
    expected = library.encode(text, add_special_tokens=add_special_tokens).ids
    assert ours.encode(text, add_special_tokens=add_special_tokens) == expected


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_control_tokens_that_are_allowed_encode_as_the_library_does(
    loaded: dict[str, tuple[Tokenizer, tokenizers.Tokenizer]], kind: str, data: st.DataObject
) -> None:
    ours, library = loaded[kind]
    words = st.sampled_from([*ours.control_tokens, "water ", " gate", "<", "|>", " ", "ü"])
    text = "".join(data.draw(st.lists(words, max_size=8)))
    assert (
        ours.encode(text, add_special_tokens=False, allow_special=True)
        == library.encode(text, add_special_tokens=False).ids
    )


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=60, deadline=None)
@given(text=st.text(max_size=60) | st.sampled_from([" " * 3000, "the water " * 300, "\u212a" * 90, "x" * 999]))
def test_no_token_stands_for_more_bytes_than_the_tokenizer_says(
    loaded: dict[str, tuple[Tokenizer, tokenizers.Tokenizer]], kind: str, text: str
) -> None:
    ours, _ = loaded[kind]
    count = len(ours.encode(text, add_special_tokens=False))
    assert len(text.encode()) <= max(count, 3) * ours.max_bytes_per_token
    ours.check_fits([text], max(count, 3), field="prompt")


def test_the_most_bytes_of_a_token_are_the_longest_piece_where_nothing_can_be_lost(tmp_path: Path) -> None:
    plain, composing, stripping = (tiny.byte_level(["<|end|>"]) for _ in range(3))
    longest = max(map(len, plain.get_vocab()))
    composing.normalizer = tokenizers.normalizers.NFC()
    stripping.normalizer = tokenizers.normalizers.Strip()
    bounds = [
        Tokenizer.load(tiny.save(library, tmp_path / str(number))).max_bytes_per_token
        for number, library in enumerate((plain, composing, stripping))
    ]
    assert bounds == [longest, 4 * longest, 1024]


def test_a_text_that_cannot_fit_is_refused_with_both_numbers_and_a_remedy(
    loaded: dict[str, tuple[Tokenizer, tokenizers.Tokenizer]],
) -> None:
    ours, _ = loaded["byte_level"]
    text = "ü" * (ours.max_bytes_per_token * 5)
    ours.check_fits([text], 10, field="prompt")
    with pytest.raises(InvalidRequest, match=r"11 tokens at the very least.* 10 tokens.*fewer than 10") as caught:
        ours.check_fits([text, "x"], 10, field="prompt")
    assert caught.value.code == "context_length_exceeded"


def test_other_threads_run_while_a_long_text_is_tokenised(
    loaded: dict[str, tuple[Tokenizer, tokenizers.Tokenizer]],
) -> None:
    ours, _ = loaded["byte_level"]

    def turns_of_another() -> int:
        done, turns = threading.Event(), 0
        worker = threading.Thread(
            target=lambda: (ours.encode("the water flows " * 40_000, add_special_tokens=False), done.set())
        )
        worker.start()
        while not done.wait(0.001):
            turns += 1
        worker.join()
        return turns

    # On a busy machine this thread may get no processor during a call, so one in which it does is waited for.
    assert any(turns_of_another() > 10 for _ in range(50)), "calls that keep the interpreter lock leave one or two"


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_no_text_encodes_to_a_control_token_unless_allowed(
    loaded: dict[str, tuple[Tokenizer, tokenizers.Tokenizer]], kind: str, data: st.DataObject
) -> None:
    ours, _ = loaded[kind]
    words = st.sampled_from([*ours.control_tokens, "water", " gate", "<", "|>"]) | st.text(max_size=5)
    text = "".join(data.draw(st.lists(words, max_size=8)))
    unknown = {ours.token_id("<unk>")}
    ids = ours.encode(text, add_special_tokens=False)
    assert not set(ids) & (set(ours.control_tokens.values()) - unknown)
    if kind != "metaspace":  # a Unigram vocabulary knows no bytes and folds spaces
        assert ours.decode(ids, skip_special_tokens=False) == text


@pytest.mark.parametrize("kind", ["byte_level", "byte_fallback"])
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_control_tokens_take_the_space_and_the_borders_they_always_took(
    odd: dict[str, tuple[Tokenizer, tokenizers.Tokenizer]], kind: str, data: st.DataObject
) -> None:
    ours, library = odd[kind]
    words = st.sampled_from(["<|left|>", "<|right|>", "<|word|>", " ", "\n", "gate", " water"])
    text = "".join(data.draw(st.lists(words, max_size=8)))
    expected = library.encode(text, add_special_tokens=False).ids
    assert ours.encode(text, add_special_tokens=False, allow_special=True) == expected


@pytest.mark.parametrize("kind", ["byte_level", "byte_fallback"])
def test_control_tokens_are_found_wherever_they_stand_even_if_they_are_matched_in_normalised_text(
    odd: dict[str, tuple[Tokenizer, tokenizers.Tokenizer]], kind: str
) -> None:
    tokenizer, _ = odd[kind]
    ids = tokenizer.encode("<|norm|>gate<|norm|><|norm|>", add_special_tokens=False, allow_special=True)
    assert ids.count(tokenizer.control_tokens["<|norm|>"]) == 3
    assert tokenizer.decode(ids) == "gate"


def test_control_tokens_are_special_ones_and_those_that_are_used_as_such(
    loaded: dict[str, tuple[Tokenizer, tokenizers.Tokenizer]],
) -> None:
    tokenizer, _ = loaded["byte_level"]
    assert set(tokenizer.control_tokens) == {*tiny.LLAMA3, "<think>", "<\uff5cUser\uff5c>"}
    ids = tokenizer.encode("<|eot_id|>a<think>", add_special_tokens=False, allow_special=True)
    assert tokenizer.decode(ids) == "a<think>"
    assert tokenizer.decode(ids, skip_special_tokens=False) == "<|eot_id|>a<think>"


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=80, deadline=None)
@given(text=st.text(max_size=60))
def test_text_decodes_as_the_library_does(
    loaded: dict[str, tuple[Tokenizer, tokenizers.Tokenizer]], kind: str, text: str
) -> None:
    ours, library = loaded[kind]
    ids = library.encode(text).ids
    assert ours.decode(ids) == library.decode(ids)
    assert ours.decode(ids, skip_special_tokens=False) == library.decode(ids, skip_special_tokens=False)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_any_ids_decode_as_the_library_does(
    loaded: dict[str, tuple[Tokenizer, tokenizers.Tokenizer]], kind: str, data: st.DataObject
) -> None:
    ours, library = loaded[kind]
    ids = data.draw(st.lists(st.integers(0, ours.vocab_size + 2), max_size=20))
    if kind == "byte_fallback":  # the library replaces a whole run of bytes if one is invalid: compare without bytes
        ids = [id for id in ids if not str(library.id_to_token(id)).startswith("<0x")]
    assert ours.decode(ids) == library.decode(ids)


def test_bytes_that_are_no_text_become_replacement_characters_one_by_one(
    loaded: dict[str, tuple[Tokenizer, tokenizers.Tokenizer]],
) -> None:
    tokenizer, _ = loaded["byte_fallback"]

    def pieces(*data: int) -> list[int]:
        return [id for byte in data if (id := tokenizer.token_id(f"<0x{byte:02X}>")) is not None]

    assert tokenizer.decode(pieces(0xF0, 0x9F, 0x99, 0x82)) == "🙂"
    assert tokenizer.decode(pieces(0xF0, 0x9F, 0x99, 0x82, 0xFF, 0x41)) == "🙂\ufffdA"


@pytest.mark.parametrize("kind", ["byte_level", "byte_fallback"])
@settings(max_examples=60, deadline=None)
@given(text=st.text(max_size=40))
def test_token_bytes_join_to_the_text(
    loaded: dict[str, tuple[Tokenizer, tokenizers.Tokenizer]], kind: str, text: str
) -> None:
    tokenizer, _ = loaded[kind]
    data = b"".join(map(tokenizer.token_bytes, tokenizer.encode(text, add_special_tokens=False)))
    if kind == "byte_fallback" and text:
        assert data[:1] == b" "
        data = data[1:]
    assert data == text.encode()


def test_ids_without_a_token_are_no_bytes_and_no_text(
    loaded: dict[str, tuple[Tokenizer, tokenizers.Tokenizer]],
) -> None:
    tokenizer, _ = loaded["byte_level"]
    assert tokenizer.token_bytes(10**6) == b""
    assert tokenizer.decode([10**6, *tokenizer.encode("gate", add_special_tokens=False), 10**6]) == "gate"


def test_the_token_of_the_beginning_is_never_doubled(
    loaded: dict[str, tuple[Tokenizer, tokenizers.Tokenizer]],
) -> None:
    tokenizer, _ = loaded["byte_level"]
    plain = tokenizer.encode("gate", add_special_tokens=True)
    assert plain[0] == tokenizer.bos_id
    assert tokenizer.encode("<|begin_of_text|>gate", add_special_tokens=True, allow_special=True) == plain
    assert tokenizer.encode("gate", add_special_tokens=False) == plain[1:]


@pytest.mark.parametrize(("begin", "end"), [(True, False), (False, False), (True, True)])
def test_add_bos_token_and_add_eos_token_overrule_tokenizer_json(tmp_path: Path, begin: bool, end: bool) -> None:
    tiny.save(tiny.byte_fallback(), tmp_path, bos_token="<s>", eos_token="</s>", add_bos_token=begin, add_eos_token=end)
    ids = Tokenizer.load(tmp_path).encode("gate", add_special_tokens=True)
    assert (ids[0] == 1, ids[-1] == 2) == (begin, end)


def test_end_tokens_are_the_tokenizers_own_and_those_of_the_generation_config_before_the_config(
    tmp_path: Path,
) -> None:
    tiny.save(tiny.byte_level(tiny.LLAMA3), tmp_path, eos_token="<|eot_id|>")
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": 7}))
    own = tiny.LLAMA3.index("<|eot_id|>")
    assert set(Tokenizer.load(tmp_path).eos_ids) == {own, 7}
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, own]}))
    assert set(Tokenizer.load(tmp_path).eos_ids) == {own, 1}


def test_sampling_defaults_come_from_the_generation_config(tmp_path: Path) -> None:
    tiny.save(tiny.byte_level(tiny.LLAMA3), tmp_path)
    assert Tokenizer.load(tmp_path).sampling_defaults == {}
    generation = {"temperature": 0.6, "top_p": 0.95, "top_k": 20, "repetition_penalty": None, "do_sample": True}
    (tmp_path / "generation_config.json").write_text(json.dumps(generation))
    assert Tokenizer.load(tmp_path).sampling_defaults == {"temperature": 0.6, "top_p": 0.95, "top_k": 20}


def test_a_checkpoint_without_tokenizer_json_is_refused_with_a_remedy(tmp_path: Path) -> None:
    with pytest.raises(InvalidDeployment, match=r"tokenizer\.json.*save_pretrained"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"model": {"type": "Nonsense"}}'])
def test_a_broken_tokenizer_json_is_refused_by_name(tmp_path: Path, content: str) -> None:
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises((InvalidDeployment, UnsupportedModel), match=r"tokenizer\.json"):
        Tokenizer.load(tmp_path)


def test_a_decoder_that_cannot_be_streamed_is_refused_by_name(tmp_path: Path) -> None:
    tokenizer = tiny.byte_level(tiny.LLAMA3)
    tokenizer.decoder = tokenizers.decoders.CTC()
    with pytest.raises(UnsupportedModel, match="CTC"):
        Tokenizer.load(tiny.save(tokenizer, tmp_path))


def test_text_with_a_lone_surrogate_is_the_clients_fault(
    loaded: dict[str, tuple[Tokenizer, tokenizers.Tokenizer]],
) -> None:
    with pytest.raises(InvalidRequest, match="surrogate"):
        loaded["byte_level"][0].encode("gate \ud800", add_special_tokens=False)


def test_the_model_in_the_box_loads_and_keeps_text(loaded: dict[str, tuple[Tokenizer, tokenizers.Tokenizer]]) -> None:
    if not (MILLRACE / "tokenizer.json").is_file():
        pytest.skip("the model in the box is not there")
    tokenizer = Tokenizer.load(MILLRACE)
    assert tokenizer.eos_ids
    text = "3+4=7, naïve 🙂 <|end|>"
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=True)) == text


def test_the_front_ends_modules_import_no_torch() -> None:
    code = (
        "import sys, penstock.engine.tokenizer, penstock.engine.chat_template, penstock.engine.detokenizer;"
        "sys.exit('torch' in sys.modules or 'numpy' in sys.modules or 'transformers' in sys.modules)"
    )
    assert (
        subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": ":".join(filter(None, sys.path))}).returncode
        == 0
    )


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="threads are counted as Linux shows them")
def test_a_text_is_encoded_in_the_thread_that_asks(directories: dict[str, Path]) -> None:
    code = (
        "import os, sys; from penstock.engine.tokenizer import Tokenizer; own = Tokenizer.load(sys.argv[1]);"
        "before = len(os.listdir('/proc/self/task')); own.encode('some words', add_special_tokens=False);"
        "sys.exit(len(os.listdir('/proc/self/task')) - before)"
    )
    environment = {"PYTHONPATH": ":".join(filter(None, sys.path))}
    made = subprocess.run([sys.executable, "-c", code, str(directories["byte_level"])], env=environment)
    assert made.returncode == 0, "threads that the library has started for one text"
