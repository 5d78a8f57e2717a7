//! Starting tapline, and servers for its sandboxes to talk to.
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::PathBuf;
use std::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command, ExitStatus, Output, Stdio};
use std::sync::mpsc::Receiver;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// What went wrong, in a sentence.
pub type Fault = String;
/// A test case.
pub type Case = fn() -> Result<(), Fault>;

/// The program under test.
pub fn tapline() -> PathBuf {
    PathBuf::from(env!("CARGO_BIN_EXE_tapline"))
}

/// This program, which is also the probe.
pub fn this_program() -> PathBuf {
    std::env::current_exe().expect("a running program has a path")
}

/// A runtime directory of this test run's own, so that it meets no other sandboxes.
pub fn runtime_dir() -> PathBuf {
    static DIR: OnceLock<PathBuf> = OnceLock::new();
    DIR.get_or_init(|| {
        use std::os::unix::fs::PermissionsExt;
        // Inside a world the numbers of processes begin anew, so whoever made the world gives the directory.
        let own = || std::env::temp_dir().join(format!("tapline-test-{}", std::process::id()));
        let dir = std::env::var_os(crate::world::DIR).map_or_else(own, PathBuf::from);
        std::fs::create_dir_all(&dir).expect("the temporary directory can be written");
        std::fs::set_permissions(&dir, std::fs::Permissions::from_mode(0o700)).expect("it is ours");
        dir
    })
    .clone()
}

/// Can a user namespace be made at all? Otherwise the reason, once for all tests.
pub fn require_user_namespaces() -> Result<(), Fault> {
    static ANSWER: OnceLock<Result<(), Fault>> = OnceLock::new();
    ANSWER
        .get_or_init(|| {
            let out = command(&["run", "--net", "none", "--", "/bin/true"]).output().map_err(|e| e.to_string())?;
            match out.status.success() {
                true => Ok(()),
                false => Err(format!(
                    "this machine does not let us make a sandbox, so nothing can be tested here: {}",
                    String::from_utf8_lossy(&out.stderr)
                )),
            }
        })
        .clone()
}

/// `tapline` with these arguments, directories of its own, and no input. A `run` that does not say which network has one
/// of its own: that is what these cases are about, so they need not say it each.
pub fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(tapline());
    let options = arguments.split(|word| *word == "--").next().unwrap_or_default();
    match arguments {
        ["run", rest @ ..] if !options.contains(&"--net") => command.args(["run", "--net", "private"]).args(rest),
        _ => command.args(arguments),
    };
    command
        .env("XDG_RUNTIME_DIR", runtime_dir())
        .env("XDG_CONFIG_HOME", runtime_dir().join("config"))
        .env("XDG_DATA_HOME", runtime_dir().join("data"))
        .stdin(Stdio::null());
    command
}

/// `tapline run OPTIONS -- PROBE`, where PROBE is a command line of [`crate::probe`].
pub fn run_probe(options: &[&str], probe: &[&str]) -> Output {
    probe_command(options, probe).output().expect("tapline starts")
}

/// The same, not yet started.
pub fn probe_command(options: &[&str], probe: &[&str]) -> Command {
    let mut command = command(&[&["run"], options, &["--"]].concat());
    command.arg(this_program()).arg("probe").args(probe);
    command
}

/// What a probe printed, if it ended with 0.
pub fn probe(options: &[&str], probe: &[&str]) -> Result<String, Fault> {
    let out = run_probe(options, probe);
    let (said, errors) = (text(&out.stdout), text(&out.stderr));
    match out.status.code() {
        Some(0) => Ok(said.trim_end().to_owned()),
        code => Err(format!("probe {probe:?} ended with {code:?}; it said {said:?}; errors: {errors}")),
    }
}

/// Bytes as text.
pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// An error when two things differ.
pub fn same<T: PartialEq + std::fmt::Debug>(what: &str, got: T, wanted: T) -> Result<(), Fault> {
    if got == wanted { Ok(()) } else { Err(format!("{what}: got {got:?}, wanted {wanted:?}")) }
}

/// An error when something does not hold.
pub fn holds(what: impl Into<String>, is_so: bool) -> Result<(), Fault> {
    if is_so { Ok(()) } else { Err(what.into()) }
}

/// Wait until something is so, at most `seconds`.
pub fn until(what: &str, seconds: u64, mut is_so: impl FnMut() -> bool) -> Result<(), Fault> {
    let end = Instant::now() + Duration::from_secs(seconds);
    while Instant::now() < end {
        if is_so() {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Err(format!("not within {seconds} s: {what}"))
}

/// A child that is ended when the test is.
pub struct Running(pub Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Does the host have IPv6 on its loopback?
pub fn host_has_ipv6() -> bool {
    TcpListener::bind("[::1]:0").is_ok()
}

/// A TCP server of a thread; each connection is given to `serve`.
pub fn tcp_server(at: &str, serve: impl Fn(TcpStream) + Send + Sync + 'static) -> SocketAddr {
    let listener = TcpListener::bind(at).expect("a loopback port is free");
    let address = listener.local_addr().expect("it is bound");
    let serve = Arc::new(serve);
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let serve = Arc::clone(&serve);
            std::thread::spawn(move || serve(stream));
        }
    });
    address
}

