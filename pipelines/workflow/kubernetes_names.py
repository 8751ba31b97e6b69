"""Variables that name objects of Kubernetes, checked before anything is sent: a cluster refuses wrong ones much later."""

from __future__ import annotations

import re
from collections.abc import Mapping

from peco.core.environment import Variable
from peco.core.errors import PecoError
from pipelines.workflow.environment import PULL_POLICY

PULL_POLICIES = ("IfNotPresent", "Always", "Never")

_LABEL = r"[a-z0-9]([a-z0-9-]*[a-z0-9])?"
# The grammar of image references (github.com/distribution/reference). The part before the first slash is an address if it has a dot
# or a port or is `localhost`; only an address may have upper-case letters.
_HOST = r"[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?"
_ADDRESS = rf"({_HOST}(\.{_HOST})+(:\d+)?|{_HOST}:\d+|localhost|\[[0-9A-Fa-f:]+\](:\d+)?)"
_PART = r"[a-z0-9]+((\.|__?|-+)[a-z0-9]+)*"
_PATH = rf"{_PART}(/{_PART})*"
_REFERENCE = rf"(?P<name>({_ADDRESS}/)?{_PATH})(:[\w][\w.-]{{0,127}})?(@sha256:[0-9a-f]{{64}})?"


def image(variable: Variable, env: Mapping[str, str]) -> str:
    """The image that a variable names, or its default.

    Raises:
        PecoError: no registry takes this name.
    """
    text = variable.text(env)
    found = re.fullmatch(_REFERENCE, text, re.ASCII)
    if text and not (found and len(found["name"]) <= 255):
        raise PecoError(
            f"{variable.name}: {text!r} is not allowed; expected an image such as registry.example/peco:tag, "
            f"{_correction(text)}"
        )
    return text


def object_name(variable: Variable, env: Mapping[str, str]) -> str:
    """The claim, secret, config map or service account that a variable names, or its default.

    Raises:
        PecoError: no object of Kubernetes can have this name.
    """
    words = "a name in lower-case letters, digits, hyphens and dots"
    return _checked(variable, env, rf"{_LABEL}(\.{_LABEL})*", 253, words)


def namespace(variable: Variable, env: Mapping[str, str]) -> str:
    """The namespace that a variable names, or its default.

    Raises:
        PecoError: no namespace can have this name.
    """
    return _checked(variable, env, _LABEL, 63, "up to 63 lower-case letters, digits and hyphens")


def pull_policy(env: Mapping[str, str]) -> str:
    """The pull policy of PECO_PULL_POLICY, or the default.

    Raises:
        PecoError: Kubernetes has no such policy.
    """
    text = PULL_POLICY.text(env)
    if text not in PULL_POLICIES:
        raise PecoError(f"{PULL_POLICY.name}: {text!r} is not allowed; expected {', '.join(PULL_POLICIES)}")
    return text


def _checked(variable: Variable, env: Mapping[str, str], pattern: str, longest: int, expected: str) -> str:
    text = variable.text(env)
    if text and not (re.fullmatch(pattern, text) and len(text) <= longest):
        raise PecoError(f"{variable.name}: {text!r} is not allowed; expected {expected}")
    return text


def _correction(text: str) -> str:
    """The change that a wrong image name needs."""
    scheme, separator, _ = text.partition("://")
    if separator:
        return f"without {scheme}://"
    name, colon, tag = text.partition("@")[0].rpartition(":")
    if colon and not tag:
        return "with a tag after the colon"
    if any(letter.isupper() for letter in (text.partition("@")[0] if "/" in tag or not colon else name)):
        return "in lower-case letters"
    return "of lower-case letters, digits, dots, hyphens and slashes, with a tag or a digest"
