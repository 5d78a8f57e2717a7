"""The cases about faults: whoever is killed, whatever goes missing, nothing is left behind and nothing is lost.

A case called `fault-` runs with directories of its own for state and definitions. Before it there is a list of all that
could be left: processes, sockets and listeners, mounts, interfaces, files of the state directory. After it the list must
be the same again, within a bounded time, and a sandbox with the same name, ports and addresses must start and end.

Points of start-up are delays up to the usual time of a start, drawn from a seed that is printed when a case fails and is
taken from TAPLINE_FAULT_SEED; TAPLINE_FAULT_POINTS multiplies their number.
"""
import contextlib
import functools
import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

from cases import CURL, case, has, url
from lab import FAR4, LIMIT, Fault, check, finish, wait_until
from networks import is_gone, network, shared_gateways
from slirp import POWERLESS, program

SEED = int(os.environ.get("TAPLINE_FAULT_SEED") or random.SystemRandom().randrange(1 << 32))
POINTS = float(os.environ.get("TAPLINE_FAULT_POINTS") or 1)
# A guard, not a measure: the machine may be busy.
SOON = 40
NAME, PORT = "faulty", 8300
STAY = ["sh", "-c", "echo up; exec sleep 1000"]


# What could be left


class Traces:
    """All that a sandbox leaves in the world while it is there; `files` is asked for separately."""

    def __init__(self, place):
        self.place = place
        wait_until(lambda: not ours(), "those of earlier sandboxes to end", SOON)
        self.before, self.files = self.look(), self.state()

    def look(self):
        return {
            "processes": processes(), "sockets": sockets(self.place), "interfaces": interfaces("self"),
            "mounts": {" ".join(line.split()[2:6]) for line in Path("/proc/self/mountinfo").read_text().splitlines()},
        }

    def state(self):
        """What is in the state directory, but for the places that are kept."""
        root = Path(self.place.environment["XDG_RUNTIME_DIR"])
        found = set()
        for path in root.rglob("*"):
            name = str(path.relative_to(root))
            # What is made once and kept, whatever becomes of those who used it.
            if not name.endswith(("/names", "/networks")) and "/networks/bridge" not in name:
                found.add(name)
        return found

    def more(self, files):
        """What there is more, or less, than before: in words, or nothing."""
        now, found = self.look(), []
        for kind, before in self.before.items():
            if kind == "processes":
                before, what = set(before.items()), set(now[kind].items())
            else:
                what = now[kind]
            if what != before:
                found.append(f"{kind}: more {sorted(what - before, key=str)}, less {sorted(before - what, key=str)}")
        if files and (left := self.state() - self.files):
            found.append(f"files: {sorted(left)}")
        return "; ".join(found)

    def settle(self, files=True):
        end = time.monotonic() + SOON
        while left := self.more(files):
            if time.monotonic() > end:
                raise Fault(f"left behind: {left}")
            time.sleep(0.02)


def stat_of(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1].split()
    except OSError:
        return None


def command_line(pid):
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return []


def ours():
    """Processes of the program, by whichever name it runs; a gateway's command line is nobody's to see."""
    names = ("tapline", "slirp4netns", "exe")
    return [pid for pid, _ in processes() if name_of(pid) in names]


def name_of(pid):
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


def processes():
    """Those that have not ended, by number and start, with their command lines."""
    found = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit() and (stat := stat_of(entry)) and stat[0] not in "ZX":
            found[int(entry), stat[19]] = " ".join(command_line(entry))
    return found


def sockets(place):
    """Of the host: what is bound or connected, but for connections that only wait for their time to pass."""
    rows = set()
    for kind in ("tcp", "tcp6", "udp", "udp6", "icmp", "icmp6", "raw", "raw6"):
        for row in Path(f"/proc/net/{kind}").read_text().splitlines()[1:]:
            words = row.split()
            if words[3] != "06":
                rows.add((kind, words[1], words[2], words[3]))
    for row in Path("/proc/net/unix").read_text().splitlines()[1:]:
        words = row.split()
        if len(words) > 7 and words[7].startswith(str(place.scratch)):
            rows.add(("unix", words[7]))
    return rows


def interfaces(pid):
    """Those of a process's network namespace."""
    return {line.split(":")[0].strip() for line in Path(f"/proc/{pid}/net/dev").read_text().splitlines()[2:]}


