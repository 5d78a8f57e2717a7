#!/usr/bin/env python3
"""Sandboxes that come and go, twenty at a time, and what they leave behind: nothing.

    scripts/churn.py BINARY [--user NAME] [--count 1000] [--together 20] [--shared] [--seed 1]

Half of them are on a network of their own and half on a shared one, where they have names and find each other by them; some publish a
port; some stay for a moment. Most end by themselves; of the others tapline, its agent, the sandbox's init or the command is killed
with SIGKILL or told to end, at any moment from its first.

Each one that is left alone must end with its command's own status, and have reached its gateway. Nobody may be stuck. At
the end there is no process, no mount, no interface, no socket, no claim and no entry of anybody, and the next start works. It happens in
namespaces of its own (see place.py), so that all there is can be seen. A table goes to standard output; it ends with 1 if
something is left or went wrong.
"""
import argparse
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from place import World, enter, sockets
from lab import Fault, wait_until

# Seconds that a sandbox may take in all.
PATIENCE = 60
# What happens to one that does not end by itself: who, and with which signal.
FATES = [("supervisor", signal.SIGKILL), ("supervisor", signal.SIGTERM), ("agent", signal.SIGKILL), ("init", signal.SIGKILL), ("command", signal.SIGKILL)]
KILLED = 0.3
# What an ordinary end looks like.
STATUS = 7


def children(pid):
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


