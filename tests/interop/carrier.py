#!/usr/bin/env python3
"""Both ends of transfers that a fault strikes: who reads sees the whole, or an error, and never a short clean end.

    carrier.py serve ADDRESS PORT LOG            answers `put` and `get`, and notes how each ended
    carrier.py carry ADDRESS PORT SECONDS LOG    transfers of many sizes, one after the other and several at once, until
                                                 the time is over; what came of each is noted, and the sums are printed
    carrier.py once ADDRESS PORT WHAT SIZE PAUSE one transfer, `put` or `get`, with a pause after each piece

A line of a log: what, its number, its size, how many bytes were read, and how it ended: `end`, or the name of an error.
A reader that sees other bytes than it should says `wrong`.
"""
import errno
import os
import random
import socket
import sys
import threading
import time

BLOCK = bytes((i * 7 + (i >> 8) * 13) & 255 for i in range(1 << 16))
PARALLEL = 4


def piece(number, size, at):
    """The bytes of a transfer at a multiple of the block's size."""
    head = number.to_bytes(8, "big") + at.to_bytes(8, "big")
    return (head + BLOCK[16:])[: size - at]


def name(error):
    return errno.errorcode.get(error.errno, type(error).__name__)


def write_all(sock, number, size, pause=0):
    for at in range(0, size, len(BLOCK)):
        sock.sendall(piece(number, size, at))
        if pause:
            time.sleep(pause)
    sock.shutdown(socket.SHUT_WR)


def read_all(sock, number, size):
    """(how many bytes, how it ended)."""
    got, wanted, at = 0, b"", 0
    while True:
        try:
            part = sock.recv(1 << 18)
        except OSError as error:
            return got, name(error)
        if not part:
            return got, "end"
        got += len(part)
        while part:
            if not wanted:
                wanted, at = piece(number, size, at), at + len(BLOCK)
            length = min(len(part), len(wanted))
            if not length or part[:length] != wanted[:length]:
                return got, "wrong"
            part, wanted = part[length:], wanted[length:]


def note(log, *words):
    os.write(log, (" ".join(map(str, words)) + "\n").encode())


def answer(sock, log):
    with sock:
        try:
            line = b""
            while not line.endswith(b"\n"):
                byte = sock.recv(1)
                if not byte:
                    return
                line += byte
            what, number, size = line.split()[0].decode(), *map(int, line.split()[1:])
            if what == "put":
                got, how = read_all(sock, number, size)
                note(log, what, number, size, got, how)
                if how == "end":
                    sock.sendall(b"%d" % got)
            else:
                write_all(sock, number, size)
                # Until the reader has read it, or has gone.
                while sock.recv(1):
                    pass
        except OSError:
            pass


def serve(address, port, path):
    log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    listener = socket.create_server((address, int(port)), family=family, dualstack_ipv6=address == "::", backlog=256)
    print("ready", flush=True)
    while True:
        sock = listener.accept()[0]
        threading.Thread(target=answer, args=(sock, log), daemon=True).start()


def transfer(to, what, number, size, pause=0):
    """How it ended: `end` when everything is known to have arrived."""
    got = 0
    try:
        with socket.create_connection(to, 200) as sock:
            sock.settimeout(None)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            sock.sendall(f"{what} {number} {size}\n".encode())
            if what == "get":
                got, how = read_all(sock, number, size)
                return got, how
            write_all(sock, number, size, pause)
            said = b""
            while part := sock.recv(100):
                said += part
            got = int(said or b"0")
            return got, "end" if said else "unanswered"
    except OSError as error:
        return got, name(error)


def carry(address, port, seconds, path):
    log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    end, lock, sums = time.monotonic() + float(seconds), threading.Lock(), {}

    def one(seed):
        rng, number = random.Random(seed), seed << 32
        while time.monotonic() < end:
            number += 1
            what, size = rng.choice(["put", "get"]), rng.choice([1, 1000, 65536, 1_000_000, 20_000_000])
            got, how = transfer((address, int(port)), what, number, size)
            note(log, what, number, size, got, how)
            with lock:
                sums[how] = sums.get(how, 0) + 1
            if how != "end":
                time.sleep(0.05)

    threads = [threading.Thread(target=one, args=(seed,)) for seed in range(1, PARALLEL + 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(" ".join(f"{how}={count}" for how, count in sorted(sums.items())))


if __name__ == "__main__":
    verb, *words = sys.argv[1:]
    if verb == "serve":
        serve(*words)
    elif verb == "carry":
        carry(*words)
    else:
        host, at, kind, length, rest = words
        print("up", flush=True)
        print(*transfer((host, int(at)), kind, 7, int(length), float(rest)))
