"""The logs of pods, followed through the API: each line once, even if the connection breaks."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

from kubernetes.client.exceptions import ApiException
from urllib3.exceptions import ReadTimeoutError

from pipelines.jobs import pods
from pipelines.jobs.connection import reason_of
from pipelines.jobs.kube import Api
from pipelines.jobs.output import Output
from pipelines.jobs.refusals import error_message

RETRY_SECONDS = 2.0
TRIES = 5  # failed ones in a row, before it is reported
# After this time without a line the connection may be dead: it is made again.
SILENCE_SECONDS = 60
LOG_SECONDS = 10.0  # for the last lines of pods that have ended
# The two streams of a container are stamped separately, so lines may be slightly out of order.
OVERLAP = timedelta(seconds=2)


class PodLogs:
    """The logs of a job's pods, shown as they are written.

    Args:
        api: the API.
        output: shows the lines.
        note: shows a notice.
    """

    def __init__(self, api: Api, output: Output, note: Callable[[str], None]) -> None:
        self._api, self._output, self._note = api, output, note
        self._lines: queue.SimpleQueue[tuple[str, str]] = queue.SimpleQueue()
        self._logs: dict[str, _PodLog] = {}
        self._unreadable: set[str] = set()  # pods whose log was reported as unreadable

    def follow(self, pod: pods.Pod) -> None:
        """Follow the pod's log from its start on; with the pod's end the log ends, too."""
        name = pods.name(pod)
        if name not in self._logs and pods.has_started(pod):
            container = pod["spec"]["containers"][0]["name"]
            self._logs[name] = _PodLog(self._api.client, self._api.namespace, name, container, self._lines)
            self._logs[name].start()
        if name in self._logs and pods.has_ended(pod):
            self._logs[name].finish()

    def show(self) -> None:
        """Show the lines since the last call.

        Raises:
            PecoError: reading logs is not allowed.
        """
        while not self._lines.empty():
            pod, line = self._lines.get()
            self._output.add(pod, [line])
        for name, log in self._logs.items():
            if log.refused:
                raise self._api.refused("get pods/log", log.refused)
            if log.trouble and name not in self._unreadable:
                self._unreadable.add(name)
                self._note(f"the log of pod {name} can't be read ({log.trouble}); its lines are shown once it can")

    def drain(self, *names: str) -> bool:
        """Show the last lines of these pods, which have ended, by default of all; False if some can't be read."""
        deadline = time.monotonic() + LOG_SECONDS
        logs = [self._logs[name] for name in names or self._logs if name in self._logs]
        for log in logs:
            log.finish()
            log.join(max(0.0, deadline - time.monotonic()))
        self.show()
        return not any(log.is_alive() for log in logs)


class _PodLog(threading.Thread):
    """Puts (pod, line) into `lines` as they are written, until the container has ended and everything is read."""

    def __init__(
        self, client: Any, namespace: str, pod: str, container: str, lines: queue.SimpleQueue[tuple[str, str]]
    ) -> None:
        super().__init__(daemon=True, name=f"log of {pod}")
        self._client, self._lines = client, lines
        self._path = f"/api/v1/namespaces/{namespace}/pods/{pod}/log"
        self._pod, self._container = pod, container
        self._finished = threading.Event()
        self._response: Any = None  # while a log is being read
        self.refused: ApiException | None = None
        self.trouble: str | None = None  # the reason of failed attempts; they are repeated
        self._newest: datetime | None = None
        self._recent: Counter[tuple[datetime, str]] = Counter()  # lines of the last seconds

    def finish(self) -> None:
        """The container has ended, its log is complete. It is read once more: the stream is closed only a second later."""
        if not self._finished.is_set():
            self._finished.set()
            with contextlib.suppress(AttributeError, RuntimeError, ValueError, OSError):  # it has ended by itself
                self._response.shutdown()

    def run(self) -> None:
        failed = 0  # in a row
        while True:
            finished = self._finished.is_set()
            complete = False
            reason = ""
            try:
                self._read(last=finished)
                complete = True
            except ApiException as error:
                if error.status == 404:
                    return
                if error.status in (401, 403):
                    self.refused = error
                    return
                reason = f"{error.status}: {error_message(error)}"
            except ReadTimeoutError:
                pass  # a silent pod
            except Exception as error:  # a broken connection raises many kinds of errors, and none of them ends the job
                reason = reason_of(error)
            failed = failed + 1 if reason else 0
            if failed >= TRIES:
                self.trouble = reason
            if finished and complete:
                return
            self._finished.wait(RETRY_SECONDS) if not finished else time.sleep(RETRY_SECONDS / 4)

    def _read(self, *, last: bool) -> None:
        """Read until the connection ends."""
        query = {"container": self._container, "follow": "true", "timestamps": "true"}
        if self._newest:
            query["sinceTime"] = (self._newest - OVERLAP).astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        known = Counter(self._recent)
        # Not `read_namespaced_pod_log`, which lacks sinceTime.
        response = self._client.call_api(
            self._path,
            "GET",
            query_params=list(query.items()),
            auth_settings=["BearerToken"],
            _preload_content=False,
            _return_http_data_only=True,
            _request_timeout=(10, SILENCE_SECONDS),
        )
        self._response = response
        with contextlib.closing(response):
            for raw in _lines(response, last=last):
                stamp, text = _split(raw)
                if stamp is None:
                    continue
                if known[stamp, text]:
                    known[stamp, text] -= 1
                    continue
                self._remember(stamp, text)
                self._lines.put((self._pod, text))

    def _remember(self, stamp: datetime, text: str) -> None:
        self._recent[stamp, text] += 1
        if self._newest is None or stamp > self._newest:
            oldest = stamp - 2 * OVERLAP
            # Cleaned up once a second, not for each line.
            if self._newest is None or stamp.second != self._newest.second:
                self._recent = Counter({key: count for key, count in self._recent.items() if key[0] >= oldest})
            self._newest = stamp


def _lines(response: Any, *, last: bool) -> Iterator[str]:
    """Complete lines; with `last` also one that lacks its newline, since nothing can follow."""
    rest = b""
    for chunk in response.stream():
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            yield line.decode(errors="replace")
    if last and rest:
        yield rest.decode(errors="replace")


def _split(raw: str) -> tuple[datetime | None, str]:
    """Time and text. Times have up to nine digits after the point; those that a datetime can't hold are dropped."""
    stamp, _, text = raw.partition(" ")
    try:
        return datetime.fromisoformat(stamp), text
    except ValueError:
        return None, raw
