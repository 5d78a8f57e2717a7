#!/usr/bin/env python3
"""Many sandboxes on one network: what another one costs, and what it takes from the others.

    scripts/many.py BINARY [--user NAME] [--count 250] [--seconds 3] [--facts]

Run it by hand on a quiet machine with a release build, as root with --user (the sandboxes are that user's; only root may read
how much memory confined processes have), or as an ordinary user, who does not get the lines about memory. It prints a
table of figures, each with what is wanted of it, and ends with 1 if one is missed. With --facts, for machines that are not quiet,
what depends on time is told and decides nothing.

That all reach each other is shown by datagrams from each to each, in either family: one process holds a UDP socket in
every sandbox, and a packet socket that it sends complete frames with. The kernel's table of neighbors is one for all
namespaces of a machine and holds 1,024 entries (net.ipv4.neigh.default.gc_thresh3), too few for 62,250 pairs; so only
each one's next neighbor is asked for by ARP and NDP.

Needs: iperf3, util-linux (nsenter), iproute2.
"""
import argparse
import array
import ctypes
import json
import os
import pwd
import select
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import time

PORT = 7000
CLONE_NEWUSER, CLONE_NEWNET = 0x10000000, 0x40000000
libc = ctypes.CDLL(None, use_errno=True)


def until(what, reason, seconds=60):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if got := what():
            return got
        time.sleep(0.02)
    sys.exit(f"not within {seconds} s: {reason}")


def setns(path, kind):
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    if libc.setns(fd, kind) != 0:
        raise OSError(ctypes.get_errno(), f"setns {path}")
    os.close(fd)


def checksum(data):
    data += b"\0" * (len(data) % 2)
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


class Fleet:
    """Sandboxes on one network, each with a sleep in it."""

    def __init__(self, binary, user):
        self.binary, self.who = os.path.abspath(binary), {}
        self.work = tempfile.mkdtemp(prefix="tapline-many-")
        if user:
            entry = pwd.getpwnam(user)
            self.who = {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}
            os.chown(self.work, entry.pw_uid, entry.pw_gid)
        self.environment = {"PATH": os.environ["PATH"], "HOME": self.work, "XDG_RUNTIME_DIR": self.work, "XDG_DATA_HOME": self.work}
        self.running = []
        self.others = set(self.gateways())
        self.tapline("network", "create", "many")

    def popen(self, *words, **more):
        more = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "text": True, "cwd": "/", "env": self.environment} | self.who | more
        return subprocess.Popen([self.binary, *words], **more)

    def tapline(self, *words):
        process = self.popen(*words)
        said = process.communicate(timeout=60)[0]
        if process.returncode:
            sys.exit(f"tapline {' '.join(words)} ended with {process.returncode}")
        return said

    def start(self):
        """One more; how long it took until its command ran, in milliseconds."""
        begun = time.monotonic()
        process = self.popen("run", "--net", "many", "--name", f"box{len(self.running)}", "--", "sh", "-c", "echo up; exec sleep 100000")
        if process.stdout.readline() != "up\n":
            sys.exit(f"sandbox {len(self.running)} did not start")
        self.running.append(process)
        return (time.monotonic() - begun) * 1e3

    def end_last(self):
        process = self.running.pop()
        process.terminate()
        process.wait()

    def starts(self, count=10):
        """The median of some starts, each ended before the next."""
        took = []
        for _ in range(count):
            took.append(self.start())
            self.end_last()
        return statistics.median(took)

    def boxes(self):
        """Each one's first process, in the order of their numbers."""
        listed = [json.loads(line) for line in self.tapline("ps", "--format", "json").splitlines()]
        return [box["pid"] for box in sorted(listed, key=lambda box: int(box["name"].removeprefix("box")))]

    def gateways(self):
        """All of the user's."""
        found = []
        # It is started by /proc/self/exe, and its command line is nobody's to see, nor is it the owner of its files in /proc.
        for entry in filter(str.isdigit, os.listdir("/proc")):
            try:
                status = dict(line.split(":", 1) for line in open(f"/proc/{entry}/status") if ":" in line)
                if status["Name"].strip() == "exe" and status["State"].split()[0] not in "ZX" and int(status["Uid"].split()[1]) == self.who.get("user", os.getuid()):
                    found.append(int(entry))
            except OSError:
                pass
        return found

    def gateway(self):
        """The one that serves the fleet."""
        found = [pid for pid in self.gateways() if pid not in self.others]
        if len(found) != 1:
            sys.exit(f"one gateway process was expected: {found}; end the user's other sandboxes first")
        return found[0]

    def end(self):
        for process in self.running:
            process.terminate()
        for process in self.running:
            process.wait()
        self.tapline("network", "rm", "many")


