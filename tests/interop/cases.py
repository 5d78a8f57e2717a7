"""The cases, in the order in which they run."""
import json
import os
import re
import shlex
import sys
from pathlib import Path

from lab import (DNS4, DNS6, FAR4, FAR6, GATEWAY4, GATEWAY6, HERE, HOST4, HOST6, LIMIT, Skip, check, wait_until)

ALL = []
CURL = "curl --silent --show-error --fail --max-time 30"
# A path of routers, as traceroute names them. The gateway is a hop like any other.
PATH4 = ["10.0.2.2", "10.9.1.1", "10.9.2.2", FAR4]
PATH6 = ["fd00::2", "fd09:1::1", "fd09:2::2", FAR6]


class Case:
    """A function with a name, and where it runs."""

    def __init__(self, name, function):
        self.name, self.check = name, function
        first = name.split("-")[0]
        self.side = {"plain": "plain", "caller": "callers"}.get(first, "lab")


def case(function):
    ALL.append(Case(function.__name__.replace("_", "-"), function))
    return function


def url(address, path, port=8000):
    return f"http://[{address}]:{port}/{path}" if ":" in address else f"http://{address}:{port}/{path}"


def has(text, *words):
    for word in words:
        check(word in text, f"no {word!r} in {text!r}")


# HTTP


@case
def http_over_both_families(lab):
    out = lab.inside(f"{CURL} {url(FAR4, 'hello')} {url(FAR6, 'hello')}")
    check(out == "hello from afar\n" * 2, out)


@case
def http_by_name(lab):
    out = lab.inside(f"for f in 4 6; do {CURL} -$f http://files.lab.test:8000/hello http://far:8000/hello; done")
    check(out == "hello from afar\n" * 4, out)


@case
def a_hundred_megabytes_down_and_up(lab):
    for address in (FAR4, FAR6):
        out = lab.inside(f"{CURL} {url(address, 'big')} | sha256sum")
        has(out, lab.big_digest)
        out = lab.inside(f"{CURL} -T {lab.big} {url(address, 'big')}")
        check(out == lab.big_digest, f"{out} is not {lab.big_digest}")


@case
def a_hundred_megabytes_at_mtu_1500(lab):
    out = lab.inside(f"{CURL} {url(FAR4, 'big')} | sha256sum; {CURL} -T {lab.big} {url(FAR6, 'big')}", "--mtu", "1500")
    check(out.count(lab.big_digest) == 2, out)


# iperf3


def iperf(lab, far, options, *of_tapline):
    """An iperf3 client inside; the end of its report."""
    script = f"iperf3 --json --connect-timeout 5000 -c {far} -t 1 {options}"
    out, err = lab.run(lab.tapline("run", *of_tapline, "--", "sh", "-c", script), status=None)
    try:
        report = json.loads(out)
    except ValueError:
        report = {"error": f"{out} {err}"}
    check("error" not in report, f"iperf3 {options}: {report.get('error')}")
    return report["end"]


def moved(end, options):
    for which in ("sum_sent", "sum_received"):
        check(end[which]["bytes"] > 1_000_000, f"iperf3 {options}: {which}: {end[which]}")


def iperf_server(lab):
    lab.serve(["iperf3", "-s"], 5201, lab.far)


@case
def iperf3_tcp_both_ways(lab):
    iperf_server(lab)
    for far in (FAR4, FAR6):
        for options in ("", "-R"):
            moved(iperf(lab, far, options), options)
    moved(iperf(lab, FAR4, "--bidir"), "--bidir")


@case
def iperf3_tcp_sixteen_streams(lab):
    iperf_server(lab)
    for options in ("-P 16", "-P 16 -R"):
        end = iperf(lab, FAR4, options)
        moved(end, options)
        for stream in end["streams"]:
            check(stream["receiver"]["bytes"] > 0, f"iperf3 {options}: a stream that moved nothing")


@case
def iperf3_with_cubic_and_bbr(lab):
    iperf_server(lab)
    available = Path("/proc/sys/net/ipv4/tcp_available_congestion_control").read_text().split()
    tried = []
    for control in ("cubic", "bbr"):
        if control not in available:
            continue
        for options in (f"-C {control}", f"-C {control} -R"):
            moved(iperf(lab, FAR4, options), options)
        tried.append(control)
    check(tried, f"neither is here: {available}")
    return " ".join(tried)