/// A TCP server for one connection, and what `serve` makes of it.
pub fn tcp_once<T: Send + 'static>(
    at: &str,
    serve: impl FnOnce(TcpStream) -> T + Send + 'static,
) -> (SocketAddr, Receiver<T>) {
    let listener = TcpListener::bind(at).expect("a loopback port is free");
    let address = listener.local_addr().expect("it is bound");
    let (tell, told) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        if let Ok((stream, _)) = listener.accept() {
            let _ = tell.send(serve(stream));
        }
    });
    (address, told)
}

/// What a thread has to tell, within half a minute.
pub fn told<T>(by: &Receiver<T>) -> Result<T, Fault> {
    by.recv_timeout(Duration::from_secs(30)).map_err(|_| "the server saw nothing of it".into())
}

/// Sends back what it gets, and ends when the other side does.
pub fn echo(mut stream: TcpStream) {
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(n) = stream.read(&mut buffer) {
        if n == 0 || stream.write_all(&buffer[..n]).is_err() {
            break;
        }
    }
    let _ = stream.shutdown(std::net::Shutdown::Write);
}

/// A UDP server of a thread that sends back what it gets.
pub fn udp_echo(at: &str) -> SocketAddr {
    let socket = UdpSocket::bind(at).expect("a loopback port is free");
    let address = socket.local_addr().expect("it is bound");
    std::thread::spawn(move || {
        let mut buffer = vec![0; 65_536];
        while let Ok((n, from)) = socket.recv_from(&mut buffer) {
            let _ = socket.send_to(&buffer[..n], from);
        }
    });
    address
}

/// The gateway's address in the sandbox's eyes, with a port of the host: what `--host-loopback` leads to.
pub fn seen_from_inside(host: SocketAddr) -> String {
    match host {
        SocketAddr::V4(_) => format!("10.0.2.2:{}", host.port()),
        SocketAddr::V6(_) => format!("[fd00::2]:{}", host.port()),
    }
}

/// A [`crate::console`] somewhere, to be asked one thing after the other.
pub struct Console {
    /// The process that was started: tapline, or the console itself.
    pub child: Running,
    to: Option<ChildStdin>,
    from: BufReader<ChildStdout>,
}

impl Console {
    /// Start it and wait until it listens.
    pub fn start(mut command: Command) -> Result<Console, Fault> {
        let mut child = Running(
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().map_err(|e| format!("{command:?}: {e}"))?,
        );
        let to = child.0.stdin.take();
        let from = BufReader::new(child.0.stdout.take().ok_or("no stdout")?);
        let mut console = Console { child, to, from };
        same("the console's greeting", console.line()?.as_str(), "ready")?;
        Ok(console)
    }

    fn line(&mut self) -> Result<String, Fault> {
        let mut line = String::new();
        match self.from.read_line(&mut line) {
            Ok(0) => Err("the console has ended".into()),
            Ok(_) => Ok(line.trim_end().to_owned()),
            Err(error) => Err(error.to_string()),
        }
    }

    /// Have it run a probe; what that said, in a line.
    pub fn ask(&mut self, words: &[&str]) -> Result<String, Fault> {
        self.tell(words)?;
        self.answer(words)
    }

    /// Have it begin to run a probe.
    pub fn tell(&mut self, words: &[&str]) -> Result<(), Fault> {
        let to = self.to.as_mut().ok_or("the console's input is closed")?;
        to.write_all(format!("{}\n", words.join(" ")).as_bytes()).map_err(|e| e.to_string())
    }

    /// What the probe said.
    pub fn answer(&mut self, words: &[&str]) -> Result<String, Fault> {
        let line = self.line()?;
        match line.split_once(' ') {
            Some(("ok", said)) => Ok(said.to_owned()),
            _ => Err(format!("probe {words:?}: {line}")),
        }
    }

    /// Close its input, upon which it ends.
    pub fn end(mut self) -> Result<ExitStatus, Fault> {
        self.to = None;
        self.child.0.wait().map_err(|e| e.to_string())
    }
}

/// `tapline run --name NAME OPTIONS` with a console in it.
pub fn sandbox(name: &str, options: &[&str]) -> Result<Console, Fault> {
    Console::start(sandbox_command(name, options))
}

