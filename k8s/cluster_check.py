"""Check a cluster before the first run: `make cluster-check NS=namespace`.

First what can be seen from outside: the API, Volcano, the queue, the accounts and their rights, the claim, nodes with GPUs. Then
what only pods can try (pipelines/pod_check.py): the image, the volume, both remotes, and a Volcano job of two pods that reach each
other. The settings come from the environment, as for `make pipeline-submit` (docs/cluster.md). What the check makes is removed.
"""

from __future__ import annotations

import argparse
import configparser
import contextlib
import dataclasses
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from kubernetes import client
from kubernetes.client.exceptions import ApiException
from kubernetes.utils.quantity import parse_quantity

from k8s.check_pod import CheckPod
from k8s.check_report import Report
from peco.core.errors import PecoError
from peco.core.resources import Resources
from peco.core.stage_name import StageName
from peco.core.stopping import StopSignals
from pipelines.jobs import capacity
from pipelines.jobs.backend import StopRequested
from pipelines.jobs.kube import Api, Unreachable
from pipelines.kfp.target import Target
from pipelines.workflow import environment
from pipelines.workflow.git import git, without_secrets
from pipelines.workflow.graph import Stage
from pipelines.workflow.stage_resources import resolve

OLDEST = (1, 28)  # version of Kubernetes
PATIENCE_SECONDS = 20
APPLY = "apply the manifests (kubectl apply -k k8s/overlays/…)"
ACCOUNTS = Path("k8s/base/accounts.yaml")
Json = dict[str, Any]


def main(argv: Sequence[str] | None = None) -> int:
    """Print what is right and what is not; 0 if all is right, 2 if not, 128 + the signal after a stop."""
    parser = argparse.ArgumentParser(prog="python -m k8s.cluster_check", description="Check a cluster.")
    parser.add_argument("namespace", help="namespace of the runs")
    namespace = parser.parse_args(argv).namespace
    report = Report()
    with StopSignals() as stops:
        try:
            check(namespace, report, stops, os.environ)
        except PecoError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        except StopRequested:
            return stops.status
    return report.end()


def check(namespace: str, report: Report, stops: StopSignals, env: Mapping[str, str]) -> None:
    """Check the cluster, and report each result.

    Raises:
        PecoError: a variable is wrong, so nothing can be checked.
        StopRequested: a stop signal came.
    """
    target = Target.from_env(env)
    if not environment.IMAGE.is_set(env):
        raise PecoError(f"{environment.IMAGE.name}: not set; name the image of steps and jobs")
    resources = resolve(Stage(StageName("check"), (), (), (), (), {}, "train"), env)
    account = env.get("KFP_SERVICE_ACCOUNT") or "peco-step"
    report.section("cluster")
    api: Api | None = None

    def connect() -> str:
        nonlocal api
        api = Api(namespace, stops, PATIENCE_SECONDS, report.note)
        return _version(api)

    if not report.run("Kubernetes answers", connect) or api is None:
        return
    seen = _Seen(api, resources)
    if not report.run(f"namespace {namespace}", seen.namespace):
        return
    volcano = report.run("Volcano is installed", seen.volcano)
    room = volcano and report.run(f"queue {capacity.queue_name(resources)}", seen.queue)
    if resources.gpus:
        room &= report.run(f"nodes with {resources.gpus} {resources.gpu_resource}", seen.gpus)
    claim = report.run(f"claim {target.volume_claim}", lambda: seen.claim(target.volume_claim))
    known = report.run(f"account {account}", lambda: seen.account(account))
    report.run(f"account {target.service_account}", lambda: seen.account(target.service_account))
    for role in ("peco-jobs", "peco-kubeflow") if account == "peco-step" else ("peco-jobs",):
        report.run(f"rights of {account}: role {role}", lambda role=role: seen.rights(account, role))  # type: ignore[misc]
    report.section("from inside, in pods")
    if not (claim and known):
        report.skip("image, volume, remotes, job", "correct the above first")
        return
    if not room:
        report.skip("a Volcano job of two pods", "correct the above first")
    settings = {"git": _git_remote(report, env), "dvc": _dvc_remote(report, env), "job": "yes" if room else ""}
    try:
        CheckPod(api, stops, report, target, account).run(settings)
    except PecoError as error:
        report.fail("the pod of a step", str(error))
    except Unreachable as error:
        report.fail("the pod of a step", f"the API can't be reached any more ({error})")


def _version(api: Api) -> str:
    version = api.call("get version", client.VersionApi(api.client).get_code)
    number = (int(version.major), int(re.sub(r"\D.*", "", version.minor)))
    if number < OLDEST:
        raise PecoError(f"it is {version.git_version}; use {OLDEST[0]}.{OLDEST[1]} or newer")
    return f"{version.git_version} at {api.host}"


