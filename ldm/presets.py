"""First stages and latent models by name: tiny (tests), small (the shipped ones), paper."""

from dataclasses import replace

from common.scenes.captions import VOCABULARY
from common.text import TextConfig
from ldm.autoencoder import IDENTITY, AutoencoderConfig
from ldm.model import STABLE, LdmConfig

# First stages. The released ones, of which kl-f8 is Stable Diffusion's.
PAPER_KL = AutoencoderConfig()
PAPER_VQ = replace(PAPER_KL, kind="vq")

# Paper: small and tiny differ in scale and in the space-to-depth stem, which brings the picture at
# once to the resolution of the latent; only the last convolution sees every pixel.
SMALL_KL = AutoencoderConfig(
    size=64, channels=4, codes=256, width=64, multipliers=(1,), blocks=1, groups=8, patch=4
)
TINY_KL = replace(SMALL_KL, size=32, codes=16, width=8, multipliers=(1, 1), groups=4, patch=2)


def of_factor(f: int, kind: str = "kl") -> AutoencoderConfig:
    """The small first stage of factor f in 1, 2, 4, 8, 16: the smaller z, the more channels."""
    if f == 1:
        return replace(IDENTITY, size=SMALL_KL.size)
    patch, width, multipliers, channels = {
        2: (2, 32, (1,), 2), 4: (4, 64, (1,), 4), 8: (4, 64, (1, 2), 8), 16: (4, 64, (1, 2, 2), 16)
    }[f]  # fmt: skip
    return replace(SMALL_KL, kind=kind, patch=patch, width=width, multipliers=multipliers,
                   channels=channels)  # fmt: skip


FIRST_STAGES = {
    "tiny": TINY_KL,
    "tiny_vq": replace(TINY_KL, kind="vq"),
    "small": SMALL_KL,
    "small_f2": of_factor(2),
    "small_f8": of_factor(8),
    "small_f16": of_factor(16),
    "small_vq": of_factor(4, "vq"),
    "small_vq_f8": of_factor(8, "vq"),
    "paper_kl_f4": replace(PAPER_KL, channels=3, multipliers=(1, 2, 4)),
    "paper_kl_f8": PAPER_KL,
    "paper_kl_f16": replace(PAPER_KL, channels=16, multipliers=(1, 1, 2, 2, 4), attention=(16,)),
    "paper_kl_f32": replace(
        PAPER_KL, channels=64, multipliers=(1, 1, 2, 2, 4, 4), attention=(16, 32)
    ),
    "paper_vq_f4": replace(PAPER_VQ, codes=8192, channels=3, multipliers=(1, 2, 4)),
    "paper_vq_f8": replace(PAPER_VQ, multipliers=(1, 2, 2, 4), attention=(8,)),
}

# Latent models. text2img-large, cin256-v2, the inpainting one, and that of celeba, ffhq and beds.
PAPER = LdmConfig()
PAPER_CLASS = replace(
    PAPER,
    first_stage=FIRST_STAGES["paper_vq_f4"],
    latent_scale=1.0,
    beta_min=0.0015,
    beta_max=0.0195,
    condition="class",
    classes=1000,
    unet=replace(
        STABLE, out_channels=3, width=192, multipliers=(1, 2, 3, 5), attention=(2, 4, 8), heads=1
    ),
)
PAPER_FACES = replace(
    PAPER_CLASS,
    condition="none",
    unet=replace(PAPER_CLASS.unet, width=224, multipliers=(1, 2, 3, 4), heads=None, head_dim=32,
                 context=None),
)  # fmt: skip
PAPER_INPAINT = replace(
    PAPER_FACES,
    first_stage=replace(FIRST_STAGES["paper_vq_f4"], middle_attention=False),
    beta_max=0.0205,
    inputs=("masked",),
    unet=replace(PAPER_FACES.unet, width=256, heads=8, updown="resblock"),
)

# Paper: small differs in scale, in the text encoder, in predicting the velocity (README.md, "The
# shipped weights"), and in dropping captions: guidance needs it, and the published training code
# has nothing of it.
SMALL = LdmConfig(
    size=64,
    first_stage=SMALL_KL,
    latent_scale=1.0,
    prediction="velocity",
    unet=replace(STABLE, width=40, multipliers=(1, 1, 1), blocks=1, attention=(2, 4), heads=None,
                 head_dim=20, groups=8),
    text=TextConfig(vocabulary=len(VOCABULARY) + 1, length=24, width=128, layers=2, heads=4,
                    order=True),
    inner=None,
    class_width=128,
)  # fmt: skip
# What the study trains many of: a stem of 2 x 2 latent positions, which for other factors becomes
# one of as many pixels (`with_first_stage`), so that all see as many places in as much time. They
# predict x0: what so coarse a stem gets wrong is then blur, in the velocity it is flecks.
SMALL_CLASS = replace(
    SMALL,
    prediction="x0",
    condition="class",
    unet=replace(SMALL.unet, width=48, multipliers=(1, 1), attention=(2,), head_dim=24, patch=2),
)
TINY = replace(
    SMALL,
    size=32,
    first_stage=TINY_KL,
    prediction="x0",  # a stem as coarse
    unet=replace(
        SMALL.unet, width=16, multipliers=(1,), attention=(1,), head_dim=8, groups=4, patch=2
    ),
    text=replace(SMALL.text, width=32, layers=1),
    class_width=32,
)


def concatenating(base: LdmConfig, name: str) -> LdmConfig:
    """A model that reads nothing, but sees a picture: its attention is to itself alone."""
    return replace(base, condition="none", inputs=(name,), unet=replace(base.unet, context=None))


MODELS = {
    "tiny": TINY,
    "tiny_class": replace(TINY, condition="class"),
    "tiny_inpaint": concatenating(TINY, "masked"),
    "tiny_upscale": concatenating(TINY, "low_res"),
    "tiny_semantic": concatenating(TINY, "semantic"),
    "tiny_retrieval": replace(TINY, condition="neighbours", class_width=16),
    "small": SMALL,
    "small_class": SMALL_CLASS,
    "small_inpaint": concatenating(SMALL, "masked"),
    "small_upscale": concatenating(SMALL, "low_res"),
    "small_semantic": concatenating(SMALL, "semantic"),
    "small_retrieval": replace(SMALL, condition="neighbours"),
    "paper": PAPER,
    "paper_class": PAPER_CLASS,
    "paper_faces": PAPER_FACES,
    "paper_inpaint": PAPER_INPAINT,
}
