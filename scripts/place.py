"""Where the scripts put their sandboxes: the little world of tests/interop, in namespaces of the script's own.

A script calls [`enter`] first. It comes back in a process with a network, a mount and a PID namespace of its own, in which it is
root; so everything that tapline starts is seen and ends with the script, and nothing is sent to anybody else. tapline itself
runs in there as a user without any capability.

An ordinary user is root of a user namespace then, as in tests/interop/lab.py, and may not look into processes that have
hidden themselves, as all of tapline's do: what is said of their descriptors and memory is left out. Root looks into all; tapline
is run as the user whom `--user` names.
"""
import os
import pwd
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

sys.dont_write_bytecode = True
HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "tests" / "interop"))

import lab as interop  # noqa: E402

WITHIN = "TAPLINE_SCRIPT_SCRATCH"


def enter(user):
    """Go on in namespaces of its own; tapline is to be `user`'s, where root calls."""
    if WITHIN in os.environ:
        return
    if os.geteuid() == 0 and not user:
        sys.exit("root says with --user as whom tapline is to be run: what root may do proves little about a tool for those who are not")
    kept = ["unshare", *([] if os.geteuid() == 0 else ["--user", "--map-root-user"]), "--net", "--mount", "--pid", "--fork", "--mount-proc", "--kill-child"]
    with tempfile.TemporaryDirectory(prefix="tapline-script-") as scratch:
        os.chmod(scratch, 0o711)
        here = subprocess.Popen([*kept, sys.executable, *sys.argv], env=os.environ | {WITHIN: scratch}, stdin=subprocess.DEVNULL)
        try:
            sys.exit(here.wait())
        except KeyboardInterrupt:
            here.kill()
            sys.exit(130)
        finally:
            # The files of its users are not all this one's to remove.
            here.wait()
            shutil.rmtree(Path(scratch, "world"), ignore_errors=True)


class World(interop.Lab):
    """The little world, with a look at every process in it."""

    def __init__(self, binary, user):
        super().__init__(os.path.abspath(binary), False, Path(os.environ[WITHIN]) / "world")
        self.scratch.parent.mkdir()
        # What tapline is called in /proc.
        self.exe = Path(binary)
        # Whose tapline is, if this is really root.
        self.owner = pwd.getpwnam(user) if Path("/proc/self/uid_map").read_text().split()[1:] == ["0", "4294967295"] else None
        self.sees_all = self.owner is not None

    def build(self):
        super().build()
        # As wide as a person may have it, for ping sockets.
        self.sysctl("net/ipv4/ping_group_range", f"0 {self.owner.pw_gid if self.owner else 0}")
        if self.owner:
            self.scratch.chmod(0o711)
            for path in (self.scratch / "runtime", self.scratch / "data", self.scratch / "config"):
                path.mkdir(exist_ok=True)
                os.chown(path, self.owner.pw_uid, self.owner.pw_gid)

    def as_user(self):
        if not self.owner:
            return super().as_user()
        return ["setpriv", f"--reuid={self.owner.pw_uid}", f"--regid={self.owner.pw_gid}", "--clear-groups", "--bounding-set=-all", "--inh-caps=-all", "--"]

    def of_tapline(self):
        """Every process of tapline's that lives, with what it is: gateway, supervisor or inside (agent and init)."""
        found = {}
        for pid in filter(str.isdigit, os.listdir("/proc")):
            try:
                name = Path(f"/proc/{pid}/comm").read_text().strip()
                state, parent = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[:2]
            except OSError:
                continue
            # A gateway is started anew by /proc/self/exe; its command line is nobody's to see.
            if name in ("exe", self.exe.name[:15]) and state not in "ZX":
                found[int(pid)] = ("gateway" if name == "exe" else "supervisor", int(parent))
        return {pid: "inside" if what == "supervisor" and parent in found else what for pid, (what, parent) in found.items()}

    def processes(self):
        """Everything that runs here, but this script: by number, the command line."""
        found = {}
        for pid in filter(str.isdigit, os.listdir("/proc")):
            try:
                state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
                line = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
            except OSError:
                continue
            if int(pid) != os.getpid() and state not in "ZX":
                found[int(pid)] = line
        return found

    def left_in_state(self):
        """What is in the runtime directory beyond what stays there for the next time: the locks, the place of the shared gateway and its log."""
        stays = {"lock", "gateway.lock", "gateway.sock", "gateway.log"}
        files = [path for path in Path(self.environment["XDG_RUNTIME_DIR"]).rglob("*") if not path.is_dir() or path.parent.name == "sandboxes"]
        return [str(path) for path in files if path.name not in stays or path.parent.parent.name != "tapline"]


def memory_kib(pid):
    """Memory of a process in KiB that is its own doing: without the pages of the program's file, whose cost depends on who else runs it."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith(("Pss_Anon:", "Pss_Shmem:")))


def descriptors(pid):
    return len(os.listdir(f"/proc/{pid}/fd"))


def sockets(pid="self"):
    """How many sockets there are in a process' network namespace; TCP's that only wait for their time to pass are the kernel's."""
    counts = {}
    for kind in ("tcp", "udp", "icmp", "unix"):
        counts[kind] = 0
        for table in (kind, kind + "6"):
            path = Path(f"/proc/{pid}/net/{table}")
            if path.exists():
                rows = [row.split() for row in path.read_text().splitlines()[1:]]
                counts[kind] += sum(kind != "tcp" or row[3] != "06" for row in rows)
    return counts
