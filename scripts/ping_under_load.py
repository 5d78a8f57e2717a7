#!/usr/bin/env python3
"""How long a ping through the gateway takes while the gateway has no time left.

    scripts/ping_under_load.py BINARY [--user NAME] [--pings 400] [--load NAME] [--urgent] [--facts]

Several kinds of load keep the gateway busy, one after the other: bulk TCP out of the sandbox and into it, at MTU 1500 and with
eight streams; small datagrams as fast as iperf3 can; and bulk between two others on the network. Meanwhile twenty pings a
second go through the gateway to the host's own address (a ping socket of the gateway's), and as many to the gateway itself,
from the sandbox that makes the load and from another one on the same network.

The gateway is bound to one processor and everything else to the others, so that what is measured is how long the gateway lets
a ping wait, and not how the kernel shares a processor among programs. A load counts if it took 90 % of that processor; the
others are told. The 99th percentile is to be under 5 ms. With --facts, for machines that are not quiet, it is told and decides nothing.

It happens in namespaces of its own (see place.py) and needs what tests/interop needs.
"""
import argparse
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

from place import World, enter
from lab import HOST4, Fault, wait_until

MOST_MS = 5.0
BUSY = 0.9
LOADS = {
    "none": None,
    "TCP out, 1 stream": "-c {host} -P 1",
    "TCP out, 8 streams": "-c {host} -P 8",
    "TCP in, 1 stream": "-c {host} -R -P 1",
    "TCP in, 8 streams": "-c {host} -R -P 8",
    "TCP both ways, 64 streams": "-c {host} --bidir -P 32",
    "TCP out, 8 streams of small writes": "-c {host} -P 8 -l 100 -N",
    "UDP out, 64 bytes": "-c {host} -u -b 0 -l 64",
    "UDP out, 1400 bytes": "-c {host} -u -b 0 -l 1400",
    "UDP in, 1400 bytes": "-c {host} -u -b 0 -l 1400 -R",
    "TCP to another sandbox": "-c {other}",
}
OTHER = "10.88.0.12"
# Pings a second, each from a sandbox to an address.
RATE = 20
WAYS = {"maker to the host": ("maker", HOST4), "neighbor to the host": ("neighbor", HOST4), "neighbor to the gateway": ("neighbor", "10.88.0.1")}


def percentile(values, part):
    values = sorted(values)
    return values[min(len(values) - 1, int(part * len(values)))]


