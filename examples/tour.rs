//! A tour that needs no other program and no internet: `cargo run --release --example tour`.
//!
//! It serves a page on this machine's loopback, where only this machine can reach it, and looks at the network from
//! inside three sandboxes. The program is all parts at once: the tour, the one who looks (`look`), and tapline itself,
//! whose command line it hands on to.
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::process::{Command, ExitCode};

/// What to try, what the reader is told of it, and the options.
const STOPS: [(&str, &[&str]); 3] = [
    ("A network of its own; the loopback of this machine is closed:", &["--net", "private"]),
    ("The same, with this machine's loopback let in:", &["--net", "private", "--host-loopback"]),
    ("No network at all:", &["--net", "none"]),
];

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    match words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => match tour() {
            Ok(true) => ExitCode::SUCCESS,
            Ok(false) => ExitCode::FAILURE,
            Err(error) => {
                eprintln!("tour: {error}");
                ExitCode::FAILURE
            }
        },
        ["look", port] => {
            look(port);
            ExitCode::SUCCESS
        }
        _ => tapline::cli::main(std::env::args_os().collect()),
    }
}

fn tour() -> io::Result<bool> {
    let server = TcpListener::bind("127.0.0.1:0")?;
    let port = server.local_addr()?.port().to_string();
    std::thread::spawn(move || {
        for mut stream in server.incoming().flatten() {
            // A reader that goes away is its own business.
            let _ = stream.write_all(b"hello from the host");
        }
    });
    println!("This machine serves a page at 127.0.0.1:{port}, to itself only.");
    let program = std::env::current_exe()?;
    let mut fine = true;
    for (title, options) in STOPS {
        let typed: String = options.iter().map(|option| format!("{option} ")).collect();
        println!("\n{title}\n  $ tapline run {typed}-- look");
        let look =
            Command::new(&program).arg("run").args(options).arg("--").arg(&program).args(["look", &port]).status();
        fine &= look?.success();
    }
    Ok(fine)
}

/// What a command inside sees.
fn look(port: &str) {
    let read = |path| std::fs::read_to_string(path).unwrap_or_default();
    let devices = read("/proc/net/dev");
    let interfaces: Vec<&str> = devices.lines().filter_map(|line| Some(line.split_once(':')?.0.trim())).collect();
    println!("    interfaces  {}", interfaces.join(", "));
    for (family, any, gateway) in [("IPv4", "0.0.0.0:0", "10.0.2.2:9"), ("IPv6", "[::]:0", "[fd00::2]:9")] {
        // A connected UDP socket sends nothing, but knows its own address.
        let own = UdpSocket::bind(any).and_then(|socket| socket.connect(gateway).and_then(|()| socket.local_addr()));
        println!("    {family}        {}", own.map_or_else(|error| error.to_string(), |own| own.ip().to_string()));
    }
    let resolv_conf = read("/etc/resolv.conf");
    let servers: Vec<&str> = resolv_conf.lines().filter_map(|line| line.strip_prefix("nameserver ")).collect();
    println!("    DNS         {}", if servers.is_empty() { "none".to_owned() } else { servers.join(", ") });
    let page = || -> io::Result<String> {
        let mut text = String::new();
        TcpStream::connect(format!("host.tapline.internal:{port}"))?.read_to_string(&mut text)?;
        Ok(text)
    };
    println!("    the page    {}", page().unwrap_or_else(|error| error.to_string()));
}
