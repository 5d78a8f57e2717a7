"""The little world that the cases happen in.

    sandbox ==tapline== host ---- r1 ---- r2 ---- far        each ---- is a veth pair between two network namespaces
                          '-----'                 (MTU 1400)
    host   h0 10.9.1.2, 10.9.1.3, fd09:1::2, fd09:1::3       h1 10.9.4.2, fd09:4::2 (second uplink, also to r1)
    r1     10.9.1.1, 10.9.4.1, 10.9.2.1, fd09:1::1 ...
    r2     10.9.2.2, 10.9.3.1
    far    10.9.3.2, fd09:3::2: HTTP at 8000

All of it belongs to one user namespace, where this script is root; the host is the namespace the script itself is in.
tapline is started in a further user namespace (the same one each time), as a user that has no capability over any of
this. /etc is a copy, so that resolv.conf can be replaced, and names come from dnsmasq at 127.0.0.1.
"""
import ctypes
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
LIMIT = 60
FAR4, FAR6 = "10.9.3.2", "fd09:3::2"
HOST4, HOST6 = "10.9.1.2", "fd09:1::2"
GATEWAY4, GATEWAY6 = "10.0.2.2", "fd00::2"
DNS4, DNS6 = "10.0.2.3", "fd00::3"
NO_TUN = "packet socket"
UNPRIVILEGED = ["unshare", "--user", "--map-user=1000", "--map-group=1000", "--"]


class Fault(Exception):
    """What is not as it should be."""


class Skip(str):
    """Why a case says nothing on this machine."""


def too_long(*_):
    raise Fault("the case did not end in its time")


def check(holds, said):
    """A case's assertion."""
    if not holds:
        raise Fault(said)


def wait_until(condition, what, limit=15):
    """Wait until the condition gives something, and give that."""
    end = time.monotonic() + limit
    while True:
        got = condition()
        if got:
            return got
        if time.monotonic() > end:
            raise Fault(f"waited {limit} s in vain for {what}")
        time.sleep(0.02)


def die_with_parent():
    """A child must not outlive this script."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)


class Place:
    """What plain cases and those of the lab have in common: processes, tapline, scratch files."""

    def __init__(self, binary, without_tun, scratch):
        self.binary, self.without_tun, self.scratch = binary, without_tun, scratch / type(self).__name__.lower()
        self.lasting, self.passing, self.shells = [], [], 0
        self.building = True

    def build(self):
        self.scratch.mkdir(mode=0o700)
        runtime = self.scratch / "runtime"
        runtime.mkdir(mode=0o700)
        self.files = self.scratch / "files"
        self.files.mkdir()
        self.environment = {
            "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": str(self.scratch),
            "XDG_RUNTIME_DIR": str(runtime),
            "XDG_CONFIG_HOME": str(self.scratch / "config"),
            "XDG_DATA_HOME": str(self.scratch / "data"),
            "LC_ALL": "C",
            "TERM": "dumb",
        }
        (self.files / "hello").write_text("hello from afar\n")
        self.building = False

    def spawn(self, argv, ns=None, **more):
        """Start a process; it is ended with the case (or with the lab, while that is being built)."""
        argv = [str(word) for word in argv]
        if ns:
            argv = ["nsenter", f"--net=/proc/{ns.pid}/ns/net", "--", *argv]
        more = {"stdin": subprocess.DEVNULL, "env": self.environment, "cwd": self.scratch} | more
        process = subprocess.Popen(argv, preexec_fn=die_with_parent, start_new_session=True, **more)
        (self.lasting if self.building else self.passing).append(process)
        return process

    def serve(self, argv, port=None, ns=None, udp=False, **more):
        """Start a server and wait until somebody listens on the port."""
        log = open(self.scratch / "server.log", "w+")
        before = self.listeners("self" if ns is None else ns.pid, port, udp)
        process = self.spawn(argv, ns, stdout=log, stderr=subprocess.STDOUT, **more)

        def listens():
            if process.poll() is not None:
                raise Fault(f"{argv[0]} has ended: {Path(log.name).read_text()}")
            return self.listeners("self" if ns is None else ns.pid, port, udp) > before

        if port:
            wait_until(listens, f"{argv[0]} on port {port}")
        return process

    @staticmethod
    def listeners(pid, port, udp):
        """How many sockets listen on a port where that process is."""
        rows, state = [], "07" if udp else "0A"
        for kind in ("udp", "udp6") if udp else ("tcp", "tcp6"):
            rows += Path(f"/proc/{pid}/net/{kind}").read_text().splitlines()[1:]
        return sum(r.split()[1].endswith(f":{port or 0:04X}") and r.split()[3] == state for r in rows)

    def run(self, argv, ns=None, status=0, limit=LIMIT, input=None, **more):
        """Run a command to its end; its output as (stdout, stderr)."""
        more = {"stdin": subprocess.PIPE if input is not None else subprocess.DEVNULL} | more
        process = self.spawn(argv, ns, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **more)
        try:
            out, err = process.communicate(input=input, timeout=limit)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            out, err = process.communicate()
            raise Fault(f"{shlex.join(map(str, argv))} did not end in {limit} s; it said {out}{err}")
        finally:
            self.passing = [p for p in self.passing if p is not process]
        if status is not None and process.returncode != status:
            raise Fault(f"{shlex.join(map(str, argv))} ended with {process.returncode}: {out}{err}")
        return out, err

    def program(self, *words):
        """tapline's argv, as it is."""
        return [self.binary, *words]

    def tapline(self, *words):
        """The same; a `run` that does not say which network has one of its own."""
        return self.program(*of_its_own(words))

    def inside(self, script, *options, status=0, limit=LIMIT, quiet=True):
        """Run a shell script in a sandbox; its standard output. tapline may say nothing, but for the link."""
        out, err = self.run(self.tapline("run", *options, "--", "sh", "-c", script), status=status, limit=limit)
        if quiet:
            self.only_the_link(err)
        return out

    def only_the_link(self, err):
        """Standard error holds nothing of tapline's but the one line about the link, which must be there without tun."""
        said = [line for line in err.splitlines() if line.startswith("tapline:")]
        about = [line for line in said if "/dev/net/tun" in line and NO_TUN in line]
        check(said == about, f"tapline said {said}")
        check(len(about) == int(self.without_tun), f"lines about the link: {about}")

    def shell(self, *options):
        return Shell(self, self.tapline("run", *options, "--", "sh"))

    def end_case(self):
        """End whatever the case has started."""
        finish(self.passing)
        self.passing = []

    def end(self):
        self.end_case()
        finish(self.lasting)
        self.lasting = []


