"""python -m glide demo | sample | train | study"""

from common import command
from glide import demo, sample, study, train

COMMANDS = {
    "demo": (demo.DemoConfig, demo.main),
    "sample": (sample.SampleConfig, sample.main),
    "train": (train.TrainConfig, train.main),
    "study": (study.StudyConfig, study.main),
}

if __name__ == "__main__":
    command.run("glide", COMMANDS)
