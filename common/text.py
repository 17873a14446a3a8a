"""Words to numbers, and the text side of GLIDE: a closed vocabulary and a transformer."""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from common.nn import Transformer, dense, time_embedding, torch_init

PAD = 0


class WordTokenizer:
    """Splits at blanks and looks words up in a closed vocabulary; ids from 1, 0 is padding.

    There is no begin or end token (as in GLIDE); an empty text is all padding, and that is the
    null caption. The last place always stays padding: GLIDE reads the caption off it.
    """

    def __init__(self, vocabulary: Sequence[str], length: int):
        self.length = length
        self.words = tuple(vocabulary)
        self.ids = {word: i + 1 for i, word in enumerate(self.words)}

    @property
    def size(self) -> int:
        """Number of ids, padding included."""
        return len(self.words) + 1

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Texts -> (B, length) int32. ValueError names unknown words and the nearest known ones."""
        tokens = np.full((len(texts), self.length), PAD, np.int32)
        for row, text in zip(tokens, texts, strict=True):
            words = text.lower().replace(",", " ").replace(".", " ").split()
            for word in words:
                if word not in self.ids:
                    near = difflib.get_close_matches(word, self.words, n=3, cutoff=0.5)
                    hint = f"did you mean {' or '.join(near)}" if near else "see --help for words"
                    raise ValueError(f"unknown word {word!r} in the prompt; {hint}?")
            if len(words) > self.length - 1:
                raise ValueError(
                    f"the prompt has {len(words)} words, at most {self.length - 1} fit; shorten it"
                )
            row[: len(words)] = [self.ids[word] for word in words]
        return tokens

    def decode(self, tokens: np.ndarray) -> list[str]:
        """(B, length) -> texts."""
        return [" ".join(self.words[i - 1] for i in row if i != PAD) for row in np.asarray(tokens)]


@dataclass(frozen=True)
class TextConfig:
    """GLIDE's text transformer; defaults are the released base model's."""

    vocabulary: int = 50_257  # ids, padding included
    length: int = 128  # tokens; positions without a word are padding, which is attended to
    width: int = 512
    layers: int = 16
    heads: int = 8
    order: bool = False  # ours, for short trainings: the order of words is given, not learned
    dtype: str = "float32"


class TextEncoder(nn.Module):
    """tokens (B, L) int32 -> (tokens (B, L, width), pooled (B, out_dim)).

    Bidirectional, no mask; at padding the word and its position are replaced by a learned vector
    per position, so a null caption is a thing that is learned. pooled is a linear map of the last
    position, which is always padding. GLIDE, section 4 and text2im_model.py.
    """

    config: TextConfig
    out_dim: int

    @nn.compact
    def __call__(self, tokens: jax.Array) -> tuple[jax.Array, jax.Array]:
        c = self.config
        # How it starts decides how soon colours are learned. Words start large and places small
        # (GLIDE: N(0, 1) and nothing); padding starts at zero, so that the last place, which reads
        # the caption, is at first nothing but the words; and pooled starts at zero, so that words
        # not yet understood are not noise in the time embedding, which training would silence.
        normal, places = nn.initializers.normal, (c.length, c.width)
        h = nn.Embed(c.vocabulary, c.width, dtype=c.dtype, embedding_init=normal(1.0))(tokens)
        if c.order:
            # Paper: nothing of the kind. Attention must first find that "red" stands before "ball",
            # and nothing asks it to as long as the picture cannot use it. After 12,000 steps a
            # caption was a bag of words: exchanging the colours of two objects changed an error of
            # 0.04 by 0.00001. With the words beside it in each word, 2,000 more made that 0.009.
            words = jnp.where((tokens == PAD)[..., None], 0, h)
            conv = nn.Conv(c.width, (3,), use_bias=False, dtype=c.dtype, kernel_init=torch_init,
                           name="neighbours")  # fmt: skip
            sinusoids = time_embedding(jnp.arange(c.length), c.width).astype(c.dtype)
            h = h + conv(words) + sinusoids[None]
        h = h + self.param("position", normal(0.02), places)[None].astype(c.dtype)
        padding = self.param("padding", nn.initializers.zeros, places)[None].astype(c.dtype)
        h = jnp.where((tokens == PAD)[..., None], padding, h)
        h = Transformer(c.layers, c.heads, dtype=c.dtype)(h)
        return h, dense(self.out_dim, c.dtype, zero=True, name="pooled")(h[:, -1])
