"""An agent of SPIFFE: the SPIFFE Workload API by gRPC's own library, over a socket, its messages as workloadapi.proto has them.

    agent.py SOCKET STATE

STATE is a file of JSON that is looked at all the time; each change of it is a message, or the end, of every stream:
    {"svids": [{"spiffe_id", "certificate", "key", "roots", "hint"}]}     PEM throughout
    {"status": "PERMISSION_DENIED", "words": "no identity issued"}
"""

import base64
import json
import re
import sys
import threading
import time
from concurrent import futures

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

LOOK_EVERY = 0.02


def messages():
    """The messages of workloadapi.proto that FetchX509SVID takes and gives."""
    field = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="workloadapi.proto", syntax="proto3")
    file.message_type.add(name="X509SVIDRequest")
    svid = file.message_type.add(name="X509SVID")
    kinds = [("spiffe_id", field.TYPE_STRING), ("x509_svid", field.TYPE_BYTES), ("x509_svid_key", field.TYPE_BYTES)]
    kinds += [("bundle", field.TYPE_BYTES), ("hint", field.TYPE_STRING)]
    for number, (name, kind) in enumerate(kinds, 1):
        svid.field.add(name=name, number=number, type=kind, label=field.LABEL_OPTIONAL)
    response = file.message_type.add(name="X509SVIDResponse")
    entry = response.nested_type.add(name="FederatedBundlesEntry", options={"map_entry": True})
    entry.field.add(name="key", number=1, type=field.TYPE_STRING, label=field.LABEL_OPTIONAL)
    entry.field.add(name="value", number=2, type=field.TYPE_BYTES, label=field.LABEL_OPTIONAL)
    many = {"label": field.LABEL_REPEATED}
    response.field.add(name="svids", number=1, type=field.TYPE_MESSAGE, type_name=".X509SVID", **many)
    response.field.add(name="crl", number=2, type=field.TYPE_BYTES, **many)
    name = ".X509SVIDResponse.FederatedBundlesEntry"
    response.field.add(name="federated_bundles", number=3, type=field.TYPE_MESSAGE, type_name=name, **many)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return [message_factory.GetMessageClass(pool.FindMessageTypeByName(name)) for name in ("X509SVIDRequest", "X509SVIDResponse")]


Request, Response = messages()


def der(pem):
    """What stands in a text of PEM, one behind the other."""
    blocks = re.findall("-----BEGIN [A-Z ]+-----(.*?)-----END", pem, re.DOTALL)
    return b"".join(base64.b64decode(block) for block in blocks)


def response(svids):
    message = Response()
    for svid in svids:
        message.svids.add(
            spiffe_id=svid["spiffe_id"],
            x509_svid=der(svid["certificate"]),
            x509_svid_key=der(svid["key"]),
            bundle=der(svid["roots"]),
            hint=svid.get("hint", ""),
        )
        # What a sidecar is to pass over.
        message.federated_bundles["spiffe://elsewhere"] = der(svid["roots"])
    return message


def fetch(_request, context):
    if ("workload.spiffe.io", "true") not in context.invocation_metadata():
        context.abort(grpc.StatusCode.INVALID_ARGUMENT, "security header missing from request")
    print("asked", flush=True)
    seen = None
    while context.is_active():
        with open(sys.argv[2], encoding="utf-8") as file:
            text = file.read()
        if text != seen:
            seen = text
            state = json.loads(text)
            if "status" in state:
                context.abort(getattr(grpc.StatusCode, state["status"]), state["words"])
            yield response(state["svids"])
        time.sleep(LOOK_EVERY)


method = grpc.unary_stream_rpc_method_handler(
    fetch, request_deserializer=Request.FromString, response_serializer=Response.SerializeToString
)
handlers = grpc.method_handlers_generic_handler("SpiffeWorkloadAPI", {"FetchX509SVID": method})
server = grpc.server(futures.ThreadPoolExecutor(max_workers=8))
server.add_generic_rpc_handlers((handlers,))
server.add_insecure_port(f"unix:{sys.argv[1]}")
server.start()
print("listening", flush=True)
threading.Event().wait()