@dataclasses.dataclass(frozen=True)
class _Seen:
    """Checks of a cluster that need no pod. Each method returns a text, or raises PecoError with what is wrong."""

    api: Api
    resources: Resources

    def namespace(self) -> str:
        name = self.api.namespace
        with _missing(f"there is none; {APPLY}, or correct NS"):
            found = self._get("get namespaces", lambda: self.api.core.read_namespace(name))
        level = (found.metadata.labels or {}).get("pod-security.kubernetes.io/enforce") if found else None
        return f"pod security {level}" if level else ""

    def volcano(self) -> str:
        with _missing("no jobs.batch.volcano.sh; install Volcano 1.9 or newer"):
            self._get(
                "get jobs.batch.volcano.sh", lambda: self.api.custom.get_api_resources("batch.volcano.sh", "v1alpha1")
            )
        return "jobs.batch.volcano.sh"

    def queue(self) -> str:
        capacity.refuse_impossible(self.api, self.resources)
        return capacity.describe(self.api, self.resources)[1]

    def gpus(self) -> str:
        nodes = self._get("list nodes", self.api.core.list_node)
        if nodes is None:
            return "not checked: this account may not list nodes"
        wanted = self.resources.gpu_resource
        most = max(
            (int(parse_quantity((node.status.allocatable or {}).get(wanted, "0"))) for node in nodes.items), default=0
        )
        if most < self.resources.gpus:
            raise PecoError(
                f"a node has at most {most}; install the device plugin, or lower PECO_GPUS, or set PECO_GPU_RESOURCE"
            )
        return f"a node has up to {most}"

    def claim(self, name: str) -> str:
        with _missing(f"there is none; {APPLY}, or correct {environment.VOLUME_CLAIM.name}"):
            found = self._get(
                "get persistentvolumeclaims",
                lambda: self.api.core.read_namespaced_persistent_volume_claim(name, self.api.namespace),
            )
        if found is None:
            return "not checked: this account may not read it"
        size = (found.status.capacity or {}).get("storage", found.spec.resources.requests["storage"])
        return f"{found.status.phase}, {size}, {', '.join(found.spec.access_modes)}"

    def account(self, name: str) -> str:
        with _missing(f"there is none; {APPLY}"):
            self._get(
                "get serviceaccounts", lambda: self.api.core.read_namespaced_service_account(name, self.api.namespace)
            )
        return ""

    def rights(self, account: str, role: str) -> str:
        """Ask the API whether the account may do what the role in k8s/base lists."""
        wanted = list(_rules(role))
        try:
            refused = [" ".join(filter(None, right)) for right in wanted if not self._may(account, *right)]
        except ApiException as error:
            if error.status != 403:
                raise
            return (
                f"not checked: this account may not ask (kubectl auth can-i … --as=system:serviceaccount:…:{account})"
            )
        if refused:
            raise PecoError(f"may not {', '.join(refused)}; {APPLY}: the role {role} and its binding")
        return f"all {len(wanted)}"

    def _may(self, account: str, verb: str, resource: str, name: str) -> bool:
        namespace = self.api.namespace
        kind, _, group = resource.partition(".")
        plural, _, subresource = kind.partition("/")
        attributes = {"namespace": namespace, "verb": verb, "group": group, "resource": plural}
        attributes |= {"subresource": subresource, "name": name}
        groups = ["system:serviceaccounts", f"system:serviceaccounts:{namespace}", "system:authenticated"]
        user = f"system:serviceaccount:{namespace}:{account}"
        body = {
            "apiVersion": "authorization.k8s.io/v1", "kind": "LocalSubjectAccessReview", "metadata": {"namespace": namespace},
            "spec": {"user": user, "groups": groups, "resourceAttributes": attributes},
        }  # fmt: skip
        reviews = client.AuthorizationV1Api(self.api.client)
        answer = self.api.call(
            "create localsubjectaccessreviews",
            lambda: reviews.create_namespaced_local_subject_access_review(namespace, body),
            pass_statuses=(403,),
        )
        return bool(answer.status.allowed)

    def _get(self, right: str, call: Callable[[], Any]) -> Any:
        """The result of a call; None where this account may not see the object, which is no fault of the cluster.

        Raises:
            ApiException: there is no such object.
        """
        try:
            return self.api.call(right, call, pass_statuses=(403, 404))
        except ApiException as error:
            if error.status == 403:
                return None
            raise


@contextlib.contextmanager
def _missing(text: str) -> Iterator[None]:
    try:
        yield
    except ApiException as error:
        raise PecoError(text if error.status == 404 else str(error.reason)) from None


def _rules(role: str) -> Iterator[tuple[str, str, str]]:
    """The rights that a role of the manifests gives: verb, `resource.group`, and a name or nothing."""
    for item in yaml.safe_load_all(ACCOUNTS.read_text(encoding="utf-8")):
        if item["kind"] == "Role" and item["metadata"]["name"] == role:
            for rule in item["rules"]:
                for group in rule["apiGroups"]:
                    for resource in rule["resources"]:
                        for verb in rule["verbs"]:
                            for name in rule.get("resourceNames", [""]):
                                yield verb, f"{resource}.{group}".rstrip("."), name


def _git_remote(report: Report, env: Mapping[str, str]) -> str:
    """Address of the git remote from which the cluster fetches; empty where there is none."""
    name = env.get("GIT_REMOTE") or "origin"
    try:
        return without_secrets(git("remote", "get-url", name).strip())
    except PecoError:
        report.skip("the git remote", f"this repository has no remote {name} (GIT_REMOTE)")
        return ""


def _dvc_remote(report: Report, env: Mapping[str, str]) -> str:
    """Configuration of DVC with the remote of the steps; empty where there is none."""
    if address := environment.REMOTE.text(env):
        endpoint = environment.REMOTE_ENDPOINT.text(env)
        lines = ["[core]", "remote = cluster", "['remote \"cluster\"']", f"url = {address}"]
        return "\n".join(lines + ([f"endpointurl = {endpoint}"] if endpoint else []))
    file = Path(".dvc/config")
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.read(file, encoding="utf-8")
    if parser.get("core", "remote", fallback=""):
        return file.read_text(encoding="utf-8")
    report.skip(
        "the DVC remote", f"{file} names none (dvc remote add -d NAME ADDRESS), and {environment.REMOTE.name} is unset"
    )
    return ""


if __name__ == "__main__":
    sys.exit(main())
