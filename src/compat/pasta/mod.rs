//! The command line of pasta, of the passt project: the sandbox has the host's own addresses.
//!
//! # Theory of operation
//!
//! Three forms: a command in new namespaces, the namespaces of a process, a network namespace by its path. The words
//! become [`Options`], the host is looked at ([`host`]), and both become a plan ([`meaning`]): that of `run` for a
//! command, that of `attach` otherwise. What is asked for of the host's network is copied once, at the start
//! ([`template`]).
//!
//! - *Attached*, it goes to the background when the network works, and its parent exits with 0 then; callers read its
//!   output to the end. `-f` keeps it. It ends with 0 when the namespace does, or when SIGTERM or SIGQUIT ask for it.
//! - *With a command* it stays, and its exit status is the command's.
//! - *Started by root* in the initial namespaces it becomes nobody, or `--runas`, before anything is made. Of root's
//!   capabilities it keeps those that the namespace takes, until the network works.
//! - *Errors* are a sentence on standard error, in the original's words where callers look for them; the status is 1.
//!
//! | file | what |
//! | --- | --- |
//! | [`options`], [`usage`] | what can be typed |
//! | [`host`], [`template`] | what there is to copy |
//! | [`meaning`] | the plan |
//! | [`ports`] | the grammar of `-t`, `-u`, `-T`, `-U` |
//! | [`stats`] | `--stats` |
use std::ffi::OsString;
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt, fchown};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use nix::sys::signal::Signal;

use self::host::Identity;
use self::meaning::{Facts, Meaning};
use self::options::{Options, Stop, Whose};
use crate::observe::logfile::LogFile;
use crate::observe::logging;
use crate::plan::{self, Target, Userns};
use crate::sandbox::{self, Ended, SandboxError};
use crate::sys::proc;

pub(crate) mod fuzzing;
mod host;
mod meaning;
mod options;
pub mod ports;
mod stats;
mod template;
pub mod usage;

/// Exit status of everything that is not the command's.
const FAILED: u8 = 1;

/// Runs it, `argv[0]` first; the process's exit status.
pub fn main(mut words: Vec<OsString>) -> ExitCode {
    let called = if words.is_empty() { OsString::from("pasta") } else { words.remove(0) };
    let called = called.to_string_lossy();
    let options = match Options::parse(words) {
        Ok(options) => options,
        Err(Stop::Help) => return print(&usage::help(&called)),
        Err(Stop::Version) => return print(&usage::version()),
        Err(Stop::Words(error)) => {
            complain(&format!("{called}: {error}\n{}", usage::help(&called)));
            return ExitCode::from(FAILED);
        }
        Err(error) => return fail(&error.to_string()),
    };
    match execute(&options) {
        Ok(status) => ExitCode::from(status),
        Err(text) => fail(&text),
    }
}

fn execute(options: &Options) -> Result<u8, String> {
    let text = |error: Stop| error.to_string();
    let identity = Identity::wanted(options.run_as.as_deref()).map_err(text)?;
    let facts = host::facts().map_err(|error| error.to_string())?;
    let meaning = Meaning::of(options, &facts).map_err(text)?;
    let ports = ports::resolve(&ports_options(options, &meaning), true, host::ephemeral_ports())
        .map_err(|error| error.to_string())?;
    prepare_files(options, identity)?;
    start_logging(options, &meaning, &facts, identity.is_some() && options.run_as.is_none())?;
    let is_command = matches!(options.whose, Whose::Command(_));
    if let Some(identity) = identity {
        identity.assume(is_command).map_err(text)?;
    }
    if let Some(seconds) = options.stats {
        stats::start(&facts.id, seconds).map_err(|error| format!("Can't start a process for --stats: {error}"))?;
    }
    match &options.whose {
        Whose::Command(words) => {
            let words = if words.is_empty() { vec![shell()] } else { words.clone() };
            let plan = meaning.run(options, words, ports, &facts);
            drop(facts);
            proc::trim_memory();
            let status = sandbox::run(plan).map_err(|error| sentence(&error))?;
            Ok(u8::try_from(status).unwrap_or(FAILED))
        }
        Whose::Pid(_) | Whose::Netns(_) => {
            let plan = meaning.attach(options, target(options), ports, &facts);
            drop(facts);
            attach(plan)
        }
    }
}

fn attach(plan: plan::Attach) -> Result<u8, String> {
    proc::trim_memory();
    match sandbox::attach(plan) {
        Ok(Ended::Signal(number)) if number != Signal::SIGTERM as i32 && number != Signal::SIGQUIT as i32 => {
            proc::die_of(number)
        }
        Ok(Ended::Target | Ended::ExitFd | Ended::Background | Ended::Signal(_)) => Ok(0),
        Err(error) => Err(sentence(&error)),
    }
}

/// Callers know the text for a port that cannot be bound.
fn sentence(error: &SandboxError) -> String {
    let bind = if let SandboxError::Port(failure) = error { failure.bind.as_deref() } else { None };
    bind.map_or_else(|| error.to_string(), ports::bind_error)
}

