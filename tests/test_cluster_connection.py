"""The connection to a cluster: what can't pass by waiting ends at once, what may pass is named and waited for."""

from __future__ import annotations

import re
import socket
import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from cluster_launcher import Launcher, complete
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from kubernetes_api import KubernetesApi

from pipelines.jobs import kube


def kubeconfig(path: Path, **changes: Any) -> None:
    """Change the cluster or the user of a kubeconfig."""
    found = yaml.safe_load(path.read_text())
    for key, value in changes.items():
        place = found["users"][0]["user"] if key.startswith("client") else found["clusters"][0]["cluster"]
        place[key.replace("_", "-")] = value
    path.write_text(yaml.safe_dump(found))


def certificate(folder: Path, name: str, days: int = 1) -> tuple[str, str]:
    """The files of a self-signed certificate for a name or an address, and of its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    built = (
        x509.CertificateBuilder(subject, subject, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=10))
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    files = folder / f"{name}.crt", folder / f"{name}.key"
    files[0].write_bytes(built.public_bytes(serialization.Encoding.PEM))
    form = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    files[1].write_bytes(key.private_bytes(serialization.Encoding.PEM, *form))
    return str(files[0]), str(files[1])


def encrypt(api: KubernetesApi, files: tuple[str, str], clients: str | None = None) -> str:
    """Have the server speak TLS, and demand certificates signed by that in the file `clients`; its address."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*files)
    if clients:
        context.load_verify_locations(clients)
        context.verify_mode = ssl.CERT_REQUIRED
    api.server.socket = context.wrap_socket(api.server.socket, server_side=True)
    return f"https://localhost:{api.server.server_address[1]}"


