"""The reasons for which a cluster refuses a job or its pods, distinguished by the server's own words, each with what to do."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

from kubernetes.client.exceptions import ApiException
from kubernetes.utils.quantity import parse_quantity


@dataclass(frozen=True)
class Refusal:
    """A refusal by the cluster.

    Attributes:
        text: one line: what is wrong, what to do.
        pending: True if it passes by itself: the cluster isn't ready to decide.
        shared: True if it passes when others give back what they use.
    """

    text: str
    pending: bool = False
    shared: bool = False


def error_message(error: ApiException) -> str:
    """The message in the API's answer, in one line."""
    try:
        message = str(json.loads(error.body)["message"])
    except (ValueError, KeyError, TypeError):
        body = error.body.decode(errors="replace") if isinstance(error.body, bytes) else error.body
        # Proxies, and the server before it knows the request, answer with plain text or with a page.
        message = str(body) if body and len(body) < 200 and "<" not in body else str(error.reason)
    return " ".join(message.split())


def of_call(error: ApiException, right: str, namespace: str) -> Refusal:
    """The refusal of a call to the API.

    Args:
        error: the answer.
        right: the right that the call needs: "create jobs.batch.volcano.sh".
        namespace: of the call.
    """
    message = error_message(error)
    if found := _admission(message, namespace):
        return found
    action = f"{right} in namespace {namespace} ({error.status}: {message})"
    user = re.search(r'User "([^"]+)" cannot ', message)
    if error.status == 401 or (user and user[1] == "system:anonymous"):
        return Refusal(f"the cluster refuses to {action}; renew the credentials")
    if error.status == 403:
        who = user[1] if user else "the account"
        return Refusal(f"not allowed to {action}; give {who} the role peco-jobs (k8s/base/accounts.yaml)")
    if missing := re.search(r'namespaces "([^"]+)" not found', message):
        return Refusal(f"there is no namespace {missing[1]}; correct PECO_NAMESPACE")
    if error.status == 404:
        return Refusal(f"the cluster refuses to {action}; is Volcano installed?")
    return Refusal(f"the cluster refuses to {action}")


def of_pods(event: str, namespace: str, count: int) -> Refusal:
    """The refusal of a job's pods, from the event that Volcano's controller leaves on the job.

    Args:
        event: its message.
        namespace: of the job.
        count: number of the job's pods, which run together or not at all.
    """
    found = re.search(r'Message:("(?:[^"\\]|\\.)*"), Reason:', event)
    try:
        message = str(json.loads(found[1])) if found else event
    except ValueError:
        message = event
    message = " ".join(message.split())
    return _admission(message, namespace, count) or Refusal(f"the cluster refuses the job's pods ({message})")


def _admission(message: str, namespace: str, count: int = 1) -> Refusal | None:
    if found := re.search(r"exceeded quota: (\S+), requested: (\S+), used: (\S+), limited: (\S+)", message):
        return _exceeded_quota(found, namespace, count)
    for words, text, pending in _ADMISSION:
        if found := re.search(words, message):
            return Refusal(text.format(*found.groups(), namespace=namespace), pending=pending)
    return None


def _exceeded_quota(found: re.Match[str], namespace: str, count: int) -> Refusal:
    name = found[1]
    wanted, taken, limits = (_amounts(found[number]) for number in (2, 3, 4))
    fits = all(count * parse_quantity(amount) <= parse_quantity(limits[key]) for key, amount in wanted.items())
    parts = [
        f"{key} {taken.get(key, '0')} of {limits[key]} in use, {amount} asked for" for key, amount in wanted.items()
    ]
    advice = "delete what has ended" if fits else "ask for less"
    return Refusal(
        f"quota {name} of namespace {namespace} has no room ({'; '.join(parts)}): {advice}, or have the quota raised "
        f"(kubectl -n {namespace} describe quota {name})",
        shared=fits,
    )


def _amounts(text: str) -> dict[str, str]:
    """`cpu=1,memory=2Gi` as a dictionary."""
    return dict(part.split("=", 1) for part in text.split(","))


# Words of the server, the line for the user with their groups, and `pending`. The first match counts.
_ADMISSION = (
    (
        r"status unknown for quota: (\S+?),",
        "quota {0} of namespace {namespace} is not computed yet (kubectl -n {namespace} describe quota {0})",
        True,
    ),
    (
        r"failed quota: (\S+): must specify (.+)",
        "quota {0} of namespace {namespace} demands {1}, which the job doesn't set: have a LimitRange set a default",
        False,
    ),
    (
        r'violates PodSecurity "([^"]+)": (.+)',
        "pod security {0} of namespace {namespace} forbids the job's pods: {1}; leave out PECO_CAPABILITIES if it is about "
        "capabilities, or use a namespace with a less strict level",
        False,
    ),
    (
        r"((?:maximum|minimum) \S+ usage per (?:Container|Pod) is .+|\S+ max limit to request ratio per .+)",
        "a LimitRange of namespace {namespace} forbids the job's pods: {0}; change the stage's resources, or have the range "
        "changed (kubectl -n {namespace} describe limitrange)",
        False,
    ),
    (
        r"no PriorityClass with name (\S+) was found",
        "there is no priority class {0}; correct PECO_PRIORITY (kubectl get priorityclass)",
        False,
    ),
    (
        r'error looking up service account \S+: serviceaccount "([^"]+)" not found',
        "there is no service account {0} in namespace {namespace}; correct PECO_SERVICE_ACCOUNT, or apply the manifests",
        False,
    ),
    (
        r"unable to create new content in namespace (\S+) because it is being terminated",
        "namespace {0} is being deleted; create it again, or correct PECO_NAMESPACE",
        False,
    ),
    (
        r'admission webhook "[^"]+\.volcano\.sh" denied the request: (.*queue.*?);*$',
        "Volcano refuses the job: {0}; name another queue in PECO_QUEUE (kubectl get queues.scheduling.volcano.sh)",
        False,
    ),
    (r'admission webhook "[^"]+\.volcano\.sh" denied the request: (.+?);*$', "Volcano refuses the job: {0}", False),
    (
        r'admission webhook "([^"]+)" denied the request: (.+)',
        "admission webhook {0} refuses the job: {1}; change that, or ask the cluster's administrator",
        False,
    ),
    (
        r"ValidatingAdmissionPolicy '([^']+)' with binding '[^']+' denied request: (.+)",
        "admission policy {0} refuses the job: {1}; change that, or ask the cluster's administrator",
        False,
    ),
    (r'failed calling webhook "([^"]+)": (.+)', "admission webhook {0} doesn't answer: {1}", True),
)