def of_its_own(words):
    """The words of a command line; with `--net private`, if it is a `run` and does not say which network."""
    words = list(words)
    options = words[:words.index("--")] if "--" in words else words
    if words[:1] == ["run"] and "--net" not in options:
        words[1:1] = ["--net", "private"]
    return words


def finish(processes):
    """SIGKILL to the groups, and take the statuses."""
    for process in processes:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            process.kill()
    for process in processes:
        process.wait()
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream:
                stream.close()


class Plain(Place):
    """The namespaces this script was started in."""


class Shell:
    """A shell in a sandbox that lives as long as the case, for those that change the world while it runs."""

    def __init__(self, place, argv):
        place.shells += 1
        self.log = place.scratch / f"shell-{place.shells}.log"
        self.process = place.spawn(
            argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=open(self.log, "w"), text=True
        )
        self.does("true")

    def says(self, script):
        """Run a script; (its status, its standard output)."""
        self.process.stdin.write(f"{{ {script}\n}} </dev/null; status=$?; echo; echo ::done:: $status\n")
        self.process.stdin.flush()
        lines = []
        for line in self.process.stdout:
            if line.startswith("::done:: "):
                return int(line.split()[1]), "".join(lines)[:-1]
            lines.append(line)
        raise Fault(f"the sandbox has ended: {self.log.read_text()}")

    def does(self, script):
        """The same for a script that succeeds; its standard output."""
        status, out = self.says(script)
        check(status == 0, f"{script}: ended with {status}: {out} {self.log.read_text()}")
        return out