def pss_kib(pid):
    with open(f"/proc/{pid}/smaps_rollup") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("Pss:"))


def family(pid):
    """A process and all below it."""
    try:
        children = open(f"/proc/{pid}/task/{pid}/children").read().split()
    except OSError:
        return [pid]
    return [pid] + [below for child in children for below in family(int(child))]


def is_commands(pid):
    """Is it the sandbox's command, and not tapline's own?"""
    return open(f"/proc/{pid}/comm").read().strip() == "sleep"


def sandbox_pss(process):
    """KiB of all processes of a sandbox but its command's."""
    return sum(pss_kib(pid) for pid in family(process.pid) if not is_commands(pid))


def iperf(server, client):
    """Gbit/s from one sandbox's namespace to another's, for a few seconds."""
    inside = lambda pid: ["nsenter", "-t", str(pid), "-U", "-n", "--preserve-credentials", "--"]
    shown = subprocess.run([*inside(server), "ip", "-4", "-o", "addr", "show", "dev", "eth0"], capture_output=True, text=True, check=True).stdout.split()
    address = shown[shown.index("inet") + 1].split("/")[0]
    listening = subprocess.Popen([*inside(server), "iperf3", "-s", "-1"], stdout=subprocess.DEVNULL)
    try:
        until(lambda: ":1451 " in open(f"/proc/{server}/net/tcp6").read() + open(f"/proc/{server}/net/tcp").read(), "iperf3's server")
        got = subprocess.run([*inside(client), "iperf3", "-c", address, "-t", str(ARGUMENTS.seconds), "-J"], capture_output=True, text=True, timeout=60)
        return json.loads(got.stdout)["end"]["sum_received"]["bits_per_second"] / 1e9
    finally:
        listening.kill()
        listening.wait()


# All reach each other


