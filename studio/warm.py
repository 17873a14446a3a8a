"""What the tabs need is compiled before somebody asks for it."""

import multiprocessing
import os

import numpy as np

from common import devices
from common.scenes import scene
from common.scenes.render import render
from studio import edits, jobs

WORDS = "a red ball", 3.0, 0  # of the pictures that are drawn to compile


def up() -> None:
    """Compile what the tabs need; it stays on disk for the next start.

    The first tab's here, the others' in a process that gives way: compiling cannot be interrupted,
    and somebody may be waiting for a picture.
    """
    if not jobs.Guidance.missing():
        next(jobs.Guidance(*WORDS).frames())
    jobs.reading(jobs.BLANK)  # its first reading takes seconds, too
    multiprocessing.get_context("spawn").Process(target=others, daemon=True).start()


def others() -> None:
    """Compile for all tabs but the first, with what nobody else needs of the processor."""
    os.nice(19)
    devices.start()
    small, large = (render([scene.draw_scene(np.random.default_rng(0))], s) for s in (32, 64))
    hole = np.zeros((*small.shape[1:3], 1), bool)
    for job in (jobs.Inpaint(*WORDS, small[0], hole), edits.Latents(*WORDS),
                edits.Variation(small, 0.5, 0), edits.Strokes(*WORDS, 0.5, small[0]),
                edits.Latents(*WORDS, 0.6, large[0]), jobs.ClipGuidance(*WORDS)):  # fmt: skip
        if not job.missing():
            next(job.frames())