@case
def iperf3_udp_both_ways(lab):
    iperf_server(lab)
    for far in (FAR4, FAR6):
        for options in ("-u -b 20M -l 1200", "-u -b 20M -l 1200 -R"):
            total = iperf(lab, far, options)["sum"]
            check(total["packets"] > 500, f"{options}: {total}")
            # The machine may be busy; a path that works loses nothing at this rate, a broken one nearly all.
            check(total["lost_packets"] < total["packets"] / 5, f"{options}: {total}")


# DNS


def dig(lab, *questions):
    """Each question's answer, from one sandbox."""
    script = " && ".join(f"dig +tries=1 +time=5 {question} && echo ::" for question in questions)
    return lab.inside(script).split("::\n")[:-1]


@case
def dig_of_every_kind(lab):
    a, aaaa, ptr, ptr6, txt, srv, mx, none, six = dig(
        lab,
        "+short far.lab.test A", "+short far.lab.test AAAA", f"+short -x {FAR4}", f"+short -x {FAR6}",
        "+short text.lab.test TXT", "+short _http._tcp.lab.test SRV", "+short lab.test MX", "nothing.lab.test",
        f"@{DNS6} +short far.lab.test A",
    )
    check(a == six == f"{FAR4}\n", a + six)
    check(aaaa == f"{FAR6}\n", aaaa)
    check(ptr == ptr6 == "far.lab.test.\n", ptr + ptr6)
    check(txt == '"words with spaces" "and more"\n', txt)
    check(srv == "10 20 8000 far.lab.test.\n", srv)
    check(mx == "5 far.lab.test.\n", mx)
    has(none, "status: NXDOMAIN")


@case
def dig_over_tcp_with_edns_and_without(lab):
    tcp, tcp6, edns, plain, subnet, badver = dig(
        lab, "+tcp far.lab.test", f"@{DNS6} +tcp far.lab.test AAAA", "+edns=0 +bufsize=1400 far.lab.test",
        "+noedns far.lab.test", "+subnet=192.0.2.0/24 +nsid far.lab.test", "+noall +answer far.lab.test",
    )
    has(tcp, "(TCP)", FAR4)
    has(tcp6, "(TCP)", FAR6, DNS6)
    has(edns, "EDNS: version: 0", FAR4, "(UDP)")
    check("EDNS" not in plain and FAR4 in plain, plain)
    has(subnet, FAR4)
    has(badver, FAR4)


@case
def dig_of_answers_that_do_not_fit(lab):
    cut, small, again, large = dig(
        lab, "+noedns +notcp +ignore long.lab.test TXT", "+bufsize=600 +ignore long.lab.test TXT",
        "long.lab.test TXT", "+bufsize=4096 +ignore long.lab.test TXT",
    )
    for short in (cut, small):
        check(re.search(r"flags:[^;]* tc[ ;]", short), short)
        check("000 xxx" not in short or "011 xxx" not in short, short)
    has(again, "retrying in TCP mode", "(TCP)", "011 xxx")
    has(large, "(UDP)", "000 xxx", "011 xxx")


@case
def names_inside(lab):
    out = lab.inside("getent ahostsv4 host.tapline.internal; getent ahostsv6 host.docker.internal; "
                     "getent hosts far; dig +short host.containers.internal; hostname; getent hosts $(hostname); "
                     "getent hosts web", "--hostname", "box", "--add-host", "web:192.0.2.7")
    has(out, GATEWAY4, GATEWAY6, "far.lab.test", "box", "192.0.2.7")


@case
def a_dead_first_resolver(lab):
    deaf = lab.silent("127.0.0.9")
    # Silent, without anybody at its address, without a route, and refusing.
    lab.resolvers("127.0.0.9", "10.9.1.77", "192.0.2.1", "127.0.0.8", "127.0.0.1")
    try:
        shell = lab.shell()
        check(shell.does("dig +tries=1 +time=10 +short far.lab.test") == f"{FAR4}\n", "no answer")
        # It is not waited for again.
        out = shell.does("dig +tries=1 +time=10 far.lab.test AAAA")
        took = int(re.search(r"Query time: (\d+) msec", out)[1])
        check(took < 1400, f"the second query took {took} ms")
        check(shell.does(f"{CURL} {url('files.lab.test', 'hello')}") == "hello from afar\n", "no curl")
    finally:
        lab.resolvers("127.0.0.1")
        deaf.close()


