"""A clone from which runs are submitted, a Kubeflow that the environment names, and `make pipeline-submit`, for tests."""

from __future__ import annotations

import contextlib
import functools
import http.server
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace

import pytest
from kfp_api import KfpApi, serve
from kfp_contract import DOCUMENT, Contract
from kubernetes_api import Server

from pipelines import submit
from pipelines.kfp import follow
from pipelines.kfp.parameters import Parameters
from pipelines.workflow.compose import compose_params, render
from pipelines.workflow.graph import Graph

GRAPH = """\
stages:
  shards:
    cmd: python -m pipelines.launch shards
    deps: ["${dataset.path}"]
    params: [dataset]
    outs: [artifacts/shards]
  tokenizer:
    cmd: python -m pipelines.launch tokenizer
    deps: [artifacts/shards]
    params: [seed, tokenizer]
    outs: [artifacts/tokenizer]
    meta: {retries: 2}
  evaluate:
    foreach: [knn, linear]
    do:
      cmd: python -m pipelines.launch evaluate@${item}
      deps: [artifacts/shards, artifacts/tokenizer]
      metrics: ["metrics/evaluate/${item}.json"]
"""
OBJECT = "d3b07384d113edec49eaa6238ad5ff00"
POINTER = f"outs:\n- md5: {OBJECT}\n  size: 4\n  hash: md5\n  path: photos.tar\n"
VARIABLES = (
    "KFP_HOST", "KFP_NAMESPACE", "KFP_TOKEN", "KFP_SERVICE_ACCOUNT", "KF_PIPELINES_SA_TOKEN_PATH", "GIT_REMOTE", "PECO_REMOTE",
    "PECO_REMOTE_ENDPOINT", "SWEEP_LIMIT", "PECO_NAMESPACE",
)  # fmt: skip


class Project:
    """A clone whose commits are on its remote, in the current directory."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.store = path.parent / "store"

    def git(self, *arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments], cwd=self.path, check=True, capture_output=True, text=True
        ).stdout.strip()

    def commit(self, push: bool = True, **files: str) -> str:
        """Commit files (named with `__` for `/`) and return the commit."""
        for name, content in files.items():
            path = self.path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)
        self.git("add", "-A")
        self.git("commit", "-q", "-m", "change")
        if push:
            self.git("push", "-q", "origin", "main")
        return self.git("rev-parse", "HEAD")

    def write(self, name: str, content: str) -> None:
        (self.path / name).parent.mkdir(parents=True, exist_ok=True)
        (self.path / name).write_text(content)


def make_template(home: Path) -> None:
    """Make a clone `clone` of a bare repository `peco.git`, with a DVC remote `store`."""
    clone = home / "clone"
    files = {
        "dvc.yaml": GRAPH,
        "params.yaml": render(compose_params("smoke", [])),
        "data/scenes.yaml": "scenes: 1\n",
        ".dvc/config": "[core]\n    remote = store\n['remote \"store\"']\n    url = ../../store\n",
        ".dvc/.gitignore": "/config.local\n/tmp\n/cache\n",
        ".gitignore": "/pipeline.yaml\n",
    }
    for name, content in files.items():
        (clone / name).parent.mkdir(parents=True, exist_ok=True)
        (clone / name).write_text(content)
    for command in (
        ["init", "-q", "--bare", "-b", "main", "../peco.git"],
        ["init", "-q", "-b", "main"],
        ["config", "user.name", "t"],
        ["config", "user.email", "t@t"],
        ["remote", "add", "origin", "../peco.git"],
        ["add", "-A"],
        ["commit", "-q", "-m", "start"],
        ["push", "-q", "-u", "origin", "main"],
    ):
        subprocess.run(["git", *command], cwd=clone, check=True, capture_output=True)


def copy_template(template: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """A copy of the template, in the current directory, and no variables of the caller."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DVC_SITE_CACHE_DIR", str(home.parent / "site"))
    monkeypatch.setenv("KUBECONFIG", str(home.parent / "none"))
    shutil.copytree(template, home)
    monkeypatch.chdir(home / "clone")
    return Project(home / "clone")


_compile, _pipelines = submit.compiled, dict[str, str]()


def compiled(graph: Graph, env: Mapping[str, str], defaults: Parameters | None = None) -> str:
    """The compiler, which compiles each graph with the same parameters once."""
    key = f"{graph} {defaults}"
    if key not in _pipelines:
        _pipelines[key] = _compile(graph, env, defaults)
    return _pipelines[key]


@functools.cache
def contract() -> Contract | None:
    """The checks of requests, if the document is available."""
    path = Path(os.environ.get("PECO_TEST_SCHEMAS") or os.devnull) / DOCUMENT
    return Contract(path) if path.is_file() else None


@contextlib.contextmanager
def served(monkeypatch: pytest.MonkeyPatch) -> Iterator[KfpApi]:
    """A Kubeflow that the environment names. Waiting for it takes no time, and each graph is compiled once."""
    monkeypatch.setattr(follow, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(submit, "SETTLE_SECONDS", 0.0)
    monkeypatch.setattr(submit, "compiled", compiled)
    with serve(KfpApi(contract())) as server:
        monkeypatch.setenv("KFP_HOST", server.address)
        monkeypatch.setenv("PECO_IMAGE", "registry.example.com/peco:1234567")
        yield server


@contextlib.contextmanager
def foreign(status: int, headers: dict[str, str], body: bytes) -> Iterator[str]:
    """The address of a server that gives this answer to all requests."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with Server(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def run(*arguments: str, status: int = 0) -> None:
    assert submit.main(["submit", *arguments]) == status


def between_requests(monkeypatch: pytest.MonkeyPatch, action: Callable[[], None]) -> None:
    """Call the action between requests while a run is followed, instead of waiting."""
    clock = SimpleNamespace(sleep=lambda seconds: action(), monotonic=time.monotonic, strftime=time.strftime)
    monkeypatch.setattr(follow, "time", clock)
