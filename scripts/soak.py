#!/usr/bin/env python3
"""A soak: thousands of connections of every kind, for a long time; every byte is looked at, and nothing may be left.

    scripts/soak.py BINARY [--user NAME] [--minutes 30] [--connections N] [--seed 1]

Two sandboxes are on one network, each with two published ports (TCP and UDP). They and the host talk in every
direction, over both families: out to the host, from one to the other, and in through the published ports from the host's
loopback and from its other address. TCP connections (10,000 in half an hour, but never fewer than 3,000) have random
lives and sizes; they end in order, half-closed for a while by either side, or reset in the middle by either side on purpose;
some readers begin late. Datagrams are echoed, names are asked for, over UDP and TCP, up to five minutes before the end. What is
said is in soakpeer.py.

In the end every connection has delivered all that was to be delivered, to its right end, or was reset on purpose, as both of
its sides tell. Then, when the flows of UDP have had their time (five minutes), the sockets on the host and in the sandboxes
are those of the start again, and so are tapline's descriptors and memory, but for a slack that the table states. When the
sandboxes have ended, no process and no file of theirs is left.

All of it happens in namespaces of its own (see place.py). It needs what tests/interop needs. Run it as root with --user (tapline is that
user's then; only root may look at descriptors and memory of confined processes), or as an ordinary user, who is not told of
these. It ends by itself: with 0, or with 1 if something was not as it should be. A table goes to standard output.
"""
import argparse
import json
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

from place import World, descriptors, enter, memory_kib, sockets
from lab import FAR4, FAR6, HOST4, HOST6, wait_until
from soakpeer import CLIENT_RESETS, FATES, REFUSED, SERVER_RESETS

PEER = Path(__file__).resolve().with_name("soakpeer.py")
INSIDE, PUBLISHED = 7000, {"a": 8100, "b": 8200}
ADDRESSES = {"a": ["10.88.0.10", "fd88::10"], "b": ["10.88.0.11", "fd88::11"]}
# Memory of one process may be greater than at the start by this: buffers and tables that are kept for the next time.
SLACK_KIB = {"gateway": 4096}
SLACK_KIB_OF_OTHERS = 256
# Descriptors that a gateway may hold beyond those at the start: for either sandbox and each of four kinds a stock of up to 39
# sockets made inside (publish::inside), and four spare pipes for each worker. Nobody else keeps any.
SLACK_FDS = {"gateway": 2 * 4 * 39 + 8}
# Seconds that flows of UDP are kept when nothing comes any more (plan::definition), and some.
UDP_LIVES = 310
# For UDP at least, of the whole time.
UDP_SECONDS = 45


class Peer:
    """A soakpeer, in a sandbox or on the host."""

    def __init__(self, name, process):
        self.name, self.process = name, process

    def tell(self, **about):
        self.process.stdin.write(json.dumps(about) + "\n")
        self.process.stdin.flush()

    def hear(self):
        line = self.process.stdout.readline()
        if not line:
            sys.exit(f"the peer {self.name} has ended")
        return json.loads(line)

    def ask(self, **about):
        self.tell(**about)
        return self.hear()


def with_pipes(place, argv, **more):
    return place.spawn(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, **more)