@case
def resolvers_that_change_while_it_runs(lab):
    lab.dnsmasq("127.0.0.2", zone="no-resolv\nno-hosts\nbind-interfaces\npid-file\naddress=/far.lab.test/192.0.2.99")
    shell = lab.shell()
    try:
        ask = "dig +tries=1 +time=2 +short far.lab.test A || true"
        check(shell.does(ask) == f"{FAR4}\n", "the first resolver's answer")
        for rename in (True, False):
            lab.resolvers("127.0.0.2", rename=rename)
            wait_until(lambda: shell.does(ask) == "192.0.2.99\n", f"the second resolver's answer (rename {rename})")
            lab.resolvers("127.0.0.1", rename=rename)
            wait_until(lambda: shell.does(ask) == f"{FAR4}\n", f"the first one's again (rename {rename})")
    finally:
        lab.resolvers("127.0.0.1")


# ICMP


@case
def ping_the_gateway(lab):
    out = lab.inside(f"ping -n -c 3 -i 0.2 {GATEWAY4}; ping -n -c 2 -i 0.2 {GATEWAY6}; ping -6 -n -c 1 -s 60000 {GATEWAY6};"
                     f"ping -n -c 1 -s 60000 {GATEWAY4}; ping -c 1 host.tapline.internal")
    has(out, "3 received", "2 received", f"60008 bytes from {GATEWAY4}", f"60008 bytes from {GATEWAY6}")
    check(out.count(" 0% packet loss") == 5, out)


@case
def ping_others_where_ping_sockets_are_closed(lab):
    # A new namespace allows nobody; root of a user namespace could not take the word back.
    wide = Path("/proc/sys/net/ipv4/ping_group_range")
    check(wide.read_text().split() != ["0", "0"], "another case has allowed ping sockets already")
    script = f"ping -n -c 2 -i 0.2 -W 1 {FAR4}; ping -n -c 2 -i 0.2 -W 1 {FAR6}; ping -n -c 1 {GATEWAY4}"
    out, err = lab.run(lab.tapline("run", "--", "sh", "-c", script))
    has(out, "100% packet loss", " 0% packet loss")
    lines = [line for line in err.splitlines() if "ping_group_range" in line]
    check(len(lines) == 1, f"lines about ping_group_range: {err!r}")


@case
def ping_others_where_ping_sockets_are_allowed(lab):
    lab.sysctl("net/ipv4/ping_group_range", "0 0")
    # The group that is 1000 to tapline is this one's 0.
    out = lab.inside(f"ping -n -c 2 -i 0.2 {FAR4}; ping -n -c 2 -i 0.2 {FAR6}; ping -c 1 far.lab.test; "
                     f"ping -n -c 1 -s 60000 -M dont {FAR4}")
    check(out.count(" 0% packet loss") == 4, out)
    has(out, f"60008 bytes from {FAR4}", "far.lab.test")
    # The first ones carry a don't-fragment bit and find out that they are too large, on this host or on the way.
    out = lab.inside(f"ping -n -c 4 -i 0.2 -s 60000 {FAR4}; ping -6 -n -c 4 -i 0.2 -s 20000 {FAR6}")
    has(out, f"60008 bytes from {FAR4}", f"20008 bytes from {FAR6}", "mtu = 1500", "mtu=1500")


def hops(out):
    """The routers that a traceroute names, in order."""
    return [m[1] for m in re.finditer(r"^ *\d+ +(\S+)", out, re.MULTILINE)]


@case
def traceroute_names_the_true_routers(lab):
    lab.sysctl("net/ipv4/ping_group_range", "0 0")
    for far, path in ((FAR4, PATH4), (FAR6, PATH6)):
        for how in ("", "-I"):
            out = lab.inside(f"traceroute -n -q 1 -w 3 -m 8 {how} {far}")
            check(hops(out) == path, f"traceroute {how} {far}: {out}")


