"""Which errors mean that a federation's store is away, or has no room: the same may succeed later.

File systems of fsspec raise what the libraries below them do, and not all of those know ``OSError``.
"""

from typing import Final

from schemas.errors import DiskError

_LIBRARIES: Final = ("aiobotocore", "aiohttp", "azure", "boto3", "botocore", "gcsfs", "google", "s3fs", "urllib3")


def is_away(error: Exception) -> bool:
    """Whether to try again; a programming error is not that."""
    return isinstance(error, OSError | DiskError) or type(error).__module__.split(".", 1)[0] in _LIBRARIES