def fault(function):
    """A case that leaves nothing, whatever was done to whom."""

    @functools.wraps(function)
    def with_aftermath(lab):
        before = lab.environment
        base = lab.scratch / function.__name__
        shutil.rmtree(base, ignore_errors=True)
        (base / "run").mkdir(parents=True)
        (base / "run").chmod(0o700)
        lab.environment = before | {"XDG_RUNTIME_DIR": str(base / "run"), "XDG_DATA_HOME": str(base / "data")}
        if POINTS > 1:
            # By hand, with patience.
            signal.alarm(round(signal.alarm(0) * POINTS))
        try:
            for net in ("private", "bridge"):
                lab.run(lab.program("run", "-q", "--net", net, "--", "true"))
            traces = Traces(lab)
            note = function(lab)
            finish(lab.passing)
            lab.passing = []
            traces.settle(files=False)
            starts_again(lab)
            traces.settle()
            return note
        except Fault as error:
            raise Fault(f"{error} [TAPLINE_FAULT_SEED={SEED}]") from error
        finally:
            lab.environment = before

    return case(with_aftermath)


def starts_again(lab, *options, name=NAME):
    """The next sandbox of that name starts, and ends."""
    _, err = lab.run(lab.program("run", "--net", "private", "--name", name, "-p", f"{PORT}:80", *options, "--", "true"))
    lab.only_the_link(err)


# Who is who


def children(pid):
    found = []
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(OSError):
                found += map(int, (task / "children").read_text().split())
    return found


def below(pids):
    """These processes and all that they have started."""
    found = list(pids)
    for pid in found:
        found += children(pid)
    return found


def who_is(role, supervisor):
    """The processes that have a role, as far as there are any."""
    # Of one that has ended there is no command line. A gateway's first process does so early, and is nobody then.
    kids = [kid for kid in children(supervisor) if any(command_line(kid))]
    gateways = below([kid for kid in kids if command_line(kid)[1:2] == ["gateway"]])
    agents = [kid for kid in kids if kid not in gateways]
    if role == "supervisor":
        return [supervisor]
    if role == "gateway":
        return gateways + shared_gateways()
    if role == "agent":
        return agents
    inits = [kid for agent in agents for kid in children(agent)]
    return inits if role == "init" else [kid for init in inits for kid in children(init)]


class Shot:
    """One process of a start is killed at a point of it; what came of that is in `outcome`."""

    def __init__(self, lab, argv, role, delay, kill=None, **more):
        self.lab, self.role, self.delay = lab, role, delay
        self.process = lab.spawn(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **more)
        for stream in (self.process.stdout, self.process.stderr):
            os.set_blocking(stream.fileno(), False)
        self.out = self.err = ""
        time.sleep(delay)
        self.killed = self.strike(kill)

    def strike(self, kill):
        if kill:
            return kill()
        end = time.monotonic() + SOON
        while time.monotonic() < end:
            victims = who_is(self.role, self.process.pid)
            if victims:
                victim = victims[0] if self.role == "supervisor" else random.choice(victims)
                with contextlib.suppress(ProcessLookupError):
                    os.kill(victim, signal.SIGKILL)
                    return True
            self.hear()
            # It has ended by itself, or what it had to do is done.
            if self.process.poll() is not None or "1" in self.out or "up" in self.out:
                return False
        raise Fault(f"{self} has none to kill")

    def __str__(self):
        return f"the start whose {self.role} was killed after {self.delay * 1000:.1f} ms"

    def hear(self):
        self.out += (self.process.stdout.read() or b"").decode()
        self.err += (self.process.stderr.read() or b"").decode(errors="replace")

    def settles(self, up="up\n", replaced=("gateway",)):
        """Wait until it has ended, or works in spite of it, if that is a role whose holder is replaced; which of it."""

        def settled():
            ended = self.process.poll() is not None
            self.hear()
            return "ended" if ended else "works" if up in self.out and self.role in replaced else None

        try:
            said = wait_until(settled, "its end", SOON)
        except Fault as error:
            raise Fault(f"{self}: {error}; it said {self.out}{self.err}; {processes()}") from error
        self.is_told_well()
        return said

    def is_told_well(self):
        """No panic, and no more than a few lines."""
        lines = [line for line in self.err.splitlines() if line.startswith("tapline:") and "/dev/net/tun" not in line]
        check("panicked" not in self.err and len(lines) <= 3, f"{self}: it said {self.err}")
        failed = self.process.returncode == 125
        check(not failed or lines, f"{self}: it failed and said nothing")

    def ends(self):
        """It is told to end, and does."""
        self.process.terminate()
        try:
            self.process.wait(timeout=SOON)
        except subprocess.TimeoutExpired as error:
            raise Fault(f"{self}: it does not end; {processes()}") from error
        self.hear()
        self.is_told_well()


