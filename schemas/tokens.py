"""Tokens of OAUTHBEARER: looked up again for every connection, so that one that is renewed in its file is taken up.

    kafka.client.sasl_oauth_token = "{file:/var/run/secrets/kafka/token}" ──► token_provider ──► kafka-python

kafka-python is imported when a provider is made.
"""

from typing import Any, Final

from schemas.secrets import reveal

TOKEN: Final = "sasl_oauth_token"  # noqa: S105 - the name of a key
"""Of ``kafka.client``; not one of kafka-python's, which takes an object."""


def token_provider(reference: str) -> Any:
    """What kafka-python asks for a token whenever it connects or has to authenticate again.

    Args:
        reference: where the token is, such as ``{file:PATH}``.

    Raises:
        ConfigError: it is not there. Later, of ``token()``, too: the connection then fails with that.
    """
    from kafka.net.sasl.oauth import AbstractTokenProvider

    class Provider(AbstractTokenProvider):  # type: ignore[misc]
        """Holds no token."""

        def token(self) -> str:
            """As it is there now."""
            return str(reveal(f"kafka.client.{TOKEN}", reference))

    provider = Provider()
    provider.token()
    return provider
