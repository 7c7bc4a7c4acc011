"""gRPC's own Python library on both ends. `server` prints its port; `client PORT` prints what it saw as JSON, and so do
`secure TARGET FOLDER NAME`, which shows the certificate in this folder and expects the server to bear this name, and
`calls TARGET METHOD COUNT`, which makes so many calls one after the other. `server "" "" CODE` ends what it has begun to
answer with this status.

Messages are plain bytes, so that no generated code is needed: a proxy does not read them.
"""

import json
import sys
import threading
import time
from concurrent import futures

import grpc

SERVICE = "shop.Greeter"
left_of_calls, cancelled = [], threading.Event()


def unary(request, context):
    if request == b"fail":
        context.set_trailing_metadata((("x-why", "because"),))
        context.abort(grpc.StatusCode.FAILED_PRECONDITION, "not like this: é")
    if request == b"left":
        return str(context.time_remaining()).encode()
    if request == b"slow":
        time.sleep(5)
    if request == b"was it cancelled":
        return b"yes" if cancelled.wait(5) else b"no"
    return b"hello " + request


def server_stream(request, context):
    for number in range(int(request)):
        yield b"%d" % number * 1000


def client_stream(requests, context):
    return b"%d" % sum(len(request) for request in requests)


def both(requests, context):
    for request in requests:
        if request == b"die":
            context.abort(grpc.StatusCode.DATA_LOSS, "in the middle")
        yield b"echo " + request


def endless(request, context):
    context.add_callback(cancelled.set)
    while context.is_active():
        yield b"tick"
        time.sleep(0.01)


def serve(chain=None, key=None, code=None):
    def late(request, context):
        """The head is sent first, so that the status stands in the trailers."""
        context.send_initial_metadata(())
        if code:
            context.abort(grpc.StatusCode[code], "late")
        return b"well"

    def late_stream(request, context):
        """So does a message."""
        yield b"begun"
        if code:
            context.abort(grpc.StatusCode[code], "late")

    handlers = {
        "Late": grpc.unary_unary_rpc_method_handler(late),
        "LateStream": grpc.unary_stream_rpc_method_handler(late_stream),
        "Unary": grpc.unary_unary_rpc_method_handler(unary),
        "ServerStream": grpc.unary_stream_rpc_method_handler(server_stream),
        "ClientStream": grpc.stream_unary_rpc_method_handler(client_stream),
        "Both": grpc.stream_stream_rpc_method_handler(both),
        "Endless": grpc.unary_stream_rpc_method_handler(endless),
    }
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=16))
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    if chain:
        pair = [open(path, "rb").read() for path in (key, chain)]
        port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([pair]))
    else:
        port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    print(f"listening on {port}", flush=True)
    server.wait_for_termination(timeout=300)


def failure(call):
    try:
        call()
    except grpc.RpcError as error:
        trailers = {key: value for key, value in error.trailing_metadata() or ()}
        return [error.code().name, error.details(), trailers.get("x-why")]
    return ["OK"]


def client(target, nobody):
    options = [("grpc.enable_http_proxy", 0)]
    channel = grpc.insecure_channel(target, options)
    call = lambda kind, name: getattr(channel, kind)(f"/{SERVICE}/{name}")
    unary = call("unary_unary", "Unary")
    out = {
        "unary": [unary(b"%d" % number, timeout=20).decode() for number in range(20)],
        "parallel": len([f.result() for f in [unary.future(b"x" * 10_000, timeout=20) for _ in range(200)]]),
        "server_stream": [len(part) for part in call("unary_stream", "ServerStream")(b"100", timeout=20)],
        "client_stream": call("stream_unary", "ClientStream")((b"x" * 10_000 for _ in range(100)), timeout=20).decode(),
        "failure": failure(lambda: unary(b"fail", timeout=20)),
        "left": float(unary(b"left", timeout=20)),
        "deadline": failure(lambda: unary(b"slow", timeout=0.3))[:1],
        "unknown": failure(lambda: call("unary_unary", "Nothing")(b"", timeout=20))[:1],
    }
    # A conversation: each word is said only when the last has been answered.
    words, answers = iter([b"one", b"two", b"three"]), []
    said, heard = threading.Semaphore(1), call("stream_stream", "Both")

    def speak():
        for word in words:
            said.acquire()
            yield word

    for answer in heard(speak(), timeout=20):
        answers.append(answer.decode())
        said.release()
    out["conversation"] = answers
    middle = heard(iter([b"one", b"die"]), timeout=20)
    out["died"] = failure(lambda: list(middle))[:2]
    endless = call("unary_stream", "Endless")(b"", timeout=20)
    next(endless)
    endless.cancel()
    out["cancelled"] = unary(b"was it cancelled", timeout=20).decode()
    elsewhere = grpc.insecure_channel(nobody, options + [("grpc.default_authority", "nobody")])
    out["nobody"] = failure(lambda: elsewhere.unary_unary(f"/{SERVICE}/Unary")(b"", timeout=20))[:2]
    print(json.dumps(out))


def secure(target, folder, name):
    read = lambda file: open(f"{folder}/{file}.pem", "rb").read()
    credentials = grpc.ssl_channel_credentials(read("roots"), read("key"), read("certificate"))
    options = [
        ("grpc.enable_http_proxy", 0),
        ("grpc.default_authority", "greeter"),
        ("grpc.ssl_target_name_override", name),
    ]
    channel = grpc.secure_channel(target, credentials, options)
    call = lambda kind, name: getattr(channel, kind)(f"/{SERVICE}/{name}")
    unary = call("unary_unary", "Unary")
    out = {
        "unary": unary(b"you", timeout=20).decode(),
        "server_stream": sum(len(part) for part in call("unary_stream", "ServerStream")(b"10", timeout=20)),
        "failure": failure(lambda: unary(b"fail", timeout=20))[:1],
    }
    print(json.dumps(out))


def calls(target, method, count):
    options = [("grpc.enable_http_proxy", 0), ("grpc.enable_retries", 0)]
    channel = grpc.insecure_channel(target, options)
    call = channel.unary_stream(f"/{SERVICE}/{method}")
    print(json.dumps([failure(lambda: list(call(b"", timeout=20)))[0] for _ in range(int(count))]))


roles = {"server": serve, "client": client, "secure": secure, "calls": calls}
roles[sys.argv[1]](*sys.argv[2:])
