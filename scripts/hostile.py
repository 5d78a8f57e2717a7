#!/usr/bin/env python3
"""A hostile neighbour: what two sandboxes lose while a third attacks their network.

    scripts/hostile.py BINARY [--program NET] [--seconds 3] [--rounds 3] [--only ATTACK,...] [--facts]

Two sandboxes on a shared network move bytes, one to a server on the host and then the one to the other, while a third floods:
in turns on their network, and with the same program in a sandbox of its own without any (`--net none`, where its
interface leads nowhere), so that it takes the same share of the machine's processors. For each attack it prints both
throughputs, the median of the rounds' ratios, and the memory of the gateway. Wanted: 0.80 of each throughput, the gateway's
own memory below its bound, and that nothing ends. With --facts, for machines that are not quiet, the ratios are told and decide
nothing.

NET is the program of tests/net, which is the attacker (`cargo test --test net --no-run` builds it); where nothing is said it is the newest
one in target/. Everything happens in a sandbox of tapline itself, from which nothing leads out. Run it by hand as an ordinary user, on a
quiet machine, with a release build.

Needs: iperf3, iproute2.
"""
import argparse
import glob
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time

ATTACKS = ["syn", "half-open", "udp-sources", "dns", "fragments", "overlap", "zero-window", "tiny-segments", "arp", "ndp",
           "redirects", "spoofed", "offloads"]
WANTED = 0.80
# The rings of a sandbox, and what else it may make the gateway hold (src/gateway/tcp/mod.rs, src/gateway/mod.rs).
MOST_MIB = 192
SINK, SOURCE, SERVER = 7001, 7002, 7003
INSIDE = "TAPLINE_HOSTILE_INSIDE"


def newest_program():
    found = glob.glob(os.path.join(os.path.dirname(__file__), "..", "target", "*", "deps", "net-*"))
    found = [path for path in found if os.access(path, os.X_OK) and os.path.isfile(path) and not path.endswith(".d")]
    if not found:
        sys.exit("no program of tests/net: cargo test --test net --no-run")
    return os.path.abspath(max(found, key=os.path.getmtime))


def until(what, reason, seconds=20):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if got := what():
            return got
        time.sleep(0.02)
    sys.exit(f"not within {seconds} s: {reason}")


class World:
    """Everything that runs, and how it is asked."""

    def __init__(self, binary, program, seconds):
        self.binary, self.program, self.seconds = binary, program, seconds
        self.running = []
        # It never answers.
        self.resolver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.resolver.bind(("127.0.0.1", 53))
        with open("/etc/resolv.conf", "w") as file:
            file.write("nameserver 127.0.0.1\n")
        self.start([program, "probe", "flood-servers", str(SINK), str(SOURCE)])
        self.start(["iperf3", "-s", "-p", str(SERVER)])
        subprocess.run([binary, "network", "create", "hostile"], check=True, stdout=subprocess.DEVNULL)
        shared = ["--net", "hostile", "--host-loopback"]
        for name, options in (("good", shared), ("peer", shared), ("attacker", shared), ("alone", ["--net", "none"])):
            self.start([binary, "run", "-q", "--name", name, *options, "--", "sleep", "86400"])
            until(lambda: subprocess.run([binary, "exec", name, "--", "true"], stderr=subprocess.DEVNULL).returncode == 0,
                  f"{name} is there")
        self.start([binary, "exec", "peer", "--", "iperf3", "-s", "-p", str(SERVER)])
        shown = json.loads(self.inside("peer", "ip", "-j", "-4", "addr", "show", "dev", "eth0").stdout)
        self.peer = shown[0]["addr_info"][0]["local"]
        prefix = shown[0]["addr_info"][0]["prefixlen"]
        route = json.loads(self.inside("peer", "ip", "-j", "-4", "route", "get", "192.0.2.1").stdout)
        self.gateway = route[0]["gateway"]
        # The same addresses, on a wire that nobody is at.
        stranger = self.gateway.rsplit(".", 1)[0] + ".200"
        for words in (["link", "add", "eth0", "type", "veth", "peer", "name", "far"], ["addr", "add", f"{stranger}/{prefix}", "dev", "eth0"],
                      ["link", "set", "eth0", "up"]):
            done = self.inside("alone", "ip", *words)
            if done.returncode != 0:
                sys.exit(f"ip {' '.join(words)}: {done.stderr}")
        self.pid = self.find_gateway()

    def start(self, words, **more):
        process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, **more)
        self.running.append(process)
        return process

    def inside(self, name, *words):
        return subprocess.run([self.binary, "exec", name, "--", *words], stdin=subprocess.DEVNULL, capture_output=True, text=True)

    def find_gateway(self):
        for entry in glob.glob("/proc/[0-9]*/cmdline"):
            try:
                words = open(entry, "rb").read().split(b"\0")
            except OSError:
                continue
            if len(words) > 2 and words[1] == b"gateway" and b"--listen" in words:
                return int(entry.split("/")[2])
        sys.exit("there is no gateway any more")

    def status(self, field):
        for line in open(f"/proc/{self.pid}/status"):
            if line.startswith(field + ":"):
                return int(line.split()[1])
        return 0

    def cpu(self):
        """Seconds of processor that the gateway has used."""
        fields = open(f"/proc/{self.pid}/stat").read().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def throughput(self, to):
        """Gbit/s from the good sandbox."""
        done = self.inside("good", "iperf3", "-c", to, "-p", str(SERVER), "-t", str(self.seconds), "-J", "--connect-timeout", "5000")
        report = json.loads(done.stdout or "{}")
        if "error" in report or not report:
            sys.exit(f"iperf3 to {to}: {report.get('error') or done.stderr}")
        return report["end"]["sum_received"]["bits_per_second"] / 1e9

    def during(self, attack, dry):
        """Both throughputs during an attack, and how many frames a second it sent."""
        port = SOURCE if attack == "zero-window" else SINK
        words = [self.binary, "exec", "alone" if dry else "attacker", "--", self.program, "probe", "flood", attack, self.gateway,
                 str(port), f"{2 * self.seconds + 4}s", *(["dry"] if dry else [])]
        begun = time.monotonic()
        flood = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        time.sleep(1)
        before, since = self.cpu(), time.monotonic()
        figures = [self.throughput(to) for to in (self.gateway, self.peer)]
        used = (self.cpu() - before) / (time.monotonic() - since)
        memory = self.status("RssAnon") / 1024
        said, errors = flood.communicate(timeout=120)
        if flood.returncode != 0:
            sys.exit(f"the attack {attack} failed: {errors}")
        rate = int(said.split()[0]) / (time.monotonic() - begun)
        return figures, memory, rate, used

    def end(self):
        for process in reversed(self.running):
            process.send_signal(signal.SIGTERM)
        for process in self.running:
            process.wait()


