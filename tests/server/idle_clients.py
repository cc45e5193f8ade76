"""Clients that hold idle connections to PORT in a process of their own: together with the server's they are more than one may have.

Of COUNT connections a third has sent nothing, a third has had an answer, a third has begun to ask. "open" is printed when all stand, then
for each line N of stdin what the first N have got since (those of which nothing comes are waited for): a JSON list of texts.
"""

import json
import resource
import socket
import sys

HEALTH = b"GET /health/live HTTP/1.1\r\nhost: x\r\n\r\n"


def opened(port: int, idx: int) -> socket.socket:
    sock = socket.create_connection(("127.0.0.1", port), timeout=60)
    if idx % 3 == 1:
        sock.sendall(HEALTH)
        assert sock.recv(1000).startswith(b"HTTP/1.1 200")
    elif idx % 3 == 2:
        sock.sendall(HEALTH[:20])
    return sock


def main() -> None:
    port, num_connections = map(int, sys.argv[1:])
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    socks = [opened(port, idx) for idx in range(num_connections)]
    print("open", flush=True)
    for line in sys.stdin:
        print(json.dumps([sock.recv(1000).decode() for sock in socks[: int(line)]]), flush=True)


if __name__ == "__main__":
    main()
