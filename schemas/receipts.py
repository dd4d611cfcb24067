"""Receipts: proof that whoever judges an answer was shown it.

    1.{expiry}.{HMAC-SHA256 over run, rollout, user and expiry}

The signature is RFC 2104 with SHA-256, base64url without padding. Whoever shows answers issues them, the feedback
pipeline checks them; both read the key from a file.
"""

import base64
import hashlib
import hmac
import json
import os
import secrets
from contextlib import suppress
from pathlib import Path
from typing import Final, Literal

from schemas.errors import ConfigError
from schemas.identity import RolloutId

KEY_NAME: Final = "receipts.key"
"""Of the file in a run's directory."""
_FORM: Final = "1"
_LEAST_KEY_BYTES: Final = 16
Finding = Literal["bad_receipt", "expired_receipt"]


def make_key(path: Path) -> None:
    """Writes a random key that only its owner may read, unless there is one already."""
    with suppress(FileExistsError), os.fdopen(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w") as file:
        file.write(f"{secrets.token_hex(32)}\n")


class Receipts:
    """Issues and checks receipts of one run.

    Args:
        key: 16 bytes or more, secret.
    """

    def __init__(self, key: bytes) -> None:
        self._key = key

    @classmethod
    def load(cls, path: str) -> "Receipts":
        """Reads the key from a file; white space around it does not count.

        Raises:
            ConfigError: the file cannot be read, or its key is too short.
        """
        try:
            key = Path(path).read_bytes().strip()
        except OSError as error:
            raise ConfigError(
                f"feedback.key_file = {path!r}: {error.strerror}; make one: openssl rand -hex 32 > FILE"
            ) from error
        if len(key) < _LEAST_KEY_BYTES:
            raise ConfigError(f"feedback.key_file = {path!r}: {len(key)} bytes, expected {_LEAST_KEY_BYTES} or more")
        return cls(key)

    def issue(self, rollout: RolloutId, user: str, expires_s: float) -> str:
        """A receipt for one user and one answer.

        Args:
            rollout: the answer.
            user: who saw it.
            expires_s: until when it counts, in seconds since 1970.
        """
        expiry = str(int(expires_s))
        return f"{_FORM}.{expiry}.{self._sign(rollout, user, expiry)}"

    def find_fault(self, receipt: str | None, rollout: RolloutId, user: str, now_s: float) -> Finding | None:
        """What is wrong with a receipt; null if nothing is. Takes the same time for every signature.

        Args:
            receipt: as it came.
            rollout: the answer that is judged.
            user: who judges.
            now_s: when the judgement came, in seconds since 1970.
        """
        parts = (receipt or "").split(".")
        form, expiry, signature = parts if len(parts) == 3 else ("", "", "")
        given = signature.encode(errors="replace")
        if not hmac.compare_digest(given, self._sign(rollout, user, expiry).encode()) or form != _FORM:
            return "bad_receipt"
        return "expired_receipt" if now_s > int(expiry) else None

    def _sign(self, rollout: RolloutId, user: str, expiry: str) -> str:
        signed = json.dumps([_FORM, str(rollout), user, expiry]).encode()
        digest = hmac.new(self._key, signed, hashlib.sha256).digest()
        return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()
