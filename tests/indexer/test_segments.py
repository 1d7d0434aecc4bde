"""Long texts: cut where a reader would pause, into pieces that are read whole, with nothing lost."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from indexer.encoder import DEMO, Encoder, EncoderName, load_encoder
from indexer.segments import segments
from indexer.torch_runtime import open_clip
from tests.models import CONFIG, new_model, save_model

TOKENIZER = open_clip.tokenizer.SimpleTokenizer()
WORDS = st.sampled_from(
    ["a", "cat", "on", "Matterhorn", "it's", "3.5", "e.g.", "mat.", "red,", "why?", "so:", "ünïcödé", "図形"]
)
TEXTS = st.lists(st.tuples(WORDS, st.sampled_from([" ", "  ", "\n", " \t"])).map("".join), max_size=120).map("".join)


@pytest.fixture(scope="module")
def towers(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Encoder]:
    """Load the bundled model, whose context is 16 tokens, and a small one with the usual 77."""
    config = CONFIG | {"text_cfg": CONFIG["text_cfg"] | {"context_length": 77}}
    usual = save_model(tmp_path_factory.mktemp("model") / "77", new_model(0, config), config)
    names = {16: DEMO, 77: usual}
    return {context: load_encoder(EncoderName(model=name), device="cpu", threads=1) for context, name in names.items()}


def five_words(text: str) -> bool:
    """Read five words at most, of ten letters each."""
    return sum(-(-len(word) // 10) for word in text.split()) <= 5


def tokens(text: str) -> int:
    """Count the tokens of a text, start and end included and none cut off, as open_clip's own tokenizer makes them."""
    return len(TOKENIZER.encode(text)) + 2


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("", [""]),
        (" a  b\n", [" a  b\n"]),
        ("one two three four five", ["one two three four five"]),
        ("One two. Three four. Five six.", ["One two. Three four.", "Five six."]),
        ("One. Two three four five six, seven eight.", ["One.", "Two three four five six,", "seven eight."]),
        ("one two, three four five six seven", ["one two,", "three four five six seven"]),
        ("one two three four five six", ["one two three four five", "six"]),
        ("One 2.5 three! Four five six seven", ["One 2.5 three!", "Four five six seven"]),
        ('He said "no." She left the old house.', ['He said "no."', "She left the old house."]),
        ("A list\nof two lines of words", ["A list", "of two lines of words"]),
        ("一二三四五六七八。一二三四五六、" + "一" * 45, ["一二三四五六七八。", "一二三四五六、", "一" * 45]),
        ("a " + "b" * 70 + " c", ["a", "b" * 50, "b" * 20 + " c"]),
        ("x" * 101, ["x" * 50, "x" * 50, "x"]),
    ],
)
def test_a_text_is_cut_after_sentences_else_clauses_else_words_else_letters(text: str, pieces: list[str]) -> None:
    assert segments(text, five_words) == pieces


def test_nothing_but_the_first_letters_of_a_long_word_is_tried_if_they_do_not_fit() -> None:
    tried = []

    def fits(text: str) -> bool:
        tried.append(len(text))
        return len(text) <= 30

    assert segments("y" * 10_000, fits) == ["y" * 30] * 333 + ["y" * 10]
    assert max(tried) <= 512


def test_where_nothing_fits_each_letter_is_a_piece() -> None:
    assert segments("ab c", lambda _: False) == ["a", "b", "c"]


@given(text=TEXTS)
def test_words_keep_their_order_and_a_piece_ends_early_only_with_a_sentence_or_clause(text: str) -> None:
    pieces = segments(text, five_words)
    assert " ".join(pieces).split() == text.split()
    assert all(map(five_words, pieces))
    whole = "".join(text.split(" "))
    for first, second in pairwise(pieces):
        ended = first[-1] in ".?,:" or "".join(first.split(" ")) + "\n" in whole
        assert ended or not five_words(f"{first} {second.split()[0]}")


@pytest.mark.parametrize("context", [16, 77])
@given(text=TEXTS)
def test_real_tokenizers_read_each_piece_whole(context: int, text: str, towers: dict[int, Encoder]) -> None:
    pieces = towers[context].segments(text)
    assert " ".join(pieces).split() == text.split()
    assert max(map(tokens, pieces)) <= context
    assert (pieces == [text]) == (tokens(text) <= context)


@pytest.mark.parametrize("context", [16, 77])
@given(text=st.text(max_size=300))
def test_of_any_text_at_all_nothing_is_lost(context: int, text: str, towers: dict[int, Encoder]) -> None:
    pieces = towers[context].segments(text)
    assert "".join("".join(pieces).split()) == "".join(text.split())
    assert max(map(tokens, pieces)) <= context


def test_a_text_as_long_as_the_context_is_read_whole_and_a_word_more_is_not(towers: dict[int, Encoder]) -> None:
    text = "a cat on a mat. " * 15
    exact = " ".join(text.split()[:63])
    assert tokens(exact) == 77
    assert towers[77].segments(exact) == [exact]
    assert towers[77].segments(f"{exact} cat")[0] == text[:191]
