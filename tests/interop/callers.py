"""The cases with programs that start tapline by themselves: Podman, Buildah, RootlessKit, runc, crun, bubblewrap.

They run in the lab's world (see lab.py), as an ordinary user of it: one with subordinate ids and without any capability
there. The world's user namespace has those ids and copies of newuidmap and newgidmap that count in it, so that nothing
of the machine is used but its programs. DIR/slirp4netns is what callers find: a link to tapline, or, with --original,
the original, for which the same cases must hold, but for those that are about tapline's own command line.
"""
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
from pathlib import Path

import ports
from cases import case, has
from lab import FAR4, FAR6, HERE, HOST4, LIMIT, Fault, Lab, Skip, check, finish, wait_until

EXAMPLES = HERE.parent.parent / "examples"
# Of the world; short, since paths of sockets must be.
PLACE = Path("/mnt")
USER, UID, FIRST, COUNT = "caller", 4242, 10000, 50000
PACKAGES = {
    "podman": "podman", "buildah": "buildah", "rootlesskit": "rootlesskit", "rootlessctl": "rootlesskit",
    "runc": "runc", "crun": "crun", "bwrap": "bubblewrap", "busybox": "busybox-static", "newuidmap": "uidmap",
    "/usr/lib/podman/netavark": "netavark", "/usr/lib/podman/aardvark-dns": "aardvark-dns", "iptables": "iptables",
}
FETCH = "wget -q -O -"


def needs(*programs, own=False):
    """A case for which these programs must be there. `own`: it is about tapline's command line, not the original's."""
    opens_tun = "rootlesskit" in programs

    def wrap(function):
        def checked(lab):
            if own and lab.original:
                return Skip("tapline's own")
            if opens_tun and lab.without_tun:
                return Skip("RootlessKit opens /dev/net/tun itself")
            for program in programs:
                if not shutil.which(program, path=lab.environment["PATH"]):
                    missing = f"{program} is missing: apt-get install {PACKAGES[program]}"
                    check("CI" not in os.environ, missing)
                    return Skip(missing)
            before = lab.everything_that_listens()
            lab.dirty = True
            note = function(lab)
            # Servers and clients of the case are not callers.
            finish(lab.passing)
            lab.passing = []
            lab.nothing_left(before)
            lab.dirty = False
            return note

        checked.__name__ = function.__name__
        return case(checked)

    return wrap


