#!/usr/bin/env python3
"""An OCI bundle whose network is tapline's: config.json, a root file system made of busybox, a resolv.conf.

    examples/oci/make_bundle.py DIR RUNTIME TAPLINE [tapline.KEY=VALUE...] -- COMMAND [ARG...]

RUNTIME is runc or crun, whose own `spec --rootless` is the beginning of config.json; TAPLINE is the absolute path of
tapline. What is tapline's in config.json: the hooks, the annotations, and a resolv.conf that names the network's DNS
address.
"""
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

# What a hook is told of the caller's environment: where tapline keeps its state, networks and configuration.
ENVIRONMENT = ("PATH", "HOME", "XDG_RUNTIME_DIR", "XDG_CONFIG_HOME", "XDG_DATA_HOME")


def main():
    words = sys.argv[1:]
    at = words.index("--")
    (directory, runtime, tapline, *annotations), command = words[:at], words[at + 1:]
    bundle = Path(directory).resolve()
    root_file_system(bundle / "rootfs")
    subprocess.run([runtime, "spec", "--rootless"], cwd=bundle, check=True)
    path = bundle / "config.json"
    config = json.loads(path.read_text())
    config["process"] |= {"terminal": False, "args": command}

    # A network namespace of the container's own, in which there is nothing but lo before the hook has run.
    kinds = [namespace["type"] for namespace in config["linux"]["namespaces"]]
    if "network" not in kinds:
        config["linux"]["namespaces"].append({"type": "network"})

    environment = [f"{name}={os.environ[name]}" for name in ENVIRONMENT if name in os.environ]
    config["hooks"] = {
        stage: [{"path": tapline, "args": ["tapline", "oci-hook", stage], "env": environment}]
        for stage in ("createRuntime", "poststop")
    }
    config["annotations"] = dict(annotation.split("=", 1) for annotation in annotations)

    (bundle / "resolv.conf").write_text("nameserver 10.0.2.3\n")
    config["mounts"].append({
        "destination": "/etc/resolv.conf",
        "source": str(bundle / "resolv.conf"),
        "type": "bind",
        "options": ["bind", "ro"],
    })
    path.write_text(json.dumps(config, indent=4))


def root_file_system(root):
    """busybox-static of Debian, and a name for each of its programs."""
    for name in ("bin", "dev", "etc", "proc", "sys", "tmp"):
        (root / name).mkdir(parents=True, exist_ok=True)
    (root / "etc/resolv.conf").touch()
    busybox = shutil.which("busybox") or sys.exit("busybox is missing: apt-get install busybox-static")
    shutil.copy(busybox, root / "bin/busybox")
    programs = subprocess.run([busybox, "--list"], capture_output=True, text=True, check=True).stdout.split()
    for program in programs:
        link = root / "bin" / program
        if not link.exists():
            link.symlink_to("busybox")


if __name__ == "__main__":
    main()
