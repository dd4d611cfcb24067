"""A real broker behind locked doors: TLS everywhere, SCRAM, certificates and tokens, and Kafka's authorizer.

    with LockedBroker(directory, {"admin": "…", "run-learner": "…"}) as broker:
        KafkaConfig(bootstrap=broker.bootstrap, client=broker.scram("run-learner", "{env:PASSWORD}"))
        KafkaConfig(bootstrap=broker.tls_bootstrap, client=broker.certified("run-learner"))
        KafkaConfig(bootstrap=broker.bootstrap, client=broker.bearer("{file:/where/the/token/is}"))

Whoever no rule names may nothing; ``admin`` may everything. The node talks to itself with a certificate of its own, so
that its other ports are locked too. Tokens are Kafka's unsecured ones, which only tests may use.
"""

import base64
import ipaddress
import json
import time
from datetime import UTC, datetime, timedelta

import pytest

from pipelines.local.broker import Broker
from pipelines.local.ports import LOOPBACK, free_ports

ADMIN = "admin"
_NODE = "node"
_LOGIN = "org.apache.kafka.common.security"


class LockedBroker(Broker):
    """``bootstrap`` takes passwords and tokens, ``tls_bootstrap`` certificates.

    Args:
        directory: of the broker, and of the certificates below it.
        passwords: of its users, by name.
    """

    def __init__(self, directory, passwords):
        super().__init__(directory)
        (self.tls_port,) = free_ports(1)
        self.tls_bootstrap = f"{LOOPBACK}:{self.tls_port}"
        self._passwords = passwords
        self._authority = Authority(self.directory / "certificates")

    def scram(self, user, password):
        """``kafka.client`` of a user; the password as a configuration gives it."""
        return {**self._sasl("SCRAM-SHA-512"), "sasl_plain_username": user, "sasl_plain_password": password}

    def bearer(self, token):
        """``kafka.client`` of whoever a token names; the token as a configuration gives it."""
        return {**self._sasl("OAUTHBEARER"), "sasl_oauth_token": token}

    def certified(self, user):
        """``kafka.client`` of a user who has a certificate."""
        certificate, key = self._authority.issue(user)
        return {"security_protocol": "SSL", "ssl_cafile": str(self._authority.file), "ssl_certfile": str(certificate),
                "ssl_keyfile": str(key)}  # fmt: skip

    def _sasl(self, mechanism):
        return {"security_protocol": "SASL_SSL", "ssl_cafile": str(self._authority.file), "sasl_mechanism": mechanism}

    def _format_arguments(self):
        users = [f"SCRAM-SHA-512=[name={name},password={password}]" for name, password in self._passwords.items()]
        return [*super()._format_arguments(), *(word for user in users for word in ("--add-scram", user))]

    def _properties(self):
        certificate, key = self._authority.issue(_NODE)
        store = self.directory / "node.pem"
        store.write_bytes(key.read_bytes() + certificate.read_bytes())
        controller = f"CONTROLLER://{LOOPBACK}:{self._controller_port}"
        listeners = f"SASL_SSL://{self.bootstrap},SSL://{self.tls_bootstrap},{controller}"
        return super()._properties() | {
            "listeners": listeners,
            "advertised.listeners": listeners,
            "listener.security.protocol.map": "SASL_SSL:SASL_SSL,SSL:SSL,CONTROLLER:SSL",
            "inter.broker.listener.name": "SSL",
            "ssl.keystore.type": "PEM",
            "ssl.keystore.location": store,
            "ssl.truststore.type": "PEM",
            "ssl.truststore.location": self._authority.file,
            "listener.name.ssl.ssl.client.auth": "required",
            "listener.name.controller.ssl.client.auth": "required",
            "ssl.principal.mapping.rules": "RULE:^CN=(.*)$/$1/",
            "sasl.enabled.mechanisms": "SCRAM-SHA-512,OAUTHBEARER",
            "listener.name.sasl_ssl.scram-sha-512.sasl.jaas.config": f"{_LOGIN}.scram.ScramLoginModule required;",
            "listener.name.sasl_ssl.oauthbearer.sasl.jaas.config": (
                f'{_LOGIN}.oauthbearer.OAuthBearerLoginModule required unsecuredLoginStringClaim_sub="{_NODE}";'
            ),
            "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
            "super.users": f"User:{_NODE};User:{ADMIN}",
        }


def unsecured_token(user, lasts_s=3600):
    """A token that says whose it is and is signed by nobody."""
    now = int(time.time())
    parts = {"alg": "none"}, {"sub": user, "iat": now, "exp": now + lasts_s}
    return ".".join(base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode() for part in parts) + "."


class Authority:
    """Issues certificates that everybody here trusts, for a day."""

    def __init__(self, directory):
        pytest.importorskip("cryptography", reason="certificates are made with it; make .venv has it on x86-64 Linux")
        self._directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        self._key, self._certificate = _signed("authority")
        self.file = directory / "authority.pem"
        self.file.write_bytes(_pem(self._certificate))

    def issue(self, name):
        """Files with a certificate and its key."""
        certificate, key = (self._directory / f"{name}.{kind}.pem" for kind in ("certificate", "key"))
        if not certificate.exists():
            private, signed = _signed(name, self._key, self._certificate)
            certificate.write_bytes(_pem(signed))
            key.write_bytes(_private_pem(private))
        return certificate, key


def _signed(name, issuer_key=None, issuer=None):
    """A key and its certificate, signed by the issuer, or by itself as an authority."""
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.x509.oid import NameOID

    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    signer = issuer_key or key
    builder = (
        x509.CertificateBuilder(issuer.subject if issuer else subject, subject, key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(LOOPBACK))]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
    )
    return key, builder.sign(signer, SHA256())


def _pem(certificate):
    from cryptography.hazmat.primitives.serialization import Encoding

    return certificate.public_bytes(Encoding.PEM)


def _private_pem(key):
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