/// Which namespaces. Without `--userns` the caller may be where he has to be, and otherwise the owner of the network
/// namespace is where.
fn target(options: &Options) -> Target {
    let userns = options.userns.clone().map_or(Userns::Owner, Userns::Given);
    match &options.whose {
        Whose::Netns(netns) => Target::Path { netns: netns.clone(), userns },
        Whose::Pid(pid) if options.userns.is_none() && !options.netns_only => Target::Pid(*pid),
        Whose::Pid(pid) => Target::Path { netns: PathBuf::from(format!("/proc/{pid}/ns/net")), userns },
        // A command has new ones.
        Whose::Command(_) => Target::Pid(0),
    }
}

fn ports_options(options: &Options, meaning: &Meaning) -> ports::Options {
    // What is switched off is followed no more than it is carried.
    let given = |specs: &[String], on: bool| if on { specs.to_vec() } else { vec!["none".to_owned()] };
    ports::Options {
        tcp: given(&options.tcp_ports, options.tcp),
        udp: given(&options.udp_ports, options.udp),
        tcp_ns: given(&options.tcp_ns, options.tcp),
        udp_ns: given(&options.udp_ns, options.udp),
        freebind: options.freebind,
        v4: meaning.network.v4.is_some(),
        v6: meaning.network.v6.is_some(),
    }
}

/// See now that the files can be written later, by whom they are to be written. A pipe is left alone: whoever reads it
/// would take what is closed again for its end, and without a reader opening it would wait.
fn prepare_files(options: &Options, identity: Option<Identity>) -> Result<(), String> {
    if let Some(path) = &options.pid_file {
        create(path, identity).map_err(|error| format!("Couldn't open PID file {}: {error}", path.display()))?;
    }
    if let Some(path) = &options.pcap {
        create(path, identity).map_err(|error| format!("Couldn't open pcap file {}: {error}", path.display()))?;
    }
    Ok(())
}

fn create(path: &Path, owner: Option<Identity>) -> io::Result<()> {
    if fs::metadata(path).is_ok_and(|meta| meta.file_type().is_fifo()) {
        return Ok(());
    }
    let file = OpenOptions::new().create(true).write(true).truncate(true).mode(0o600).open(path)?;
    match owner {
        // What is no file of ours alone, like /dev/stdout, stays whose it is. By its descriptor: the name may mean
        // another one by now.
        Some(owner) if file.metadata()?.is_file() => {
            let (uid, gid) = owner.ids();
            fchown(&file, Some(uid), Some(gid))
        }
        _ => Ok(()),
    }
}

fn start_logging(options: &Options, meaning: &Meaning, facts: &Facts, becomes_nobody: bool) -> Result<(), String> {
    let how = plan::Logging { verbosity: options.verbosity, json: false };
    match &options.log_file {
        Some(path) => {
            let file = LogFile::create(path, options.log_size)
                .map_err(|error| format!("Couldn't open log file {}: {error}", path.display()))?;
            logging::init_file(how, file, true);
        }
        None => logging::init(how),
    }
    if becomes_nobody {
        tracing::warn!("started as root, becoming nobody; --runas chooses another user");
    }
    for warning in &meaning.warnings {
        tracing::warn!("{warning}");
    }
    if let Some(path) = &options.conf_path {
        tracing::warn!("{}: the protocol of pesto is not served here", path.display());
    }
    // A command's own output is what counts where there is one.
    let is_command = matches!(options.whose, Whose::Command(_));
    if !options.quiet && (!is_command || options.verbosity > 0) {
        complain(&meaning.summary(&facts.net));
    }
    Ok(())
}

/// The shell where no command is given.
fn shell() -> OsString {
    std::env::var_os("SHELL").filter(|shell| !shell.is_empty()).unwrap_or_else(|| "/bin/sh".into())
}

/// On standard output; who does not read it may have gone.
fn print(text: &str) -> ExitCode {
    let mut out = io::stdout();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    ExitCode::SUCCESS
}

fn complain(text: &str) {
    let _ = io::stderr().write_all(text.as_bytes());
}

fn fail(text: &str) -> ExitCode {
    complain(&format!("{text}\n"));
    ExitCode::from(FAILED)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pipe_in_a_files_place_is_not_opened_before_its_time() {
        let path = std::env::temp_dir().join(format!("tapline-pasta-pipe-{}", std::process::id()));
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        create(&path, None).unwrap();
        fs::remove_file(&path).unwrap();
        create(&path, None).unwrap();
        assert!(fs::metadata(&path).unwrap().is_file());
        fs::remove_file(&path).unwrap();
    }

    #[test]
    fn namespaces_are_entered_as_they_were_named() {
        let of = |words: &str| target(&Options::parse(words.split_whitespace().map(OsString::from)).unwrap());
        let path = |netns: &str, userns| Target::Path { netns: netns.into(), userns };
        assert_eq!(of("7"), Target::Pid(7));
        assert_eq!(of("--netns /n"), path("/n", Userns::Owner));
        assert_eq!(of("--netns /n --userns /u"), path("/n", Userns::Given("/u".into())));
        assert_eq!(of("--userns /u 7"), path("/proc/7/ns/net", Userns::Given("/u".into())));
        assert_eq!(of("--netns-only 7"), path("/proc/7/ns/net", Userns::Owner));
    }
}
