"""The cases about shared networks: who reaches whom, names, what a person may do to a network, and what may go wrong."""
import functools
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from cases import CURL, case, has, url
from lab import FAR4, FAR6, HERE, HOST4, HOST6, LIMIT, Shell, check, wait_until
from ports import SERVICE, ask, udp

PROBE = [sys.executable, HERE / "netprobe.py"]
EXAMPLES = HERE.parent.parent / "examples"
BAD, NONSENSE = 125, 2


def networks(function):
    """A case with directories of its own for state and definitions, and so with a gateway process of its own."""

    @functools.wraps(function)
    def with_directories(place):
        before = place.environment
        base = place.scratch / function.__name__
        shutil.rmtree(base, ignore_errors=True)
        (base / "run").mkdir(parents=True)
        (base / "run").chmod(0o700)
        place.others = set(shared_gateways())
        place.environment = before | {"XDG_RUNTIME_DIR": str(base / "run"), "XDG_DATA_HOME": str(base / "data")}
        try:
            return function(place)
        finally:
            place.environment = before

    return case(with_directories)


def runtime(place):
    return Path(place.environment["XDG_RUNTIME_DIR"])


def definitions(place):
    return Path(place.environment["XDG_DATA_HOME"]) / "tapline" / "networks"


def tapline(place, *words, status=0):
    """What tapline says to a command line: (standard output, standard error)."""
    return place.run(place.program(*words), status=status)


def network(place, *words):
    return tapline(place, "network", *words)[0]


def refusal(place, *words):
    """A command line that cannot be done: the one line that it says."""
    out, err = tapline(place, *words, status=BAD)
    check(not out and err.count("\n") == 1, f"{shlex.join(words)}: not one line: {out}{err}")
    return err


class Box:
    """A sandbox with a shell in it and, where asked, the service of service.py on some ports."""

    def __init__(self, place, name, *options, serve=()):
        self.place, self.name = place, name
        self.shell = Shell(place, place.program("run", "--name", name, *options, "--", "sh"))
        self.process = self.shell.process
        for port in serve:
            self.serve(port)

    def does(self, script):
        return self.shell.does(script)

    def serve(self, port, at="::"):
        log = self.place.scratch / f"{self.name}-{at.replace(':', '.')}-{port}.log"
        log.write_text("")
        self.does(f"{shlex.join(map(str, SERVICE))} serve {at} {port} >{log} 2>&1 &")
        wait_until(lambda: "ready" in log.read_text(), f"the service of {self.name} at port {port}")

    def start(self, *argv, **more):
        """Start something else in the sandbox."""
        more = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True} | more
        return self.place.spawn(self.place.program("exec", self.name, "--", *argv), **more)

    def ask(self, address, port, request):
        return self.place.run(self.place.program("exec", self.name, "--", *SERVICE, "ask", address, port, *request.split()))[0].strip()

    def addresses(self, ifname="eth0"):
        """Of an interface: (IPv4, IPv6, link-local)."""
        found = {"inet": None, "inet6": None, "link": None}
        for link in json.loads(self.does(f"ip -j addr show dev {ifname}")):
            for info in link["addr_info"]:
                kind = "link" if info["scope"] == "link" and info["family"] == "inet6" else info["family"]
                found[kind] = info["local"]
        return found["inet"], found["inet6"], found["link"]

    def interfaces(self):
        return [link["ifname"] for link in json.loads(self.does("ip -j link"))]

    def gateway(self, ifname="eth0"):
        """The gateway's addresses on an interface's network; it is the subnet's first."""
        v4, v6, _ = self.addresses(ifname)
        prefix = json.loads(self.does(f"ip -j -4 addr show dev {ifname}"))[0]["addr_info"][0]["prefixlen"]
        number = int.from_bytes(bytes(map(int, v4.split("."))), "big") >> (32 - prefix) << (32 - prefix)
        return ".".join(map(str, (number + 1).to_bytes(4, "big"))), v6.rsplit("::", 1)[0] + "::1"

    def end(self):
        """Its command ends; so does the sandbox."""
        self.process.stdin.close()
        self.process.wait(timeout=LIMIT)


def shared_gateways():
    """The processes that serve shared networks, whoever's."""
    found = []
    for directory in Path("/proc").glob("[0-9]*"):
        try:
            words = (directory / "cmdline").read_bytes().split(b"\0")
            if words[1:2] == [b"gateway"] and b"--listen" in words and os.stat(directory).st_uid == os.getuid():
                found.append(int(directory.name))
        except OSError:
            pass
    return found


def gateways(place):
    """Those of this case: an earlier case's may still have its two seconds."""
    return [pid for pid in shared_gateways() if pid not in place.others]


def the_gateway(place):
    found = gateways(place)
    check(len(found) == 1, f"gateways: {found}")
    return found[0]


def is_gone(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] in "ZX"
    except OSError:
        return True


def names_in_ps(place):
    lines = tapline(place, "ps", "--format", "json")[0].splitlines()
    return sorted(json.loads(line)["name"] for line in lines)


def names_of_networks(place):
    return sorted(json.loads(line)["name"] for line in network(place, "ls", "--format", "json").splitlines())


def entries(place):
    """The sandboxes that have files in the state directory."""
    return sorted(p.name for p in runtime(place).glob("tapline/*/sandboxes/*"))


# Who reaches whom

KINDS = ("tcp", "udp", "ping")
# Each network with its options.
NETWORKS = {"red": (), "blue": (), "inner": ("--internal",), "shut": ("--icc=false",)}
# Each sandbox with its networks and further options.
SANDBOXES = {
    "a": (["red"], ()),
    "b": (["red"], ()),
    "c": (["blue"], ()),
    "both": (["red", "blue"], ()),
    "in1": (["inner"], ()),
    "in2": (["inner", "red"], ()),
    "s": (["shut"], ("--expose", "80", "--expose", "80/udp")),
    "t": (["shut"], ()),
    "links": (["shut"], ("--link", "s")),
}
# One row for each network: who is reached there, and by whom. Nobody else is reached, not by any address.
REACHED = {
    ("a", "red"): "b both in2",
    ("b", "red"): "a both in2",
    ("both", "red"): "a b in2",
    ("in2", "red"): "a b both",
    ("c", "blue"): "both",
    ("both", "blue"): "c",
    ("in1", "inner"): "in2",
    ("in2", "inner"): "in1",
    ("s", "shut"): "links",
    ("t", "shut"): "",
    ("links", "shut"): "",
}
# Who gets out. (The host is at the address of each gateway that is not an internal network's.)
OUT = "a b c both in2 s t links"


