"""Prompts as the published models read them: byte pairs, from the vocabulary file that they have.

    GLIDE               vocab.bpe, or merges.txt, of GPT-2: 50,257 ids, 128 places
    CLIP                bpe_simple_vocab_16e6.txt, or merges.txt: 49,408 ids, 77 places
    latent diffusion    vocab.txt of BERT, whose pieces are of words: 30,522 ids, 77 places

Each also as .gz, as tokenizer.json, and as vocab.json with the merges beside it.
"""

import gzip
import html
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

START, END = "<|startoftext|>", "<|endoftext|>"
# CLIP's words: endings such as 's, letters, single digits, anything else.
WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
MERGES = ("merges.txt", "vocab.bpe", "vocab.bpe.gz")  # what a vocab.json needs beside it


@dataclass(frozen=True)
class Tokenizer:
    """encode(texts) -> (B, length) int32: start, the pieces of the text, end, then padding."""

    pieces: Any  # a tokenizers.Tokenizer
    length: int
    pad: int
    start: tuple[int, ...] = ()
    end: tuple[int, ...] = ()
    collapse: bool = True  # blanks, and entities such as &amp;, as CLIP cleans its texts

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """ValueError: a text that does not fit."""
        tokens = np.full((len(texts), self.length), self.pad, np.int32)
        for row, text in zip(tokens, texts, strict=True):
            if self.collapse:
                # Paper: CLIP's ftfy, which mends text that was decoded wrongly, is left out.
                text = " ".join(html.unescape(html.unescape(text)).split())
            ids = self.pieces.encode(text.lower(), add_special_tokens=False).ids
            ids = [*self.start, *ids, *self.end]
            if len(ids) > self.length:
                raise ValueError(f"the prompt has {len(ids)} tokens, at most {self.length} fit; "
                                 f"shorten it")  # fmt: skip
            row[: len(ids)] = ids
        return tokens


def glide(path: str | Path, size: int = 50_257, length: int = 128) -> Tokenizer:
    """Of GLIDE: GPT-2's byte pairs, lower-cased, filled up with the last id, END.

    Paper: GLIDE cuts off what does not fit; here it is refused.
    """
    tokenizers = _library()
    vocabulary, merges = _byte_pairs(path, size, "", (END,))
    pieces = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocabulary, merges=merges))
    pieces.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    return Tokenizer(pieces, length, size - 1, collapse=False)


def clip(
    path: str | Path, size: int = 49_408, length: int = 77, pad_with_end: bool = False
) -> Tokenizer:
    """Of CLIP and of GLIDE's noised CLIP: START, byte pairs that know where words end, END, zeros.

    pad_with_end: Stable Diffusion fills up with END; all its 77 places are attended to.
    """
    tokenizers = _library()
    vocabulary, merges = _byte_pairs(path, size, "</w>", (START, END))
    model = tokenizers.models.BPE(vocab=vocabulary, merges=merges, end_of_word_suffix="</w>")
    pieces, split = tokenizers.Tokenizer(model), tokenizers.pre_tokenizers
    words = split.Split(tokenizers.Regex(WORDS), "removed", invert=True)
    bytes_of = split.ByteLevel(add_prefix_space=False, use_regex=False)
    pieces.pre_tokenizer = split.Sequence([words, bytes_of])
    pieces.add_special_tokens([START, END])
    pad = size - 1 if pad_with_end else 0
    return Tokenizer(pieces, length, pad, (size - 2,), (size - 1,))


def bert(path: str | Path, size: int = 30_522, length: int = 77) -> Tokenizer:
    """Of text2img-large: [CLS], BERT's lower-cased word pieces, [SEP], and [PAD] up to the end."""
    tokenizers = _library()
    text = _read(path)
    if text.startswith("{"):
        vocabulary = _model(path, text)["vocab"]
    else:
        vocabulary = {word: i for i, word in enumerate(text.rstrip("\n").split("\n"))}
    special = [vocabulary.get(word) for word in ("[CLS]", "[SEP]", "[PAD]", "[UNK]")]
    if len(vocabulary) != size or None in special:
        raise ValueError(f"{path} is no vocabulary of BERT's {size:,} word pieces: give vocab.txt "
                         f"of bert-base-uncased")  # fmt: skip
    model = tokenizers.models.WordPiece(vocab=vocabulary, unk_token="[UNK]")
    pieces = tokenizers.Tokenizer(model)
    pieces.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=True)
    pieces.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    start, end, pad, _ = special
    return Tokenizer(pieces, length, pad, (start,), (end,), collapse=False)


def byte_letters() -> list[str]:
    """The letter that stands for each byte, in the order of GPT-2's ids: the printable ones first.

    bytes_to_unicode of openai/CLIP simple_tokenizer.py.
    """
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = 256 - len(printable)
    return [chr(byte) for byte in printable] + [chr(256 + i) for i in range(others)]


def _byte_pairs(path, size: int, suffix: str, special: tuple[str, ...]) -> tuple[dict, list]:
    """(ids of the pieces, merges), checked: bytes, bytes that end words, merges, special ones."""
    text, vocabulary = _read(path), None
    if text.startswith("{"):
        model = _model(path, text)
        vocabulary, merges = model["vocab"], model["merges"]
    else:
        lines = text.split("\n")
        merges = lines["#version" in lines[0] :]
    letters = byte_letters()
    base = letters + [letter + suffix for letter in letters if suffix]
    # CLIP's file goes on beyond what it uses.
    merges = [m.split() if isinstance(m, str) else m for m in merges]
    merges = [tuple(pair) for pair in merges if len(pair) == 2][: size - len(base) - len(special)]
    vocabulary = vocabulary or {
        piece: i for i, piece in enumerate([*base, *map("".join, merges), *special])
    }
    if len(vocabulary) != size or vocabulary.get(special[-1]) != size - 1:
        raise ValueError(f"{path} gives {len(vocabulary):,} byte pairs, not this model's {size:,}, "
                         f"of which {special[-1]} is the last: give its own file")  # fmt: skip
    for pair in merges:
        if not {*pair, "".join(pair)} <= vocabulary.keys():
            raise ValueError(f"{path} merges {pair[0]!r} and {pair[1]!r}, which have no id: "
                             f"fetch it again")  # fmt: skip
    if suffix and not any(pair[1].endswith(suffix) for pair in merges):
        raise ValueError(f"{path} does not know where words end, as CLIP's does: give its own file")
    return vocabulary, merges


def _model(path: str | Path, text: str) -> dict:
    """{"vocab", "merges"} of a tokenizer.json, or of a vocab.json and the merges beside it."""
    try:
        held = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{path} is damaged JSON ({error}): fetch it again") from error
    if isinstance(held.get("model"), dict):
        return {"merges": [], **held["model"]}
    beside = next((p for name in MERGES if (p := Path(path).with_name(name)).is_file()), None)
    if beside is None:
        raise ValueError(f"{path} holds ids only: put {MERGES[0]} beside it, or give that")
    return {"vocab": held, "merges": _read(beside).split("\n")[1:]}


def _read(path: str | Path) -> str:
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"no vocabulary at {path}: fetch it, or fix the path")
    try:
        data = path.read_bytes()
        return (gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data).decode()
    except (OSError, EOFError, ValueError) as error:
        raise ValueError(f"{path} is damaged or no text ({error}): fetch it again") from error


def _library():
    try:
        import tokenizers  # an extra: nothing but published weights needs it
    except ImportError as error:
        raise ValueError("published weights read byte pairs, for which a library is missing: "
                         "pip install 'guidebook[pretrained]'") from error  # fmt: skip
    return tokenizers
