"""The cases about published ports; see service.py for both ends of them."""
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from cases import case, has
from lab import FAR4, FAR6, HERE, HOST4, HOST6, LIMIT, check, wait_until

SERVICE = [sys.executable, HERE / "service.py"]
GIB = 1 << 30


class Box:
    """A sandbox with the service in it."""

    def __init__(self, lab, *options, listen="::", port=80, command=None):
        self.lab = lab
        self.log = lab.scratch / f"box-{len(lab.passing)}.log"
        command = command or [*SERVICE, "serve", listen, port]
        self.out = open(self.log, "w+")
        self.process = lab.spawn(
            lab.tapline("run", *options, "--", *command), stdout=self.out, stderr=subprocess.STDOUT
        )
        if command[: len(SERVICE)] == SERVICE:
            wait_until(lambda: "ready" in self.said(), "the service")

    def said(self):
        check(self.process.poll() is None, f"the sandbox has ended: {self.log.read_text()}")
        return self.log.read_text()

    def end(self):
        self.process.terminate()
        self.process.wait(timeout=LIMIT)


def ask(lab, address, port, request, ns=None):
    return lab.run([*SERVICE, "ask", address, port, *request.split()], ns)[0].strip()


def udp(lab, address, port, *texts, ns=None):
    return lab.run([*SERVICE, "udp", address, port, *texts], ns)[0].splitlines()


def ways(lab):
    """Every way to a published port: past the link and through it, both families."""
    return [("127.0.0.1", None), ("::1", None), (HOST4, lab.far), (HOST6, lab.far), (HOST4, None)]


@case
def published_to_whom(lab):
    Box(lab, "-p", "8080:80")
    for address, ns, client in (
        (HOST4, lab.far, FAR4), (HOST6, lab.far, FAR6), (HOST4, None, HOST4), (HOST6, None, HOST6),
        ("127.0.0.1", None, "127.0.0.1"), ("::1", None, "::1"),
    ):
        said = ask(lab, address, 8080, "whoami", ns).replace("::ffff:", "").split()
        check(said[0] == client, f"at {address} the service sees {said}")
    # UDP likewise.
    Box(lab, "-p", "8081:81/udp", "--subnet", "10.7.0.0/24", port=81)
    for address, ns, client in ((HOST4, lab.far, FAR4), (HOST6, lab.far, FAR6), (HOST4, None, HOST4), ("127.0.0.1", None, "127.0.0.1"), ("::1", None, "::1")):
        said = udp(lab, address, 8081, "one", "two", ns=ns)
        check([s.split()[0].replace("::ffff:", "") for s in said] == [client] * 2, f"at {address}: {said}")
        check([s.split()[-1] for s in said] == ["one", "two"], f"at {address}: {said}")


@case
def published_bytes_ends_and_resets(lab):
    box = Box(lab, "-p", "8080:80")
    for address, ns in ways(lab):
        check(ask(lab, address, 8080, "digest 5000000", ns) == "same end", f"half-close by the client at {address}")
        check(ask(lab, address, 8080, "send 5000000", ns) == "same end", f"end by the service at {address}")
        check(ask(lab, address, 8080, "reset", ns) == "reset", f"reset by the service at {address}")
        before = box.said().count("client reset")
        ask(lab, address, 8080, "hangup", ns)
        wait_until(lambda: box.said().count("client reset") > before, f"a reset by the client at {address}")
    check("client ended" not in box.said(), box.said())


@case
def published_refused(lab):
    Box(lab, "-p", "8080:81")
    for address, ns in ways(lab):
        check(ask(lab, address, 8080, "whoami", ns) in ("reset", "refused"), f"nobody listens, at {address}")


@case
def published_for_those_who_listen_on_one_address(lab):
    # A listener on the sandbox's loopback, and one on IPv4 only, are reached by local clients of either family.
    for listen in ("127.0.0.1", "::1", "0.0.0.0"):
        box = Box(lab, "-p", "8080:80", listen=listen)
        for address in ("127.0.0.1", "::1"):
            has(ask(lab, address, 8080, "whoami"), "end")
        if listen == "0.0.0.0":
            has(ask(lab, HOST6, 8080, "whoami", lab.far), "end")
        box.end()