class Churn:
    def __init__(self, place, arguments):
        self.place, self.arguments = place, arguments
        self.lock = threading.Lock()
        self.numbers = iter(range(arguments.count))
        self.took, self.faults, self.killed, self.gone = {"private": [], "shared": []}, [], 0, 0

    def options(self, number, chance):
        """Which network it is on, and its options."""
        words = []
        if chance.random() < 0.3:
            port = 20000 + number % 5000
            words += ["-p", f"{port}:80", "-p", f"127.0.0.1:{port}:53/udp"]
        if number % 2 or self.arguments.shared:
            return "shared", ["--net", "churn", "--name", f"box{number}", "--network-alias", f"alias{number}", *words]
        return "private", ["--net", "private", *(["--name", f"box{number}"] if chance.random() < 0.5 else []), *words]

    def one(self, number):
        """Start one, and see it end."""
        chance = random.Random(self.arguments.seed * 1_000_003 + number)
        kind, options = self.options(number, chance)
        gateway = "10.88.0.1" if kind == "shared" else "10.0.2.2"
        # That it has its gateway is shown by an answer of that, and by one to a question for a name.
        script = f"echo up; ping -c 1 -W 10 -n {gateway} >/dev/null || exit 99; "
        if kind == "shared":
            script += f"getent hosts alias{number} >/dev/null || exit 98; "
        script += f"sleep {chance.choice([0, 0, 0.05, 0.3])}; exit {STATUS}"
        killed = chance.choice(FATES) if chance.random() < KILLED and not self.arguments.shared else None
        errors = tempfile.TemporaryFile("w+", dir=self.place.scratch)
        begun = time.monotonic()
        process = subprocess.Popen(
            self.place.program("run", *options, "--", "sh", "-c", script),
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors, text=True, env=self.place.environment, cwd="/", start_new_session=True,
        )
        said = []
        reader = threading.Thread(target=lambda: said.extend((line, time.monotonic()) for line in process.stdout), daemon=True)
        reader.start()
        if killed:
            time.sleep(chance.uniform(0, 0.25))
            self.kill(process, *killed)
        try:
            status = process.wait(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            self.fault(number, f"{kind} {killed or ''} is stuck after {PATIENCE} s: {self.describe(process.pid)}")
            process.kill()
            status = process.wait()
        reader.join(timeout=10)
        if reader.is_alive():
            self.fault(number, f"{kind} {killed or ''}: somebody of it still has its output")
        errors.seek(0)
        text = errors.read()
        errors.close()
        with self.lock:
            self.gone += 1
            if killed:
                self.killed += 1
            elif status == STATUS and said:
                self.took[kind].append((said[0][1] - begun) * 1e3)
        if not killed and (status != STATUS or text):
            self.fault(number, f"{kind} ended with {status}, not {STATUS}: {text.strip()} {options}")

    def kill(self, process, who, which):
        """End one of a sandbox's processes, if it is there already."""
        supervisor, of_tapline = process.pid, self.place.of_tapline()
        # The child that is no gateway is the agent, its child is init, and so on.
        agents = [pid for pid in children(supervisor) if of_tapline.get(pid) != "gateway"]
        inits = [below for pid in agents for below in children(pid)]
        commands = [below for pid in inits for below in children(pid)]
        for pid in {"supervisor": [supervisor], "agent": agents, "init": inits, "command": commands}[who]:
            try:
                os.kill(pid, which)
            except ProcessLookupError:
                pass

    def describe(self, pid):
        """A process and all below it, with what each waits for."""
        found = []
        for one in [pid, *children(pid)]:
            try:
                found.append(f"{one} {Path(f'/proc/{one}/comm').read_text().strip()} {Path(f'/proc/{one}/wchan').read_text()}")
            except OSError:
                pass
        return "; ".join(found)

    def fault(self, number, what):
        with self.lock:
            self.faults.append(f"number {number}: {what}")

    def work(self):
        while True:
            with self.lock:
                number = next(self.numbers, None)
            if number is None:
                return
            try:
                self.one(number)
            except Exception as error:  # noqa: BLE001: told at the end
                self.fault(number, f"{type(error).__name__}: {error}")

    def run(self):
        begun = time.monotonic()
        threads = [threading.Thread(target=self.work) for _ in range(self.arguments.together)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return time.monotonic() - begun


def tables(place):
    """What there is of all that a sandbox could leave, by kind; each a list."""
    mounts = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    temporary = [str(path) for base in ("/tmp", "/dev/shm", "/run") for path in Path(base).glob("*tapline*") if not place.scratch.is_relative_to(path)]
    return {
        "processes": [f"{pid} {line}" for pid, line in place.processes().items()],
        "mounts": mounts,
        "interfaces": [line.split(":")[0].strip() for line in Path("/proc/net/dev").read_text().splitlines()[2:]],
        "sockets": [f"{kind}: {count}" for kind, count in sockets().items()],
        "files of state": place.left_in_state(),
        "temporary files": temporary,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("binary")
    parser.add_argument("--user")
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--shared", action="store_true", help="all of them on the shared network, and none is killed")
    parser.add_argument("--together", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    enter(arguments.user)
    # For what nobody thought of.
    signal.alarm(arguments.count * 2 + 600)
    place = World(arguments.binary, arguments.user)
    place.build()
    held = []

    def row(what, figure, wanted="", holds=True):
        held.append(holds)
        print(f"{what:66} {figure:>16}   {wanted:12} {'' if holds else 'MISSED'}".rstrip(), flush=True)

    try:
        place.run(place.program("network", "create", "--subnet", "10.88.0.0/16", "--subnet", "fd88::/64", "churn"))
        before = tables(place)
        churn = Churn(place, arguments)
        took = churn.run()
        row(f"sandboxes, {arguments.together} at a time", f"{churn.gone:,}", f"{arguments.count:,}", churn.gone == arguments.count)
        row("  of these something was killed or told to end", f"{churn.killed:,}")
        row("sandboxes a second", f"{churn.gone / took:.1f}")
        for kind, times in churn.took.items():
            row(f"start on a {kind} network: median, 99th percentile, longest", f"{statistics.median(times):.0f}, {sorted(times)[int(len(times) * 0.99)]:.0f}, {max(times):.0f} ms" if times else "none")
        row("stuck, failed without being hurt", str(len(churn.faults)), "0", not churn.faults)
        for fault in churn.faults[:20]:
            print(f"  {fault}")
        # Who comes next removes what was left by those that were killed, and finds everything free.
        next_one = place.run(place.program("run", "--net", "churn", "--name", "box1", "--", "ping", "-c", "1", "-n", "10.88.0.1"), status=None)
        row("the next one works", str("1 received" in next_one[0]), "True", "1 received" in next_one[0])
        place.run(place.program("network", "rm", "churn"))
        try:
            wait_until(lambda: {what: len(found) for what, found in tables(place).items()} == {what: len(found) for what, found in before.items()}, "", 20)
        except Fault:
            pass
        for what, found in tables(place).items():
            left = [one for one in found if one not in before[what]]
            row(f"{what} that are left", str(len(left)), "0", not left)
            for one in left[:10]:
                print(f"  {one}")
    finally:
        place.end()
    sys.exit(0 if all(held) else 1)


if __name__ == "__main__":
    main()
