"""python -m glide demo | sample | inpaint | train | train-classes | train-classifier | study"""

from common import command
from glide import classes, classifier, demo, inpaint, sample, study, train

COMMANDS = {
    "demo": (demo.DemoConfig, demo.main),
    "sample": (sample.SampleConfig, sample.main),
    "inpaint": (inpaint.InpaintConfig, inpaint.main),
    "train": (train.TrainConfig, train.main),
    "train-classes": (classes.ClassesTrainConfig, classes.main),
    "train-classifier": (classifier.ClassifierTrainConfig, classifier.main),
    "study": (study.StudyConfig, study.main),
}

if __name__ == "__main__":
    command.run("glide", COMMANDS)
