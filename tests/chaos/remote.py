"""An S3 remote that throttles, cuts off and answers 500: `dvc push`, `dvc pull`, shards read from `s3://`."""

from __future__ import annotations

import contextlib
import random
import shutil
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .project import Ended, Project

BUCKET = "peco-chaos"
TRIES = 6  # of a command that a person would type again
SLOW_SECONDS = 0.3
CUT_BYTES = 1000
KINDS = ("throttle", "error", "cut", "slow")


@dataclass
class RemoteOutcome:
    """A use of the remote: requests, how many of them were spoilt, how it ended, faults."""

    what: str
    requests: int
    spoilt: int
    ends: str
    faults: list[str] = field(default_factory=list)


class Spoiler:
    """A WSGI application in front of moto's. It spoils this share of the requests, drawn from a seed."""

    def __init__(self, application: Any, seed: int) -> None:
        self._application, self._random, self._lock = application, random.Random(seed), threading.Lock()
        self.share, self.requests, self.spoilt = 0.0, 0, 0

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        with self._lock:
            self.requests += 1
            kind = self._random.choice(KINDS) if self._random.random() < self.share else ""
            self.spoilt += bool(kind)
        if kind in ("throttle", "error"):
            code, status = ("SlowDown", "503 Slow Down") if kind == "throttle" else ("InternalError", "500 Error")
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            start_response(status, [("Content-Type", "application/xml")])
            return [f"<Error><Code>{code}</Code><Message>chaos</Message></Error>".encode()]
        if kind == "slow":
            time.sleep(SLOW_SECONDS)
        answer: Iterable[bytes] = self._application(environ, start_response)
        return cut(answer, environ) if kind == "cut" else answer


def cut(answer: Iterable[bytes], environ: dict[str, Any]) -> Iterator[bytes]:
    """The beginning of an answer; then the connection is closed."""
    yield b"".join(answer)[:CUT_BYTES][:-1]
    with contextlib.suppress(OSError):  # the client has closed it
        environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def faulty_s3(seed: int) -> Iterator[tuple[str, Spoiler]]:
    """Address of an S3 server with an empty bucket, and what spoils its answers."""
    import boto3
    from moto.server import DomainDispatcherApplication, create_backend_app  # type: ignore[attr-defined]
    from werkzeug.serving import WSGIRequestHandler, make_server

    class Silent(WSGIRequestHandler):
        protocol_version = "HTTP/1.1"

        def log(self, *_: Any) -> None:
            pass

    spoiler = Spoiler(DomainDispatcherApplication(create_backend_app), seed)
    server = make_server("127.0.0.1", 0, spoiler, threaded=True, request_handler=Silent)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    address = f"http://127.0.0.1:{server.server_port}"
    client = boto3.client(
        "s3", endpoint_url=address, region_name="us-east-1", aws_access_key_id="test", aws_secret_access_key="test"
    )
    client.create_bucket(Bucket=BUCKET)
    try:
        yield address, spoiler
    finally:
        server.shutdown()


def use_remote(project: Project, seed: int, say: Callable[[str], None]) -> list[RemoteOutcome]:
    """Push the finished run, pull it into a repository without results, and make shards from tars in the bucket."""
    outcomes = []
    with faulty_s3(seed) as (address, spoiler):
        env = {
            "AWS_ENDPOINT_URL": address, "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
        }  # fmt: skip
        project.restore()
        dvc = [sys.executable, "-m", "dvc"]
        project.command([*dvc, "remote", "add", "--default", "store", f"s3://{BUCKET}/store"])

        def use(what: str, command: list[str], share: float, check: Callable[[], list[str]]) -> None:
            spoiler.share, spoiler.requests, spoiler.spoilt = share, 0, 0
            outcome = RemoteOutcome(what, 0, 0, "")
            ended = Ended(-1, "")
            for number in range(1, TRIES + 1):
                ended = project.command(command, **env)
                if "Traceback" in ended.output:
                    outcome.faults.append("a traceback")
                if ended.status and not any(line.lower().startswith("error") for line in ended.output.splitlines()):
                    outcome.faults.append("no line says why")
                if ended.status == 0 or share == 1:
                    outcome.ends = f"done, command {number}" if ended.status == 0 else "one line"
                    break
            else:
                outcome.faults.append(f"still fails after {TRIES} commands")
            if share == 1 and ended.status == 0:
                outcome.faults.append("status 0 although no request was answered")
            spoiler.share = 0.0
            outcome.requests, outcome.spoilt = spoiler.requests, spoiler.spoilt
            outcome.faults += check()
            if outcome.faults:
                say("\n".join([what, *outcome.faults, *ended.output.splitlines()[-30:]]))
            outcomes.append(outcome)

        def nothing() -> list[str]:
            return []

        use("dvc push, all requests", [*dvc, "push"], 1.0, nothing)
        use("dvc push", [*dvc, "push"], 0.3, nothing)
        drop_results(project)
        use("dvc pull, all requests", [*dvc, "pull"], 1.0, nothing)
        use("dvc pull", [*dvc, "pull"], 0.3, lambda: [d for d in project.differences() if not d.endswith("config")])
        upload(project.pristine / "artifacts/shards", env)
        project.restore()
        data = f"s3://{BUCKET}/tars/{{train-{{00000..00003}},val-{{00000..00001}}}}.tar"
        ended = project.command([sys.executable, "-m", "pipelines.params", "--preset", "smoke", "--data", data])
        if ended.status:
            say(ended.output)
        shards = project.root / "artifacts/shards"
        command = [sys.executable, "-m", "pipelines.repro", "--single-item", "--force", "shards"]
        use("shards from s3://", command, 0.0, nothing)
        expected = {path.name: path.read_bytes() for path in shards.iterdir()}

        def same() -> list[str]:
            found = {path.name: path.read_bytes() for path in shards.iterdir()}
            return [] if found == expected else ["the shards differ"]

        for folder in (".dvc/cache/runs", ".work"):
            shutil.rmtree(project.root / folder, ignore_errors=True)
        use("shards from s3://, all requests", command, 1.0, nothing)
        use("shards from s3://", command, 0.3, same)
    return outcomes


def drop_results(project: Project) -> None:
    """As in a fresh clone: neither results nor cache."""
    for stage in project.stages:
        for out in project.outs(stage):
            path = project.root / out
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    shutil.rmtree(project.root / ".dvc/cache")


def upload(folder: Path, env: dict[str, str]) -> None:
    import boto3

    client = boto3.client(
        "s3", endpoint_url=env["AWS_ENDPOINT_URL"], region_name="us-east-1", aws_access_key_id="test",
        aws_secret_access_key="test",
    )  # fmt: skip
    for tar in folder.glob("*.tar"):
        client.upload_file(str(tar), BUCKET, f"tars/{tar.name}")
