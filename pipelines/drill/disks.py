"""Small disks that can be filled: a tmpfs each for the checkpoints and the weight store."""

import os
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Final, Self

_SIZE_MIB: Final = 64
_BALLAST: Final = ".ballast"
_MOUNT: Final = "/bin/mount"
_UNMOUNT: Final = "/bin/umount"


class SmallDisk:
    """A directory on a file system of its own, or an ordinary one where mounting is not allowed.

    Attributes:
        directory: where it is.
        is_small: whether it can be filled without filling anything else.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.is_small = False

    def __enter__(self) -> Self:
        self.directory.mkdir(parents=True, exist_ok=True)
        command = [_MOUNT, "-t", "tmpfs", "-o", f"size={_SIZE_MIB}m", "tmpfs", str(self.directory)]
        with suppress(FileNotFoundError):
            self.is_small = subprocess.run(command, capture_output=True, check=False).returncode == 0
        return self

    def __exit__(self, *_: object) -> None:
        if self.is_small:
            subprocess.run([_UNMOUNT, "--lazy", str(self.directory)], capture_output=True, check=False)

    def fill(self) -> None:
        """Takes all the room there is."""
        with (self.directory / _BALLAST).open("wb") as ballast:
            while (free := self.free_bytes()) > 0:
                with suppress(OSError):  # somebody was faster, and took some of it
                    os.posix_fallocate(ballast.fileno(), os.fstat(ballast.fileno()).st_size, free)

    def free_bytes(self) -> int:
        """Room left."""
        state = os.statvfs(self.directory)
        return state.f_bavail * state.f_bsize

    def empty(self) -> None:
        """Gives the room back."""
        (self.directory / _BALLAST).unlink(missing_ok=True)
