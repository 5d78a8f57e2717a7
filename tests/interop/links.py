"""The cases about what a sandbox is joined by: interfaces that others made, captures, and no interface at all."""
import array
import os
import re
import socket
import struct
import subprocess
import sys
from pathlib import Path

from cases import CURL, case, has, url
from lab import FAR4, FAR6, HERE, HOST4, LIMIT, UNPRIVILEGED, Skip, check, wait_until

# As in contracts: who calls slirp4netns sets this layout by itself where it does not ask for -c.
BY_HAND = "ip addr add 10.0.2.100/24 dev tap0; ip link set tap0 mtu 1500 up; ip route add default via 10.0.2.2"

# Run in a container: a TAP's descriptor, sent to whoever is at the other end of descriptor 3. argv: its flags.
OPEN_TAP = """
import array, fcntl, os, socket, struct, sys
tap = os.open("/dev/net/tun", os.O_RDWR)
fcntl.ioctl(tap, 0x400454CA, struct.pack("16sH14x", b"tap0", int(sys.argv[1])))
socket.socket(fileno=3).sendmsg([b"t"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [tap]))])
"""
TAP, NO_PI, VNET_HDR = 0x0002, 0x1000, 0x4000


def slirp4netns(lab):
    """The program by that name."""
    link = lab.scratch / "slirp4netns"
    if not link.exists():
        link.symlink_to(lab.binary)
    return link


def unprivileged(*words):
    """As the user whose container it is, capable of nothing outside."""
    return ["setpriv", "--bounding-set=-all", "--inh-caps=-all", "--no-new-privs", "--", *words]


class Attached:
    """slirp4netns, started and ready."""

    def __init__(self, lab, *words, fds=()):
        self.log = lab.scratch / "slirp4netns.log"
        self.lab = lab
        read, write = os.pipe()
        argv = unprivileged(slirp4netns(lab), "-r", str(write), *map(str, words))
        out = open(self.log, "w")
        self.process = lab.spawn(argv, pass_fds=[write, *fds], stdout=out, stderr=subprocess.STDOUT)
        os.close(write)
        with os.fdopen(read) as ready:
            said = ready.read()
        check(said == "1", f"it was not ready ({said!r}): {self.log.read_text()}")

    def end(self):
        self.process.terminate()
        self.process.wait(timeout=LIMIT)


def digest(lab, box, address):
    out = lab.within(box, f"curl -sS --max-time 60 {url(address, 'big')} | sha256sum")
    check(out.split()[0] == lab.big_digest, f"a hundred megabytes came otherwise: {out}")


def state_of(lab, box):
    """What of an interface does not come and go with its carrier."""
    said = lab.within(box, "ip -o link show tap0; ip -4 -o addr show tap0; ip -4 route")
    return re.search(r"mtu \d+", said)[0], re.search(r"link/ether \S+", said)[0], re.sub("linkdown", "", said).split()[20:]


@case
def links_existing_tap_is_used_as_it_is_and_stays(lab):
    if lab.without_tun:
        return Skip("there is no /dev/net/tun here")
    box = lab.container()
    # As RootlessKit does it: a persistent TAP, up, and addresses of its own.
    lab.within(box, f"ip link set lo up; ip tuntap add name tap0 mode tap; ip link set tap0 up; {BY_HAND}")
    before = state_of(lab, box)
    for end in ("terminate", "kill"):
        first = Attached(lab, "--mtu", 1500, box.pid, "tap0")
        check(state_of(lab, box) == before, f"it was changed: {before} {state_of(lab, box)}")
        has(lab.within(box, f"{CURL} {url(FAR4, 'hello')}"), "hello from afar")
        digest(lab, box, FAR4)
        # It has one queue, and that is taken.
        out, err = lab.run(unprivileged(slirp4netns(lab), box.pid, "tap0"), status=1)
        has(out + err, "tap0", "another process has it open")
        getattr(first.process, end)()
        first.process.wait(timeout=LIMIT)
        wait_until(lambda: "NO-CARRIER" in lab.within(box, "ip link show tap0"), "everybody lets go of it")
        check(state_of(lab, box) == before, f"it was changed in the end: {before} {state_of(lab, box)}")
    # Whoever comes next finds it as it was.
    check(Path("/usr/bin/slirp4netns").exists(), "slirp4netns is not installed")
    read, write = os.pipe()
    lab.spawn(unprivileged("slirp4netns", "-r", str(write), "--mtu", "1500", str(box.pid), "tap0"), pass_fds=[write],
              stdout=subprocess.DEVNULL)
    os.close(write)
    with os.fdopen(read) as ready:
        check(ready.read() == "1", "slirp4netns itself was not ready")
    has(lab.within(box, f"{CURL} {url(FAR4, 'hello')}"), "hello from afar")
    digest(lab, box, FAR4)


