"""python -m ldm sample | img2img | inpaint | upscale | paint | retrieve | train... | study"""

from common import command
from ldm import inpaint, retrieval, sample, semantic, study, train, train_autoencoder, upscale

COMMANDS = {
    "sample": (sample.SampleConfig, sample.main),
    "img2img": (sample.Img2ImgConfig, sample.img2img),
    "inpaint": (inpaint.InpaintConfig, inpaint.main),
    "upscale": (upscale.UpscaleConfig, upscale.main),
    "paint": (semantic.PaintConfig, semantic.main),
    "retrieve": (retrieval.RetrieveConfig, retrieval.main),
    "train-autoencoder": (train_autoencoder.AutoencoderTrainConfig, train_autoencoder.main),
    "train": (train.TrainConfig, train.main),
    "train-retrieval": (train.RetrievalTrainConfig, train.main),
    "study": (study.StudyConfig, study.main),
}

if __name__ == "__main__":
    command.run("ldm", COMMANDS)