def usual_time(lab, argv, up="up\n", **more):
    """How long a start takes, as things are: the longest of three."""
    took = []
    for _ in range(3):
        begun = time.monotonic()
        process = lab.spawn(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **more)
        line = process.stdout.readline()
        took.append(time.monotonic() - begun)
        process.terminate()
        out, err = process.communicate(timeout=LIMIT)
        check(line.startswith(up), f"{argv}: {line}{out}{err}")
    return max(took)


def points(number, longest):
    """Delays at which to strike."""
    return [random.uniform(0, longest) for _ in range(max(1, round(number * POINTS)))]


def works(lab, shot):
    """One that goes on has its network; it may be about to notice that its gateway died."""
    fetch = lab.program("exec", NAME, "--", "sh", "-c", f"{CURL} --connect-timeout 2 {url(FAR4, 'hello')}")

    def fetched():
        check(shot.process.poll() is None, f"{shot}: it ended with {shot.process.returncode}: {shot.err}")
        return lab.run(fetch, status=None)[0] == "hello from afar\n"

    wait_until(fetched, f"the network of {shot}", SOON)


def killed_at_points(lab, argv, roles, again, works_still=works):
    """Kill each role at so many points of start-up."""
    random.seed(SEED)
    longest = usual_time(lab, argv) * 1.2
    traces = Traces(lab)
    seen = {}
    for role, number in roles.items():
        for delay in points(number, longest):
            shot = Shot(lab, argv, role, delay)
            came = shot.settles()
            if came == "works":
                works_still(lab, shot)
                shot.ends()
            finish([shot.process])
            lab.passing.remove(shot.process)
            seen[f"{role} {came}"] = seen.get(f"{role} {came}", 0) + 1
            again(traces, shot)
    return f"{sum(seen.values())} points up to {longest * 1000:.0f} ms: " + ", ".join(f"{n} {what}" for what, n in seen.items())


# Somebody is killed while it starts


@fault
def fault_killed_while_a_sandbox_starts(lab):
    argv = lab.program("run", "--net", "private", "--name", NAME, "-p", f"{PORT}:80", "-p", f"{PORT}:80/udp", "--", *STAY)

    def again(traces, shot):
        try:
            traces.settle(files=False)
            starts_again(lab)
            traces.settle()
        except Fault as error:
            raise Fault(f"{shot}: {error}") from error

    return killed_at_points(lab, argv, {"supervisor": 10, "agent": 7, "gateway": 8, "init": 5, "CMD": 5}, again)


@fault
def fault_killed_while_a_sandbox_joins_a_network(lab):
    network(lab, "create", "--subnet", "10.97.0.0/24", "red")
    options = ["--net", "red", "--ip", "10.97.0.9", "--mac", "02:00:00:00:00:09", "--network-alias", "alias", "--name", NAME, "-p", f"{PORT}:80"]
    argv = lab.program("run", *options, "--", *STAY)
    lab.run(lab.program("run", *options, "--", "true"))

    def again(traces, shot):
        # The gateway has its two seconds; whether it ends is looked at once, at the end of all.
        def others():
            return {what: left for what, left in traces.look().items() if what in ("mounts", "interfaces")}

        try:
            wait_until(lambda: only_gateways(traces), "the processes of it to end", SOON)
            wait_until(lambda: others() == {k: v for k, v in traces.before.items() if k in others()}, "the rest", SOON)
            _, err = lab.run(lab.program("run", *options, "--", "true"))
            lab.only_the_link(err)
            found = {path for path in traces.state() - traces.files if "gateway." not in path}
            check(not found, f"left in the state directory: {found}")
        except Fault as error:
            raise Fault(f"{shot}: {error}") from error

    note = killed_at_points(lab, argv, {"supervisor": 8, "agent": 6, "gateway": 8, "init": 4, "CMD": 4}, again)
    network(lab, "rm", "red")
    return note


def only_gateways(traces):
    """Whoever is there and was not is a gateway of shared networks."""
    shared = below(shared_gateways())
    return all(pid in shared for pid, _ in set(processes()) - set(traces.before["processes"]))


