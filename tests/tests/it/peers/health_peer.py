"""gRPC's own health service. Prints its port; `shop.Reviews` is not serving while the file named by the argument is there."""

import os
import sys
import time
from concurrent import futures

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

STATUS = health_pb2.HealthCheckResponse

servicer = health.HealthServicer()
server = grpc.server(futures.ThreadPoolExecutor(max_workers=4))
health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
port = server.add_insecure_port("127.0.0.1:0")
server.start()
print("listening on", port, flush=True)
while True:
    servicer.set("shop.Reviews", STATUS.NOT_SERVING if os.path.exists(sys.argv[1]) else STATUS.SERVING)
    time.sleep(0.02)
