"""Run a command in the background, in the client's pod: `start.py FOLDER COMMAND…` returns at once.

FOLDER receives `pid`, `log` (all that the command prints) and at its end `status` (negative: the signal that ended it).
"""

import os
import subprocess
import sys
from pathlib import Path

folder, command = Path(sys.argv[1]), sys.argv[2:]
folder.mkdir(parents=True)
if os.fork() == 0:
    os.setsid()
    with (folder / "log").open("wb") as log:
        for stream in (0, 1, 2):  # `kubectl exec` waits until nothing has its streams open
            os.dup2(log.fileno(), stream)
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, process_group=0)
    (folder / "pid").write_text(str(process.pid))
    (folder / "status.new").write_text(str(process.wait()))
    (folder / "status.new").rename(folder / "status")
