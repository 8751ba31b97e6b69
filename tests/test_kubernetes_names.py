"""Names of Kubernetes' objects in variables: wrong ones are refused before anything is sent."""

from __future__ import annotations

import pytest

from peco.core.environment import Variable
from peco.core.errors import PecoError
from pipelines.workflow import kubernetes_names
from pipelines.workflow.environment import IMAGE, NAMESPACE, PULL_POLICY, VOLUME_CLAIM

DIGEST = "@sha256:" + "0123456789abcdef" * 4
IMAGE_FORM = "is not allowed; expected an image such as registry.example/peco:tag, "


@pytest.mark.parametrize(
    "text",
    [
        "",
        "peco",
        "peco:c39355ceadfd",
        "localhost/peco:1.0_rc-2",
        "localhost:5000/a/b:Tag",
        "registry.example/team/pe__co-x.y:1",
        "REGISTRY.example:443/peco" + DIGEST,
        "ghcr.io/team/peco:1" + DIGEST,
        "10.0.0.1:5000/peco",
    ],
)
def test_an_image_that_a_registry_takes_passes(text: str) -> None:
    assert kubernetes_names.image(IMAGE, {"PECO_IMAGE": text}) == text


@pytest.mark.parametrize(
    ("text", "correction"),
    [
        ("https://registry.example/peco:1", "without https://"),
        ("docker://peco", "without docker://"),
        ("Peco:1", "in lower-case letters"),
        ("registry.example/Team/peco:1", "in lower-case letters"),
        ("registry.example:443/Team/peco", "in lower-case letters"),
        ("peco:", "with a tag after the colon"),
        ("localhost:5000/peco:", "with a tag after the colon"),
        ("my image", "of lower-case letters, digits, dots, hyphens and slashes, with a tag or a digest"),
        ("peco:tag!", "of lower-case letters, digits, dots, hyphens and slashes, with a tag or a digest"),
        ("peco@sha256:12", "of lower-case letters, digits, dots, hyphens and slashes, with a tag or a digest"),
        ("/peco", "of lower-case letters, digits, dots, hyphens and slashes, with a tag or a digest"),
        ("x" * 256, "of lower-case letters, digits, dots, hyphens and slashes, with a tag or a digest"),
    ],
)
def test_an_image_that_no_registry_takes_is_refused_with_the_correction(text: str, correction: str) -> None:
    with pytest.raises(PecoError) as error:
        kubernetes_names.image(IMAGE, {"PECO_IMAGE": text})
    assert str(error.value) == f"PECO_IMAGE: {text!r} {IMAGE_FORM}{correction}"


@pytest.mark.parametrize("text", ["peco", "peco-2", "a.b-c.d", "0", "x" * 253])
def test_a_name_of_an_object_passes(text: str) -> None:
    assert kubernetes_names.object_name(VOLUME_CLAIM, {"PECO_VOLUME_CLAIM": text}) == text


@pytest.mark.parametrize("text", ["Peco", "pe_co", "-peco", "peco-", "a..b", "a b", "x" * 254, "pecö"])
def test_a_name_that_no_object_can_have_is_refused(text: str) -> None:
    with pytest.raises(
        PecoError, match=r"^PECO_VOLUME_CLAIM: .* expected a name in lower-case letters, digits, hyphens and dots$"
    ):
        kubernetes_names.object_name(VOLUME_CLAIM, {"PECO_VOLUME_CLAIM": text})


def test_a_namespace_is_one_label() -> None:
    assert kubernetes_names.namespace(NAMESPACE, {"PECO_NAMESPACE": "x" * 63}) == "x" * 63
    for text in ("x" * 64, "a.b", "A"):
        with pytest.raises(
            PecoError, match=r"^PECO_NAMESPACE: .* expected up to 63 lower-case letters, digits and hyphens$"
        ):
            kubernetes_names.namespace(NAMESPACE, {"PECO_NAMESPACE": text})


def test_an_unset_variable_has_its_default() -> None:
    secret = Variable("SECRET", "", "peco-storage")
    assert kubernetes_names.object_name(secret, {"SECRET": ""}) == "peco-storage"
    assert kubernetes_names.object_name(VOLUME_CLAIM, {}) == ""
    assert kubernetes_names.pull_policy({}) == "IfNotPresent"


def test_a_pull_policy_is_one_of_kubernetes() -> None:
    assert kubernetes_names.pull_policy({PULL_POLICY.name: "Never"}) == "Never"
    with pytest.raises(
        PecoError, match=r"^PECO_PULL_POLICY: 'always' is not allowed; expected IfNotPresent, Always, Never$"
    ):
        kubernetes_names.pull_policy({PULL_POLICY.name: "always"})
