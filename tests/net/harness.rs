//! Starting tapline, and servers for its sandboxes to talk to.
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

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
        let dir = std::env::temp_dir().join(format!("tapline-test-{}", std::process::id()));
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

/// `tapline` with these arguments, its own runtime and configuration directories, and no input.
pub fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(tapline());
    command
        .args(arguments)
        .env("XDG_RUNTIME_DIR", runtime_dir())
        .env("XDG_CONFIG_HOME", runtime_dir().join("config"))
        .stdin(Stdio::null());
    command
}

/// `tapline run OPTIONS -- PROBE`, where PROBE is a command line of [`crate::probe`].
pub fn run_probe(options: &[&str], probe: &[&str]) -> Output {
    probe_command(options, probe).output().expect("tapline starts")
}

/// The same, not yet started.
pub fn probe_command(options: &[&str], probe: &[&str]) -> Command {
    let mut command = command(&["run"]);
    command.args(options).arg("--").arg(this_program()).arg("probe").args(probe);
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
pub fn tcp_server(at: &str, serve: fn(TcpStream)) -> SocketAddr {
    let listener = TcpListener::bind(at).expect("a loopback port is free");
    let address = listener.local_addr().expect("it is bound");
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || serve(stream));
        }
    });
    address
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
