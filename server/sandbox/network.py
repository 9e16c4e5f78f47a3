"""Opens the ports of the server's gateways in a network namespace, then becomes the program.

Runs alone in a sandbox of bubblewrap that has a network of its own: ``python -I -S network.py
TUNNEL PROCESSES PORTS ARGV…``. TUNNEL is a socket to the server, PORTS is a list with commas. The
program connects to 127.0.0.1 as it would without a namespace; the server accepts the connections,
because it gets the listening sockets.
"""

import os
import resource
import socket
import sys

TUNNEL_BACKLOG = 64


def main() -> None:
    tunnel = socket.socket(fileno=int(sys.argv[1]))
    processes, ports, argv = int(sys.argv[2]), sys.argv[3], sys.argv[4:]
    listeners = [
        socket.create_server(("127.0.0.1", int(port)), backlog=TUNNEL_BACKLOG)
        for port in ports.split(",")
        if port
    ]
    socket.send_fds(tunnel, [b"+"], [listener.fileno() for listener in listeners])
    if tunnel.recv(1) != b"+":
        sys.exit("the server refused the ports of its gateways: its log says why")
    for sock in (*listeners, tunnel):
        sock.close()
    if processes:
        resource.setrlimit(resource.RLIMIT_NPROC, (processes, processes))
    try:
        os.execvp(argv[0], argv)
    except OSError as error:
        sys.exit(f"{argv[0]}: {error.strerror}")


if __name__ == "__main__":
    main()
