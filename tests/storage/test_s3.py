from __future__ import annotations

import ipaddress
import socket
import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from servers import Link, S3Server

from cwbass.errors import ParamsError, ServiceError
from cwbass.storage.s3 import ATTEMPTS, CONNECTIONS, download, s3_client, split_uri

URI = "s3://models/encoders/resnet.pth"
OBJECT = "/models/encoders/resnet.pth"


def test_a_client_keeps_the_connections_over_which_a_dataset_is_copied() -> None:
    assert s3_client().meta.config.max_pool_connections == CONNECTIONS  # more are closed after each object, with a warning


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("s3://bucket/key", ("bucket", "key")),
        ("s3://bucket/a/b.pth", ("bucket", "a/b.pth")),
        ("s3://bucket/odd?name#1.pth", ("bucket", "odd?name#1.pth")),
    ],
)
def test_uri_is_bucket_and_key(uri: str, expected: tuple[str, str]) -> None:
    assert split_uri(uri) == expected


@pytest.mark.parametrize(
    "uri", ["s3://bucket", "s3://bucket/", "s3:///key", "s3:/bucket/key", "gs://bucket/key", "bucket/key", "s3://[a/"]
)
def test_uri_of_another_form_is_refused(uri: str) -> None:
    with pytest.raises(ParamsError, match="not of the form s3://bucket/key"):
        split_uri(uri)


def test_object_is_fetched_once(s3: Any, tmp_path: Path) -> None:
    s3.objects[OBJECT] = b"weights"
    first = download(URI, tmp_path)
    second = download(URI, tmp_path)
    assert first == second
    assert first.read_bytes() == b"weights"
    assert first.suffix == ".pth"
    assert s3.requests.count(f"GET {OBJECT}") == 1


def test_changed_object_is_fetched_again_beside_the_old_one(s3: Any, tmp_path: Path) -> None:
    s3.objects[OBJECT] = b"old content"
    old = download(URI, tmp_path)
    s3.objects[OBJECT] = b"new content"  # as long as the old one: the ETag alone tells
    new = download(URI, tmp_path)
    assert (old.read_bytes(), new.read_bytes()) == (b"old content", b"new content")


def test_copy_cut_short_by_someone_else_is_fetched_again(s3: Any, tmp_path: Path) -> None:
    s3.objects[OBJECT] = b"weights"
    download(URI, tmp_path).write_bytes(b"wei")
    assert download(URI, tmp_path).read_bytes() == b"weights"


def test_object_larger_than_one_part_arrives_whole(s3: Any, tmp_path: Path) -> None:
    content = bytes(range(256)) * 4 * 1024 * 9  # 9 MiB
    s3.objects[OBJECT] = content
    assert download(URI, tmp_path).read_bytes() == content


def test_connection_that_breaks_off_is_tried_again(s3: Any, tmp_path: Path) -> None:
    s3.objects[OBJECT] = b"weights"
    s3.cuts = [3]
    assert download(URI, tmp_path).read_bytes() == b"weights"


