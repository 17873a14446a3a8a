"""tau_theta: the text transformer that is trained together with the latent U-Net."""

import flax.linen as nn
import jax

from common.nn import attention, dense
from common.text import TextConfig


class TextTransformer(nn.Module):
    """tokens (B, L) int32 -> (B, L, width), all of them; padding is a word like any other.

    Token + learned position, pre-LN blocks without a mask, final LN. Attention is `inner` wide,
    less than the tokens (8 heads of 64 beside 1280), its q, k and v have no bias.
    latent-diffusion's x_transformer.py; Rombach et al. 2022, E.2.1.
    """

    config: TextConfig
    inner: int

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        c, normal = self.config, nn.initializers.normal(0.02)
        norm = lambda h: nn.LayerNorm(epsilon=1e-5, dtype="float32")(h)  # noqa: E731
        h = nn.Embed(c.vocabulary, c.width, dtype=c.dtype, embedding_init=normal)(tokens)
        h = h + self.param("position", normal, (c.length, c.width))[None].astype(c.dtype)
        for i in range(c.layers):
            n = norm(h)
            q, k, v = (dense(self.inner, c.dtype, bias=False, name=f"{p}_{i}")(n) for p in "qkv")
            h = h + dense(c.width, c.dtype, name=f"out_{i}")(attention(q, k, v, c.heads))
            n = dense(4 * c.width, c.dtype, name=f"mlp_in_{i}")(norm(h))
            n = nn.gelu(n, approximate=False)
            h = h + dense(c.width, c.dtype, name=f"mlp_out_{i}")(n)
        return norm(h)
