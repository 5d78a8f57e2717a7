"""The cases about the command line of pasta: its three forms, and the part that it plays under Podman.

The sandbox has the host's own addresses here, so the same world looks otherwise from inside: 10.9.1.2 and 10.9.1.3 are
its own, 10.9.1.1 leads to the host's loopback where the router stands outside, and everything else leads where it leads
on the host.
"""
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from cases import CURL, case, has, url
from lab import FAR4, FAR6, HERE, HOST4, HOST6, LIMIT, Skip, check, wait_until
from ports import SERVICE, ask, udp

ROUTER4, ROUTER6 = "10.9.1.1", "fd09:1::1"
OTHER4, OTHER6 = "10.9.1.3", "fd09:1::3"
SECOND4, SECOND6 = "10.9.4.2", "fd09:4::2"
FORWARD4, FORWARD6 = "169.254.1.1", "fd09:99::1"
GUEST4, GUEST6 = "169.254.1.2", "fd09:99::2"
QUIET = ["-t", "none", "-u", "none", "-T", "none", "-U", "none"]


def pasta(lab):
    """The program under that name."""
    link = lab.scratch / "bin" / "pasta"
    if not link.exists():
        link.parent.mkdir(exist_ok=True)
        link.symlink_to(lab.binary)
    return str(link)


def argv(lab, *words):
    """Its argv, as a user without capabilities here."""
    return [*lab.as_user(), pasta(lab), *words]


def run(lab, *words, status=0, **more):
    return lab.run(argv(lab, *words), status=status, **more)


def pings(lab):
    """Ping sockets are for everybody."""
    lab.sysctl("net/ipv4/ping_group_range", "0 0")


def inside(lab, script, *options, status=0, limit=LIMIT):
    """A script in a sandbox of pasta's; its standard output."""
    return run(lab, "--config-net", *QUIET, *options, "--", "sh", "-c", script, status=status, limit=limit)[0]


def but_the_link(lab, text):
    """What was said, without the line about a link that is no TAP, where there is none."""
    lines = text.splitlines(keepends=True)
    return "".join(line for line in lines if not (lab.without_tun and "/dev/net/tun" in line))


