"""python -m sdedit paint | edit | compose | train | study"""

from common import command
from sdedit import sample, study, train

COMMANDS = {
    "paint": (sample.PaintConfig, sample.paint),
    "edit": (sample.EditConfig, sample.edit),
    "compose": (sample.ComposeConfig, sample.compose),
    "train": (train.TrainConfig, train.main),
    "study": (study.StudyConfig, study.main),
}

if __name__ == "__main__":
    command.run("sdedit", COMMANDS)
