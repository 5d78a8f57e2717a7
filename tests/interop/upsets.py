"""More cases about faults: transfers while somebody dies or stops, links and uplinks that come and go, resolvers that go.

What must hold of every transfer is said in carrier.py; what must hold after each case, in faults.py.
"""
import contextlib
import os
import random
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

from cases import CURL, has, url
from faults import NAME, PORT, SEED, SOON, below, fault, who_is
from lab import FAR4, FAR6, HERE, HOST4, LIMIT, Fault, check, finish, wait_until
from networks import Box, is_gone, network, the_gateway
from ports import SERVICE

CARRIER = [sys.executable, HERE / "carrier.py"]
# How long a handshake may take.
HANDSHAKE = 30
# By hand, a minute.
STOPPED = float(os.environ.get("TAPLINE_FAULT_STOPPED") or 15)


# Transfers


class Transfers:
    """Transfers out of a sandbox, and into it by its published port from afar and from the loopback."""

    def __init__(self, lab, *options, net="private"):
        self.lab, self.logs, self.count = lab, [], 0
        far = self.log("served")
        self.server = lab.serve([*CARRIER, "serve", "::", 8310, far], 8310, lab.far)
        lab.others = set()
        self.box = Box(lab, NAME, "--net", net, "-p", f"{PORT}:80", *options)
        log = self.log("served")
        ready = lab.scratch / "carrier.ready"
        ready.write_text("")
        self.box.does(f"{shlex.join(map(str, CARRIER))} serve :: 80 {log} >{ready} 2>&1 &")
        wait_until(lambda: "ready" in ready.read_text(), "the service inside")
        self.clients = []

    def log(self, kind):
        self.count += 1
        path = self.lab.scratch / f"carrier-{self.count}.{kind}"
        path.unlink(missing_ok=True)
        path.write_text("")
        self.logs.append(path)
        return path

    def begin(self, seconds):
        """Carry for so long; there is something under way when this returns."""
        carry = lambda address, port: [*CARRIER, "carry", address, port, seconds, self.log("carried")]
        more = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        before = [len(path.read_text()) for path in self.logs]
        self.clients = [
            self.box.start(*map(str, carry(FAR4, 8310))), self.box.start(*map(str, carry(FAR6, 8310))),
            self.lab.spawn(carry(HOST4, PORT), self.lab.far, **more), self.lab.spawn(carry("127.0.0.1", PORT), **more),
        ]
        fresh = self.logs[-4:]
        wait_until(lambda: all(path.read_text().count("\n") > 3 for path in fresh), "the first transfers", SOON)
        return before

    def sums(self):
        """What the carriers say at their end: for each, how many transfers ended how."""
        said = []
        for client in self.clients:
            try:
                out, err = client.communicate(timeout=LIMIT)
            except subprocess.TimeoutExpired as error:
                raise Fault(f"a transfer hangs: {self.text()}") from error
            check(client.returncode == 0, f"a carrier: {out}{err}")
            said.append({how: int(count) for how, count in (word.split("=") for word in out.split())})
        self.clients = []
        return said

    def text(self):
        return "; ".join(f"{path.name}: {path.read_text()[-300:]}" for path in self.logs)

    def lines(self):
        for path in self.logs:
            for line in path.read_text().splitlines():
                what, number, size, got, how = line.split()
                yield path.suffix, what, int(number), int(size), int(got), how

    def nothing_lost(self, senders_live=True):
        """A reader has seen the whole, or an error. How many transfers that is true of."""
        count = 0
        for kind, what, number, size, got, how in self.lines():
            shown = f"{kind} {what} {number}: {got} of {size} bytes, then {how}"
            check(how != "wrong", f"other bytes than were sent: {shown}")
            # The kernel ends the connections of a process that is killed as if it had closed them.
            check(how != "end" or got == size or not senders_live, f"a short end that looks clean: {shown}")
            count += 1
        return count

    def all_arrived(self, sums):
        for ended in sums:
            check(set(ended) == {"end"}, f"transfers that did not end as they should: {sums}; {self.text()}")


def gateway_of(box):
    return who_is("gateway", box.process.pid)


