//! What a TCP client may do besides an echo.
use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};

use super::{open, pattern};

/// Read to the end, and only then write.
pub fn half_close(to: &str, bytes: usize) -> Result<String, String> {
    let mut stream = open(to)?;
    let mut back = Vec::new();
    stream.read_to_end(&mut back).map_err(|e| e.to_string())?;
    stream.write_all(&pattern(bytes)).map_err(|e| e.to_string())?;
    stream.shutdown(Shutdown::Write).map_err(|e| e.to_string())?;
    Ok(format!("{} bytes read before {bytes} were written", back.len()))
}

/// Write, wait for a byte, and end with a reset.
pub fn reset(to: &str) -> Result<String, String> {
    let mut stream = open(to)?;
    stream.write_all(b"some").map_err(|e| e.to_string())?;
    stream.read_exact(&mut [0]).map_err(|e| e.to_string())?;
    SockRef::from(&stream).set_linger(Some(Duration::ZERO)).map_err(|e| e.to_string())?;
    Ok("reset".into())
}

/// An urgent byte in the middle.
pub fn urgent_out(to: &str) -> Result<String, String> {
    let mut stream = open(to)?;
    stream.write_all(b"ab").map_err(|e| e.to_string())?;
    SockRef::from(&stream).send_out_of_band(b"!").map_err(|e| e.to_string())?;
    stream.write_all(b"cd").map_err(|e| e.to_string())?;
    stream.shutdown(Shutdown::Write).map_err(|e| e.to_string())?;
    read_text(stream)
}

/// The same the other way; the urgent byte stays among the others.
pub fn urgent_in(to: &str) -> Result<String, String> {
    let mut stream = open(to)?;
    SockRef::from(&stream).set_out_of_band_inline(true).map_err(|e| e.to_string())?;
    stream.write_all(b"go").map_err(|e| e.to_string())?;
    read_text(stream)
}

fn read_text(mut stream: impl Read) -> Result<String, String> {
    let mut text = String::new();
    stream.read_to_string(&mut text).map_err(|e| e.to_string())?;
    Ok(text)
}

/// Do not read before a byte comes from the second server, which tells that the first cannot write any more.
pub fn stalled_in(to: &str, second: &str) -> Result<String, String> {
    let mut stream = open(to)?;
    let mut other = open(second)?;
    other.set_read_timeout(Some(Duration::from_secs(60))).map_err(|e| e.to_string())?;
    other.read_exact(&mut [0]).map_err(|e| e.to_string())?;
    let mut back = Vec::new();
    stream.read_to_end(&mut back).map_err(|e| format!("after {} bytes: {e}", back.len()))?;
    let right = back == pattern(back.len());
    Ok(format!("{} bytes, {}", back.len(), if right { "as they were" } else { "others" }))
}

/// Write until nothing more goes, then connect to the second server, upon which the first reads.
pub fn stalled_out(to: &str, second: &str, bytes: usize) -> Result<String, String> {
    let mut stream = open(to)?;
    stream.set_write_timeout(Some(Duration::from_secs(1))).map_err(|e| e.to_string())?;
    let out = pattern(bytes);
    let mut sent = 0;
    let mut other = None;
    while sent < out.len() {
        match stream.write(&out[sent..]) {
            Ok(n) => sent += n,
            Err(error) if error.kind() == ErrorKind::WouldBlock && other.is_none() => other = Some(open(second)?),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => return Err(format!("after {sent} bytes: {error}")),
        }
    }
    stream.shutdown(Shutdown::Write).map_err(|e| e.to_string())?;
    stream.set_read_timeout(Some(Duration::from_secs(60))).map_err(|e| e.to_string())?;
    stream.read_exact(&mut [0]).map_err(|e| format!("nobody says that all came: {e}"))?;
    Ok(if other.is_some() { "stalled, then all went".into() } else { "never stalled".into() })
}

/// Ask for keepalive probes every second, until the second server says that it is enough.
pub fn keepalive(to: &str, second: &str) -> Result<String, String> {
    let stream = open(to)?;
    let often = TcpKeepalive::new().with_time(Duration::from_secs(1)).with_interval(Duration::from_secs(1));
    SockRef::from(&stream).set_tcp_keepalive(&often).map_err(|e| e.to_string())?;
    let mut other = open(second)?;
    other.set_read_timeout(Some(Duration::from_secs(60))).map_err(|e| e.to_string())?;
    other.read_exact(&mut [0]).map_err(|e| e.to_string())?;
    Ok("kept".into())
}