class Callers(Lab):
    """The little world, and a user in it who starts containers."""

    def __init__(self, binary, without_tun, scratch, original):
        super().__init__(binary, without_tun, scratch)
        self.original, self.dirty = original, False

    def build(self):
        self.scratch.parent.chmod(0o711)
        super().build()
        self.building = True
        self.run(["mount", "-t", "tmpfs", "-o", "mode=0755", "none", PLACE])
        # Podman keeps its locks there, and would find those of whoever ran this before.
        self.run(["mount", "-t", "tmpfs", "-o", "mode=1777", "none", "/dev/shm"])
        self.account()
        self.programs()
        # crun knows the second version of cgroups only, and not beside the first.
        if Path("/sys/fs/cgroup/unified").is_dir():
            self.run(["mount", "--bind", "/sys/fs/cgroup/unified", "/sys/fs/cgroup"])
        # Podman looks for other resolvers where there is none but on the loopback.
        self.dnsmasq(HOST4)
        self.resolvers(HOST4)
        self.settings()
        self.building = False

    def account(self):
        """A user with subordinate ids."""
        for name, line in (("passwd", f"{USER}:x:{UID}:{UID}::{PLACE}/home:/bin/sh"), ("group", f"{USER}:x:{UID}:"),
                           ("subuid", f"{USER}:{FIRST}:{COUNT}"), ("subgid", f"{USER}:{FIRST}:{COUNT}")):
            path = Path("/etc", name)
            others = [] if name.startswith("sub") else [
                other for other in path.read_text().splitlines() if f":{UID}:" not in other]
            path.write_text("\n".join([*others, line, ""]))
        self.homes()
        # A program's set-user-id bit counts where its file system belongs to the user namespace.
        for name in ("newuidmap", "newgidmap"):
            program = shutil.which(name)
            check(program, f"{name} is missing: apt-get install uidmap")
            shutil.copy(program, PLACE / name)
            (PLACE / name).chmod(0o4755)
            self.run(["mount", "--bind", PLACE / name, program])

    @staticmethod
    def homes():
        for name, mode in (("home", 0o755), ("run", 0o700)):
            path = PLACE / name
            path.mkdir(mode=mode)
            os.chown(path, UID, UID)

    def programs(self):
        """What callers find: slirp4netns, and tapline beside it."""
        self.tapline_itself, self.slirp = PLACE / "bin/tapline", PLACE / "bin/slirp4netns"
        self.slirp.parent.mkdir()
        os.chown(self.slirp.parent, UID, UID)
        shutil.copy(self.binary, self.tapline_itself)
        self.tapline_itself.chmod(0o755)
        shutil.copytree(EXAMPLES, PLACE / "examples")
        shutil.copy(HERE / "service.py", PLACE)
        if self.original:
            shutil.copy(shutil.which("slirp4netns"), self.slirp)
        else:
            self.does(self.tapline_itself, "link-as", "slirp4netns", self.slirp.parent, cwd="/")
            # Nobody can have taken the original instead.
            for name in ("slirp4netns", "pasta"):
                if program := shutil.which(name):
                    self.run(["mount", "--bind", shutil.which("false"), program])

    def settings(self):
        home = PLACE / "home"
        self.environment |= {
            "HOME": str(home), "USER": USER, "LOGNAME": USER,
            "XDG_RUNTIME_DIR": str(PLACE / "run"), "XDG_CONFIG_HOME": str(home / ".config"),
            "XDG_DATA_HOME": str(home / ".local/share"),
            "CONTAINERS_CONF": str(home / "containers.conf"), "CONTAINERS_STORAGE_CONF": str(home / "storage.conf"),
            "BUILDAH_ISOLATION": "rootless", "TAPLINE": str(self.tapline_itself),
        }
        (home / "containers.conf").write_text(
            f'[engine]\nnetwork_cmd_path = "{self.slirp}"\nruntime = "runc"\ncgroup_manager = "cgroupfs"\n'
            'events_logger = "file"\n[containers]\nlog_driver = "k8s-file"\n[network]\nnetwork_backend = "netavark"\n'
        )
        (home / "storage.conf").write_text(
            f'[storage]\ndriver = "vfs"\ngraphroot = "{home}/images"\nrunroot = "{PLACE}/run/storage"\n'
        )
        containers = home / ".config/containers"
        containers.mkdir(parents=True)
        (containers / "policy.json").write_text('{"default": [{"type": "insecureAcceptAnything"}]}\n')
        (containers / "registries.conf").write_text("unqualified-search-registries = []\n")
        for directory, below, _ in os.walk(home):
            os.chown(directory, UID, UID)
        self.image = home / "busybox.tar"
        busybox = shutil.which("busybox")
        if busybox:
            root_file_system(self.image, busybox)
        self.imported = False

    def as_user(self):
        return ["setpriv", "--reuid", str(UID), "--regid", str(UID), "--clear-groups", "--"]

    def does(self, *words, **more):
        """Run a command as the user; its standard output."""
        return self.run([*self.as_user(), *words], **{"cwd": PLACE / "home"} | more)[0]

    def podman(self, *words, **more):
        return self.podman_says(*words, **more)[0]

    def podman_says(self, *words, **more):
        """Podman's standard output and error."""
        if not self.imported:
            self.does("podman", "import", self.image, "bb")
            self.imported = True
        return self.run([*self.as_user(), "podman", *words], **{"cwd": PLACE / "home"} | more)

    def everything_that_listens(self):
        """The listening sockets of this host."""
        rows = set()
        for kind, state in (("tcp", "0A"), ("tcp6", "0A"), ("udp", "07"), ("udp6", "07")):
            for row in Path(f"/proc/net/{kind}").read_text().splitlines()[1:]:
                words = row.split()
                if words[3] == state:
                    rows.add((kind, words[1]))
        return rows

    def helpers(self):
        """What callers have started by our names and has not ended, by its process ids."""
        return [entry.name for entry in Path("/proc").iterdir() if entry.name.isdigit() and self.is_helper(entry)]

    def in_the_background(self):
        """The working directories of those processes: nobody's may be in a bundle, which may be a mount."""
        return [os.readlink(f"/proc/{pid}/cwd") for pid in self.helpers()]

    @staticmethod
    def is_helper(entry):
        try:
            return Path(os.readlink(entry / "exe")).parent == PLACE / "bin"
        except OSError:
            # It has ended meanwhile.
            return False

    def processes(self, name):
        """Those of this name that have not ended, whosever they are."""
        alive = []
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                number, _, rest = stat.read_text().partition(" (")
            except OSError:
                continue
            comm, _, state = rest.rpartition(") ")
            if comm == name and not state.startswith("Z"):
                alive.append(int(number))
        return alive

    def nothing_left(self, before):
        wait_until(lambda: not self.helpers(), f"the end of {self.helpers()}")
        wait_until(lambda: self.everything_that_listens() <= before,
                   f"the end of the listeners {self.everything_that_listens() - before}")
        if not self.original:
            # Whoever looks takes away what is left of those that were killed, as callers do.
            has(self.does(self.tapline_itself, "ps"), "NAME")
        left = [str(path) for path in Path(PLACE, "run/tapline").glob("*/sandboxes/*")]
        check(not left, f"left in the state directory: {left}")
        check("tap0" not in Path("/proc/net/dev").read_text(), "an interface is left")

    def end_case(self):
        super().end_case()
        if not self.dirty:
            return
        # A failed case may have left anything behind: the next one begins anew.
        for entry in Path("/proc").iterdir():
            try:
                if entry.name.isdigit() and (entry.stat().st_uid == UID or FIRST <= entry.stat().st_uid < FIRST + COUNT):
                    os.kill(int(entry.name), signal.SIGKILL)
            except OSError:
                pass
        for directory in (PLACE / "home", PLACE / "run"):
            shutil.rmtree(directory)
        self.homes()
        self.settings()
        self.dirty = False