class Attached:
    """What is attached to: a namespace that somebody made, by its process or by a path; the same again unless it has gone."""

    def __init__(self, lab):
        self.lab, self.path, self.box = lab, lab.scratch / "netns", None
        self.renew()

    def renew(self):
        """A namespace, where the last one has gone."""
        if self.box and self.box.poll() is None:
            return
        self.box = self.lab.container()

    def put(self):
        """The namespace is at the path."""
        if not self.path.exists():
            self.path.touch()
            self.lab.run(["mount", "--bind", f"/proc/{self.box.pid}/ns/net", self.path])

    def unlink(self):
        self.lab.run(["umount", "-l", self.path])
        self.path.unlink()
        return True

    def end(self):
        self.box.kill()
        self.box.wait()
        self.lab.passing.remove(self.box)
        return True

    def is_bare(self):
        """No interface is left in it."""
        return self.box.poll() is not None or interfaces(self.box.pid) == {"lo"}


def attached_again(lab, target, argv, traces, shot):
    """Nothing is left in the namespace, and the same command line works."""
    try:
        wait_until(target.is_bare, "the interface to go", SOON)
        gone = target.box.poll() is not None
        target.renew()
        if gone:
            # Another process is there, and another mount.
            traces.before |= {"processes": traces.before["processes"] | {
                key: line for key, line in processes().items() if key[0] == target.box.pid}}
            traces.before["processes"] = {
                key: line for key, line in traces.before["processes"].items() if not is_gone(key[0])}
        traces.settle(files=False)
        process = lab.spawn(argv(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        line = process.stdout.readline()
        process.terminate()
        err = process.communicate(timeout=LIMIT)[1]
        check(line.startswith("1"), f"the next one said {line}{err}")
        wait_until(target.is_bare, "the interface of the next one to go", SOON)
        traces.settle()
    except Fault as error:
        raise Fault(f"{shot}: {error}") from error


def killed_while_attaching(lab, target, argv, roles, up, survived=("gateway", "agent")):
    """As killed_at_points; the roles `target` and `path` are its end. `survived` says whose end it survives."""
    random.seed(SEED)
    longest = usual_time(lab, argv(), up) * 1.2
    traces = Traces(lab)
    seen = {}
    for role, number in roles.items():
        for delay in points(number, longest):
            ends = {"target": target.end, "path": target.unlink}.get(role)
            if role == "path":
                target.put()
            shot = Shot(lab, argv(), role, delay, ends)
            came = shot.settles(up, survived)
            if came == "works" and role == "target":
                shot.ends()
            elif came == "works":
                fetch = f"{CURL} --connect-timeout 2 {url(FAR4, 'hello')}"
                wait_until(lambda: lab.within(target.box, fetch, status=None) == "hello from afar\n", f"the network of {shot}", SOON)
                shot.ends()
            if ends and "target" not in survived:
                # It followed, and was not killed.
                check(shot.process.returncode in (0, 125), f"{shot}: it ended with {shot.process.returncode}: {shot.err}")
            lab.passing.remove(shot.process)
            seen[f"{role} {came}"] = seen.get(f"{role} {came}", 0) + 1
            if role == "path":
                target.put()
            attached_again(lab, target, argv, traces, shot)
            if role == "path":
                target.unlink()
    return f"{sum(seen.values())} points up to {longest * 1000:.0f} ms: " + ", ".join(f"{n} {what}" for what, n in seen.items())


@fault
def fault_killed_while_attaching(lab):
    target = Attached(lab)
    words = ["attach", "--ready-fd", "1", "--name", NAME, "-p", f"{PORT}:80"]
    by_process = lambda: [*POWERLESS, lab.binary, *words, str(target.box.pid)]
    by_path = lambda: [*POWERLESS, lab.binary, *words, "--netns", str(target.path)]
    notes = [killed_while_attaching(lab, target, by_process, {"supervisor": 6, "agent": 6, "gateway": 5, "target": 6}, "1\n")]
    target.put()
    notes.append(killed_while_attaching(lab, target, by_path, {"path": 6}, "1\n"))
    return "; ".join(notes)


@fault
def fault_killed_while_slirp4netns_starts(lab):
    target = Attached(lab)
    api = lab.scratch / "faults.sock"
    ready = ["sh", "-c", 'exec 3>&1 >/dev/null; exec "$@"', "sh"]
    argv = lambda: [*ready, *POWERLESS, program(lab), "-c", "-a", api, "-r", "3", str(target.box.pid), "tap0"]
    note = killed_while_attaching(lab, target, argv, {"supervisor": 4, "agent": 3, "gateway": 3, "target": 3}, "1", ("gateway", "agent", "target"))
    api.unlink(missing_ok=True)
    return note
