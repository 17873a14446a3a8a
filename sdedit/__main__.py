"""python -m sdedit paint | edit | compose | study | train | train-gan | train-encoder"""

from common import command
from sdedit import gan, invert, sample, study, train

COMMANDS = {
    "paint": (sample.PaintConfig, sample.paint),
    "edit": (sample.EditConfig, sample.edit),
    "compose": (sample.ComposeConfig, sample.compose),
    "train": (train.TrainConfig, train.main),
    "train-gan": (gan.GanTrainConfig, gan.main),
    "train-encoder": (invert.EncoderTrainConfig, invert.main),
    "study": (study.StudyConfig, study.main),
}

if __name__ == "__main__":
    command.run("sdedit", COMMANDS)
