"""`hyperlora certs`: strict TLS works with what it makes, flwr reads its keys, and nothing is overwritten."""

from __future__ import annotations

import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key, load_ssh_private_key
from cryptography.x509 import load_pem_x509_certificate
from flwr.cli.supernode.register import try_load_public_key
from typer.testing import CliRunner, Result

from hyperlora.cli.certs import make_ca
from hyperlora.cli.main import app
from hyperlora.storage.allow_list import AllowList, AllowListError, AllowListFile


def certs(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["certs", *map(str, arguments)], env={"COLUMNS": "300"})


def handshake(folder: Path, called: str) -> None:
    """Speak TLS in memory as a client that checks strictly and calls the server ``called``; raises SSLError."""
    server_side = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server_side.load_cert_chain(folder / "server.pem", folder / "server.key")
    client_side = ssl.create_default_context(cafile=str(folder / "ca.crt"))
    client_side.verify_flags |= ssl.VERIFY_X509_STRICT
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = client_side.wrap_bio(down, up, server_hostname=called)
    server = server_side.wrap_bio(up, down, server_side=True)
    for side in (client, server) * 3:
        try:
            side.do_handshake()
        except ssl.SSLWantReadError:
            continue


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("certs") / "tls"
    result = certs("server", folder, "--host", "fl.example.org", "--host", "127.0.0.1", "--days", 7)
    assert result.exit_code == 0, result.output
    return folder


@pytest.mark.parametrize("called", ["fl.example.org", "127.0.0.1"])
def test_a_strict_client_trusts_the_server_by_each_of_its_names(made: Path, called: str) -> None:
    handshake(made, called)


def test_a_name_that_is_not_in_the_certificate_is_refused(made: Path) -> None:
    with pytest.raises(ssl.SSLCertVerificationError, match=r"not valid for 'other\.example\.org'"):
        handshake(made, "other.example.org")


def test_private_files_are_private_and_the_certificate_ends_when_asked(made: Path) -> None:
    modes = {path.name: path.stat().st_mode & 0o777 for path in made.iterdir()}
    assert modes == {"ca.key": 0o600, "server.key": 0o600, "ca.crt": 0o644, "server.pem": 0o644}
    certificate = load_pem_x509_certificate((made / "server.pem").read_bytes())
    assert abs(certificate.not_valid_after_utc - datetime.now(UTC) - timedelta(days=7)) < timedelta(minutes=5)


def test_a_second_server_certificate_is_of_the_same_ca(made: Path, tmp_path: Path) -> None:
    for name in ("ca.crt", "ca.key"):
        (tmp_path / name).write_bytes((made / name).read_bytes())
    assert certs("server", tmp_path, "--host", "second.example.org").exit_code == 0
    assert (tmp_path / "ca.crt").read_bytes() == (made / "ca.crt").read_bytes()
    handshake(tmp_path, "second.example.org")


def test_nothing_is_overwritten(made: Path, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in made.iterdir()}
    refused = certs("server", made, "--host", "fl.example.org")
    assert refused.exit_code == 1
    assert "exists already and is not overwritten" in refused.output
    assert {path: path.read_bytes() for path in made.iterdir()} == before
    assert certs("node", tmp_path / "key").exit_code == 0
    key = (tmp_path / "key").read_bytes()
    assert certs("node", tmp_path / "key").exit_code == 1
    assert (tmp_path / "key").read_bytes() == key


def test_a_lost_ca_key_is_not_made_anew_beside_its_certificate(made: Path, tmp_path: Path) -> None:
    (tmp_path / "ca.crt").write_bytes((made / "ca.crt").read_bytes())
    refused = certs("server", tmp_path, "--host", "fl.example.org")
    assert refused.exit_code == 1
    assert "ca.crt' exists already" in refused.output


def test_flower_reads_the_node_keys(tmp_path: Path) -> None:
    assert certs("node", tmp_path / "keys" / "site-0").exit_code == 0
    private = load_ssh_private_key((tmp_path / "keys" / "site-0").read_bytes(), None)
    assert isinstance(private, ec.EllipticCurvePrivateKey)
    assert isinstance(private.curve, ec.SECP384R1)
    assert (tmp_path / "keys" / "site-0").stat().st_mode & 0o777 == 0o600
    assert try_load_public_key(tmp_path / "keys" / "site-0.pub").startswith(b"-----BEGIN PUBLIC KEY-----")


