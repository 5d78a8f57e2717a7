"""The cases about the command line of slirp4netns: what its callers rely on, line by line.

tapline is called through a link that `tapline link-as slirp4netns` makes, by a user without any capability, for
namespaces that `unshare -Urn` made. With SLIRP4NETNS=/usr/bin/slirp4netns in the environment that program is called
instead, to see that a case is right; those about what ours does better are skipped then.
"""
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from cases import CURL, case, has, url
from lab import FAR4, FAR6, HERE, HOST4, HOST6, LIMIT, Skip, check, wait_until
from ports import SERVICE, ask, udp

ORIGINAL = os.environ.get("SLIRP4NETNS")
POWERLESS = ["setpriv", "--bounding-set=-all", "--inh-caps=-all", "--no-new-privs", "--"]
BASE = "10.0.2"
LIST = {"execute": "list_hostfwd"}


def program(lab):
    """The link, made once."""
    if ORIGINAL:
        return ORIGINAL
    link = lab.scratch / "slirp4netns"
    if not link.is_symlink():
        lab.run([lab.binary, "link-as", "slirp4netns", lab.scratch])
    return str(link)


def ours(function):
    """A case about what the original does not do, or does worse."""

    def checked(lab):
        return Skip("not the original's") if ORIGINAL else function(lab)

    checked.__name__ = function.__name__
    return case(checked)


class Slirp:
    """slirp4netns in the foreground, ready; `read` and `write` are its exit fd's ends."""

    def __init__(self, lab, *options, box=None, target=None, tap="tap0", before=POWERLESS, inherit=(), ready=True):
        self.lab, self.box = lab, box or lab.container()
        number = len(lab.passing)
        self.out, self.err = lab.scratch / f"slirp-{number}.out", lab.scratch / f"slirp-{number}.err"
        self.read, self.write = os.pipe()
        told, tell = os.pipe()
        argv = [*before, program(lab), "-e", self.read, "-r", tell, *options, *(target or [self.box.pid]), tap]
        self.process = lab.spawn(
            argv, pass_fds=[self.read, tell, *inherit], stdout=open(self.out, "w"), stderr=open(self.err, "w")
        )
        os.close(self.read)
        os.close(tell)
        with os.fdopen(told, "rb") as reading:
            self.said = reading.read()
        if ready:
            check(self.said == b"1", f"it said {self.said} and {self.err.read_text()}")

    def complaints(self):
        """Lines on standard error, but for the one about the link."""
        return [line for line in self.err.read_text().splitlines() if "/dev/net/tun" not in line]

    def within(self, script, status=0):
        return self.lab.within(self.box, script, status=status)

    def exits(self):
        """The status, when the exit fd hangs up."""
        os.close(self.write)
        return self.process.wait(timeout=LIMIT)

    def alive(self):
        check(self.process.poll() is None, f"it has ended with {self.process.returncode}: {self.err.read_text()}")
        return True


def call(lab, *words, status=1):
    """A call that ends by itself: (standard output, standard error)."""
    return lab.run([*POWERLESS, program(lab), *words], status=status)


def api_path(lab):
    return f"{lab.scratch}/api-{len(lab.passing)}.sock"