def test_connection_that_always_breaks_off_leaves_no_file(s3: Any, tmp_path: Path) -> None:
    s3.objects[OBJECT] = b"weights"
    s3.cuts = [3] * 20
    with pytest.raises(ServiceError, match=URI):
        download(URI, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_server_error_is_tried_again_three_times(s3: Any, tmp_path: Path) -> None:
    s3.objects[OBJECT] = b"weights"
    s3.statuses = [503, 503]
    assert download(URI, tmp_path).read_bytes() == b"weights"
    s3.requests.clear()
    s3.statuses = [503] * 20
    with pytest.raises(ServiceError, match="failed 3 times") as caught:
        download(URI, tmp_path)
    assert caught.value.exit_code == 6
    assert s3.requests == [f"HEAD {OBJECT}"] * ATTEMPTS


def test_a_refusal_names_the_variable_from_which_the_region_is_read(
    s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    s3.statuses = [403]
    with pytest.raises(ParamsError, match="AWS_DEFAULT_REGION"):
        download(URI, tmp_path)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "fr-par")
    assert s3_client().meta.region_name == "fr-par"


@pytest.mark.parametrize(("status", "mend"), [(404, "no such object or bucket"), (403, "refused .*credentials")])
def test_refusal_is_not_tried_again(s3: Any, tmp_path: Path, status: int, mend: str) -> None:
    s3.objects[OBJECT] = b"weights"
    s3.statuses = [status]
    with pytest.raises(ParamsError, match=mend):
        download(URI, tmp_path)
    assert s3.requests == [f"HEAD {OBJECT}"]


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_server_that_redirects_is_told_and_not_followed_for_ever(s3: Any, tmp_path: Path, status: int) -> None:
    s3.statuses = [status] * 1000  # as an ingress does that wants https
    with pytest.raises(ParamsError, match=r"sends requests elsewhere.*Check AWS_ENDPOINT_URL"):
        download(URI, tmp_path)


def test_server_that_is_away_is_a_service_error(s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free.getsockname()[1]}")
        with pytest.raises(ServiceError, match="AWS_ENDPOINT_URL"):
            download(URI, tmp_path)


def test_endpoint_that_is_no_url_is_named(s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "minio:9000")
    with pytest.raises(ParamsError, match=r"minio:9000.*AWS_"):
        download(URI, tmp_path)


def test_missing_credentials_send_nothing(s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(ParamsError, match="Unable to locate credentials"):
        download(URI, tmp_path)
    assert s3.requests == []


def authority(folder: Path) -> tuple[Path, Path]:
    """Certificate and key of a server at 127.0.0.1 that nobody else vouches for."""
    pytest.importorskip("cryptography", reason="makes the certificate; dvc brings it")
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "store")])
    made = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key()).serial_number(1)
    made = made.not_valid_before(now - timedelta(days=1)).not_valid_after(now + timedelta(days=1))
    address = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    signed = made.add_extension(address, critical=False).sign(key, hashes.SHA256())
    plain = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (folder / "ca.crt").write_bytes(signed.public_bytes(serialization.Encoding.PEM))
    (folder / "key.pem").write_bytes(key.private_bytes(*plain))
    return folder / "ca.crt", folder / "key.pem"


def test_a_store_of_a_private_authority_needs_its_certificate_and_the_error_says_so(
    s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate, key = authority(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    s3.socket = context.wrap_socket(s3.socket, server_side=True)
    s3.objects[OBJECT] = b"weights"
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3.url.replace("http:", "https:"))
    monkeypatch.delenv("AWS_CA_BUNDLE", raising=False)
    with pytest.raises(ParamsError, match=r"self-signed certificate.*AWS_CA_BUNDLE"):
        download(URI, tmp_path / "a")
    monkeypatch.setenv("AWS_CA_BUNDLE", str(tmp_path / "none.crt"))
    with pytest.raises(ParamsError, match=r"No such file.*AWS_CA_BUNDLE"):
        download(URI, tmp_path / "a")
    monkeypatch.setenv("AWS_CA_BUNDLE", str(certificate))
    assert download(URI, tmp_path / "a").read_bytes() == b"weights"


def test_a_roles_token_that_cannot_be_read_is_told_from_a_copy_that_cannot_be_kept(
    s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where the role's token is not mounted, or belongs to another user than the pod's."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_ROLE_ARN", "arn:aws:iam::000000000000:role/cwbass-runner")
    monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", str(tmp_path / "token"))
    with pytest.raises(ParamsError, match=r"token: No such file or directory. .*AWS_WEB_IDENTITY_TOKEN_FILE.*service account"):
        download(URI, tmp_path)
    assert s3.requests == []


def test_folder_that_cannot_be_made_is_named(s3: Any, tmp_path: Path) -> None:
    s3.objects[OBJECT] = b"weights"
    (tmp_path / "file").touch()
    with pytest.raises(ParamsError, match="cannot be kept"):
        download(URI, tmp_path / "file")


def test_a_size_that_cannot_be_is_refused_and_not_divided_into_parts(
    s3_env: S3Server, link: Link, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", link.url)
    link.answer = b'HTTP/1.1 200 OK\r\nETag: "a"\r\nContent-Length: ' + b"9" * 30 + b"\r\nConnection: close\r\n\r\n"
    with pytest.raises(ServiceError, match=rf"{link.url}/.*: the store says that it has 9{{30}} bytes\. Check the object"):
        download(f"{s3_env.location()}/best.pt", tmp_path)
