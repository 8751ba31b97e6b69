"""The pod of `make cluster-check`: made as that of a step, followed to its end, and removed."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from k8s.check_report import Report
from peco.core.errors import PecoError
from peco.core.stopping import StopSignals
from pipelines.jobs import pods
from pipelines.jobs.backend import StopRequested
from pipelines.jobs.kube import Api
from pipelines.kfp.target import Target
from pipelines.workflow.environment import CA_FOLDER, NAMESPACE

MANIFEST = Path("k8s/cluster-check.yaml")
START_SECONDS = 900.0  # of which pulling a large image takes most
STUCK_SECONDS = 20.0  # a pod that can't start is given up
UNSCHEDULED_SECONDS = 60.0
NOTE_SECONDS = 30.0
LAST_LINES = 10
Json = dict[str, Any]


class CheckPod:
    """The pod, in the namespace of the API."""

    def __init__(self, api: Api, stops: StopSignals, report: Report, target: Target, account: str) -> None:
        self.api, self.stops, self.report, self.target, self.account = api, stops, report, target, account
        self.shown = 0  # lines of the log
        self.other: list[str] = []  # lines that are no results

    def run(self, settings: Mapping[str, str]) -> None:
        """Run the checks in the pod, and report their results.

        Raises:
            PecoError: the cluster refuses the pod.
            StopRequested: a stop signal came; the pod is removed.
        """
        body = self.manifest(settings)
        pod = self._call(
            "create pods", lambda: self.api.core.create_namespaced_pod(self.api.namespace, body, _preload_content=False)
        )
        name = pods.name(pod)
        try:
            self._follow(name)
        finally:
            # The job is deleted with its owner.
            self.api.call_if_exists(
                "delete pods",
                lambda: self.api.core.delete_namespaced_pod(name, self.api.namespace),
                ignore_stop_for=5.0,
            )

    def manifest(self, settings: Mapping[str, str]) -> Json:
        """The pod to create."""
        target = self.target
        body: Json = yaml.safe_load(MANIFEST.read_text(encoding="utf-8"))
        spec = body["spec"]
        spec["serviceAccountName"] = self.account
        [container] = spec["containers"]
        container |= {"image": target.image, "imagePullPolicy": target.pull_policy}
        container["command"].append(json.dumps(dict(settings)))
        container["env"] += [{"name": name, "value": value} for name, value in target.env().items()]
        container["env"].append({"name": NAMESPACE.name, "value": self.api.namespace})
        [mount], [volume] = container["volumeMounts"], spec["volumes"]
        mount["mountPath"] = target.volume_path
        volume["persistentVolumeClaim"]["claimName"] = target.volume_claim
        for folder, secret in target.secrets(writes=False).items():
            spec["volumes"].append({"name": f"secret-{secret}", "secret": {"secretName": secret, "optional": True}})
            container["volumeMounts"].append({"name": f"secret-{secret}", "mountPath": folder, "readOnly": True})
        if target.ca_configmap:
            spec["volumes"].append({"name": "ca", "configMap": {"name": target.ca_configmap}})
            container["volumeMounts"].append({"name": "ca", "mountPath": CA_FOLDER, "readOnly": True})
        return body

    def _follow(self, name: str) -> None:
        started = noted = time.monotonic()
        problem_since: float | None = None
        while True:
            pod = self._call(
                "get pods", lambda: self.api.core.read_namespaced_pod(name, self.api.namespace, _preload_content=False)
            )
            if pods.has_started(pod):
                self._show(name)
                # Not as soon as the container has ended: the phase follows, and tells how.
                if pod.get("status", {}).get("phase") in ("Succeeded", "Failed"):
                    self._show(name)
                    self._end(pod)
                    return
            else:
                now = time.monotonic()
                stuck, unscheduled = pods.stuck([pod]), pods.unscheduled([pod])
                problem = stuck or unscheduled
                problem_since = (problem_since or now) if problem else None
                patience = STUCK_SECONDS if stuck else UNSCHEDULED_SECONDS
                if (problem_since and now - problem_since > patience) or now - started > START_SECONDS:
                    details = () if stuck else self._events(name)
                    self.report.fail("the pod of a step starts", self._advice(stuck, unscheduled), details)
                    return
                if now - noted > NOTE_SECONDS:
                    noted = now
                    self.report.note(
                        f"pod {name} has not started: {problem or 'its image is pulled, or its volume is mounted'}"
                    )
            self.stops.wait(1.0)
            if self.stops.first:
                raise StopRequested

    def _show(self, name: str) -> None:
        """Report the results that the log has since the last call."""
        text = self.api.call(
            "get pods/log",
            lambda: self.api.core.read_namespaced_pod_log(
                name, self.api.namespace, _preload_content=False
            ).data.decode(),
        )
        *lines, _ = text.split("\n")
        for line in lines[self.shown :]:
            try:
                found = json.loads(line)
                title, state, reason = found["title"], found["state"], found["text"]
            except (ValueError, TypeError, KeyError):
                self.other.append(line)
                continue
            if state == "note":
                self.report.note(reason)
            elif state == "right":
                self.report.right(title, reason)
            else:
                self.report.fail(title, reason)
        self.shown = len(lines)

    def _end(self, pod: pods.Pod) -> None:
        end = pods.end(pod)
        if end is None:
            return
        text = f"it ended with status {end.status} {end.reason}".strip()
        if any("No module named" in line for line in self.other):
            text += "; the image is not of this commit, or lacks the project: build one"
        self.report.fail("the pod of a step runs to its end", text, tuple(self.other[-LAST_LINES:]))

    def _advice(self, stuck: str | None, unscheduled: str | None) -> str:
        if stuck:
            return f"{stuck}; correct PECO_IMAGE, push it, or add imagePullSecrets to account {self.account}"
        if unscheduled:
            return f"{unscheduled}; give the node or the claim that it needs"
        return f"not in {START_SECONDS:.0f} s; the events tell why"

    def _events(self, name: str) -> tuple[str, ...]:
        """Warnings about the pod, each once; empty where this account can't read them."""

        def read() -> list[str]:
            selector = f"involvedObject.name={name},type=Warning"
            events = self.api.core.list_namespaced_event(self.api.namespace, field_selector=selector).items
            return [f"{event.reason}: {' '.join((event.message or '').split())}" for event in events]

        try:
            return tuple(dict.fromkeys(self.api.call("list events", read)))
        except PecoError:
            return ()

    def _call(self, right: str, call: Any) -> Json:
        """The answer of a call as plain data."""
        return self.api.call(right, lambda: dict(json.loads(call().data)))