@fault
def fault_transfers_while_the_gateway_is_killed(lab):
    transfers = Transfers(lab)
    transfers.begin(6)
    killed = 0
    # Three in ten seconds are replaced.
    for _ in range(2):
        time.sleep(random.Random(SEED + killed).uniform(0.2, 1.0))
        victims = wait_until(lambda: gateway_of(transfers.box), "a gateway", SOON)
        for pid in victims:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        wait_until(lambda: all(is_gone(pid) for pid in victims), "its end")
        wait_until(lambda: set(gateway_of(transfers.box)) - set(victims), "another", SOON)
        killed += 1
    sums = transfers.sums()
    count = transfers.nothing_lost()
    for ended in sums:
        check(ended.get("end"), f"none that ended well: {sums}")
    # And what is new is whole.
    transfers.begin(1)
    transfers.all_arrived(transfers.sums())
    return f"{count} notes of transfers: {sums}"


@fault
def fault_transfers_while_everything_else_is_killed(lab):
    notes = []
    for role in ("supervisor", "agent", "init", "CMD"):
        transfers = Transfers(lab)
        transfers.begin(3)
        victim = who_is(role, transfers.box.process.pid)[0]
        os.kill(victim, signal.SIGKILL)
        transfers.box.process.wait(timeout=SOON)
        # Clients outside hear of it; those inside have ended with their sandbox.
        inside, outside = transfers.clients[:2], transfers.clients[2:]
        for client in inside:
            client.wait(timeout=SOON)
        transfers.clients = outside
        transfers.sums()
        notes.append(f"{role}: {transfers.nothing_lost(senders_live=False)}")
        finish(lab.passing)
        lab.passing = []
    return ", ".join(notes)


@contextlib.contextmanager
def stopped(pids):
    """Those processes are stopped meanwhile; they go on in the order of the list."""
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


def tree(box):
    """The processes of a sandbox, from the supervisor on."""
    return below([box.process.pid])


@fault
def fault_transfers_while_the_gateway_is_stopped(lab):
    signal.alarm(signal.alarm(0) + round(2 * STOPPED))
    transfers = Transfers(lab)
    transfers.begin(STOPPED + 3)
    victims = gateway_of(transfers.box)
    count = lambda: sum(1 for _ in transfers.lines())
    with stopped(victims):
        # What is on its way arrives still; then nothing moves.
        before = -1
        while before != (before := count()):
            time.sleep(0.5)
        time.sleep(STOPPED - 1)
        check(count() == before, f"somebody carries on: {transfers.text()}")
        check(gateway_of(transfers.box) == victims, "another gateway")
    sums = transfers.sums()
    transfers.nothing_lost()
    # One that was only just beginning or ending may be told that it is over; a handshake that took too long is.
    most = 1 if STOPPED < HANDSHAKE else 4
    for ended in sums:
        check(set(ended) <= {"end", "ECONNREFUSED", "ECONNRESET"} and sum(ended.values()) - ended["end"] <= most, f"{sums}")
    check(gateway_of(transfers.box) == victims, "another gateway, though this one lives")
    return f"{STOPPED:.0f} s; {sums}"


@fault
def fault_transfers_while_everything_is_stopped(lab):
    """As when the machine is suspended, but for the clocks."""
    transfers = Transfers(lab)
    transfers.begin(8)
    random.seed(SEED)
    for _ in range(2):
        everybody = tree(transfers.box)
        random.shuffle(everybody)
        with stopped(everybody):
            time.sleep(1.5)
            random.shuffle(everybody)
    sums = transfers.sums()
    transfers.nothing_lost()
    transfers.all_arrived(sums)
    return f"{sums}"