def gibibyte(lab, address, ns):
    Box(lab, "-p", "8080:80")
    for request in (f"digest {GIB}", f"send {GIB}"):
        check(ask(lab, address, 8080, request, ns) == "same end", f"{request} at {address}")


@case
def a_gibibyte_past_the_link(lab):
    gibibyte(lab, "127.0.0.1", None)


@case
def a_gibibyte_through_the_link(lab):
    gibibyte(lab, HOST4, lab.far)


@case
def published_nginx_under_wrk(lab):
    conf = lab.scratch / "nginx.conf"
    site = lab.scratch / "site"
    site.mkdir(exist_ok=True)
    (site / "index.html").write_text("served by nginx\n" * 100)
    conf.write_text(f"""
daemon off; user root; pid {lab.scratch}/nginx.pid; error_log stderr; worker_processes 1;
events {{ worker_connections 1024; }}
http {{
  access_log {lab.scratch}/access.log; client_body_temp_path {lab.scratch}/t; proxy_temp_path {lab.scratch}/t;
  fastcgi_temp_path {lab.scratch}/t; uwsgi_temp_path {lab.scratch}/t; scgi_temp_path {lab.scratch}/t;
  server {{ listen 80; listen [::]:80; root {site}; }}
}}""")
    Box(lab, "-p", "8080:80", "-p", "127.0.0.1:8443:80", command=["nginx", "-c", conf])
    page = (site / "index.html").read_text()
    wait_until(lambda: lab.run(["curl", "-sf", "http://127.0.0.1:8080/"], status=None)[0] == page, "nginx")
    for ns, address in ((None, "127.0.0.1:8080"), (None, "[::1]:8080"), (None, "127.0.0.1:8443"), (lab.far, f"{HOST4}:8080"), (lab.far, f"[{HOST6}]:8080")):
        out = lab.run(["wrk", "-t", "1", "-c", "50", "-d", "2", f"http://{address}/"], ns)[0]
        has(out, "Requests/sec")
        check("Socket errors" not in out and "Non-2xx" not in out, f"{address}: {out}")
    logged = (lab.scratch / "access.log").read_text()
    check(FAR4 in logged and FAR6 in logged and "127.0.0.1" in logged, "who called")


@case
def published_range_and_free_ports(lab):
    box = Box(lab, "-p", "8090-8092:80-82", "-p", "127.0.0.1::80", "-p", "80/udp", "--name", "ranges")
    lines = lab.run([*lab.tapline("port", "ranges")])[0].splitlines()
    for want in ("80/tcp -> 0.0.0.0:8090", "81/tcp -> [::]:8091", "82/tcp -> 0.0.0.0:8092"):
        check(want in lines, f"{want} is not in {lines}")
    free = [l for l in lines if l.startswith("80/tcp -> 127.0.0.1:")]
    check(len(free) == 1, lines)
    has(ask(lab, "127.0.0.1", int(free[0].rsplit(":", 1)[1]), "whoami"), "end")
    port = next(int(l.rsplit(":", 1)[1]) for l in lines if l.startswith("80/udp -> 0.0.0.0:"))
    check(udp(lab, "127.0.0.1", port, "x")[0].endswith(" x"), "UDP at a free port")
    box.end()


@case
def published_exposed_ports(lab):
    Box(lab, "-P", "--expose", "80", "--expose", "5000-5001/udp", "--name", "exposed")
    lines = lab.run(lab.tapline("port", "exposed"))[0].splitlines()
    check(sorted({l.split()[0] for l in lines}) == ["5000/udp", "5001/udp", "80/tcp"], lines)
    out = lab.run(lab.tapline("port", "exposed", "80"))[0].splitlines()
    has(ask(lab, "127.0.0.1", int(out[0].rsplit(":", 1)[1]), "whoami"), "end")