@case
def traceroute_with_tcp(lab):
    for far, path in ((FAR4, PATH4), (FAR6, PATH6)):
        out = lab.inside(f"traceroute -n -q 1 -w 3 -m 8 -T -p 8000 {far}")
        check(hops(out) == path, f"traceroute -T {far}: {out}")


DONT_FRAGMENT = """
import errno, socket, sys
family, address, size = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])
v6 = family == 6
s = socket.socket(socket.AF_INET6 if v6 else socket.AF_INET, socket.SOCK_DGRAM)
s.settimeout(5)
level, discover, mtu = (41, 23, 24) if v6 else (0, 10, 14)
s.setsockopt(level, discover, 2)
if len(sys.argv) > 4:
    s.setsockopt(41, 62, 1)
s.connect((address, 7))
try:
    s.send(bytes(size))
    print(len(s.recv(70000)))
except OSError as error:
    print(errno.errorcode.get(error.errno, error))
    print(s.getsockopt(level, mtu))
"""


def echo_server(lab):
    lab.serve([sys.executable, "-c", """
import socket
s = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
s.bind(("::", 7))
while True:
    data, peer = s.recvfrom(70000)
    s.sendto(data, peer)
"""], 7, lab.far, udp=True)


@case
def path_mtu_discovery_by_udp(lab):
    echo_server(lab)
    probe = shlex.quote(DONT_FRAGMENT)
    for family, far, extra in ((4, FAR4, ""), (6, FAR6, "")):
        fits, refused, again = 1200, 1440, 1350
        for options in ((), ("--mtu", "1500")):
            shell = lab.shell(*options)
            say = lambda size: shell.does(f"python3 -c {probe} {family} {far} {size} {extra}").split()
            check(say(fits) == [str(fits)], f"{far}: a datagram that fits")
            # The first may be lost on the way while the router's word comes back; then the path's MTU is known.
            def told():
                words = say(refused)
                return words if words[0] == "EMSGSIZE" else None
            got = wait_until(told, f"EMSGSIZE from {far}")
            check(got == ["EMSGSIZE", "1400"], f"{far}: {got}")
            check(say(again) == [str(again)], f"{far}: one that fits the path")


@case
def tracepath_finds_the_small_mtu(lab):
    for far in (FAR4, FAR6):
        out = lab.inside(f"tracepath -n -m 8 {far}", "--mtu", "1500")
        has(out, "pmtu 1400", far)
        check(re.search(r"Resume: pmtu 1400", out), out)


@case
def large_datagrams_and_none_at_all(lab):
    echo_server(lab)
    probe = shlex.quote("""
import socket, sys
for address in sys.argv[1:]:
    s = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM)
    s.settimeout(10)
    s.connect((address, 7))
    for size in (0, 1, 1472, 1473, 9000, 65507 if ":" not in address else 65400):
        data = bytes(i % 251 for i in range(size))
        for attempt in range(4):
            # The kernel sets the don't-fragment bit until it knows that the path is narrower.
            try:
                s.send(data)
                back = s.recv(70000)
                break
            except OSError as error:
                if error.errno != 90 or attempt == 3:
                    sys.exit(f"{address}: {size} bytes: {error}")
        if back != data:
            sys.exit(f"{address}: {size} bytes came back changed")
""")
    lab.inside(f"python3 -c {probe} {FAR4} {FAR6}")
    lab.inside(f"python3 -c {probe} {FAR4} {FAR6}", "--mtu", "1500")


# ncat


@case
def ncat_half_closes(lab):
    # The server answers when it has seen the end of what it reads.
    lab.serve([sys.executable, "-c", """
import hashlib, socket
listener = socket.create_server(("::", 9000), family=socket.AF_INET6, dualstack_ipv6=True)
while True:
    peer = listener.accept()[0]
    digest = hashlib.sha256()
    while piece := peer.recv(1 << 20):
        digest.update(piece)
    peer.sendall(digest.hexdigest().encode())
    peer.close()
"""], 9000, lab.far)
    for far in (FAR4, FAR6):
        has(lab.inside(f"ncat {far} 9000 <{lab.big}"), lab.big_digest)


