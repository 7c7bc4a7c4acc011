"""A DNS server over UDP whose records and manners change while it runs, and which remembers when it was asked what.

Nobody listens on its port by TCP: what it truncates cannot be had whole. It knows nothing of proxies.
"""

import asyncio
import random
import socket
import struct
import time

A, AAAA, SOA = 1, 28, 6
SERVFAIL, NXDOMAIN = 2, 3
# RFC 1035 section 4.1.1: an answer, recursion asked for and available; and TC.
ANSWER, TRUNCATED = 0x8180, 0x0200
# How long absence may be remembered: between the second of a test zone and the 15 minutes of Route 53.
NEGATIVE_TTL = 5
# The records of a truncated answer that still fit.
FITTING = 2
# A pointer to the name in the question (RFC 1035 section 4.1.4).
NAME_POINTER = b"\xc0\x0c"
# Room for the questions of a burst, when thousands of names are asked for at once.
RECEIVE_BYTES = 4 * 1024 * 1024


class Server(asyncio.DatagramProtocol):
    """Every name has the same addresses (or those that `records` says) until it is told otherwise."""

    def __init__(self, addresses=(), ttl=1):
        self.addresses, self.ttl = list(addresses), ttl
        # One of answers, sample, servfail, timeout, nxdomain, empty, truncated.
        self.manner, self.sample = "answers", 0
        # (time, type) of each question.
        self.asked = []
        self.port = None
        self._transport = None

    async def start(self):
        endpoint = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        endpoint.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BYTES)
        endpoint.bind(("127.0.0.1", 0))
        self.port = endpoint.getsockname()[1]
        self._transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(lambda: self, sock=endpoint)
        return self

    def close(self):
        self._transport.close()

    def datagram_received(self, data, asker):
        if len(data) < 17:
            return
        end = data.index(0, 12) + 5
        kind = struct.unpack_from("!H", data, end - 4)[0]
        self.asked.append((time.monotonic(), kind))
        if self.manner != "timeout":
            self._transport.sendto(self.answer(data[:2], data[12:end], kind), asker)

    def records(self, question):
        """(addresses, TTL) of the name in this question."""
        return self.addresses, self.ttl

    def answer(self, number, question, kind):
        addresses, ttl = self.records(question)
        code, cut = 0, 0
        if kind != A:
            addresses = []
        if self.manner == "sample":
            addresses = random.sample(addresses, min(self.sample, len(addresses)))
        elif self.manner == "servfail":
            addresses, code = [], SERVFAIL
        elif self.manner == "nxdomain":
            addresses, code = [], NXDOMAIN
        elif self.manner == "empty":
            addresses = []
        elif self.manner == "truncated":
            addresses, cut = addresses[:FITTING], TRUNCATED
        else:
            # Servers turn their records round.
            addresses = random.sample(addresses, len(addresses))
        # RFC 2308 section 3: the SOA says how long absence may be remembered.
        absent = not addresses and code != SERVFAIL and not cut
        header = number + struct.pack("!HHHHH", ANSWER | cut | code, 1, len(addresses), int(absent), 0)
        records = [self.record(A, ttl, socket.inet_aton(address)) for address in addresses]
        if absent:
            data = b"\x00\x00" + struct.pack("!IIIII", 1, 60, 60, 60, NEGATIVE_TTL)
            records.append(self.record(SOA, NEGATIVE_TTL, data))
        return header + question + b"".join(records)

    @staticmethod
    def record(kind, ttl, data):
        return NAME_POINTER + struct.pack("!HHIH", kind, 1, ttl, len(data)) + data

    def per_second(self, begin, end):
        """Questions a second, of both types, from one moment to another."""
        return sum(begin <= at < end for at, _ in self.asked) / max(end - begin, 1e-9)
