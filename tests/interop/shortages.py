"""More cases about faults: no descriptors, no memory, no room for files.

Whoever runs out of something says so and ends, or refuses what is new and keeps what there is; nothing hangs, no byte is
wrong, and nothing is half made.
"""
import json
import re
import subprocess
import sys
from pathlib import Path

from cases import CURL, has, url
from faults import NAME, PORT, SOON, fault, interfaces
from lab import FAR4, HOST4, LIMIT, Fault, check, wait_until
from networks import Box, definitions, names_in_ps, names_of_networks, network, runtime
from ports import SERVICE, ask
from slirp import POWERLESS
from upsets import Transfers, gateway_of


def limited(option, *argv):
    return ["prlimit", option, "--", *argv]


def tries(lab, argv, what, words, status=(125,)):
    """A start that works, or says in one line what is missing; which of it."""
    process = lab.spawn(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        out, err = process.communicate(timeout=SOON)
    except subprocess.TimeoutExpired as error:
        raise Fault(f"{what}: it hangs") from error
    lines = [line for line in err.splitlines() if "/dev/net/tun" not in line]
    shown = f"{what}: {process.returncode}: {out}{err}"
    check("panicked" not in err, shown)
    if process.returncode == 0:
        return "works"
    check(process.returncode in status and lines and len(lines) <= 3, shown)
    check(any(word in err for word in words), f"no reason: {shown}")
    return "says why not"


# Descriptors

OPEN_FILES = ("open files", "descriptor")
HOLD = """
import socket, sys, time
address, port, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
socks, said, lost = [], {}, 0
for _ in range(count):
    sock = socket.socket()
    sock.settimeout(1.5)
    try:
        sock.connect((address, port))
        sock.sendall(b"hold\\n")
        how = sock.recv(4).decode() or "end"
    except OSError as error:
        how = type(error).__name__
    said[how] = said.get(how, 0) + 1
    if how == "held":
        socks.append(sock)
    lost += how != "held"
    if lost == 3:
        break
print(said.get("held", 0), *sorted(said), flush=True)
sys.stdin.readline()
alive = 0
for sock in socks:
    sock.setblocking(False)
    try:
        sock.recv(1)
    except BlockingIOError:
        alive += 1
    except OSError:
        pass
print(alive, flush=True)
"""


@fault
def fault_started_with_few_descriptors(lab):
    seen = {}
    box = lab.container()
    starts = {
        "run": lab.program("run", "--net", "private", "--name", NAME, "-p", f"{PORT}:80", "--", "true"),
        "network": lab.program("run", "--net", "bridge", "--name", NAME, "-p", f"{PORT}:80", "--", "true"),
        "none": lab.program("run", "--net", "none", "--name", NAME, "--", "true"),
        "attach": ["sh", "-c", '"$@" & p=$!; sleep 1; kill $p 2>/dev/null; wait $p; s=$?; [ $s = 143 ] && s=0; exit $s', "sh",
                   *POWERLESS, lab.binary, "attach", "--name", NAME, str(box.pid)],
    }
    for what, argv in starts.items():
        for number in (8, 12, 16, 20, 24, 32, 64):
            # The loader itself needs some.
            came = tries(lab, limited(f"--nofile={number}:{number}", *argv), f"{what} with {number} descriptors", OPEN_FILES)
            seen.setdefault(what, []).append((number, came))
            check(number < 64 or came == "works", f"{what} does not start with 64 descriptors")
    wait_until(lambda: interfaces(box.pid) == {"lo"}, "the interface to go", SOON)
    return ", ".join(f"{what} from {min(n for n, came in all_of if came == 'works')}" for what, all_of in seen.items())


@fault
def fault_load_with_few_descriptors(lab):
    lab.serve([*SERVICE, "serve", "::", "8330"], 8330, lab.far)
    argv = limited("--nofile=64:64", *lab.program("run", "--net", "private", "--name", NAME, "-p", f"{PORT}:80", "--", *SERVICE, "serve", "::", "80"))
    log = lab.scratch / "few.log"
    process = lab.spawn(argv, stdout=open(log, "w"), stderr=subprocess.STDOUT)
    wait_until(lambda: "ready" in log.read_text(), "the service")
    more = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    hold = lambda *words: [sys.executable, "-c", HOLD, *map(str, words)]
    notes = []
    # The gateway's limit is that of the whole: what counts is that of its process.
    for argv, ns in (
        (lab.program("exec", NAME, "--", *hold(FAR4, 8330, 120)), None), (hold(HOST4, PORT, 120), lab.far), (hold("127.0.0.1", PORT, 120), None),
    ):
        holder = lab.spawn(argv, ns, **more)
        words = holder.stdout.readline().split()

        check(words, f"the holder: {holder.poll()}; {log.read_text()}")
        held = int(words[0])
        check(5 < held < 120, f"held {words}")
        check(not set(words[1:]) - {"held", "ConnectionRefusedError", "ConnectionResetError", "TimeoutError"}, f"{words}")
        check(process.poll() is None, log.read_text())
        holder.stdin.write("\n")
        holder.stdin.flush()
        check(int(holder.stdout.readline()) == held, "those that were there go on")
        holder.wait(timeout=LIMIT)
        fetch = lambda: lab.run(lab.program("exec", NAME, "--", "sh", "-c", f"{CURL} {url(FAR4, 'hello')}"), status=None)[0]
        wait_until(lambda: fetch() == "hello from afar\n", "a way out again", SOON)
        wait_until(lambda: "end" in ask(lab, "127.0.0.1", PORT, "whoami"), "the port again", SOON)
        wait_until(lambda: "end" in ask(lab, HOST4, PORT, "whoami", lab.far), "the port from afar again", SOON)
        notes.append(" ".join(words))
    check("panicked" not in log.read_text() and "died" not in log.read_text(), log.read_text())
    return "; ".join(notes)


# Memory


@fault
def fault_started_with_little_memory(lab):
    seen = []
    argv = lab.program("run", "--net", "private", "--name", NAME, "-p", f"{PORT}:80", "--", "true")
    for megabytes in (20, 40, 60, 80, 100, 150, 200, 300, 500):
        # The allocator's own word, and the loader's, where it is they that cannot go on.
        words = ("memory", "shared object", "gateway ended", "ended unexpectedly", "Resource temporarily unavailable")
        came = tries(lab, limited(f"--as={megabytes << 20}", *argv), f"{megabytes} MiB", words, status=(125, 126, 127, 134, -6, -11))
        seen.append(f"{megabytes}: {came}")
    return ", ".join(seen)


@fault
def fault_a_gateway_without_memory(lab):
    """New connections are refused, or another gateway comes; what arrives is whole."""
    transfers = Transfers(lab)
    (gateway,) = gateway_of(transfers.box)[-1:]
    size = int(re.search(r"VmSize:\s+(\d+)", Path(f"/proc/{gateway}/status").read_text())[1]) << 10
    lab.run(["prlimit", "--pid", gateway, f"--as={size + (4 << 20)}:"])
    transfers.begin(5)
    sums = transfers.sums()
    count = transfers.nothing_lost()
    lab.run(["sh", "-c", 'for pid in "$@"; do prlimit --pid $pid --as=unlimited:; done', "sh", *gateway_of(transfers.box)])
    transfers.begin(1)
    transfers.all_arrived(transfers.sums())
    return f"{count} notes; {sums}"


# Room for files

NO_ROOM = ("No space left", "File too large")


class Room:
    """A file system of so many bytes."""

    def __init__(self, lab, path, size):
        self.lab, self.path, self.size = lab, Path(path), size
        lab.run(["mount", "-t", "tmpfs", "-o", f"size={size},mode=0700,nr_inodes=200", "none", path])

    def fill(self):
        """No byte is left of it."""
        with open(self.path / "filler", "wb", buffering=0) as filler:
            for length in (1 << 16, 4096, 1):
                try:
                    while filler.write(b"x" * length):
                        pass
                except OSError:
                    pass

    def empty(self):
        (self.path / "filler").unlink()

    def end(self):
        self.lab.run(["umount", "-l", self.path])


@fault
def fault_no_room_for_state_files(lab):
    lab.others = set()
    network(lab, "create", "--subnet", "10.96.0.0/24", "red")
    room = Room(lab, runtime(lab), 256 << 10)
    try:
        lab.run(lab.program("run", "-q", "--net", "private", "--", "true"))
        running = Box(lab, "running", "--net", "private", "-p", f"{PORT + 1}:80", serve=(80,))
        room.fill()
        for net in ("private", "red", "none", "host"):
            argv = lab.program("run", "-q", "--net", net, "--name", NAME, "--", "true")
            check(tries(lab, argv, f"--net {net} without room", NO_ROOM) == "says why not", f"--net {net} does without")
        box = lab.container()
        argv = [*POWERLESS, lab.binary, "attach", "--name", NAME, str(box.pid)]
        check(tries(lab, argv, "attach without room", NO_ROOM) == "says why not", "attach does without")
        check(interfaces(box.pid) == {"lo"}, "an interface is left")
        # What runs goes on; what cannot be written down is refused, or said.
        tries(lab, lab.program("publish", "running", f"{PORT + 2}:80"), "a further port", NO_ROOM)
        has(ask(lab, "127.0.0.1", PORT + 1, "whoami"), "end")
        has(running.does(f"{CURL} {url(FAR4, 'hello')}"), "hello")
        check(names_in_ps(lab) == ["running"], names_in_ps(lab))
        room.empty()
        left = [path.name for path in runtime(lab).glob("tapline/*/sandboxes/*")]
        check(len(left) == 1, f"half made: {left}")
        for net in ("private", "red"):
            lab.run(lab.program("run", "-q", "--net", net, "--name", NAME, "--", "true"))
        out, _ = lab.run(lab.program("publish", "running", f"{PORT + 3}:80"))
        has(out, str(PORT + 3))
        has(json.dumps(json.loads(lab.run(lab.program("inspect", "running"))[0])), str(PORT + 1), str(PORT + 3))
        running.end()
    finally:
        room.end()
    network(lab, "rm", "red")


@fault
def fault_no_room_for_definitions(lab):
    data = Path(lab.environment["XDG_DATA_HOME"])
    data.mkdir(parents=True, exist_ok=True)
    room = Room(lab, data, 64 << 10)
    try:
        network(lab, "create", "--subnet", "10.96.0.0/24", "--label", "of=tests", "red")
        before = (definitions(lab) / "red.toml").read_text()
        room.fill()
        for words in (("create", "blue"), ("create", "--subnet", "10.95.0.0/24", "--internal", "blue")):
            check(tries(lab, lab.program("network", *words), f"network {words}", NO_ROOM) == "says why not", f"{words} does without")
        check([path.name for path in definitions(lab).iterdir()] == ["red.toml"], f"half made: {sorted(definitions(lab).iterdir())}")
        check((definitions(lab) / "red.toml").read_text() == before and names_of_networks(lab) == ["red"], "a definition is lost")
        # Who needs no new file is served.
        lab.run(lab.program("run", "-q", "--net", "red", "--name", NAME, "--", "true"))
        room.empty()
        network(lab, "create", "blue")
        room.fill()
        network(lab, "rm", "blue")
        check(names_of_networks(lab) == ["red"], "removed without room")
        network(lab, "rm", "red")
    finally:
        room.end()


@fault
def fault_files_may_not_grow(lab):
    """RLIMIT_FSIZE, which is a signal unless somebody minds."""
    network(lab, "create", "red")
    seen = []
    for size in (0, 100, 400):
        for what, words in {
            "run": ("run", "-q", "--net", "private", "--name", NAME, "--", "true"), "network": ("run", "-q", "--net", "red", "--name", NAME, "--", "true"),
            "create": ("network", "create", "blue"),
        }.items():
            came = tries(lab, limited(f"--fsize={size}", *lab.program(*words)), f"{what} with files of {size} bytes", NO_ROOM)
            seen.append(f"{what} {size}: {came}")
            if what == "create" and came == "works":
                network(lab, "rm", "blue")
            check(names_of_networks(lab) == (["bridge", "red"] if "bridge" in names_of_networks(lab) else ["red"]), "definitions")
    network(lab, "rm", "red")
    return ", ".join(seen)
