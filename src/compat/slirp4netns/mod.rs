//! The command line of slirp4netns.
//!
//! # Theory of operation
//!
//! `slirp4netns [OPTION]... PID|PATH|FD TAPNAME` gives a namespace that somebody else made an interface and stays in the
//! foreground. [`options`] reads what was typed, [`plan`] makes of it the plan of [`attach`](crate::sandbox::attach);
//! what remains is here: descriptors as that tool treats them, and how it ends.
//!
//! - *`--exit-fd`*: whatever polling it reports ends us. So does a descriptor that is closed from the start: a pipe whose
//!   other end is closed stands for it. One that never reports anything, such as a file, never does.
//! - *`--ready-fd`*: one that is closed is nobody's; the network works all the same.
//! - *The end*: 0 when `--exit-fd` hung up. A signal ends the network first and then this process, by the signal itself,
//!   so that a shell sees 143 after SIGTERM. Everything else is 1, with a sentence on standard error.
use std::ffi::OsString;
use std::io::{self, Write};
use std::net::{IpAddr, Ipv6Addr};
use std::os::fd::{IntoRawFd, RawFd};
use std::process::ExitCode;

use nix::ifaddrs::getifaddrs;

use self::options::{Interfaces, Mistake, Options, Wanted};
use crate::observe::logging;
use crate::plan::{Attach, Interface, Network};
use crate::sandbox::{self, Ended, SandboxError};
use crate::sys::{proc, random};

mod options;
mod plan;

/// Runs it, `argv[0]` first; the process's exit status.
pub fn main(mut words: Vec<OsString>) -> ExitCode {
    let called = if words.is_empty() { "slirp4netns".into() } else { words.remove(0) };
    let mut said = String::new();
    let wanted = options::read(&called, words, &Host, &mut said);
    match wanted {
        Ok(Wanted::Help) => said.push_str(&options::usage(&called)),
        Ok(Wanted::Version) => said.push_str(&options::version()),
        Ok(Wanted::Network(options)) => {
            say(&said);
            return serve(*options);
        }
        Err(Mistake { reason, usage }) => {
            if usage {
                said.push_str(&options::usage(&called));
            }
            say(&said);
            if let Some(reason) = reason {
                complain(&reason);
            }
            return ExitCode::FAILURE;
        }
    }
    say(&said);
    ExitCode::SUCCESS
}

/// The network and the interface that words behind the program's name ask for, on a host with one interface; a
/// mistake's sentence. `None` where there is nothing to be done but to say something. For the fuzz target.
pub(crate) fn network_of(words: Vec<OsString>) -> Result<Option<(Network, Interface)>, String> {
    struct OneInterface;
    impl Interfaces for OneInterface {
        fn addresses(&self, name: &str) -> Vec<IpAddr> {
            let all = [IpAddr::from([192, 0, 2, 7]), Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 7).into()];
            if name == "eth0" { all.to_vec() } else { Vec::new() }
        }
    }
    match options::read("slirp4netns".as_ref(), words, &OneInterface, &mut String::new()) {
        Ok(Wanted::Network(options)) => {
            let plan = plan::plan(&options, "0123456789ab".to_owned());
            Ok(plan.map(|plan| (plan.network, plan.interface)))
        }
        Ok(Wanted::Help | Wanted::Version) => Ok(None),
        Err(Mistake { reason, usage }) => match reason {
            None if usage => Ok(None),
            reason => Err(reason.unwrap_or_default()),
        },
    }
}

fn serve(mut options: Options) -> ExitCode {
    if let Err(error) = descriptors(&mut options) {
        complain(&format!("slirp4netns: cannot make a pipe: {error}"));
        return ExitCode::FAILURE;
    }
    let id = random::bytes::<6>().iter().map(|byte| format!("{byte:02x}")).collect();
    // The reading of --cidr has made sure of the room.
    let Some(plan) = plan::plan(&options, id) else {
        complain("prefix length needs to be 1-25");
        return ExitCode::FAILURE;
    };
    logging::init(plan.logging);
    match attach(plan) {
        Ok(Ended::Signal(number)) | Err(SandboxError::EndedEarly(Ended::Signal(number))) => proc::die_of(number),
        Ok(Ended::ExitFd) => {
            complain("exitfd event\ndo_slirp is exiting");
            ExitCode::SUCCESS
        }
        Ok(Ended::Target | Ended::Background) => ExitCode::SUCCESS,
        Err(error) => {
            complain(&format!("slirp4netns: {error}"));
            ExitCode::FAILURE
        }
    }
}

fn attach(plan: Attach) -> Result<Ended, SandboxError> {
    proc::trim_memory();
    sandbox::attach(plan)
}

/// Put what a plan can have in place of descriptors that are closed, or given for both purposes: the original closes
/// the one when it has written to it, which the other then reports.
fn descriptors(options: &mut Options) -> io::Result<()> {
    let is_open = |fd: RawFd| proc::is_inherited(fd);
    if let Some(fd) = options.exit_fd
        && (!is_open(fd) || options.ready_fd == Some(fd))
    {
        options.exit_fd = Some(hung_up()?);
    }
    options.ready_fd = options.ready_fd.filter(|fd| is_open(*fd));
    Ok(())
}

/// A descriptor, as if inherited, whose other end is closed.
fn hung_up() -> io::Result<RawFd> {
    let (read, write) = io::pipe()?;
    drop(write);
    proc::make_inheritable(&read)?;
    Ok(read.into_raw_fd())
}

/// The interfaces of this host.
struct Host;

impl Interfaces for Host {
    fn addresses(&self, name: &str) -> Vec<IpAddr> {
        let Ok(all) = getifaddrs() else { return Vec::new() };
        all.filter(|one| one.interface_name == name)
            .filter_map(|one| {
                let address = one.address?;
                let v4 = address.as_sockaddr_in().map(|v4| v4.ip().into());
                v4.or_else(|| address.as_sockaddr_in6().map(|v6| v6.ip().into()))
            })
            .collect()
    }
}

/// On standard output; who does not read it may have gone.
fn say(text: &str) {
    let mut out = io::stdout();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

/// A line on standard error.
fn complain(text: &str) {
    let _ = io::stderr().write_all(format!("{text}\n").as_bytes());
}
