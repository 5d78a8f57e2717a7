"""The cases about a gateway that cannot give up everything, because what surrounds it forbids that.

A gateway is started under `attach`, which needs no namespace of its own making, with a filter as container engines
have one, without room for user namespaces, or below another root. It works all the same, one line says what is missing,
and with --require-confinement that line is the end.
"""
import os
import sys
from pathlib import Path

from cases import case
from lab import FAR4, HERE, check

# clone(2) and unshare(2) with any kind of namespace.
NAMESPACES = 0x7E020080
CONTAINER = [f"clone=EPERM:{NAMESPACES:x}", f"unshare=EPERM:{NAMESPACES:x}", "clone3=ENOSYS"]
ALL = "the gateway has no namespaces of its own, and sees the host's files and processes: "


def refusing(*rules):
    return [sys.executable, HERE / "refusing.py", *rules, "--"]


def lacking(lab, before, line):
    """Attach in surroundings like these; the gateway's process. `line` is the only one that may be said."""
    container = lab.container()
    process, log = lab.attach(container, before=before)
    works(lab, container)
    said = [text for text in log.read_text().splitlines() if "/dev/net/tun" not in text]
    check(len(said) == (line is not None), f"tapline said {said}")
    check(line is None or said[0].startswith(f"tapline: warning: {line}"), f"tapline said {said}")
    return gateway_of(process)


def works(lab, container):
    said = lab.within(container, f"curl -sS -m 20 http://{FAR4}:8000/hello")
    check(said == "hello from afar\n", said)


def gateway_of(supervisor):
    children = Path(f"/proc/{supervisor.pid}/task/{supervisor.pid}/children").read_text().split()
    found = [pid for pid in children if b"gateway" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    check(len(found) == 1, f"gateways: {found}")
    return int(found[0])


def own(lab, pid):
    """The kinds of namespaces that a process has of its own."""
    kinds = ("user", "mnt", "pid", "ipc", "uts")
    return [kind for kind in kinds if lab.link_of(pid, kind) != lab.link_of("self", kind)]


def is_refused(lab, before, line):
    """With --require-confinement the line is the end, and nothing is left in the container."""
    container = lab.container()
    argv = [*before, *lab.capable_of_nothing(), lab.binary, "attach", "--require-confinement", container.pid]
    _, err = lab.run(argv, status=125)
    said = [text for text in err.splitlines() if "/dev/net/tun" not in text]
    check(len(said) == 1 and said[0].startswith(f"tapline: --require-confinement: {line}"), f"said {said}")
    left = lab.within(container, "ls /sys/class/net 2>/dev/null || ip -br link")
    check("tap" not in left, f"left: {left}")


@case
def a_filter_that_forbids_namespaces_leaves_a_gateway_that_says_so(lab):
    if lab.without_tun:
        # A packet link needs a network namespace for its far half.
        return "there is no link without /dev/net/tun either"
    line = ALL + "a seccomp filter forbids it"
    pid = lacking(lab, refusing(*CONTAINER), line)
    check(own(lab, pid) == [], own(lab, pid))
    is_refused(lab, refusing(*CONTAINER), line)


@case
def where_only_a_pid_namespace_is_refused_the_rest_is_had(lab):
    rules = refusing("unshare=ENOSPC:20000000")
    line = "the gateway has no namespace of its own of these kinds: PID: No space left on device"
    pid = lacking(lab, rules, line)
    check(own(lab, pid) == ["user", "mnt", "ipc", "uts"], own(lab, pid))
    check(os.listdir(f"/proc/{pid}/root") == [], "its root is not empty")
    is_refused(lab, rules, line)


@case
def no_room_for_user_namespaces_is_told_with_its_sysctl(lab):
    line = ALL + "their number is limited to none (user.max_user_namespaces is 0)"
    limit = Path("/proc/sys/user/max_user_namespaces")
    before, container = limit.read_text(), lab.container()
    lab.container = lambda: container
    try:
        limit.write_text("0")
        process, log = lab.attach(container)
        works(lab, container)
        said = [text for text in log.read_text().splitlines() if "/dev/net/tun" not in text]
        check(len(said) == 1 and said[0].startswith(f"tapline: warning: {line}"), f"tapline said {said}")
        process.terminate()
        process.wait()
        is_refused(lab, [], line)
    finally:
        limit.write_text(before)
        del lab.container


@case
def below_another_root_there_are_no_namespaces_and_it_says_so(lab):
    root = lab.scratch / "root"
    root.mkdir(exist_ok=True)
    for entry in Path("/").iterdir():
        place = root / entry.name
        if entry.is_symlink():
            place.symlink_to(os.readlink(entry))
        elif entry.is_dir():
            place.mkdir()
            lab.run(["mount", "--rbind", entry, place])
    try:
        lacking(lab, ["chroot", root], ALL + "the kernel forbids them inside a chroot")
        is_refused(lab, ["chroot", root], ALL + "the kernel forbids them inside a chroot")
    finally:
        lab.end_case()
        for place in root.iterdir():
            if place.is_dir() and not place.is_symlink():
                lab.run(["umount", "-l", place])


@case
def mounts_that_are_refused_leave_the_rest_and_one_line(lab):
    line = "the gateway sees the host's files, as its root cannot be emptied (make mounts private): a seccomp filter"
    pid = lacking(lab, refusing("mount=EPERM"), line)
    check(own(lab, pid) == ["user", "mnt", "pid", "ipc", "uts"], own(lab, pid))
    is_refused(lab, refusing("mount=EPERM"), line)


@case
def a_root_that_cannot_be_pivoted_away_from_is_covered(lab):
    pid = lacking(lab, refusing("pivot_root=EINVAL"), None)
    check(os.listdir(f"/proc/{pid}/root") == [], "its root is not empty")
