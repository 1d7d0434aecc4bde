"""Words that a picture speaks against: found by leaving each out."""

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from indexer import demo
from indexer.encoder import DEMO, EncoderName, load_encoder
from service.words import without_each


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", []),
        ("star", []),
        (" star! ", []),
        ("a star", [("a", "star"), ("star", "a")]),
        ("A (big)  star.", [("A", "(big) star."), ("big", "A star."), ("star", "A (big)")]),
        ("stars - moons", [("stars", "- moons"), ("moons", "stars -")]),
        ("it's a t-shirt", [("it's", "a t-shirt"), ("a", "it's t-shirt"), ("t-shirt", "it's a")]),
    ],
)
def test_each_word_is_left_out_once(text: str, found: list[tuple[str, str]]) -> None:
    assert without_each(text) == found


@given(st.lists(st.sampled_from(["a", "red", "star", "moon"]), max_size=40))
def test_of_a_long_text_the_first_sixteen_words_are_left_out(words: list[str]) -> None:
    found = without_each(" ".join(words))
    assert [word for word, _ in found] == (words[:16] if len(words) > 1 else [])
    assert all(len(rest.split()) == len(words) - 1 for _, rest in found)


def test_a_colour_that_a_picture_does_not_have_is_the_word_it_speaks_against() -> None:
    encoder = load_encoder(EncoderName(model=DEMO), device="cpu", threads=1)
    drawn = list(demo.collection(count=100))
    pictures = encoder.encode_images([encoder.preprocess(each.image) for each in drawn])
    rng = random.Random(0)
    right = 0
    for picture, vector in zip(drawn, pictures, strict=True):
        words = picture.captions[0].split()
        foil = rng.choice([colour for colour in demo.COLOURS if colour not in words])
        words[words.index(picture.instance.colour)] = foil
        left_out = without_each(" ".join(words))
        whole, *without = encoder.encode_texts([" ".join(words), *(rest for _, rest in left_out)])
        effects = [float((whole - each) @ vector) for each in without]
        right += left_out[int(np.argmin(effects))][0] == foil
    assert right >= 80
