"""The stand-in of a cluster's API answers as a real server does: status, kind, reason and words (tests/recorded/answers.json)."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from kubernetes import client
from kubernetes_api import NAMESPACE, TOKEN, KubernetesApi
from record_answers import REQUESTS, TARGET, ask, job

RECORDED: dict[str, dict[str, Any]] = json.loads(TARGET.read_text())
NAMES = {"namespace": NAMESPACE, "job": "peco-two", "pod": "peco-two-one-0"}


def words(answer: dict[str, Any]) -> dict[str, Any]:
    """An answer without the names and addresses in its message."""
    message = re.sub(r'"[^"]*"', '"…"', answer.get("message", ""))
    return answer | {"message": re.sub(r"\d+\.\d+\.\d+\.\d+:\d+", "…", message)}


@pytest.fixture
def connection(api: KubernetesApi) -> client.ApiClient:
    configuration = client.Configuration()
    configuration.host = f"http://127.0.0.1:{api.server.server_address[1]}"
    configuration.api_key = {"authorization": f"Bearer {TOKEN}"}
    return client.ApiClient(configuration)


def test_every_answer_has_the_form_of_the_real_one(api: KubernetesApi, connection: client.ApiClient) -> None:
    assert list(RECORDED) == list(REQUESTS)
    api.forbidden.clear()
    api.queues = {"default": {"apiVersion": "scheduling.volcano.sh/v1beta1", "kind": "Queue"}}
    for key, request in REQUESTS.items():
        body = job(NAMES["job"]) if request.method == "POST" else None
        api.conflicts = key == "job-changed"
        if key == "log-unreadable":
            api.wait_for(lambda: not api.jobs)
            ask(connection, REQUESTS["job-created"], job(NAMES["job"]), **NAMES)
            api.unreadable = RECORDED[key]["message"]
        if key == "right-missing":
            api.forbidden.add(("get", "jobs"))
        if key == "token-wrong":
            connection.configuration.api_key = {"authorization": "Bearer wrong"}
        assert words(ask(connection, request, body, **NAMES)) == words(RECORDED[key]), key


def test_a_recorded_refusal_is_answered_as_it_was(api: KubernetesApi, connection: client.ApiClient) -> None:
    from cluster_launcher import WORDS

    refusals = {key: each for key, each in WORDS.items() if isinstance(each, dict)}
    assert len(refusals) > 10
    for each in refusals.values():
        api.refusals = [each]
        answer = ask(connection, REQUESTS["job-created"], job(NAMES["job"]), **NAMES)
        assert {key: answer.get(key) for key in each} == each