@fault
def fault_a_shared_gateway_that_is_stopped(lab):
    """Those who come meanwhile do not wait for ever, and those who are there are served when it goes on."""
    network(lab, "create", "red")
    lab.others = set()
    first = Box(lab, "first", "--net", "red", serve=(80,))
    gateway = the_gateway(lab)
    argv = lab.program("run", "--name", "second", "--net", "red", "--", "sh", "-c", f"{CURL} {url(FAR4, 'hello')}")
    with stopped(below([gateway])):
        late = lab.spawn(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        time.sleep(3)
    out, err = late.communicate(timeout=LIMIT)
    check(late.returncode == 0 and out == "hello from afar\n", f"{late.returncode}: {out}{err}")
    has(first.does(f"{CURL} {url(FAR4, 'hello')}"), "hello")
    check(the_gateway(lab) == gateway, "the same gateway")
    first.end()
    network(lab, "rm", "red")


# Links


@fault
def fault_the_interface_inside_is_down_for_a_while(lab):
    # Its routes go with it; what it is then is the sandbox's business.
    ways = ("addr=$(ip -o -6 addr show dev tap0 scope global | awk '{print $4}'); ip link set tap0 down; sleep 1.5; ip link set tap0 up; "
            "ip addr replace $addr dev tap0 nodad; ip route replace default via 10.0.2.2 dev tap0; ip -6 route replace default via fd00::2 dev tap0")
    transfers = Transfers(lab)
    transfers.begin(5)
    before = gateway_of(transfers.box)
    transfers.box.does(ways)
    sums = transfers.sums()
    transfers.nothing_lost()
    check(gateway_of(transfers.box) == before, "a gateway that did not survive it")
    for ended in sums:
        # From afar it is a port that nobody serves meanwhile.
        check(set(ended) <= {"end", "ENETUNREACH", "EHOSTUNREACH", "ECONNRESET"}, f"{sums}")
    has(transfers.box.does(f"{CURL} {url(FAR4, 'hello')} {url(FAR6, 'hello')}"), "hello from afar\n" * 2)
    return f"{sums}"


@fault
def fault_the_uplink_goes_and_another_comes(lab):
    """The interface by which connections leave is removed; old ones end by an error, new ones take the new way."""
    r1 = f"/proc/{lab.r1.pid}/ns/net"
    on_r1 = ["nsenter", f"--net={r1}", "--"]

    def uplink(address, gateway):
        lab.run(["ip", "link", "add", "h9", "type", "veth", "peer", "name", "r9", "netns", lab.r1.pid])
        lab.run([*on_r1, "sh", "-c", f"ip addr add {gateway}/24 dev r9; ip link set r9 up"])
        lab.run(["sh", "-c", f"ip addr add {address}/24 dev h9; ip link set h9 up; ip route add {FAR4}/32 via {gateway} dev h9"])

    # A dead connection is given up within seconds, not after a quarter of an hour; the host's own would be, too.
    retries = Path("/proc/sys/net/ipv4/tcp_retries2").read_text()
    lab.sysctl("net/ipv4/tcp_retries2", "4")
    uplink("10.9.5.2", "10.9.5.1")
    try:
        transfers = Transfers(lab)
        box = transfers.box
        ask_who = f"{CURL} {url(FAR4, 'whoami')}"
        check(box.does(ask_who) == "10.9.5.2", "the uplink is the way")
        slow = box.start(*map(str, CARRIER), "once", FAR4, "8310", "put", "200000000", "0.01")
        check(slow.stdout.readline() == "up\n", "a transfer")
        time.sleep(0.5)
        lab.run(["ip", "link", "del", "h9"])
        check(box.does(ask_who) == HOST4, "the other way, with its address")
        uplink("10.9.6.2", "10.9.6.1")
        check(box.does(ask_who) == "10.9.6.2", "the new way, with its address")
        out = slow.communicate(timeout=LIMIT)[0].split()
        check(out and out[-1] in ("ECONNRESET", "EPIPE", "ETIMEDOUT", "EHOSTUNREACH", "ENETUNREACH", "ECONNABORTED"), f"the old one ended with {out}")
        transfers.nothing_lost()
        # Its address alone goes, and another comes.
        lab.run(["sh", "-c", "ip addr del 10.9.6.2/24 dev h9; ip addr add 10.9.6.7/24 dev h9; ip route replace 10.9.3.2/32 via 10.9.6.1 dev h9"])
        check(box.does(ask_who) == "10.9.6.7", "the new address")
        transfers.begin(1)
        transfers.all_arrived(transfers.sums())
        return f"the old one ended with {out[-1]}"
    finally:
        lab.run(["sh", "-c", "ip link del h9"], status=None)
        lab.sysctl("net/ipv4/tcp_retries2", retries.strip())


# Names


@fault
def fault_resolv_conf_is_replaced_removed_emptied_and_a_link(lab):
    """What it says counts, whatever it is; where there is nothing, a resolver on the host itself (resolv.conf(5))."""
    zone = "no-resolv\nno-hosts\nbind-interfaces\npid-file\naddress=/far.lab.test/192.0.2.99"
    lab.dnsmasq("127.0.0.2", zone=zone)
    shell = lab.shell("--name", NAME)
    conf, elsewhere = Path("/etc/resolv.conf"), Path("/etc/elsewhere")
    asked = "dig +tries=1 +time=2 +short far.lab.test A || true"

    def becomes(address, how):
        wait_until(lambda: shell.does(asked) == f"{address}\n", f"the answer when it is {how}")

    try:
        becomes(FAR4, "as it was")
        lab.resolvers("127.0.0.2")
        becomes("192.0.2.99", "replaced")
        conf.unlink()
        becomes(FAR4, "removed")
        lab.resolvers("127.0.0.2", rename=False)
        becomes("192.0.2.99", "there again")
        conf.write_text("")
        becomes(FAR4, "emptied")
        elsewhere.mkdir(exist_ok=True)
        (elsewhere / "stub").write_text("nameserver 127.0.0.2\n")
        conf.unlink()
        conf.symlink_to("elsewhere/stub")
        becomes("192.0.2.99", "a link")
        (elsewhere / "stub").write_text("nameserver 127.0.0.1\n")
        becomes(FAR4, "a link to what was written to")
        (elsewhere / "stub").rename(elsewhere / "other")
        (elsewhere / "stub").write_text("nameserver 127.0.0.2\n")
        becomes("192.0.2.99", "a link to what was replaced")
        conf.unlink()
        conf.symlink_to("nowhere/at/all")
        becomes(FAR4, "a link to nothing")
        conf.unlink()
        conf.mkdir()
        becomes(FAR4, "a directory")
        conf.rmdir()
        lab.resolvers("127.0.0.2")
        becomes("192.0.2.99", "a file again")
    finally:
        if conf.is_dir() and not conf.is_symlink():
            conf.rmdir()
        lab.resolvers("127.0.0.1")


@fault
def fault_all_resolvers_die_and_come_back(lab):
    """Who asks is told so in time, and answered as soon as there is somebody who knows."""
    resolver = lab.dnsmasq("127.0.0.2")
    deaf = lab.silent("127.0.0.9")
    shell = lab.shell("--name", NAME)
    dig = lambda more="": shell.says(f"dig +tries=1 +time=20 {more} far.lab.test A")[1]
    took = []
    try:
        # The others refuse, or there is one that says nothing.
        for resolvers, ways in ((("127.0.0.2", "127.0.0.8"), ("", "+tcp")), (("127.0.0.2", "127.0.0.9"), ("",))):
            lab.resolvers(*resolvers)
            wait_until(lambda: FAR4 in dig("+short"), "an answer")
            resolver.kill()
            resolver.wait()
            for more in ways:
                out = dig(more)
                has(out, "status: SERVFAIL")
                took.append(re.search(r"Query time: (\d+) msec", out)[1])
            resolver = lab.dnsmasq("127.0.0.2")
            # Nobody waits for another reason to ask it.
            has(dig(), "status: NOERROR", FAR4)
    finally:
        lab.resolvers("127.0.0.1")
        deaf.close()
    return f"SERVFAIL after {', '.join(took)} ms"


# Every way in which connect() can fail

TRIES = """
import errno, socket, sys
from concurrent.futures import ThreadPoolExecutor
def tried(word):
    address, port, kind = word.split(",")
    sock = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET,
                         socket.SOCK_DGRAM if kind == "udp" else socket.SOCK_STREAM)
    sock.settimeout(15 if kind == "tcp" else 4)
    with sock:
        try:
            sock.connect((address, int(port)))
            if kind == "udp":
                # Otherwise the kernel keeps what may pass to itself (IP_RECVERR, IPV6_RECVERR).
                sock.setsockopt(*((41, 25, 1) if ":" in address else (0, 11, 1)))
            sock.send(b"whoami\\n")
            return "bytes" if sock.recv(1) else "end"
        except OSError as error:
            return errno.errorcode.get(error.errno, "silence" if isinstance(error, TimeoutError) else str(error))
with ThreadPoolExecutor(50) as pool:
    print(*pool.map(tried, sys.argv[1:]))
"""
SERVE_RESETS = """
import socket, struct
listener = socket.create_server(("::", 8320), family=socket.AF_INET6, dualstack_ipv6=True)
while True:
    peer = listener.accept()[0]
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    peer.close()
"""
# A route of each kind, on the host: what the sandbox sees of a connection, and of a datagram.
ROUTES = {
    "prohibit": ("EHOSTUNREACH", "EHOSTUNREACH"), "unreachable": ("EHOSTUNREACH", "EHOSTUNREACH"),
    "throw": ("ENETUNREACH", "ENETUNREACH"), "blackhole": ("ENETUNREACH", "silence"),
}


@fault
def fault_connections_of_the_host_fail_in_every_way(lab):
    sysctls = {"net/ipv4/tcp_syn_retries": "1", "net/ipv4/ip_local_port_range": "41000 41001"}
    before = {name: Path("/proc/sys", name).read_text() for name in sysctls}
    wanted, undo = {}, []
    lab.serve([sys.executable, "-c", SERVE_RESETS], 8320, lab.far)
    for number, (kind, (tcp, udp)) in enumerate(ROUTES.items(), 1):
        for family, address in (("-4", f"10.50.0.{number}"), ("-6", f"fd50::{number}")):
            lab.run(["ip", family, "route", "add", kind, address])
            undo.append(["ip", family, "route", "del", kind, address])
            wanted[f"{address},80,tcp"], wanted[f"{address},80,udp"] = (
                (tcp, udp) if family == "-4" or kind in ("unreachable", "throw", "blackhole") else ("EACCES", "EACCES"))
    # Refused and unreachable by others on the way; reset right after it was accepted.
    for far in (FAR4, FAR6):
        wanted |= {f"{far},9,tcp": "ECONNREFUSED", f"{far},9,udp": "ECONNREFUSED", f"{far},8320,tcp": "ECONNRESET"}
    wanted |= {"10.9.1.77,80,tcp": "EHOSTUNREACH", "10.9.2.99,80,silent": "EHOSTUNREACH"}
    # Swallowed on the way: the host's connect() times out, and the sandbox hears nothing either.
    lab.run(["sh", "-c", "ip route add blackhole 10.51.0.0/16"], lab.r1)
    undo.append(["nsenter", f"--net=/proc/{lab.r1.pid}/ns/net", "--", "ip", "route", "del", "blackhole", "10.51.0.0/16"])
    try:
        shell = lab.shell("--name", NAME)
        ask = lambda targets: shell.does(shlex.join([sys.executable, "-c", TRIES, *targets])).split()
        said = dict(zip(wanted, ask(wanted)))
        for target in said:
            # The reset may be there before it is noticed that the connection was.
            if target.endswith(",8320,tcp") and said[target] == "ECONNREFUSED":
                said[target] = wanted[target]
        wrong = {target: (got, wanted[target]) for target, got in said.items() if got != wanted[target]}
        check(not wrong, f"(what was seen, what should be): {wrong}")
        for name, value in sysctls.items():
            lab.sysctl(name, value)
        lab.serve([*SERVICE, "serve", "::", "8321"], 8321, lab.far)
        # Two ports for connections to one place, and both in use.
        held = [lab.spawn([*SERVICE, "ask", FAR4, "8321", "hold"], stdout=subprocess.PIPE, text=True) for _ in range(2)]
        check([process.stdout.readline() for process in held] == ["held\n"] * 2, "held")
        check(ask([f"{FAR4},8321,tcp"]) == ["ENETUNREACH"], "no port is left (EADDRNOTAVAIL)")
        finish(held)
        for name, value in before.items():
            lab.sysctl(name, value.strip())
        check(ask([f"{FAR4},8321,tcp"]) == ["bytes"], "and there are again")
        # A rule that lets nothing out: the packet is lost, and for a datagram send() says so.
        silent = ask(["10.51.0.1,80,silent"])
        check(silent == ["silence"], f"what is swallowed: {silent}")
        has(shell.does(f"{CURL} {url(FAR4, 'hello')} {url(FAR6, 'hello')}"), "hello from afar\n" * 2)
        return f"{len(wanted) + 3} ways"
    finally:
        for argv in undo:
            lab.run(argv, status=None)
        for name, value in before.items():
            lab.sysctl(name, value.strip())
