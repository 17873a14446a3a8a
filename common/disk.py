"""Files that are there whole or not at all, also when the disk is full."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


class SaveError(OSError):
    """Something could not be written; the message is one line. What was there before is whole."""


@contextlib.contextmanager
def saving(what: str) -> Iterator[None]:
    """A write that fails within (full disk, no permission) becomes a SaveError that names `what`.

    Of orbax such a failure is a ValueError, whose last words are the reason.
    """
    try:
        yield
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error).split(": ")[-1].split(" [")[0]
        reason = " ".join(reason.split()) or type(error).__name__
        raise SaveError(f"cannot save {what}: {reason}; what was saved before is whole") from error


def write(path: Path, data: bytes) -> None:
    """Write a file that is there whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(path.name + ".tmp")
    try:
        with open(draft, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)
    except OSError:
        draft.unlink(missing_ok=True)  # half of it would only fill the disk
        raise