def root_file_system(path, busybox):
    """A tar file of busybox and a name for each of its programs."""
    programs = subprocess.run([busybox, "--list"], capture_output=True, text=True, check=True).stdout.split()
    with tarfile.open(path, "w") as tar:
        def add(name, **what):
            entry = tarfile.TarInfo(name)
            for key, value in what.items():
                setattr(entry, key, value)
            return entry

        for name in ("bin", "dev", "etc", "proc", "sys", "tmp", "usr", "www"):
            tar.addfile(add(name, type=tarfile.DIRTYPE, mode=0o755))
        # For programs of this machine, with /usr mounted there.
        for name in ("lib", "lib64"):
            tar.addfile(add(name, type=tarfile.SYMTYPE, linkname=f"usr/{name}"))
        body = Path(busybox).read_bytes()
        tar.addfile(add("bin/busybox", mode=0o755, size=len(body)), io.BytesIO(body))
        for program in programs:
            if program != "busybox":
                tar.addfile(add(f"bin/{program}", type=tarfile.SYMTYPE, linkname="busybox"))
        page = b"hello from a container\n"
        tar.addfile(add("www/index.html", mode=0o644, size=len(page)), io.BytesIO(page))


SERVE = ["httpd", "-f", "-vv", "-p", "80", "-h", "/www"]
PAGE = "hello from a container\n"


def page(lab, address, port, ns=None):
    """The container's page, as soon as it is served."""
    argv = ["curl", "--silent", "--max-time", "10", "--retry", "20", "--retry-delay", "1", "--retry-all-errors", f"http://{address}:{port}/"]
    out = lab.run(argv, ns)[0]
    check(out == PAGE, f"at {address}:{port}: {out}")


# A container in which the service of published ports runs (see service.py), with this machine's Python: busybox has no
# UDP.
SERVICE = ["--volume", "/usr:/usr:ro", "--volume", f"{PLACE}/service.py:/service.py:ro", "bb", "/usr/bin/python3", "/service.py"]


def serves(lab, container):
    """The service has begun."""
    wait_until(lambda: "ready" in lab.podman("logs", container), "the service")


def datagrams(lab, address, port, ns=None):
    """From where the service sees datagrams come."""
    said = ports.udp(lab, address, port, "one", "two", ns=ns)
    check([line.split()[-1] for line in said] == ["one", "two"], f"datagrams to {address}: {said}")
    return said[0].split()[0].removeprefix("::ffff:")


def nobody(lab, address, port, ns=None):
    """Nobody answers there."""
    lab.run(["curl", "--silent", "--max-time", "5", f"http://{address}:{port}/"], ns, status=7)


def hosts_own_server(lab):
    """A server that only the host itself may reach."""
    lab.serve([sys.executable, HERE / "httpd.py", "127.0.0.1", 8001, lab.files], 8001)


# Podman


def once(lab, network, script, **more):
    """A script in a container that is gone afterwards."""
    return lab.podman("run", "--rm", "--network", network, "bb", "sh", "-c", script, **more)


@needs("podman", "runc", "busybox")
def caller_podman_address_names_and_way_out(lab):
    out = once(lab, "slirp4netns", f"ip addr; ip route; cat /etc/resolv.conf; nslookup files.lab.test; {FETCH} http://files.lab.test:8000/hello")
    has(out, "tap0:", "mtu 65520", "inet 10.0.2.100/24", "default via 10.0.2.2 dev tap0", "nameserver 10.0.2.3",
        f"Address: {FAR4}", "hello from afar\n")


@needs("podman", "runc", "busybox")
def caller_podman_ipv6(lab):
    # The address comes by router advertisement.
    wait = "for i in $(seq 100); do ip -6 addr show dev tap0 | grep -q 'fd00:' && break; usleep 100000; done"
    out = once(lab, "slirp4netns:enable_ipv6=true", f"{wait}; ip -6 addr; {FETCH} http://[{FAR6}]:8000/whoami")
    has(out, "inet6 fd00:", "fd09:")
    out = once(lab, "slirp4netns:enable_ipv6=false", "sleep 1; ip -6 addr")
    check("fd00:" not in out, out)


