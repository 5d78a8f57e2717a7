//! Frames as the gateway reads them, and as etherparse does. Behind the first byte, which says whether their sender vouches for
//! the upper checksum.
#![no_main]
#[path = "../../tests/differential/opinions.rs"]
mod opinions;

use libfuzzer_sys::fuzz_target;
use opinions::Bench;

/// In a build for fuzzing smoltcp takes any (`cfg(fuzzing)`).
const SMOLTCP_LOOKS_AT_CHECKSUMS: bool = false;

fuzz_target!(|bytes: &[u8]| {
    let Some((how, rest)) = bytes.split_first() else { return };
    Bench::default().compare(rest, how & 1 != 0);
});