@case
def ncat_one_way_only(lab):
    lab.serve(["sh", "-c", f"exec ncat --listen --keep-open --send-only --sh-exec 'cat {lab.big}' 9001"], 9001, lab.far)
    has(lab.inside(f"ncat --recv-only {FAR4} 9001 | sha256sum"), lab.big_digest)
    kept = lab.scratch / "kept"
    server = lab.serve(["sh", "-c", f"exec ncat --listen --recv-only 9002 >{kept}"], 9002, lab.far)
    lab.inside(f"ncat --send-only {FAR6} 9002 <{lab.big}")
    check(server.wait(timeout=LIMIT) == 0, f"the server's status is {server.returncode}")
    has(lab.run(["sha256sum", kept])[0], lab.big_digest)
    kept.unlink()


@case
def ncat_udp(lab):
    for family, far in ((4, FAR4), (6, FAR6)):
        port = 9003 + family
        serve = ["ncat", f"-{family}", "--udp", "--listen", "--keep-open", "--exec", "/bin/cat", port]
        lab.serve(serve, port, lab.far, udp=True)
        out = lab.inside(f"(echo over; echo there; sleep 1) | ncat --udp {far} {port}; true")
        check(out == "over\nthere\n", out)


@case
def refused_and_unreachable(lab):
    script = """
    for a in %s %s; do ncat -w 20 $a 9; echo "status $?"; done
    for a in %s %s; do (echo x; sleep 2) | ncat --udp -w 20 $a 9; echo "status $?"; done
    for a in 10.9.99.1 fd09:99::1; do ncat -w 20 $a 9; echo "status $?"; done
    for a in 169.254.169.254 127.0.0.2 fd00:ec2::254; do %s http://$(echo $a | sed 's/.*:.*/[&]/')/ ; echo "status $?"; done
    """ % (FAR4, FAR6, FAR4, FAR6, "curl -sS --max-time 20")
    out = lab.inside(f"exec 2>&1; {script}", quiet=False)
    check(out.count("Connection refused") == 4, out)
    check("unreachable" in out or "No route to host" in out, out)
    check("imed out" not in out and "TIMEOUT" not in out, out)
    check("status 0" not in out, out)


# Clients that configure themselves

UDHCPC = """#!/bin/sh
[ "$1" = bound ] || exit 0
ip addr add "$ip/$mask" dev "$interface"
ip link set "$interface" mtu "$mtu"
ip route add default via "$router" dev "$interface"
echo "ip=$ip mask=$mask router=$router dns=$dns mtu=$mtu search=$search$domain server=$serverid lease=$lease"
"""


@case
def udhcpc_gets_a_lease(lab):
    script = lab.scratch / "udhcpc.sh"
    script.write_text(UDHCPC)
    script.chmod(0o755)
    for mtu in ("65520", "1500"):
        box = lab.container()
        lab.attach(box, "--no-configure", "--mtu", mtu)
        state = lab.within(box, "ip -o addr show dev tap0")
        check(state == "", f"somebody configured it: {state}")
        lab.within(box, "ip link set tap0 up")
        out = lab.within(box, f"udhcpc -i tap0 -q -n -f -O mtu -O search -s {script} 2>&1")
        has(out, "ip=10.0.2.100", "router=10.0.2.2", "dns=10.0.2.3", f"mtu={mtu}", "lab.test", "server=10.0.2.2")
        has(lab.within(box, f"ip link show tap0; {CURL} {url(FAR4, 'hello')}"), "hello", f"mtu {mtu}")
        has(lab.within(box, f"dig +short @{DNS4} far.lab.test"), FAR4)


@case
def the_kernel_configures_itself_by_ra(lab):
    box = lab.container()
    lab.attach(box, "--no-configure")
    lab.within(box, "ip link set tap0 up")
    wait_until(lambda: re.search(r"inet6 fd00::\S+ scope global(?! tentative)", lab.within(box, "ip -6 addr show tap0")),
               "an address by SLAAC")
    has(lab.within(box, "ip -6 route show default"), "default via fe80", "proto ra")
    wait_until(lambda: lab.within(box, f"{CURL} {url(FAR6, 'hello')}", status=None) == "hello from afar\n", "curl")
    has(lab.within(box, "ip link show tap0; cat /proc/sys/net/ipv6/conf/tap0/mtu"), "65520")


# The host, and what it may offer


def offer(lab, address, port):
    lab.serve([sys.executable, HERE / "httpd.py", address, port, lab.files], port)


