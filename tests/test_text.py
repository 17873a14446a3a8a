"""The tokenizer's promises, and which of its tables the text encoder reads."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from common.text import PAD, TextConfig, TextEncoder, WordTokenizer

WORDS = "a and ball blue cube left of red ring star yellow".split()
TOKENIZER = WordTokenizer(WORDS, 8)


# Tokenizer


def test_encode_then_decode_gives_the_words_back():
    texts = ["a red ball", "a blue cube left of a star", "yellow", ""]
    tokens = TOKENIZER.encode(texts)
    assert tokens.shape == (4, 8) and tokens.dtype == np.int32
    assert TOKENIZER.decode(tokens) == texts
    assert TOKENIZER.size == len(WORDS) + 1 and tokens.max() <= len(WORDS)


def test_every_word_has_its_own_id_from_1_and_0_is_padding():
    ids = [TOKENIZER.encode([word])[0] for word in WORDS]
    assert [row[0] for row in ids] == list(range(1, len(WORDS) + 1)) and PAD == 0
    assert all((row[1:] == PAD).all() for row in ids)


def test_case_commas_and_full_stops_do_not_matter():
    plain, spelt = TOKENIZER.encode(["a red ball and a star", "A Red ball, and  a star."])
    np.testing.assert_array_equal(plain, spelt)


def test_an_empty_text_is_all_padding():
    assert (TOKENIZER.encode(["", "  "]) == PAD).all()


@pytest.mark.parametrize("wrong, near", [("bal", "ball"), ("yelow", "yellow"), ("cubes", "cube")])
def test_an_unknown_word_is_named_with_the_nearest_known_ones(wrong, near):
    with pytest.raises(ValueError, match=f"'{wrong}'.*did you mean.*{near}"):
        TOKENIZER.encode(["a red ball", f"a red {wrong}"])


def test_a_word_like_no_other_is_named_too():
    with pytest.raises(ValueError, match="'xxqq'"):
        TOKENIZER.encode(["a red xxqq"])


def test_a_text_may_fill_all_places_but_the_last():
    tokens = TOKENIZER.encode([" ".join(["ball"] * 7)])
    assert (tokens[0, :7] == WORDS.index("ball") + 1).all() and tokens[0, 7] == PAD
    with pytest.raises(ValueError, match="8 words, at most 7"):
        TOKENIZER.encode([" ".join(["ball"] * 8)])


# Encoder


CONFIG = TextConfig(vocabulary=TOKENIZER.size, length=8, width=16, layers=2, heads=2)
ENCODER = TextEncoder(CONFIG, out_dim=5)
TOKENS = jnp.asarray(TOKENIZER.encode(["a red ball", "a blue cube", ""]))
apply = jax.jit(ENCODER.apply)


@pytest.fixture(scope="module")
def params():
    """As trained: the map to the pooled vector starts at zero, which would hide everything."""
    tables = dict(jax.jit(ENCODER.init)(jax.random.key(0), TOKENS)["params"])
    assert not np.any(tables["pooled"]["kernel"])
    kernel = jax.random.normal(jax.random.key(1), tables["pooled"]["kernel"].shape)
    return {"params": {**tables, "pooled": {**tables["pooled"], "kernel": kernel}}}


def outputs(params, tokens=TOKENS):
    return tuple(np.asarray(a) for a in apply(params, tokens))


def changed(params, path, row, by=1.0):
    """params with one row of one table moved."""
    tables = dict(params["params"])
    if path == "embedding":
        table = tables["Embed_0"]["embedding"]
        tables["Embed_0"] = {"embedding": table.at[row].add(by)}
    else:
        tables[path] = tables[path].at[row].add(by)
    return {"params": tables}


def rows_that_differ(a, b):
    """Per caption: did any token's output, did the pooled output change?"""
    return [np.abs(x - y).reshape(len(x), -1).max(1) > 1e-4 for x, y in zip(a, b, strict=True)]


