//! A network's definition, written by hand: read, or refused with its line; what is read can be written, and a gateway
//! takes it.
#![no_main]
use std::path::Path;

use libfuzzer_sys::fuzz_target;
use tapline::control::networks::file;
use tapline::plan::Endpoint;

fuzz_target!(|text: &str| {
    let read = |text: &str| file::read(Path::new("db.toml"), "db", text, 7);
    match read(text) {
        Ok(definition) => {
            let written = file::write(&definition);
            assert_eq!(read(&written).as_ref(), Ok(&definition), "{written}");
            let network = definition.network();
            tapline::fuzzing::check_network(&network, &Endpoint::default()).expect("a network that can be");
            for subnet in definition.subnets() {
                assert_eq!(subnet, subnet.trunc());
            }
        }
        Err(error) => {
            assert!((1..=text.lines().count().max(1) + 1).contains(&error.line), "line {}", error.line);
            let said = error.to_string();
            assert!(said.starts_with("db.toml:") && said.len() < 2 * text.len() + 2000);
        }
    }
});