def sockets_of(pid):
    """Sockets made in a sandbox's namespace by a child: UDP for either family, and one for frames; and its addresses."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    child = os.fork()
    if child == 0:
        try:
            setns(f"/proc/{pid}/ns/user", CLONE_NEWUSER)
            setns(f"/proc/{pid}/ns/net", CLONE_NEWNET)
            made = []
            for kind, any_address in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):
                sock = socket.socket(kind, socket.SOCK_DGRAM)
                if kind == socket.AF_INET6:
                    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                sock.bind((any_address, PORT))
                made.append(sock)
            frames = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
            frames.bind(("eth0", 0))
            shown = json.loads(subprocess.run(["ip", "-j", "addr", "show", "dev", "eth0"], capture_output=True, check=True).stdout)[0]
            address = lambda kind: next(a["local"] for a in shown["addr_info"] if a["family"] == kind and a["scope"] == "global")
            about = json.dumps([shown["address"], address("inet"), address("inet6")]).encode()
            fds = array.array("i", [sock.fileno() for sock in (*made, frames)])
            theirs.sendmsg([about], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)])
            os._exit(0)
        except BaseException as error:
            print(f"sandbox of process {pid}: {error}", file=sys.stderr)
            os._exit(1)
    theirs.close()
    about, with_it, _, _ = ours.recvmsg(4096, socket.CMSG_SPACE(12))
    os.waitpid(child, 0)
    if not with_it:
        sys.exit(f"nobody can enter the sandbox of process {pid}")
    fds = array.array("i", with_it[0][2])
    ours.close()
    return [socket.socket(fileno=fd) for fd in fds], json.loads(about)


def all_reach_each_other(pids):
    """How many pairs got nothing, of how many: frames from each to each, and asked for by ARP or NDP to the next one."""
    made = [sockets_of(pid) for pid in pids]
    about = [(bytes.fromhex(mac.replace(":", "")), socket.inet_aton(v4), socket.inet_pton(socket.AF_INET6, v6)) for _, (mac, v4, v6) in made]
    poll, by_fd, heard = select.epoll(), {}, set()
    for number, (sockets, _) in enumerate(made):
        for kind, sock in ((4, sockets[0]), (6, sockets[1])):
            sock.setblocking(False)
            poll.register(sock, select.EPOLLIN)
            by_fd[sock.fileno()] = (number, kind, sock)

    def listen(seconds=0):
        while ready := poll.poll(seconds):
            for fd, _ in ready:
                number, kind, sock = by_fd[fd]
                try:
                    while True:
                        way, sender = struct.unpack("!BH", sock.recv(16))
                        heard.add((way, kind, sender, number))
                except BlockingIOError:
                    pass

    wanted = set()
    for sender, (mac, v4, v6) in enumerate(about):
        for receiver, (to_mac, to4, to6) in enumerate(about):
            if receiver == sender:
                continue
            data = struct.pack("!BH", 0, sender)
            head = struct.pack("!HHH", PORT, PORT, 8 + len(data))
            ip = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 28 + len(data), 0, 0, 64, 17, 0, v4, to4)
            ip = ip[:10] + struct.pack("!H", checksum(ip)) + ip[12:]
            made[sender][0][2].send(to_mac + mac + b"\x08\0" + ip + head + b"\0\0" + data)
            total = checksum(v6 + to6 + struct.pack("!II", 8 + len(data), 17) + head + b"\0\0" + data) or 0xFFFF
            ip = struct.pack("!IHBB", 6 << 28, 8 + len(data), 17, 64) + v6 + to6
            made[sender][0][2].send(to_mac + mac + b"\x86\xdd" + ip + head + struct.pack("!H", total) + data)
            wanted |= {(0, 4, sender, receiver), (0, 6, sender, receiver)}
        listen()
    # By the kernel itself, a few at a time.
    for sender in range(len(about)):
        receiver = (sender + 1) % len(about)
        for number, kind in ((0, 4), (1, 6)):
            made[sender][0][number].sendto(struct.pack("!BH", 1, sender), (made[receiver][1][1 + number], PORT))
            wanted.add((1, kind, sender, receiver))
        end = time.monotonic() + 2
        while time.monotonic() < end and not {(1, 4, sender, receiver), (1, 6, sender, receiver)} <= heard:
            listen(0.05)
    listen(0.5)
    return len(wanted - heard), len(wanted)


def main():
    fleet = Fleet(ARGUMENTS.binary, ARGUMENTS.user)
    rows = []

    def row(what, figure, wanted="", holds=True, timed=False):
        rows.append(holds or timed and ARGUMENTS.facts)
        print(f"{what:58} {figure:>16}   {wanted:28} {'' if holds else 'MISSED'}", flush=True)

    memory = os.geteuid() == 0
    try:
        fleet.start()
        first = fleet.starts()
        row("start of the first, median of ten", f"{first:.0f} ms")
        fleet.start()
        two = fleet.boxes()
        rate = statistics.median(iperf(two[0], two[1]) for _ in range(3))
        row("one pair with two sandboxes", f"{rate:.1f} Gbit/s")
        gateway = fleet.gateway()
        before = pss_kib(gateway) if memory else None
        while len(fleet.running) < ARGUMENTS.count - 1:
            fleet.start()
        last = fleet.starts()
        row(f"start of number {ARGUMENTS.count}, median of ten", f"{last:.0f} ms", "at most 1.2 of the first", last <= 1.2 * first, True)
        fleet.start()
        if memory:
            each = (pss_kib(gateway) - before) / (ARGUMENTS.count - 2)
            row("gateway, each further idle endpoint (PSS)", f"{each:.1f} KiB", "at most 64 KiB", each <= 64)
            each = statistics.median(sandbox_pss(process) for process in fleet.running[5:-1:10])
            row("supervisor, agent and init of a sandbox (PSS)", f"{each / 1024:.2f} MiB", "at most 2 MiB", each <= 2048)
        boxes = fleet.boxes()
        addresses = len(boxes)
        row("sandboxes that run", str(addresses), str(ARGUMENTS.count), addresses == ARGUMENTS.count)
        missing, pairs = all_reach_each_other(boxes)
        row(f"datagrams from each to each, of {pairs}: lost", str(missing), "none", missing == 0)
        full = statistics.median(iperf(boxes[0], boxes[1]) for _ in range(3))
        row(f"one pair with {ARGUMENTS.count} sandboxes", f"{full:.1f} Gbit/s", "at least 0.9 of that with two", full >= 0.9 * rate, True)
        row("the same gateway all along", str(fleet.gateway() == gateway), "True", fleet.gateway() == gateway)
    finally:
        fleet.end()
    sys.exit(0 if all(rows) else 1)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("binary")
    parser.add_argument("--user")
    parser.add_argument("--count", type=int, default=250)
    parser.add_argument("--seconds", type=int, default=3)
    parser.add_argument("--facts", action="store_true")
    ARGUMENTS = parser.parse_args()
    main()
