"""The configuration as it is on the disk: written once, by `founding.py`; read by whoever opens a repository."""

import errno

from repository.errors import NoRepositoryError, VolumeError
from repository.format.config import CONFIG_MAX_BYTES, CONFIG_NAME, Config, decode_config
from repository.storage.volume import Volume


def read_config(volume: Volume) -> Config:
    """The configuration. Raises NoRepositoryError where there is none, or it is damaged."""
    try:
        with volume.open(CONFIG_NAME) as handle:
            data = handle.pread(CONFIG_MAX_BYTES, 0)
    except VolumeError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            raise NoRepositoryError(
                f"There is no repository in '{volume.root}'; ballast init {volume.root} makes one."
            ) from error
        raise
    config = decode_config(data)
    volume.believe(config.volume_class)
    return config
