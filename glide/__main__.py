"""python -m glide demo | sample | inpaint | search | study | train | train-...

train-classes, train-classifier, train-clip: the other networks of the paper.
"""

from common import command
from glide import classes, classifier, clip, demo, inpaint, sample, search, study, train

COMMANDS = {
    "demo": (demo.DemoConfig, demo.main),
    "sample": (sample.SampleConfig, sample.main),
    "inpaint": (inpaint.InpaintConfig, inpaint.main),
    "train": (train.GlideTrainConfig, train.main),
    "train-classes": (classes.ClassesTrainConfig, classes.main),
    "train-classifier": (classifier.ClassifierTrainConfig, classifier.main),
    "train-clip": (clip.ClipTrainConfig, clip.main),
    "search": (search.SearchConfig, search.main),
    "study": (study.StudyConfig, study.main),
}

if __name__ == "__main__":
    command.run("glide", COMMANDS)
