"""The cases about pasta's ports: what -t, -u, -T and -U can say, and what follows what."""
import socket
import subprocess
import time
from pathlib import Path

from cases import case, has
from lab import FAR4, HOST4, HOST6, LIMIT, check, wait_until
from pasta import Podman, argv, link_local, run
from ports import SERVICE, ask, udp

TALK = " ".join(map(str, SERVICE))
NONE = {"-t": "none", "-u": "none", "-T": "none", "-U": "none"}


class Shell:
    """A shell in a sandbox of pasta's, which does one script after another. What is not given is none."""

    def __init__(self, lab, *options, default=NONE):
        words = [word for flag, value in default.items() if flag not in options for word in (flag, value)]
        self.log = lab.scratch / f"pasta-shell-{len(lab.passing)}.log"
        self.process = lab.spawn(argv(lab, "--config-net", *options, *words, "--", "sh"), stdin=subprocess.PIPE,
                                 stdout=subprocess.PIPE, stderr=open(self.log, "w+"), text=True, bufsize=1)
        self.does("true")

    def does(self, script):
        self.process.stdin.write(f"{{ {script}\n}} </dev/null; echo .\n")
        lines = []
        while (line := self.process.stdout.readline()) != ".\n":
            check(line, f"the sandbox has ended: {self.log.read_text()}")
            lines.append(line)
        return "".join(lines)

    def serve(self, *ports, address="::"):
        """Services in the background; the PID of the last."""
        for port in ports:
            pid = self.does(f"{TALK} serve {address} {port} >/dev/null 2>&1 & echo $!").strip()
            wait_until(lambda: self.asks("127.0.0.1" if address == "::" else address, port) != "refused", "a service inside")
        return pid

    def asks(self, address, port):
        return self.does(f"{TALK} ask {address} {port} whoami").strip()

    def end(self):
        self.process.stdin.close()
        self.process.wait(timeout=LIMIT)


def listens(port, address="0.0.0.0"):
    """Is the number taken on the host?"""
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as plain:
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            plain.bind((address, port))
            return False
        except OSError:
            return True


@case
def pasta_ports_at_addresses_and_interfaces(lab):
    specs = ["8301:80", "127.0.0.1/8302:80", "::1/8303-8303:80-80", "[::1]/8304:80", "%lo/8305:80", f"{HOST4}%h0/8306:80", "*/8307:80", f"{HOST6}/8308:80", "%h0/8309:80"]
    here = link_local(lab, "h0")
    specs.append(f"{here}%h0/8310:80")
    shell = Shell(lab, *[word for spec in specs for word in ("-t", spec)], "-u", "8301:80")
    shell.serve(80)
    for port, heard, refused in (
        (8301, ("127.0.0.1", "::1"), ()), (8302, ("127.0.0.1",), ("::1",)), (8303, ("::1",), ("127.0.0.1",)),
        (8304, ("::1",), ("127.0.0.1",)), (8305, ("127.0.0.1", "::1"), ()), (8307, ("127.0.0.1", "::1"), ()),
    ):
        for address in heard:
            has(ask(lab, address, port, "whoami"), "end")
        for address in refused:
            check(ask(lab, address, port, "whoami") == "refused", f"{port} at {address}")
    check(udp(lab, "127.0.0.1", 8301, "x")[0].endswith(" x"), "UDP")
    has(ask(lab, HOST4, 8301, "whoami", lab.far), FAR4)
    has(ask(lab, HOST4, 8306, "whoami", lab.far), FAR4)
    has(ask(lab, HOST6, 8308, "whoami", lab.far), "end")
    # What comes in by another interface is not heard.
    check(ask(lab, HOST4, 8305, "whoami", lab.far) == "refused", "only by lo")
    check(ask(lab, "127.0.0.1", 8309, "whoami") == "refused", "only by h0")
    has(ask(lab, HOST4, 8309, "whoami", lab.far), FAR4)
    # An address of one link.
    has(ask(lab, f"{here}%r1a", 8310, "whoami", lab.r1), "end")
    for refused in (["-T", "127.0.0.1/80"], ["-t", "%nosuch0/8311"], ["-t", "192.0.2.9/8311"]):
        run(lab, *refused, "--", "true", status=1)