@case
def publish_and_unpublish_while_it_runs(lab):
    Box(lab, "--name", "box")
    check(ask(lab, "127.0.0.1", 8085, "whoami") == "refused", "not yet")
    out = lab.run(lab.tapline("publish", "box", "8085:80"))[0]
    has(out, "80/tcp -> 0.0.0.0:8085")
    for address, ns in ways(lab):
        has(ask(lab, address, 8085, "whoami", ns), "end")
    held = lab.spawn([*SERVICE, "ask", "127.0.0.1", "8085", "hold"], stdout=subprocess.PIPE, text=True)
    check(held.stdout.readline() == "held\n", "held")
    lab.run(lab.tapline("unpublish", "box", "8085:80"))
    for address, ns in ways(lab):
        check(ask(lab, address, 8085, "whoami", ns) == "refused", f"taken back at {address}")
    check(held.poll() is None, "what was connected goes on")
    _, err = lab.run(lab.tapline("unpublish", "box", "8085:80"), status=None)
    has(err, "8085:80")


@case
def a_port_that_is_taken(lab):
    lab.serve([*SERVICE, "serve", "127.0.0.1", "8086"], 8086)
    _, err = lab.run(lab.tapline("run", "-p", "8086:80", "--", "true"), status=125)
    has(err, "8086:80", "is taken by", "take another port")
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            check(b"gateway\0--fd" not in process.read_bytes(), "a gateway is left")
        except OSError:
            pass


@case
def the_same_port_a_hundred_times(lab):
    for _ in range(100):
        box = lab.spawn(lab.tapline("run", "-p", "8087:80", "-p", "8087:80/udp", "--", "true"), stderr=subprocess.PIPE, text=True)
        _, err = box.communicate(timeout=LIMIT)
        check(box.returncode == 0, err)
    # And when it was in use to the end.
    for _ in range(10):
        box = Box(lab, "-p", "8087:80")
        has(ask(lab, "127.0.0.1", 8087, "whoami"), "end")
        has(ask(lab, HOST4, 8087, "whoami", lab.far), "end")
        box.end()
        with socket.socket() as plain:
            # As somebody who does not ask for SO_REUSEADDR; connections of the client's side may still wait.
            plain.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            plain.bind(("127.0.0.1", 8087))


@case
def other_flows_while_ports_come_and_go(lab):
    Box(lab, "-p", "8088:80", "--name", "busy")
    flows = [
        lab.spawn([*SERVICE, "ask", address, 8088, *f"send {GIB // 2}".split()], ns, stdout=subprocess.PIPE, text=True)
        for address, ns in (("127.0.0.1", None), (HOST4, lab.far))
    ]
    turns = 0
    while any(f.poll() is None for f in flows) and turns < 40:
        lab.run(lab.tapline("publish", "busy", f"{9100 + turns}:80"))
        lab.run(lab.tapline("unpublish", "busy", f"{9100 + turns}:80"))
        turns += 1
    check(turns >= 3, f"only {turns} turns")
    for flow in flows:
        check(flow.communicate(timeout=LIMIT)[0].strip() == "same end", "a flow that was disturbed")


@case
def publish_from(lab):
    Box(lab, "-p", "8080:80", "--publish-from", f"{FAR4}/32")
    has(ask(lab, HOST4, 8080, "whoami", lab.far), FAR4)
    has(ask(lab, "127.0.0.1", 8080, "whoami"), "end")
    check(ask(lab, HOST6, 8080, "whoami", lab.far) == "reset", "another address")
    check(ask(lab, HOST4, 8080, "whoami", lab.r2) == "reset", "another host")


