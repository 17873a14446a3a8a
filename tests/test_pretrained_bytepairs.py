"""Byte pairs of published models: a made-up table of merges, and an evaluation in plain Python."""

import gzip
import json
import re
import sys

import numpy as np
import pytest

from common import bytepairs

TEXTS = ["A low-lying  LOWER &amp; Lowest", "the lowest's 12 é?", ""]
MERGES = [("l", "o"), ("lo", "w"), ("e", "r</w>"), ("low", "er</w>"), ("lo", "w</w>"), ("t", "h"),
          ("th", "e</w>"), ("s", "t</w>")]  # fmt: skip
GPT2 = [("l", "o"), ("lo", "w"), ("Ġ", "low"), ("e", "r"), ("Ġlow", "er"), ("Ġ", "Ġ"), ("t", "h")]
SIZE, GPT2_SIZE = 512 + len(MERGES) + 2, 256 + len(GPT2) + 1


@pytest.fixture
def library():
    return pytest.importorskip("tokenizers")


def merged(word, ranks):
    """Byte pair encoding by its definition: the pair of the lowest rank first, wherever it is."""
    while pairs := [pair for pair in zip(word, word[1:]) if pair in ranks]:  # noqa: B905
        best, out = min(pairs, key=ranks.index), []
        while word:
            two = tuple(word[:2]) == best
            out.append("".join(word[: 1 + two]))
            word = word[1 + two :]
        word = out
    return word


def lines(merges):
    return "\n".join(["#version: 0.2", *map(" ".join, merges), ""])


def printable(byte):
    return 33 <= byte < 127 or 161 <= byte < 256 and byte != 173


def letters_of(text):
    """Each byte as a letter: itself if it is printable, else the next one behind 255."""
    others = [b for b in range(256) if not printable(b)]
    return [chr(b) if printable(b) else chr(256 + others.index(b)) for b in text.encode()]


def expected(texts, pattern, merges, suffix, special, length, pad, start=(), end=()):
    letters = [chr(b) for b in range(256) if printable(b)]
    letters += [chr(256 + i) for i in range(256 - len(letters))]
    pieces = letters + [x + suffix for x in letters if suffix] + ["".join(m) for m in merges]
    ids = {piece: i for i, piece in enumerate([*pieces, *special])}
    rows = np.full((len(texts), length), pad)
    for row, text in zip(rows, texts, strict=True):
        words = [letters_of(word) for word in re.findall(pattern, text)]
        words = [[*word[:-1], word[-1] + suffix] for word in words]
        found = [ids[piece] for word in words for piece in merged(word, merges)]
        row[: len(found) + len(start) + len(end)] = [*start, *found, *end]
    return rows


def test_clip_starts_ends_and_merges_lower_cased_words(tmp_path, library):
    (path := tmp_path / "bpe.txt").write_text(lines([*MERGES, ("beyond", "use")]))
    texts = ["a low-lying lower & lowest", "the lowest's 12 é?", ""]
    words = r"'s|[^\W\d_]+|\d|[^\s\w]+"
    start, end = SIZE - 2, SIZE - 1
    for pad, option in ((0, False), (end, True)):
        found = bytepairs.clip(path, SIZE, 40, option).encode(TEXTS)
        wanted = expected(texts, words, MERGES, "</w>", ("S", "E"), 40, pad, (start,), (end,))
        np.testing.assert_array_equal(found, wanted)
    assert found.dtype == np.int32
    two = bytepairs.clip(path, SIZE, 6).encode(["low<|endoftext|>"])[0]
    assert list(two) == [start, *two[1:2], end, end, 0, 0]


def test_glide_keeps_blanks_and_pads_with_its_last_id(tmp_path, library):
    (path := tmp_path / "vocab.bpe").write_text(lines(GPT2))
    words = r"'s| ?[^\W\d_]+| ?\d+| ?[^\s\w]+|\s+(?!\S)|\s+"
    texts = [text.lower() for text in TEXTS]
    found = bytepairs.glide(path, GPT2_SIZE, 40).encode(TEXTS)
    end = GPT2_SIZE - 1
    np.testing.assert_array_equal(found, expected(texts, words, GPT2, "", ("E",), 40, end))
    assert (found[2] == end).all()


def test_every_form_of_a_vocabulary_gives_the_same_ids(tmp_path, library):
    (tmp_path / "merges.txt").write_text(lines(MERGES))
    one = bytepairs.clip(tmp_path / "merges.txt", SIZE, 40)
    vocabulary = one.pieces.get_vocab()
    (tmp_path / "bpe.txt.gz").write_bytes(gzip.compress(lines(MERGES).encode()))
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary))
    for name, merges in (("a.json", MERGES), ("b.json", [" ".join(pair) for pair in MERGES])):
        model = {"type": "BPE", "vocab": vocabulary, "merges": merges}
        (tmp_path / name).write_text(json.dumps({"version": "1.0", "model": model}))
    for name in ("bpe.txt.gz", "vocab.json", "a.json", "b.json"):
        found = bytepairs.clip(tmp_path / name, SIZE, 40).encode(TEXTS)
        np.testing.assert_array_equal(found, one.encode(TEXTS), err_msg=name)


def test_bert_splits_words_into_the_longest_pieces(tmp_path, library):
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "low", "##er", "##est", "the", ",", "cafe"]
    (path := tmp_path / "vocab.txt").write_text("\n".join(words) + "\n")
    found = bytepairs.bert(path, len(words), 8).encode(["The LOWEST, lower", "café x", ""])
    assert found.tolist() == [[2, 7, 4, 6, 8, 4, 5, 3], [2, 9, 1, 3, 0, 0, 0, 0], [2, 3] + [0] * 6]


PIECES = {f"piece {i}": i for i in range(SIZE - 1)} | {"<|endoftext|>": SIZE - 1}
BROKEN = {"model": {"vocab": PIECES, "merges": ["z zz"]}}


def test_what_does_not_fit_is_said_in_one_line(tmp_path, library):
    (path := tmp_path / "bpe.txt").write_text(lines(MERGES))
    with pytest.raises(ValueError, match="^the prompt has 7 tokens, at most 6 fit; shorten it$"):
        bytepairs.clip(path, SIZE, 6).encode(["l o w l o"])
    for make, name, content, said in (
        (bytepairs.clip, "none", None, "no vocabulary at"),
        (bytepairs.clip, "few.txt", lines(MERGES[:3]), "517 byte pairs, not this model's 522"),
        (bytepairs.clip, "a.json", "{", "damaged JSON"),
        (bytepairs.clip, "vocab.json", '{"a": 0}', "put merges.txt beside it"),
        (bytepairs.clip, "a.txt.gz", gzip.compress(b"x" * 999)[:20], "damaged or no text"),
        (bytepairs.clip, "b.json", json.dumps(BROKEN), "merges 'z' and 'zz', which have no id"),
        (bytepairs.clip, "gpt.txt", lines([("l", x) for x in "abcdefgh"]), "where words end"),
        (bytepairs.bert, "vocab.txt", "[PAD]\na", "no vocabulary of BERT's 522 word pieces"),
    ):
        if content is not None:
            (tmp_path / name).write_bytes(content if type(content) is bytes else content.encode())
        with pytest.raises(ValueError, match=said) as caught:
            make(tmp_path / name, SIZE)
        assert "\n" not in str(caught.value)


def test_without_the_library_its_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    for make in (bytepairs.clip, bytepairs.glide, bytepairs.bert):
        with pytest.raises(ValueError, match=r"^[^\n]*pip install 'guidebook\[pretrained\]'$"):
            make(tmp_path / "a.txt")
