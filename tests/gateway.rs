//! The gateway of shared networks as a process: how it is found, started, and how it ends. With the real program, in a
//! state directory of each test's own; no frame is carried.
use std::fs;
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tapline::control::client::{Ended, GatewayProcess};
use tapline::control::messages::{FromGateway, ToGateway};
use tapline::control::rendezvous::Starter;
use tapline::control::state::StateDir;
use tapline::sys::spawn::pidfd_open;

const PATIENCE: Duration = Duration::from_secs(15);

/// A directory that goes away with its test.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Scratch {
        let path = std::env::temp_dir().join(format!("tapline-gateway-{}-{name}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        private_dir(&path);
        private_dir(&path.join("run"));
        Scratch(path)
    }

    fn state(&self) -> StateDir {
        StateDir::at(Some(self.0.join("run")), self.0.join("fallback"), 42).unwrap()
    }

    fn base(&self) -> PathBuf {
        self.0.join("run/tapline/42")
    }

    /// A program in systemd-run's place.
    fn script(&self, text: &str) -> PathBuf {
        let path = self.0.join("systemd-run");
        fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn private_dir(path: &Path) {
    fs::DirBuilder::new().mode(0o700).create(path).unwrap();
}

fn starter() -> Starter {
    Starter {
        program: env!("CARGO_BIN_EXE_tapline").into(),
        name: None,
        arguments: vec!["gateway".into()],
        after: Vec::new(),
        systemd_run: None,
    }
}

fn with_systemd_run(program: PathBuf) -> Starter {
    Starter { systemd_run: Some((program, vec![("PATH".into(), "/usr/bin:/bin".into())])), ..starter() }
}

fn words(pid: u32) -> Vec<String> {
    let text = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap();
    text.split_terminator('\0').map(str::to_owned).collect()
}

/// A field of /proc/PID/stat behind the program's name; 0 is the state.
fn stat(pid: u32, field: usize) -> u32 {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    text.rsplit_once(") ").unwrap().1.split(' ').nth(field).unwrap().parse().unwrap()
}

/// Wait for a process's end.
fn ends(pid: u32) -> Duration {
    let begun = Instant::now();
    // One that has ended already is no process any more.
    if let Ok(pidfd) = pidfd_open(pid) {
        let mut fds = [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
        assert_eq!(poll(&mut fds, PollTimeout::try_from(PATIENCE).unwrap()), Ok(1), "it does not end");
    }
    begun.elapsed()
}

/// It answers: what is no attach is refused.
fn answers(gateway: &GatewayProcess) {
    gateway.connection().send(&ToGateway::Inside, &[]).unwrap();
    match gateway.recv().unwrap() {
        Some(FromGateway::Refused { .. }) => {}
        other => panic!("{other:?}"),
    }
}

#[test]
fn twenty_at_once_find_one_gateway_which_ends_after_the_last() {
    let scratch = Scratch::new("twenty");
    let state = scratch.state();
    let begun = std::sync::Barrier::new(20);
    let all: Vec<GatewayProcess> = std::thread::scope(|scope| {
        let joining: Vec<_> = (0..20)
            .map(|_| {
                scope.spawn(|| {
                    begun.wait();
                    GatewayProcess::reach(&state, &starter()).unwrap()
                })
            })
            .collect();
        joining.into_iter().map(|joined| joined.join().unwrap()).collect()
    });
    let pid = all[0].pid();
    assert!(all.iter().all(|gateway| gateway.pid() == pid), "{:?}", all.iter().map(|g| g.pid()).collect::<Vec<_>>());
    assert_eq!(words(pid)[1..3], ["gateway", "--listen"]);
    // Nobody's child, and in nobody's session.
    assert_ne!(stat(pid, 1), std::process::id());
    assert_ne!(stat(pid, 3), stat(std::process::id(), 3));
    for file in ["gateway.sock", "gateway.log", "gateway.lock"] {
        assert_eq!(fs::metadata(scratch.base().join(file)).unwrap().mode() & 0o777, 0o600, "{file}");
    }
    all.iter().for_each(answers);
    for gateway in all {
        assert!(matches!(gateway.stop(Duration::ZERO), Ok(Ended::Connection)));
    }
    let took = ends(pid);
    assert!(took > Duration::from_millis(1500) && took < Duration::from_secs(5), "{took:?}");
    assert_eq!(fs::read_to_string(scratch.base().join("gateway.log")).unwrap(), "");
}

#[test]
fn one_that_was_killed_is_replaced_and_kill_does_not_kill_it() {
    let scratch = Scratch::new("killed");
    let first = GatewayProcess::reach(&scratch.state(), &starter()).unwrap();
    let pid = first.pid();
    first.kill();
    answers(&GatewayProcess::reach(&scratch.state(), &starter()).unwrap());
    assert!(!first.has_ended());
    kill(Pid::from_raw(pid.cast_signed()), Signal::SIGKILL).unwrap();
    ends(pid);
    assert!(first.recv().unwrap().is_none());
    assert!(first.has_ended());
    let second = GatewayProcess::reach(&scratch.state(), &starter()).unwrap();
    assert_ne!(second.pid(), pid);
    answers(&second);
    let pid = second.pid();
    drop(second);
    ends(pid);
}

#[test]
fn a_scope_of_its_own_is_asked_for_and_not_needed() {
    for (name, text, way) in [
        (
            "asked",
            r#"echo "$*" > "$(dirname "$0")/asked"; while [ "$1" != -- ]; do shift; done; shift; exec "$@""#,
            true,
        ),
        ("fails", "exit 1", false),
        ("hangs", "exec sleep 60", false),
    ] {
        let scratch = Scratch::new(name);
        let starter = with_systemd_run(scratch.script(text));
        let gateway = GatewayProcess::reach(&scratch.state(), &starter).unwrap();
        answers(&gateway);
        if way {
            let asked = fs::read_to_string(scratch.0.join("asked")).unwrap();
            let wanted =
                format!("--user --scope --quiet --collect -- {} gateway --listen ", env!("CARGO_BIN_EXE_tapline"));
            assert!(asked.starts_with(&wanted), "{asked}");
        }
        let pid = gateway.pid();
        drop(gateway);
        ends(pid);
    }
}

#[test]
fn a_program_that_is_no_gateway_is_an_error_and_leaves_nobody_waiting() {
    let scratch = Scratch::new("none");
    let failing = Starter { program: "/bin/false".into(), ..starter() };
    let error = GatewayProcess::reach(&scratch.state(), &failing).unwrap_err().to_string();
    assert!(error.contains("exit status: 1") && error.contains("gateway.log"), "{error}");
    let gateway = GatewayProcess::reach(&scratch.state(), &starter()).unwrap();
    answers(&gateway);
    let pid = gateway.pid();
    drop(gateway);
    ends(pid);
}

#[test]
fn it_is_found_by_a_path_of_any_length_and_in_the_fallback() {
    let scratch = Scratch::new("deep");
    let mut deep = scratch.0.clone();
    for _ in 0..4 {
        deep.push("d".repeat(40));
        private_dir(&deep);
    }
    let with = StateDir::at(Some(deep), scratch.0.join("fallback"), 42).unwrap();
    let gateway = GatewayProcess::reach(&with, &starter()).unwrap();
    answers(&gateway);
    let pid = gateway.pid();
    drop(gateway);
    ends(pid);
    // One that was started where no runtime directory was to be had is found by those who have one.
    let without = StateDir::at(None, scratch.0.join("fallback"), 42).unwrap();
    let gateway = GatewayProcess::reach(&without, &starter()).unwrap();
    assert_eq!(GatewayProcess::reach(&with, &starter()).unwrap().pid(), gateway.pid());
    assert!(with.bind_gateway().unwrap().is_some(), "nobody listens there");
    assert!(without.bind_gateway().unwrap().is_none(), "it is found there");
    let other = StateDir::at(None, scratch.0.join("fallback"), 43).unwrap();
    let elsewhere = GatewayProcess::reach(&other, &starter()).unwrap();
    assert_ne!(elsewhere.pid(), gateway.pid());
    let pids = [gateway.pid(), elsewhere.pid()];
    drop((gateway, elsewhere));
    for pid in pids {
        ends(pid);
    }
}

/// A private gateway, and the first process that was started for it.
fn private() -> (GatewayProcess, u32) {
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_tapline"));
    command.arg("gateway");
    let gateway = GatewayProcess::start(command, Vec::new()).unwrap();
    let group = gateway.group().unwrap();
    (gateway, group)
}

/// Processes of a group, those that nobody has waited for among them.
fn members(group: u32) -> Vec<u32> {
    let entries = fs::read_dir("/proc").unwrap().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.filter(|pid| {
        let text = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let field = text.rsplit_once(") ").and_then(|(_, rest)| rest.split(' ').nth(2)?.parse().ok());
        field == Some(group)
    })
    .collect()
}

#[test]
fn a_private_one_goes_on_in_a_second_process_of_which_its_owner_hears() {
    let (gateway, group) = private();
    assert!(matches!(gateway.recv().unwrap(), Some(FromGateway::Moved)));
    // The first has been waited for, and its number is the group's only.
    let [second] = members(group)[..] else { panic!("{:?}", members(group)) };
    assert_ne!(second, group);
    assert!(!gateway.has_ended());
    answers(&gateway);
    assert_eq!(gateway.stop(PATIENCE).unwrap().to_string(), "exit status 0");
    assert_eq!(members(group), [0u32; 0]);
}

#[test]
fn whichever_of_its_processes_is_killed_nobody_is_left() {
    for (moved, which) in [(true, "second"), (true, "kill"), (false, "stop"), (false, "kill")] {
        let (gateway, group) = private();
        if moved {
            assert!(matches!(gateway.recv().unwrap(), Some(FromGateway::Moved)));
        }
        match which {
            "stop" => {}
            "kill" => gateway.kill(),
            _ => members(group).into_iter().for_each(|pid| {
                // One may have ended in the meantime.
                let _ = kill(Pid::from_raw(pid.cast_signed()), Signal::SIGKILL);
            }),
        }
        if which != "stop" {
            while gateway.recv().unwrap().is_some() {}
            let ended = gateway.stop(PATIENCE).unwrap().to_string();
            assert_eq!(ended, "killed by SIGKILL", "{which} {moved}");
        } else {
            // At once: in whichever of its processes it is.
            gateway.stop(Duration::ZERO).unwrap();
        }
        assert_eq!(members(group), [0u32; 0], "{which} {moved}");
    }
}

#[test]
fn killed_at_any_point_of_its_start_it_leaves_nobody() {
    for step in 0..60 {
        let (gateway, group) = private();
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_micros(100 * step) {
            std::hint::spin_loop();
        }
        // The first process alone: its second, if there is one, does not depend on it.
        let _ = kill(Pid::from_raw(group.cast_signed()), Signal::SIGKILL);
        let said = gateway.recv().unwrap();
        let ended = gateway.stop(PATIENCE).unwrap().to_string();
        match said {
            Some(FromGateway::Moved) => assert_eq!(ended, "exit status 0"),
            None => assert_eq!(ended, "killed by SIGKILL"),
            other => panic!("{other:?}"),
        }
        assert_eq!(members(group), [0u32; 0], "step {step}");
    }
}