@case
def proxy_protocol(lab):
    Box(lab, "-p", "8080:80", "--proxy-protocol", "v1", "-p", "8081:80,proxy=v2")
    for address, ns, client, family in (
        (HOST4, lab.far, FAR4, "TCP4"), (HOST6, lab.far, FAR6, "TCP6"), ("127.0.0.1", None, "127.0.0.1", "TCP4"), ("::1", None, "::1", "TCP6")
    ):
        text = bytes.fromhex(ask(lab, address, 8080, "proxy", ns).split()[0]).decode()
        check(text.startswith(f"PROXY {family} {client} {address} ") and text.endswith(" 8080\r\n"), text)
        binary = bytes.fromhex(ask(lab, address, 8081, "proxy", ns).split()[0])
        kind = socket.AF_INET6 if ":" in client else socket.AF_INET
        check(binary[12:14] == (b"\x21\x21" if ":" in client else b"\x21\x11"), binary)
        check(socket.inet_pton(kind, client) + socket.inet_pton(kind, address) in binary, binary)


@case
def ports_that_follow_the_sandbox(lab):
    shell = lab.shell("-p", "auto")
    start = f"{sys.executable} {SERVICE[1]} serve"
    first = shell.does(f"{start} 127.0.0.1 8091 >/dev/null 2>&1 & echo $!").strip()
    shell.does(f"{start} :: 8092 >/dev/null 2>&1 &")
    for port in (8091, 8092):
        for address in ("127.0.0.1", "::1"):
            wait_until(lambda: "end" in ask(lab, address, port, "whoami"), f"{address}:{port}", 5)
    check(udp(lab, "127.0.0.1", 8091, "x")[0].endswith(" x"), "UDP too")
    check(ask(lab, HOST4, 8092, "whoami", lab.far) == "refused", "only on the loopback")
    shell.does(f"kill {first}")
    wait_until(lambda: ask(lab, "127.0.0.1", 8091, "whoami") == "refused", "the port to close", 5)
    has(ask(lab, "127.0.0.1", 8092, "whoami"), "end")


@case
def reach_a_port_of_the_host(lab):
    lab.serve([*SERVICE, "serve", "127.0.0.1", "8093"], 8093)
    lab.serve([*SERVICE, "serve", "127.0.0.1", "8094"], 8094)
    ask_inside = " ".join(map(str, [*SERVICE, "ask"]))
    script = f"{ask_inside} 127.0.0.1 8093 digest 5000000; {ask_inside} ::1 93 send 5000000; {ask_inside} 127.0.0.1 93 reset; "
    script += f"{ask_inside} 127.0.0.1 8094 whoami; {' '.join(map(str, SERVICE))} udp 127.0.0.1 8093 text"
    out = lab.inside(script, "--reach", "8093", "--reach", "8093:93", "--reach", "8093/udp").splitlines()
    check(out[:4] == ["same end", "same end", "reset", "refused"], out)
    check(out[4].startswith("127.0.0.1 ") and out[4].endswith(" text"), out)


def gateways():
    return [int(p.parent.name) for p in Path("/proc").glob("[0-9]*/cmdline") if b"gateway\0--fd" in read(p)]


