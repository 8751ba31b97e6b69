"""A stage as a Volcano job: created once, found again, followed, cancelled; against a strict API server."""

from __future__ import annotations

import dataclasses
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import prepared
import pytest
from kubernetes_api import KubernetesApi

from k8s.check import violations
from peco.core import stopping
from peco.core.errors import PecoError
from peco.core.resources import Resources
from peco.core.stage_name import StageName
from pipelines import launch
from pipelines.jobs import backend, cluster, job, kube, pod_log, volcano, waiting
from pipelines.jobs.logs import Screen
from pipelines.workflow.graph import Stage, load_graph

ROOT = Path(__file__).parent.parent
NAME = "peco-tokenizer-0123456789abcdef"
TWO_NODES = Resources(
    nodes=2,
    processes=4,
    workers=3,
    gpus=4,
    cpu=32,
    memory="64Gi",
    shared_memory="16Gi",
    node_selector="gpu=a100",
    tolerations="nvidia.com/gpu:NoSchedule",
    queue="training",
    priority="high",
    time_limit="2h",
)
RETRIED = dataclasses.replace(TWO_NODES, retries=2)
ONE = Resources(threads=2)
LOG_ERROR = 'Get "https://10.0.0.7:10250/containerLogs": dial tcp 10.0.0.7:10250: i/o timeout'
Result = tuple[int, str, str]
Run = Callable[..., Result]