def measure(world, attack, rounds):
    """A line of the table, and what is wrong."""
    alone, attacked, rates, cpus, memory = [], [], [], [], 0
    for _ in range(rounds):
        figures, *_ = world.during(attack, dry=True)
        alone.append(figures)
        figures, held, rate, used = world.during(attack, dry=False)
        attacked.append(figures)
        rates.append(rate)
        cpus.append(used)
        memory = max(memory, held)
    ratios = [statistics.median(b[way] / a[way] for a, b in zip(alone, attacked)) for way in (0, 1)]
    median = [[statistics.median(figures[way] for figures in all) for way in (0, 1)] for all in (alone, attacked)]
    print(f"{attack:14} {statistics.median(rates) / 1000:8.0f} "
          f"{median[0][0]:7.2f} {median[1][0]:7.2f} {ratios[0]:6.2f} {median[0][1]:8.2f} {median[1][1]:7.2f} {ratios[1]:6.2f} "
          f"{memory:8.1f} {statistics.median(cpus):6.2f}", flush=True)
    wrong, slow = [], []
    if memory > MOST_MIB:
        wrong.append(f"{attack}: the gateway has {memory:.0f} MiB, its bound is {MOST_MIB}")
    if world.find_gateway() != world.pid:
        wrong.append(f"{attack}: the gateway has ended, there is another")
    for way, ratio in zip(("to the host", "between sandboxes"), ratios):
        if ratio < WANTED:
            slow.append(f"{attack}: {ratio:.2f} of the throughput {way}, {WANTED:.2f} is wanted")
    ended = [name for name in ("good", "peer", "attacker") if world.inside(name, "true").returncode != 0]
    wrong += [f"{attack}: {name} has ended" for name in ended]
    return wrong, slow


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("binary")
    parser.add_argument("--program")
    parser.add_argument("--seconds", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", help="attacks, with commas between: " + ", ".join(ATTACKS))
    parser.add_argument("--facts", action="store_true")
    options = parser.parse_args()
    attacks = options.only.split(",") if options.only else ATTACKS
    for attack in attacks:
        if attack not in ATTACKS:
            sys.exit(f"there is no attack {attack}; there are {', '.join(ATTACKS)}")
    binary = os.path.abspath(options.binary)
    program = os.path.abspath(options.program) if options.program else newest_program()
    if INSIDE not in os.environ:
        with tempfile.TemporaryDirectory(prefix="tapline-hostile-") as directory:
            environment = {**os.environ, INSIDE: directory}
            words = [binary, "run", "-q", "--net", "none", "--", sys.executable, os.path.abspath(__file__), *sys.argv[1:],
                     "--program", program]
            words[words.index(options.binary, 5)] = binary
            sys.exit(subprocess.run(words, env=environment).returncode)
    directory = os.environ[INSIDE]
    os.environ.update(XDG_RUNTIME_DIR=directory, XDG_CONFIG_HOME=directory + "/config", XDG_DATA_HOME=directory + "/data")
    world = World(binary, program, options.seconds)
    print("                 frames     to the host, Gbit/s        between, Gbit/s       gateway\n"
          "attack         x1000/s   alone attacked ratio    alone attacked ratio      MiB  cores", flush=True)
    wrong, slow = [], []
    try:
        for attack in attacks:
            more_wrong, more_slow = measure(world, attack, options.rounds)
            wrong += more_wrong
            slow += more_slow
    finally:
        world.end()
    for line in wrong + slow:
        print(line)
    sys.exit(1 if wrong or (slow and not options.facts) else 0)


main()