@case
def both_sides_follow_each_other_and_nothing_goes_in_circles(lab):
    shell = lab.shell("-p", "auto:all", "--reach", "auto")
    serve, asked = " ".join(map(str, [*SERVICE, "serve"])), " ".join(map(str, [*SERVICE, "ask"]))
    host = lab.serve([*SERVICE, "serve", "127.0.0.1", "8201"], 8201)
    elsewhere = lab.serve([*SERVICE, "serve", HOST4, "8203"], 8203)
    first = shell.does(f"{serve} :: 8202 >/dev/null 2>&1 & echo $!").strip()
    inside = lambda port, address="127.0.0.1": shell.does(f"{asked} {address} {port} whoami").strip()

    def hold():
        for address in ("127.0.0.1", "::1"):
            wait_until(lambda: "end" in inside(8201, address), f"the host's port at {address} inside", 5)
            wait_until(lambda: "end" in ask(lab, address, 8202, "whoami"), f"the sandbox's port at {address}", 5)
        wait_until(lambda: FAR4 in ask(lab, HOST4, 8202, "whoami", lab.far), "the sandbox's port from afar", 5)
        wait_until(lambda: shell.does(f"{' '.join(map(str, SERVICE))} udp ::1 8201 text").strip().endswith(" text"), "UDP", 5)

    hold()
    # A client of the host's own address does not come to the loopback, so the sandbox's loopback has no such port.
    check(inside(8203) == "refused", "a port beside the loopback")
    # Each side looks several times: what it opened for the other stays what it is.
    for _ in range(8):
        time.sleep(0.25)
        check(lab.listeners("self", 8201, False) == 1, "the host's port is published")
        check(inside(8201).endswith("end") and ask(lab, "127.0.0.1", 8202, "whoami").endswith("end"), "a port has gone")
    # As long as one side has a number the other's is left alone.
    taken = shell.does(f"{serve} 127.0.0.1 8201 2>&1 | tail -n 1")
    has(taken, "Address already in use")
    os.kill(gateways()[0], signal.SIGKILL)
    hold()
    for process in (host, elsewhere):
        process.kill()
        process.wait()
    wait_until(lambda: inside(8201) == "refused", "the port inside to close", 5)
    # The number is the sandbox's now, and leads outward.
    shell.does(f"{serve} :: 8201 >/dev/null 2>&1 &")
    wait_until(lambda: "end" in ask(lab, "127.0.0.1", 8201, "whoami"), "the number to be the sandbox's", 5)
    shell.does(f"kill {first}")
    wait_until(lambda: ask(lab, "127.0.0.1", 8202, "whoami") == "refused", "the port to close", 5)
    lab.serve([*SERVICE, "serve", "127.0.0.1", "8202"], 8202)
    wait_until(lambda: "end" in inside(8202), "the number to be the host's", 5)


@case
def reach_auto_for_a_namespace_of_somebody_else(lab):
    container = lab.container()
    enter = ["nsenter", "-t", container.pid, "-U", "-n", "--preserve-credentials", "--"]
    process, log = lab.attach(container, "--reach", "auto")
    service = lab.serve([*SERVICE, "serve", "127.0.0.1", "8204"], 8204)
    asked = lambda: lab.run([*enter, *SERVICE, "ask", "127.0.0.1", "8204", "whoami"])[0]
    wait_until(lambda: "end" in asked(), "the host's port inside", 5)
    service.kill()
    service.wait()
    wait_until(lambda: "refused" in asked(), "the port to close", 5)
    container.kill()
    check(process.wait(timeout=LIMIT) == 0, f"attach ended with {process.returncode}: {log.read_text()}")


@case
def a_gateway_that_is_killed(lab):
    box = Box(lab, "-p", "8095:80", "--name", "mortal")
    clients = [
        lab.spawn([*SERVICE, "ask", address, 8095, "hold"], ns, stdout=subprocess.PIPE, text=True)
        for address, ns in (("127.0.0.1", None), (HOST4, lab.far))
    ]
    for client in clients:
        check(client.stdout.readline() == "held\n", "held")
    time.sleep(2.1)
    gateway = gateways()
    check(len(gateway) == 1, f"gateways: {gateway}")
    os.kill(gateway[0], signal.SIGKILL)
    for client in clients:
        out = client.communicate(timeout=LIMIT)[0]
        check(out.strip() == "reset", f"a killed gateway looks like {out!r}")
    for address, ns in ways(lab):
        wait_until(lambda: "end" in ask(lab, address, 8095, "whoami", ns), f"the port at {address}", 5)
    check(box.process.poll() is None, "the sandbox goes on")


def read(path):
    try:
        return path.read_bytes()
    except OSError:
        return b""