@case
def pasta_ports_in_ranges_with_exceptions(lab):
    shell = Shell(lab, "-t", "8320-8329:90-99,~8325,8335:96")
    shell.serve(90, 94, 95, 96, 99)
    for port in (8320, 8324, 8326, 8329, 8335):
        has(ask(lab, "127.0.0.1", port, "whoami"), "end")
    check(ask(lab, "127.0.0.1", 8325, "whoami") == "refused", "the exception")
    check(not listens(8325) and listens(8321), "what is bound")


@case
def pasta_ports_all_but_some_leave_out_what_is_taken(lab):
    lab.serve([*SERVICE, "serve", HOST4, "8345"], 8345)
    # The user may not have those below 1024 then.
    lab.sysctl("net/ipv4/ip_unprivileged_port_start", "1024")
    try:
        shell = Shell(lab, "-t", "~1001-8339,~8350-65535")
        shell.serve(8340, 8345)
        has(ask(lab, HOST4, 8340, "whoami", lab.far), FAR4)
        check(lab.listeners("self", 8345, False) == 1, "the host's own service")
        check(listens(8349) and not listens(8350) and not listens(1000), "what is bound")
        shell.end()
        _, err = run(lab, "-t", "~1001-8344,~8346-65535", "--", "true", status=1)
        has(err, "Failed to bind any port for '-t ~1001-8344,~8346-65535'")
        _, err = run(lab, "-t", "80", "--", "true", status=1)
        has(err, "Failed to bind port 80 (Permission denied) for option '-t 80'")
    finally:
        lab.sysctl("net/ipv4/ip_unprivileged_port_start", "0")


@case
def pasta_ports_of_which_there_are_too_many(lab):
    limited = ["sh", "-c", 'ulimit -n 4096 && exec "$@"', "sh"]
    for option in ("-t", "-u"):
        _, err = lab.run([*limited, *argv(lab, option, "all", "--", "true")], status=1)
        has(err, "Can't open enough sockets for port specifier: all")
    _, err = lab.run([*limited, *argv(lab, "-T", "1-3000", "--", "true")], status=1)
    has(err, "they take 6000 descriptors", "ulimit")


@case
def pasta_ports_of_the_host_in_ranges(lab):
    lab.serve([*SERVICE, "serve", "127.0.0.1", "8365"], 8365)
    shell = Shell(lab, "-T", "5360-5369:8360-8369,~5361", "-U", "5360-5369:8360-8369")
    for address in ("127.0.0.1", "::1"):
        has(shell.asks(address, 5365), "end")
        check(shell.asks(address, 5361) == "refused", "the exception")
        has(shell.does(f"{TALK} udp {address} 5365 text"), " text")
    shell.end()
    # Thousands, with both families.
    shell = Shell(lab, "-T", "5001-8500")
    check(int(shell.does("cat /proc/net/tcp /proc/net/tcp6 | grep -c ' 0A '")) == 7000, "listeners inside")
    has(shell.asks("127.0.0.1", 8365), "end")


@case
def pasta_ports_beside_auto_follow_these_alone(lab):
    lab.serve([*SERVICE, "serve", "127.0.0.1", "8375"], 8375)
    shell = Shell(lab, "-t", "8370-8374:70-74,auto", "-t", "127.0.0.1/8380-8389,auto", "-T", "5375-5376:8375-8376,auto")
    wait_until(lambda: "end" in shell.asks("127.0.0.1", 5375), "the host's port inside", 5)
    check(shell.asks("127.0.0.1", 5376) == "refused", "nobody listens there")
    check(not listens(8372), "nobody listens yet")
    service = shell.serve(72, 8382, 8390)
    wait_until(lambda: FAR4 in ask(lab, HOST4, 8372, "whoami", lab.far), "the sandbox's port", 5)
    wait_until(lambda: "end" in ask(lab, "127.0.0.1", 8382, "whoami"), "the other one", 5)
    check(ask(lab, HOST4, 8382, "whoami", lab.far) == "refused", "only at its address")
    check(not listens(8390) and not listens(8370), "no others")
    shell.does(f"kill {service}")
    has(ask(lab, "127.0.0.1", 8382, "whoami"), "end")


