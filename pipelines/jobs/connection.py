"""The connection to the cluster's API: the client's set-up, and the errors of a call that another attempt can't mend."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import re
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import yaml
from kubernetes import client, config
from kubernetes.config import ConfigException
from urllib3.exceptions import LocationParseError, NameResolutionError, ProxyError

from peco.core.errors import PecoError

TIMEOUTS = (5, 30)  # seconds to connect, and to wait for an answer
# Names that the resolver knows not to exist; other errors of it may pass.
_UNKNOWN_NAME = (socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME))

# Alerts of a server that wants another certificate of the client, or one at all.
_CERTIFICATE_REFUSED = re.compile(r"ALERT_(.*CERTIFICATE.*|UNKNOWN_CA|ACCESS_DENIED|DECRYPT_ERROR)$")


class _Client(client.ApiClient):  # type: ignore[misc]
    def request(self, *args: Any, _request_timeout: Any = None, **others: Any) -> Any:
        return super().request(*args, _request_timeout=_request_timeout or TIMEOUTS, **others)


def connect() -> client.ApiClient:
    """A client for the cluster that this pod is in, or else for the one that kubeconfig names.

    As kubectl does, it takes a proxy from HTTPS_PROXY and NO_PROXY, but not in a pod, which reaches the API directly.

    Raises:
        PecoError: there is neither, or a file that kubeconfig names can't be used.
    """
    configuration = client.Configuration()
    try:
        config.load_incluster_config(client_configuration=configuration)
    except ConfigException:
        # The client reads the variable only once, when it is imported.
        place = os.environ.get("KUBECONFIG") or "~/.kube/config"
        if not any(Path(file).expanduser().exists() for file in place.split(os.pathsep) if file):
            raise _no_cluster(f"{place} doesn't exist") from None
        try:
            config.load_kube_config(config_file=place, client_configuration=configuration)
        except (ConfigException, OSError) as error:
            raise _no_cluster(str(error)) from None
        except (yaml.YAMLError, AttributeError, KeyError, TypeError, ValueError):
            raise _no_cluster(f"{place} is not valid") from None
        configuration.proxy = _proxy(configuration.host)
    _check_files(configuration)
    configuration.retries = False  # Api has its own
    return _Client(configuration)


def _no_cluster(reason: str) -> PecoError:
    return PecoError(
        f"no cluster: not in a pod with a service account's token, and no usable kubeconfig ({reason}); set KUBECONFIG"
    )


def _proxy(host: str) -> str | None:
    """The proxy of the environment for this address; None for a direct connection."""
    parts = urlsplit(host)
    proxies, name = getproxies(), parts.hostname or ""
    direct = name == "localhost" or proxy_bypass(parts.netloc)
    # Addresses also match networks such as 10.0.0.0/8, which urllib doesn't know.
    with contextlib.suppress(ValueError):
        address = ipaddress.ip_address(name)
        direct = direct or address.is_loopback
        for entry in proxies.get("no", "").split(","):
            with contextlib.suppress(ValueError):
                direct = direct or address in ipaddress.ip_network(entry.strip())
    return None if direct else proxies.get(parts.scheme)


def _check_files(configuration: client.Configuration) -> None:
    """Load the certificates and the key as each connection does later.

    Raises:
        PecoError: one of them can't be used.
    """
    authority, certificate, key = configuration.ssl_ca_cert, configuration.cert_file, configuration.key_file
    # The errors of loading a pair don't name the file.
    for name, file in (("client-certificate", certificate), ("client-key", key)):
        with _using(name, file):
            if file:
                Path(file).read_bytes()
    with _using("certificate-authority", authority):
        context = ssl.create_default_context(cafile=authority)
    with _using("client-certificate with client-key", certificate):
        if certificate:
            context.load_cert_chain(certificate, key)


@contextlib.contextmanager
def _using(name: str, file: str | None) -> Iterator[None]:
    try:
        yield
    except ssl.SSLError as error:
        reason = error.reason.replace("_", " ").lower() if error.reason else "not in PEM format"
        raise PecoError(f"kubeconfig: {name} {file}: not usable ({reason}); name another file") from None
    except OSError as error:
        raise PecoError(f"kubeconfig: {name} {file}: can't be read ({error.strerror})") from None


def permanent(error: BaseException, host: str, *, answered: bool) -> PecoError | None:
    """The error of a call as a line for the user, if another attempt will meet it, too.

    Args:
        error: as the call raised it.
        host: address of the API.
        answered: True if the API has answered this client before. Then a name or a proxy is only away for some time.
    """
    causes = list(_chain(error))
    text = ""
    for cause in causes:
        if isinstance(cause, ssl.SSLCertVerificationError):
            text = f"its certificate is not accepted ({cause.verify_message}); {_mend_certificate(cause)}"
        elif isinstance(cause, LocationParseError):
            text = "not an address; correct `server` in the kubeconfig"
        elif isinstance(cause, ssl.SSLError) and cause.reason == "WRONG_VERSION_NUMBER":
            text = "it doesn't speak TLS; correct `server` in the kubeconfig"
        elif isinstance(cause, ssl.SSLError) and _CERTIFICATE_REFUSED.search(cause.reason or ""):
            reason = str(cause.reason).partition("ALERT_")[2].replace("_", " ").lower()
            text = f"it refuses the client's certificate ({reason}); renew `client-certificate` in the kubeconfig"
    if not text and not answered:
        text = _unknown_way(causes)
    return PecoError(f"the cluster's API at {host}: {text}") if text else None


def _mend_certificate(error: ssl.SSLCertVerificationError) -> str:
    if "expired" in error.verify_message or "not yet valid" in error.verify_message:
        return "have it renewed, and check this machine's clock"
    if "mismatch" in error.verify_message or "not valid for" in error.verify_message:
        return "set `server` or `tls-server-name` in the kubeconfig to a name that it holds"
    return "set `certificate-authority` in the kubeconfig to the file of the cluster's own"


def _unknown_way(causes: list[BaseException]) -> str:
    """The error of a name or a proxy that has never worked; empty for others."""
    proxy = next((cause for cause in causes if isinstance(cause, ProxyError)), None)
    if proxy:
        # 502, 503, 504: the proxy doesn't reach the API, which may pass.
        reason = reason_of(proxy)
        away = re.search("Tunnel connection failed: 50[234]", reason)
        return "" if away else f"its proxy refuses ({reason}); correct HTTPS_PROXY, or add the address to NO_PROXY"
    for cause in causes:
        number = cause.args[0] if isinstance(cause, socket.gaierror) and cause.args else None
        if number in _UNKNOWN_NAME and any(isinstance(each, NameResolutionError) for each in causes):
            return "unknown host name; correct `server` in the kubeconfig"
    return ""


def reason_of(error: BaseException) -> str:
    """The innermost reason of an error of a connection, in one line."""
    for cause in reversed(list(_chain(error))):
        text = cause.strerror if isinstance(cause, OSError) and cause.strerror else str(cause)
        if text and text != "timed out":
            return " ".join(text.split())
        if text:
            return "no answer in time"
    return type(error).__name__


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error, its cause, and so on."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__
