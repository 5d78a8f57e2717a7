//! What makes no sense or is not there: one clear line, a status that says whose mistake it was, nothing left behind.
use std::fs::{self, DirBuilder};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use nix::mount::{MsFlags, mount};
use nix::unistd::geteuid;

use crate::harness::*;
use crate::world;

cases! {
    a_command_line_that_makes_no_sense_is_told_in_a_line,
    targets_that_cannot_be_attached_to_are_told_in_a_line,
    a_namespace_that_does_not_admit_us_is_told,
    an_interface_name_that_is_taken_is_told,
    a_name_that_is_taken_is_told,
    a_runtime_directory_that_cannot_be_used_is_done_without,
    no_more_user_namespaces_is_told,
    a_missing_tun_device_is_done_without_or_told,
    a_forbidden_tun_device_is_done_without_or_told,
    ;
    not_admitted,
    no_user_namespaces,
    no_tun_device,
    forbidden_tun_device,
}

/// A runtime directory for one case, so that what is left behind is seen.
struct Home(PathBuf);

impl Home {
    fn new(name: &str) -> Result<Home, Fault> {
        let path = runtime_dir().join(name);
        DirBuilder::new().recursive(true).mode(0o700).create(&path).map_err(|e| e.to_string())?;
        Ok(Home(path))
    }

    /// Run tapline; `(status, lines on stderr)`, after a look at what it left.
    fn tapline(&self, words: &[&str]) -> Result<(Option<i32>, Vec<String>), Fault> {
        self.run(command(words))
    }

    fn run(&self, mut command: Command) -> Result<(Option<i32>, Vec<String>), Fault> {
        let out = command.env("XDG_RUNTIME_DIR", &self.0).output().map_err(|e| e.to_string())?;
        let below = |dir: PathBuf| fs::read_dir(dir).into_iter().flatten().flatten().map(|e| e.path());
        let left: Vec<PathBuf> =
            below(self.0.join("tapline")).flat_map(|netns| below(netns.join("sandboxes"))).collect();
        same("left behind", left, vec![])?;
        Ok((out.status.code(), text(&out.stderr).lines().map(str::to_owned).collect()))
    }

    /// One line that has all of these in it, and 125.
    fn fails(&self, command: Command, wanted: &[&str]) -> Result<(), Fault> {
        let what = format!("{command:?}");
        let (status, lines) = self.run(command)?;
        same(&format!("{what}: {lines:?}"), (status, lines.len()), (Some(125), 1))?;
        for word in wanted {
            holds(format!("{what}: {word} in {lines:?}"), lines[0].contains(word))?;
        }
        Ok(())
    }
}

fn a_command_line_that_makes_no_sense_is_told_in_a_line() -> Result<(), Fault> {
    let home = Home::new("bad-words")?;
    for (words, wanted) in [
        (&["run", "--mtuu", "1500", "--", "true"][..], &["'--mtuu'", "'--mtu'"][..]),
        (&["runn"], &["'runn'", "'run'"]),
        (&["run", "--ifname", "sixteen-bytes---", "--", "true"], &["sixteen-bytes---", "15"]),
        (&["run", "--subnet", "10.0.2.1/24", "--", "true"], &["10.0.2.1/24", "10.0.2.0/24"]),
        (&["run", "--subnet", "10.0.2.0/30", "--", "true"], &["10.0.2.0/30", "small"]),
        (&["run", "--subnet6", "fd00::1/64", "--", "true"], &["fd00::1/64", "fd00::/64"]),
        (&["run", "--mac", "01:00:5e:00:00:01", "--", "true"], &["01:00:5e:00:00:01", "multicast"]),
        (&["run", "--mtu", "575", "--", "true"], &["575", "576"]),
        (&["run", "--mtu", "65521", "--", "true"], &["65521", "65520"]),
        (&["run", "--mtu", "1279", "--", "true"], &["1279", "1280", "--ipv4-only"]),
        (&["run", "--ipv4-only", "--ipv6-only", "--", "true"], &["--ipv4-only", "--ipv6-only"]),
        (&["attach"], &["PID"]),
        (&["attach", "0"], &["'0'"]),
        (&["exec"], &["NAME"]),
    ] {
        let (status, lines) = home.tapline(words)?;
        same(&format!("{words:?}: {lines:?}"), status, Some(2))?;
        // The second line says where to read more.
        same(&format!("{words:?}: {lines:?}"), lines.len(), 2)?;
        holds(format!("{words:?}: {lines:?}"), lines[1].starts_with("try 'tapline "))?;
        for word in wanted {
            holds(format!("{words:?}: {word} in {lines:?}"), lines[0].contains(word))?;
        }
    }
    // 1279 bytes are enough without IPv6.
    let (status, lines) = home.tapline(&["run", "--mtu", "1279", "--ipv4-only", "--", "true"])?;
    same(&format!("{lines:?}"), status, Some(0))
}