@needs("podman", "runc", "busybox")
def caller_podman_cidr(lab):
    out = once(lab, "slirp4netns:cidr=10.77.0.0/16",
               f"ip addr; ip route; cat /etc/resolv.conf; nslookup far.lab.test; {FETCH} http://{FAR4}:8000/hello")
    has(out, "inet 10.77.0.100/16", "default via 10.77.0.2", "nameserver 10.77.0.3", f"Address: {FAR4}", "hello from afar\n")


@needs("podman", "runc", "busybox")
def caller_podman_mtu(lab):
    out = once(lab, "slirp4netns:mtu=1500", f"ip link show tap0; {FETCH} http://{FAR4}:8000/big | sha256sum")
    has(out, "mtu 1500", lab.big_digest)


@needs("podman", "runc", "busybox")
def caller_podman_host_loopback(lab):
    hosts_own_server(lab)
    fetch = f"{FETCH} http://10.0.2.2:8001/hello"
    check(once(lab, "slirp4netns:allow_host_loopback=true", fetch) == "hello from afar\n", "the host's loopback")
    once(lab, "slirp4netns", fetch, status=1)
    once(lab, "slirp4netns:allow_host_loopback=false", fetch, status=1)


@needs("podman", "runc", "busybox")
def caller_podman_outbound_addr(lab):
    ask = f"{FETCH} http://{FAR4}:8000/whoami"
    for words, address in (("", HOST4), (":outbound_addr=10.9.1.3", "10.9.1.3"), (":outbound_addr=h1", "10.9.4.2")):
        said = once(lab, f"slirp4netns{words}", ask)
        check(said == address, f"slirp4netns{words}: {said}")
    said = once(lab, "slirp4netns:outbound_addr6=fd09:1::3", f"sleep 2; {FETCH} http://[{FAR6}]:8000/whoami")
    check(said == "fd09:1::3", said)


def published(lab, network, *options):
    """A container that serves a page on the host's port 8080."""
    return lab.podman("run", "--detach", "--network", network, "-p", "8080:80", *options, "bb", *SERVE).strip()


@needs("podman", "runc", "busybox")
def caller_podman_publish_by_rootlessport(lab):
    container = published(lab, "slirp4netns")
    page(lab, "127.0.0.1", 8080)
    page(lab, HOST4, 8080, lab.far)
    lab.podman("rm", "--force", "--time", "0", container)
    nobody(lab, "127.0.0.1", 8080)


@needs("podman", "runc", "busybox")
def caller_podman_publish_by_slirp4netns(lab):
    container = published(lab, "slirp4netns:port_handler=slirp4netns")
    page(lab, "127.0.0.1", 8080)
    page(lab, HOST4, 8080, lab.far)
    # The service sees who asks; the host's loopback stands behind the gateway.
    has("".join(lab.podman_says("logs", container)), FAR4, "10.0.2.2")
    lab.podman("rm", "--force", "--time", "0", container)
    nobody(lab, "127.0.0.1", 8080)


@needs("podman", "runc", "busybox")
def caller_podman_publish_udp_by_slirp4netns(lab):
    container = lab.podman("run", "--detach", "--network", "slirp4netns:port_handler=slirp4netns", "-p", "9000:9000/udp",
                           *SERVICE, "serve", "0.0.0.0", "9000").strip()
    serves(lab, container)
    check(datagrams(lab, HOST4, 9000, lab.far) == FAR4, "a client afar")
    if not lab.original:
        # The original takes the answers for traffic to the host's loopback, which Podman has switched off.
        check(datagrams(lab, "127.0.0.1", 9000) == "10.0.2.2", "a client of the host's loopback")
    lab.podman("rm", "--force", "--time", "0", container)


@needs("podman", "runc", "busybox")
def caller_podman_again_on_the_same_port(lab):
    container = published(lab, "slirp4netns:port_handler=slirp4netns", "--name", "again")
    for _ in range(3):
        page(lab, HOST4, 8080, lab.far)
        lab.podman("restart", "--time", "0", container)
    page(lab, HOST4, 8080, lab.far)
    lab.podman("stop", "--time", "0", container)
    nobody(lab, HOST4, 8080, lab.far)
    lab.podman("start", container)
    page(lab, HOST4, 8080, lab.far)
    lab.podman("rm", "--force", "--time", "0", container)


@needs("podman", "runc", "busybox")
def caller_podman_of_a_port_that_is_taken(lab):
    lab.serve([sys.executable, HERE / "httpd.py", "0.0.0.0", 8080, lab.files], 8080)
    said = lab.podman_says("run", "--rm", "--network", "slirp4netns:port_handler=slirp4netns", "-p", "8080:80", "bb",
                           "true", status=126)
    has(said[1], "add_hostfwd")