@networks
def reachability(lab):
    for name, options in NETWORKS.items():
        network(lab, "create", *options, name)
    lab.serve([*SERVICE, "serve", "::", "8201"], 8201)
    lab.serve([*SERVICE, "serve", "::", "8201"], 8201, lab.far)
    boxes, addresses = {}, {}
    for name, (nets, options) in SANDBOXES.items():
        box = boxes[name] = Box(lab, name, *(w for net in nets for w in ("--net", net)), *options, serve=(80, 81))
        for number, net in enumerate(nets):
            addresses[name, net] = box.addresses(f"eth{number}")
    targets = {}
    for (name, net), (v4, v6, link) in addresses.items():
        for other in boxes:
            if other == name:
                continue
            wanted = other in REACHED[name, net].split()
            for address in (v4, v6):
                for kind in KINDS:
                    # Whether a link lets a ping in is nobody's promise.
                    if not (net == "shut" and wanted and kind == "ping"):
                        targets.setdefault(other, {})[f"{kind}/{address}" + "/80" * (kind != "ping")] = (name, net, wanted)
                # What is not exposed is not open, link or no link.
                targets[other][f"tcp/{address}/81"] = (name, net, wanted and net != "shut")
            if net in SANDBOXES[other][0]:
                scope = f"eth{SANDBOXES[other][0].index(net)}"
                targets[other][f"tcp/{link}%{scope}/80"] = (name, net, wanted)
    for name, box in boxes.items():
        for number, net in enumerate(SANDBOXES[name][0]):
            for gateway in box.gateway(f"eth{number}"):
                targets[name][f"tcp/{gateway}/8201"] = ("the host", f"{net}'s gateway", "--internal" not in NETWORKS[net])
        for far in (FAR4, FAR6, HOST4, HOST6):
            for kind in ("tcp", "udp"):
                targets[name][f"{kind}/{far}/8201"] = ("the far host", "outside", name in OUT.split())
    asked = {name: boxes[name].start(*PROBE, "try", "3", *wanted) for name, wanted in targets.items()}
    wrong = []
    for name, process in asked.items():
        out, err = process.communicate(timeout=LIMIT)
        check(process.returncode == 0, f"{name}: {out}{err}")
        for (target, (other, net, wanted)), got in zip(targets[name].items(), json.loads(out)):
            if got != wanted:
                wrong.append(f"{name} {'reaches' if got else 'does not reach'} {other} of {net} by {target}")
    check(not wrong, "; ".join(wrong))
    return f"{sum(map(len, targets.values()))} ways"


@networks
def the_default_is_bridge(lab):
    first = Box(lab, "first", serve=(80,))
    second = Box(lab, "second", "--net", "bridge")
    has(second.ask("first", 80, "whoami"), "end")
    check(names_of_networks(lab) == ["bridge"], "made on first use")
    check(first.does("ip route show default").split()[:3] == ["default", "via", first.gateway()[0]], "the way out")
    has(first.does(f"{CURL} {url(FAR4, 'hello')} {url(FAR6, 'hello')} {url('files.lab.test', 'hello')}"), "hello from afar\n" * 3)
    private = Box(lab, "alone", "--net", "private")
    check(private.interfaces() == ["lo", "tap0"] and private.does("ip -4 -o addr show tap0").split()[3] == "10.0.2.100/24", "private")


# Names


def short(box, *questions):
    """`dig +short` of each question: what was answered, sorted."""
    script = "; ".join(f"dig +tries=1 +time=5 +short {question}; echo ::" for question in questions)
    return [sorted(answer.split()) for answer in box.does(script).split("::\n")[:-1]]


@networks
def names_forwards_and_backwards(lab):
    for name, options in NETWORKS.items():
        network(lab, "create", *options, name)
    a = Box(lab, "a", "--net", "red")
    b = Box(lab, "b", "--net", "red", "--network-alias", "store", "--network-alias", "Shop")
    c = Box(lab, "c", "--net", "blue")
    both = Box(lab, "both", "--net", "red", "--net", "blue")
    too = Box(lab, "too", "--net", "blue", "--net", "red")
    links = Box(lab, "links", "--net", "red", "--link", "b:db")
    b4, b6, _ = b.addresses()
    identity = next(json.loads(line)["id"] for line in tapline(lab, "ps", "--format", "json")[0].splitlines() if json.loads(line)["name"] == "b")
    questions = [f"{name} {kind}" for name in ("b", "B", "store", "shop", "SHOP", identity) for kind in ("A", "AAAA")]
    for question, got in zip(questions, short(a, *questions)):
        check(got == [b6 if question.endswith("AAAA") else b4], f"{question}: {got}")
    for got in short(a, f"-x {b4}", f"-x {b6}"):
        check(got == ["b."], f"backwards: {got}")
    check(short(a, "+tcp b A", f"@{a.gateway()[1]} b A") == [[b4], [b4]], "by TCP, and by IPv6")
    out = a.does("dig +noall +answer b A")
    check(int(out.split()[1]) <= 60, f"a short life: {out}")
    has(a.does("dig b TXT"), "status: NOERROR", "ANSWER: 0")
    # Of the host.
    has(a.does("dig +short far.lab.test; getent hosts far"), FAR4, "far.lab.test")
    for name in ("host.tapline.internal", "host.docker.internal", "host.containers.internal"):
        check(short(a, f"{name} A", f"{name} AAAA") == [[g] for g in a.gateway()], name)
    check(short(both, f"@{both.gateway('eth1')[0]} host.tapline.internal A") == [[both.gateway("eth1")[0]]], "of the network asked on")
    # A link's alias is for the one that links.
    check(short(links, "db A", "b A") == [[b4], [b4]], "a link's alias")
    check(short(a, "db A") == [[]], "a link's alias for another")
    has(links.does("cat /etc/hosts; env; getent hosts db"), "db", b4, "DB_NAME=")
    # Networks that one is not on.
    c4, c6, _ = c.addresses()
    both_red, both_blue = both.addresses("eth0"), both.addresses("eth1")
    check(short(a, "c A", "c AAAA", f"-x {c4}", "both A", "both AAAA") == [[], [], [], [both_red[0]], [both_red[1]]], "from red")
    check(short(c, "a. A", f"-x {b6}", "both A") == [[], [], [both_blue[0]]], "from blue")
    for resolver in (*both.gateway("eth0"), *both.gateway("eth1")):
        got = short(both, f"@{resolver} a. A", f"@{resolver} c A", f"@{resolver} -x {c4}", f"@{resolver} too A")
        wanted = [[a.addresses()[0]], [c4], ["c."], sorted([too.addresses("eth0")[0], too.addresses("eth1")[0]])]
        check(got == wanted, f"at {resolver}: {got}, not {wanted}")
    # Nothing but local names on an internal network, unless the sandbox has another too.
    inner = Box(lab, "inner1", "--net", "inner")
    mixed = Box(lab, "inner2", "--net", "inner", "--net", "red")
    check(short(inner, "inner2 A") == [[mixed.addresses()[0]]], "a local name")
    has(inner.does("dig +tries=1 far.lab.test"), "status: NXDOMAIN")
    has(inner.does(f"dig +tries=1 -x {FAR4}"), "status: NXDOMAIN")
    for resolver in (mixed.gateway("eth0")[0], mixed.gateway("eth1")[0]):
        check(short(mixed, f"@{resolver} far.lab.test A") == [[FAR4]], f"from {resolver}")
    # A name is gone when the sandbox is; a link's follows when it comes back elsewhere.
    b.end()
    wait_until(lambda: short(a, "b A", "store A", f"-x {b4}") == [[]] * 3, "the names to go", 5)
    Box(lab, "sits-there", "--net", "red", "--ip", b4)
    b = Box(lab, "b", "--net", "red", "--network-alias", "store")
    fresh = b.addresses()[0]
    check(fresh != b4 and short(a, "b A", f"-x {fresh}", f"-x {b4}") == [[fresh], ["b."], ["sits-there."]], "another address")
    wait_until(lambda: short(links, "db A") == [[fresh]], "the link's alias", 5)
    wait_until(lambda: fresh in links.does("cat /etc/hosts") and b4 not in links.does("cat /etc/hosts"), "/etc/hosts", 5)


