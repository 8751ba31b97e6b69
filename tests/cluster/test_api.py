"""An API that is away, and a kubeconfig with which there will never be one."""

from __future__ import annotations

import signal
import time

import pytest
from harness import Client, find, wait_for
from project import Project, Proxy


def test_an_api_that_is_away_for_a_minute_stops_nothing(project: Project, client: Client, proxy: Proxy) -> None:
    """Not even the job of a step, which would end if nobody followed it."""
    project.lengthen()
    process = project.launch(**proxy.variables, **client.owner())
    project.wait_for_checkpoint()
    [pod] = project.running()
    proxy.cut()
    time.sleep(60)
    assert project.running() == [pod]
    shown = len(process.lines())
    proxy.connect()
    wait_for(lambda: any("tokenizer  step " in line for line in process.lines()[shown:]), "new lines of the training")
    process.kill(signal.SIGTERM)
    status, lines = process.end()
    assert status == 128 + signal.SIGTERM
    find(
        lines,
        r"tokenizer: no usable answer from the cluster's API at https://127\.0\.0\.1:7443 \(.*\); trying for 300 s",
    )
    assert "tokenizer: the cluster's API answers again" in lines
    assert lines.count(project.created) == 1


def test_an_api_that_is_away_for_too_long_is_a_temporary_error(project: Project, proxy: Proxy) -> None:
    """The job is left as it is, and followed by the next client."""
    project.lengthen()
    first = project.launch(PECO_RETRIES="0", PECO_API_PATIENCE_SECONDS="5", **proxy.variables)
    project.wait_for_checkpoint()
    proxy.cut()
    status, lines = first.end()
    assert status == 75
    find(
        lines,
        rf"error: tokenizer: the cluster's API can't be reached \(.*\); job {project.job} is left as it is: run again to find "
        "and follow it",
    )

    second = project.launch()
    second.wait_for_line(f"tokenizer: job {project.job} already exists (Running): following it")
    second.kill(signal.SIGTERM)
    assert second.end()[0] == 128 + signal.SIGTERM


# A name of the cluster's own domain: not every cluster can look up others.
NOWHERE = "https://nowhere.default.svc.cluster.local"


@pytest.mark.core
@pytest.mark.parametrize(
    ("server", "authority", "line"),
    [
        (NOWHERE, "", f"error: the cluster's API at {NOWHERE}: unknown host name; correct `server` in the kubeconfig"),
        ("", "/none/ca.crt", r"error: no cluster: .*\(File does not exist: /none/ca\.crt\); set KUBECONFIG"),
        (
            "", "/etc/ssl/certs/ca-certificates.crt",
            "error: the cluster's API at https://kubernetes.default.svc: its certificate is not accepted .*; set "
            "`certificate-authority` in the kubeconfig to the file of the cluster's own",
        ),
    ],
    ids=["unknown host", "missing file", "another authority"],
)  # fmt: skip
def test_a_kubeconfig_that_can_never_work_is_one_line(
    project: Project, client: Client, server: str, authority: str, line: str
) -> None:
    path = client.kubeconfig("/tmp/kubeconfig-wrong", server=server, authority=authority)
    status, lines = project.launch(KUBECONFIG=path, KUBERNETES_SERVICE_HOST="").end()
    assert (status, len(lines)) == (2, 1), lines
    find(lines, line)