def raw(path, said, close=True):
    """What an API answers to bytes."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(LIMIT)
        client.connect(path)
        client.sendall(said)
        if close:
            client.shutdown(socket.SHUT_WR)
        answer = b""
        while piece := client.recv(1 << 16):
            answer += piece
        return json.loads(answer)


def request(path, execute, **arguments):
    return raw(path, json.dumps({"execute": execute, "arguments": arguments}).encode())


def forward(path, **arguments):
    answer = request(path, "add_hostfwd", **arguments)
    check("return" in answer, f"{arguments}: {answer}")
    return answer["return"]["id"]


def refusal(path, said):
    answer = raw(path, said if isinstance(said, bytes) else json.dumps(said).encode())
    check(list(answer) == ["error"], f"{said}: {answer}")
    return answer["error"]["desc"]


def service(slirp, port, listen="::"):
    """The service inside; what it says is in its log."""
    log = slirp.lab.scratch / f"service-{len(slirp.lab.passing)}.log"
    enter = ["nsenter", "-t", slirp.box.pid, "-U", "-n", "--preserve-credentials", "--"]
    slirp.lab.spawn([*enter, *SERVICE, "serve", listen, port], stdout=open(log, "w"), stderr=subprocess.STDOUT)
    wait_until(lambda: "ready" in log.read_text(), "the service")
    return log


# The command line


@case
def slirp_help_and_version(lab):
    out, _ = call(lab, "--help", status=0)
    has(out, "--netns-type", "--enable-ipv6", "--cidr", "--disable-host-loopback", "--api-socket", "--enable-sandbox",
        "--enable-seccomp", "--mtu", "--outbound-addr", "--configure", "--exit-fd", "--ready-fd", "--userns-path",
        "--outbound-addr6", "--disable-dns", "--macaddress", "--target-type", "--help", "--version")
    check(call(lab, "-h", status=0)[0] == out, "-h is another help")
    out, _ = call(lab, "--version", status=0)
    lines = [line.split() for line in out.splitlines()]
    check(lines[0][:2] == ["slirp4netns", "version"], out)
    check([line[0] for line in lines[1:]] == ["commit:", "libslirp:", "SLIRP_CONFIG_VERSION_MAX:", "libseccomp:"], out)
    check(int(lines[3][1]) >= 3, out)
    check(call(lab, "-v", status=0)[0] == out, "-v is another version")


@case
def slirp_mistakes_show_usage_and_reason(lab):
    pid = lab.container().pid
    for words, reason in (
        (["--nonsense"], "unrecognized option '--nonsense'"),
        (["--mtu"], "option '--mtu' requires an argument"),
        (["--enable", pid, "t"], "option '--enable' is ambiguous; possibilities: '--enable-ipv6' '--enable-sandbox' '--enable-seccomp'"),
        (["--configure=1", pid, "t"], "option '--configure' doesn't allow an argument"),
        (["-z", pid, "t"], "invalid option -- 'z'"),
        (["-m", "65522", pid, "t"], "MTU must be a positive integer (< 65522)"),
        (["-m", "0", pid, "t"], "MTU must be a positive integer (< 65522)"),
        (["-e", "x", pid, "t"], "exit-fd must be a non-negative integer"),
        (["-r", "-1", pid, "t"], "ready-fd must be a non-negative integer"),
        (["0", "t"], "PID must be a positive integer"),
        (["x", "t"], "PID must be a positive integer"),
        (["--netns-type=path", "/no/such/path", "t"], "existing path expected when --netns-type=path: No such file or directory"),
        (["--userns-path=/no/such/path", pid, "t"], "userns path doesn't exist: /no/such/path"),
        (["--macaddress=02:11:22:33:44:55", pid, "t"], "--macaddr cannot be specified when --configure or -c is not specified"),
        (["--target-type=x", pid, "t"], '--target-type must be either "netns" or "bess"'),
        ([], ""), ([pid], ""),
    ):
        out, err = call(lab, *words)
        has(out, "Usage:")
        has(err, reason)
        check(bool(err) == bool(reason), f"{words}: {err}")


@case
def slirp_cidr_errors_in_their_order(lab):
    pid = lab.container().pid
    for cidr, reason in (
        ("foo", "invalid CIDR"), ("10.0.2.0", "invalid CIDR"), ("fd00::/64", "invalid CIDR"),
        ("10.0.2.0/26", "prefix length needs to be 1-25"), ("10.0.2.100/26", "prefix length needs to be 1-25"),
        ("10.0.2.0/0", "prefix length needs to be 1-25"),
        ("10.0.2.100/24", "CIDR needs to be a network address like 10.0.2.0/24, not like 10.0.2.100/24"),
    ):
        has(call(lab, f"--cidr={cidr}", pid, "t")[1], reason)


@ours
def slirp_bess_is_refused(lab):
    has(call(lab, "--target-type=bess", lab.scratch / "bess.sock")[1], "--target-type=bess", "is not served")


@case
def slirp_says_what_it_has_set_up(lab):
    path = api_path(lab)
    slirp = Slirp(
        lab, "-c", "-6", "--mtu=9000", "--cidr=10.7.0.0/16", "-a", path, "--outbound-addr=10.9.1.3",
        "--outbound-addr6=fd09:1::3", "--macaddress=02:11:22:33:44:55", "--enable-seccomp",
    )
    check(slirp.exits() == 0, f"ended with {slirp.process.returncode}")
    out = slirp.out.read_text().splitlines()
    begin = out.index("Starting slirp")
    check(set(out[:begin]) == {f"WARNING: Support for {what} is experimental" for what in (
        "IPv6", "--outbound-addr", "--outbound-addr6", "seccomp")}, f"{out}")
    said = dict(line[2:].split(":", 1) for line in out[begin + 1:] if line.startswith("* "))
    check({key: value.strip() for key, value in said.items()} == {
        "MTU": "9000", "Network": "10.7.0.0", "Netmask": "255.255.0.0", "Gateway": "10.7.0.2", "DNS": "10.7.0.3",
        "DHCP begin": "10.7.0.15", "DHCP end": "10.7.0.30", "Recommended IP": "10.7.0.100", "API Socket": path,
        "Outbound IPv4": "10.9.1.3", "Outbound IPv6": "fd09:1::3", "MAC address": "02:11:22:33:44:55",
    }, f"{said}")
    has("\n".join(out), "WARNING: 127.0.0.1:* on the host is accessible as 10.7.0.2")
    lines = slirp.complaints()
    number = lines[0].removeprefix("sent tapfd=").split()[0]
    check(lines[:2] == [f"sent tapfd={number} for tap0", f"received tapfd={number}"] and number.isdigit(), f"{lines}")


@ours
def slirp_says_nothing_more_than_the_original(lab):
    slirp = Slirp(lab, "-c", "--disable-host-loopback")
    check(slirp.exits() == 0, "it failed")
    check([line.split("=")[0] for line in slirp.complaints()] == [
        "sent tapfd", "received tapfd", "exitfd event", "do_slirp is exiting"], f"{slirp.complaints()}")
    check("WARNING" not in slirp.out.read_text(), slirp.out.read_text())


@case
def slirp_old_names_and_too_many_operands_are_warned_of(lab):
    box = lab.container()
    # The original's sandbox takes capabilities.
    options = ["-c", "--no-host-loopback", "--create-sandbox"]
    slirp = Slirp(lab, *options, box=box, target=[box.pid, "tap0"], tap="more", before=[] if ORIGINAL else POWERLESS)
    slirp.exits()
    out = slirp.out.read_text()
    has(out, "WARNING: too many arguments", "WARNING: --no-host-loopback is deprecated", "WARNING: --create-sandbox is deprecated")
    check("accessible" not in out, out)


# The interface


@case
def slirp_configures_the_interface(lab):
    slirp = Slirp(lab, "-c")
    link = json.loads(slirp.within("ip -json addr show"))
    lo, tap = ({key: one[key] for key in ("ifname", "mtu", "flags", "addr_info")} for one in link)
    check("UP" in lo["flags"] and tap["ifname"] == "tap0" and "UP" in tap["flags"] and tap["mtu"] == 1500, f"{link}")
    of4 = [a for a in tap["addr_info"] if a["family"] == "inet"]
    check([(a["local"], a["prefixlen"]) for a in of4] == [(f"{BASE}.100", 24)], f"{link}")
    check(not [a for a in tap["addr_info"] if a["scope"] == "global" and a["family"] == "inet6"], f"{link}")
    routes = json.loads(slirp.within("ip -json route"))
    check([(r["gateway"], r["dev"]) for r in routes if r["dst"] == "default"] == [(f"{BASE}.2", "tap0")], f"{routes}")
    has(slirp.within(f"{CURL} {url(FAR4, 'hello')}"), "hello from afar")


@case
def slirp_without_configure_leaves_it_to_the_caller(lab):
    slirp = Slirp(lab)
    link = json.loads(slirp.within("ip -json link show tap0"))[0]
    check("UP" not in link["flags"], f"{link}")
    out = slirp.within(
        f"ip link set tap0 up && ip addr add {BASE}.77/24 dev tap0 && ip route add default via {BASE}.2 && "
        f"ping -n -c 1 -W 10 {BASE}.2 && {CURL} {url(FAR4, 'hello')}"
    )
    has(out, "1 received", "hello from afar")


@case
def slirp_mtu(lab):
    for mtu in ("68", "1500", "65520", "65521"):
        slirp = Slirp(lab, "-c", f"--mtu={mtu}")
        check(json.loads(slirp.within("ip -json link show tap0"))[0]["mtu"] == int(mtu), mtu)
        what, expected = ("hello", "hello from afar") if mtu == "68" else ("big", lab.big_digest)
        how = "cat" if mtu == "68" else "sha256sum"
        has(slirp.within(f"{CURL} {url(FAR4, what)} | {how}"), expected)
        slirp.exits()
    # As with the original it is the kernel that takes no less.
    failed = Slirp(lab, "-c", "--mtu=67", ready=False)
    check(failed.said == b"" and failed.process.wait(timeout=LIMIT) == 1, "an MTU of 67 was taken")


@case
def slirp_macaddress(lab):
    slirp = Slirp(lab, "-c", "--macaddress=02:aB:22:33:44:55")
    check(json.loads(slirp.within("ip -json link show tap0"))[0]["address"] == "02:ab:22:33:44:55", "another address")
    box = lab.container()
    failed = Slirp(lab, "-c", "--macaddress=01:11:22:33:44:55", box=box, ready=False)
    check(failed.said == b"" and failed.process.wait(timeout=LIMIT) == 1, "a multicast address was taken")


@case
def slirp_cidr_and_dhcp(lab):
    slirp = Slirp(lab, "--cidr=10.7.128.0/17")
    script = lab.scratch / "lease"
    script.write_text("#!/bin/sh\nenv | grep -E '^(ip|subnet|mask|router|dns|mtu)='\n")
    script.chmod(0o755)
    out = slirp.within(f"ip link set tap0 up && udhcpc -f -q -n -i tap0 -s {script} 2>&1")
    lease = dict(line.split("=", 1) for line in out.splitlines() if "=" in line)
    check(lease["subnet"] == "255.255.128.0" and lease["router"] == "10.7.128.2" and lease["dns"] == "10.7.128.3", out)
    last = lease["ip"].split(".")
    check(last[:3] == ["10", "7", "128"] and 15 <= int(last[3]) <= 30, out)
    out = slirp.within(
        f"ip addr add {lease['ip']}/17 dev tap0 && ip route add default via 10.7.128.2 && {CURL} {url(FAR4, 'hello')} && "
        "dig +short @10.7.128.3 files.lab.test A"
    )
    has(out, "hello from afar", FAR4)


@case
def slirp_ipv6_by_router_advertisement(lab):
    slirp = Slirp(lab, "-c", "--enable-ipv6")

    def address():
        of6 = json.loads(slirp.within("ip -json -6 addr show tap0"))
        found = [a for one in of6 for a in one.get("addr_info", ()) if a["scope"] == "global" and not a.get("tentative")]
        return found[0]["local"] if found else None

    check(wait_until(address, "an address").startswith("fd00::"), "the address is elsewhere")
    route = wait_until(lambda: json.loads(slirp.within("ip -json -6 route show default")), "a route")
    check(route[0]["gateway"].startswith("fe80::"), f"{route}")
    out = slirp.within(f"ping -n -c 1 -W 10 fd00::2 && {CURL} {url(FAR6, 'hello')} && dig +short @fd00::3 files.lab.test AAAA")
    has(out, "1 received", "hello from afar", FAR6)


@case
def slirp_joins_a_persistent_tap(lab):
    if lab.without_tun:
        return Skip("there is no TAP")
    box = lab.container()
    lab.within(box, f"ip tuntap add name tap0 mode tap && ip link set tap0 up && ip addr add {BASE}.100/24 dev tap0 && ip route add default via {BASE}.2")
    for _ in range(2):
        slirp = Slirp(lab, "--mtu=65520", box=box)
        has(slirp.within(f"{CURL} {url(FAR4, 'hello')}"), "hello from afar")
        check(slirp.exits() == 0, slirp.err.read_text())
        check("tap0" in lab.within(box, "ip link show tap0"), "it took the TAP with it")


# Which namespace


@case
def slirp_netns_by_path_and_user_namespace(lab):
    box = lab.container()
    netns, userns = f"/proc/{box.pid}/ns/net", f"/proc/{box.pid}/ns/user"
    for options, target in (
        (["--netns-type=pid", f"--userns-path={userns}"], [box.pid]),
        (["--netns-type=path", f"--userns-path={userns}"], [netns]),
    ):
        slirp = Slirp(lab, "-c", *options, box=box, target=target)
        has(slirp.within(f"{CURL} {url(FAR4, 'hello')}"), "hello from afar")
        check(slirp.exits() == 0, slirp.err.read_text())


@case
def slirp_inside_the_user_namespace_already(lab):
    """As Podman calls it: joining fails there, and is not needed."""
    box = lab.container()
    inside = ["nsenter", "-t", box.pid, "-U", "--preserve-credentials", "--"]
    netns = f"/proc/{box.pid}/ns/net"
    for options in ([], [f"--userns-path=/proc/{box.pid}/ns/user"]):
        slirp = Slirp(lab, "-c", "--netns-type=path", *options, box=box, target=[netns], before=inside)
        has(slirp.within(f"{CURL} {url(FAR4, 'hello')}"), "hello from afar")
        check(slirp.exits() == 0, slirp.err.read_text())


# Called with how many words enter the namespace, those words, and what to execute: has that made there which is given to
# the latter as descriptor 99.
OPENER = """
import os, socket, subprocess, sys
count = int(sys.argv[1])
ours, theirs = socket.socketpair()
inside = [*sys.argv[2:2 + count], sys.executable, "-c", INSIDE, str(theirs.fileno())]
subprocess.run(inside, pass_fds=[theirs.fileno()], check=True)
os.dup2(socket.recv_fds(ours, 1, 1)[1][0], 99)
os.execvp(sys.argv[2 + count], sys.argv[2 + count:])
"""
# TUNSETIFF with IFF_TAP and IFF_NO_PI.
INSIDE = """
import fcntl, os, socket, struct, sys
tap = os.open("/dev/net/tun", os.O_RDWR)
fcntl.ioctl(tap, 0x400454CA, struct.pack("16sH22x", b"tap7", 0x1002))
socket.send_fds(socket.socket(fileno=int(sys.argv[1])), [b"x"], [tap])
"""


@ours
def slirp_tapfd(lab):
    if lab.without_tun:
        return Skip("there is no TAP")
    box = lab.container()
    enter = ["nsenter", "-t", box.pid, "-U", "-n", "--preserve-credentials", "--"]
    opener = [sys.executable, "-c", f"INSIDE = {INSIDE!r}\n{OPENER}", len(enter), *enter, *POWERLESS]
    slirp = Slirp(lab, "--netns-type=tapfd", box=box, target=[99], before=opener)
    out = slirp.within(
        f"ip link set tap7 up && ip addr add {BASE}.100/24 dev tap7 && ip route add default via {BASE}.2 && "
        f"{CURL} {url(FAR4, 'hello')}"
    )
    has(out, "hello from afar")
    check(slirp.exits() == 0, slirp.err.read_text())


@case
def slirp_outlives_the_process_it_was_given(lab):
    box = lab.container()
    other = lab.spawn(["nsenter", "-t", box.pid, "-U", "-n", "--preserve-credentials", "--", "sleep", "infinity"])
    wait_until(lambda: lab.link_of(other.pid) == lab.link_of(box.pid), "somebody else inside")
    slirp = Slirp(lab, "-c", box=box)
    box.kill()
    box.wait()
    slirp.box = other
    has(slirp.within(f"{CURL} {url(FAR4, 'hello')}"), "hello from afar")
    slirp.alive()
    check(slirp.exits() == 0, slirp.err.read_text())


# Beginning and end


@case
def slirp_ready_fd_is_one_byte_and_the_end(lab):
    # Slirp reads to the end of the pipe.
    slirp = Slirp(lab, "-c")
    check(slirp.said == b"1", f"{slirp.said}")
    # One that is closed is nobody's.
    box = lab.container()
    process = lab.spawn([*POWERLESS, program(lab), "-c", "-r", "99", box.pid, "tap0"], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    wait_until(lambda: "UP" in lab.within(box, "ip link show tap0 2>&1 || true"), "the interface")
    check(process.poll() is None, "it has ended")


@case
def slirp_exit_fd(lab):
    path = api_path(lab)
    slirp = Slirp(lab, "-c", "-a", path)
    check(Path(path).is_socket(), "no API socket")
    check(slirp.exits() == 0, slirp.err.read_text())
    check(not Path(path).exists(), "the API socket is still there")
    lab.within(slirp.box, "! ip link show tap0 2>/dev/null")

    def with_exit_fd(*words, inherit=()):
        told, tell = os.pipe()
        box = lab.container()
        argv = [*POWERLESS, program(lab), "-c", "-r", tell, *words, box.pid, "tap0"]
        process = lab.spawn(argv, pass_fds=[tell, *inherit], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        os.close(tell)
        with os.fdopen(told, "rb") as reading:
            return process, reading.read()

    # Closed from the start: an event, seen when all is ready.
    process, said = with_exit_fd("-e", "99")
    check((said, process.wait(timeout=LIMIT)) == (b"1", 0), f"{said} {process.returncode}")
    # An error that poll(2) reports: the write end of a pipe that nobody reads.
    read, write = os.pipe()
    os.close(read)
    process, said = with_exit_fd("-e", write, inherit=[write])
    check((said, process.wait(timeout=LIMIT)) == (b"1", 0), f"{said} {process.returncode}")
    os.close(write)
    # What may be read is no event, and a file has none.
    read, write = os.pipe()
    os.write(write, b"something to read")
    file = os.open("/etc/hosts", os.O_RDONLY)
    waiting = [with_exit_fd("-e", fd, inherit=[fd])[0] for fd in (read, file)]
    time.sleep(0.5)
    check([process.poll() for process in waiting] == [None, None], "it has ended")
    os.close(write)
    check(waiting[0].wait(timeout=LIMIT) == 0, "hang-up was not seen")
    check(waiting[1].poll() is None, "a file hung up")
    os.close(read)
    os.close(file)


@case
def slirp_signals(lab):
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        slirp = Slirp(lab, "-c", before=["env", "--default-signal", *POWERLESS])
        slirp.process.send_signal(number)
        check(slirp.process.wait(timeout=LIMIT) == -number, f"{number}: {slirp.process.returncode}")
        lab.within(slirp.box, "! ip link show tap0 2>/dev/null")
    # What the caller ignores, as nohup does, ends nobody.
    slirp = Slirp(lab, "-c", before=["env", "--ignore-signal=HUP,INT", *POWERLESS])
    for number in (signal.SIGHUP, signal.SIGINT):
        slirp.process.send_signal(number)
    has(slirp.within(f"{CURL} {url(FAR4, 'hello')}"), "hello from afar")
    slirp.alive()
    check(slirp.exits() == 0, slirp.err.read_text())
    # As a shell sees it.
    box = lab.container()
    script = f'{program(lab)} -c {box.pid} tap0 >/dev/null 2>&1 & p=$!; until {{ nsenter -t {box.pid} -U -n --preserve-credentials ip link show tap0 | grep -q UP; }} 2>/dev/null; do sleep 0.05; done; kill $p; wait $p; echo $?'
    out, _ = lab.run([*POWERLESS, "bash", "-c", script])
    check(out.strip() == "143", out)


@case
def slirp_killed_leaves_nothing(lab):
    path = api_path(lab)
    slirp = Slirp(lab, "-c", "-a", path)
    port = 8080
    forward(path, proto="tcp", host_port=port, guest_port=80)
    slirp.process.kill()
    slirp.process.wait(timeout=LIMIT)
    wait_until(lambda: "tap0" not in slirp.within("ip -o link"), "the interface to go")
    wait_until(lambda: not lab.listeners("self", port, False), "the listener to go")
    # The same again, with what is left of the socket in the way.
    again = Slirp(lab, "-c", "-a", path, box=slirp.box)
    check(forward(path, proto="tcp", host_port=port, guest_port=80) == 1, "another number")
    check(again.exits() == 0, again.err.read_text())


@case
def slirp_fails_where_there_is_no_namespace(lab):
    gone = lab.container()
    gone.kill()
    gone.wait()
    out, err = call(lab, "-c", gone.pid, "tap0")
    check(err and "Usage" not in out, f"{out}{err}")
    out, err = call(lab, "-c", "--netns-type=path", "/etc/hosts", "tap0")
    check(err, "not a word")
    lab.run(["sh", "-c", 'exec "$@" >/dev/full', "sh", *POWERLESS, program(lab), "--nonsense"], status=1)


# The host, names, sources


@case
def slirp_host_loopback(lab):
    for address in ("127.0.0.1", "::1"):
        lab.serve([sys.executable, HERE / "httpd.py", address, 8001, lab.files], 8001)
    open_to = Slirp(lab, "-c", "-6")
    wait_until(lambda: "fd00" in open_to.within("ip -6 addr show dev tap0 scope global -tentative"), "an IPv6 address")
    for address in (f"{BASE}.2", "fd00::2"):
        has(open_to.within(f"{CURL} {url(address, 'hello', 8001)}"), "hello from afar")
    for name in ("--disable-host-loopback", "--no-host-loopback"):
        shut = Slirp(lab, "-c", "-6", name)
        wait_until(lambda: "fd00" in shut.within("ip -6 addr show dev tap0 scope global -tentative"), "an IPv6 address")
        probe = (
            "import errno,socket,sys\n"
            "s=socket.socket(socket.AF_INET6 if ':' in sys.argv[1] else socket.AF_INET)\n"
            "s.settimeout(10)\n"
            "try: s.connect((sys.argv[1],8001)); print('connected')\n"
            "except OSError as e: print(errno.errorcode.get(e.errno,e))\n"
        )
        for address in (f"{BASE}.2", "fd00::2"):
            out = shut.within(f"{sys.executable} -c \"{probe}\" {address}").strip()
            check(out in ("ENETUNREACH", "EHOSTUNREACH") and (out == "ENETUNREACH" or ":" in address), f"{address}: {out}")
            has(shut.within(f"ping -n -c 1 -W 10 {address}"), "1 received")
        has(shut.within(f"{CURL} {url(FAR4, 'hello')}"), "hello from afar")


@case
def slirp_dns(lab):
    slirp = Slirp(lab, "-c")
    for options in ("", "+tcp"):
        has(slirp.within(f"dig {options} +short @{BASE}.3 files.lab.test A"), FAR4)


@ours
def slirp_disable_dns_drops_the_questions(lab):
    slirp = Slirp(lab, "-c", "--disable-dns")
    # On this host that address is somebody: he must not be asked.
    lab.run(["ip", "addr", "add", f"{BASE}.3/32", "dev", "lo"])
    try:
        lab.dnsmasq(f"{BASE}.3")
        for options in ("+notcp", "+tcp"):
            out = slirp.within(f"dig {options} +tries=1 +time=2 @{BASE}.3 files.lab.test A; true")
            check(FAR4 not in out, out)
    finally:
        lab.run(["ip", "addr", "del", f"{BASE}.3/32", "dev", "lo"])


@case
def slirp_outbound_addresses(lab):
    log = lab.scratch / "outbound.log"
    lab.spawn([*SERVICE, "serve", "::", 9000], lab.far, stdout=open(log, "w"))
    wait_until(lambda: "ready" in log.read_text(), "the service")
    for options, sources4, sources6 in (
        (["--outbound-addr=10.9.1.3", "--outbound-addr6=fd09:1::3"], ["10.9.1.3"], ["fd09:1::3"]),
        # An interface stands for one of its addresses.
        (["--outbound-addr=h0", "--outbound-addr6=h0"], [HOST4, "10.9.1.3"], [HOST6, "fd09:1::3"]),
    ):
        slirp = Slirp(lab, "-c", "-6", *options)
        wait_until(lambda: "fd00" in slirp.within("ip -6 addr show dev tap0 scope global -tentative"), "an IPv6 address")
        for far, sources in ((FAR4, sources4), (FAR6, sources6)):
            say = " ".join(str(word) for word in SERVICE)
            for how in (f"ask {far} 9000 whoami", f"udp {far} 9000 hello"):
                seen = slirp.within(f"{say} {how}").replace("::ffff:", "").split()[0]
                check(seen in sources, f"{how}: seen as {seen}, not {sources}")
    pid = lab.container().pid
    has(call(lab, "--outbound-addr=nobody", pid, "t")[1], "outbound-addr has to be valid ipv4 address or interface name.")


@case
def slirp_broadcasts_go_to_the_host(lab):
    log = lab.scratch / "broadcast.log"
    lab.spawn([*SERVICE, "serve", "127.0.0.1", 9001], stdout=open(log, "w"))
    wait_until(lambda: "ready" in log.read_text(), "the service")
    slirp = Slirp(lab, "-c")
    script = (
        "import socket\n"
        "s=socket.socket(socket.AF_INET,socket.SOCK_DGRAM); s.setsockopt(socket.SOL_SOCKET,socket.SO_BROADCAST,1)\n"
        "s.settimeout(10); s.sendto(b'hello',('255.255.255.255',9001)); print(s.recvfrom(99))\n"
    )
    has(slirp.within(f'{sys.executable} -c "{script}"'), "hello")


@case
def slirp_refused_is_refused_and_nobody_answers_before_the_host(lab):
    slirp = Slirp(lab, "-c")
    out = slirp.within(f"{CURL} {url(FAR4, '', 9)} 2>&1; true")
    check("refused" in out.lower() or "connect to" in out, out)
    script = (
        "import errno,socket,sys,time\n"
        "s=socket.socket(); s.settimeout(30)\n"
        "try: s.connect((sys.argv[1],int(sys.argv[2]))); print('connected')\n"
        "except OSError as e: print(errno.errorcode.get(e.errno,e))\n"
    )
    say = lambda where: slirp.within(f'{sys.executable} -c "{script}" {where}').strip()
    check(say(f"{FAR4} 9") == "ECONNREFUSED", say(f"{FAR4} 9"))


@case
def slirp_iperf3(lab):
    lab.serve(["iperf3", "-s", "-B", "127.0.0.1", "-p", 5201], 5201)
    slirp = Slirp(lab, "-c", "--mtu=65520")
    for options in ("", "-R"):
        out = json.loads(slirp.within(f"iperf3 -J -n 20M {options} -c {BASE}.2 -p 5201"))
        check(out["end"]["sum_received"]["bytes"] >= 20 << 20 or not options, f"{out['end']}")
        check("error" not in out, f"{out.get('error')}")


# The API


@case
def slirp_api_refuses_in_the_originals_words(lab):
    path = api_path(lab)
    slirp = Slirp(lab, "-c", "-a", path)
    good = {"proto": "tcp", "host_addr": "127.0.0.1", "host_port": 8080, "guest_addr": f"{BASE}.100", "guest_port": 80}

    def add(**other):
        return {"execute": "add_hostfwd", "arguments": good | other}

    for said, reason in (
        (b"x", "cannot parse JSON"), (b"", "cannot parse JSON"), (b'{"execute":', "cannot parse JSON"),
        (b"[]", "json_object() failed"), ({}, "no execute found"), ({"execute": 1}, "no execute found"),
        ({"execute": "x"}, "unknown execute"), (b" " * 4096, "too large message"),
        (add(proto="sctp"), "add_hostfwd: bad arguments.proto"), (add(host_addr="x"), "add_hostfwd: bad arguments.host_addr"),
        (add(host_port=0), "add_hostfwd: bad arguments.host_port"), (add(guest_addr="x"), "add_hostfwd: bad arguments.guest_addr"),
        (add(guest_port=0), "add_hostfwd: bad arguments.guest_port"),
        ({"execute": "remove_hostfwd", "arguments": {"id": 7}}, "remove_hostfwd: bad arguments.id"),
        ({"execute": "remove_hostfwd"}, "remove_hostfwd: bad arguments.id"),
    ):
        check(refusal(path, said) == f"bad request: {reason}", f"{said}: {refusal(path, said)}")
    taken = socket.create_server(("127.0.0.1", 0))
    said = add(host_port=taken.getsockname()[1])
    check(refusal(path, said) == "bad request: add_hostfwd: slirp_add_hostfwd failed", refusal(path, said))
    slirp.alive()


@case
def slirp_api_adds_lists_and_removes(lab):
    path = api_path(lab)
    slirp = Slirp(lab, "-c", "-a", path)
    service(slirp, 80)
    check(forward(path, proto="tcp", host_addr="0.0.0.0", host_port=8080, guest_addr=f"{BASE}.100", guest_port=80) == 1, "id")
    check(forward(path, proto="udp", host_addr="", host_port=8080, guest_addr="", guest_port=80) == 2, "id")
    check(forward(path, proto="tcp", host_port=8081, guest_port=80) == 3, "id")
    entry = {"host_addr": "0.0.0.0", "host_port": 8080, "guest_addr": f"{BASE}.100", "guest_port": 80}
    expected = [{"id": 1, "proto": "tcp"} | entry, {"id": 2, "proto": "udp"} | entry,
                {"id": 3, "proto": "tcp"} | entry | {"host_port": 8081}]
    for newline in (b"", b"\n"):
        for close in (True, False):
            answer = raw(path, json.dumps(LIST).encode() + newline, close)
            check(answer["entries"] == expected, f"{answer}")
            check(ORIGINAL or answer["return"] == {"entries": expected}, f"{answer}")
    # Its own address, but for the loopback's clients.
    for address, ns, client in ((HOST4, lab.far, FAR4), ("127.0.0.1", None, f"{BASE}.2")):
        for port in (8080, 8081):
            seen = ask(lab, address, port, "whoami", ns).replace("::ffff:", "").split()[0]
            check(seen == client, f"{address}:{port} is seen as {seen}")
        seen = [line.split()[0].replace("::ffff:", "") for line in udp(lab, address, 8080, "one", "two", ns=ns)]
        check(seen == [client] * 2, f"{address} over UDP: {seen}")
    check(request(path, "remove_hostfwd", id=1) == {"return": {}}, "not removed")
    check([one["id"] for one in raw(path, json.dumps(LIST).encode())["entries"]] == [2, 3], "still listed")
    socket.create_server(("0.0.0.0", 8080)).close()
    check(forward(path, proto="tcp", host_port=8080, guest_port=80) == 4, "a number was given twice")
    check(ask(lab, HOST4, 8080, "digest 3000000", lab.far) == "same end", "bytes were lost")
    check(slirp.exits() == 0, slirp.err.read_text())
    for port in (8080, 8081):
        socket.create_server(("0.0.0.0", port)).close()


@ours
def slirp_api_takes_ipv6_and_other_addresses_inside(lab):
    path = api_path(lab)
    slirp = Slirp(lab, "-c", "-6", "-a", path)
    slirp.within(f"ip addr add {BASE}.50/24 dev tap0")
    wait_until(lambda: "fd00" in slirp.within("ip -6 addr show dev tap0 scope global -tentative"), "an IPv6 address")
    service(slirp, 80)
    own6 = json.loads(slirp.within("ip -json -6 addr show dev tap0 scope global"))[0]["addr_info"][0]["local"]
    forward(path, proto="tcp", host_addr="::", host_port=8080, guest_addr=own6, guest_port=80)
    forward(path, proto="tcp", host_addr="::1", host_port=8081, guest_addr=own6, guest_port=80)
    forward(path, proto="tcp", host_port=8082, guest_addr=f"{BASE}.50", guest_port=80)
    for address, port, ns, client in (
        (HOST6, 8080, lab.far, FAR6), ("::1", 8080, None, "fd00::2"), ("::1", 8081, None, "fd00::2"),
    ):
        said = wait_until(lambda: (lambda s: s if s != "refused" else None)(ask(lab, address, port, "whoami", ns)), "an answer")
        check(said.split()[0] == client, f"{address} {port}: {said}")
    said = ask(lab, HOST4, 8082, "whoami", lab.far).replace("::ffff:", "")
    check(f"{BASE}.50" in said and said.split()[0] == FAR4, said)


@ours
def slirp_api_serves_others_while_one_says_nothing(lab):
    path = api_path(lab)
    Slirp(lab, "-c", "-a", path)
    silent = []
    for _ in range(20):
        client = socket.socket(socket.AF_UNIX)
        client.connect(path)
        silent.append(client)
    silent[1].sendall(b'{"execute":')
    check(raw(path, json.dumps(LIST).encode())["entries"] == [], "no answer")
    # Several at once, one of which asks for what kills the original.
    check(refusal(path, {"execute": "add_hostfwd"}) == "bad request: add_hostfwd: bad arguments.proto", "another reason")
    check(refusal(path, b"x" * 100_000) == "bad request: too large message", "another reason")
    silent[1].sendall(b'"list_hostfwd"}')
    silent[1].settimeout(LIMIT)
    check(b"entries" in silent[1].recv(4096), "one that is slow has no answer")
    silent[0].settimeout(LIMIT)
    check(b"cannot parse JSON" in silent[0].recv(4096), "one that is silent is not closed")


@ours
def slirp_forwards_outlive_the_gateway(lab):
    path = api_path(lab)
    slirp = Slirp(lab, "-c", "-a", path)
    service(slirp, 80)
    number = forward(path, proto="tcp", host_addr="0.0.0.0", host_port=8080, guest_port=80)
    children = Path(f"/proc/{slirp.process.pid}/task/{slirp.process.pid}/children").read_text().split()
    gateways = [pid for pid in children if b"gateway" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    check(len(gateways) == 1, f"gateways: {gateways}")
    os.kill(int(gateways[0]), signal.SIGKILL)
    wait_until(lambda: ask(lab, HOST4, 8080, "whoami", lab.far).split()[0].replace("::ffff:", "") == FAR4, "an answer")
    check([one["id"] for one in raw(path, json.dumps(LIST).encode())["entries"]] == [number], "it is not listed")
    check(request(path, "remove_hostfwd", id=number) == {"return": {}}, "not removed")
    check(slirp.exits() == 0, slirp.err.read_text())


@case
def slirp_api_socket_replaces_what_is_there_and_has_a_short_path(lab):
    path = api_path(lab)
    Path(path).unlink(missing_ok=True)
    Path(path).write_text("in the way")
    Slirp(lab, "-c", "-a", path)
    check(Path(path).is_socket() and raw(path, json.dumps(LIST).encode())["entries"] == [], "no API")
    if not ORIGINAL:
        box = lab.container()
        failed = Slirp(lab, "-c", "-a", f"{lab.scratch}/{'x' * 120}", box=box, ready=False)
        check(failed.said == b"" and failed.process.wait(timeout=LIMIT) == 1, "a path that is too long was taken")
        lab.within(box, "! ip link show tap0 2>/dev/null")


# Confinement


def fields(pid):
    return dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())


@ours
def slirp_sandbox_keeps_one_capability(lab):
    """Called with every capability, as Podman does inside its user namespace; and asked for a privileged port then."""
    box = lab.container()
    path = api_path(lab)
    lab.sysctl("net/ipv4/ip_unprivileged_port_start", "1024")
    try:
        slirp = Slirp(
            lab, "-c", "--enable-sandbox", "--enable-seccomp", "-a", path, box=box, before=["setpriv", "--"]
        )
        has_now = fields(slirp.process.pid)
        for name in ("CapEff", "CapPrm", "CapBnd"):
            # And CAP_SETFCAP, without which root's next gateway could not map itself into a namespace of its own.
            check(int(has_now[name], 16) & ~(1 << 31) == 1 << 10, f"{name} {has_now[name]}")
        for name in ("CapInh", "CapAmb"):
            check(int(has_now[name], 16) == 0, f"{name} {has_now[name]}")
        check(has_now["NoNewPrivs"].strip() == "1", "it may gain privileges")
        service(slirp, 80)
        forward(path, proto="tcp", host_port=80, guest_port=80)
        check(ask(lab, HOST4, 80, "whoami", lab.far).split()[0].replace("::ffff:", "") == FAR4, "another client")
        # Another gateway is started by a supervisor that may do nothing else any more.
        children = Path(f"/proc/{slirp.process.pid}/task/{slirp.process.pid}/children").read_text().split()
        [gateway] = [pid for pid in children if b"gateway" in Path(f"/proc/{pid}/cmdline").read_bytes()]
        check(int(fields(gateway)["CapBnd"], 16) & ~(1 << 10) == 0 or int(fields(gateway)["CapEff"], 16) == 0, "caps")
        os.kill(int(gateway), signal.SIGKILL)
        wait_until(lambda: ask(lab, HOST4, 80, "whoami", lab.far).split()[0].replace("::ffff:", "") == FAR4, "an answer")
        has(slirp.within(f"{CURL} {url(FAR4, 'hello')}"), "hello from afar")
        check(slirp.exits() == 0, slirp.err.read_text())
    finally:
        lab.sysctl("net/ipv4/ip_unprivileged_port_start", "0")


@ours
def slirp_sandbox_of_a_user_without_capabilities(lab):
    slirp = Slirp(lab, "-c", "--enable-sandbox", "--enable-seccomp")
    check(fields(slirp.process.pid)["NoNewPrivs"].strip() == "1", "it may gain privileges")
    has(slirp.within(f"{CURL} {url(FAR4, 'hello')}"), "hello from afar")
    check(slirp.exits() == 0, slirp.err.read_text())
