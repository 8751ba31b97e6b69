"""Live values of a training for Prometheus."""

from __future__ import annotations

import errno
import re
import sys
import threading
import time
from collections.abc import Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Gauge, start_http_server

from peco.core.environment import METRICS_PORT
from peco.core.errors import PecoError
from peco.training.distributed import Dist

_PROMETHEUS_NAMES = {"lr": "learning_rate", "grad_norm": "gradient_norm"}
_HELP = {
    "peco_samples_per_second": "Samples trained on per second, over all processes",
    "peco_step_seconds": "Wall time of one optimizer step",
    "peco_data_wait_seconds": "Part of a step's wall time spent waiting for data",
    "peco_steps_done": "Optimizer steps done",
    "peco_steps_planned": "Optimizer steps of the whole training",
    "peco_restarts": "Times the training resumed from a checkpoint",
    "peco_checkpoint_age_seconds": "Time since the last checkpoint, or since the start",
    "peco_nonfinite_steps": "Steps whose loss or gradient norm was not finite; the first ends the training",
    "peco_loss": "Mean loss over the batch of all processes",
    "peco_gradient_norm": "Norm of the gradient before clipping",
    "peco_learning_rate": "Learning rate of the last layers",
    "peco_usage": "Share of the codes used in the last epoch",
    "peco_perplexity": "Exponential of the entropy of the codes used in the last epoch",
}
# A little longer than Prometheus usually waits between two scrapes.
LAST_SCRAPE_SECONDS = 35.0


class Exporter:
    """Gauges `peco_*` with the label `stage`, served over HTTP by local rank 0 on PECO_METRICS_PORT; off if that is unset or 0.

    Raises:
        PecoError: PECO_METRICS_PORT is not a port number, or no port from there on is free.
    """

    def __init__(self, stage: str, dist: Dist) -> None:
        self._stage = stage
        self._gauges: dict[str, Any] = {}
        self._saved = time.monotonic()
        self._scraped = threading.Event()
        self._server: Any = None
        port = METRICS_PORT.integer(high=65535)
        if port and dist.local_rank == 0:
            self._registry = CollectorRegistry()
            self._server = self._serve(port)
            self._gauge("peco_checkpoint_age_seconds").set_function(self._age)
            print(f"{stage}  metrics on port {self.port}", flush=True)

    def _serve(self, first: int) -> Any:
        for port in range(first, min(first + 100, 65536)):
            try:
                server, _ = start_http_server(port, registry=self._registry)
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise PecoError(f"PECO_METRICS_PORT: port {port} can't be served: {error.strerror}") from None
                continue
            self.port = port
            if port != first:
                print(f"metrics port {first} is in use, serving on {port}", file=sys.stderr, flush=True)
            return server
        raise PecoError(f"PECO_METRICS_PORT: no port from {first} on is free; set another one, or 0 for none")

    def set(self, values: Mapping[str, float]) -> None:
        """Set gauges by their short name: `loss` is exported as `peco_loss`."""
        if self._server is not None:
            for name, value in values.items():
                self._gauge("peco_" + re.sub(r"\W", "_", _PROMETHEUS_NAMES.get(name, name))).set(value)

    def saved(self) -> None:
        """Record that a checkpoint was written just now."""
        self._saved = time.monotonic()

    def failing(self, values: Mapping[str, float]) -> None:
        """Set the values of a training that is about to fail. If it has been scraped before, wait for one more scrape."""
        if self._server is not None and self._scraped.is_set():
            self.set(values)
            self._scraped.clear()
            if self._scraped.wait(LAST_SCRAPE_SECONDS):
                time.sleep(0.5)  # the response is still being sent

    def close(self) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def _age(self) -> float:
        """Called in each scrape, before the other gauges are read."""
        self._scraped.set()
        return time.monotonic() - self._saved

    def _gauge(self, name: str) -> Any:
        if name not in self._gauges:
            text = _HELP.get(name, f"Training value {name.removeprefix('peco_')}")
            self._gauges[name] = Gauge(name, text, ["stage"], registry=self._registry).labels(stage=self._stage)
        return self._gauges[name]