class Soak:
    def __init__(self, place):
        self.place, self.held, self.peers = place, [], {}

    def row(self, what, figure, wanted="", holds=True):
        self.held.append(holds)
        print(f"{what:66} {figure:>14}   {wanted:34} {'' if holds else 'MISSED'}".rstrip(), flush=True)

    def start(self):
        place = self.place
        place.run(place.program("network", "create", "--subnet", "10.88.0.0/24", "--subnet", "fd88::/64", "soak"))
        for name, port in PUBLISHED.items():
            options = ["--net", "soak", "--name", name, "--ip", ADDRESSES[name][0], "--ip6", ADDRESSES[name][1], "-p", f"{port}:{INSIDE}", "-p", f"{port}:{INSIDE}/udp"]
            # One asks for names over UDP, the other over TCP.
            more = {"env": place.environment | {"RES_OPTIONS": "use-vc"}} if name == "b" else {}
            self.peers[name] = Peer(name, with_pipes(place, place.program("run", *options, "--", "python3", PEER), **more))
            self.peers[name].ask(serve=["0.0.0.0", "::"], port=INSIDE)
        self.peers["host"] = Peer("host", with_pipes(place, ["python3", PEER]))
        self.peers["host"].ask(serve=[HOST4, HOST6], port=INSIDE)
        listed = [json.loads(line) for line in place.run(place.program("ps", "--format", "json"))[0].splitlines()]
        self.inside = {box["name"]: box["pid"] for box in listed}

    def targets(self, name):
        """Where a peer connects to."""
        to = lambda way, host, port, refuses: {"way": way, "host": host, "port": port, "refuses": refuses}
        if name == "host":
            ways = [("in, from the loopback", "127.0.0.1"), ("in, from the loopback", "::1"), ("in, from another address", HOST4), ("in, from another address", HOST6)]
            return [to(way, host, port, False) for way, host in ways for port in PUBLISHED.values()]
        other = "b" if name == "a" else "a"
        out = [to("out, to the host", host, INSIDE, True) for host in (HOST4, HOST6)]
        # By its name it has two addresses; who refuses of them would be hard to tell.
        return out + [to("to the other sandbox", host, INSIDE, host != other) for host in (*ADDRESSES[other], other)]

    def load(self, seconds, connections, seed):
        """Have all of them talk; how long it took."""
        begun = time.monotonic()
        for number, (name, peer) in enumerate(self.peers.items()):
            tcp = connections // 3 + (number < connections % 3)
            # So many are open at once on average, in all.
            life = 300 * seconds / connections / 0.7
            about = {
                "seed": seed * 3 + number, "first": (seed << 40) + (number << 32), "tcp": tcp, "udp": tcp // 4, "dns": 0 if name == "host" else tcp // 2,
                "seconds": seconds, "udp_seconds": min(seconds, max(UDP_SECONDS, seconds - UDP_LIVES)), "life": life, "targets": self.targets(name), "names": self.names(),
            }
            peer.tell(load=about)
        for peer in self.peers.values():
            peer.hear()
        return time.monotonic() - begun

    def names(self):
        far = {"files.lab.test": [FAR4, FAR6], "far.lab.test": [FAR4, FAR6], "none-*.lab.test": []}
        return far | ADDRESSES

    # What became of it

    def judge(self):
        """Both sides of every connection, as they tell; rows about them."""
        reports = {name: peer.ask(report=True) for name, peer in self.peers.items()}
        served, begun = {}, {}
        for report in reports.values():
            served |= report["served"]
            begun |= report["begun"]
        faults = [fault for report in reports.values() for fault in report["faults"]]
        ways, fates, in_time = {}, [0] * len(FATES), 0
        for number, (fate, way, outcome) in begun.items():
            there = served.pop(number, None)
            ways[way] = ways.get(way, 0) + 1
            fates[fate] += 1
            wanted = {REFUSED: "refused", CLIENT_RESETS: "reset", SERVER_RESETS: "reset"}.get(fate, "whole")
            if outcome != wanted:
                faults.append(f"{way}, {FATES[fate]}: {outcome}; there: {there}")
            # What was reset at once may never have been seen.
            elif there != wanted and not (there is None and fate in (REFUSED, CLIENT_RESETS)):
                faults.append(f"{way}, {FATES[fate]}: here {outcome}, there {there}")
        faults += [f"a connection that nobody made: {number} {outcome}" for number, outcome in served.items()]
        total = lambda what: sum(report[what] for report in reports.values())
        self.row("TCP connections", f"{len(begun):,}", f"{self.connections:,}", len(begun) == self.connections)
        for way in sorted(ways):
            self.row(f"  {way}", f"{ways[way]:,}")
        for fate, count in enumerate(fates):
            self.row(f"  {FATES[fate]}", f"{count:,}")
        self.row("most open at once", f"{total('most_open'):,}", "at least 100", total("most_open") >= 100)
        self.row("bytes of those that ended in order, every one compared", f"{total('bytes') / 1e6:,.0f} MB")
        self.row("datagrams sent and echoed", f"{total('datagrams'):,}")
        self.row("datagrams that were sent again, as nothing came back", f"{total('datagrams_again'):,}", "at most 2 in 100", total("datagrams_again") <= total("datagrams") / 50)
        self.row("names asked for", f"{total('questions'):,}")
        self.row("what was not as it should be", str(len(faults)), "nothing", not faults)
        for fault in faults[:20]:
            print(f"  {fault}")

    # What it costs

    def look(self):
        """Sockets, descriptors and memory as they are now."""
        found = {"sockets of the host": sockets()}
        for name, pid in self.inside.items():
            found[f"sockets of {name}"] = sockets(pid)
        count = {}
        for pid, what in sorted(self.place.of_tapline().items()):
            count[what] = count.get(what, 0) + 1
            found[f"{what} {count[what]}" if what != "gateway" else what] = (descriptors(pid), memory_kib(pid)) if self.place.sees_all else (0, 0)
        return found

    def compare(self, before, after):
        """Rows about what is there afterwards that was not there before."""
        self.row("the same processes", str(sorted(before) == sorted(after)), "True", sorted(before) == sorted(after))
        for what, was in before.items():
            now = after.get(what)
            if now is None:
                continue
            if isinstance(was, dict):
                show = lambda counts: " ".join(str(counts[kind]) for kind in counts)
                self.row(f"{what} ({', '.join(was)})", show(now), f"as before: {show(was)}", now == was)
            elif was != (0, 0):
                slack, kib = SLACK_FDS.get(what, 0), SLACK_KIB.get(what, SLACK_KIB_OF_OTHERS)
                self.row(f"{what}: descriptors", str(now[0]), f"at most {was[0]} + {slack}", now[0] <= was[0] + slack)
                self.row(f"{what}: memory of its own", f"{now[1]:,} KiB", f"at most {was[1]:,} + {kib:,}", now[1] <= was[1] + kib)

    def settle(self, before):
        """Wait until the sockets are as before, or have had their time; how everything is then."""
        end = time.monotonic() + UDP_LIVES
        while True:
            now = self.look()
            counts = lambda found: {what: one for what, one in found.items() if isinstance(one, dict)}
            if counts(now) == counts(before) or time.monotonic() > end:
                return now
            time.sleep(2)

    def end(self, others):
        """End the sandboxes; rows about what is left then."""
        for name in ("a", "b"):
            self.peers[name].process.stdin.close()
        statuses = [self.peers[name].process.wait(timeout=60) for name in ("a", "b")]
        self.row("the sandboxes' statuses", str(statuses), "[0, 0]", statuses == [0, 0])
        self.peers["host"].process.stdin.close()
        self.peers["host"].process.wait(timeout=60)
        self.place.run(self.place.program("network", "rm", "soak"))
        left = lambda: {pid: line for pid, line in self.place.processes().items() if pid not in others}
        try:
            wait_until(lambda: not left(), "the end of all processes", 30)
        except Exception:
            pass
        self.row("processes that are left", str(len(left())), "0", not left())
        for pid, line in left().items():
            print(f"  {pid} {line}")
        files = self.place.left_in_state()
        self.row("files of state that are left", str(len(files)), "0", not files)
        for path in files:
            print(f"  {path}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("binary")
    parser.add_argument("--user")
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--connections", type=int)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    enter(arguments.user)
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    # The loops are bounded; this is for what nobody thought of.
    signal.alarm(int(arguments.minutes * 60) + 900)
    place = World(arguments.binary, arguments.user)
    place.build()
    try:
        others = set(place.processes())
        soak = Soak(place)
        soak.connections = arguments.connections or max(3_000, round(arguments.minutes / 30 * 10_000))
        soak.start()
        before = soak.look()
        took = soak.load(arguments.minutes * 60, soak.connections, arguments.seed)
        soak.row("seconds of load", f"{took:.0f}", f"{arguments.minutes * 60:.0f} and what is still open then")
        at_the_end = soak.look()
        soak.judge()
        begun = time.monotonic()
        after = soak.settle(before)
        soak.row("seconds until the sockets were those of the start", f"{time.monotonic() - begun:.0f}")
        if place.sees_all:
            soak.row("gateway: descriptors and KiB: at the start / just after the load", " / ".join(f"{found['gateway'][0]}, {found['gateway'][1]:,}" for found in (before, at_the_end)))
        soak.compare(before, after)
        soak.end(others)
    finally:
        place.end()
    sys.exit(0 if all(soak.held) else 1)


if __name__ == "__main__":
    main()
