"""Following the log of a pod through the API: each line once, whatever happens to the connection."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

from pipelines.jobs.kube import said

RETRY_SECONDS = 2.0
TRIES = 5  # in a row that fail, before it is a trouble
# Without a line for so long the connection may be dead: it is made anew.
SILENCE_SECONDS = 60
# The two streams of a container are stamped apart, so lines may come out of order by a little.
OVERLAP = timedelta(seconds=2)


class PodLog(threading.Thread):
    """Puts (pod, line) into `lines` as they are written, until the container has ended and all has been read."""

    def __init__(
        self, api: Any, namespace: str, pod: str, container: str, lines: queue.SimpleQueue[tuple[str, str]]
    ) -> None:
        super().__init__(daemon=True, name=f"log of {pod}")
        self._api, self._lines = api, lines
        self._path = f"/api/v1/namespaces/{namespace}/pods/{pod}/log"
        self._pod, self._container = pod, container
        self.finished = threading.Event()  # the container has ended: what the log holds now is all
        self.refused: Exception | None = None
        self.trouble: str | None = None  # why the log can't be read, where it couldn't for a while; it is tried on
        self._newest: datetime | None = None
        self._recent: Counter[tuple[datetime, str]] = Counter()  # lines of the last moments

    def run(self) -> None:
        from kubernetes.client.exceptions import ApiException
        from urllib3.exceptions import ReadTimeoutError

        failed = 0  # in a row
        while True:
            finished = self.finished.is_set()
            whole = False
            why = ""
            try:
                self._read(last=finished)
                whole = True
            except ApiException as error:
                if error.status == 404:
                    return
                if error.status in (401, 403):
                    self.refused = error
                    return
                why = f"{error.status}: {said(error)}"
            except ReadTimeoutError:
                pass  # a pod that says nothing
            except Exception as error:  # a broken connection has many names, and none of them ends the job
                why = " ".join(str(error).split()) or type(error).__name__
            failed = failed + 1 if why else 0
            if failed >= TRIES:
                self.trouble = why
            if finished and whole:
                return
            self.finished.wait(RETRY_SECONDS) if not finished else time.sleep(RETRY_SECONDS / 4)

    def _read(self, *, last: bool) -> None:
        """Read until the connection ends."""
        query = {"container": self._container, "follow": "true", "timestamps": "true"}
        if self._newest:
            query["sinceTime"] = (self._newest - OVERLAP).astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        known = Counter(self._recent)
        response = self._api.call_api(
            self._path,
            "GET",
            query_params=list(query.items()),
            auth_settings=["BearerToken"],
            _preload_content=False,
            _return_http_data_only=True,
            _request_timeout=(10, SILENCE_SECONDS),
        )
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
            # Cleaned up by the second, not by the line.
            if self._newest is None or stamp.second != self._newest.second:
                self._recent = Counter({key: count for key, count in self._recent.items() if key[0] >= oldest})
            self._newest = stamp


def _lines(response: Any, *, last: bool) -> Iterator[str]:
    """Complete lines; the rest without a newline counts as one only where nothing can follow."""
    rest = b""
    for chunk in response.stream():
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            yield line.decode(errors="replace")
    if last and rest:
        yield rest.decode(errors="replace")


def _split(raw: str) -> tuple[datetime | None, str]:
    """Time and text. Times have up to nine digits after the point, more than a datetime holds: the others are dropped."""
    stamp, _, text = raw.partition(" ")
    try:
        return datetime.fromisoformat(stamp), text
    except ValueError:
        return None, raw
