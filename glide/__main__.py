"""python -m glide train | sample | ..."""

import sys
import tyro
from glide.train import TrainConfig, main as train_main
if __name__ == "__main__":
    sys.argv.pop(1)
    train_main(tyro.cli(TrainConfig))
