"""Captions are true and incomplete, and can be parsed back and checked."""

from collections import Counter

import numpy as np
import pytest

from common.scenes.captions import MAX_WORDS, VOCABULARY, agrees, canonical, caption, claims
from common.scenes.reader import truth
from common.scenes.scene import BACKGROUNDS, COLOURS, SHAPES, STYLES, Object, Scene, draw_scene


@pytest.fixture(scope="module")
def pairs():
    rng = np.random.default_rng(11)
    scenes = [draw_scene(rng, held_out=i % 5 == 0) for i in range(2000)]
    return [(scene, caption(scene, rng)) for scene in scenes]


def test_a_caption_is_true_of_its_scene(pairs):
    for scene, text in pairs:
        assert all(agrees(claims(text), truth(scene)).values()), text


@pytest.mark.parametrize("kind,values", [("shape", SHAPES), ("colour", COLOURS)])
def test_a_swapped_attribute_is_noticed(pairs, kind, values):
    rng = np.random.default_rng(12)
    for scene, text in pairs:
        reading = truth(scene)
        o = reading["objects"][rng.integers(len(reading["objects"]))]
        taken = {p[kind] for p in reading["objects"]}
        o[kind] = rng.choice([v for v in values if v not in taken])
        verdict = agrees(claims(text), reading)
        assert not verdict["all"] and not verdict["shape_colour"] and not verdict[kind]


def test_swapping_the_colours_of_two_objects_keeps_colours_but_not_the_binding(pairs):
    for scene, text in (p for p in pairs if len(p[0].objects) == 2):
        reading = truth(scene)
        a, b = reading["objects"]
        a["colour"], b["colour"] = b["colour"], a["colour"]
        assert not agrees(claims(text), reading)["shape_colour"]


def test_a_wrong_place_size_background_or_style_is_noticed_exactly_when_it_was_claimed(pairs):
    other = {"background": BACKGROUNDS, "style": STYLES}
    told = Counter()
    for scene, text in pairs:
        claimed = claims(text)
        for kind, values in other.items():
            reading = truth(scene)
            reading[kind] = next(v for v in values if v != reading[kind])
            verdict = agrees(claimed, reading)
            assert (kind in claimed) == (not verdict["all"])
            assert verdict.get(kind) is (False if kind in claimed else None)
            told[kind] += kind in claimed
        for kind, flip in (
            ("size", {"small": "large", "large": "small"}),
            (
                "place",
                {
                    "left": "right",
                    "right": "left",
                    "top": "bottom",
                    "bottom": "top",
                    "centre": "top",
                },
            ),
        ):
            reading = truth(scene)
            for o in reading["objects"]:
                o[kind] = flip[o[kind]]
            verdict = agrees(claimed, reading)
            assert verdict.get(kind) in (False, None)
            assert verdict["all"] == (kind not in verdict)
            told[kind] += kind in verdict
    for kind in ("background", "style", "place"):
        assert 0.45 < told[kind] / len(pairs) < 0.55
    assert 0.5 < told["size"] / len(pairs) < 0.75  # one or two objects, each named by half


def test_two_objects_are_named_in_either_order(pairs):
    first = [
        claims(text)["objects"][0]["shape"] == scene.objects[0].shape
        for scene, text in pairs
        if len(scene.objects) == 2
    ]
    assert 0.4 < np.mean(first) < 0.6


def test_captions_are_short_lower_case_and_within_the_vocabulary(pairs):
    for _, text in pairs:
        assert text == text.lower() and len(text.split()) <= MAX_WORDS
        assert set(text.split()) <= set(VOCABULARY)
        assert canonical(text) == text
    assert set(VOCABULARY) == {w for _, text in pairs for w in text.split()}
    assert list(VOCABULARY) == sorted(set(VOCABULARY))


def test_the_article_fits_the_next_word(pairs):
    for _, text in pairs:
        words = text.split()
        for a, b in zip(words, words[1:], strict=False):
            assert (a == "an") == (b[0] in "aeiou") or a not in ("a", "an")


def test_rho_swaps_each_named_shape_and_colour_with_that_probability():
    rng = np.random.default_rng(13)
    scene = Scene("white", "photo", (Object("ball", "red", "small", 0.5, 0.5),))
    verdicts = [agrees(claims(caption(scene, rng, rho=0.3)), truth(scene)) for _ in range(2000)]
    for kind in ("shape", "colour"):
        assert abs(np.mean([not v[kind] for v in verdicts]) - 0.3) < 0.04
    assert abs(np.mean([v["shape_colour"] for v in verdicts]) - 0.49) < 0.04
    assert all(v.get("size", True) and v.get("place", True) for v in verdicts)


def test_synonyms_punctuation_and_a_missing_article_are_understood():
    got = claims("Photograph of a big, violet sphere in the center on a gray background.")
    ball = {"size": "large", "colour": "purple", "shape": "ball"}
    assert got == {"objects": [ball], "style": "photo", "place": "centre", "background": "grey"}


@pytest.mark.parametrize(
    "text,why",
    [
        ("a red zebra", "zebra"),
        ("a red", "one or two objects"),
        ("", "one or two objects"),
        ("a red ball and a blue cube and a green star", "one or two objects"),
        ("a red blue ball", "two words for its colour"),
        ("a red ball on sand on grass", "two different words for the background"),
        ("a red ball left of", "mixes up"),
        ("a red ball and a blue cube on the left", "mixes up"),
    ],
)
def test_what_the_grammar_does_not_have_is_refused_in_one_sentence(text, why):
    with pytest.raises(ValueError, match=why) as error:
        claims(text)
    assert "\n" not in str(error.value)


def test_an_invalid_reading_keeps_no_claim():
    nothing = {"valid": False, "background": "", "style": "", "objects": []}
    assert not any(agrees(claims("a small red ball on sand"), nothing).values())


def test_a_missing_and_a_surplus_object_break_the_count():
    ball, star = (
        Object("ball", "red", "small", 0.25, 0.5),
        Object("star", "blue", "small", 0.75, 0.5),
    )
    alone, both = (truth(Scene("white", "photo", o)) for o in ((ball,), (ball, star)))
    verdict = agrees(claims("a red ball"), both)
    assert verdict["shape_colour"] and not verdict["count"] and not verdict["all"]
    verdict = agrees(claims("a red ball and a blue star"), alone)
    assert not verdict["shape_colour"] and not verdict["count"]