/// The same, and what tapline writes to stderr.
pub fn sandbox_and_errors(name: &str, options: &[&str]) -> Result<(Console, ChildStderr), Fault> {
    let mut command = sandbox_command(name, options);
    command.stderr(Stdio::piped());
    let mut console = Console::start(command)?;
    let errors = console.child.0.stderr.take().ok_or("no stderr")?;
    Ok((console, errors))
}

fn sandbox_command(name: &str, options: &[&str]) -> Command {
    let mut command = command(&[&["run", "--name", name], options, &["--"]].concat());
    command.arg(this_program()).arg("console");
    command
}

/// `tapline inspect NAME`.
pub fn inspect(name: &str) -> Result<serde_json::Value, Fault> {
    let out = command(&["inspect", name]).output().map_err(|e| e.to_string())?;
    holds(text(&out.stderr), out.status.success())?;
    serde_json::from_slice(&out.stdout).map_err(|e| format!("{e}: {}", text(&out.stdout)))
}

/// How many frames a sandbox's gateway dropped for this reason.
pub fn dropped(name: &str, reason: &str) -> Result<u64, Fault> {
    let document = inspect(name)?;
    let dropped = &document["counters"]["dropped"];
    holds(format!("there are counters of drops: {document}"), dropped.is_object())?;
    Ok(dropped[reason].as_u64().unwrap_or(0))
}

/// Send a signal.
pub fn signal(pid: u32, signal: Signal) -> Result<(), Fault> {
    kill(Pid::from_raw(pid as i32), signal).map_err(|e| format!("kill {pid}: {e}"))
}

/// The children of a process, with their command lines.
pub fn children(parent: u32) -> Vec<(u32, String)> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").expect("/proc is mounted").flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse::<u32>().ok()) else { continue };
        let Ok(stat) = std::fs::read_to_string(entry.path().join("stat")) else { continue };
        let field = |n| stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().nth(n));
        if field(1).and_then(|p| p.parse().ok()) == Some(parent) && field(0) != Some("Z") {
            let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
            found.push((pid, String::from_utf8_lossy(&line).replace('\0', " ")));
        }
    }
    found
}

/// The gateway of a supervisor: the process in which it has gone on, as the first of a PID namespace.
pub fn gateway_of(supervisor: u32) -> Result<u32, Fault> {
    let is_it = |pid: u32, line: &str| line.split(' ').nth(1) == Some("gateway") && is_first_of_a_namespace(pid);
    let found = children(supervisor).into_iter().find(|(pid, line)| is_it(*pid, line));
    found.map(|(pid, _)| pid).ok_or_else(|| format!("{supervisor} has no gateway: {:?}", children(supervisor)))
}

/// Has a process the number 1 in its PID namespace?
fn is_first_of_a_namespace(pid: u32) -> bool {
    let numbers = status_field(pid, "NSpid").unwrap_or_default();
    numbers.split_whitespace().last() == Some("1")
}

/// A field of a process's status (proc_pid_status(5)).
pub fn status_field(pid: u32, name: &str) -> Result<String, Fault> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).map_err(|e| format!("{pid}: {e}"))?;
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    line.map(|value| value.trim().to_owned()).ok_or_else(|| format!("no {name} in {status}"))
}

/// The agent of a supervisor.
pub fn agent_of(supervisor: u32) -> Result<u32, Fault> {
    let found = children(supervisor).into_iter().find(|(_, line)| line.split(' ').nth(1) != Some("gateway"));
    found.map(|(pid, _)| pid).ok_or_else(|| format!("{supervisor} has no agent"))
}

/// Has a process ended, whether or not its parent has noticed?
pub fn has_ended(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')').is_none_or(|(_, rest)| rest.trim_start().starts_with(['Z', 'X']))
}

/// The names of what runs, as `tapline ps` has them.
pub fn names_in_ps() -> Result<Vec<String>, Fault> {
    let out = command(&["ps", "--format", "json"]).output().map_err(|e| e.to_string())?;
    holds(text(&out.stderr), out.status.success())?;
    // A line for each.
    let name = |line: &str| {
        let sandbox: serde_json::Value = serde_json::from_str(line).map_err(|e| format!("{e}: {line}"))?;
        sandbox["name"].as_str().map(str::to_owned).ok_or_else(|| format!("no name: {line}"))
    };
    text(&out.stdout).lines().map(name).collect()
}

/// The ids of sandboxes that have files in our state directory, whether they live or not.
pub fn entries() -> Vec<PathBuf> {
    let below = |dir: PathBuf| std::fs::read_dir(dir).into_iter().flatten().flatten().map(|e| e.path());
    below(runtime_dir().join("tapline")).flat_map(|netns| below(netns.join("sandboxes"))).collect()
}

/// The state of a process, as a letter.
pub fn state_of(pid: u32) -> Option<char> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?.1.split_whitespace().next()?.chars().next()
}