/// A process of another user, and the user to look at it as.
fn strangers_process() -> (u32, Option<u32>) {
    if geteuid().is_root() { (std::process::id(), Some(65_534)) } else { (1, None) }
}

fn targets_that_cannot_be_attached_to_are_told_in_a_line() -> Result<(), Fault> {
    let home = Home::new("bad-targets")?;
    home.fails(command(&["attach", "2147483647"]), &["no process 2147483647", "PID"])?;
    home.fails(command(&["attach", "--netns", "/no/such/path"]), &["/no/such/path", "/proc/PID/ns/net"])?;
    home.fails(command(&["attach", "--netns", "/etc/passwd"]), &["/etc/passwd", "no network namespace"])?;
    home.fails(command(&["attach", "--netns", "/proc/self/ns/user"]), &["no network namespace"])?;
    let own = std::process::id().to_string();
    home.fails(command(&["attach", &own]), &["network namespace tapline itself runs in"])?;
    let (pid, user) = strangers_process();
    let mut theirs = command(&["attach", &pid.to_string()]);
    if let Some(user) = user {
        // The other user has no business in our directories.
        theirs.uid(user).gid(user).current_dir("/");
        let out = theirs
            .env_remove("XDG_RUNTIME_DIR")
            .env("XDG_CONFIG_HOME", "/no/such/directory")
            .output()
            .map_err(|e| e.to_string())?;
        let errors = text(&out.stderr);
        same(&errors, (out.status.code(), errors.lines().count()), (Some(125), 1))?;
        return holds(errors.clone(), errors.contains("belongs to root, not to you"));
    }
    home.fails(theirs, &["belongs to root, not to you", "run tapline as"])
}

fn a_namespace_that_does_not_admit_us_is_told() -> Result<(), Fault> {
    let mut command = Command::new(this_program());
    command.arg("target");
    let target = Console::start(command)?;
    // A sandbox that is the target's sibling gets the target's namespace as its standard input.
    let file = fs::File::open(format!("/proc/{}/ns/net", target.child.0.id())).map_err(|e| e.to_string())?;
    let home = Home::new("not-admitted")?;
    let mut sibling = command_in_sandbox("not_admitted", &home);
    let out = sibling.stdin(Stdio::from(file)).output().map_err(|e| e.to_string())?;
    holds(text(&out.stderr), out.status.success())
}

fn command_in_sandbox(case: &str, home: &Home) -> Command {
    let mut command = command(&["run", "-q", "--net", "none", "--"]);
    command.arg(this_program()).args(["case", case]).env(world::DIR, home.0.join("world"));
    command
}

fn not_admitted() -> Result<(), Fault> {
    let home = Home::new("inner")?;
    let mut attach = command(&["attach", "--netns", "/proc/self/fd/0"]);
    attach.stdin(Stdio::inherit());
    home.fails(attach, &["does not admit you"])
}

fn an_interface_name_that_is_taken_is_told() -> Result<(), Fault> {
    let mut command_line = Command::new(this_program());
    command_line.arg("target");
    let mut target = Console::start(command_line)?;
    let pid = target.child.0.id().to_string();
    let home = Home::new("taken-interface")?;
    let out = command(&["attach", "--detach", "--name", "first-here", "--ifname", "same0", &pid])
        .output()
        .map_err(|e| e.to_string())?;
    same(&text(&out.stderr), out.status.code(), Some(0))?;
    for link in ["tap", "packet"] {
        let again = command(&["attach", "--link-kind", link, "--ifname", "same0", &pid]);
        home.fails(again, &["same0", "choose another name"])?;
    }
    same("the first is still there", target.ask(&["interfaces"])?.as_str(), "lo same0")?;
    let out = command(&["stop", "first-here"]).output().map_err(|e| e.to_string())?;
    same(&text(&out.stderr), out.status.code(), Some(0))
}

