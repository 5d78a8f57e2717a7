#!/usr/bin/env python3
"""A service that says what it sees, and a client that says how it ended; both ends of the cases about ports.

    service.py serve ADDRESS PORT          TCP and UDP; `::` takes both families
    service.py ask ADDRESS PORT REQUEST    one connection; what came, and the end: `end`, `reset`, `refused`
    service.py udp ADDRESS PORT TEXT...    one datagram each; what came back

Requests, the first line of a connection:
    whoami      the client's address and port, and the service's own
    digest      reads to the end, answers with SHA-256
    send N      N bytes of a pattern, then the end
    reset       closes with a reset
    listen      says how the connection ended, on standard output: `client ended` or `client reset`
    hold        says `held`, then nothing
    proxy       the PROXY header that came first (everything up to the request)
Of `digest`, the client sends `digest N`: N bytes of the pattern, then its end; it compares. Of `send N` it compares too.
"""
import hashlib
import socket
import struct
import sys
import threading

BLOCK = bytes((i * 7 + (i >> 8) * 13) & 255 for i in range(1 << 16))
SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
RESET = struct.pack("ii", 1, 0)


def pattern(count):
    number = 0
    while count > 0:
        piece = number.to_bytes(8, "big") + BLOCK[8:]
        yield piece[:count]
        count -= len(piece)
        number += 1


def digest_of(pieces):
    digest, count = hashlib.sha256(), 0
    for piece in pieces:
        digest.update(piece)
        count += len(piece)
    return f"{digest.hexdigest()} {count}"


def pieces_of(sock):
    while piece := sock.recv(1 << 20):
        yield piece


def first_line(sock):
    line, before = b"", b""
    while not line.endswith(b"\n") or SIGNATURE.startswith(line):
        byte = sock.recv(1)
        if not byte:
            return b"", before
        line += byte
        if line in (b"PROXY", SIGNATURE):
            # Text to the end of its line; binary: 4 more bytes, the last two say how many follow.
            if line == b"PROXY":
                while not line.endswith(b"\r\n"):
                    line += sock.recv(1)
            else:
                line += sock.recv(4, socket.MSG_WAITALL)
                line += sock.recv(int.from_bytes(line[-2:], "big"), socket.MSG_WAITALL)
            line, before = b"", line
    return line, before


def answer(sock, peer):
    request, before = first_line(sock)
    words = request.decode().split() or ["nothing"]
    if words[0] == "whoami":
        sock.sendall(f"{peer[0]} {peer[1]} {sock.getsockname()[0]}".encode())
    elif words[0] == "digest":
        sock.sendall(digest_of(pieces_of(sock)).encode())
    elif words[0] == "send":
        for piece in pattern(int(words[1])):
            sock.sendall(piece)
    elif words[0] == "reset":
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    elif words[0] == "listen":
        sock.sendall(b"listening")
        try:
            digest_of(pieces_of(sock))
            print("client ended", flush=True)
        except ConnectionResetError:
            print("client reset", flush=True)
    elif words[0] == "hold":
        sock.sendall(b"held")
        try:
            sock.recv(1)
        except OSError:
            pass
    elif words[0] == "proxy":
        sock.sendall(before.hex().encode())
    sock.close()


def quietly(function, *arguments):
    try:
        function(*arguments)
    except OSError as error:
        print(f"{function.__name__}: {error}", file=sys.stderr, flush=True)


def bound(address, port, kind):
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    sock = socket.socket(family, kind)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(address != "::"))
    sock.bind((address, port))
    return sock


def serve(address, port):
    datagrams = bound(address, port, socket.SOCK_DGRAM)

    def echo():
        while True:
            data, peer = datagrams.recvfrom(65536)
            datagrams.sendto(f"{peer[0]} {peer[1]} ".encode() + data, peer)

    threading.Thread(target=echo, daemon=True).start()
    listener = bound(address, port, socket.SOCK_STREAM)
    listener.listen(1024)
    print("ready", flush=True)
    while True:
        sock, peer = listener.accept()
        threading.Thread(target=quietly, args=(answer, sock, peer), daemon=True).start()


def ask(address, port, request):
    words = request.split()
    try:
        sock = socket.create_connection((address, port), 10)
        sock.settimeout(60)
        if words[0] == "digest":
            sock.sendall(b"digest\n")
            for piece in pattern(int(words[1])):
                sock.sendall(piece)
            sock.shutdown(socket.SHUT_WR)
            said = b"".join(pieces_of(sock)).decode()
            return "same end" if said == digest_of(pattern(int(words[1]))) else f"other: {said}"
        if words[0] == "hangup":
            # The client resets.
            sock.sendall(b"listen\n")
            sock.recv(9, socket.MSG_WAITALL)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            sock.close()
            return "reset by client"
        sock.sendall(request.encode() + b"\n")
        if words[0] == "send":
            said = digest_of(pieces_of(sock))
            return "same end" if said == digest_of(pattern(int(words[1]))) else f"other: {said}"
        said = b""
        while piece := sock.recv(1 << 16):
            said += piece
            if words[0] == "hold":
                print(said.decode(), flush=True)
        return f"{said.decode()} end"
    except ConnectionResetError:
        return "reset"
    except ConnectionRefusedError:
        return "refused"
    except OSError as error:
        return f"error {error}"


def udp(address, port, texts):
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_DGRAM)
    sock.settimeout(5)
    # Connected: an answer from another address than the one asked would not be taken.
    sock.connect((address, port))
    for text in texts:
        sock.send(text.encode())
        try:
            print(sock.recv(65536).decode())
        except OSError as error:
            print(f"error {error}")


if __name__ == "__main__":
    verb, address, port, *rest = sys.argv[1:]
    if verb == "serve":
        serve(address, int(port))
    elif verb == "ask":
        print(ask(address, int(port), " ".join(rest)))
    else:
        udp(address, int(port), rest)