@needs("podman", "runc", "busybox")
def caller_podman_pod(lab):
    lab.podman("pod", "create", "--name", "pod", "--network", "slirp4netns:port_handler=slirp4netns", "-p", "8080:80",
               "--infra-image", "bb", "--infra-command", "/bin/sleep 1000")
    lab.podman("run", "--detach", "--pod", "pod", "bb", *SERVE)
    page(lab, HOST4, 8080, lab.far)
    # Another container of the pod is on the same network.
    out = lab.podman("run", "--rm", "--pod", "pod", "bb", "sh", "-c", f"{FETCH} http://127.0.0.1/; {FETCH} http://far.lab.test:8000/hello")
    check(out == PAGE + "hello from afar\n", out)
    lab.podman("pod", "rm", "--force", "--time", "0", "pod")
    nobody(lab, HOST4, 8080, lab.far)


@needs("podman", "runc", "busybox", "/usr/lib/podman/netavark", "/usr/lib/podman/aardvark-dns", "iptables")
def caller_podman_bridge_network(lab):
    lab.podman("network", "create", "front")
    lab.podman("run", "--detach", "--network", "front", "--name", "web", "-p", "8080:80", "bb", *SERVE)
    page(lab, "127.0.0.1", 8080)
    page(lab, HOST4, 8080, lab.far)
    # Another one finds it by name, and the way out leads through us.
    out = once(lab, "front", f"{FETCH} http://web/; {FETCH} http://files.lab.test:8000/whoami")
    check(out == PAGE + HOST4, out)
    lab.podman("rm", "--force", "--time", "0", "web")
    lab.podman("network", "rm", "--force", "front")
    nobody(lab, "127.0.0.1", 8080)


@needs("podman", "crun", "busybox")
def caller_podman_with_crun(lab):
    out = lab.podman("--runtime", "crun", "run", "--rm", "--cgroups=disabled", "--network", "slirp4netns", "bb",
                     "sh", "-c", f"ip addr; {FETCH} http://files.lab.test:8000/hello")
    has(out, "inet 10.0.2.100/24", "hello from afar\n")


@needs("podman", "runc", "busybox", own=True)
def caller_podman_hook(lab):
    podman_hook(lab)


@needs("podman", "crun", "busybox", own=True)
def caller_podman_hook_with_crun(lab):
    podman_hook(lab, "--runtime", "crun")


def podman_hook(lab, *runtime):
    hooks = PLACE / "home/hooks.d"
    hooks.mkdir(exist_ok=True)
    for path in (EXAMPLES / "oci/hooks.d").iterdir():
        (hooks / path.name).write_text(path.read_text().replace("/usr/bin/tapline", str(lab.tapline_itself)))
    resolvers = PLACE / "home/resolv.conf"
    resolvers.write_text("nameserver 10.0.2.3\n")
    container = lab.podman(*runtime, "--hooks-dir", hooks, "run", "--network", "none", "--annotation", "tapline.publish=8080:80",
                           "--volume", f"{resolvers}:/etc/resolv.conf:ro", "--detach", "--name", "hooked", "bb", *SERVE).strip()
    page(lab, HOST4, 8080, lab.far)
    out = lab.podman(*runtime, "exec", "hooked", "sh", "-c", f"ip addr; {FETCH} http://files.lab.test:8000/hello")
    has(out, "inet 10.0.2.100/24", "hello from afar\n")
    # Who looks from outside finds it by the container's id.
    has(lab.does(lab.tapline_itself, "ps"), container[:12])
    lab.podman(*runtime, "--hooks-dir", hooks, "rm", "--force", "--time", "0", "hooked")
    # A mistake ends the start, and is shown; crun writes it where it is told to.
    log = PLACE / "home/hook.log"
    said = lab.podman_says(*runtime, "--hooks-dir", hooks, "run", "--rm", "--network", "none", "--annotation",
                           "tapline.publsh=80", "--annotation", f"run.oci.hooks.stderr={log}", "bb", "true", status=126)
    has(log.read_text() if runtime else said[1], "tapline.publsh: unknown; did you mean tapline.publish?")


@needs("podman", "runc", "busybox")
def caller_podman_killed(lab):
    """Nobody is left to say that it is over: conmon, who holds the exit fd, the container, and the helper itself."""
    lab.podman("run", "--detach", "--name", "killed", "--network", "slirp4netns:port_handler=slirp4netns",
               "--publish", "8080:80", "bb", *SERVE)
    page(lab, HOST4, 8080, lab.far)
    for who in ("ConmonPid", "Pid"):
        os.kill(int(lab.podman("inspect", "--format", "{{.State.%s}}" % who, "killed")), signal.SIGKILL)
    wait_until(lambda: not lab.helpers(), "the end of the helper")
    # Podman notices that it has ended, and says so, the first time.
    lab.does("sh", "-c", "for turn in 1 2 3; do podman rm --force --time 0 killed 2>&1 && break; done")
    # The same ports at once, and now the helper alone is killed: the container stays, without a network.
    lab.podman("run", "--detach", "--name", "alone", "--network", "slirp4netns:port_handler=slirp4netns",
               "--publish", "8080:80", "bb", *SERVE)
    page(lab, HOST4, 8080, lab.far)
    for process in lab.helpers():
        try:
            os.kill(int(process), signal.SIGKILL)
        except ProcessLookupError:
            # It has ended with another.
            pass
    wait_until(lambda: not lab.helpers(), "the end of the helper")
    check("tap0" not in lab.podman("exec", "alone", "ip", "link"), "an interface without a helper")
    lab.podman("rm", "--force", "--time", "0", "alone")