fn a_name_that_is_taken_is_told() -> Result<(), Fault> {
    let _console = sandbox("only-once", &[])?;
    let out = command(&["run", "--name", "only-once", "--", "true"]).output().map_err(|e| e.to_string())?;
    let errors = text(&out.stderr);
    same(&errors, (out.status.code(), errors.lines().count()), (Some(125), 1))?;
    holds(errors.clone(), errors.contains("`only-once` is taken") && errors.contains("--name"))?;
    same("the first is still there", inspect("only-once")?["name"].as_str(), Some("only-once"))
}

fn a_runtime_directory_that_cannot_be_used_is_done_without() -> Result<(), Fault> {
    let home = Home::new("runtime")?;
    let theirs = if geteuid().is_root() {
        let path = home.0.join("theirs");
        fs::create_dir_all(&path).map_err(|e| e.to_string())?;
        std::os::unix::fs::chown(&path, Some(65_534), Some(65_534)).map_err(|e| e.to_string())?;
        path
    } else {
        "/".into()
    };
    let open = home.0.join("open");
    fs::create_dir_all(&open).map_err(|e| e.to_string())?;
    fs::set_permissions(&open, fs::Permissions::from_mode(0o777)).map_err(|e| e.to_string())?;
    for (dir, why) in [(home.0.join("missing"), "missing"), (theirs, "another's"), (open, "open to all")] {
        let mut command = command(&["run", "--", "true"]);
        let out = command.env("XDG_RUNTIME_DIR", &dir).output().map_err(|e| e.to_string())?;
        let errors = text(&out.stderr);
        same(&format!("{why}: {errors}"), out.status.code(), Some(0))?;
        holds(format!("{why}: nothing is put there"), !dir.join("tapline").exists())?;
        holds(format!("{why}: {errors}"), errors.lines().count() <= 1)?;
    }
    let mut command = command(&["run", "--", "true"]);
    let out = command.env_remove("XDG_RUNTIME_DIR").output().map_err(|e| e.to_string())?;
    same(&text(&out.stderr), (out.status.code(), out.stderr.len()), (Some(0), 0))
}

fn no_more_user_namespaces_is_told() -> Result<(), Fault> {
    world::run(&["--net", "none"], "no_user_namespaces")
}

fn no_user_namespaces() -> Result<(), Fault> {
    fs::write("/proc/sys/user/max_user_namespaces", "0").map_err(|e| e.to_string())?;
    let home = Home::new("no-userns")?;
    home.fails(command(&["run", "--", "true"]), &["user.max_user_namespaces"])
}

fn a_missing_tun_device_is_done_without_or_told() -> Result<(), Fault> {
    world::run(&["--net", "none"], "no_tun_device")
}

fn no_tun_device() -> Result<(), Fault> {
    mount(Some("tmpfs"), "/dev/net", Some("tmpfs"), MsFlags::empty(), None::<&str>).map_err(|e| e.to_string())?;
    without_device("missing")
}

fn a_forbidden_tun_device_is_done_without_or_told() -> Result<(), Fault> {
    world::run(&["--net", "none"], "forbidden_tun_device")
}

fn forbidden_tun_device() -> Result<(), Fault> {
    // A device cannot be opened through a mount that forbids devices (mount(8), nodev); modes would not stop root.
    let tun = "/dev/net/tun";
    for flags in [MsFlags::MS_BIND, MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_NODEV] {
        mount(Some(tun), tun, None::<&str>, flags, None::<&str>).map_err(|e| e.to_string())?;
    }
    without_device("forbidden")
}

fn without_device(why: &str) -> Result<(), Fault> {
    let server = tcp_server("127.0.0.1:0", echo);
    let mut command_line = probe_command(&["--host-loopback"], &["tcp-echo", &seen_from_inside(server), "1000000"]);
    let out = command_line.output().map_err(|e| e.to_string())?;
    let errors = text(&out.stderr);
    same(&format!("{why}: {errors}"), text(&out.stdout).trim_end(), "1000000 bytes came back")?;
    same(&format!("{why}: {errors}"), errors.lines().count(), 1)?;
    holds(errors.clone(), errors.contains("/dev/net/tun"))?;
    let home = Home::new(why)?;
    home.fails(command(&["run", "--link-kind", "tap", "--", "true"]), &["/dev/net/tun"])
}
