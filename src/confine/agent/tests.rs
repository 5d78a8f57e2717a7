//! What is refused from each stage on, tried in a process that has entered them.
use std::fs::File;
use std::io;
use std::net::TcpListener;
use std::os::unix::net::UnixStream;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};
use nix::unistd::{Pid, Uid};

use super::*;
use crate::sys::testing::{empty_call, in_namespace};
use crate::sys::{netns, proc, tun};

type Outcome = Result<(), String>;

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

/// It must have failed like this.
fn refused<T, E: Into<io::Error>>(what: &str, outcome: Result<T, E>, with: i32) -> Outcome {
    match outcome.map_err(Into::into) {
        Ok(_) => Err(format!("{what} is possible")),
        Err(error) if error.raw_os_error() == Some(with) => Ok(()),
        Err(error) => Err(format!("{what}: {error}")),
    }
}

/// A line of the process's status, read through what was opened before.
fn field<'a>(status: &'a str, name: &str) -> &'a str {
    status.lines().find_map(|line| line.strip_prefix(name)).map_or("", str::trim)
}

/// What a taken-over process would try.
fn every_way_out_is_shut(before: &Before) -> Outcome {
    refused("reading a file", File::open("/etc/passwd"), libc::EACCES)?;
    refused("reading a process", File::open("/proc/self/mem"), libc::EACCES)?;
    refused("listing files", std::fs::read_dir("/"), libc::EACCES)?;
    refused("making a file", File::create("/tmp/tapline-confined"), libc::EACCES)?;
    refused("writing to a file", File::options().write(true).open(&before.file), libc::EACCES)?;
    refused("an abstract socket", UnixStream::connect_addr(&before.address), libc::EPERM)?;
    let none = None::<&str>;
    refused("mounting", mount(Some("tmpfs"), "/mnt", Some("tmpfs"), MsFlags::empty(), none), libc::EPERM)?;
    refused("another root", nix::unistd::chroot("/"), libc::EPERM)?;
    refused("executing", nix::unistd::execv(c"/bin/true", &[c"true"]), libc::EPERM)?;
    refused("a process", proc::fork(), libc::EPERM)?;
    refused("a thread", std::thread::Builder::new().spawn(|| ()), libc::EPERM)?;
    refused("tracing", nix::sys::ptrace::attach(before.parent), libc::EPERM)?;
    for kind in [CloneFlags::CLONE_NEWUSER, CloneFlags::CLONE_NEWNS, CloneFlags::CLONE_NEWPID] {
        refused("a namespace", unshare(kind), libc::EPERM)?;
    }
    refused("a namespace that is there", setns(&before.netns, CloneFlags::empty()), libc::EPERM)?;
    refused("another user", nix::unistd::setuid(Uid::from_raw(0)), libc::EPERM)?;
    for family in [MOUNTS, TRACING, KERNEL] {
        for call in family {
            refused(&format!("call {call}"), empty_call(*call), libc::EPERM)?;
        }
    }
    Ok(())
}

/// What was there before.
struct Before {
    parent: Pid,
    netns: File,
    file: String,
    address: std::os::unix::net::SocketAddr,
    _listener: std::os::unix::net::UnixListener,
    status: File,
}

impl Before {
    fn new() -> Result<Before, String> {
        use std::os::linux::net::SocketAddrExt;
        let name = format!("tapline-confined-{}", std::process::id());
        let address = std::os::unix::net::SocketAddr::from_abstract_name(&name).map_err(text)?;
        let file = format!("/proc/{}/comm", std::process::id());
        Ok(Before {
            parent: nix::unistd::getppid(),
            netns: File::open("/proc/self/ns/net").map_err(text)?,
            file,
            _listener: std::os::unix::net::UnixListener::bind_addr(&address).map_err(text)?,
            address,
            status: File::open("/proc/self/status").map_err(text)?,
        })
    }

    fn status(&self) -> Result<String, String> {
        io::read_to_string(&self.status).map_err(text)
    }
}

#[test]
fn an_agent_can_do_its_work_and_nothing_else() {
    in_namespace(|| {
        let before = Before::new()?;
        let confined = agent(false).map_err(text)?;
        every_way_out_is_shut(&before)?;
        refused("a network namespace", unshare(CloneFlags::CLONE_NEWNET), libc::EPERM)?;
        let status = before.status()?;
        // CAP_NET_BIND_SERVICE, CAP_NET_ADMIN, CAP_NET_RAW.
        for set in ["CapPrm:", "CapEff:", "CapBnd:"] {
            if field(&status, set) != "0000000000003400" {
                return Err(format!("{set} {}", field(&status, set)));
            }
        }
        if field(&status, "NoNewPrivs:") != "1" || field(&status, "Seccomp:") != "2" {
            return Err(status);
        }
        // Its work: an interface, a sysctl, a listener on a low port, the end of its streams.
        tun::Tap::create("tap9").map_err(text)?;
        crate::sandbox::link::configure_namespace().map_err(text)?;
        std::fs::write("/proc/sys/net/ipv4/conf/all/rp_filter", "2").map_err(text)?;
        TcpListener::bind(("127.0.0.1", 80)).map_err(text)?;
        proc::null_stdio(&[]).map_err(text)?;
        match confined.lacks.is_empty() {
            true => Ok(()),
            false => Err(confined.lacks.join("; ")),
        }
    });
}

#[test]
fn an_agent_whose_links_are_veth_pairs_can_make_them_and_no_other_namespace() {
    in_namespace(|| {
        let before = Before::new()?;
        let _confined = agent(true).map_err(text)?;
        every_way_out_is_shut(&before)?;
        let made = crate::sandbox::link::make_link(
            crate::plan::LinkChoice::Packet,
            "veth9",
            crate::plan::MacAddr([2, 0, 0, 0, 0, 9]),
            None,
        );
        made.map_err(text)?;
        // The one that it may enter is a network namespace, whatever it has open.
        refused("what is no namespace", netns::enter(&before.status), libc::EINVAL)
    });
}

#[test]
fn who_minds_a_command_can_send_signals_and_nothing_else() {
    in_namespace(|| {
        let before = Before::new()?;
        let confined = minder().map_err(text)?;
        every_way_out_is_shut(&before)?;
        refused("the device", File::open("/dev/net/tun"), libc::EACCES)?;
        refused("/dev/null", File::open("/dev/null"), libc::EACCES)?;
        let status = before.status()?;
        if field(&status, "CapEff:") != "0000000000000020" || field(&status, "CapBnd:") != "0000000000000020" {
            return Err(status);
        }
        nix::sys::signal::kill(nix::unistd::getpid(), None).map_err(text)?;
        match confined.lacks.is_empty() {
            true => Ok(()),
            false => Err(confined.lacks.join("; ")),
        }
    });
}
