"""Backends that say which they are, and a steady load that remembers who answered when.

Both live in this process: the rate is modest, and what is measured is who answers and not how fast.
"""

import asyncio
import time
from dataclasses import dataclass

# Requests a second of one load: many enough that a new endpoint is met within a tenth of a second.
RATE = 100
CONNECTIONS = 10
# Longer than the 15 s that every contestant gives a request.
REQUEST_SECONDS_MAX = 20
# Of what is said about a failure.
WORDS_MAX = 120
# A refused connection is tried again after this.
RECONNECT_SECONDS = 0.1


@dataclass
class Outcome:
    """One request: when it ended, which backend answered (None: none did), and else what happened."""

    at: float
    backend: str | None
    trouble: str = ""


class Backends:
    """Servers with one port on several addresses. Each can be stopped for good."""

    def __init__(self, addresses, port):
        self.addresses, self.port = addresses, port
        self.connections = 0
        self._servers, self._writers = {}, {address: set() for address in addresses}

    async def start(self):
        for address in self.addresses:
            serve = lambda reader, writer, address=address: self._serve(address, reader, writer)
            self._servers[address] = await asyncio.start_server(serve, address, self.port)
        return self

    async def _serve(self, address, reader, writer):
        self.connections += 1
        self._writers[address].add(writer)
        answer = f"HTTP/1.1 200 OK\r\ncontent-length: {len(address)}\r\n\r\n{address}".encode()
        try:
            while await reader.readuntil(b"\r\n\r\n"):
                writer.write(answer)
                await writer.drain()
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            self._writers[address].discard(writer)
            writer.close()

    def stop(self, address):
        """Its port refuses connections, and those that are open are closed."""
        server = self._servers.pop(address, None)
        if server:
            server.close()
        for writer in list(self._writers[address]):
            writer.close()

    def stop_all(self):
        for address in self.addresses:
            self.stop(address)


class Load:
    """Requests at a steady rate by kept connections, each counted."""

    def __init__(self, port):
        self.port = port
        self.outcomes = []
        self._tasks, self._stopping = [], False

    def start(self):
        self._tasks = [asyncio.create_task(self._worker(number)) for number in range(CONNECTIONS)]
        return self

    async def stop(self):
        # `wait_for` of Python 3.11 may swallow a cancellation that comes with its result.
        self._stopping = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _worker(self, number):
        pause = CONNECTIONS / RATE
        await asyncio.sleep(number / RATE)
        stream = None
        while not self._stopping:
            began = time.monotonic()
            try:
                if stream is None:
                    stream = await asyncio.open_connection("127.0.0.1", self.port)
                status, body = await asyncio.wait_for(get(stream, "/"), REQUEST_SECONDS_MAX)
                good = status == 200
                self.outcomes.append(Outcome(time.monotonic(), body if good else None, "" if good else f"{status} {body.strip()[:WORDS_MAX]}"))
            except (OSError, asyncio.IncompleteReadError, asyncio.TimeoutError, ValueError) as trouble:
                self.outcomes.append(Outcome(time.monotonic(), None, type(trouble).__name__))
                if stream is not None:
                    stream[1].close()
                stream = None
                await asyncio.sleep(RECONNECT_SECONDS)
            await asyncio.sleep(max(0.0, began + pause - time.monotonic()))

    def failed(self, begin, end):
        return [each for each in self.outcomes if begin <= each.at < end and each.backend is None]

    def answered_by(self, begin, end):
        return {each.backend for each in self.outcomes if begin <= each.at < end and each.backend}

    def first_of(self, backend, begin):
        """When this backend answered first from then on; None: never."""
        return next((each.at for each in self.outcomes if each.at >= begin and each.backend == backend), None)

    def last_of(self, backends, begin):
        """When one of these answered last from then on; the beginning if never."""
        return max((each.at for each in self.outcomes if each.at >= begin and each.backend in backends), default=begin)


async def get(stream, path):
    """(status, body) of one request on an open connection."""
    reader, writer = stream
    writer.write(f"GET {path} HTTP/1.1\r\nhost: bench\r\n\r\n".encode())
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
    status = int(head.split(" ", 2)[1])
    if "transfer-encoding: chunked" in head:
        body = b""
        while size := int((await reader.readline()).strip(), 16):
            body += (await reader.readexactly(size + 2))[:-2]
        await reader.readline()
    else:
        length = next((int(line.split(":")[1]) for line in head.split("\r\n") if line.startswith("content-length:")), 0)
        body = await reader.readexactly(length)
    return status, body.decode(errors="replace")


async def fetch(port, path):
    """The same on a connection of its own."""
    stream = await asyncio.open_connection("127.0.0.1", port, limit=16 * 1024 * 1024)
    try:
        return await asyncio.wait_for(get(stream, path), REQUEST_SECONDS_MAX)
    finally:
        stream[1].close()