@case
def the_gateway_is_the_host_but_not_its_loopback(lab):
    offer(lab, HOST4, 8101)
    offer(lab, source6(lab), 8101)
    offer(lab, "127.0.0.1", 8102)
    offer(lab, "::1", 8102)
    get = " ".join(url(a, "hello", 8101) for a in (GATEWAY4, GATEWAY6, "host.tapline.internal"))
    out = lab.inside(f"{CURL} {get}; for a in {url(GATEWAY4, '', 8102)} {url(GATEWAY6, '', 8102)}; do {CURL} $a 2>&1; "
                     "echo status $?; done")
    check(out.count("hello from afar") == 3 and out.count("status 7") == 2, out)


@case
def host_loopback_by_the_gateways_address(lab):
    offer(lab, "127.0.0.1", 8103)
    offer(lab, "::1", 8103)
    lab.serve(["ncat", "--udp", "--listen", "--keep-open", "--exec", "/bin/cat", "127.0.0.1", "8104"], 8104, udp=True)
    get = " ".join(url(a, "hello", 8103) for a in (GATEWAY4, GATEWAY6, "host.docker.internal"))
    out = lab.inside(f"{CURL} {get}; (echo sent; sleep 1) | ncat --udp {GATEWAY4} 8104; true", "--host-loopback")
    check(out == "hello from afar\n" * 3 + "sent\n", out)


def source6(lab):
    """What the host's kernel takes for its source towards the far host."""
    return re.search(r"src (\S+)", lab.run(["ip", "-6", "route", "get", FAR6])[0])[1]


@case
def outbound_addr(lab):
    ask = f"{CURL} {url(FAR4, 'whoami')}; echo; {CURL} {url(FAR6, 'whoami')}"
    check(lab.inside(ask) == f"{HOST4}\n{source6(lab)}", "the address of the route")
    out = lab.inside(ask, "--outbound-addr", "10.9.1.3", "--outbound-addr", "fd09:1::3")
    check(out == "10.9.1.3\nfd09:1::3", out)
    other = "fd09:1::2" if source6(lab) == "fd09:1::3" else "fd09:1::3"
    check(lab.inside(f"{CURL} {url(FAR6, 'whoami')}", "--outbound-addr", other) == other, "the other one")


@case
def outbound_interface(lab):
    ask = f"{CURL} {url(FAR4, 'whoami')}; echo; {CURL} {url(FAR6, 'whoami')}"
    out = lab.inside(ask, "--outbound-interface", "h1")
    check(out == "10.9.4.2\nfd09:4::2", out)


@case
def a_default_route_that_moves(lab):
    shell = lab.shell()
    ask = f"{CURL} {url(FAR4, 'whoami')}"
    check(shell.does(ask) == HOST4, "before")
    lab.run(["ip", "route", "del", "default", "via", "10.9.1.1"])
    try:
        check(shell.does(ask) == "10.9.4.2", "with the other route")
        lab.run(["ip", "route", "del", "default"])
        status, out = shell.says(f"{ask} 2>&1")
        check(status == 7, f"without any route: {status} {out}")
        check("unreachable" in out or "No route" in out or "Couldn't connect" in out, out)
    finally:
        lab.run(["ip", "route", "replace", "default", "via", "10.9.1.1"])
        lab.run(["ip", "route", "replace", "default", "via", "10.9.4.1", "dev", "h1", "metric", "900"])
    check(shell.does(ask) == HOST4, "after")


@case
def an_address_of_the_host_that_changes(lab):
    offer(lab, "0.0.0.0", 8105)
    shell = lab.shell()
    ask = f"{CURL} {url(GATEWAY4, 'hello', 8105)} || true"
    check(shell.does(ask) == "hello from afar\n", "before")
    try:
        lab.run(["sh", "-c", "ip addr del 10.9.1.2/24 dev h0; ip addr del 10.9.1.3/24 dev h0; "
                             "ip addr add 10.9.1.7/24 dev h0; ip route add default via 10.9.1.1 dev h0"])
        wait_until(lambda: shell.does(ask) == "hello from afar\n", "the gateway to follow")
        check(shell.does(f"{CURL} {url(FAR4, 'whoami')}") == "10.9.1.7", "the new address")
    finally:
        lab.run(["sh", "-c", "ip addr del 10.9.1.7/24 dev h0; ip addr add 10.9.1.2/24 dev h0; "
                             "ip addr add 10.9.1.3/24 dev h0; ip route replace default via 10.9.1.1 dev h0"])
    wait_until(lambda: shell.does(ask) == "hello from afar\n", "the gateway to come back")


