//! The configuration file: words for a subcommand, or a sentence that names the file and the line.
#![no_main]
use libfuzzer_sys::fuzz_target;
use tapline::fuzzing;

fuzz_target!(|text: &str| {
    for verb in ["run", "attach"] {
        match fuzzing::config_file(text, verb) {
            // Nothing but options: a file says neither what is run nor where.
            Ok(words) => assert!(words.iter().all(|word| word.to_string_lossy().starts_with("--"))),
            Err(said) => assert!(said.starts_with("config.toml:"), "{said}"),
        }
    }
});
