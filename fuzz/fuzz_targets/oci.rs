//! A container's state on a hook's standard input, with annotations that a stranger may have written.
#![no_main]
use libfuzzer_sys::fuzz_target;
use tapline::compat::oci::State;
use tapline::fuzzing;

/// Options that name a file or a descriptor, or that begin something else than a network: not for an image to choose.
const NOT_THEIRS: [&str; 8] =
    ["--pcap", "--netns", "--userns", "--ready-fd", "--exit-fd", "--pid-file", "--detach", "--dry-run"];

fuzz_target!(|bytes: &[u8]| {
    let state = match State::parse(bytes) {
        Ok(state) => state,
        Err(error) => {
            assert!(!error.to_string().is_empty());
            return;
        }
    };
    assert!(!state.id.is_empty() && state.id.len() <= 255 && !state.id.contains(['/', '\0']));
    let id = state.sandbox_id();
    assert!(id.len() == 12 && id.bytes().all(|b| b.is_ascii_hexdigit()));
    assert!(state.process().is_ok_and(|pid| pid > 0) || state.process().is_err());
    match fuzzing::annotations(&state) {
        Ok(words) => {
            for word in words.iter().flatten() {
                let word = word.to_string_lossy();
                let name = word.split('=').next().unwrap_or_default();
                assert!(name.starts_with("--") && name.len() > 2 && !NOT_THEIRS.contains(&name), "{word}");
            }
        }
        // It is shown on somebody's terminal.
        Err(said) => assert!(said.chars().count() <= 500 && !said.chars().any(char::is_control), "{said:?}"),
    }
});
