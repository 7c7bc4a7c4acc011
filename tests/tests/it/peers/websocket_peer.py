"""WebSockets by the Python library of that name. `server` prints its port; `client URL` prints what it saw as JSON."""

import asyncio
import json
import sys

import websockets


async def serve():
    async def echo(socket):
        await socket.send("welcome")
        async for message in socket:
            await socket.send(message)
        # The client closed; nothing more to say.

    async with websockets.serve(echo, "127.0.0.1", 0, max_size=None) as server:
        print(f"listening on {server.sockets[0].getsockname()[1]}", flush=True)
        await asyncio.wait_for(server.wait_closed(), 300)


async def client(url):
    out = {}
    async with websockets.connect(url, max_size=None, proxy=None) as socket:
        out["first"] = await socket.recv()
        await socket.send("word")
        out["text"] = await socket.recv()
        large = bytes(number % 251 for number in range(3_000_000))
        await socket.send(large)
        out["large"] = await socket.recv() == large
        for number in range(500):
            await socket.send(str(number))
        out["many"] = [await socket.recv() for _ in range(500)] == [str(number) for number in range(500)]
    out["closed"] = socket.close_code
    print(json.dumps(out))


asyncio.run(serve() if sys.argv[1] == "server" else client(*sys.argv[2:]))