@pytest.fixture
def api(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[KubernetesApi]:
    for name in [name for name in os.environ if name.startswith("PECO_") and name != "PECO_TEST_SCHEMAS"]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(volcano.Volcano, "shortest_poll_seconds", 0.03)
    monkeypatch.setattr(backend, "RETRY_SECONDS", 0.05)
    monkeypatch.setattr(pod_log, "RETRY_SECONDS", 0.03)
    for module in (volcano, pod_log):
        monkeypatch.setattr(module, "LOG_SECONDS", 3.0)
    monkeypatch.chdir(tmp_path)
    with KubernetesApi() as server:
        environment = {
            "KUBECONFIG": str(server.kubeconfig(tmp_path / "kubeconfig")),
            "PECO_SCHEDULER": "kubernetes",
            "PECO_JOB_KEY": "0123456789abcdef",
            "PECO_NAMESPACE": "peco",
            "PECO_IMAGE": "registry.example/peco:1",
            "PECO_VOLUME_CLAIM": "peco",
            "PECO_VOLUME_PATH": str(tmp_path),
            "PECO_SERVICE_ACCOUNT": "peco-job",
            "PECO_POD_NAME": "step-1",
            "PECO_POD_UID": "11111111-2222-3333-4444-555555555555",
            "PECO_GRACE_SECONDS": "5",
        }
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        yield server
        assert server.faults == []


def stage(name: str = "tokenizer", resources: Resources = ONE) -> Stage:
    return Stage(StageName(name), ("x",), (), ("seed",), (), dataclasses.asdict(resources), "train")


@pytest.fixture
def notes() -> list[str]:
    """The launcher's own lines, as soon as they are shown."""
    return []


@pytest.fixture
def run(api: KubernetesApi, notes: list[str], capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a stage while `scenario` runs in a thread; status, stdout, stderr."""

    class Noted(Screen):
        def note(self, text: str) -> None:
            super().note(text)
            notes.append(text)

    def follow(scenario: Callable[[], object] = lambda: None, resources: Resources = TWO_NODES) -> Result:
        failed: list[BaseException] = []
        over = threading.Event()

        def guarded() -> None:
            try:
                scenario()
            except BaseException as error:
                failed.append(error)
                if not over.is_set():
                    os.kill(os.getpid(), signal.SIGTERM)

        thread = threading.Thread(target=guarded)
        thread.start()
        late = threading.Timer(90, lambda: os.kill(os.getpid(), signal.SIGTERM))
        late.start()
        try:
            status = cluster.run(stage(resources=resources), Noted(), os.environ)
        finally:
            over.set()
            late.cancel()
            thread.join()
        if failed:
            raise failed[0]
        out, err = capsys.readouterr()
        return status, out, err

    return follow


def complete(api: KubernetesApi) -> None:
    for pod in api.start():
        api.end(pod)


# The job


def test_the_job_requests_the_stages_resources(api: KubernetesApi, run: Run, tmp_path: Path) -> None:
    status, _, err = run(lambda: complete(api))
    assert (status, err) == (0, f"tokenizer: job {NAME} created in namespace peco\n")
    assert api.jobs == {}
    job = api.created[NAME]
    assert job["metadata"]["ownerReferences"] == [
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "name": "step-1",
            "uid": "11111111-2222-3333-4444-555555555555",
            "controller": False,
            "blockOwnerDeletion": False,
        }
    ]
    spec = job["spec"]
    assert spec["ttlSecondsAfterFinished"] == 3600  # should the launcher be killed
    assert (spec["queue"], spec["priorityClassName"], spec["minAvailable"], spec["maxRetry"]) == (
        "training",
        "high",
        2,
        1,
    )
    assert spec["policies"] == [{"event": e, "action": "TerminateJob"} for e in ("PodFailed", "PodEvicted")]
    assert "--disable-network-policy" in spec["plugins"]["svc"]
    assert [task["name"] for task in spec["tasks"]] == ["tokenizer-0", "tokenizer-1"]
    for task in spec["tasks"]:
        pod = task["template"]["spec"]
        [container] = pod["containers"]
        amounts = {"cpu": "32", "memory": "64Gi", "nvidia.com/gpu": "4"}
        assert container["resources"] == {"requests": amounts, "limits": amounts}
        assert container["image"] == "registry.example/peco:1"
        assert container["workingDir"] == str(tmp_path)
        assert {"name": "metrics", "containerPort": 8001} in container["ports"]
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        mounts = {mount["mountPath"]: volumes[mount["name"]] for mount in container["volumeMounts"]}
        assert mounts["/dev/shm"]["emptyDir"] == {"medium": "Memory", "sizeLimit": "16Gi"}
        assert mounts[str(tmp_path)]["persistentVolumeClaim"] == {"claimName": "peco"}
        assert pod["nodeSelector"] == {"gpu": "a100"}
        assert pod["tolerations"] == [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
        assert (pod["restartPolicy"], pod["activeDeadlineSeconds"]) == ("Never", 7200)
        assert pod["terminationGracePeriodSeconds"] > 5  # torchrun ends after its ranks
        assert (pod["serviceAccountName"], pod["automountServiceAccountToken"]) == ("peco-job", False)


def test_the_job_meets_volcanos_own_definition(api: KubernetesApi, run: Run) -> None:
    """The server refuses jobs that don't; this checks that it had the definition."""
    if not os.environ.get("PECO_TEST_SCHEMAS"):
        pytest.skip("PECO_TEST_SCHEMAS names no folder with Volcano's definition of a job")
    run(lambda: complete(api))
    body = next(body for method, _, body in api.requests if method == "POST")
    assert violations(body, api.definitions) == []
    assert violations(body | {"spec": body["spec"] | {"retries": 1}}, api.definitions) == ["spec.retries: unknown key"]


def test_the_job_is_the_same_in_every_run(api: KubernetesApi, run: Run) -> None:
    bodies = []
    for _ in range(2):
        run(lambda: complete(api))
        bodies.append(next(body for method, _, body in reversed(api.requests) if method == "POST"))
        api.forget()
    assert bodies[0] == bodies[1]
    command = bodies[0]["spec"]["tasks"][1]["template"]["spec"]["containers"][0]["command"]
    assert f"--rdzv_id {NAME} " in command[-1].replace("'", "")


def test_the_stage_receives_its_environment_and_no_secret(
    api: KubernetesApi, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PECO_CHECKPOINT_SECONDS", "30")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hush")
    monkeypatch.setenv("PECO_JOB_SECRET", "bucket")
    run(lambda: complete(api))
    [container] = api.created[NAME]["spec"]["tasks"][1]["template"]["spec"]["containers"]
    env = {entry["name"]: entry["value"] for entry in container["env"]}
    expected = {
        "PYTHONPATH": str(tmp_path),
        "PECO_WORK": str(tmp_path / ".work"),
        "PECO_WORKERS": "3",
        "PECO_THREADS": "8",  # 32 cores, 4 processes
        "PECO_METRICS_PORT": "8001",
        "PECO_CHECKPOINT_SECONDS": "30",
        "PECO_HEARTBEAT": str(tmp_path / f".work/{NAME}.alive"),
        "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "5",
    }
    assert expected.items() <= env.items()
    assert "hush" not in str(api.created)
    assert container["envFrom"] == [{"secretRef": {"name": "bucket"}}]


@pytest.mark.parametrize("name", load_graph(ROOT).stages)
def test_every_stage_has_names_that_kubernetes_takes(name: str) -> None:
    found = load_graph(ROOT)[name]
    name_of_job = job.job_name(found, Resources(nodes=64), {"PECO_JOB_KEY": "0123456789abcdef"})
    pod = f"{name_of_job}-{re.sub('[^a-z0-9]', '', found.name.role)}-63-0"
    assert re.fullmatch(r"peco-[a-z]([-a-z0-9]*[a-z0-9])?", name_of_job)
    assert len(pod) <= 63
    app = job.build_app(found, Resources(), {})
    assert all("-" not in role.name for role in app.roles)


def test_a_name_follows_from_commit_changes_stage_and_parameters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.yaml").write_text("seed: 0\nother: 1\n")
    with pytest.raises(PecoError, match="PECO_JOB_KEY"):
        job.job_name(stage(), ONE, {})
    for command in ("init -q", "add .", "-c user.name=a -c user.email=a@b commit -qm x"):
        subprocess.run(["git", *command.split()], check=True)
    first = job.job_name(stage(), ONE, {})
    assert job.job_name(stage(), ONE, {}) == first
    assert job.job_name(stage("tokens"), ONE, {}) != first
    (tmp_path / "params.yaml").write_text("seed: 1\nother: 1\n")
    assert job.job_name(stage(), ONE, {}) != first


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("PECO_NAMESPACE", "", "PECO_NAMESPACE: not set"),
        ("PECO_IMAGE", "", "PECO_IMAGE: not set"),
        ("PECO_VOLUME_PATH", "/elsewhere", "not on the shared volume"),
        ("PECO_WORK", "/tmp/elsewhere", "not on the shared volume"),
        ("PECO_POD_UID", "", "set both, or neither"),
        ("PECO_JOB_KEY", "A key", "PECO_JOB_KEY"),
        ("PECO_GRACE_SECONDS", "long", "PECO_GRACE_SECONDS"),
        ("KUBECONFIG", "/nowhere", "KUBECONFIG"),
    ],
)
def test_a_wrong_environment_is_one_line_and_nothing_is_created(
    api: KubernetesApi, run: Run, monkeypatch: pytest.MonkeyPatch, name: str, value: str, message: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(PecoError, match=re.escape(message)):
        run()
    assert api.verbs() == []


# Finding the job again


def test_a_second_attempt_follows_the_job_that_runs(
    api: KubernetesApi, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def first() -> None:
        api.start()
        api.down = True  # the first step's pod loses the connection, and gives up

    monkeypatch.setenv("PECO_API_PATIENCE_SECONDS", "0")
    status, _, err = run(first)
    assert status == 75
    assert err.endswith(f"; job {NAME} ends with a checkpoint unless it is followed: run again to find and follow it\n")
    api.down = False
    monkeypatch.setenv("PECO_POD_NAME", "step-2")
    monkeypatch.setenv("PECO_POD_UID", "99999999-2222-3333-4444-555555555555")

    def second() -> None:
        api.wait_for(lambda: any(verb.startswith("PATCH") for verb in api.verbs()))
        for pod in list(api.pods):
            api.say(pod, "[1]: step 7")
            api.end(pod)

    status, out, err = run(second)
    assert status == 0
    assert "already exists (Running): following it" in err
    assert out == "[1] step 7\n" * 2
    assert [verb.split()[0] for verb in api.verbs()] == ["POST", "PATCH", "DELETE"]
    [owner] = api.created[NAME]["metadata"]["ownerReferences"]
    assert owner["name"] == "step-2"


def test_a_job_that_appears_in_the_same_moment_is_followed(
    api: KubernetesApi, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(lambda: complete(api))
    api.leave("Running")
    get, calls = volcano.Volcano._get, iter([None])
    monkeypatch.setattr(volcano.Volcano, "_get", lambda self: next(calls, get(self)))

    def end() -> None:
        api.wait_for(lambda: any(verb.startswith("PATCH") for verb in api.verbs()))
        api.leave("Completed")

    assert run(end)[0] == 0
    # The second POST was a conflict.
    assert [verb.split()[0] for verb in api.verbs()] == ["POST", "DELETE", "POST", "PATCH", "DELETE"]


@pytest.mark.parametrize("phase", ["Completed", "Failed", "Aborted", "Terminated", "Terminating"])
def test_a_job_that_has_ended_is_replaced(api: KubernetesApi, run: Run, phase: str) -> None:
    """Even a completed one: DVC has removed its results, and the stage's working files publish them again at once."""
    run(lambda: complete(api))
    before = api.leave(phase)["metadata"]["uid"]

    def end() -> None:
        api.wait_for(lambda: api.jobs.get(NAME, {"metadata": {"uid": before}})["metadata"]["uid"] != before)
        complete(api)

    status, _, err = run(end)
    assert status == 0
    assert f"has ended ({phase}): replacing it" in err
    assert [verb.split()[0] for verb in api.verbs()] == ["POST", "DELETE", "DELETE", "POST", "DELETE"]


def test_the_job_of_a_step_has_a_heartbeat_and_another_job_has_none(
    api: KubernetesApi, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alive = tmp_path / f".work/{NAME}.alive"
    beats = []

    def scenario() -> None:
        api.job()
        beats.append(alive.exists())
        complete(api)

    def variables() -> set[str]:
        [container] = api.created[NAME]["spec"]["tasks"][0]["template"]["spec"]["containers"]
        return {entry["name"] for entry in container["env"]}

    run(scenario, ONE)
    assert "PECO_HEARTBEAT" in variables()
    monkeypatch.delenv("PECO_POD_NAME")
    monkeypatch.delenv("PECO_POD_UID")
    run(scenario, ONE)
    assert "PECO_HEARTBEAT" not in variables()
    assert beats == [True, True]  # the second job could be one that a step has started
    assert not alive.exists()


# Lines


def test_lines_of_all_ranks_appear_once_even_if_the_connection_breaks(api: KubernetesApi, run: Run) -> None:
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

    status, out, err = run(scenario)
    lines = out.splitlines()
    assert (status, err) == (0, f"tokenizer: job {NAME} created in namespace peco\n")
    for rank in (0, 4):
        assert [line for line in lines if line.startswith(f"[{rank}]")] == [f"[{rank}] step {n}" for n in range(60)]
    assert lines.count("[1] the same") == 60
    assert len(lines) == 180


def test_a_log_that_cannot_be_read_is_reported_once_and_shown_when_it_can(
    api: KubernetesApi, run: Run, notes: list[str]
) -> None:
    api.unreadable = LOG_ERROR

    def reads() -> int:
        return sum(path.endswith("/log") for _, path, _ in api.requests)

    def scenario() -> None:
        [pod] = api.start()
        api.say(pod, "step 1")
        api.wait_for(lambda: len(notes) > 1)
        before = reads()
        api.wait_for(lambda: reads() > before + 10)
        api.unreadable = ""
        api.end(pod)

    status, out, err = run(scenario, ONE)
    assert (status, out) == (0, "step 1\n")
    [_, note] = err.splitlines()
    assert note.startswith(f"tokenizer: the log of pod {NAME}-tokenizer-0-0 can't be read (500: {LOG_ERROR})")


def test_a_log_that_can_never_be_read_is_reported_at_the_end(api: KubernetesApi, run: Run) -> None:
    api.unreadable = LOG_ERROR
    status, out, err = run(lambda: complete(api), ONE)
    assert (status, out) == (0, "")
    assert err.count(f"can't be read (500: {LOG_ERROR})") == 1


def test_one_process_has_no_rank(api: KubernetesApi, run: Run) -> None:
    def scenario() -> None:
        [pod] = api.start()
        api.say(pod, "[3]: is no rank", "done")
        api.end(pod)

    assert run(scenario, ONE)[1] == "[3]: is no rank\ndone\n"


# Failures

TORCHRUN = """\
E1123 failed (exitcode: {code}) local_rank: 1 (pid: 7) of binary: python
peco.stages.tokenizer FAILED
Failures:
  <NO_OTHER_FAILURES>
Root Cause (first observed failure):
[0]:
  time      : 2026-11-23_12:00:00
  rank      : 5 (local_rank: 1)
  exitcode  : {code} (pid: 7)"""


def fail(api: KubernetesApi, code: int, *lines: str) -> None:
    first, second = api.start()
    api.say(first, "[0]: waits")
    api.say(second, *(f"[5]: {line}" for line in lines), *TORCHRUN.format(code=code).splitlines())
    api.end(second, 1)


def test_a_failed_rank_ends_the_job_and_its_last_lines_are_shown(api: KubernetesApi, run: Run) -> None:
    api.saving = 60  # the other pods don't delay it
    lines = [f"line {number}" for number in range(30)]
    status, out, err = run(lambda: fail(api, 1, *lines, "ValueError: no"))
    assert status == 1
    assert "[5] ValueError: no" in out
    assert f"rank 5 of pod {NAME}-tokenizer-1-0 failed with status 1" in err
    assert err.splitlines()[-1] == "  ValueError: no"
    assert "  line 29" in err and "  line 3\n" not in err
    assert "deletionTimestamp" in api.jobs[NAME]["metadata"]


def test_an_error_that_the_user_can_fix_is_one_line_and_status_2(api: KubernetesApi, run: Run) -> None:
    status, out, err = run(lambda: fail(api, 2, "error: data: missing; get some"))
    assert status == 2
    assert (out + err).count("error: ") == 1
    assert err.endswith("error: data: missing; get some\n")


def test_a_killed_rank_is_named_by_its_signal(api: KubernetesApi, run: Run) -> None:
    status, _, err = run(lambda: fail(api, -9, "step 1"))
    assert status == 2
    assert "rank 5" in err and "SIGKILL (out of memory?)" in err


@pytest.mark.parametrize(
    ("reason", "pod_reason", "message"),
    [
        ("OOMKilled", "", "ran out of memory and was killed; raise memory 64Gi"),
        ("", "DeadlineExceeded", "reached time_limit 2h"),
    ],
)
def test_a_limit_that_the_job_met_is_one_line_and_no_retry(
    api: KubernetesApi, run: Run, reason: str, pod_reason: str, message: str
) -> None:
    status, _, err = run(lambda: api.end(api.start()[0], 137, reason, pod_reason=pod_reason), RETRIED)
    assert status == 2
    _, line = err.splitlines()
    assert line.startswith("error: tokenizer: pod ") and message in line


@pytest.mark.parametrize(("code", "status"), [(1, 1), (2, 2)])
def test_a_stage_that_fails_by_itself_is_not_tried_again(api: KubernetesApi, run: Run, code: int, status: int) -> None:
    assert run(lambda: fail(api, code, "error: no"), RETRIED)[0] == status
    assert len(created(api)) == 1


def created(api: KubernetesApi) -> list[str]:
    return [verb for verb in api.verbs() if verb.startswith("POST")]


def evict(api: KubernetesApi) -> None:
    [pod] = api.start()
    api.evict(pod)


def stop_from_outside(api: KubernetesApi) -> None:
    [pod] = api.start()
    api.end(pod, 143)


def shut_down_the_node(api: KubernetesApi) -> None:
    [pod] = api.start()
    api.end(pod, 137, pod_reason="Terminated")


def lose_the_pods(api: KubernetesApi) -> None:
    api.start()
    with api.lock:
        api.pods.clear()
        api._phase("Terminated")


@pytest.mark.parametrize(
    ("loss", "reason"),
    [
        (
            evict,
            f"pod {NAME}-tokenizer-0-0 was preempted or evicted (volcano: preempting to accommodate a higher priority pod)",
        ),
        (shut_down_the_node, f"pod {NAME}-tokenizer-0-0 was preempted or evicted (Terminated)"),
        (stop_from_outside, f"pod {NAME}-tokenizer-0-0 was stopped from outside"),
        (lose_the_pods, f"job {NAME} ended (Terminated), its pods were preempted or evicted"),
    ],
)
def test_a_job_that_the_cluster_ended_is_started_again_until_no_retry_is_left(
    api: KubernetesApi, run: Run, notes: list[str], loss: Callable[[KubernetesApi], None], reason: str
) -> None:
    api.saving = 1  # long enough to be seen

    def scenario() -> None:
        for count in range(1, 4):
            api.wait_for(lambda count=count: len(created(api)) == count)
            loss(api)

    created_line = f"tokenizer: job {NAME} created in namespace peco"
    status, _, _ = run(scenario, dataclasses.replace(ONE, retries=2))
    assert status == 75
    assert notes == [
        created_line,
        f"tokenizer: {reason}; retry 1 of 2 in 0 s",
        created_line,
        f"tokenizer: {reason}; retry 2 of 2 in 0 s",
        created_line,
        f"error: tokenizer: {reason}; no retry of 2 is left; run again, it resumes from the last checkpoint",
    ]
    assert api.jobs == {}


def test_a_preempted_job_that_is_started_again_may_succeed(api: KubernetesApi, run: Run) -> None:
    api.saving = 1

    def scenario() -> None:
        first, second = api.start()
        api.say(first, "[0]: step 1")
        api.evict(second)
        api.wait_for(lambda: len(created(api)) == 2)
        first, second = api.start()
        api.say(first, "[0]: resumes from step 1")
        for pod in (first, second):
            api.end(pod)

    status, out, err = run(scenario, RETRIED)
    assert (status, out) == (0, "[0] step 1\n[0] resumes from step 1\n")
    assert err.count("\n") == 3  # created, preempted, created


def test_a_job_is_followed_further_when_the_api_was_away_for_too_long(
    api: KubernetesApi, run: Run, notes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PECO_API_PATIENCE_SECONDS", "0")
    shown = threading.Event()
    monkeypatch.setattr(Screen, "_show", lambda self, line, show=Screen._show: (show(self, line), shown.set()))

    def scenario() -> None:
        [pod] = api.start()
        api.say(pod, "step 1")
        assert shown.wait(8)
        api.down = True
        api.wait_for(lambda: "; retry 1 of 9 in 0 s" in "".join(notes))
        api.down = False
        api.say(pod, "step 2")
        api.end(pod)

    status, out, _ = run(scenario, dataclasses.replace(ONE, retries=9))
    assert (status, out) == (0, "step 1\nstep 2\n")
    assert [verb.split()[0] for verb in api.verbs()] == ["POST", "DELETE"]
    assert "the cluster's API can't be reached" in notes[1]


def test_a_job_that_cannot_be_removed_since_its_node_is_lost_is_reported_once(
    api: KubernetesApi, run: Run, notes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run(lambda: complete(api), ONE)
    api._create_pods(api.leave("Terminated"))
    monkeypatch.setenv("PECO_GRACE_SECONDS", "0")
    monkeypatch.setattr(volcano, "LOG_SECONDS", 0.1)
    api.saving = 2

    def scenario() -> None:
        api.wait_for(lambda: len(created(api)) == 2)
        complete(api)

    notes.clear()
    assert run(scenario, ONE)[0] == 0
    pod = f"{NAME}-tokenizer-0-0"
    assert notes == [
        f"tokenizer: job {NAME} of an earlier attempt has ended (Terminated): replacing it",
        f"tokenizer: job {NAME} is being removed, but pods are left of it ({pod}); if their node is lost: "
        f"kubectl --namespace peco delete pod --force {pod}",
        f"tokenizer: job {NAME} created in namespace peco",
    ]


def test_a_preempted_job_saves_its_work_and_volcano_does_not_start_it_again(api: KubernetesApi, run: Run) -> None:
    api.saving = 0.5

    def scenario() -> None:
        first, second = api.start()
        api.evict(second)
        api.say(second, "[4]: checkpoint saved")
        api.wait_for(lambda: api.jobs[NAME]["status"]["state"]["phase"] == "Terminating")
        api.say(first, "[0]: checkpoint saved")

    status, out, err = run(scenario)
    assert status == 75
    assert sorted(out.splitlines()) == ["[0] checkpoint saved", "[4] checkpoint saved"]
    assert "preempted or evicted" in err and "resumes from the last checkpoint" in err
    assert api.pods == {}


def test_ranks_that_end_because_one_was_preempted_are_not_the_cause(api: KubernetesApi, run: Run) -> None:
    api.saving = 2

    def scenario() -> None:
        first, second = api.start()
        api.evict(second)
        time.sleep(1.1)  # times of the API are whole seconds
        api.end(first, 1)

    status, _, err = run(scenario)
    assert status == 75
    assert f"pod {NAME}-tokenizer-1-0 was preempted" in err


@pytest.mark.parametrize("saving", [0.0, 0.3])
@pytest.mark.parametrize("action", ["deleted", "aborted"])
def test_a_job_that_someone_else_deletes_or_aborts_saves_its_work_and_is_not_started_again(
    api: KubernetesApi, run: Run, action: str, saving: float
) -> None:
    api.saving = saving

    def scenario() -> None:
        first, _ = api.start()
        with api.lock:
            if action == "deleted":
                api._delete(api.jobs[NAME])
            else:
                api._phase("Aborted")
                api._kill_pods()
        api.say(first, "[0]: checkpoint saved")

    status, out, err = run(scenario, RETRIED)
    assert (status, out) == (2, "[0] checkpoint saved\n" if saving else out)
    message = (
        f"error: tokenizer: job {NAME} was {action} by someone else; run again, it resumes from the last checkpoint"
    )
    assert err.splitlines()[1:] == [message]
    assert len(created(api)) == 1


# Waiting


def test_a_job_that_waits_reports_the_reason(
    api: KubernetesApi, run: Run, notes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiting, "FIRST_NOTE_SECONDS", 0.0)
    reason = "0/3 nodes are available: 3 Insufficient nvidia.com/gpu"
    api.waiting = {"conditions": [{"type": "PodScheduled", "status": "False", "message": reason}]}

    def polls() -> int:
        return sum(path.endswith("/pods") for _, path, _ in api.requests)

    def scenario() -> None:
        api.wait_for(lambda: len(notes) > 1)
        before = polls()
        api.wait_for(lambda: polls() > before + 3)
        complete(api)

    status, _, err = run(scenario)
    assert status == 0
    assert len(re.findall(rf"job {NAME} has been waiting for \d+ s: {reason}", err)) == 1


def test_an_image_that_cannot_be_pulled_ends_the_job(
    api: KubernetesApi, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiting, "STUCK_SECONDS", 0.3)

    def scenario() -> None:
        api.job()
        waiting = {"reason": "ImagePullBackOff", "message": "Back-off pulling image registry.example/peco:1"}
        api.condition(containerStatuses=[{"state": {"waiting": waiting}}])

    status, _, err = run(scenario)
    assert status == 2
    assert re.search(r"error: tokenizer: .*its image can't be pulled \(Back-off .*peco:1\)", err)
    assert api.jobs == {}


# Stopping


def test_a_stop_cancels_the_job_and_waits_for_its_pods(api: KubernetesApi, run: Run) -> None:
    api.saving = 0.5

    def scenario() -> None:
        first, _ = api.start()
        os.kill(os.getpid(), signal.SIGTERM)
        api.wait_for(lambda: api.jobs[NAME]["status"]["state"]["phase"] == "Aborted")
        api.say(first, "[0]: checkpoint saved")

    status, out, err = run(scenario)
    assert status == 128 + signal.SIGTERM
    assert f"stopping job {NAME}" in err
    assert out == "[0] checkpoint saved\n"
    assert api.pods == {}


def test_a_second_signal_ends_the_waiting(api: KubernetesApi, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stopping, "SAME_STOP_SECONDS", 0.0)
    monkeypatch.setenv("PECO_GRACE_SECONDS", "120")
    api.saving = 60

    def scenario() -> None:
        api.start()
        os.kill(os.getpid(), signal.SIGINT)
        api.wait_for(lambda: api.jobs[NAME]["status"]["state"]["phase"] == "Aborted")
        os.kill(os.getpid(), signal.SIGINT)

    assert run(scenario)[0] == 128 + signal.SIGINT
    assert len(api.pods) == 2  # they still save


def test_a_stop_is_tried_again_if_the_job_changes_at_the_same_time(api: KubernetesApi, run: Run) -> None:
    api.conflicts = 1

    def scenario() -> None:
        api.start()
        os.kill(os.getpid(), signal.SIGTERM)

    status, _, err = run(scenario)
    assert status == 128 + signal.SIGTERM
    assert "may still run" not in err
    assert api.created[NAME]["status"]["state"]["phase"] == "Aborted"


MANY = 50  # more attempts than a stop should make


def updates(api: KubernetesApi) -> int:
    return sum(verb.startswith("PATCH") for verb in api.verbs())


def missed(api: KubernetesApi) -> int:
    """Requests while the API was down, other than for a log."""
    return sum(not path.endswith("/log") for path in api.missed)


def test_a_stop_gives_up_on_a_job_that_changes_all_the_time(
    api: KubernetesApi, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PECO_GRACE_SECONDS", "0")
    api.conflicts = MANY

    def scenario() -> None:
        api.start()
        os.kill(os.getpid(), signal.SIGTERM)

    status, _, err = run(scenario)
    assert status == 128 + signal.SIGTERM
    assert f"job {NAME} may still run" in err
    assert 1 < updates(api) < 10


@pytest.mark.parametrize("obstacle", ["conflicts", "away"])
def test_a_second_signal_ends_the_attempts_to_abort(
    api: KubernetesApi, run: Run, monkeypatch: pytest.MonkeyPatch, obstacle: str
) -> None:
    monkeypatch.setattr(stopping, "SAME_STOP_SECONDS", 0.0)
    monkeypatch.setenv("PECO_GRACE_SECONDS", "60")

    def scenario() -> None:
        api.start()
        api.conflicts = MANY
        api.down = obstacle == "away"
        os.kill(os.getpid(), signal.SIGINT)
        api.wait_for(lambda: missed(api) > 2 if api.down else updates(api) > 0)
        os.kill(os.getpid(), signal.SIGINT)

    status, _, err = run(scenario)
    assert status == 128 + signal.SIGINT
    assert f"job {NAME} may still run" in err
    assert missed(api) + updates(api) < 10


# The API


def test_an_api_that_is_away_for_a_while_is_waited_for(api: KubernetesApi, run: Run) -> None:
    def scenario() -> None:
        first, second = api.start()
        api.say(first, "[0]: before")
        api.down = True
        api.cuts += 1
        api.wait_for(lambda: missed(api))
        api.say(first, "[0]: meanwhile")
        api.down = False
        for pod in (first, second):
            api.end(pod)

    status, out, _ = run(scenario)
    assert (status, out) == (0, "[0] before\n[0] meanwhile\n")


@pytest.mark.parametrize(
    ("verb", "resource"),
    [("get", "jobs"), ("create", "jobs"), ("list", "pods"), ("get", "pods/log")],
)
def test_a_right_that_is_missing_is_named(api: KubernetesApi, run: Run, verb: str, resource: str) -> None:
    api.forbidden.add((verb, resource))

    def scenario() -> None:
        if resource.startswith("pods"):
            api.start()

    with pytest.raises(
        PecoError, match=rf"not allowed to {verb} {resource}.* in namespace peco .*give .* the role peco-jobs"
    ):
        run(scenario)


def test_a_wrong_token_is_reported(api: KubernetesApi, run: Run, tmp_path: Path) -> None:
    config = tmp_path / "kubeconfig"
    config.write_text(config.read_text().replace("a-token", "another"))
    with pytest.raises(PecoError, match="renew the credentials"):
        run()


# With real processes


def test_two_nodes_meet_and_the_rank_that_raises_is_named(
    api: KubernetesApi, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torchrun takes the command in the pods, on each node."""
    package = tmp_path / "peco/stages"
    package.mkdir(parents=True)
    (tmp_path / "peco/__init__.py").touch()
    (package / "__init__.py").touch()
    (package / "tokenizer.py").write_text(
        "import os, time\n"
        "rank = int(os.environ['RANK'])\n"
        "print('of', os.environ['WORLD_SIZE'], flush=True)\n"
        "if rank == 1: raise ValueError('no')\n"
        "time.sleep(60)\n"
    )
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    api.execute = True
    api.saving = 30
    status, out, err = run(api.start, Resources(nodes=2, processes=1, threads=1))
    assert status == 1
    assert {"[0] of 2", "[1] of 2"} <= set(out.splitlines())
    assert "rank 1 of pod" in err and "  ValueError: no" in err.splitlines()  # torchrun mixes stdout and stderr
    api.wait_for(lambda: all(process.poll() is not None for process in api.processes.values()))


def test_a_stage_whose_launcher_was_killed_after_the_job_had_ended_does_not_train_again(
    api: KubernetesApi, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As long as DVC hasn't recorded the results, it removes them and runs the stage again."""
    prepared.prepare(tmp_path, steps=4)
    (tmp_path / "peco").symlink_to(ROOT / "peco")
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    api.execute = True
    outs = [tmp_path / path for path in ("artifacts/tokenizer/model.safetensors", "metrics/tokenizer.json")]
    status, out, _ = run(api.start, ONE)
    assert status == 0
    assert "tokenizer  step 4/4" in out
    contents = [path.read_bytes() for path in outs]
    for path in outs:
        path.unlink()
    api.leave("Completed")

    def scenario() -> None:
        api.wait_for(lambda: len(created(api)) == 2)
        api.start()

    status, out, err = run(scenario, ONE)
    assert status == 0
    assert f"job {NAME} of an earlier attempt has ended (Completed): replacing it" in err
    assert [line for line in out.splitlines() if " step " in line] == ["tokenizer  resumes from step 4/4"]
    assert [path.read_bytes() for path in outs] == contents


def test_the_launcher_starts_a_stage_on_the_cluster(
    api: KubernetesApi, run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("dvc.yaml", "params.yaml"):
        (tmp_path / name).write_text((ROOT / name).read_text())
    monkeypatch.setenv("PECO_NPROC", "2")
    monkeypatch.setenv("PECO_GPUS_PRETRAIN", "2")
    threading.Thread(target=lambda: complete(api)).start()
    assert launch.main(["pretrain"]) == 0
    [container] = api.created["peco-pretrain-0123456789abcdef"]["spec"]["tasks"][0]["template"]["spec"]["containers"]
    assert "--nproc_per_node 2" in container["command"][-1]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "2"


def test_a_permanent_error_is_not_retried(api: KubernetesApi) -> None:
    with stopping.StopSignals() as stops:
        client = kube.Api("peco", stops, patience=60, note=print)
        api.forbidden.add(("list", "pods"))
        with pytest.raises(PecoError, match="not allowed to list pods"):
            client.call("list pods", lambda: client.core.list_namespaced_pod("peco", label_selector="a=b"))
        assert len(api.requests) == 1
