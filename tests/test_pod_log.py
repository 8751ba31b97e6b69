"""The logs of a job's pods: each line once, also over broken connections and nodes that don't answer."""

from __future__ import annotations

import time

import pytest
from cluster_launcher import CREATED, NAME, Launcher, complete, has_sent
from kubernetes_api import KubernetesApi

from peco.core.resources import Resources

UNREADABLE = 'Get "https://10.0.0.7:10250/containerLogs": dial tcp 10.0.0.7:10250: i/o timeout'


def test_lines_of_all_ranks_appear_once_even_if_the_connection_breaks(api: KubernetesApi, start: Launcher) -> None:
    def scenario() -> None:
        first, second = api.start()
        for number in range(60):
            api.say(first, f"[0]: step {number}", "[1]: the same")
            api.say(second, f"[4]: step {number}", "torchrun: something of its own")
            time.sleep(0.005)
            if number % 20 == 10:
                api.cuts += 1
        for pod in (first, second):
            api.end(pod)

    status, out, err = start.run(Resources(nodes=2, processes=4), scenario)
    lines = out.splitlines()
    assert (status, err) == (0, [CREATED])
    for rank in (0, 4):
        assert [line for line in lines if line.startswith(f"[{rank}]")] == [f"[{rank}] step {n}" for n in range(60)]
    assert lines.count("[1] the same") == 60
    assert len(lines) == 180


@pytest.mark.parametrize("readable", [True, False], ids=["again", "never"])
def test_a_log_that_cannot_be_read_is_reported_once_and_shown_when_it_can(
    api: KubernetesApi, start: Launcher, readable: bool
) -> None:
    api.unreadable = UNREADABLE

    def scenario() -> None:
        if readable:
            [pod] = api.start()
            api.say(pod, "[3]: one process has no rank")
            api.wait_for(lambda: len(start.notes) > 1)
            api.wait_for(has_sent(api, "/log", 15))
            api.unreadable = ""
            api.end(pod)
        else:
            complete(api)

    status, out, [_, note] = start.run(scenario=scenario)
    assert (status, out) == (0, "[3]: one process has no rank\n" if readable else "")
    assert note == (
        f"tokenizer: the log of pod {NAME}-tokenizer-0-0 can't be read (500: {UNREADABLE}); its lines are shown once it can"
    )