@case
def pasta_ports_by_default_follow_both_sides_and_nothing_goes_in_circles(lab):
    host = lab.serve([*SERVICE, "serve", "127.0.0.1", "8401"], 8401)
    taken = lab.serve([*SERVICE, "serve", HOST4, "8403"], 8403)
    shell = Shell(lab, default={})
    shell.serve(8402, 8403)
    for address in ("127.0.0.1", "::1"):
        wait_until(lambda: "end" in shell.asks(address, 8401), "the host's port inside", 5)
        wait_until(lambda: "end" in ask(lab, address, 8402, "whoami"), "the sandbox's port", 5)
        # UDP comes with it.
        wait_until(lambda: udp(lab, address, 8402, "x")[0].endswith(" x"), "the sandbox's port of UDP", 5)
    for _ in range(8):
        time.sleep(0.25)
        check(lab.listeners("self", 8401, False) == 1, "the host's port is published")
        has(shell.asks("127.0.0.1", 8401), "end")
        has(ask(lab, "127.0.0.1", 8402, "whoami"), "end")
    # A number that both have is each one's own, until the host lets go of it.
    check(lab.listeners("self", 8403, False) == 1 and ask(lab, "127.0.0.1", 8403, "whoami") == "refused", "the host's own")
    taken.kill()
    taken.wait()
    wait_until(lambda: FAR4 in ask(lab, HOST4, 8403, "whoami", lab.far), "the number that has become free", 5)
    host.kill()
    host.wait()
    wait_until(lambda: shell.asks("127.0.0.1", 8401) == "refused", "the port inside to close", 5)


@case
def pasta_ports_of_a_host_that_listens_on_many_are_the_sandboxs_again_afterwards(lab):
    # More than a process has descriptors for by default, and more than one message takes.
    ports = range(20000, 20900)
    listening = [socket.create_server(("127.0.0.1", port)) for port in ports]
    shell = Shell(lab, "-t", "auto", "-T", "auto")
    inside = lambda: int(shell.does("ss -lntH 'sport >= 20000 and sport < 20900' | wc -l"))  # noqa: E731
    wait_until(lambda: inside() == 2 * len(ports), "all of them inside", 20)
    check("descriptors" not in shell.log.read_text(), shell.log.read_text())
    for listener in listening:
        listener.close()
    wait_until(lambda: inside() == 0, "none of them inside", 20)
    # All of them, for which of them are forgotten late is not known.
    shell.does(f"python3 -c 'import socket, time; all = [socket.create_server((\"127.0.0.1\", port)) for port in {ports}]; time.sleep(60)' >/dev/null 2>&1 &")
    wait_until(lambda: all(listens(port) for port in ports[::50]), "the sandbox's ports", 20)


@case
def pasta_ports_are_free_when_the_namespace_is_gone(lab):
    podman = Podman(lab)
    words = ["-t", "8420-8919:1420-1919", "-t", "127.0.0.1/8920-8920:80-80", "-u", "8420-8469:1420-1469", "-T", "none", "-U", "none"]
    for _ in range(5):
        path = podman.make()
        status, out = podman.setup(path, "--quiet", *words)
        check(status == 0, out)
        podman.serve(path, "::", "80")
        # Connections of which the host's side has closed first are left in TIME-WAIT.
        for _ in range(3):
            has(ask(lab, "127.0.0.1", 8920, "whoami"), "end")
        podman.remove(path)
        wait_until(lambda: not listens(8420) and not listens(8920, "127.0.0.1"), "the ports to be free", 10)