class Podman:
    """What Podman is to pasta: root of a user and mount namespace of its own, which makes network namespaces there."""

    def __init__(self, lab):
        self.lab, self.number = lab, 0
        self.keeper = lab.spawn([*lab.as_user(), "unshare", "--user", "--map-root-user", "--mount", "sleep", "infinity"])
        user = lab.link_of(lab.user.pid, "user")
        wait_until(lambda: lab.link_of(self.keeper.pid, "user") not in (None, user), "Podman's user namespace")
        wait_until(lambda: Path(f"/proc/{self.keeper.pid}/comm").read_text() == "sleep\n", "Podman")
        self.enter = ["nsenter", "-t", str(self.keeper.pid), "-U", "-m", "--preserve-credentials", "--"]
        self.directory = lab.scratch / f"netns-{self.keeper.pid}"
        self.directory.mkdir()

    def make(self):
        """A network namespace, by its path."""
        self.number += 1
        path = self.directory / f"netns-{self.number}"
        self.lab.run([*self.enter, "sh", "-c", f"touch {path} && exec unshare --net={path} true"])
        return str(path)

    def argv(self, path, *words):
        """As Podman has it: what it was told, then its own."""
        return [*self.enter, pasta(self.lab), "--config-net", *words, "--netns", str(path)]

    def setup(self, path, *words, limit=30):
        """Run it as Podman does: both outputs are one, and are read to their end. (Status, output)."""
        process = self.lab.spawn(self.argv(path, *words), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        try:
            out, _ = process.communicate(timeout=limit)
        except subprocess.TimeoutExpired:
            raise AssertionError("its output did not end") from None
        finally:
            self.lab.passing = [p for p in self.lab.passing if p is not process]
        return process.returncode, out

    def works(self, path, *words):
        status, out = self.setup(path, "--quiet", *words)
        check((status, but_the_link(self.lab, out)) == (0, ""), f"{words}: {status}, {out!r}")

    def within(self, path, script, status=0, limit=LIMIT):
        """A script in a container with this network; its standard output."""
        argv = [*self.enter, "nsenter", f"--net={path}", "--", "sh", "-c", script]
        return self.lab.run(argv, status=status, limit=limit)[0]

    def serve(self, path, *words):
        """A service in a container."""
        log = open(self.lab.scratch / f"service-{self.keeper.pid}-{self.number}.log", "w+")
        process = self.lab.spawn([*self.enter, "nsenter", f"--net={path}", "--", *SERVICE, "serve", *words], stdout=log, stderr=log)
        wait_until(lambda: "ready" in Path(log.name).read_text(), "the service")
        return process

    def remove(self, path):
        """Nobody calls at the end: the namespace goes."""
        self.lab.run([*self.enter, "sh", "-c", f"umount -l {path}; rm {path}"])


def helpers():
    """Processes of pasta's, by PID, with their command lines."""
    found = {}
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = entry.read_bytes().split(b"\0")
        except OSError:
            continue
        if words and words[0].endswith(b"/bin/pasta"):
            found[int(entry.parent.name)] = words
    return found


def leader(before):
    """Of the processes that are there since then, the one that serves."""
    leaders = [pid for pid in set(helpers()) - before if os.getsid(pid) == pid]
    check(len(leaders) == 1, f"who serves: {leaders}")
    return leaders[0]


def gone(pid):
    """Has the process ended? One that nobody waits for counts as ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1].startswith("Z")
    except OSError:
        return True


def addresses(text):
    """Of `ip -json address`: by interface, without link-local ones."""
    return {
        link["ifname"]: [f"{a['local']}/{a['prefixlen']}" for a in link["addr_info"] if not a["local"].startswith("fe80")]
        for link in json.loads(text)
    }


def link_local(lab, device, ns=None):
    links = json.loads(lab.run(["ip", "-json", "-6", "address", "show", "dev", device], ns)[0])
    all = [a["local"] for link in links for a in link.get("addr_info", []) if a.get("local", "").startswith("fe80")]
    check(all, f"{device} has no link-local address")
    return all[0]


# The three forms


@case
def pasta_with_a_command_ends_as_the_command_does(lab):
    run(lab, *QUIET, "--", "sh", "-c", "exit 7", status=7)
    run(lab, *QUIET, "sh", "-c", "kill -TERM $$", status=128 + 15)
    _, err = run(lab, *QUIET, "--", "/nowhere", status=1)
    has(err, "/nowhere")
    # Without a command: $SHELL, as a login shell.
    out, _ = run(lab, "-q", *QUIET, input="echo $0; exit 4\n", status=4, env=lab.environment | {"SHELL": "/bin/sh"})
    check(out == "-/bin/sh\n", out)
    # A number is a process, two words are a command.
    _, err = run(lab, *QUIET, "999999999", status=1)
    has(err, "999999999")


@case
def pasta_with_a_command_has_new_namespaces_and_the_hosts_files(lab):
    script = "id -u; for n in user net ipc uts pid mnt; do readlink /proc/self/ns/$n; done; hostname; cat /etc/resolv.conf; echo PIDS; ls -d /proc/[0-9]*"
    lines = inside(lab, script).splitlines()
    check(lines[0] == "0", "it is root inside")
    for kind, link in zip(("user", "net", "ipc", "uts", "pid", "mnt"), lines[1:7]):
        check(link != os.readlink(f"/proc/self/ns/{kind}"), f"{kind} is the host's")
    check(lines[7] == "pasta-" + socket.gethostname(), lines[7])
    at = lines.index("PIDS")
    check("\n".join(lines[8:at]) + "\n" == Path("/etc/resolv.conf").read_text(), "resolv.conf is not the host's")
    check(len(lines) - at < 8, f"it sees other processes: {lines[at:]}")
    # A file that the command writes is the host's.
    mark = lab.scratch / "mark"
    inside(lab, f"echo it >{mark}")
    check(mark.read_text() == "it\n", "the file was not written")
    # Without a PID namespace of its own the processes are the host's.
    out = inside(lab, "readlink /proc/self/ns/pid", "--no-pidns")
    check(out.strip() == os.readlink("/proc/self/ns/pid"), out)


@case
def pasta_for_a_process(lab):
    container = lab.container()
    process = lab.spawn([pasta(lab), "--config-net", "-q", *QUIET, str(container.pid)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    out, _ = process.communicate(timeout=30)
    check((process.returncode, but_the_link(lab, out)) == (0, ""), f"{process.returncode} {out!r}")
    check(lab.within(container, f"{CURL} {url(FAR4, 'hello')}") == "hello from afar\n", "HTTP")
    pids = helpers()
    check(pids, "nobody serves it")
    container.kill()
    container.wait()
    wait_until(lambda: all(gone(pid) for pid in pids), "the end with the process", 10)


@case
def pasta_for_a_namespace_by_name(lab):
    podman = Podman(lab)
    lab.run([*podman.enter, "sh", "-c", "mount -t tmpfs none /run && mkdir /run/netns && touch /run/netns/blue && unshare --net=/run/netns/blue true"])
    podman.works("blue", *QUIET)
    check(podman.within("/run/netns/blue", f"{CURL} {url(FAR4, 'hello')}") == "hello from afar\n", "HTTP")
    _, err = lab.run([*podman.enter, pasta(lab), "--netns", "/run/netns/blue", "4711"], status=1)
    has(err, "Both --netns and PID or command given")
    _, err = lab.run([*podman.enter, pasta(lab), "--netns", "/run/netns/red"], status=1)
    has(err, "/run/netns/red")
    podman.remove("/run/netns/blue")


@case
def pasta_with_a_user_namespace_by_path(lab):
    container = lab.container()
    words = ["-q", "--config-net", *QUIET, "--userns", f"/proc/{container.pid}/ns/user", "--netns", f"/proc/{container.pid}/ns/net"]
    lab.run([pasta(lab), *words])
    check(lab.within(container, f"{CURL} {url(FAR6, 'hello')}") == "hello from afar\n", "HTTP")
    # For paths under /proc the end is that of the process.
    pids = helpers()
    container.kill()
    container.wait()
    wait_until(lambda: all(gone(pid) for pid in pids), "the end with the process", 10)


# What is typed and said


@case
def pasta_version_help_and_mistakes(lab):
    out, err = run(lab, "--version")
    check(re.match(r"pasta \S+\n", out) and not err, out)
    for word in ("--help", "-h"):
        out, err = run(lab, word)
        check(out.startswith("Usage: ") and not err, err)
        has(out, "--config-net", "--map-guest-addr", "--map-host-loopback", "--dns-forward", "--no-splice", "--host-lo-to-ns-lo", "--runas")
    _, err = run(lab, "--foo", status=1)
    check(f"{pasta(lab)}: unrecognized option '--foo'\n" in err and "Usage: " in err, err)
    _, err = run(lab, "-Z", status=1)
    has(err, "invalid option -- 'Z'", "Usage: ")
    _, err = run(lab, "--mtu", status=1)
    has(err, "option '--mtu' requires an argument")
    for words, text in (
        (["-m", "70000"], "MTU 70000 too large (max 65520)"),
        (["-m", "67", "--config-net"], ", MTU 67 on interface 2: Invalid argument"),
        (["-a", "127.0.0.1"], "Invalid address: 127.0.0.1"),
        (["-n", "33"], "Invalid prefix length: 33"),
        (["-g", "x"], "Invalid gateway address: x"),
        (["-i", "nowhere0"], "Invalid interface name nowhere0"),
        (["-M", "1:2"], "Invalid MAC address: 1:2"),
        (["--runas", "nobody-at-all"], "Invalid --runas option: nobody-at-all"),
        (["--stats", "1"], "Can't display statistics if not running in foreground"),
        (["-P", "/nowhere/at/all"], "Couldn't open PID file /nowhere/at/all: No such file or directory"),
    ):
        out, err = run(lab, *words, "--", "echo", "ran", status=1)
        check(text in err and not out, f"{words}: {out}{err}")
    # Accepted and without effect, or said not to be served.
    inside(lab, "true", "-e", "--chroot-fallback", "--trace", "-q")
    _, err = run(lab, *QUIET, "-c", f"{lab.scratch}/pesto", "--", "true")
    has(err, "pesto")


@case
def pasta_becomes_nobody_else_without_privilege(lab):
    # Who it is already; and whom only root could become.
    check(inside(lab, "id -u", "--runas", "1000") == "0\n", "--runas")
    _, err = run(lab, "--runas", "1:1", "--", "echo", "ran", status=1)
    has(err, "uid 1, gid 1")


@case
def pasta_says_what_it_chose_unless_it_is_to_be_quiet(lab):
    container = lab.container()
    _, err = lab.run([pasta(lab), "--config-net", *QUIET, str(container.pid)])
    has(err, "Template interface: h0 (IPv4), h0 (IPv6)", f"assign: {HOST4}", f"router: {ROUTER4}", "host: 9a:55:9a:55:9a:55")


# The interface inside


@case
def pasta_config_net_copies_the_hosts_interface(lab):
    out = inside(lab, "ip -json address; echo; ip -json link show h0; echo; ip route; ip -6 route")
    first, _, rest = out.partition("\n\n")
    link, _, routes = rest.partition("\n\n")
    check(sorted(addresses(first)["h0"]) == sorted([f"{HOST4}/24", f"{OTHER4}/24", f"{HOST6}/64", f"{OTHER6}/64"]), first)
    check(addresses(first)["h0"][0] == f"{HOST4}/24", "the first address")
    check("tentative" not in first, "duplicate address detection")
    (link,) = json.loads(link)
    check(link["mtu"] == 65520 and "UP" in link["flags"], link)
    has(routes, f"default via {ROUTER4} dev h0", "10.9.1.0/24 dev h0", f"default via {ROUTER6} dev h0", "fd09:1::/64 dev h0")
    # One address, and the default route alone.
    lab.run(["ip", "route", "add", "198.51.100.0/24", "via", "10.9.1.9", "dev", "h0"])
    try:
        has(inside(lab, "ip route"), "198.51.100.0/24 via 10.9.1.9 dev h0")
        out = inside(lab, "ip -json address; echo; ip route", "--no-copy-addrs", "--no-copy-routes")
        first, _, routes = out.partition("\n\n")
        v4, v6 = addresses(first)["h0"]
        check(v4 == f"{HOST4}/24" and v6 in (f"{HOST6}/64", f"{OTHER6}/64"), first)
        check("198.51.100" not in routes, routes)
    finally:
        lab.run(["ip", "route", "del", "198.51.100.0/24"])


@case
def pasta_without_config_net_leaves_the_interface_down(lab):
    out, _ = run(lab, *QUIET, "--", "ip", "-json", "address")
    links = {link["ifname"]: link for link in json.loads(out)}
    check("UP" not in links["h0"]["flags"] and not links["h0"]["addr_info"], links)
    check("UP" in links["lo"]["flags"], "lo is down")


@case
def pasta_addresses_that_were_given(lab):
    out = inside(lab, "ip -json address; echo; ip route; ip -6 route", "-a", "192.0.2.7", "-n", "255.255.255.192", "-g", "192.0.2.1", "-a", "2001:db8::7", "-g", "fe80::77", "-I", "wan0", "-m", "1400", "--ns-mac-addr", "02:00:00:00:00:01", "--ns-mac-addr", "02:00:00:00:00:02")
    first, _, routes = out.partition("\n\n")
    check(addresses(first)["wan0"] == ["192.0.2.7/26", "2001:db8::7/64"], first)
    has(first, "02:00:00:00:00:02", '"mtu":1400')
    has(routes, "default via 192.0.2.1 dev wan0", "default via fe80::77 dev wan0")
    out = inside(lab, "ip -json address", "-a", "192.0.2.7/28", "-a", "2001:db8::7/60", "-g", "192.0.2.1")
    check(addresses(out)["h0"] == ["192.0.2.7/28", "2001:db8::7/60"], out)
    check(addresses(inside(lab, "ip -json address", "-n", "30"))["h0"][0] == f"{HOST4}/30", "-n alone")
    check(addresses(inside(lab, "ip -json address", "-4"))["h0"] == [f"{HOST4}/24", f"{OTHER4}/24"], "-4")
    check(sorted(addresses(inside(lab, "ip -json address", "-6"))["h0"]) == [f"{HOST6}/64", f"{OTHER6}/64"], "-6")
    # The second uplink, by name; and as the one that sockets are bound to.
    for option in ("-i", "--interface", "--outbound-if4"):
        check(addresses(inside(lab, "ip -json address", option, "h1", "-4"))["h1"] == [f"{SECOND4}/24"], option)
    # An MTU of 0 is the kernel's, 1500.
    has(inside(lab, "ip link show h0", "-m", "0"), "mtu 1500")
    # A gateway that is not on the link's subnet.
    has(inside(lab, f"ip route; {CURL} {url(FAR4, 'hello')}", "-a", "192.0.2.7/32", "-g", "172.31.1.1"), "default via 172.31.1.1", "hello")


@case
def pasta_our_mac_is_the_gateways(lab):
    script = f"{CURL} {url(FAR4, 'hello')}; ip neigh show {ROUTER4}"
    has(inside(lab, script), "9a:55:9a:55:9a:55")
    has(inside(lab, script, "-M", "02:aa:00:00:00:01"), "02:aa:00:00:00:01")


@case
def pasta_in_local_mode(lab):
    # A host that has lo and nothing else.
    bare = lab.spawn(["unshare", "--net", "sleep", "infinity"])
    own = os.readlink("/proc/self/ns/net")
    wait_until(lambda: lab.link_of(bare.pid) not in (None, own), "a bare host")
    lab.run(["ip", "link", "set", "lo", "up"], bare)
    lab.run(["sh", "-c", "echo 0 >/proc/sys/net/ipv4/ip_unprivileged_port_start"], bare)
    lab.serve([*SERVICE, "serve", "::", "8099"], 8099, bare)
    script = f"ip -json address; echo; ip route; ip -6 route; {shlex.join(map(str, [*SERVICE, 'ask', '169.254.2.2', '8099', 'whoami']))}; {shlex.join(map(str, [*SERVICE, 'ask', 'fe80::1%tap0', '8099', 'whoami']))}"
    out, _ = lab.run(argv(lab, "--config-net", *QUIET, "--", "sh", "-c", script), bare)
    first, _, rest = out.partition("\n\n")
    check(addresses(first)["tap0"] == ["169.254.2.1/16"], first)
    has(rest, "default via 169.254.2.2 dev tap0", "default via fe80::1 dev tap0", "127.0.0.1", "::1")
    # One family only, and an address without a subnet behind a gateway elsewhere.
    lab.run(["sh", "-c", "ip link add d0 type veth peer name d1 && ip link set d1 up && ip link set d0 up && ip addr add 203.0.113.5/32 dev d0 && ip route add 172.31.1.1 dev d0 && ip route add default via 172.31.1.1"], bare)
    out, _ = lab.run(argv(lab, "--config-net", *QUIET, "--", "sh", "-c", "ip -json address; echo; ip route; ip -6 route"), bare)
    first, _, rest = out.partition("\n\n")
    check(addresses(first)["d0"] == ["203.0.113.5/32"], first)
    has(rest, "default via 172.31.1.1 dev d0", "172.31.1.1 dev d0 proto static scope link", "default via fe80::1 dev d0")


@case
def pasta_where_the_default_route_has_several_hops(lab):
    lab.run(["sh", "-c", "ip route del default via 10.9.1.1 && ip route add default nexthop via 10.9.1.1 dev h0 weight 1 nexthop via 10.9.4.1 dev h1 weight 5"])
    try:
        out = inside(lab, "ip -json address; echo; ip route", "-4")
    finally:
        lab.run(["sh", "-c", "ip route del default; ip route add default via 10.9.1.1 dev h0; ip route show default | grep -q 'metric 900' || ip route add default via 10.9.4.1 dev h1 metric 900"])
    first, _, routes = out.partition("\n\n")
    check(addresses(first)["h1"] == [f"{SECOND4}/24"], first)
    has(routes, "default via 10.9.4.1 dev h1")


# Where addresses lead


@case
def pasta_other_machines_are_reached(lab):
    pings(lab)
    lab.serve([*SERVICE, "serve", "::", "8101"], 8101, lab.far)
    lab.serve([*SERVICE, "serve", "::", "8102"], 8102, lab.r1)
    talk = shlex.join(map(str, SERVICE))
    for far, near in ((FAR4, "10.9.2.1"), (FAR6, "fd09:2::1")):
        script = f"{CURL} {url(far, 'hello')}; {talk} udp {far} 8101 datagram; ping -n -c 2 -W 5 {far}; {talk} ask {near} 8102 whoami"
        out = inside(lab, script)
        has(out, "hello from afar", " datagram", " 0% packet loss", " end")
        # They see an address of the host's, which is one of the sandbox's.
        own = (HOST4, OTHER4) if "." in far else (HOST6, OTHER6)
        seen = [line.split()[0] for line in out.replace("::ffff:", "").splitlines() if line.endswith(("datagram", "end"))]
        check(len(seen) == 2 and all(one in own for one in seen), out)
        # Where nobody listens: an ICMP error.
        has(inside(lab, f"{talk} udp {far} 9 x"), "refused")
    # Neighbors on the host's own subnet, too, where the gateway's address is not mapped.
    for router in (ROUTER4, ROUTER6):
        out = inside(lab, f"{talk} ask {router} 8102 whoami; {talk} udp {router} 8102 x; ping -n -c 1 -W 5 {router}", "--no-map-gw")
        has(out, "end", " x", "0% packet loss")


@case
def pasta_the_host_itself_is_reached(lab):
    pings(lab)
    lab.serve([*SERVICE, "serve", "::", "8103"], 8103)
    talk = shlex.join(map(str, SERVICE))
    # The gateway's address is the host's loopback.
    for router, loopback in ((ROUTER4, "127.0.0.1"), (ROUTER6, "::1")):
        out = inside(lab, f"{talk} ask {router} 8103 whoami; {talk} udp {router} 8103 x; ping -n -c 1 -W 5 {router}").replace("::ffff:", "")
        lines = out.splitlines()
        check(lines[0].split()[0] == loopback and lines[0].split()[2] == loopback and lines[1].split()[0] == loopback, out)
        has(out, "0% packet loss")
        # Another address is.
        mapped = "192.0.2.99" if "." in router else "2001:db8::99"
        out = inside(lab, f"{talk} ask {mapped} 8103 whoami", "--map-host-loopback", mapped).replace("::ffff:", "")
        check(out.split()[0] == loopback, out)
        # None is: the router is the router.
        out = inside(lab, f"{talk} ask {router} 8103 whoami", "--map-host-loopback", "none")
        check(out.strip() == "refused", out)
    # The host's copy of the sandbox's address, and an address that only the host has.
    for guest, own, second in ((GUEST4, HOST4, SECOND4), (GUEST6, HOST6, SECOND6)):
        out = inside(lab, f"{talk} ask {guest} 8103 whoami; {talk} udp {guest} 8103 x; ping -n -c 1 -W 5 {guest}; {talk} ask {second} 8103 whoami", "--map-guest-addr", guest).replace("::ffff:", "")
        lines = out.splitlines()
        check(lines[0].split()[2] in (own, OTHER6), out)
        has(lines[1], " x")
        has(out, "0% packet loss")
        check(lines[-1].split()[2] == second, out)
        out = inside(lab, f"timeout 5 {talk} ask {guest} 8103 whoami", "--map-guest-addr", guest, "--map-guest-addr", "none", status=None)
        check(own not in out, out)


@case
def pasta_source_addresses_and_interfaces(lab):
    lab.serve([*SERVICE, "serve", "::", "8104"], 8104, lab.r1)
    talk = shlex.join(map(str, SERVICE))
    out = inside(lab, f"{talk} ask 10.9.2.1 8104 whoami; {talk} ask fd09:2::1 8104 whoami", "-o", OTHER4, "-o", OTHER6).replace("::ffff:", "")
    check([line.split()[0] for line in out.splitlines()] == [OTHER4, OTHER6], out)
    out = inside(lab, f"{talk} ask 10.9.2.1 8104 whoami; {talk} ask fd09:2::1 8104 whoami", "-i", "h0", "--outbound-if4", "h1").replace("::ffff:", "")
    first, second = [line.split()[0] for line in out.splitlines()]
    check(first == SECOND4 and second in (HOST6, OTHER6), out)
    _, err = run(lab, "--outbound-if6", "nowhere0", "--", "true", status=1)
    has(err, "External interface not usable")


# Names


@case
def pasta_dns_forward(lab):
    for address in (FORWARD4, FORWARD6):
        script = f"dig +short @{address} far.lab.test; dig +tcp +short @{address} far.lab.test"
        out = inside(lab, script, "--dns-forward", address)
        check(out == f"{FAR4}\n{FAR4}\n", out)
    # A resolver that is not the host's.
    lab.dnsmasq(SECOND4, "no-resolv\nno-hosts\nbind-interfaces\ncache-size=0\npid-file\naddress=/far.lab.test/192.0.2.111")
    script = f"dig +short @{FORWARD4} far.lab.test"
    check(inside(lab, script, "--dns-forward", FORWARD4, "--dns-host", SECOND4) == "192.0.2.111\n", "--dns-host")
    # The host's resolver is on its loopback: the gateway's address is it.
    check(inside(lab, f"dig +short @{ROUTER4} far.lab.test; dig +tcp +short @{ROUTER4} far.lab.test") == f"{FAR4}\n{FAR4}\n", "the gateway")
    # Port 853, TCP and UDP.
    lab.serve([*SERVICE, "serve", "127.0.0.1", "853"], 853)
    talk = shlex.join(map(str, SERVICE))
    out = inside(lab, f"{talk} ask {FORWARD4} 853 whoami; {talk} udp {FORWARD4} 853 x", "--dns-forward", FORWARD4)
    has(out, "127.0.0.1", " end", " x")


LEASE = """#!/bin/sh
[ "$1" = bound ] && echo "ip=$ip mask=$mask router=$router dns=$dns search=$search mtu=$mtu hostname=$hostname"
exit 0
"""


def lease(lab, *options):
    """What DHCP gives, without --config-net."""
    script = lab.scratch / "lease.sh"
    script.write_text(LEASE)
    script.chmod(0o755)
    command = f"ip link set h0 up; udhcpc -i h0 -q -n -f -t 3 -T 1 -O mtu -O search -O hostname -s {script} 2>/dev/null"
    return run(lab, *QUIET, *options, "--", "sh", "-c", command, status=None)[0].strip()


@case
def pasta_announces_by_dhcp(lab):
    got = lease(lab)
    has(got, f"ip={HOST4} mask=", f"router={ROUTER4} ", "dns= ", "search= ", "mtu=65520")
    got = lease(lab, "--dhcp-dns", "--dhcp-search", "-H", "web", "-m", "1400")
    has(got, f"dns={ROUTER4} ", "search=lab.test ", "mtu=1400", "hostname=web")
    got = lease(lab, "--dhcp-dns", "-D", "192.0.2.53", "-D", "192.0.2.54", "--dhcp-search", "-S", "a.example b.example", "-m", "0")
    has(got, "dns=192.0.2.53 192.0.2.54 ", "search=a.example b.example ", "mtu= ")
    got = lease(lab, "--dhcp-dns", "-D", "none", "--dhcp-search", "-S", "none")
    has(got, "dns= ", "search= ")
    got = lease(lab, "--dhcp-dns", "--no-map-gw", "--dns-forward", FORWARD4)
    has(got, f"dns={FORWARD4} ")
    has(lease(lab, "-a", "192.0.2.7/26", "-g", "192.0.2.1"), "ip=192.0.2.7", "router=192.0.2.1")
    check(lease(lab, "--no-dhcp") == "", "--no-dhcp")


@case
def pasta_announces_by_router_advertisement(lab):
    command = "echo 1 >/proc/sys/net/ipv6/conf/h0/accept_dad; ip link set h0 up; for i in $(seq 50); do ip -6 route | grep -q ^default && break; sleep 0.1; done; ip -6 address show dev h0 scope global; ip -6 route"
    out, _ = run(lab, *QUIET, "--", "sh", "-c", command)
    has(out, "fd09:1:", "default via fe80::")
    for option in ("--no-ra", "--no-ndp", "-4"):
        out, _ = run(lab, *QUIET, option, "--", "sh", "-c", command.replace("seq 50", "seq 10"))
        check("default" not in out, f"{option}: {out}")


DHCPV6 = r'''
import socket, struct, sys
def option(code, data): return struct.pack("!HH", code, len(data)) + data
def options(data):
    found = {}
    while data:
        code, length = struct.unpack("!HH", data[:4])
        found.setdefault(code, data[4:4 + length])
        data = data[4 + length:]
    return found
sock = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
sock.bind(("::", 546))
sock.settimeout(3)
link = socket.if_nametoindex("h0")
client = option(1, b"\0\3\0\1\2\0\0\0\0\1")
ia = option(3, struct.pack("!III", 1, 0, 0))
wanted = option(6, struct.pack("!HHH", 23, 24, 39))
def ask(kind, *parts):
    sock.sendto(bytes([kind]) + b"abc" + b"".join(parts), ("ff02::1:2", 547, 0, link))
    answer = sock.recv(4096)
    return answer[0], options(answer[4:])
try:
    kind, got = ask(1, client, ia, wanted, option(8, b"\0\0"))
    print("advertise" if kind == 2 else kind)
    kind, got = ask(3, client, option(2, got[2]), ia, wanted, option(8, b"\0\0"))
    print("reply" if kind == 7 else kind, socket.inet_ntop(socket.AF_INET6, options(got[3][12:])[5][:16]))
    servers = got.get(23, b"")
    print("dns", *(socket.inet_ntop(socket.AF_INET6, servers[i:i + 16]) for i in range(0, len(servers), 16)))
    print("search", got.get(24, b"").hex())
    print("fqdn", got.get(39, b"").hex())
except TimeoutError:
    print("no answer")
'''


@case
def pasta_announces_by_dhcpv6(lab):
    script = lab.scratch / "dhcpv6.py"
    script.write_text(DHCPV6)

    def lease6(*options):
        wait = "for i in $(seq 50); do ip -6 address show dev h0 | grep -q 'fe80.*link *$' && break; sleep 0.1; done"
        command = f"echo 0 >/proc/sys/net/ipv6/conf/h0/accept_dad; ip link set h0 up; {wait}; sleep 0.2; {sys.executable} {script}"
        return run(lab, *QUIET, *options, "--", "sh", "-c", command)[0]

    got = lease6()
    check(any(f"reply {own}\n" in got for own in (HOST6, OTHER6)), got)
    has(got, "advertise", "dns\n", "search \n", "fqdn \n")
    got = lease6("-a", "2001:db8::7", "--dhcp-dns", "-D", "2001:db8::53", "--dhcp-search", "-S", "a.example", "--fqdn", "b.example")
    has(got, "reply 2001:db8::7\n", "dns 2001:db8::53\n", "search 0161076578616d706c6500", "0162076578616d706c65")
    check(lease6("--no-dhcpv6") == "no answer\n", "--no-dhcpv6")


# Switches


@case
def pasta_services_that_are_switched_off(lab):
    pings(lab)
    lab.serve([*SERVICE, "serve", "::", "8105"], 8105, lab.far)
    talk = shlex.join(map(str, SERVICE))
    script = f"timeout 3 {talk} ask {FAR4} 8105 whoami; timeout 6 {talk} udp {FAR4} 8105 datagram; ping -n -c 1 -W 2 {FAR4}"
    tcp, datagrams, echo = " end", " datagram", " 0% packet loss"
    for option, missing in (("--no-tcp", tcp), ("--no-udp", datagrams), ("--no-icmp", echo)):
        out = run(lab, "--config-net", *QUIET, option, "--", "sh", "-c", script, status=None)[0].replace("::ffff:", "")
        for part in (tcp, datagrams, echo):
            check((part in out) == (part != missing), f"{option}: {out}")


@case
def pasta_captures_frames(lab):
    pings(lab)
    path = lab.scratch / "capture.pcap"
    inside(lab, f"ping -n -c 1 -W 5 {FAR4}", "-p", str(path))
    out, _ = lab.run([*lab.as_user(), "tcpdump", "-n", "-r", path])
    has(out, f"{HOST4} > {FAR4}: ICMP echo request", f"{FAR4} > {HOST4}: ICMP echo reply")


@case
def pasta_statistics_are_the_gateways(lab):
    pings(lab)
    _, err = run(lab, "-f", "--stats", "1", "--config-net", *QUIET, "--", "sh", "-c", f"ping -n -i 0.2 -c 15 {FAR4} >/dev/null")
    rows = [line.split() for line in err.splitlines() if line.strip() and line.split()[0].isdigit()]
    check(rows and int(rows[-1][0]) >= 5 and int(rows[-1][2]) >= 5, err)


@case
def pasta_logs_to_a_file_that_keeps_its_size(lab):
    pings(lab)
    path = lab.scratch / "pasta.log"
    path.write_text("of another day\n")
    _, err = run(lab, "--config-net", *QUIET, "-d", "-l", path, "--", "sh", "-c", f"{CURL} {url(FAR4, 'hello')}")
    text = path.read_text()
    check("another day" not in text and "tapline: " in text, text)
    path.unlink()
    script = f"i=0; while [ $i -lt 300 ]; do ping -n -c 1 -W 1 {FAR4}; i=$((i+1)); done"
    run(lab, "--config-net", *QUIET, "--trace", "-l", path, "--log-size", "20480", "--", "sh", "-c", script, limit=80)
    check(0 < path.stat().st_size <= 20480, f"{path.stat().st_size} bytes")


# As Podman's


@case
def pasta_under_podman(lab):
    podman = Podman(lab)
    path = podman.make()
    words = ["-t", "8110-8110:80-80", "-t", "127.0.0.1/8111-8111:80-80", "-t", "::1/8112-8112:80-80", "-u", "8110-8110:80-80", "--dns-forward", FORWARD4, "-T", "none", "-U", "none", "--no-map-gw", "--map-guest-addr", GUEST4]
    before = set(helpers())
    podman.works(path, *words)
    pid = leader(before)
    # The child: a session of its own, /dev/null on 0, 1 and 2, nothing of the caller's.
    for fd in range(3):
        check(os.readlink(f"/proc/{pid}/fd/{fd}") == "/dev/null", f"descriptor {fd}: {os.readlink(f'/proc/{pid}/fd/{fd}')}")
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1].split()
    check(fields[3] == str(pid), f"its session is {fields[3]}")
    check(os.readlink(f"/proc/{pid}/cwd") == "/", "it keeps a directory busy")
    # Podman's root has every capability in its own namespace; who serves has none but that for low ports, and
    # CAP_SETFCAP for the user namespace of its next gateway.
    sets = dict(line.split(":\t") for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("Cap"))
    check(int(sets["CapPrm"], 16) & ~(1 << 10 | 1 << 31) == 0, f"capabilities: {sets}")
    # Its agent inside has what it takes to make interfaces there, CAP_SYS_ADMIN where those are veth pairs; the gateway
    # has nothing.
    agents = 1 << 10 | 1 << 12 | 1 << 13 | (1 << 21 if lab.without_tun else 0)
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        status = Path(f"/proc/{child}/status").read_text()
        sets = dict(line.split(":\t") for line in status.splitlines() if line.startswith("Cap"))
        check(int(sets["CapPrm"], 16) & ~agents == 0, f"capabilities of {child}: {sets}")
    # What Podman reads in the namespace.
    check(addresses(podman.within(path, "ip -json address"))["h0"][0] == f"{HOST4}/24", "the first address")
    check(podman.within(path, f"dig +short @{FORWARD4} far.lab.test") == f"{FAR4}\n", "the nameserver")
    lab.serve([*SERVICE, "serve", "::", "8113"], 8113)
    has(podman.within(path, f"{shlex.join(map(str, SERVICE))} ask {GUEST4} 8113 whoami"), f"{HOST4} end")
    podman.serve(path, "::", "80")
    seen = [(ask(lab, address, port, "whoami", ns) + " ").replace("::ffff:", "").split()[0] for address, port, ns in (
        (FAR4 and HOST4, 8110, lab.far), (HOST6, 8110, lab.far), (HOST4, 8110, None), ("127.0.0.1", 8110, None), ("127.0.0.1", 8111, None), ("::1", 8112, None))]
    check(seen[:2] == [FAR4, FAR6], f"other machines: {seen}")
    # The host's own address is the sandbox's: it comes from the copy of it. What comes from the loopback is spliced to the
    # sandbox's own address.
    check(seen[2] == GUEST4, f"the host's own address: {seen}")
    check("refused" not in seen and "reset" not in seen, seen)
    check(ask(lab, HOST4, 8111, "whoami") == "refused", "a port of the loopback alone")
    for address, ns, client in ((HOST4, lab.far, FAR4), (HOST6, lab.far, FAR6), ("127.0.0.1", None, None)):
        (said,) = udp(lab, address, 8110, "datagram", ns=ns)
        fits = said.endswith(" datagram") and (client is None or said.replace("::ffff:", "").startswith(client))
        check(fits, f"UDP to {address} from {client}: {said}")
    # The end is the namespace's; a restart follows at once, on the same ports.
    for _ in range(5):
        podman.remove(path)
        path = podman.make()
        deadline = time.monotonic() + 10
        while True:
            status, out = podman.setup(path, "--quiet", *words)
            if status == 0:
                break
            check("Failed to bind port" in out and time.monotonic() < deadline, f"{status}: {out}")
        podman.serve(path, "::", "80")
        has(ask(lab, HOST4, 8110, "whoami", lab.far), "end")
    leader(before)
    podman.remove(path)
    wait_until(lambda: not set(helpers()) - before, "the end of all", 10)


@case
def pasta_writes_the_pid_of_who_serves(lab):
    podman = Podman(lab)
    path, file = podman.make(), lab.scratch / "pasta.pid"
    podman.works(path, *QUIET, "--pid", str(file))
    text = file.read_text()
    check(re.fullmatch(r"[0-9]+\n", text) and int(text) in helpers(), text)
    # SIGTERM ends it, with 0 as far as anybody sees; the interface goes with it.
    os.kill(int(text), signal.SIGTERM)
    wait_until(lambda: gone(int(text)), "its end")
    check("h0" not in podman.within(path, "ip -br link"), "the interface is left")
    # In the foreground it is our own child, and its end is 0 when the namespace goes.
    process = lab.spawn([*podman.enter, pasta(lab), "-f", "-q", "--config-net", *QUIET, "-P", str(file), "--netns", path])
    wait_until(lambda: file.exists() and file.read_text() == f"{process.pid}\n", "its PID")
    check(process.poll() is None, "it did not stay")
    podman.remove(path)
    check(process.wait(timeout=10) == 0, "its status")


@case
def pasta_lets_go_of_what_it_has_inherited(lab):
    podman = Podman(lab)
    path = podman.make()
    read, write = os.pipe()
    process = lab.spawn(podman.argv(path, "-q", *QUIET), pass_fds=[write], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    os.close(write)
    out, _ = process.communicate(timeout=30)
    check((process.returncode, but_the_link(lab, out)) == (0, ""), out)
    with os.fdopen(read) as pipe:
        # The end of file comes only when everybody has closed it.
        check(pipe.read() == "", "something was written")
    podman.remove(path)


@case
def pasta_that_cannot_bind_says_so_and_fails(lab):
    lab.serve([*SERVICE, "serve", "0.0.0.0", "8120"], 8120)
    podman = Podman(lab)
    path = podman.make()
    status, out = podman.setup(path, "--quiet", "-t", "8120-8120:80-80", "-u", "none", "-T", "none", "-U", "none")
    check(status == 1, f"{status}: {out}")
    has(out, "Failed to bind port 8120 (Address already in use) for option '-t 8120-8120:80-80'")
    _, err = run(lab, "-t", "192.0.2.200/8121", "--", "echo", "ran", status=1)
    has(err, "Failed to bind port 8121 (Cannot assign requested address) for option '-t 192.0.2.200/8121'")
    # An address that the host may have one day.
    run(lab, "--freebind", "-t", "192.0.2.200/8121", "-u", "none", "-T", "none", "-U", "none", "--", "true")
    for words, text in (
        (["-t", "0"], "0"), (["-t", "8000-8010:9000-9005"], "Invalid port specifier"), (["-t", "none", "-t", "80"], "none"),
    ):
        _, err = run(lab, *words, "--", "echo", "ran", status=1)
        has(err, text)
    check("h0" not in podman.within(path, "ip -br link"), "an interface is left")
    podman.works(path, "-t", "8122", "-u", "none", "-T", "none", "-U", "none")
    podman.remove(path)


@case
def pasta_ends_when_its_namespace_does_unless_it_is_not_to(lab):
    podman = Podman(lab)
    path, file = podman.make(), lab.scratch / "stays.pid"
    podman.works(path, *QUIET, "--no-netns-quit", "-P", str(file))
    pid = int(file.read_text())
    podman.remove(path)
    time.sleep(3)
    check(not gone(pid), "it has ended")
    # And does not spin.
    used = lambda: sum(map(int, Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1].split()[11:13]))
    before = used()
    time.sleep(1)
    check(used() - before < 20, f"{used() - before} ticks in a second")
    os.kill(pid, signal.SIGTERM)
    wait_until(lambda: gone(pid), "its end")


# Ports


@case
def pasta_ports_from_loopback_clients(lab):
    podman = Podman(lab)
    path = podman.make()
    common = ["-t", "8130:80", "-u", "none", "-T", "none", "-U", "none"]
    service = None

    def restart(listen, *words):
        nonlocal path, service
        if service:
            service.kill()
            service.wait()
            podman.remove(path)
            path = podman.make()
        deadline = time.monotonic() + 10
        while podman.setup(path, "--quiet", *common, *words)[0]:
            check(time.monotonic() < deadline, "the port is not free")
        service = podman.serve(path, listen, "80")
        return ask(lab, "127.0.0.1", 8130, "whoami").replace("::ffff:", "").split()

    # To the sandbox's own address, past the link.
    said = restart("0.0.0.0")
    check(said[2] == HOST4, said)
    # To its loopback.
    said = restart("127.0.0.1", "--host-lo-to-ns-lo")
    check(said[0] == "127.0.0.1" and said[2] == "127.0.0.1", said)
    # Through the link: from the address that leads back to the host's loopback.
    said = restart("0.0.0.0", "--no-splice")
    check(said[0] == ROUTER4 and said[2] == HOST4, said)
    said = restart("0.0.0.0", "--no-splice", "--map-host-loopback", "192.0.2.99")
    check(said[0] == "192.0.2.99", said)
    podman.remove(path)


@case
def pasta_clients_that_the_sandbox_could_not_answer(lab):
    # Who calls from an address that the sandbox has, too.
    podman = Podman(lab)
    common = ["-t", "8131:80", "-u", "8131:80", "-T", "none", "-U", "none"]
    for words, four, six in (
        ([], ROUTER4, ROUTER6),
        (["--map-host-loopback", "192.0.2.99", "--map-host-loopback", "2001:db8::99"], "192.0.2.99", "2001:db8::99"),
        (["--map-guest-addr", GUEST4, "--map-guest-addr", GUEST6], GUEST4, GUEST6),
        (["--no-map-gw"], ROUTER4, None),
    ):
        path = podman.make()
        deadline = time.monotonic() + 10
        while podman.setup(path, "--quiet", *common, *words)[0]:
            check(time.monotonic() < deadline, "the port is not free")
        podman.serve(path, "::", "80")
        for address, shown in ((HOST4, four), (HOST6, six)):
            for said in (ask(lab, address, 8131, "whoami"), udp(lab, address, 8131, "x")[0]):
                client = said.replace("::ffff:", "").split()[0]
                # Without anything that is mapped, our own link-local address.
                fits = client == shown or (shown is None and client.startswith("fe80:"))
                check(fits, f"{words} at {address}: {said}")
        # Another machine keeps its address, and so does one that is known on the link alone.
        check(ask(lab, HOST4, 8131, "whoami", lab.far).replace("::ffff:", "").startswith(FAR4), "another machine")
        host, router = link_local(lab, "h0"), link_local(lab, "r1a", lab.r1)
        said = ask(lab, f"{host}%r1a", 8131, "whoami", lab.r1)
        check(said.startswith(router), f"{words}: a link-local client {router}: {said}")
        podman.remove(path)


@case
def pasta_ports_of_the_hosts_loopback(lab):
    lab.serve([*SERVICE, "serve", "127.0.0.1", "8140"], 8140)
    talk = shlex.join(map(str, SERVICE))
    common = ["--config-net", "-t", "none", "-u", "none"]
    out, _ = run(lab, *common, "-T", "8140", "-U", "8140", "--", "sh", "-c", f"{talk} ask 127.0.0.1 8140 whoami; {talk} udp 127.0.0.1 8140 x")
    has(out, "127.0.0.1", "end", " x")
    out, _ = run(lab, *common, "-T", "9140:8140", "-U", "none", "--", "sh", "-c", f"{talk} ask 127.0.0.1 9140 whoami; {talk} ask 127.0.0.1 8140 whoami")
    check(out.splitlines()[0].endswith("end") and out.splitlines()[1] == "refused", out)
    _, err = run(lab, "-T", "127.0.0.1/8140", "--", "true", status=1)
    has(err, "Listening address not allowed")


@case
def pasta_follows_listeners_in_both_directions(lab):
    lab.serve([*SERVICE, "serve", "127.0.0.1", "8150"], 8150)
    talk = shlex.join(map(str, SERVICE))
    script = f"{talk} serve 0.0.0.0 8151 & for i in $(seq 100); do {talk} ask 127.0.0.1 8150 whoami | grep end && break; sleep 0.1; done; touch {lab.scratch}/followed; wait"
    process = lab.spawn(argv(lab, "--config-net", "--", "sh", "-c", script), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    wait_until(lambda: "end" in ask(lab, "127.0.0.1", 8151, "whoami"), "the sandbox's listener on the host")
    wait_until(lambda: "end" in ask(lab, HOST4, 8151, "whoami", lab.far), "the same from another machine")
    wait_until(lambda: (lab.scratch / "followed").exists(), "the host's listener in the sandbox")
    process.terminate()
    process.wait(timeout=10)
    check(ask(lab, "127.0.0.1", 8151, "whoami") == "refused", "it is still published")


@case
def pasta_splice_only_has_no_interface(lab):
    lab.serve([*SERVICE, "serve", "127.0.0.1", "8160"], 8160)
    talk = shlex.join(map(str, SERVICE))
    script = f"ip -br link; {talk} ask 127.0.0.1 8160 whoami"
    out, _ = run(lab, "--config-net", "--splice-only", "-t", "none", "-u", "none", "-U", "none", "-T", "8160", "--", "sh", "-c", script)
    check("h0" not in out and "tap0" not in out and "end" in out, out)
