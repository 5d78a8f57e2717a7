//! A terminal of our own, and programs on it.
//!
//! `net on-terminal DEVICE PROGRAM ARGUMENT...` begins a session whose terminal is that device, and becomes the
//! program. [`Terminal`] holds the other side.
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode, Stdio};
use std::sync::{Arc, Mutex};

use nix::fcntl::OFlag;
use nix::pty::{grantpt, posix_openpt, ptsname_r, unlockpt};
use nix::sys::termios::{Termios, tcgetattr};
use nix::unistd::tcgetpgrp;

use crate::harness::*;

/// Becomes the program.
pub fn main(device: &str, program: &[String]) -> ExitCode {
    let error = match attach(device) {
        Ok(()) => Command::new(&program[0]).args(&program[1..]).exec().to_string(),
        Err(error) => error,
    };
    eprintln!("{program:?}: {error}");
    ExitCode::FAILURE
}

fn attach(device: &str) -> Result<(), String> {
    nix::unistd::setsid().map_err(|e| e.to_string())?;
    // The first terminal that the leader of a session opens becomes that session's (tty(4)).
    let file = File::options().read(true).write(true).open(device).map_err(|e| format!("{device}: {e}"))?;
    nix::unistd::dup2_stdin(&file).map_err(|e| e.to_string())?;
    nix::unistd::dup2_stdout(&file).map_err(|e| e.to_string())?;
    nix::unistd::dup2_stderr(&file).map_err(|e| e.to_string())
}

/// The side of a terminal where a person sits.
pub struct Terminal {
    keyboard: File,
    /// The device itself, held open so that its settings can be read at any time.
    device: OwnedFd,
    path: String,
    screen: Arc<Mutex<String>>,
    /// How much of the screen has been looked at.
    seen: usize,
}

impl Terminal {
    /// A new one.
    pub fn new() -> Result<Terminal, Fault> {
        let fault = |e: nix::Error| format!("cannot make a terminal: {e}");
        let master = posix_openpt(OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC).map_err(fault)?;
        grantpt(&master).map_err(fault)?;
        unlockpt(&master).map_err(fault)?;
        let path = ptsname_r(&master).map_err(fault)?;
        use std::os::unix::fs::OpenOptionsExt;
        let device = File::options()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NOCTTY)
            .open(&path)
            .map_err(|e| format!("{path}: {e}"))?;
        let keyboard = File::from(OwnedFd::from(master));
        let mut output = keyboard.try_clone().map_err(|e| e.to_string())?;
        let screen = Arc::new(Mutex::new(String::new()));
        let shown = Arc::clone(&screen);
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(n @ 1..) = output.read(&mut buffer) {
                shown.lock().expect("nobody panics with it").push_str(&String::from_utf8_lossy(&buffer[..n]));
            }
        });
        Ok(Terminal { keyboard, device: device.into(), path, screen, seen: 0 })
    }

    /// Start a program on it; the environment and the arguments are the command's.
    pub fn start(&self, command: &Command) -> Result<Running, Fault> {
        let mut on_terminal = Command::new(this_program());
        on_terminal.args(["on-terminal", &self.path]).arg(command.get_program()).args(command.get_args());
        on_terminal.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
        on_terminal.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        on_terminal.spawn().map(Running).map_err(|e| e.to_string())
    }

    /// Type.
    pub fn press(&mut self, keys: &str) -> Result<(), Fault> {
        self.keyboard.write_all(keys.as_bytes()).map_err(|e| e.to_string())
    }

    /// Wait until this is on the screen, after what was waited for before.
    pub fn expect(&mut self, what: &str) -> Result<(), Fault> {
        let mut at = None;
        let found = until(&format!("`{what}` on the screen"), 20, || {
            let screen = self.screen.lock().expect("nobody panics with it");
            at = screen.get(self.seen..).and_then(|rest| rest.find(what));
            at.is_some()
        });
        let screen = self.screen.lock().expect("nobody panics with it").clone();
        found.map_err(|e| format!("{e}; it shows {:?}", &screen[self.seen..]))?;
        self.seen += at.unwrap_or(0) + what.len();
        Ok(())
    }

    /// All that was shown.
    pub fn screen(&self) -> String {
        self.screen.lock().expect("nobody panics with it").clone()
    }

    /// How it is set.
    pub fn settings(&self) -> Result<Termios, Fault> {
        tcgetattr(self.device.as_fd()).map_err(|e| e.to_string())
    }

    /// Wait until a program of this name is in the terminal's foreground, and is not stopped.
    pub fn wait_for_foreground(&self, name: &str) -> Result<(), Fault> {
        until(&format!("{name} is in the foreground"), 20, || {
            let Ok(group) = tcgetpgrp(&self.keyboard) else { return false };
            processes_of(group.as_raw(), name).into_iter().any(|pid| state_of(pid).is_some_and(|s| s != 'T'))
        })
    }
}

/// Processes of a group with this name.
fn processes_of(group: i32, name: &str) -> Vec<u32> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").expect("/proc is mounted").flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse::<u32>().ok()) else { continue };
        let Ok(stat) = std::fs::read_to_string(entry.path().join("stat")) else { continue };
        let Some((head, rest)) = stat.rsplit_once(')') else { continue };
        let of_group = rest.split_whitespace().nth(2).and_then(|n| n.parse().ok()) == Some(group);
        if of_group && head.ends_with(&format!("({name}")) {
            found.push(pid);
        }
    }
    found
}
