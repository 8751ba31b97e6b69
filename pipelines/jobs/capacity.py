"""The room that a job finds in its queue and on the nodes, as far as the account may see them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from decimal import Decimal
from functools import partial
from typing import Any

from kubernetes.client.exceptions import ApiException
from kubernetes.utils.quantity import parse_quantity

from peco.core.errors import PecoError
from peco.core.resources import Resources
from pipelines.jobs.kube import Api
from pipelines.jobs.refusals import error_message

GROUP, VERSION, PLURAL = "scheduling.volcano.sh", "v1beta1", "queues"
LONGEST_CHAIN = 10  # of a queue and its parents
GIB, MIB = 2**30, 2**20
NOT_VISIBLE = (401, 403, 404)

Json = Mapping[str, Any]
Amounts = dict[str, Decimal]


def queue_name(resources: Resources) -> str:
    """The job's queue."""
    return resources.queue or "default"


def refuse_impossible(api: Api, resources: Resources) -> None:
    """Check that the queue can ever take the job. A queue that the account can't read is not checked.

    Raises:
        PecoError: there is no such queue, it is closed, or it or a parent is smaller than the job.
    """
    name = queue_name(resources)
    hint = "name another in PECO_QUEUE (kubectl get queues.scheduling.volcano.sh)"
    try:
        queue: Json | None = _queue(api, name)
    except ApiException as error:
        # Without Volcano the API answers 404, too, but doesn't name the queue.
        if error.status == 404 and name in error_message(error):
            raise PecoError(f"there is no queue {name}; {hint}") from None
        return
    if queue and (state := queue.get("status", {}).get("state")) in ("Closed", "Closing"):
        raise PecoError(f"queue {name} is {state.lower()}; {hint}")
    wanted = {key: resources.nodes * amount for key, amount in _amounts(resources.amounts).items()}
    for _ in range(LONGEST_CHAIN):
        if not queue:
            return
        limits = _amounts(queue["spec"].get("capability") or {})
        if short := [key for key in wanted if key in limits and wanted[key] > limits[key]]:
            together = f", together {_text(wanted, short)}" if resources.nodes > 1 else ""
            raise PecoError(
                f"the job asks for {_request(resources)}{together}; queue {queue['metadata']['name']} has {_text(limits, short)} "
                "in all: ask for less, or have the queue enlarged"
            )
        parent = queue["spec"].get("parent")
        queue = _visible(lambda name=parent: _queue(api, name)) if parent else None  # type: ignore[misc]


def describe(api: Api, resources: Resources) -> list[str]:
    """The demand of the job, and the capacity of its queue and of the nodes, one text for each."""
    name = queue_name(resources)
    queue = _visible(lambda: _queue(api, name))
    # Version 0: from the server's memory.
    listing = partial(api.core.list_node, resource_version="0")
    nodes = _visible(lambda: api.items("list nodes", listing, pass_statuses=NOT_VISIBLE))
    return [
        f"it asks for {_request(resources)}",
        _queue_text(queue, resources) if queue else f"this account can't read queue {name}",
        _nodes_text(nodes, resources) if nodes is not None else "this account can't read nodes",
    ]


def commands(namespace: str, group: str, resources: Resources) -> str:
    """The commands with which an administrator sees all of it."""
    return (
        f"kubectl -n {namespace} describe podgroups.{GROUP} {group}; kubectl describe {PLURAL}.{GROUP} "
        f"{queue_name(resources)}; kubectl describe nodes"
    )


def _visible(call: Callable[[], Any]) -> Any:
    """The result of a call; None where the account doesn't see the object."""
    try:
        return call()
    except ApiException:
        return None


def _queue(api: Api, name: str) -> Json:
    found: Json = api.call(
        f"get {PLURAL}.{GROUP}",
        lambda: api.custom.get_cluster_custom_object(GROUP, VERSION, PLURAL, name),
        pass_statuses=NOT_VISIBLE,
    )
    return found


def _queue_text(queue: Json, resources: Resources) -> str:
    limits = _amounts(queue["spec"].get("capability") or {})
    used = _amounts(queue.get("status", {}).get("allocated") or {})
    parts = [
        f"{key} {_amount(key, used.get(key, Decimal(0)))}"
        + (f" of {_amount(key, limits[key])}" if key in limits else "")
        for key in resources.amounts
    ]
    return f"in use in queue {queue['metadata']['name']}: {', '.join(parts)}"


def _nodes_text(nodes: list[Json], resources: Resources) -> str:
    wanted = _amounts(resources.amounts)
    usable = [_amounts(node["status"].get("allocatable") or {}) for node in nodes if _may_use(node, resources)]
    if not usable:
        return f"none of {len(nodes)} nodes fits node_selector and tolerations"
    fitting = sum(all(has.get(key, 0) >= amount for key, amount in wanted.items()) for has in usable)
    if fitting:
        return f"{fitting} of {len(nodes)} nodes are large enough when they are free"
    most = {key: max(has.get(key, Decimal(0)) for has in usable) for key in wanted}
    return f"none of {len(nodes)} nodes is large enough, at most {_text(most, wanted)}"


def _may_use(node: Json, resources: Resources) -> bool:
    labels = node["metadata"].get("labels") or {}
    if not resources.selector.items() <= labels.items():
        return False
    taints = [taint for taint in node["spec"].get("taints") or () if taint["effect"] != "PreferNoSchedule"]
    return all(any(_tolerates(each, taint) for each in resources.tolerated) for taint in taints)


def _tolerates(toleration: Json, taint: Json) -> bool:
    same = toleration["key"] == taint["key"] and toleration["effect"] == taint["effect"]
    return bool(same and (toleration["operator"] == "Exists" or toleration["value"] == taint.get("value", "")))


def _request(resources: Resources) -> str:
    wanted = _amounts(resources.amounts)
    return (f"{resources.nodes} nodes, each with " if resources.nodes > 1 else "") + _text(wanted, wanted)


def _amounts(texts: Mapping[str, str]) -> Amounts:
    return {key: parse_quantity(text) for key, text in texts.items()}


def _text(amounts: Mapping[str, Decimal], keys: Iterable[str]) -> str:
    return ", ".join(f"{key} {_amount(key, amounts[key])}" for key in keys)


def _amount(key: str, amount: Decimal) -> str:
    """An amount in Kubernetes' form, memory rounded to a tenth of its unit."""
    if key != "memory":
        return f"{amount.normalize():f}"
    unit, name = (GIB, "Gi") if amount >= GIB else (MIB, "Mi")
    return f"{amount / unit:.1f}".removesuffix(".0") + name
