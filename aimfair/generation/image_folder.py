"""The folder of a set of images, all of one provenance."""

import shutil
from pathlib import Path

from aimfair.base.errors import AimfairError
from aimfair.base.files import is_temporary
from aimfair.generation.manifest import IMAGES, MANIFEST
from aimfair.generation.provenance import JOB, Provenance


def settle(folder: Path, provenance: Provenance, *, overwrite: bool) -> None:
    """Prepares a folder for images of this provenance; existing ones are kept.

    Args:
        overwrite: whether images of another provenance may be removed.

    Raises:
        AimfairError: there are such images and they may not be removed, or the folder has other contents.
    """
    folder = folder.resolve()  # a link to a larger disk stays one
    doomed = folder.with_name(f".{folder.name}.removed")
    if doomed.exists():
        shutil.rmtree(doomed)
    path = folder / JOB
    if path.exists() and (found := Provenance.read(folder)) != provenance:
        if not overwrite:
            reason = f"{JOB} is damaged" if found is None else found.difference(provenance)
            raise AimfairError(
                f"{folder}: its images are of another job: {reason}; go back to that, or make them again with"
                " --overwrite"
            )
        folder.rename(doomed)  # atomically: a partly removed folder would look like an interrupted job
        shutil.rmtree(doomed)
    folder.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        if foreign := sorted(entry.name for entry in folder.iterdir() if not is_temporary(entry.name)):
            raise AimfairError(
                f"{folder}: holds {', '.join(foreign[:3])} but no {JOB}, so it is not a folder of synthetic images; "
                "move it away"
            )
        provenance.write(folder)
    (folder / IMAGES).mkdir(exist_ok=True)


def outputs(folder: Path) -> list[Path]:
    """The files and folders of a finished set."""
    return [folder / JOB, folder / MANIFEST, folder / IMAGES]
