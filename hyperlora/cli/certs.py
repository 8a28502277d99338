"""`hyperlora certs`: what TLS, node authentication and the allow-list of clients need. Nothing is ever overwritten.

The certificates pass strict X.509 checks (RFC 5280), which clients make from Python 3.13 on.
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated

import typer
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.hashes import SHA384
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
    load_ssh_public_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from hyperlora.cli.output import CommandError, reports_errors, say
from hyperlora.storage.allow_list import AllowList, Permission, one_line_key
from hyperlora.storage.files import write_text

Key = ec.EllipticCurvePrivateKey
PRIVATE, PUBLIC = 0o600, 0o644
CA_NAME, CA_DAYS = "HyperLoRA federation CA", 3650
CLOCK_SKEW = timedelta(minutes=5)
Days = Annotated[int, typer.Option(min=1, help="Days until it expires.")]

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
    help="Certificates, node keys and the allow-list of clients.",
)


@app.command()
@reports_errors
def server(
    directory: Annotated[Path, typer.Argument(help="Folder for ca.crt, ca.key, server.pem and server.key.")],
    host: Annotated[list[str], typer.Option(help="A name or address that nodes call the server by; repeat it.")],
    days: Days = 365,
) -> None:
    """Make the server's certificate, and the CA that signs it where there is none yet."""
    certificate_path, key_path = directory / "server.pem", directory / "server.key"
    _refuse(certificate_path, key_path)
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    authority, authority_key = _authority(directory)
    key = _new_key()
    try:
        certificate = make_server_certificate(authority, authority_key, key.public_key(), hosts=host, days=days)
    except ValueError as error:
        raise CommandError(f"no certificate can be made for {', '.join(host)}: {error}") from error
    _write_pair(certificate_path, certificate, key_path, key)
    say(f"{certificate_path} is valid until {certificate.not_valid_after_utc.date()} for {', '.join(host)}")
    say(f"give every site {directory / 'ca.crt'}; keep {directory / 'ca.key'} and {key_path} to yourself")


@app.command()
@reports_errors
def node(
    path: Annotated[Path, typer.Argument(help="File for the private key; the public key is written to FILE.pub.")],
) -> None:
    """Make a site's node key; run this at the site, which sends the public half to the server's operator."""
    public = path.with_name(f"{path.name}.pub")
    _refuse(path, public)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    key = _new_key()
    _write(path, key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()), PRIVATE)
    _write(public, f"{one_line_key(key.public_key())} {path.name}\n".encode(), PUBLIC)
    say(f"send {public} to the operator of the server; keep {path} to yourself")


@app.command()
@reports_errors
def signing(path: Annotated[Path, typer.Argument(help="File for the private key.")]) -> None:
    """Make the key that run.signing-key names: it signs a run's checkpoints. Keep it out of the run directory."""
    _refuse(path)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    key = Ed25519PrivateKey.generate()
    _write(path, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()), PRIVATE)
    say(f"hyperlora run -c run.signing-key={path} signs its checkpoints and goes on from no others")


@app.command()
@reports_errors
def allow(
    allow_list: Annotated[Path, typer.Argument(help="The allow-list; made where there is none.")],
    client_id: Annotated[str, typer.Argument(help="The client that the key may speak for.")],
    public_key: Annotated[Path, typer.Argument(help="The site's public node key.")],
    days: Days = 365,
) -> None:
    """Bind a client-id to a site's node key, in the file that federation.allowed-clients names."""
    from hyperlora.messages.signature import RULE, is_client_id  # torch takes seconds to import

    if not is_client_id(client_id):
        raise CommandError(f"'{client_id}' is not a client-id: it must be {RULE}")
    permission = Permission(_read_public(public_key), datetime.now(UTC).replace(microsecond=0) + timedelta(days=days))
    clients = AllowList.read(allow_list).clients if allow_list.exists() else {}
    for name, known in clients.items():
        if name == client_id or known.key == permission.key:
            raise CommandError(f"'{allow_list}' has an entry for client '{name}' already; remove it first")
    write_text(allow_list, AllowList({**clients, client_id: permission}).as_text(), mode=PUBLIC)
    say(f"client '{client_id}' may take part until {permission.valid_until.date()}")