@case
def links_existing_tap_that_is_none_is_an_error(lab):
    box = lab.container()
    lab.within(box, "ip link add tap0 type veth peer name other")
    out, err = lab.run(unprivileged(slirp4netns(lab), box.pid, "tap0"), status=1)
    why = "cannot open /dev/net/tun" if lab.without_tun else "no TAP device with a single queue"
    has(out + err, "cannot use the interface tap0 that is there already", why)
    check("veth" in lab.within(box, "ip -d link show tap0"), "it was taken away")


@case
def links_existing_tap_is_none_of_attachs_business(lab):
    if lab.without_tun:
        return Skip("there is no /dev/net/tun here")
    box = lab.container()
    lab.within(box, "ip tuntap add name tap0 mode tap")
    err = lab.run(unprivileged(lab.binary, "attach", str(box.pid)), status=125)[1]
    has(err, "there is an interface tap0 in the namespace already")
    has(lab.within(box, "ip link show tap0"), "tap0")


def tap_from(lab, box, flags):
    """A TAP of a container's, as a descriptor here."""
    ours, theirs = socket.socketpair()
    # The script speaks to descriptor 3. (Other shells know no descriptor of two digits.)
    script = f"exec {sys.executable} -c '{OPEN_TAP}' {flags} 3<&{theirs.fileno()}"
    enter = ["nsenter", "-t", str(box.pid), "-U", "-n", "--preserve-credentials", "--"]
    lab.run([*enter, "bash", "-c", script], pass_fds=[theirs.fileno()])
    _, ancillary, _, _ = ours.recvmsg(1, socket.CMSG_SPACE(4))
    return array.array("i", ancillary[0][2])[0]


@case
def links_tap_descriptor_with_header_and_without(lab):
    if lab.without_tun:
        return Skip("there is no /dev/net/tun here")
    for flags in (TAP | NO_PI, TAP | NO_PI | VNET_HDR):
        box = lab.container()
        tap = tap_from(lab, box, flags)
        attached = Attached(lab, "--netns-type=tapfd", "-6", tap, "tap0", fds=[tap])
        lab.within(box, BY_HAND)
        for address in (FAR4, FAR6):
            wait_until(lambda: lab.within(box, f"{CURL} {url(address, 'hello')}", status=None) == "hello from afar\n", address)
            up = lab.within(box, f"curl -sS --max-time 60 -T {lab.big} {url(address, 'up')}")
            check(up == lab.big_digest, f"a hundred megabytes went otherwise: {up}")
            digest(lab, box, address)
        attached.end()
        os.close(tap)


@case
def links_tap_descriptor_that_is_none_is_an_error(lab):
    null = os.open("/dev/null", os.O_RDWR)
    out, err = lab.run(unprivileged(slirp4netns(lab), "--netns-type=tapfd", str(null), "tap0"), status=1, pass_fds=[null])
    has(out + err, "no TAP device")
    os.close(null)


