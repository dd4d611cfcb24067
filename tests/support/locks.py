"""One locked broker for a module of tests, and the credentials of every role of the run ``locked``."""

from uuid import uuid4

import pytest

from schemas.config import KafkaConfig
from schemas.roles import ROLES
from tests.support.locked_broker import ADMIN, LockedBroker, unsecured_token

NAME = "locked"
STRANGER = "stranger"
"""Has a password and no role."""


class Locks:
    """Passwords are words that stand nowhere else, each in a file.

    Attributes:
        passwords: by the names of users.
    """

    def __init__(self, directory):
        self._files = directory / "passwords"
        self._files.mkdir()
        users = [ADMIN, STRANGER, *(f"{NAME}-{role}" for role in ROLES)]
        self.passwords = {user: f"canary-{uuid4().hex}" for user in users}
        for user, password in self.passwords.items():
            (self._files / user).write_text(password)
        self.broker = LockedBroker(directory / "broker", self.passwords)

    def kafka(self, who, password=None):
        """How a role, or a user without one, connects; the password is in its file unless something else is said."""
        user = f"{NAME}-{who}" if who in ROLES else who
        client = self.broker.scram(user, password or f"{{file:{self._files / user}}}")
        return KafkaConfig(bootstrap=self.broker.bootstrap, client=client)

    def token(self, user, **more):
        """That names the user."""
        return unsecured_token(user, **more)


@pytest.fixture(scope="module")
def locks(tmp_path_factory):
    """A locked broker that runs."""
    found = Locks(tmp_path_factory.mktemp("locked"))
    with found.broker:
        yield found