WORLD = """
set -e
up() { ip link set "$1" mtu "$2" up; }
add() { for a in $2; do case $a in *:*) ip addr add "$a" dev "$1" nodad;; *) ip addr add "$a" dev "$1";; esac; done; }
on() { pid=$1; shift; nsenter --net=/proc/$pid/ns/net -- sh -ec "$(typeset -f up add 2>/dev/null); $*"; }
ip link set lo up
echo 0 >/proc/sys/net/ipv4/ip_unprivileged_port_start
ip link add h0 type veth peer name r1a netns $R1
ip link add h1 type veth peer name r1b netns $R1
up h0 1500; up h1 1500
add h0 "10.9.1.2/24 10.9.1.3/24 fd09:1::2/64 fd09:1::3/64"
add h1 "10.9.4.2/24 fd09:4::2/64"
ip route add default via 10.9.1.1 dev h0
ip -6 route add default via fd09:1::1 dev h0
ip route add default via 10.9.4.1 dev h1 metric 900
ip -6 route add default via fd09:4::1 dev h1 metric 9000
on $R1 "ip link set lo up; ip link add r1c type veth peer name r2a netns $R2; up r1a 1500; up r1b 1500; up r1c 1500
  add r1a '10.9.1.1/24 fd09:1::1/64'; add r1b '10.9.4.1/24 fd09:4::1/64'; add r1c '10.9.2.1/24 fd09:2::1/64'
  ip route add 10.9.3.0/24 via 10.9.2.2; ip -6 route add fd09:3::/64 via fd09:2::2"
on $R2 "ip link set lo up; ip link add r2b type veth peer name f0 netns $FAR; up r2a 1500; up r2b 1400
  add r2a '10.9.2.2/24 fd09:2::2/64'; add r2b '10.9.3.1/24 fd09:3::1/64'
  ip route add default via 10.9.2.1; ip -6 route add default via fd09:2::1"
on $FAR "ip link set lo up; up f0 1400; add f0 '10.9.3.2/24 fd09:3::2/64'
  ip route add default via 10.9.3.1; ip -6 route add default via fd09:3::1"
for router in $R1 $R2; do
  on $router 'echo 1 >/proc/sys/net/ipv4/ip_forward; echo 1 >/proc/sys/net/ipv6/conf/all/forwarding
    echo 0 >/proc/sys/net/ipv4/icmp_ratelimit; echo 0 >/proc/sys/net/ipv6/icmp/ratelimit'
done
"""

ZONE = """
no-resolv
no-hosts
bind-interfaces
cache-size=0
pid-file
edns-packet-max=4096
address=/files.lab.test/10.9.3.2
address=/files.lab.test/fd09:3::2
host-record=far.lab.test,10.9.3.2,fd09:3::2
txt-record=text.lab.test,"words with spaces","and more"
srv-host=_http._tcp.lab.test,far.lab.test,8000,10,20
mx-host=lab.test,far.lab.test,5
local=/lab.test/
"""


