"""`hyperlora certs`: what TLS, node authentication and the allow-list of clients need. Nothing is ever overwritten."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated

import typer
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
    load_ssh_public_key,
)
from cryptography.x509 import Certificate, load_pem_x509_certificate

from hyperlora.cli.output import CommandError, reports_errors, say
from hyperlora.cli.x509 import CertificateKey, make_ca, make_server_certificate
from hyperlora.messages.signature import RULE, is_client_id
from strategies.federation.allow_list import AllowList, AllowListError, Permission, one_line_key

PRIVATE, PUBLIC = 0o600, 0o644
CA_DAYS = 3650
CURVE = ec.SECP384R1
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
    _make_folder(directory)
    targets = [directory / "server.pem", directory / "server.key"]
    _refuse(targets)
    authority, authority_key = _authority(directory)
    key = ec.generate_private_key(CURVE())
    try:
        certificate = make_server_certificate(authority, authority_key, key.public_key(), hosts=host, days=days)
    except ValueError as error:
        raise CommandError(f"no certificate can be made for {', '.join(host)}: {error}") from error
    _write(targets[1], _pem(key), PRIVATE)
    _write(targets[0], certificate.public_bytes(Encoding.PEM), PUBLIC)
    say(f"{targets[0]} is valid until {certificate.not_valid_after_utc.date()} for {', '.join(host)}")
    say(f"give every site {directory / 'ca.crt'}; keep {directory / 'ca.key'} and {targets[1]} to yourself")


@app.command()
@reports_errors
def node(
    path: Annotated[Path, typer.Argument(help="File for the private key; the public one gets the ending .pub.")],
) -> None:
    """Make a site's node key; run this at the site, which sends the public half to the server's operator."""
    public = path.with_name(f"{path.name}.pub")
    _refuse([path, public])
    _make_folder(path.parent)
    key = ec.generate_private_key(CURVE())
    _write(path, key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()), PRIVATE)
    _write(public, f"{one_line_key(key.public_key())} {path.name}\n".encode(), PUBLIC)
    say(f"send {public} to the operator of the server; keep {path} to yourself")


@app.command()
@reports_errors
def allow(
    allow_list: Annotated[Path, typer.Argument(help="The allow-list; made where there is none.")],
    client_id: Annotated[str, typer.Argument(help="The client that the key may speak for.")],
    public_key: Annotated[Path, typer.Argument(help="The site's public node key.")],
    days: Days = 365,
) -> None:
    """Bind a client-id to a site's node key, in the file that federation.allowed-clients names."""
    if not is_client_id(client_id):
        raise CommandError(f"'{client_id}' is no client-id: it must be {RULE}")
    permission = Permission(_read_public(public_key), datetime.now(UTC).replace(microsecond=0) + timedelta(days=days))
    try:
        clients = dict(AllowList.read(allow_list).clients) if allow_list.exists() else {}
    except AllowListError as error:
        raise CommandError(str(error)) from error
    for name, known in clients.items():
        if name == client_id or known.key == permission.key:
            raise CommandError(f"'{allow_list}' has an entry for client '{name}' already; remove it first")
    temporary = allow_list.with_name(f"{allow_list.name}.new")
    temporary.unlink(missing_ok=True)
    _write(temporary, AllowList({**clients, client_id: permission}).as_text().encode(), PUBLIC)
    temporary.replace(allow_list)
    say(f"client '{client_id}' may take part until {permission.valid_until.date()}")


def _authority(directory: Path) -> tuple[Certificate, CertificateKey]:
    certificate_path, key_path = directory / "ca.crt", directory / "ca.key"
    if certificate_path.exists() and key_path.exists():
        return _read_authority(certificate_path, key_path)
    _refuse([certificate_path, key_path])
    key = ec.generate_private_key(CURVE())
    certificate = make_ca(key, days=CA_DAYS)
    _write(key_path, _pem(key), PRIVATE)
    _write(certificate_path, certificate.public_bytes(Encoding.PEM), PUBLIC)
    return certificate, key


def _read_authority(certificate_path: Path, key_path: Path) -> tuple[Certificate, CertificateKey]:
    try:
        certificate = load_pem_x509_certificate(certificate_path.read_bytes())
        key = load_pem_private_key(key_path.read_bytes(), password=None)
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise CommandError(f"the CA in '{certificate_path.parent}' cannot be read: {error}") from error
    if not isinstance(key, CertificateKey) or key.public_key() != certificate.public_key():
        raise CommandError(f"'{key_path}' is not the key of '{certificate_path}'")
    return certificate, key


def _read_public(path: Path) -> str:
    try:
        key = load_ssh_public_key(path.read_bytes())
    except (OSError, ValueError, UnsupportedAlgorithm) as error:
        raise CommandError(f"'{path}' is no public node key: {error}") from error
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise CommandError(f"'{path}' is no elliptic-curve key; make one with 'hyperlora certs node'")
    return one_line_key(key)


def _pem(key: CertificateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _refuse(paths: list[Path]) -> None:
    for path in paths:
        if path.exists() or path.is_symlink():
            raise CommandError(f"'{path}' exists already and is not overwritten; move it away first")


def _make_folder(directory: Path) -> None:
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise CommandError(f"'{directory}' cannot be made: {error.strerror}") from error


def _write(path: Path, content: bytes, mode: int) -> None:
    """Write a file that did not exist, with its final mode from the first byte on."""
    try:
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
            file.write(content)
    except OSError as error:
        raise CommandError(f"'{path}' cannot be written: {error.strerror}") from error