# What a person does to networks


@networks
def network_life_cycle(lab):
    network(lab, "create", "--subnet", "10.99.0.0/24", "--subnet", "fd99::/64", "--gateway", "10.99.0.254", "--ip-range", "10.99.0.64/26",
            "--mtu", "1400", "--label", "of=tests", "--dns-search", "red.test", "red")
    network(lab, "create", "--no-ipv6", "four")
    check(names_of_networks(lab) == ["four", "red"], names_of_networks(lab))
    file = definitions(lab) / "red.toml"
    has(file.read_text(), "10.99.0.0/24", "10.99.0.254", "10.99.0.64/26", "fd99::/64", "1400")
    box = Box(lab, "box", "--net", "red", "--net", "four")
    check(box.addresses()[0] == "10.99.0.64", box.addresses())
    has(box.does("ip link show eth0; ip route; cat /etc/resolv.conf"), "mtu 1400", "default via 10.99.0.254", "nameserver 10.99.0.254", "red.test")
    check(box.addresses("eth1")[1] is None, "no IPv6 on the other")
    mac = "02:42:" + ":".join(f"{int(part):02x}" for part in "10.99.0.64".split("."))
    has(network(lab, "inspect", "red"), '"red"', "10.99.0.0/24", "10.99.0.254", "fd99::/64", '"box"', mac, "10.99.0.64", "tests")
    document = json.loads(tapline(lab, "inspect", "box")[0])
    has(json.dumps(document), "10.99.0.64", "10.99.0.254", mac, "bridge")
    # Options of those who join.
    other = Box(lab, "other", "--net", "red", "--ip", "10.99.0.9", "--ip6", "fd99::9", "--mac", "02:00:00:00:00:09")
    check(other.addresses()[:2] == ("10.99.0.9", "fd99::9"), other.addresses())
    has(other.does("cat /sys/class/net/eth0/address"), "02:00:00:00:00:09")
    # In use.
    has(refusal(lab, "network", "rm", "red"), "red", "box", "other")
    network(lab, "prune")
    check(names_of_networks(lab) == ["four", "red"], "prune leaves what is used")
    other.end()
    network(lab, "disconnect", "four", "box")
    check(box.interfaces() == ["lo", "eth0"], box.interfaces())
    network(lab, "rm", "four")
    box.end()
    # Broken by hand: named with its line, and the others go on.
    network(lab, "create", "blue")
    good = file.read_text()
    lines = good.splitlines()
    number = next(n for n, line in enumerate(lines) if "10.99.0.0/24" in line)
    file.write_text("\n".join([*lines[:number], lines[number].replace("10.99.0.0/24", "10.99.0.0/99"), *lines[number + 1:]]) + "\n")
    out, err = tapline(lab, "network", "ls", status=None)
    has(out, "blue")
    has(err, f"red.toml:{number + 1}")
    has(refusal(lab, "run", "--net", "red", "--", "true"), f"red.toml:{number + 1}")
    Box(lab, "blue1", "--net", "blue").end()
    file.write_text(good)
    check(names_of_networks(lab) == ["blue", "red"], "mended")
    network(lab, "prune")
    check(names_of_networks(lab) == [], "pruned")
    check(list(definitions(lab).glob("*.toml")) == [], "no file is left")