def make_ca(key: Key, *, days: int) -> x509.Certificate:
    """Return a self-signed CA certificate that may sign certificates of servers and nothing below them."""
    public, name = key.public_key(), _name(CA_NAME)
    identifier = x509.SubjectKeyIdentifier.from_public_key(public)
    return _unsigned(name, name, public, identifier, days=days, is_ca=True).sign(key, SHA384())


def make_server_certificate(
    authority: x509.Certificate,
    authority_key: Key,
    public: ec.EllipticCurvePublicKey,
    *,
    hosts: Sequence[str],
    days: int,
) -> x509.Certificate:
    """Return a certificate of a server that is called by ``hosts``: DNS names or IP addresses."""
    signer = authority.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    builder = _unsigned(_name(hosts[0][:64]), authority.subject, public, signer, days=days, is_ca=False)
    builder = builder.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
    builder = builder.add_extension(x509.SubjectAlternativeName([_host(host) for host in hosts]), critical=False)
    return builder.sign(authority_key, SHA384())


def _unsigned(
    subject: x509.Name,
    issuer: x509.Name,
    public: ec.EllipticCurvePublicKey,
    signer: x509.SubjectKeyIdentifier,
    *,
    days: int,
    is_ca: bool,
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    usage = dict.fromkeys(("content_commitment", "key_encipherment", "data_encipherment", "key_agreement"), False)
    usage |= {"encipher_only": False, "decipher_only": False, "digital_signature": not is_ca}
    usage |= {"key_cert_sign": is_ca, "crl_sign": is_ca}
    identifier = x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(signer)
    return (
        x509.CertificateBuilder(issuer, subject, public, x509.random_serial_number())
        .not_valid_before(now - CLOCK_SKEW)
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca=is_ca, path_length=0 if is_ca else None), critical=True)
        .add_extension(x509.KeyUsage(**usage), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .add_extension(identifier, critical=False)
    )


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _host(text: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(text))
    except ValueError:
        return x509.DNSName(text)


def _new_key() -> Key:
    return ec.generate_private_key(ec.SECP384R1())


def _authority(directory: Path) -> tuple[x509.Certificate, Key]:
    """Return the CA in ``directory``; it is made where there is neither its certificate nor its key."""
    certificate_path, key_path = directory / "ca.crt", directory / "ca.key"
    if not (certificate_path.exists() and key_path.exists()):
        _refuse(certificate_path, key_path)
        key = _new_key()
        _write_pair(certificate_path, make_ca(key, days=CA_DAYS), key_path, key)
    try:
        certificate = x509.load_pem_x509_certificate(certificate_path.read_bytes())
        loaded = load_pem_private_key(key_path.read_bytes(), password=None)
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise CommandError(f"the CA in '{directory}' cannot be read: {error}") from error
    if not isinstance(loaded, Key) or loaded.public_key() != certificate.public_key():
        raise CommandError(f"'{key_path}' is not the key of '{certificate_path}'")
    return certificate, loaded


def _read_public(path: Path) -> str:
    try:
        key = load_ssh_public_key(path.read_bytes())
    except (OSError, ValueError, UnsupportedAlgorithm) as error:
        raise CommandError(f"'{path}' is not a public node key: {error}") from error
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise CommandError(f"'{path}' is not an elliptic-curve key; make one with 'hyperlora certs node'")
    return one_line_key(key)


def _refuse(*paths: Path) -> None:
    for path in paths:
        if path.exists() or path.is_symlink():
            raise CommandError(f"'{path}' exists already and is not overwritten; move it away first")


def _write_pair(certificate_path: Path, certificate: x509.Certificate, key_path: Path, key: Key) -> None:
    _write(key_path, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()), PRIVATE)
    _write(certificate_path, certificate.public_bytes(Encoding.PEM), PUBLIC)


def _write(path: Path, content: bytes, mode: int) -> None:
    """Write a file that did not exist, with its final mode from the first byte on."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        file.write(content)
