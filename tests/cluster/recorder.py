"""A proxy to the cluster's API, in the client's pod, that writes down each answer: `recorder.py PORT FOLDER`."""

import http.client
import itertools
import json
import ssl
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

PORT, FOLDER = int(sys.argv[1]), Path(sys.argv[2])
HOST, AUTHORITY = "kubernetes.default.svc", "/var/run/secrets/kubernetes.io/serviceaccount/ca.crt"
NUMBERS = itertools.count()
PASSED = ("Accept", "Authorization", "Content-Type")


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass

    def _forward(self) -> None:
        number = next(NUMBERS)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        headers = {name: self.headers[name] for name in PASSED if name in self.headers}
        api = http.client.HTTPSConnection(HOST, context=ssl.create_default_context(cafile=AUTHORITY))
        api.request(self.command, self.path, body, headers)
        answer = api.getresponse()
        self.send_response(answer.status, answer.reason)
        self.send_header("Content-Type", answer.getheader("Content-Type", ""))
        self.end_headers()  # without a length: the end of the connection is the end of the answer
        received = bytearray()
        while data := answer.read1(1 << 16):
            received += data
            self.wfile.write(data)
            self.wfile.flush()
        record = {
            "method": self.command, "path": self.path, "type": headers.get("Content-Type", ""), "request": body.decode(),
            "status": answer.status, "answer": received.decode(errors="replace"),
        }  # fmt: skip
        (FOLDER / f"{number:05}.json").write_text(json.dumps(record))

    do_GET = do_POST = do_PATCH = do_PUT = do_DELETE = _forward


FOLDER.mkdir(parents=True)
server = ThreadingHTTPServer(("127.0.0.1", PORT), Handler)
print("ready", flush=True)
server.serve_forever()
