"""Versions that an evaluation wants to stay in the weight store: the best one, and the one that is asked.

    Holds ──empty file {root}/held/{version}.{evaluation}──► the learner's prune leaves the version alone

The learner is told nothing else and waits for nobody. One file a version and evaluation, so that nothing is
ever written over; there are two of an evaluation at most, and its next start clears what it left behind.
"""

from fsspec.core import url_to_fs

from schemas.weights import held_versions, hold_path, is_stored
from trainers.disk import disk_errors


class Holds:
    """What one evaluation holds of a store.

    Args:
        root: of the store, as ``weights.root`` says.
        evaluation: its name.
    """

    def __init__(self, root: str, evaluation: str) -> None:
        self._files, self._root = url_to_fs(root)
        self._evaluation = evaluation

    def hold_only(self, *versions: int | None) -> None:
        """Holds these, and lets go of all others; null stands for none.

        Raises:
            DiskError: there is no room or no permission.
        """
        wanted = {version for version in versions if version}
        held = held_versions(self._files, self._root).get(self._evaluation, set())
        with disk_errors("hold on a weight version", self._root):
            for version in wanted - held:
                self._files.makedirs(f"{self._root}/held", exist_ok=True)
                self._files.pipe_file(hold_path(self._root, version, self._evaluation), b"")
            for version in held - wanted:
                self._files.rm(hold_path(self._root, version, self._evaluation))

    def has(self, version: int) -> bool:
        """Whether the store still has the version."""
        return is_stored(self._files, self._root, version)