@networks
def bad_input_about_networks(lab):
    for name, options in {
        "red": ("--subnet", "10.98.0.0/24", "--subnet", "fd98::/64"), "blue": (), "other": (),
        "tiny": ("--subnet", "10.98.1.0/24", "--ip-range", "10.98.1.8/31", "--no-ipv6"),
    }.items():
        network(lab, "create", *options, name)
    box = Box(lab, "box", "--net", "red", "--ip", "10.98.0.7", "--network-alias", "shop")
    Box(lab, "far-away", "--net", "blue")
    Box(lab, "mute", "--net", "none")
    Box(lab, "open", "--net", "host")
    Box(lab, "t1", "--net", "tiny")
    Box(lab, "t2", "--net", "tiny")
    create = lambda *words: ("network", "create", *words)
    run = lambda *words: ("run", *words, "--", "true")
    # The command line, its status, and words of the one line.
    table = [
        (create("--subnet", "10.98.0.0/16", "new"), BAD, "10.98.0.0/16", "red"),
        (create("--subnet", "fd98::/48", "new"), BAD, "fd98::/48", "red"),
        (create("--subnet", "10.97.0.0/24", "--gateway", "10.96.0.1", "new"), NONSENSE, "10.96.0.1", "10.97.0.0/24"),
        (create("--subnet", "10.97.0.0/24", "--ip-range", "10.96.0.0/28", "new"), NONSENSE, "10.96.0.0/28", "10.97.0.0/24"),
        (create("--subnet", "10.97.0.5/24", "new"), NONSENSE, "10.97.0.0/24"),
        (create("red"), BAD, "red"),
        (create("not_a_label"), NONSENSE, "not_a_label"),
        (create("-"), NONSENSE,),
        (create("x" * 64), NONSENSE,),
        (create("host"), NONSENSE, "host"),
        (create("none"), NONSENSE, "none"),
        (("network", "rm", "red"), BAD, "red", "box"),
        (("network", "rm", "nothing"), BAD, "nothing"),
        (("network", "rm", "bridge"), BAD, "bridge"),
        (("network", "inspect", "nothing"), BAD, "nothing"),
        (run("--net", "nothing"), BAD, "nothing", "network ls"),
        (run("--net", "red", "--ip", "10.98.0.7"), BAD, "10.98.0.7", "box"),
        (run("--net", "red", "--ip", "10.97.0.7"), BAD, "10.97.0.7", "10.98.0.0/24"),
        (run("--net", "red", "--ip", "10.98.0.1"), BAD, "10.98.0.1"),
        (run("--net", "red", "--ip6", "fd97::7"), BAD, "fd97::7"),
        (run("--net", "tiny"), BAD, "tiny", "10.98.1.8/31"),
        (run("--net", "red", "--name", "box"), BAD, "box"),
        (run("--net", "red", "--net", "red"), NONSENSE, "red"),
        (run("--net", "red", "--net", "none"), NONSENSE, "none"),
        (run("--net", "red", "--link", "nobody"), BAD, "nobody"),
        (run("--net", "red", "--link", "far-away"), BAD, "far-away"),
        (run("--net", "red", "--net", "blue", "--link", "box:db", "--link", "far-away:db"), NONSENSE, "db"),
        (run("--net", "red", "--default-net", "blue"), NONSENSE, "blue"),
        (run("--net", "red", "-p", "8080:80", "--on", "blue"), NONSENSE, "blue"),
        (run("--net", "container:nobody"), BAD, "nobody"),
        (run("--net", "container:open"), BAD, "open", "host"),
        (run("--net", "container:box", "-p", "80"), NONSENSE, "-p"),
        (run("--net", "container:self", "--name", "self"), BAD, "self"),
        (run("--net", "container:box", "--hostname", "x"), NONSENSE, "--hostname"),
        (("network", "connect", "red", "box"), BAD, "box", "red"),
        (("network", "disconnect", "blue", "box"), BAD, "box", "blue"),
        (("network", "connect", "red", "nobody"), BAD, "nobody"),
        (("network", "connect", "nothing", "box"), BAD, "nothing"),
        (("network", "connect", "red", "open"), BAD, "open", "host"),
        (("network", "connect", "--ip", "10.98.0.7", "red", "mute"), BAD, "10.98.0.7", "box"),
        (("network", "connect", "--ip", "10.99.0.7", "red", "mute"), BAD, "10.99.0.7"),
        (("network", "disconnect", "red", "mute"), BAD, "mute", "red"),
    ]
    before = state(lab)
    wrong = []
    for words, status, *wanted in table:
        process = lab.spawn(lab.program(*words), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        out, err = process.communicate(timeout=LIMIT)
        lines = [line for line in err.splitlines() if "/dev/net/tun" not in line]
        shown = f"{shlex.join(words)}: {process.returncode} {out}{err}"
        if process.returncode != status:
            wrong.append(f"not {status}: {shown}")
        elif len(lines) != (2 if status == NONSENSE else 1) or out:
            wrong.append(f"not one line: {shown}")
        elif missing := [word for word in wanted if word not in lines[0]]:
            wrong.append(f"no {missing}: {shown}")
        if (after := state(lab)) != before:
            wrong.append(f"half made: {shown}: {before} became {after}")
            before = after
    check(not wrong, "\n     ".join(["", *wrong]))
    check(box.interfaces() == ["lo", "eth0"] and box.addresses()[0] == "10.98.0.7", "the sandbox is as it was")
    # A gone sandbox, and one that goes.
    gone = Box(lab, "gone", "--net", "red")
    gone.end()
    has(refusal(lab, "run", "--net", "container:gone", "--", "true"), "gone")
    # A warning, not a refusal: the host has a route there.
    out, err = tapline(lab, "network", "create", "--subnet", "10.9.1.0/24", "over")
    has(err, "10.9.1.0/24")
    return f"{len(table)} lines"


def state(place):
    """All that a refused command line must leave as it was."""
    return names_in_ps(place), names_of_networks(place), entries(place), sorted(p.name for p in definitions(place).iterdir())


@networks
def none_and_then_connected(lab):
    network(lab, "create", "--subnet", "10.98.0.0/24", "red")
    network(lab, "create", "--internal", "inner")
    web = Box(lab, "web", "--net", "red", serve=(80,))
    web4 = web.addresses()[0]
    late = Box(lab, "late", "--net", "none")
    check(late.interfaces() == ["lo"], late.interfaces())
    network(lab, "connect", "inner", "late")
    check(late.interfaces() == ["lo", "eth0"] and late.does("ip route show default") == "", "no way out of an internal network")
    network(lab, "connect", "--ip", "10.98.0.77", "--alias", "tardy", "red", "late")
    check(late.addresses("eth1")[0] == "10.98.0.77", late.addresses("eth1"))
    has(late.ask(web4, 80, "whoami"), "10.98.0.77 ")
    has(late.does(f"{CURL} {url(FAR4, 'hello')} {url('files.lab.test', 'hello')}"), "hello from afar\n" * 2)
    late.serve(81)
    has(web.ask("tardy", 81, "whoami"), "end")
    has(late.does("cat /etc/hosts"), "10.98.0.77")
    network(lab, "disconnect", "inner", "late")
    has(late.ask(web4, 80, "whoami"), "10.98.0.77 ")
    network(lab, "disconnect", "red", "late")
    check(late.interfaces() == ["lo"] and late.does("ip route; ip rule | grep -c lookup").strip() == "3", "as before")
    check(short(web, "late A", "tardy A") == [[], []], "the names are gone")
    # The address is free again.
    Box(lab, "next", "--net", "red", "--ip", "10.98.0.77")


@networks
def connecting_leaves_other_flows_alone(lab):
    for name in ("red", "blue"):
        network(lab, "create", name)
    web = Box(lab, "web", "--net", "red", serve=(80,))
    lab.serve([*SERVICE, "serve", "::", "8202"], 8202, lab.far)
    box = Box(lab, "box", "--net", "red")
    flows = [box.start(*SERVICE, "ask", address, port, "digest", 600_000_000) for address, port in (("web", 80), (FAR4, 8202))]
    turns = 0
    while any(flow.poll() is None for flow in flows) and turns < 10:
        network(lab, "connect", "blue", "box")
        check(box.interfaces() == ["lo", "eth0", "eth1"], box.interfaces())
        has(box.does("ip route show default"), "dev eth0")
        network(lab, "disconnect", "blue", "box")
        turns += 1
    check(turns >= 2, f"only {turns} turns")
    for flow in flows:
        out, err = flow.communicate(timeout=LIMIT)
        check(out.strip() == "same end", f"a flow that was disturbed: {out}{err}")
    # The default route moves to the next network.
    network(lab, "connect", "blue", "box")
    network(lab, "disconnect", "red", "box")
    has(box.does("ip route show default"), "dev eth1")
    has(box.does(f"{CURL} {url(FAR4, 'hello')} {url('files.lab.test', 'hello')}"), "hello from afar\n" * 2)
    check(web.process.poll() is None, "the other one goes on")
    return f"{turns} turns"


@networks
def which_network_is_the_way_out(lab):
    for name, options in NETWORKS.items():
        network(lab, "create", *options, name)
    for options, ifname in (
        (("--net", "red", "--net", "blue"), "eth0"),
        (("--net", "inner", "--net", "red", "--net", "blue"), "eth1"),
        (("--net", "red", "--net", "blue", "--default-net", "blue"), "eth1"),
    ):
        box = Box(lab, "box", *options)
        for family in ("", "-6"):
            has(box.does(f"ip {family} route show default"), f"dev {ifname}")
        has(box.does(f"{CURL} {url(FAR4, 'hello')} {url(FAR6, 'hello')}"), "hello from afar\n" * 2)
        box.end()


@networks
def networks_of_others(lab):
    network(lab, "create", "red")
    web = Box(lab, "web", "--net", "red", "--add-host", "db:192.0.2.7", serve=(80,))
    peer = Box(lab, "peer", "--net", "red")
    listed = [json.loads(line) for line in tapline(lab, "ps", "--format", "json")[0].splitlines()]
    entry = next(e for e in listed if e["name"] == "web")
    for number, who in enumerate(("web", entry["id"], entry["id"][:6], str(entry["pid"]), f"ns:/proc/{entry['pid']}/ns/net")):
        whom = who if who.startswith("ns:") else f"container:{who}"
        beside = Box(lab, f"beside{number}", "--net", whom)
        check(beside.addresses() == web.addresses(), f"{whom}: {beside.addresses()}")
        has(beside.ask("127.0.0.1", 80, "whoami"), "127.0.0.1 ")
        beside.serve(8100 + number, "127.0.0.1")
        has(web.ask("127.0.0.1", 8100 + number, "whoami"), "end")
        if not who.startswith("ns:") and not who.isdigit():
            has(beside.does("cat /etc/hosts"), "192.0.2.7")
            check(beside.does("getent hosts peer").split()[0] in peer.addresses(), "names as the other one has them")
        check("web" in names_in_ps(lab) and f"beside{number}" in names_in_ps(lab), names_in_ps(lab))
        beside.end()
        # Its end is not the other's.
        has(peer.ask("web", 80, "whoami"), "end")
    # What ends up without a network goes on, and is told so once.
    beside = Box(lab, "beside", "--net", "container:web")
    web.end()
    wait_until(lambda: "web" in beside.shell.log.read_text(), "a word about it", 5)
    check(beside.does("echo still here") == "still here\n", "it goes on")
    lines = [line for line in beside.shell.log.read_text().splitlines() if line.startswith("tapline:") and "web" in line]
    check(len(lines) == 1, lines)


@networks
def the_network_of_an_attached_container(lab):
    container = lab.container()
    lab.attach(container, "--name", "held")
    same_user = ["setpriv", "--bounding-set=-all", "--inh-caps=-all", "--no-new-privs", "--", lab.binary]
    for who in ("held", str(container.pid)):
        out, _ = lab.run([*same_user, "run", "--net", f"container:{who}", "--", "sh", "-c", f"ip -o addr; {CURL} {url(FAR4, 'hello')}"])
        has(out, "tap0", "10.0.2.100", "hello from afar")


@networks
def published_with_two_networks(lab):
    for name in ("red", "blue"):
        network(lab, "create", name)
    for number, (options, ifname, other) in enumerate((((), "eth0", "eth1"), (("--on", "blue"), "eth1", "eth0"))):
        port = 8210 + number
        box = Box(lab, "box", "--net", "red", "--net", "blue", "-p", f"{port}:80", "-p", f"{port}:81/udp", *options, serve=(80,))
        # Where a datagram's answer leaves is the socket's address's business; one without has the default route's.
        for address in box.addresses(ifname)[:2]:
            box.serve(81, address)
        moved = lambda name: int(box.does(f"cat /sys/class/net/{name}/statistics/tx_bytes"))
        for address, client, ns in ((HOST4, FAR4, lab.far), (HOST6, FAR6, lab.far), (HOST4, HOST4, None)):
            before, beside = moved(ifname), moved(other)
            has(ask(lab, address, port, "whoami", ns), f"{client} ")
            check(ask(lab, address, port, "send 3000000", ns) == "same end", f"at {address}")
            has(udp(lab, address, port, "x", ns=ns)[0], f"{client} ", " x")
            check(moved(ifname) - before > 3_000_000 and moved(other) - beside < 100_000, f"answers to {client} leave by {ifname}")
        has(ask(lab, "127.0.0.1", port, "whoami"), "end")
        box.end()


# What may go wrong


def transfer(box, address, count):
    return box.start(*SERVICE, "ask", address, 80, "digest", count)


@networks
def a_shared_gateway_that_is_killed(lab):
    for name in ("red", "blue"):
        network(lab, "create", name)
    lab.serve([*SERVICE, "serve", "::", "8203"], 8203, lab.far)
    a = Box(lab, "a", "--net", "red", "--net", "blue", "-p", "8204:80", serve=(80,))
    b = Box(lab, "b", "--net", "red", serve=(80,))
    c = Box(lab, "c", "--net", "blue", serve=(80,))
    boxes = (a, b, c)
    addresses = [box.addresses() for box in boxes]
    has(ask(lab, HOST4, 8204, "whoami", lab.far), FAR4)
    # Readers that wait for something: two outwards, one inwards, two between sandboxes.
    follow = lambda box, address, port: box.start(*PROBE, "follow", address, port)
    idle = [follow(a, FAR4, 8203), follow(b, FAR6, 8203), follow(c, FAR4, 8203)]
    published = lab.spawn([*PROBE, "follow", HOST4, 8204], lab.far, stdout=subprocess.PIPE, text=True)
    between = [follow(b, "a", 80), follow(c, a.addresses("eth1")[1], 80)]
    for process in (*idle, published, *between):
        check(process.stdout.readline() == "held\n", "held")
    flows = [transfer(b, addresses[0][0], 3_000_000_000), transfer(c, a.addresses("eth1")[0], 2_000_000_000)]
    loaded = b.start(*SERVICE, "ask", FAR4, 8203, "digest", 20_000_000_000)
    rx = lambda: int(a.does("cat /sys/class/net/eth0/statistics/rx_bytes"))
    wait_until(lambda: rx() > 50_000_000, "the load")
    gateway = the_gateway(lab)
    begun = time.clock_gettime(time.CLOCK_MONOTONIC)
    os.kill(gateway, signal.SIGKILL)
    fresh = [box.start(*PROBE, "again", FAR4, 8203, 10) for box in boxes]
    slow = []
    for process in idle:
        how, when = process.stdout.readline().split()
        slow.append(float(when) - begun)
        check(how == "reset", f"an idle reader saw {how}")
    check(max(slow) < 1, f"resets came after {slow} s")
    how, when = published.stdout.readline().split()
    check(how == "reset" and float(when) - begun < 1, f"outside: {how} after {float(when) - begun:.2f} s")
    # A socket that is destroyed from outside says ECONNABORTED to whoever writes.
    said = loaded.communicate(timeout=LIMIT)[0]
    check(said.strip() == "reset" or "connection abort" in said, f"a writer saw {said!r}")
    took = max(float(process.communicate(timeout=LIMIT)[0]) for process in fresh) - begun
    check(took < 2, f"new connections after {took:.2f} s")
    check(the_gateway(lab) != gateway, "another process")
    check([box.addresses() for box in boxes] == addresses, "the same addresses")
    for address, ns in ((HOST4, lab.far), (HOST6, lab.far), ("127.0.0.1", None)):
        wait_until(lambda: "end" in ask(lab, address, 8204, "whoami", ns), f"the port at {address}", 2)
    has(b.does("getent hosts a; getent hosts far"), "a", "far.lab.test")
    # What went between sandboxes goes on.
    for process in flows:
        out, err = process.communicate(timeout=LIMIT)
        check(out.strip() == "same end", f"between two sandboxes: {out}{err}")
    for process in between:
        check(process.poll() is None, "a reader between two sandboxes")
    return f"resets after {max(slow):.2f} s, new connections after {took:.2f} s"


@networks
def twenty_at_once(lab):
    network(lab, "create", "fresh")
    go = lab.scratch / "go"
    go.unlink(missing_ok=True)
    script = f"ip -o -4 addr show eth0; ip -o -6 addr show eth0 scope global; echo ::; while ! [ -e {go} ]; do sleep 0.1; done"
    begun = time.monotonic()
    runs = [lab.spawn(lab.program("run", "--net", "fresh", "--", "sh", "-c", script), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            for _ in range(20)]
    found = []
    for process in runs:
        lines = []
        while (line := process.stdout.readline()) not in ("::\n", ""):
            lines.append(line)
        check(len(lines) == 2, f"{lines} {process.stderr.read() if process.poll() is not None else ''}")
        found += [re.search(r"inet6? (\S+)", line)[1] for line in lines]
    took = time.monotonic() - begun
    check(len(set(found)) == 40, f"addresses: {sorted(found)}")
    the_gateway(lab)
    check(len(names_in_ps(lab)) == 20 == len(entries(lab)), names_in_ps(lab))
    go.write_text("")
    for process in runs:
        out, err = process.communicate(timeout=LIMIT)
        check(process.returncode == 0, f"{process.returncode}: {err}")
    check(names_in_ps(lab) == [] == entries(lab), f"left: {entries(lab)}")
    return f"{took:.1f} s"


@networks
def the_gateway_ends_after_the_last(lab):
    network(lab, "create", "red")
    Box(lab, "one", "--net", "red").end()
    gateway = the_gateway(lab)
    two = Box(lab, "two", "--net", "bridge")
    check(the_gateway(lab) == gateway, "it waits for others")
    # Killed, the sandbox ends as well.
    two.process.kill()
    two.process.wait()
    ended = time.monotonic()
    wait_until(lambda: is_gone(gateway), "the gateway to end", 10)
    took = time.monotonic() - ended
    check(1.5 < took < 4, f"it ended after {took:.1f} s")
    Box(lab, "three", "--net", "red")
    check(the_gateway(lab) != gateway, "another one")
    return f"{took:.1f} s"


@networks
def a_gateway_for_those_inside(lab):
    outer = Box(lab, "outer", serve=(80,))
    subnet = outer.addresses()[0].rsplit(".", 1)[0]
    inner = shlex.join([str(lab.binary), "run", "--name", "inner", "--"])
    script = f"ip -o -4 addr show eth0; {CURL} {url(FAR4, 'hello')} {url('files.lab.test', 'hello')}"
    out = outer.does(f"{inner} sh -c {shlex.quote(script)}")
    has(out, "hello from afar\n" * 2)
    check(f"inet {subnet}." not in out, f"not a subnet that the host of it has: {out}")
    both = outer.start(lab.binary, "run", "--", "sleep", "100")
    wait_until(lambda: len(gateways(lab)) == 2, "a gateway inside, one outside")
    check(both.poll() is None, "the inner one runs")
    own = {os.readlink(f"/proc/{pid}/ns/net") for pid in gateways(lab)}
    check(len(own) == 2, "each in its network namespace")
    # Those inside and those outside have nothing to do with each other.
    check("inner" not in names_in_ps(lab) and len(names_in_ps(lab)) == 1, names_in_ps(lab))


@networks
def after_a_logout(lab):
    network(lab, "create", "red")
    first = Box(lab, "first", "--net", "red", "-p", "8205:80", serve=(80,))
    gateway = the_gateway(lab)
    # Its entry may be there again before the rest is gone.
    shutil.rmtree(runtime(lab) / "tapline", ignore_errors=True)
    wait_until(lambda: names_in_ps(lab) == ["first"], "the entry to be made anew", 5)
    wait_until(lambda: list(runtime(lab).glob("tapline/*/gateway.sock")), "the gateway to listen anew", 5)
    second = Box(lab, "second", "--net", "red")
    check(gateways(lab) == [gateway], f"the gateway is found again: {gateways(lab)}")
    has(second.ask("first", 80, "whoami"), "end")
    check(second.addresses()[0] != first.addresses()[0], "its own address")
    has(ask(lab, "127.0.0.1", 8205, "whoami"), "end")
    # The base itself, as logind does.
    shutil.rmtree(runtime(lab), ignore_errors=True)
    asks = f"{shlex.join(map(str, SERVICE))} ask first 80 whoami"
    has(second.does(asks), "end")
    runtime(lab).mkdir(mode=0o700, exist_ok=True)
    third = Box(lab, "third", "--net", "red")
    check(gateways(lab) == [gateway], f"the gateway is found once more: {gateways(lab)}")
    has(third.does(asks), "end")
    check(len({box.addresses()[0] for box in (first, second, third)}) == 3, "each its own address")
    has(first.does(f"{CURL} {url(FAR4, 'hello')}"), "hello")


@networks
def many_create_networks_at_once(lab):
    names = [f"net{number}" for number in range(12)]
    start = lambda *words: lab.spawn(lab.program("network", *words), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    made = {name: [start("create", name) for _ in range(3)] for name in names}
    for name, processes in made.items():
        said = [p.communicate(timeout=LIMIT)[1] for p in processes]
        check(sorted(p.returncode for p in processes) == [0, BAD, BAD], f"{name}: {said}")
    check(names_of_networks(lab) == sorted(names), names_of_networks(lab))
    subnets = re.findall(r"10\.\d+\.\d+\.\d+/20", "".join((definitions(lab) / f"{name}.toml").read_text() for name in names))
    check(len(set(subnets)) == 12, f"subnets: {subnets}")
    # Some go while others come.
    gone = [start("rm", name) for name in names[:6]]
    more = [start("create", f"more{number}") for number in range(6)]
    for process in gone + more:
        err = process.communicate(timeout=LIMIT)[1]
        check(process.returncode == 0, err)
    check(names_of_networks(lab) == sorted([*names[6:], *(f"more{n}" for n in range(6))]), names_of_networks(lab))
    check(len(list(definitions(lab).iterdir())) <= 13, f"left: {list(definitions(lab).iterdir())}")


# Sandboxes that do what they must not

# Each with how many of its frames are sent.
ATTACKS = {"arp_storm": 20000, "broadcasts": 20000, "flapping": 6000, "arp_lies": 2000, "neighbor_lies": 2000, "routers": 2000,
           "dhcp_answers": 2000, "addresses_of_others": 2000}


@networks
def attacks_leave_the_others_alone(lab):
    network(lab, "create", "red")
    web, reader, mallory = (Box(lab, name, "--net", "red", serve=serve) for name, serve in (("web", (80,)), ("reader", ()), ("mallory", ())))
    # As trusting as can be. (The gateway may announce itself; mallory may not.)
    web.does("echo 1 >/proc/sys/net/ipv4/conf/eth0/arp_accept; echo 2 >/proc/sys/net/ipv6/conf/eth0/accept_ra; true")
    before = {box: box.addresses() for box in (web, reader, mallory)}
    has(reader.ask("web", 80, "whoami"), "end")
    seen = lab.scratch / "seen"
    seen.unlink(missing_ok=True)
    sniffer = web.start(*PROBE, "sniff", "eth0", seen, stdin=subprocess.PIPE)
    check(sniffer.stdout.readline() == "ready\n", "the sniffer")
    counted = dropped(lab, "mallory")
    flow = transfer(reader, web.addresses()[0], 2_000_000_000)
    held = reader.start(*PROBE, "follow", web.addresses()[1], 80)
    check(held.stdout.readline() == "held\n", "held")
    gateway4, gateway6 = web.gateway()
    notes = []
    for kind, count in ATTACKS.items():
        words = [kind, count, "eth0", web.addresses()[0], web.addresses()[1], gateway4, gateway6]
        attack = mallory.start(*PROBE, "attack", *words)
        while attack.poll() is None:
            has(reader.ask("web", 80, "whoami"), "end")
        out, err = attack.communicate()
        check(attack.returncode == 0, f"{kind}: {out}{err}")
        # Frames still on their way are ahead of this question.
        mallory.does("ping -n -c 1 -W 5 web")
        now = dropped(lab, "mallory")
        grown = {reason: number - counted.get(reason, 0) for reason, number in now.items() if number > counted.get(reason, 0)}
        check(sum(grown.values()) >= count / 2 or kind in ("broadcasts", "arp_storm"), f"{kind}: counted {grown} of {count}")
        check(grown, f"{kind}: nothing is counted")
        notes.append(f"{kind} {'+'.join(grown)}")
        counted = now
    check(flow.communicate(timeout=LIMIT)[0].strip() == "same end", "a transfer between two others")
    check(held.poll() is None, "an idle connection between two others")
    sniffer.stdin.close()
    check(sniffer.wait(timeout=LIMIT) == 0, f"the sniffer: {sniffer.stderr.read()}")
    saw = json.loads(seen.read_text())
    mac = lambda box: box.does("cat /sys/class/net/eth0/address").strip()
    gateway_mac = "02:42:" + ":".join(f"{int(part):02x}" for part in gateway4.split("."))
    strangers = set(saw["senders"]) - {mac(reader), mac(mallory), gateway_mac}
    check(not strangers, f"frames from {list(strangers)[:5]}")
    own = {gateway4: gateway_mac, gateway6: gateway_mac}
    for box in (reader, mallory):
        own |= {address: mac(box) for address in box.addresses()}
    lies = {ip: list(macs) for ip, macs in saw["claims"].items() if set(macs) - {own.get(ip)}}
    check(not lies, f"addresses claimed: {lies}")
    for what in ("ra", "redirect", "dhcp", "spoofed"):
        check(not set(saw[what]) - {gateway_mac}, f"{what}: {saw[what]}")
    check(sum(saw["broadcast"].values()) < 15000, f"broadcasts that came through: {saw['broadcast']}")
    for box, was in before.items():
        check(box.addresses() == was, f"{box.name}: other addresses")
        routes = box.does("ip addr; ip route; ip -6 route")
        check("fd66" not in routes and mallory.addresses()[2] not in routes.replace(f"inet6 {mallory.addresses()[2]}", ""), routes)
    has(reader.ask("web", 80, "whoami"), "end")
    has(reader.does(f"{CURL} {url(FAR4, 'hello')} {url('files.lab.test', 'hello')}"), "hello from afar\n" * 2)
    return "; ".join(notes)


def dropped(place, name):
    """Why how many frames were dropped, as the gateway counts."""
    document = json.loads(tapline(place, "inspect", name)[0])
    found = {}

    def walk(value):
        if isinstance(value, dict):
            for key, inner in value.items():
                if key == "dropped" and isinstance(inner, dict):
                    for reason, number in inner.items():
                        found[reason] = found.get(reason, 0) + number
                else:
                    walk(inner)
        elif isinstance(value, list):
            for inner in value:
                walk(inner)

    walk(document)
    return found


# Shapes of use

SUITE = """
import socket, threading, unittest

class Suite(unittest.TestCase):
    def test_the_loopback_works(self):
        for family, address in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
            listener = socket.create_server((address, 0), family=family)
            threading.Thread(target=lambda: listener.accept()[0].sendall(b"hello")).start()
            self.assertEqual(socket.create_connection(listener.getsockname()[:2], 5).recv(5), b"hello")

    def test_nothing_else_is_there(self):
        self.assertEqual([name for _, name in socket.if_nameindex()], ["lo"])
        for address in %r:
            with self.assertRaises(OSError):
                socket.create_connection((address, 8000), 5)
        with self.assertRaises(OSError):
            socket.getaddrinfo("far.lab.test", 80)

unittest.main()
"""


@case
def a_test_suite_without_a_network(lab):
    suite = lab.scratch / "suite.py"
    suite.write_text(SUITE % [FAR4, FAR6, HOST4, "127.0.0.1"])
    environment = lab.environment | {"TAPLINE": str(lab.binary)}
    run = [*lab.as_user(), EXAMPLES / "offline-tests.sh", sys.executable, suite]
    _, err = lab.run(run, env=environment)
    has(err, "Ran 2 tests", "OK")
    suite.write_text((SUITE % [FAR4]).replace('["lo"]', '["lo", "eth0"]'))
    lab.run(run, env=environment, status=1)


@networks
def the_shop_of_the_examples(lab):
    environment = lab.environment | {"TAPLINE": str(lab.binary)}
    log = open(lab.scratch / "shop.log", "w+")
    shop = lab.spawn([*lab.as_user(), EXAMPLES / "shop.sh", "8300"], env=environment, stdout=log, stderr=subprocess.STDOUT)
    said = lambda: Path(log.name).read_text()

    def is_open():
        check(shop.poll() is None, f"the shop has closed: {said()}")
        return "open: " in said()

    wait_until(is_open, "the shop to open", 30)
    page = lambda: lab.run(["curl", "-s", "--max-time", "5", "http://127.0.0.1:8300/"], status=None)[0]
    wait_until(lambda: page() == "visit 1\n", "the first visit")
    check([page(), page()] == ["visit 2\n", "visit 3\n"], "further visits")
    has(said(), "shop-db", "shop-app", "shop-web")
    reaches = lambda name, *targets: json.loads(tapline(lab, "exec", name, "--", *map(str, PROBE), "try", "2", *targets)[0])
    db = json.loads(tapline(lab, "exec", "shop-db", "--", "ip", "-j", "-4", "addr", "show", "dev", "eth0")[0])[0]["addr_info"][0]["local"]
    ping = f"ping/{db}"
    check(reaches("shop-app", ping, "ping/shop-web") == [True, True], "the application reaches both")
    check(reaches("shop-web", ping, f"tcp/{db}/6379", "ping/app") == [False, False, True], "the web server does not reach the database")
    check(reaches("shop-db", "ping/app", f"ping/{FAR4}", f"ping/{HOST4}") == [True, False, False], "the database reaches nothing else")
    for name, status in (("shop-app", 0), ("shop-db", 7)):
        tapline(lab, "exec", name, "--", *CURL.split(), url(FAR4, "hello"), status=status)
    # The database again, at another address perhaps: the application finds it by its name.
    tapline(lab, "stop", "shop-db")
    wait_until(lambda: page().startswith("no database"), "the page without a database")
    again = ["redis-server", "--bind", "*", "-::*", "--protected-mode", "no", "--save", ""]
    other = lab.spawn(lab.program("run", "--name", "shop-db2", "--net", "shop-back", "--network-alias", "db", "--", *again), stdout=subprocess.DEVNULL)
    wait_until(lambda: page() == "visit 1\n", "another database")
    other.terminate()
    other.wait(timeout=LIMIT)
    # It is told to end, and leaves nothing.
    shop.terminate()
    check(shop.wait(timeout=LIMIT) == 143, f"the shop's status is {shop.returncode}: {said()}")
    check((names_in_ps(lab), entries(lab), names_of_networks(lab)) == ([], [], []), said())
    check(page() == "", "the port is free again")


@networks
def plain_two_sandboxes(place):
    one = Box(place, "one", serve=(80,))
    two = Box(place, "two", serve=(80,))
    for asks, asked in ((one, two), (two, one)):
        has(asks.ask(asked.name, 80, "whoami"), "end")
        check(asks.ask(asked.name, 80, "digest 200000000") == "same end", "many bytes")
        has(asks.does(f"ping -n -c 2 -i 0.2 {asked.name}; ping -4 -n -c 1 {asked.name}"), "2 received", "1 received")
    gateway = the_gateway(place)
    one.end()
    two.end()
    wait_until(lambda: is_gone(gateway), "the gateway to end", 10)

