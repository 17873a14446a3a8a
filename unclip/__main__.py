"""python -m unclip sample | vary | interpolate | text-diff | study | train | train-...

train-prior, train-ar-prior, train-upsampler: what stands before and behind the decoder.
"""

from common import command
from unclip import edit, sample, study, train, upsampler

COMMANDS = {
    "sample": (sample.SampleConfig, sample.main),
    "vary": (edit.VaryConfig, edit.vary_main),
    "interpolate": (edit.InterpolateConfig, edit.interpolate_main),
    "text-diff": (edit.TextDiffConfig, edit.text_diff_main),
    "study": (study.StudyConfig, study.main),
    "train": (train.DecoderTrainConfig, train.main),
    "train-prior": (train.PriorTrainConfig, train.train_prior),
    "train-ar-prior": (train.ArTrainConfig, train.train_ar_prior),
    "train-upsampler": (upsampler.UpsamplerTrainConfig, upsampler.main),
}

if __name__ == "__main__":
    command.run("unclip", COMMANDS)
