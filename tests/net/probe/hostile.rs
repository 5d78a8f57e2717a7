//! A sandbox among servers that mean harm.
use std::io::{ErrorKind, Read, Write};
use std::net::{TcpStream, UdpSocket};
use std::sync::Mutex;
use std::time::Duration;

use super::{PATIENCE, address, open, pattern};

/// What stays open until the program ends.
static KEPT: Mutex<(Vec<TcpStream>, Vec<UdpSocket>)> = Mutex::new((Vec::new(), Vec::new()));

/// Connect again and again to a server that has no good in mind: how each attempt ended.
pub fn storm(to: &str, count: usize) -> Result<String, String> {
    let to = address(to)?;
    let (mut reset, mut ended, mut other) = (0, 0, None);
    for _ in 0..count {
        let outcome = TcpStream::connect_timeout(&to, PATIENCE).and_then(|mut stream| {
            stream.set_read_timeout(Some(PATIENCE))?;
            // It may be gone before anything can be said.
            stream.write_all(b"some")?;
            stream.read(&mut [0; 16])
        });
        match outcome.map_err(|error| error.kind()) {
            Ok(_) => ended += 1,
            Err(ErrorKind::ConnectionReset | ErrorKind::BrokenPipe | ErrorKind::ConnectionRefused) => reset += 1,
            Err(error) => other = Some(error),
        }
    }
    match other {
        None => {
            Ok(format!("{} over, {}", reset + ended, if reset > ended { "most by a reset" } else { "most in order" }))
        }
        Some(error) => Err(format!("{reset} resets, {ended} ends, and {error}")),
    }
}

/// Open connections to a server that does not read, write to each until nothing more goes, and keep them.
pub fn write_and_keep(to: &str, count: usize) -> Result<String, String> {
    let bytes = pattern(64 * 1024);
    let mut kept = Vec::new();
    for _ in 0..count {
        let stream = open(to)?;
        stream.set_nonblocking(true).map_err(|e| e.to_string())?;
        kept.push(stream);
    }
    // Until none of them takes a byte for a while.
    let mut quiet = 0;
    while quiet < 10 {
        let mut moved = false;
        for stream in &mut kept {
            match stream.write(&bytes) {
                Ok(_) => moved = true,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return Err(error.to_string()),
            }
        }
        quiet = if moved { 0 } else { quiet + 1 };
        std::thread::sleep(Duration::from_millis(50));
    }
    KEPT.lock().map_err(|e| e.to_string())?.0.append(&mut kept);
    Ok(format!("{count} stalled"))
}

/// Open connections to a server that goes on sending, and read nothing.
pub fn open_and_keep(to: &str, count: usize) -> Result<String, String> {
    for _ in 0..count {
        let stream = open(to)?;
        KEPT.lock().map_err(|e| e.to_string())?.0.push(stream);
    }
    Ok(format!("{count} open"))
}

/// Ask once over UDP, and read nothing.
pub fn ask_and_keep(to: &str) -> Result<String, String> {
    let socket = UdpSocket::bind("0.0.0.0:0").map_err(|e| e.to_string())?;
    socket.send_to(b"tell me", address(to)?).map_err(|e| e.to_string())?;
    KEPT.lock().map_err(|e| e.to_string())?.1.push(socket);
    Ok("asked".into())
}
