"""Certificates: a private CA and a leaf for the simulator's own addresses, made at start and kept while valid.

The CA's key is thrown away after it has signed the leaf, so trusting the CA file lets nobody sign anything else.
"""

from __future__ import annotations

import ipaddress
import os
import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

CA_FILE, CHAIN_FILE, KEY_FILE = "simulator-ca.pem", "simulator-chain.pem", "simulator-key.pem"
_LIFE = timedelta(days=365)
_RENEW_BEFORE = timedelta(days=7)


def ensure_certificates(directory: Path, hosts: tuple[str, ...]) -> Path:
    """Makes CA, chain and key (mode 0600) in `directory` unless good ones are there; returns the CA file's path."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    ca_path = directory / CA_FILE
    if _still_good(directory, hosts):
        return ca_path
    now = datetime.now(UTC)
    ca_key, leaf_key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    ca = _authority(ca_key, now)
    leaf = _leaf(leaf_key, ca, ca_key, hosts, now)
    pem = serialization.Encoding.PEM
    key_pem = leaf_key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    _write(directory / KEY_FILE, key_pem, 0o600)
    _write(directory / CHAIN_FILE, leaf.public_bytes(pem) + ca.public_bytes(pem), 0o644)
    _write(ca_path, ca.public_bytes(pem), 0o644)
    return ca_path


def server_context(directory: Path, *, alpn: tuple[str, ...]) -> ssl.SSLContext:
    """Returns the TLS context of a server that shows the certificates of `directory` and offers those protocols."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(directory / CHAIN_FILE, directory / KEY_FILE)
    context.set_alpn_protocols(list(alpn))
    context.num_tickets = 0  # no resumption: every connection of a test starts alike
    return context


def _names(hosts: tuple[str, ...]) -> list[x509.GeneralName]:
    names: list[x509.GeneralName] = []
    for host in dict.fromkeys(("localhost", "127.0.0.1", "::1", *hosts)):
        try:
            names.append(x509.IPAddress(ipaddress.ip_address(host)))
        except ValueError:
            names.append(x509.DNSName(host))
    return names


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, now: datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + _LIFE)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _usage(*, ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not ca,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=ca,
        crl_sign=ca,
        encipher_only=False,
        decipher_only=False,
    )


def _authority(key: ec.EllipticCurvePrivateKey, now: datetime) -> x509.Certificate:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Hyperleap simulator CA")])
    builder = _builder(name, name, key.public_key(), now)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    return builder.add_extension(_usage(ca=True), critical=True).sign(key, hashes.SHA256())


def _leaf(
    key: ec.EllipticCurvePrivateKey,
    ca: x509.Certificate,
    ca_key: ec.EllipticCurvePrivateKey,
    hosts: tuple[str, ...],
    now: datetime,
) -> x509.Certificate:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Hyperleap simulator")])
    issuer_id = x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key())
    return (
        _builder(name, ca.subject, key.public_key(), now)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(ca=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName(_names(hosts)), critical=False)
        .add_extension(issuer_id, critical=False)
        .sign(ca_key, hashes.SHA256())
    )


def _still_good(directory: Path, hosts: tuple[str, ...]) -> bool:
    try:
        ca = x509.load_pem_x509_certificate((directory / CA_FILE).read_bytes())
        leaf = x509.load_pem_x509_certificates((directory / CHAIN_FILE).read_bytes())[0]
        key = serialization.load_pem_private_key((directory / KEY_FILE).read_bytes(), password=None)
        leaf.verify_directly_issued_by(ca)
        named = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (OSError, ValueError, TypeError, IndexError, InvalidSignature, x509.ExtensionNotFound):
        return False
    soonest_end = min(ca.not_valid_after_utc, leaf.not_valid_after_utc)
    return (
        key.public_key() == leaf.public_key()
        and soonest_end - datetime.now(UTC) > _RENEW_BEFORE
        and all(name in list(named) for name in _names(hosts))
    )


def _write(path: Path, data: bytes, mode: int) -> None:
    """Replaces a file in one step, so that two simulators that start at once never read half of one."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        file.write(data)
    temporary.replace(path)