@case
def a_host_whose_ipv6_comes_and_goes(lab):
    away = "ip -6 addr flush dev h0 scope global; ip -6 addr flush dev h1 scope global; ip -6 route flush proto boot"
    back = ("for a in 2 3; do ip addr add fd09:1::$a/64 dev h0 nodad; done; ip addr add fd09:4::2/64 dev h1 nodad; "
            "ip -6 route replace default via fd09:1::1 dev h0; "
            "ip -6 route append default via fd09:4::1 dev h1 metric 9000")
    ask = f"{CURL} {url(FAR6, 'whoami')} 2>&1"
    lab.run(["sh", "-c", away])
    try:
        shell = lab.shell()
        status, out = shell.says(ask)
        check(status == 7, f"without IPv6: {status} {out}")
        lab.run(["sh", "-c", back])
        wait_until(lambda: shell.says(ask) == (0, source6(lab)), "IPv6")
        lab.run(["sh", "-c", away])
        status, out = shell.says(ask)
        check(status == 7, f"without IPv6 again: {status} {out}")
        check(shell.does(f"{CURL} {url(FAR4, 'whoami')}") == HOST4, "IPv4 meanwhile")
    finally:
        lab.run(["sh", "-c", back])


# Shapes of use


@case
def a_sandbox_in_a_sandbox(lab):
    inner = shlex.join([lab.binary, "run", "--net", "private", "--subnet", "10.7.0.0/24", "--subnet6", "fd07::/64", "--", "sh", "-c",
                        f"{CURL} {url(FAR4, 'hello')} {url(FAR6, 'hello')} {url('files.lab.test', 'hello')}; ip route"])
    out = lab.inside(f"mkdir -p /tmp/nested-$$; {inner}", quiet=False)
    check(out.count("hello from afar") == 3, out)
    has(out, "default via 10.7.0.2")


@case
def a_sandbox_in_a_sandbox_with_the_same_subnet(lab):
    inner = shlex.join([lab.binary, "run", "--net", "private", "--", "sh", "-c", f"{CURL} {url(FAR4, 'hello')}; getent hosts far"])
    out = lab.inside(inner, quiet=False)
    has(out, "hello from afar", "far.lab.test")


@case
def an_interactive_shell_under_script(lab):
    inner = shlex.join(lab.tapline("run", "-q", "--", "bash", "--norc", "--noprofile", "-i"))
    process = lab.spawn(["script", "-qec", inner, "/dev/null"], stdin=-1, stdout=-1, stderr=-2)
    os.set_blocking(process.stdout.fileno(), False)
    seen = ""

    def sees(word):
        nonlocal seen
        seen += (process.stdout.read() or b"").decode(errors="replace")
        return word in seen

    def types(text):
        process.stdin.write(text.encode())
        process.stdin.flush()

    wait_until(lambda: sees("$ ") or sees("# "), "a prompt")
    types("tty; echo A$((1+1))\n")
    wait_until(lambda: sees("A2"), "an answer")
    types("sleep 1000 & echo B$((2+2)); jobs; kill %1; wait; echo C$((3+3))\n")
    wait_until(lambda: sees("C6"), f"job control")
    # A foreground job that is interrupted gives the shell back.
    def cat_runs(word):
        # What is typed before it runs would be the shell's.
        types(f"sh -c 'echo {word}$((1+1)); exec cat'\n")
        wait_until(lambda: sees(f"{word}2"), "cat")
        types(f"to {word}\n")
        # Once by the terminal, once by cat.
        wait_until(lambda: sees("") and seen.count(f"to {word}") >= 2, "cat's echo")

    cat_runs("first-cat")
    types("\x03")
    wait_until(lambda: sees("^C") and re.search(r"\^C\s+.*[$#] $", seen), "a prompt after ^C")
    types("echo E$?\n")
    wait_until(lambda: sees("E130"), "the shell after ^C")
    # So does one that is stopped.
    cat_runs("second-cat")
    types("\x1a")
    wait_until(lambda: sees("Stopped"), "a stopped job")
    types("kill -9 %1; echo G$((6+6))\n")
    wait_until(lambda: sees("G12"), "the shell after a stopped job")

    def gone():
        # bash says so before a prompt, once it has noticed; it does not end before.
        types("\n")
        return sees("Killed")

    wait_until(gone, "the job's end")
    types("exit 7\n")
    check(process.wait(timeout=LIMIT) == 7, f"status {process.returncode}: {seen}")
    sees("")
    for word in ("no job control", "cannot set terminal", "Inappropriate ioctl", "not a tty"):
        check(word not in seen, seen)


