//! Standard output: an error of writing is an error, so that the caller can tell a closed pipe from a full disk.
use std::io::{self, Write};

/// Writes all of it, now.
pub fn print(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}