@case
def links_ipv6_by_advertisement_at_once(lab):
    box = lab.container()
    Attached(lab, "-c", "-6", box.pid, "tap0")
    mac = lab.within(box, "ip -o link show tap0").split("link/ether ")[1].split()[0].split(":")
    own = f"fd00::{int(mac[0], 16) ^ 2:x}{mac[1]}:{mac[2]}ff:fe{mac[3]}:{mac[4]}{mac[5]}"
    own = socket.inet_ntop(socket.AF_INET6, socket.inet_pton(socket.AF_INET6, own))
    wait_until(lambda: own in lab.within(box, "ip -6 addr show dev tap0 scope global -tentative"), f"the address {own}")
    has(lab.within(box, "ip -6 route show default"), "default via fe80", "proto ra")
    check("tentative" not in lab.within(box, "ip -6 addr show dev tap0"), "an address is probed for")
    wait_until(lambda: lab.within(box, f"{CURL} {url(FAR6, 'hello')}", status=None) == "hello from afar\n", "IPv6")


def frames_of(path):
    """The frames of a capture; an error where it is no whole pcap file."""
    data = Path(path).read_bytes()
    magic, major, minor, _, _, longest, kind = struct.unpack_from("=IHHIIII", data)
    check((magic, major, minor, kind) == (0xA1B2C3D4, 2, 4, 1), f"no pcap file: {data[:24]}")
    at, frames = 24, []
    while at < len(data):
        _, micros, captured, length = struct.unpack_from("=IIII", data, at)
        check(captured == length <= longest and micros < 1_000_000, f"a record is damaged at {at}")
        at += 16 + captured
        check(at <= len(data), "the last record is not whole")
        frames.append(data[at - captured : at])
    return frames


@case
def links_capture_has_every_frame_both_ways(lab):
    path = lab.scratch / "a.pcap"
    script = f"ping -c 3 -i 0.2 -W 2 10.0.2.2 >/dev/null; curl -sS -T {lab.files}/five {url(FAR4, 'up')}"
    (lab.files / "five").write_bytes(bytes(5_000_000))
    lab.inside(script, "--pcap", path, "--mtu", "1500")
    frames = frames_of(path)
    echo = [f for f in frames if f[12:14] == b"\x08\x00" and f[23] == 1]
    check([f[34] for f in echo] == [8, 0] * 3, f"three pings, each answered: {[f[34] for f in echo]}")
    sent = [f for f in frames if f[12:14] == b"\x08\x00" and f[23] == 6 and f[30:34] == socket.inet_aton(FAR4)]
    bytes_sent = sum(len(f) - 34 - (f[46] >> 4) * 4 for f in sent)
    check(bytes_sent >= 5_000_000, f"{bytes_sent} bytes of TCP were sent")
    check(max(map(len, sent)) > 1514, "super-segments are whole")
    # The kernel of a sandbox that ends says farewell to everybody, and that is in it, too.
    again = lab.scratch / "again.pcap"
    for _ in range(5):
        lab.inside(f"curl -sS {url(FAR4, 'hello')} >/dev/null", "--pcap", again)
        # The other side's may come too late for a sandbox that has ended.
        ends = [f for f in frames_of(again) if f[12:14] == b"\x08\x00" and f[23] == 6 and f[30:34] == socket.inet_aton(FAR4)]
        check(any(f[47] & 5 for f in ends), f"the sandbox's end of a connection, among {len(ends)} frames")
    check(path.stat().st_mode & 0o777 == 0o600, "for its owner alone")
    said = subprocess.run([*UNPRIVILEGED, "tcpdump", "-n", "-r", path, "icmp"], capture_output=True, text=True, check=False)
    check(said.stdout.count("ICMP echo re") == 6, f"tcpdump reads it otherwise: {said}")


@case
def links_capture_goes_on_when_the_gateway_dies(lab):
    path = lab.scratch / "b.pcap"
    box = lab.container()
    process, log = lab.attach(box, "--pcap", path)
    ping = "ping -c 1 -W 5 10.0.2.2 >/dev/null"
    lab.within(box, ping)

    def count():
        return sum(f[12:14] == b"\x08\x00" and f[23] == 1 for f in frames_of(path))

    wait_until(lambda: count() == 2, "the frames of the first")
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    gateway = [pid for pid in children if "gateway" in Path(f"/proc/{pid}/cmdline").read_text().split("\0")]
    os.kill(int(gateway[0]), 9)
    wait_until(lambda: lab.within(box, f"{ping} && echo yes", status=None) == "yes\n", "another gateway")
    wait_until(lambda: count() >= 4, "its frames, behind the others")
    check("the gateway died" in log.read_text(), log.read_text())