class Lab(Place):
    """The whole little world."""

    def build(self):
        super().build()
        self.building = True
        self.far, self.r1, self.r2 = (self.namespace() for _ in range(3))
        self.user = self.spawn([*UNPRIVILEGED, "sleep", "infinity"])
        wait_until(lambda: Path(f"/proc/{self.user.pid}/comm").read_text() == "sleep\n", "the user's namespace")
        env = self.environment | {"R1": str(self.r1.pid), "R2": str(self.r2.pid), "FAR": str(self.far.pid)}
        self.run(["bash", "-c", WORLD], env=env)
        self.lasting = [p for p in self.lasting if p.poll() is None]
        self.own_etc()
        if self.without_tun and os.access("/dev/net/tun", os.R_OK | os.W_OK):
            self.run(["mount", "-t", "tmpfs", "none", "/dev/net"])
        self.big = self.files / "big"
        block = os.urandom(1 << 20)
        with open(self.big, "wb") as big:
            for number in range(100):
                big.write(number.to_bytes(4, "big") + block[4:])
        self.big_digest = self.run(["sha256sum", self.big])[0].split()[0]
        self.serve([sys.executable, HERE / "httpd.py", "::", 8000, self.files], 8000, self.far)
        self.dnsmasq("127.0.0.1")
        self.building = False

    def namespace(self):
        """A process in a network namespace of its own."""
        process = self.spawn(["unshare", "--net", "sleep", "infinity"])
        own = os.readlink("/proc/self/ns/net")
        wait_until(lambda: self.link_of(process.pid) not in (None, own), "a network namespace")
        return process

    @staticmethod
    def link_of(pid, kind="net"):
        try:
            return os.readlink(f"/proc/{pid}/ns/{kind}")
        except OSError:
            return None

    def own_etc(self):
        """A copy of /etc over /etc, of which resolv.conf can be replaced."""
        copy = self.scratch / "etc"
        shutil.copytree("/etc", copy, symlinks=True, ignore=self.unreadable)
        self.run(["mount", "-t", "tmpfs", "none", "/etc"])
        self.run(["cp", "-a", f"{copy}/.", "/etc/"])
        self.resolvers("127.0.0.1")

    @staticmethod
    def unreadable(directory, names):
        whole = [Path(directory, name) for name in names]
        return [p.name for p in whole if not p.is_symlink() and (
            not os.access(p, os.R_OK) or (p.is_dir() and not os.access(p, os.X_OK)) or not (p.is_dir() or p.is_file()))]

    def resolvers(self, *addresses, rename=True):
        """Write /etc/resolv.conf, in place or by another file that takes its name."""
        text = "search lab.test\n" + "".join(f"nameserver {address}\n" for address in addresses)
        path = Path("/etc/resolv.conf")
        if rename:
            fresh = Path("/etc/resolv.conf.new")
            fresh.write_text(text)
            fresh.rename(path)
        else:
            path.write_text(text)

    def dnsmasq(self, address, zone=ZONE):
        """A resolver on this host."""
        number = len(list(self.scratch.glob("dnsmasq-*")))
        path = self.scratch / f"dnsmasq-{number}"
        long = "".join(f'txt-record=long.lab.test,"{number:03} {"x" * 200}"\n' for number in range(12))
        path.write_text(f"listen-address={address}\n{zone}\n{long}")
        argv = ["dnsmasq", "--keep-in-foreground", f"--conf-file={path}"]
        process = self.serve([*UNPRIVILEGED, *argv])
        wait_until(lambda: process.poll() is not None or self.answers(address), f"dnsmasq at {address}")
        check(process.poll() is None, f"dnsmasq has ended: {(self.scratch / 'server.log').read_text()}")
        return process

    def answers(self, address):
        process = subprocess.run(
            ["dig", "+tries=1", "+time=1", f"@{address}", "version.bind", "TXT", "CH"], capture_output=True, check=False
        )
        return process.returncode == 0

    def program(self, *words):
        """As a user without capabilities here: in a user namespace below this one."""
        return [*self.as_user(), self.binary, *words]

    def as_user(self):
        """What stands in front of a command line of that user."""
        return ["nsenter", f"--user=/proc/{self.user.pid}/ns/user", "--preserve-credentials", "--"]

    def sysctl(self, name, value, ns=None):
        self.run(["sh", "-c", f"echo '{value}' >/proc/sys/{name}"], ns)

    def silent(self, address, port=53):
        """A UDP port where nobody answers; keep what this gives."""
        deaf = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        deaf.bind((address, port))
        return deaf

    def container(self):
        """A namespace that somebody else made, as `unshare -Urn` does, for attach."""
        process = self.spawn(["unshare", "--user", "--map-root-user", "--net", "sleep", "infinity"])
        own = os.readlink("/proc/self/ns/net")
        wait_until(lambda: self.link_of(process.pid) not in (None, own), "a container")
        wait_until(lambda: Path(f"/proc/{process.pid}/comm").read_text() == "sleep\n", "its command")
        return process

    @staticmethod
    def capable_of_nothing():
        """What stands in front of a command line of the same user as a container's, in the user namespace it was made in."""
        return ["setpriv", "--bounding-set=-all", "--inh-caps=-all", "--no-new-privs", "--"]

    def attach(self, container, *options, before=()):
        """Attach in the foreground, and wait for the word that it is ready. `before` stands in front of the command."""
        read, write = os.pipe()
        log = self.scratch / "attach.log"
        words = ["attach", "--ready-fd", str(write), *options, str(container.pid)]
        argv = [*before, *self.capable_of_nothing(), self.binary, *words]
        process = self.spawn(argv, pass_fds=[write], stderr=open(log, "w"))
        os.close(write)
        with os.fdopen(read) as ready:
            said = ready.readline()
        check(said == "1\n", f"attach was not ready: {log.read_text()}")
        return process, log

    def within(self, container, script, status=0, limit=LIMIT):
        """A script in the container; its standard output."""
        enter = ["nsenter", "-t", container.pid, "-U", "-n", "--preserve-credentials", "--"]
        return self.run([*enter, "sh", "-c", script], status=status, limit=limit)[0]