@case
def attach_to_a_namespace_of_unshare(lab):
    box = lab.container()
    process, log = lab.attach(box)
    out = lab.within(box, f"{CURL} {url(FAR4, 'hello')} {url(FAR6, 'hello')}; dig +short @{DNS4} far.lab.test; ip link")
    has(out, "hello from afar\nhello from afar\n", FAR4, "tap0")
    lab.only_the_link(log.read_text())
    # It ends when the namespace does.
    box.kill()
    box.wait()
    check(process.wait(timeout=LIMIT) == 0, f"attach ended with {process.returncode}: {log.read_text()}")


@case
def attach_that_ends_takes_the_interface_with_it(lab):
    box = lab.container()
    process, log = lab.attach(box)
    has(lab.within(box, "ip link"), "tap0")
    process.terminate()
    process.wait(timeout=LIMIT)
    wait_until(lambda: "tap0" not in lab.within(box, "ip link"), "the interface to go")
    lab.attach(box)
    has(lab.within(box, f"{CURL} {url(FAR4, 'hello')}"), "hello")


@case
def the_usual_receive_limit(lab):
    limit = Path("/proc/sys/net/core/rmem_max")
    if not lab.without_tun:
        return None
    said = limit.read_text().strip() if limit.exists() else "unknown"
    iperf_server(lab)
    for options in ("", "-R", "-P 16"):
        moved(iperf(lab, FAR4, options), options)
    if said != "212992":
        return Skip(f"net.core.rmem_max is {said}; it is meant for 212992, which only root can set")
    return "net.core.rmem_max is 212992"


# On this machine as it is


def local_http(place):
    port = 20000 + os.getpid() % 20000
    server = place.serve([sys.executable, HERE / "httpd.py", "127.0.0.1", port, place.files], port)
    return port, server


@case
def plain_curl_from_the_loopback(place):
    big = place.files / "some"
    big.write_bytes(os.urandom(1 << 20) * 20)
    digest = place.run(["sha256sum", big])[0].split()[0]
    port, _ = local_http(place)
    at = url("host.tapline.internal", "some", port)
    out = place.inside(f"{CURL} {at} | sha256sum; {CURL} -T {big} {at}", "--host-loopback")
    check(out.count(digest) == 2, out)


@case
def plain_ids_and_mounts(place):
    out = place.inside("id -u; cat /proc/net/dev; cat /etc/resolv.conf; ls /proc | grep -c '^[0-9]'", "--map-user", "keep")
    has(out, f"{os.getuid()}\n", "tap0", f"nameserver {DNS4}")


@case
def plain_attach_to_unshare(place):
    box = place.spawn(["unshare", "-U", "-r", "-n", "sleep", "infinity"])
    wait_until(lambda: Path(f"/proc/{box.pid}/comm").read_text() == "sleep\n", "a container")
    port, _ = local_http(place)
    pid_file = place.scratch / "pid"
    out, err = place.run(place.tapline("attach", "--detach", "--host-loopback", "--pid-file", pid_file, box.pid))
    place.only_the_link(err)
    enter = ["nsenter", "-t", box.pid, "-U", "-n", "--preserve-credentials", "--", "sh", "-c"]
    out, _ = place.run([*enter, f"{CURL} {url(GATEWAY4, 'hello', port)}"])
    has(out, "hello from afar")
    pid = pid_file.read_text().strip()
    box.kill()
    box.wait()
    wait_until(lambda: not os.path.exists(f"/proc/{pid}"), "attach to end with its namespace")