# Buildah


@needs("buildah", "runc", "busybox")
def caller_buildah_run(lab):
    path = f"{PLACE}/bin:{lab.environment['PATH']}"
    environment = lab.environment | {"PATH": path}
    buildah = [*lab.as_user(), "buildah"]

    def does(*words):
        return lab.run([*buildah, *words], env=environment, cwd=PLACE / "home")[0]

    container = does("from", "scratch").strip()
    does("add", container, lab.image, "/")
    script = f"ip addr; ip route; cat /etc/resolv.conf; {FETCH} http://files.lab.test:8000/hello"
    out = does("run", "--runtime", "runc", container, "/bin/sh", "-c", script)
    has(out, "mtu 65520", "inet 10.0.2.100/24", "default via 10.0.2.2", "nameserver 10.0.2.3", "hello from afar\n")
    does("rm", container)


# RootlessKit


class Kit:
    """RootlessKit with a shell below it that lives as long as the case."""

    def __init__(self, lab, *options):
        self.lab, self.log, self.state = lab, lab.scratch / "rootlesskit.log", PLACE / "run/kit"
        words = ["rootlesskit", f"--state-dir={self.state}", "--net=slirp4netns", f"--slirp4netns-binary={lab.slirp}",
                 "--copy-up=/etc", *options, "sh", "-c", "echo ready; exec cat"]
        self.process = lab.spawn([*lab.as_user(), *words], stdin=subprocess.PIPE, stdout=open(self.log, "w"),
                                 stderr=subprocess.STDOUT, cwd=PLACE / "home")
        wait_until(lambda: "ready\n" in self.said(), "RootlessKit's command")
        # Which it may write later than its command does.
        self.child = wait_until(self.written, "RootlessKit's child_pid")
        wait_until((self.state / "api.sock").exists, "RootlessKit's api.sock")

    def written(self):
        path = self.state / "child_pid"
        return path.exists() and path.read_text()

    def said(self):
        check(self.process.poll() is None, f"RootlessKit has ended: {self.log.read_text()}")
        return self.log.read_text()

    def inside(self):
        """What stands in front of a command line there."""
        return ["nsenter", f"--target={self.child}", "--user", "--net", "--mount", "--"]

    def says(self, script):
        return self.lab.run([*self.inside(), "sh", "-c", script], cwd="/")[0]

    def serve(self, argv):
        self.lab.spawn([*self.inside(), *argv], cwd="/", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def ports(self, *words):
        return self.lab.does("rootlessctl", f"--socket={self.state}/api.sock", *words)

    def end(self):
        self.process.stdin.close()
        self.process.wait(timeout=LIMIT)


@needs("rootlesskit", "busybox")
def caller_rootlesskit_its_own_tap(lab):
    kit = Kit(lab, "--mtu=65520", "--disable-host-loopback")
    # The TAP is RootlessKit's, and so are the addresses on it.
    out = kit.says("ip addr show tap0; ip route; cat /etc/resolv.conf; dig +short files.lab.test; curl -s --max-time 20 http://files.lab.test:8000/hello")
    has(out, "mtu 65520", "inet 10.0.2.100/24", "default via 10.0.2.2 dev tap0", "nameserver 10.0.2.3", FAR4, "hello from afar\n")
    # 10.0.2.2 leads nowhere.
    hosts_own_server(lab)
    lab.run([*kit.inside(), "curl", "-s", "--max-time", "5", "http://10.0.2.2:8001/hello"], cwd="/", status=7)
    kit.end()


@needs("rootlesskit", "busybox")
def caller_rootlesskit_sandbox_seccomp_cidr_ipv6(lab):
    kit = Kit(lab, "--slirp4netns-sandbox=true", "--slirp4netns-seccomp=true", "--cidr=10.77.0.0/24", "--ipv6",
              "--disable-host-loopback")
    wait = "for i in $(seq 100); do ip -6 addr show dev tap0 -tentative | grep -q 'inet6 fd00:' && break; sleep 0.1; done"
    out = kit.says(f"{wait}; ip addr show tap0; dig +short files.lab.test; curl -s --max-time 20 http://files.lab.test:8000/hello; "
                   f"curl -s --max-time 20 http://[{FAR6}]:8000/hello")
    has(out, "inet 10.77.0.100/24", "inet6 fd00:", FAR4, "hello from afar\n" * 2)
    kit.end()


def rootlesskit_ports(lab, driver):
    kit = Kit(lab, "--disable-host-loopback", f"--port-driver={driver}", "-p", "0.0.0.0:8080:80/tcp")
    (PLACE / "home/www").mkdir(exist_ok=True)
    (PLACE / "home/www/index.html").write_text(PAGE)
    for port in (80, 81):
        kit.serve(["busybox", "httpd", "-f", "-p", str(port), "-h", PLACE / "home/www"])
    page(lab, HOST4, 8080, lab.far)
    page(lab, "127.0.0.1", 8080)
    # Another one while it runs, and away with it.
    number = kit.ports("add-ports", "0.0.0.0:8081:81/tcp").strip()
    page(lab, HOST4, 8081, lab.far)
    has(kit.ports("list-ports"), "8080", "8081")
    kit.ports("remove-ports", number)
    nobody(lab, HOST4, 8081, lab.far)
    kit.end()
    nobody(lab, HOST4, 8080, lab.far)


@needs("rootlesskit", "rootlessctl", "busybox")
def caller_rootlesskit_port_driver_slirp4netns(lab):
    rootlesskit_ports(lab, "slirp4netns")


@needs("rootlesskit", "rootlessctl", "busybox")
def caller_rootlesskit_port_driver_builtin(lab):
    rootlesskit_ports(lab, "builtin")


@needs("rootlesskit", "busybox")
def caller_rootlesskit_host_loopback(lab):
    hosts_own_server(lab)
    kit = Kit(lab)
    check(kit.says("curl -s --max-time 20 http://10.0.2.2:8001/hello") == "hello from afar\n", "the host's loopback")
    kit.end()


@needs("rootlesskit", "busybox")
def caller_rootlesskit_killed(lab):
    kit = Kit(lab)
    os.killpg(kit.process.pid, signal.SIGKILL)
    kit.process.wait(timeout=LIMIT)


# Hooks and bubblewrap


@needs("runc", "busybox", own=True)
def caller_runc_hook(lab):
    example(lab, "runc")


@needs("crun", "busybox", own=True)
def caller_crun_hook(lab):
    example(lab, "crun")


def example(lab, runtime):
    out = lab.does(PLACE / "examples/oci-hook.sh", runtime, "8080")
    has(out, PAGE, "hooked-", "10.0.2.100", "127.0.0.1:8080->80/tcp")
    nobody(lab, "127.0.0.1", 8080)


class Bundle:
    """A container of runc or crun by itself."""

    def __init__(self, lab, name, annotations, script, resolver=None, runtime="runc"):
        self.lab, self.name, self.path = lab, name, PLACE / "home" / f"bundle-{name}"
        self.runtime = runtime
        if self.path.exists():
            shutil.rmtree(self.path)
        self.path.mkdir()
        os.chown(self.path, UID, UID)
        make = [PLACE / "examples/oci/make_bundle.py", self.path, runtime, lab.tapline_itself, *annotations]
        lab.does(*make, "--", "sh", "-c", script)
        if resolver:
            (self.path / "resolv.conf").write_text(f"nameserver {resolver}\n")

    def argv(self, *words):
        return [*self.lab.as_user(), self.runtime, "--root", PLACE / "run" / self.runtime, *words]

    def run(self, **more):
        return self.lab.run(self.argv("run", "--bundle", self.path, self.name), **{"cwd": PLACE / "home"} | more)

    def begin(self):
        """Run it in the background; ends it with `end`."""
        out = open(PLACE / f"home/{self.name}.log", "w+")
        argv = self.argv("run", "--bundle", self.path, self.name)
        process = self.lab.spawn(argv, cwd=PLACE / "home", stdout=out, stderr=subprocess.STDOUT)
        wait_until(lambda: process.poll() is not None or "begun" in Path(out.name).read_text(), "the container's program")
        check(process.poll() is None, Path(out.name).read_text())
        return process

    def end(self, process):
        self.lab.run(self.argv("kill", self.name, "KILL"))
        process.wait(timeout=LIMIT)


@needs("runc", "busybox", own=True)
def caller_runc_hook_names_and_way_out(lab):
    hosts_own_server(lab)
    script = f"ip addr; nslookup files.lab.test; {FETCH} http://{FAR4}:8000/hello; {FETCH} http://10.7.0.2:8001/hello"
    words = ["tapline.subnet=10.7.0.0/24", "tapline.host-loopback=true", "tapline.mtu=1400", "tapline.ifname=eth7"]
    out = Bundle(lab, "one", words, script, "10.7.0.3").run()[0]
    has(out, "eth7:", "mtu 1400", "inet 10.7.0.100/24", f"Address: {FAR4}", "hello from afar\n" * 2)
    out = Bundle(lab, "one", ["tapline.net=none"], "ip addr").run()[0]
    check("lo:" in out and "tap0" not in out, out)


@needs("runc", "busybox", own=True)
def caller_runc_hook_that_refuses(lab):
    for annotation, sentence in (
        ("tapline.publsh=80", "annotation tapline.publsh: unknown; did you mean tapline.publish?"),
        ("tapline.mtu=9", "annotation tapline.mtu: '9' is no value"),
        ("tapline.net=host", "'--net host' is for `tapline run`"),
        # An image's annotations may get here, too.
        ("tapline.pcap=/tmp/frames", "annotation tapline.pcap: --pcap is for the command line only"),
    ):
        err = Bundle(lab, "bad", [annotation], "echo has begun").run(status=1)[1]
        has(err, sentence)
    taken = lab.serve([sys.executable, HERE / "httpd.py", "127.0.0.1", 8080, lab.files], 8080)
    err = Bundle(lab, "bad", ["tapline.publish=127.0.0.1:8080:80"], "echo has begun").run(status=1)[1]
    has(err, "127.0.0.1:8080")
    taken.kill()
    # The way a runtime would never call it.
    for text, status in (("", 2), ("{}", 2), ('{"id":"a"}', 2), ('{"id":"a","pid":4194304}', 125)):
        lab.run([*lab.as_user(), lab.tapline_itself, "oci-hook", "createRuntime"], input=text, status=status)
    lab.run([*lab.as_user(), lab.tapline_itself, "oci-hook", "poststop"], input='{"id":"nobody"}')


@needs("runc", "busybox", own=True)
def caller_runc_hook_two_on_a_shared_network(lab):
    lab.does(lab.tapline_itself, "network", "create", "--subnet", "10.8.0.0/24", "--gateway", "10.8.0.1", "front")
    web = Bundle(lab, "web", ["tapline.net=front", "tapline.network-alias=www,page", "tapline.ip=10.8.0.7",
                              "tapline.publish=0.0.0.0:8080:80"], "echo begun; httpd -f -p 80 -h /etc")
    (web.path / "rootfs/etc/index.html").write_text(PAGE)
    running = web.begin()
    page(lab, HOST4, 8080, lab.far)
    script = f"for name in www page; do nslookup $name; done; {FETCH} http://10.8.0.7/; {FETCH} http://{FAR4}:8000/hello"
    out = Bundle(lab, "client", ["tapline.net=front"], script, "10.8.0.1").run()[0]
    has(out, PAGE, "hello from afar\n")
    check(out.count("Address: 10.8.0.7") == 2, out)
    web.end(running)
    lab.does(lab.tapline_itself, "network", "rm", "front")


@needs("runc", "busybox", own=True)
def caller_runc_hook_without_poststop(lab):
    # Everything that could have called it is killed.
    bundle = Bundle(lab, "lost", ["tapline.publish=8080:80"], "echo begun; exec sleep 1000")
    running = bundle.begin()
    served = lab.in_the_background()
    check(len(served) >= 2 and str(bundle.path) not in served, f"working directories: {served}")
    state = json.loads(lab.run(bundle.argv("state", "lost"))[0])
    os.kill(running.pid, signal.SIGKILL)
    os.kill(state["pid"], signal.SIGKILL)
    running.wait(timeout=LIMIT)


@needs("crun", "busybox", own=True)
def caller_crun_hook_without_capabilities(lab):
    # crun hides a container's process until its program runs: createRuntime says so, poststart is late enough.
    log = PLACE / "home/crun-hook.log"
    words = ["tapline.publish=8080:80", f"run.oci.hooks.stderr={log}"]
    script = f"until ip addr | grep -q 10.0.2.100; do usleep 10000; done; {FETCH} http://{FAR4}:8000/hello"
    bundle = Bundle(lab, "bare", words, script, runtime="crun")
    bundle.run(status=255)
    has(log.read_text(), "crun hides it until the program runs")
    path = bundle.path / "config.json"
    config = json.loads(path.read_text())
    config["hooks"]["poststart"] = config["hooks"].pop("createRuntime")
    path.write_text(json.dumps(config))
    check(bundle.run()[0] == "hello from afar\n", "a way out")


@needs("bwrap", own=True)
def caller_bubblewrap(lab):
    script = "ip addr; ip route; cat /etc/resolv.conf; curl -s --max-time 20 http://files.lab.test:8000/hello; exit 7"
    out = lab.run([*lab.as_user(), PLACE / "examples/bubblewrap.sh", "sh", "-c", script], cwd=PLACE / "home", status=7)[0]
    has(out, "inet 10.0.2.100/24", "default via 10.0.2.2 dev tap0", "nameserver 10.0.2.3", "hello from afar\n")
    # Without its network the sandbox does not wait for ever.
    words = ["env", "TAPLINE=/bin/false", PLACE / "examples/bubblewrap.sh", "echo", "has begun"]
    check(lab.run([*lab.as_user(), *words], cwd=PLACE / "home", status=1)[0] == "", "it began without a network")
    wait_until(lambda: not lab.processes("bwrap"), "the end of bwrap")