@case
def a_thousand_ports_and_ten_thousand(lab):
    begun = time.monotonic()
    out = lab.inside("echo up", "-p", "127.0.0.1:20000-20999:20000-20999")
    took = time.monotonic() - begun
    check(out == "up\n", out)
    limited = ["sh", "-c", 'ulimit -n 20000 && exec "$@"', "sh"]
    box = lab.spawn([*limited, *lab.tapline("run", "-p", "20000-29999:20000-29999", "--", *map(str, SERVICE), "serve", "::", "29999")],
                    stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    check(box.stdout.readline() == "ready\n", "ten thousand ports")
    has(ask(lab, "127.0.0.1", 29999, "whoami"), "end")
    check(ask(lab, HOST4, 20000, "whoami", lab.far) == "reset", "nobody listens there")
    return f"a thousand took {took:.2f} s"


@case
def published_for_a_namespace_of_somebody_else(lab):
    container = lab.container()
    lab.spawn(["nsenter", "-t", container.pid, "-U", "-n", "--preserve-credentials", "--", *SERVICE, "serve", "::", 80])
    process, log = lab.attach(container, "-p", "8096:80", "-p", "8096:80/udp")
    for address, ns in ways(lab):
        wait_until(lambda: "end" in ask(lab, address, 8096, "whoami", ns), f"the port at {address}", 5)
        check(udp(lab, address, 8096, "x", ns=ns)[0].endswith(" x"), f"UDP at {address}")
    container.kill()
    check(process.wait(timeout=LIMIT) == 0, f"attach ended with {process.returncode}: {log.read_text()}")
    check(ask(lab, "127.0.0.1", 8096, "whoami") == "refused", "the port is free again")


@case
def the_api_by_curl(lab):
    Box(lab, "-p", "8097:80", "--name", "apibox")
    runtime = Path(lab.environment["XDG_RUNTIME_DIR"])
    sockets = list(runtime.glob("tapline/*/sandboxes/*/api.sock"))
    check(len(sockets) == 1, f"{sockets}")
    curl = lambda *words, status=0: lab.run([*lab.tapline()[:-1], "curl", "-sS", "--max-time", "10", "--unix-socket", sockets[0], *words], status=status)[0]
    listed = json.loads(curl("http://tapline/v1/sandboxes"))["sandboxes"]
    check([s["endpoint"]["name"] for s in listed] == ["apibox"], listed)
    base = f"http://tapline/v1/sandboxes/{listed[0]['endpoint']['id']}/ports"
    check([p["host"] for p in json.loads(curl(base))["ports"]] == ["[::]:8097"], "ports")
    made = json.loads(curl(base, "-H", "content-type: application/json", "-d", '{"spec": "127.0.0.1:8098:80"}'))["ports"]
    check([p["host"] for p in made] == ["127.0.0.1:8098"], made)
    has(ask(lab, "127.0.0.1", 8098, "whoami"), "end")
    for body, code in (("{", "bad_json"), ("{}", ""), ('{"spec": "x"}', "bad_spec"), ('{"spec": "8097:80"}', "taken"), ('{"spec": "192.0.2.9::80"}', "no_such_address")):
        said = json.loads(curl(base, "-H", "content-type: application/json", "-d", body))
        check(said["message"] and (said["code"] == code or code in ("", "bad_json")), f"{body}: {said}")
    removed = json.loads(curl("-X", "DELETE", f"{base}?spec=127.0.0.1:8098:80"))["ports"]
    check([p["host"] for p in removed] == ["127.0.0.1:8098"], removed)
    check(ask(lab, "127.0.0.1", 8098, "whoami") == "refused", "taken back")
    held = lab.spawn([*SERVICE, "ask", HOST4, "8097", "hold"], lab.far, stdout=subprocess.PIPE, text=True)
    check(held.stdout.readline() == "held\n", "held")
    flows = json.loads(curl("http://tapline/v1/flows"))["flows"]
    check(any(f["kind"] == "published" and f["outside"].startswith(FAR4) for f in flows), flows)
    has(curl("http://tapline/metrics"), "# TYPE tapline_")


def local_port():
    return 20000 + os.getpid() % 10000 + 10000


@case
def plain_published(place):
    port = local_port()
    holder = place.serve([*SERVICE, "serve", "127.0.0.1", port], port)
    _, err = place.run(place.tapline("run", "-p", f"{port}:80", "--", "true"), status=125)
    has(err, f"{port}:80", "python", str(holder.pid))
    holder.kill()
    holder.wait()
    Box(place, "-p", f"{port}:80", "--name", "plain-published")
    for address in ("127.0.0.1", "::1"):
        has(ask(place, address, port, "whoami"), "end")
        check(ask(place, address, port, "digest 50000000") == "same end", address)
