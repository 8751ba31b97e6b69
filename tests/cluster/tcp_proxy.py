"""A TCP proxy, in the client's pod: `tcp_proxy.py PORT HOST HOST_PORT` forwards connections to 127.0.0.1:PORT.

A killed proxy is an API that refuses connections, a stopped one (SIGSTOP) an API that doesn't answer.
"""

import asyncio
import contextlib
import sys

port, host, host_port = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])


async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
    writer.close()


async def connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        to_reader, to_writer = await asyncio.open_connection(host, host_port)
    except OSError:
        writer.close()
        return
    await asyncio.gather(copy(reader, to_writer), copy(to_reader, writer))


async def main() -> None:
    server = await asyncio.start_server(connect, "127.0.0.1", port)
    print("ready", flush=True)
    await server.serve_forever()


asyncio.run(main())
