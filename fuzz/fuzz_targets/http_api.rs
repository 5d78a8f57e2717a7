//! What a client writes to the API's socket: the connection ends, and what comes back is HTTP.
#![no_main]
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let answered = tapline::fuzzing::http_api(bytes);
    assert!(answered.is_empty() || answered.starts_with(b"HTTP/1."), "{}", String::from_utf8_lossy(&answered));
});
