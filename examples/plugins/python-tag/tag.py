#!/usr/bin/env python3
"""A plugin without our SDK: the standard library alone. It tags requests and refuses those that say x-python: no.

docs/plugin-protocol.md is all that one needs to write this. Protobuf by hand is four functions; with a protobuf library the messages of
services/api/filter/v1/filter.proto do the same.
"""

import json
import os
import socket
import struct
import sys
import threading
import time

SOCKET = "data.sock"  # in the working directory, which restartd makes for each generation
ORPHAN = int(os.environ.get("RETINUE_PLUGIN_ORPHAN_MS", "30000")) / 1000

# Numbers of filter/v1.
REQUEST_HEADERS = 1
RESPOND = 1


def varint(n):
    out = bytearray()
    while n > 0x7F:
        out.append(n & 0x7F | 0x80)
        n >>= 7
    out.append(n)
    return bytes(out)


def number(field, n):
    return varint(field << 3) + varint(n)


def data(field, b):
    b = b.encode() if isinstance(b, str) else b
    return varint(field << 3 | 2) + varint(len(b)) + b


def fields(b):
    """Yields (field, value) of a message: int for varints, bytes for the rest."""
    at = 0

    def read():
        nonlocal at
        n = shift = 0
        while True:
            c = b[at]
            at += 1
            n |= (c & 0x7F) << shift
            shift += 7
            if c < 0x80:
                return n

    while at < len(b):
        tag = read()
        kind = tag & 7
        if kind == 0:
            yield tag >> 3, read()
        elif kind == 2:
            n = read()
            yield tag >> 3, b[at : at + n]
            at += n
        else:
            at += 8 if kind == 1 else 4


def receive(f):
    """One frame, or None at the end of the connection."""
    head = f.read(4)
    if len(head) < 4:
        return None
    n = struct.unpack("<I", head)[0]
    body = f.read(n)
    return body if len(body) == n else None


def frame(b):
    return struct.pack("<I", len(b)) + b


configs = {}  # by id


def hello():
    schema = data(1, data(1, "tag") + number(2, 1) + number(3, 1) + data(4, "value of x-python-tag"))
    return data(1, "python-tag") + data(2, "1.0.0") + number(3, 1) + data(5, schema) + data(6, os.path.join(os.getcwd(), SOCKET))


def configure(request):
    r = dict(fields(request))
    config = json.loads(r.get(2, b"{}") or b"{}")
    if not config.get("tag"):
        return data(2, data(1, "tag") + data(2, "an empty tag marks nothing: write a word"))
    configs[r.get(1, 0)] = config
    return data(1, data(1, bytes([REQUEST_HEADERS])) + data(2, "x-python"))  # Subscription: phases, request_headers


def control(message):
    """Answers a ControlRequest with a ControlReply."""
    out = b""
    for field, value in fields(message):
        if field == 1:
            out += number(1, value)
        elif field == 2:
            out += data(3, hello())
        elif field == 3:
            out += data(4, configure(value))
        elif field == 4:
            configs.pop(dict(fields(value)).get(1, 0), None)
            out += data(5, b"")
        elif field == 5:
            out += data(6, number(2, connections))
        elif field == 6:
            out += data(7, b"")
    return out


def event(message):
    """Answers an Event with a Reply."""
    call = config_id = 0
    headers = {}
    for field, value in fields(message):
        if field == 1:
            call = value
        elif field == 3:
            config_id = value
        elif field == 7:
            h = dict(fields(value))
            headers[h[1].decode()] = h.get(2, b"")
    if headers.get("x-python") == b"no":
        response = number(1, 403) + data(2, data(1, "content-type") + data(2, "text/plain")) + data(3, "not today\n")
        return number(1, call) + number(2, RESPOND) + data(5, response)
    return number(1, call) + data(3, data(2, "x-python-tag") + data(3, configs[config_id]["tag"]))  # HeaderOp SET


connections = 0
held = 0
last_held = time.monotonic()
lock = threading.Lock()


def serve(c):
    global connections, held, last_held
    is_control = None
    f = c.makefile("rb", buffering=256 << 10)
    try:
        while (message := receive(f)) is not None:
            out = b""
            for field, value in fields(message):
                if field == 1:  # Opening
                    is_control = bool(dict(fields(value)).get(2, 0))
                    with lock:
                        held += is_control
                        connections += not is_control
                    out += frame(data(1, number(1, 1) + number(5, 1 << 20)))
                elif field == 2:
                    out += frame(data(2, event(value)))
                elif field == 3 and is_control:
                    out += frame(data(3, control(value)))
            c.sendall(out)
    except OSError:
        pass
    finally:
        c.close()
        if is_control is not None:
            with lock:
                held -= is_control
                connections -= not is_control
                last_held = time.monotonic()


def main():
    if os.environ.get("RETINUE_PLUGIN") != "filter":
        sys.exit("this is a plugin of Retinue: name it in a configuration, restartd starts it")
    if os.path.exists(SOCKET):
        os.remove(SOCKET)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(SOCKET)
    listener.listen(64)
    print(f"1|1|unix|{SOCKET}|frames", flush=True)

    def accept():
        while True:
            c, _ = listener.accept()
            threading.Thread(target=serve, args=(c,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    while True:  # nobody holds the control connection: the suite is gone
        time.sleep(ORPHAN / 4)
        if not held and time.monotonic() - last_held > ORPHAN:
            return


main()