def busy_seconds(pid):
    """CPU time of a process so far."""
    fields = open(f"/proc/{pid}/stat").read().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Trial:
    def __init__(self, place, pings, urgent):
        self.place, self.pings, self.urgent = place, pings, urgent
        cpus = sorted(os.sched_getaffinity(0))
        if len(cpus) < 2:
            sys.exit("this needs two processors")
        self.gateways, self.rest = cpus[:1], cpus[1:]

    def start(self):
        os.sched_setaffinity(0, self.rest)
        place = self.place
        place.run(place.program("network", "create", "--subnet", "10.88.0.0/24", "--subnet", "fd88::/64", "--mtu", "1500", "load"))
        addresses = {"maker": "10.88.0.10", "neighbor": "10.88.0.11", "other": OTHER}
        # They are there for all trials, and are not ended with one.
        place.building = True
        self.boxes = {name: place.shell("--net", "load", "--name", name, "--ip", address) for name, address in addresses.items()}
        place.building = False
        listed = [json.loads(line) for line in place.run(place.program("ps", "--format", "json"))[0].splitlines()]
        self.inside = {box["name"]: box["pid"] for box in listed}
        (self.gateway,) = [pid for pid, what in place.of_tapline().items() if what == "gateway"]
        for thread in os.listdir(f"/proc/{self.gateway}/task"):
            os.sched_setaffinity(int(thread), self.gateways)

    def go_first(self):
        """What runs here goes before all others on this machine, whose sessions share a processor evenly (sched(7), autogroup)."""
        for pid in filter(str.isdigit, os.listdir("/proc") if self.urgent else []):
            try:
                Path(f"/proc/{pid}/autogroup").write_text("-20")
            except OSError:
                pass

    def enter(self, box):
        return self.place.program("exec", box, "--")

    def ping(self, box, to):
        """Pings from a sandbox, begun."""
        argv = [*self.enter(box), "ping", "-n", "-i", str(1 / RATE), "-c", str(self.pings), "-W", "2", to]
        return self.place.spawn(argv, stdout=subprocess.PIPE, text=True)

    def trial(self, words):
        """One kind of load, and the pings meanwhile: how busy the gateway was, and for each way of a ping its times in ms."""
        makers = []
        if words:
            makers.append(self.server(words))
            # Longer than the pings take; it is ended.
            argv = [*self.enter("maker"), "iperf3", "-t", "600", *words.format(host=HOST4, other=OTHER).split()]
            makers.append(maker := self.place.spawn(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
            wait_until(lambda: maker.poll() is not None or self.is_busy(), "load on the gateway")
        self.go_first()
        began, before = time.monotonic(), busy_seconds(self.gateway)
        pinging = {way: self.ping(box, to) for way, (box, to) in WAYS.items()}
        self.go_first()
        said = {way: process.communicate()[0] for way, process in pinging.items()}
        share = (busy_seconds(self.gateway) - before) / (time.monotonic() - began)
        if any(process.poll() is not None for process in makers):
            raise Fault(f"iperf3 {words}: it ended by itself")
        for process in reversed(makers):
            process.terminate()
            process.wait(timeout=30)
        return share, {way: [float(found) for found in re.findall(r"time=([0-9.]+) ms", text)] for way, text in said.items()}

    def server(self, words):
        """iperf3's server for this kind of load, listening."""
        at = self.inside["other"] if "{other}" in words else "self"
        argv = [*(self.enter("other") if "{other}" in words else []), "iperf3", "-s"]
        wait_until(lambda: not self.place.listeners(at, 5201, False), "the end of the last server")
        process = self.place.spawn(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_until(lambda: self.place.listeners(at, 5201, False), "iperf3's server")
        return process

    def is_busy(self):
        before = busy_seconds(self.gateway)
        time.sleep(0.5)
        return busy_seconds(self.gateway) - before > 0.1


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("binary")
    parser.add_argument("--user")
    parser.add_argument("--pings", type=int, default=400)
    parser.add_argument("--load", help="only those whose names begin like this")
    parser.add_argument("--urgent", action="store_true", help="before all others on this machine, for a short look (as root)")
    parser.add_argument("--facts", action="store_true")
    arguments = parser.parse_args()
    enter(arguments.user)
    place = World(arguments.binary, arguments.user)
    place.build()
    held = []
    try:
        trial = Trial(place, arguments.pings, arguments.urgent)
        trial.start()
        print(f"{'load':36} {'gateway':>8}   {'ping':24} {'p50 ms':>8} {'p99 ms':>8} {'max ms':>8}  lost")
        for name, words in LOADS.items():
            if arguments.load and not name.startswith(arguments.load):
                continue
            try:
                share, times = trial.trial(words)
            except Fault as fault:
                place.end_case()
                print(f"{name:36} {fault}", flush=True)
                held.append(False)
                continue
            for way, values in times.items():
                lost = arguments.pings - len(values)
                if not values:
                    values = [float("inf")]
                last = percentile(values, 0.99)
                holds = last < MOST_MS or share < BUSY
                held.append(holds)
                print(
                    f"{name:36} {share:8.0%}   {way:24} {percentile(values, 0.5):8.3f} {last:8.3f} {max(values):8.3f} {lost:5} {'' if holds else 'MISSED'}".rstrip(),
                    flush=True,
                )
    finally:
        place.end()
    sys.exit(0 if all(held) or arguments.facts else 1)


if __name__ == "__main__":
    main()