def test_a_kubeconfig_that_is_missing_or_no_yaml_ends_at_once(
    api: KubernetesApi, start: Launcher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start_of_line = "error: no cluster: not in a pod with a service account's token, and no usable kubeconfig"
    file = tmp_path / "kubeconfig"
    for text in ("a: [b", "text", ""):
        file.write_text(text)
        status, [line] = start()
        assert (status, line.startswith(start_of_line), str(file) in line) == (2, True, True)
    monkeypatch.setenv("KUBECONFIG", "/nowhere")
    assert start() == (2, [f"{start_of_line} (/nowhere doesn't exist); set KUBECONFIG"])


@pytest.mark.parametrize("key", ["certificate_authority", "client_certificate", "client_key"])
def test_a_file_that_kubeconfig_names_and_that_is_missing_ends_at_once(
    api: KubernetesApi, start: Launcher, tmp_path: Path, key: str
) -> None:
    crt, pem = certificate(tmp_path, "localhost")
    files = {"certificate_authority": crt, "client_certificate": crt, "client_key": pem} | {key: "/nowhere"}
    kubeconfig(tmp_path / "kubeconfig", server="https://127.0.0.1:9", **files)
    status, [line] = start()
    assert (status, "no usable kubeconfig (File does not exist: /nowhere)" in line) == (2, True)


@pytest.mark.parametrize(
    ("key", "line"),
    [
        ("certificate_authority", "certificate-authority {junk}: not usable (no certificate or crl found)"),
        ("client_key", "client-certificate with client-key {crt}: not usable (not in PEM format)"),
    ],
)
def test_a_file_that_is_no_certificate_or_key_ends_at_once(
    api: KubernetesApi, start: Launcher, tmp_path: Path, key: str, line: str
) -> None:
    crt, pem = certificate(tmp_path, "localhost")
    junk = tmp_path / "junk"
    junk.write_text("junk\n")
    files = {"certificate_authority": crt, "client_certificate": crt, "client_key": pem} | {key: str(junk)}
    kubeconfig(tmp_path / "kubeconfig", server="https://127.0.0.1:9", **files)
    text = line.format(junk=junk, crt=crt)
    assert start() == (2, [f"error: kubeconfig: {text}; name another file"])


def test_a_key_that_cannot_be_read_ends_at_once(
    api: KubernetesApi, start: Launcher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    crt, pem = certificate(tmp_path, "localhost")
    kubeconfig(tmp_path / "kubeconfig", server="https://127.0.0.1:9", client_certificate=crt, client_key=pem)
    read = Path.read_bytes

    def refuse(path: Path) -> bytes:  # also to root, who may read any file
        if str(path) == pem:
            raise PermissionError(13, "Permission denied", pem)
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", refuse)
    assert start() == (2, [f"error: kubeconfig: client-key {pem}: can't be read (Permission denied)"])


@pytest.mark.parametrize(
    ("name", "days", "trusted", "text"),
    [
        (
            "localhost",
            1,
            False,
            "(self-signed certificate); set `certificate-authority` in the kubeconfig to the file of the cluster's own",
        ),
        ("localhost", -1, True, "(certificate has expired); have it renewed, and check this machine's clock"),
        (
            "elsewhere",
            1,
            True,
            "(Hostname mismatch, certificate is not valid for 'localhost'.); set `server` or `tls-server-name` in the kubeconfig "
            "to a name that it holds",
        ),
    ],
)
def test_a_certificate_that_is_not_accepted_ends_at_once(
    api: KubernetesApi, start: Launcher, tmp_path: Path, name: str, days: int, trusted: bool, text: str
) -> None:
    files = certificate(tmp_path, name, days)
    server = encrypt(api, files)
    kubeconfig(tmp_path / "kubeconfig", server=server)
    if trusted:
        kubeconfig(tmp_path / "kubeconfig", certificate_authority=files[0])
    assert start() == (2, [f"error: the cluster's API at {server}: its certificate is not accepted {text}"])


@pytest.mark.parametrize(
    ("days", "known", "alert"),
    [(1, False, "unknown ca"), (-1, True, "certificate expired"), (None, True, "certificate required")],
)
def test_a_certificate_of_the_client_that_is_refused_ends_at_once(
    api: KubernetesApi, start: Launcher, tmp_path: Path, days: int | None, known: bool, alert: str
) -> None:
    files = certificate(tmp_path, "localhost")
    own = certificate(tmp_path, "client", days or 1)
    server = encrypt(api, files, clients=own[0] if known else files[0])
    kubeconfig(tmp_path / "kubeconfig", server=server, certificate_authority=files[0])
    if days:
        kubeconfig(tmp_path / "kubeconfig", client_certificate=own[0], client_key=own[1])
    assert start() == (
        2,
        [
            f"error: the cluster's API at {server}: it refuses the client's certificate ({alert}); renew `client-certificate` in "
            "the kubeconfig"
        ],
    )


def test_an_accepted_certificate_works(api: KubernetesApi, start: Launcher, tmp_path: Path) -> None:
    files = certificate(tmp_path, "localhost")
    kubeconfig(tmp_path / "kubeconfig", server=encrypt(api, files), certificate_authority=files[0])
    assert start(scenario=lambda: complete(api)) == (0, [])


@pytest.mark.parametrize(
    ("server", "text"),
    [
        ("https://no-such-host.invalid:6443", "unknown host name; correct `server` in the kubeconfig"),
        ("https://127.0.0.1:port", "not an address; correct `server` in the kubeconfig"),
        ("https://127.0.0.1:{port}", "it doesn't speak TLS; correct `server` in the kubeconfig"),
    ],
)
def test_an_address_that_is_wrong_ends_at_once(
    api: KubernetesApi, start: Launcher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: str, text: str
) -> None:
    look_up = socket.getaddrinfo

    def unknown(host: Any, *rest: Any, **options: Any) -> Any:  # as the resolver of a machine with a network answers
        if host == "no-such-host.invalid":
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return look_up(host, *rest, **options)

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    server = server.format(port=api.server.server_address[1])
    kubeconfig(tmp_path / "kubeconfig", server=server)
    assert start() == (2, [f"error: the cluster's API at {server}: {text}"])


def test_a_proxy_that_refuses_ends_at_once(
    api: KubernetesApi, start: Launcher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    kubeconfig(tmp_path / "kubeconfig", server="https://192.0.2.1:6443")
    assert start() == (
        2,
        [
            "error: the cluster's API at https://192.0.2.1:6443: its proxy refuses (Connection refused); correct HTTPS_PROXY, or "
            "add the address to NO_PROXY"
        ],
    )


@pytest.mark.parametrize("no_proxy", ["", "localhost,127.0.0.1", "127.0.0.0/8"])
def test_an_address_of_this_machine_needs_no_proxy(
    api: KubernetesApi, start: Launcher, monkeypatch: pytest.MonkeyPatch, no_proxy: str
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", no_proxy)
    assert start(scenario=lambda: complete(api)) == (0, [])


def test_an_api_that_is_away_is_named_with_its_address_and_the_time(
    api: KubernetesApi, start: Launcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kube, "NOTICE_SECONDS", 0.5)
    monkeypatch.setenv("PECO_API_PATIENCE_SECONDS", "77")
    address = f"http://127.0.0.1:{api.server.server_address[1]}"
    api.down = True

    def scenario() -> None:
        api.wait_for(lambda: len(api.missed) >= 2 and bool(start.notes))
        api.down = False
        complete(api)

    status, lines = start(scenario=scenario)
    assert status == 0
    away = rf"tokenizer: no usable answer from the cluster's API at {address} \(.+\); trying for 77 s"
    assert re.fullmatch(away, lines[0])
    assert "tokenizer: the cluster's API answers again" in lines


def test_an_api_that_never_answers_ends_in_a_status_for_another_try(
    api: KubernetesApi, start: Launcher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PECO_API_PATIENCE_SECONDS", "0")
    kubeconfig(tmp_path / "kubeconfig", server="http://127.0.0.1:9")
    assert start() == (75, ["error: tokenizer: the cluster's API can't be reached (Connection refused); run again"])


def test_a_token_that_is_not_accepted_ends_at_once(api: KubernetesApi, start: Launcher, tmp_path: Path) -> None:
    config = tmp_path / "kubeconfig"
    config.write_text(config.read_text().replace("a-token", "another"))
    status, [line] = start()
    assert (status, line.endswith("; renew the credentials")) == (2, True)