def test_an_expired_ca_is_refused(made: Path, tmp_path: Path) -> None:
    key = load_pem_private_key((made / "ca.key").read_bytes(), password=None)
    for name in ("server.pem", "server.key"):
        (tmp_path / name).write_bytes((made / name).read_bytes())
    (tmp_path / "ca.crt").write_bytes(make_ca(key, days=0).public_bytes(Encoding.PEM))
    with pytest.raises(ssl.SSLCertVerificationError, match="certificate has expired"):
        handshake(tmp_path, "fl.example.org")


@pytest.fixture
def allowed(tmp_path: Path) -> Path:
    for name, days in (("site-0", 5), ("site-1", 5), ("site-2", 5)):
        assert certs("node", tmp_path / name).exit_code == 0
        if name != "site-2":
            done = certs("allow", tmp_path / "allowed.json", name, tmp_path / f"{name}.pub", "--days", days)
            assert done.exit_code == 0, done.output
    return tmp_path


def test_the_allow_list_says_who_may_be_whom(allowed: Path) -> None:
    listed, now = AllowList.read(allowed / "allowed.json"), datetime.now(UTC)
    keys = {name: try_load_public_key(allowed / f"{name}.pub") for name in ("site-0", "site-1", "site-2")}
    assert listed.objection("site-0", keys["site-0"], now) is None
    assert "'site-0', but it holds the key of client 'site-1'" in str(listed.objection("site-0", keys["site-1"], now))
    assert "a key that is not on the allow-list" in str(listed.objection("site-0", keys["site-2"], now))
    assert "'site-2', which is not on the allow-list" in str(listed.objection("site-2", keys["site-2"], now))
    assert "not on the allow-list" in str(listed.objection("site-0", b"", now))
    late = str(listed.objection("site-0", keys["site-0"], now + timedelta(days=6)))
    assert "the permission of client 'site-0' expired at 20" in late


def test_a_list_that_changes_during_a_run_is_followed_and_a_broken_one_is_not(
    allowed: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path, now = allowed / "allowed.json", datetime.now(UTC)
    listed, newcomer = AllowListFile(path), try_load_public_key(allowed / "site-2.pub")
    assert listed.objection("site-2", newcomer, now) is not None
    assert certs("allow", path, "site-2", allowed / "site-2.pub").exit_code == 0
    assert listed.objection("site-2", newcomer, now) is None
    path.write_text("{")
    assert listed.objection("site-2", newcomer, now) is None
    path.unlink()
    assert listed.objection("site-2", newcomer, now) is None
    assert caplog.text.count("the one before stays in force") == 2


@pytest.mark.parametrize(
    ("client_id", "key", "sentence"),
    [
        ("site-0", "site-2.pub", "has an entry for client 'site-0' already"),
        ("site-2", "site-1.pub", "has an entry for client 'site-1' already"),
        ("../up", "site-2.pub", "'../up' is not a client-id"),
        ("site-2", "site-2", "is not a public node key"),
        ("site-2", "absent.pub", "is not a public node key"),
    ],
)
def test_what_cannot_be_allowed_is_one_sentence(allowed: Path, client_id: str, key: str, sentence: str) -> None:
    before = (allowed / "allowed.json").read_text()
    refused = certs("allow", allowed / "allowed.json", client_id, allowed / key)
    assert refused.exit_code == 1
    assert sentence in refused.output
    assert (allowed / "allowed.json").read_text() == before


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("[]", "malformed"),
        ("{", "malformed"),
        ('{"version": 2, "clients": {}}', "is of version 2, expected 1"),
        ('{"version": 1, "clients": {"a": {"key": "ssh-x y", "valid-until": "2030-01-01T00:00:00Z"}}}', "malformed"),
        ('{"version": 1, "clients": {"a": {"valid-until": "2030-01-01T00:00:00"}}}', "has no time zone"),
    ],
)
def test_a_malformed_allow_list_is_one_sentence(tmp_path: Path, content: str, sentence: str) -> None:
    (tmp_path / "allowed.json").write_text(content)
    with pytest.raises(AllowListError, match=sentence) as caught:
        AllowList.read(tmp_path / "allowed.json")
    assert "\n" not in str(caught.value)