@case
def links_capture_that_finds_no_room_ends_and_the_network_does_not(lab):
    path = lab.scratch / "c.pcap"
    box = lab.container()
    limit = ["prlimit", "--fsize=100000", "--"]
    read, write = os.pipe()
    log = lab.scratch / "limit.log"
    lab.spawn([*limit, *unprivileged(lab.binary, "attach", "--ready-fd", write, "--pcap", path, box.pid)],
              pass_fds=[write], stderr=open(log, "w"))
    os.close(write)
    with os.fdopen(read) as ready:
        check(ready.readline() == "1\n", log.read_text())
    digest(lab, box, FAR4)
    wait_until(lambda: "no more frames are captured" in log.read_text(), "a line that says so")
    digest(lab, box, FAR4)
    check(log.read_text().count("captured") == 1, log.read_text())
    check(path.stat().st_size <= 100_000 and frames_of(path) is not None, "the file is readable")


@case
def links_capture_of_what_cannot_be(lab):
    for name, why in (("/dev/null", "no ordinary file"), ("/nonexistent/a", "No such file"), (lab.scratch, "Is a directory")):
        err = lab.run(lab.tapline("run", "--pcap", name, "--", "true"), status=125)[1]
        has(err, f"cannot capture to {name}", why)


@case
def links_none_publishes_and_reaches_by_loopback(lab):
    service = [sys.executable, HERE / "service.py"]
    lab.serve([*service, "serve", "127.0.0.1", "7070"], 7070)
    script = (f"ip -br link; {sys.executable} {HERE / 'service.py'} ask 127.0.0.1 71 whoami; "
              f"exec {sys.executable} {HERE / 'service.py'} serve :: 80")
    log = lab.scratch / "none.log"
    argv = lab.tapline("run", "--link-kind", "none", "-p", "8080:80", "--reach", "7070:71", "--", "sh", "-c", script)
    lab.spawn(argv, stdout=open(log, "w"), stderr=subprocess.STDOUT)
    wait_until(lambda: "ready" in log.read_text(), "the service")
    check([line.split()[0] for line in log.read_text().splitlines()[:1]] == ["lo"], log.read_text())
    has(log.read_text(), "127.0.0.1")
    for address in ("127.0.0.1", "::1"):
        has(lab.run([*service, "ask", address, 8080, "whoami"])[0], "end")
    # There is no way in for anybody else, and they are told so.
    check(lab.run([*service, "ask", HOST4, 8080, "whoami"], lab.far)[0].strip() in ("reset", "refused"), "from afar")
    check("tap" not in log.read_text(), log.read_text())


@case
def links_target_that_ends_during_set_up_leaves_nothing(lab):
    for _ in range(10):
        box = lab.container()
        process = lab.spawn(unprivileged(lab.binary, "attach", box.pid), stderr=subprocess.PIPE, text=True)
        box.kill()
        err = process.communicate(timeout=LIMIT)[1]
        # It had worked before the end, or there is one line.
        lines = [line for line in err.splitlines() if "/dev/net/tun" not in line]
        check((process.returncode, len(lines)) in ((0, 0), (125, 1)), f"{process.returncode}: {err}")
        check(process.returncode == 0 or "process" in err or "ended" in err, err)
    check(lab.run(lab.tapline("ps", "--format", "json"))[0] == "", "something is left")


@case
def links_target_in_a_user_namespace_below_the_owner(lab):
    # As bubblewrap does it: the process is in a user namespace below the one that owns its network.
    process = lab.spawn(["unshare", "-Urn", "unshare", "-U", "sleep", "infinity"])
    wait_until(lambda: Path(f"/proc/{process.pid}/comm").read_text() == "sleep\n", "its command")
    for target in ((process.pid,), ("--netns", f"/proc/{process.pid}/ns/net")):
        attached = lab.spawn(unprivileged(lab.binary, "attach", "--ready-fd", 1, *target), stdout=subprocess.PIPE, text=True)
        check(attached.stdout.readline() == "1\n", "it was not ready")
        attached.terminate()
        attached.wait(timeout=LIMIT)
