"""The encryption of push messages (RFC 8291, RFC 8188) and the server's identity (RFC 8292).

The primitives are those of ``cryptography``. It is imported at the first use, because its import
takes longer than the rest of the server's start.
"""

from __future__ import annotations

import base64
import hmac
import importlib
import os
import secrets
import struct
from typing import TYPE_CHECKING

from ..codec import dumps

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric import ec

RECORD_BYTES = 4096
"""The size of the one record of a message. Push services refuse longer messages."""
MAX_PUSH_BYTES = RECORD_BYTES - (16 + 4 + 1 + 65) - 16 - 1
"""The largest message: of the record without its header, the tag and the mark of the end."""
PUBLIC_KEY_BYTES = 65
AUTH_BYTES = 16
TOKEN_SECS = 12 * 3600
"""The lifetime of a signed token. RFC 8292 allows a day."""
_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
"""The number of points of P-256: a private key is a smaller number, and not 0."""


def base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def from_base64url(text: str) -> bytes:
    """Decode base64url, with or without padding, or base64, as some browsers' libraries write it.

    Raises:
        ValueError: *text* is neither.
    """
    text = text.rstrip("=").replace("+", "-").replace("/", "_")
    if not text.isascii() or not text.replace("-", "").replace("_", "").isalnum():
        raise ValueError("not base64url")
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def new_private_key() -> bytes:
    """A random private key of P-256."""
    return (secrets.randbelow(_ORDER - 1) + 1).to_bytes(32, "big")


def preload() -> None:
    """Import the library, which takes a tenth of a second, in a thread for example."""
    importlib.import_module("cryptography.hazmat.primitives.asymmetric.ec")
    importlib.import_module("cryptography.hazmat.primitives.ciphers.aead")


def check_public_key(point: bytes) -> None:
    """Check that *point* is a public key of P-256.

    Raises:
        ValueError: it is not.
    """
    from cryptography.hazmat.primitives.asymmetric import ec

    if len(point) != PUBLIC_KEY_BYTES:
        raise ValueError("not an uncompressed point")
    ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), point)


def encrypt(
    message: bytes,
    receiver: bytes,
    auth: bytes,
    *,
    sender: bytes | None = None,
    salt: bytes | None = None,
) -> bytes:
    """Encrypt a message for one browser: ``aes128gcm`` with one record.

    Args:
        receiver: the browser's public key.
        auth: its secret.
        sender: a private key that is used once; random by default.
        salt: 16 bytes; random by default.
    """
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    if len(message) > MAX_PUSH_BYTES:
        raise ValueError("the message is too long")
    salt = salt or os.urandom(16)
    private = _key_pair(sender or new_private_key())
    sent = _public_point(private)
    shared = private.exchange(
        ec.ECDH(), ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), receiver)
    )
    secret = _hkdf(auth, shared, b"WebPush: info\0" + receiver + sent, 32)
    key = _hkdf(salt, secret, b"Content-Encoding: aes128gcm\0", 16)
    nonce = _hkdf(salt, secret, b"Content-Encoding: nonce\0", 12)
    header = salt + struct.pack("!IB", RECORD_BYTES, len(sent)) + sent
    return header + AESGCM(key).encrypt(nonce, message + b"\x02", None)


class ServerIdentity:
    """The server's key pair (VAPID), by which push services recognise it.

    Args:
        private_key: 32 bytes.
        contact: ``mailto:`` or ``https:`` address of the operator, or None.
    """

    def __init__(self, private_key: bytes, contact: str | None) -> None:
        self._private_key = private_key
        self._contact = contact
        self._tokens: dict[str, tuple[float, str]] = {}

    @property
    def public_key(self) -> str:
        """The public key as ``applicationServerKey``."""
        return base64url(_public_point(_key_pair(self._private_key)))

    def authorization(self, origin: str, now: float) -> str:
        """The header ``Authorization`` for a push service.

        Args:
            now: unix seconds.
        """
        made_at, header = self._tokens.get(origin, (0.0, ""))
        if now - made_at > TOKEN_SECS / 2:
            header = f"vapid t={self._token(origin, now)}, k={self.public_key}"
            self._tokens = {
                known: token
                for known, token in self._tokens.items()
                if now - token[0] < TOKEN_SECS / 2
            }
            self._tokens[origin] = now, header
        return header

    def _token(self, origin: str, now: float) -> str:
        from cryptography.hazmat.primitives import hashes
        from cryptography.hazmat.primitives.asymmetric import ec
        from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

        claims = {"aud": origin, "exp": int(now + TOKEN_SECS)}
        if self._contact is not None:
            claims["sub"] = self._contact
        parts = ({"typ": "JWT", "alg": "ES256"}, claims)
        signed = ".".join(base64url(dumps(part)) for part in parts)
        der = _key_pair(self._private_key).sign(signed.encode(), ec.ECDSA(hashes.SHA256()))
        r, s = decode_dss_signature(der)
        return f"{signed}.{base64url(r.to_bytes(32, 'big') + s.to_bytes(32, 'big'))}"


def _key_pair(private_key: bytes) -> ec.EllipticCurvePrivateKey:
    from cryptography.hazmat.primitives.asymmetric import ec

    return ec.derive_private_key(int.from_bytes(private_key, "big"), ec.SECP256R1())


def _public_point(private: ec.EllipticCurvePrivateKey) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    return private.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)


def _hkdf(salt: bytes, secret: bytes, info: bytes, length: int) -> bytes:
    """HKDF with SHA-256, for a length of one block at most."""
    extracted = hmac.digest(salt, secret, "sha256")
    return hmac.digest(extracted, info + b"\x01", "sha256")[:length]