# One row of a table is moved by noise, not by a constant, which LayerNorm would remove.
NOISE = jnp.asarray(np.random.default_rng(0).standard_normal(16), jnp.float32)


def test_the_encoder_gives_every_token_and_one_vector(params):
    tokens, pooled = outputs(params)
    assert tokens.shape == (3, 8, 16) and pooled.shape == (3, 5)
    assert np.isfinite(tokens).all() and np.isfinite(pooled).all()


def test_the_pooled_vector_is_a_linear_map_of_the_last_position(params):
    tokens, pooled = outputs(params)
    p = jax.tree.map(np.asarray, params["params"]["pooled"])
    np.testing.assert_allclose(pooled, tokens[:, -1] @ p["kernel"] + p["bias"], atol=1e-5)


def test_the_null_caption_is_a_learned_thing_made_of_padding_vectors(params):
    before = outputs(params)
    # Place 0 is padding in the null caption alone, the last place in all three.
    for place, expected in ((0, [False, False, True]), (7, [True, True, True])):
        for differ in rows_that_differ(before, outputs(changed(params, "padding", place, NOISE))):
            assert differ.tolist() == expected


def test_padding_replaces_both_the_word_and_its_position(params):
    before = outputs(params)
    for differ in rows_that_differ(before, outputs(changed(params, "embedding", PAD, NOISE))):
        assert not differ.any()  # the embedding of id 0 is never read
    for place, expected in ((0, [True, True, False]), (7, [False, False, False])):
        for differ in rows_that_differ(before, outputs(changed(params, "position", place, NOISE))):
            assert differ.tolist() == expected


def test_a_word_matters_to_the_captions_it_is_in_and_to_no_other(params):
    before = outputs(params)
    for word, expected in (
        ("red", [True, False, False]),
        ("a", [True, True, False]),
        ("star", [False] * 3),
    ):
        row = TOKENIZER.ids[word]
        for differ in rows_that_differ(before, outputs(changed(params, "embedding", row, NOISE))):
            assert differ.tolist() == expected


def test_every_position_sees_every_other_padding_included(params):
    """Bidirectional, no mask: d output[i] / d input[j] is not zero for any i, j."""
    before = outputs(params)[0]
    for place in (0, 2, 3, 7):
        table = "position" if place < 3 else "padding"
        after = outputs(changed(params, table, place, NOISE))[0]
        assert (np.abs(after - before)[0].max(-1) > 1e-5).all()


def test_the_order_of_the_words_matters(params):
    tokens = jnp.asarray(TOKENIZER.encode(["a red ball", "ball red a", ""]))
    assert np.abs(outputs(params, tokens)[1][1] - outputs(params)[1][0]).max() > 1e-4


def test_order_gives_each_word_its_neighbours_and_place_without_any_attention():
    config = TextConfig(TOKENIZER.size, length=8, width=16, layers=0, heads=2, order=True)
    encode = jax.jit(lambda p, tokens: TextEncoder(config, 5).apply(p, tokens)[0])
    texts = ["a red ball", "a blue ball", "red ball", "a red star"]
    tokens = jnp.asarray(TOKENIZER.encode(texts))
    params = TextEncoder(config, 5).init(jax.random.key(0), tokens)
    red, blue, first, star = np.asarray(encode(params, tokens))
    assert np.abs(red[2] - blue[2]).max() > 0.1 < np.abs(red[1] - star[1]).max()  # both sides
    np.testing.assert_allclose(red[0], star[0], atol=1e-6)  # two words away is not seen
    assert np.abs(red[2] - first[1]).max() > 0.1  # the same words at another place
    np.testing.assert_allclose(red[3:], blue[3:], atol=1e-6)  # padding stays padding
    table = params["params"]["Embed_0"]["embedding"]
    moved = {"params": {**params["params"], "Embed_0": {"embedding": table.at[PAD].add(1.0)}}}
    np.testing.assert_allclose(encode(moved, tokens), encode(params, tokens), atol=1e-6)
