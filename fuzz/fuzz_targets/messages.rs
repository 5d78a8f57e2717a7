//! Messages of the attach protocol, both ways.
#![no_main]
use libfuzzer_sys::fuzz_target;
use tapline::control::messages::{FromGateway, ToGateway};

fuzz_target!(|bytes: &[u8]| {
    if let Ok(message) = serde_json::from_slice::<ToGateway>(bytes) {
        let text = serde_json::to_string(&message).expect("what was read can be written");
        let again: ToGateway = serde_json::from_str(&text).expect("and read again");
        assert_eq!(format!("{message:?}"), format!("{again:?}"));
    }
    if let Ok(message) = serde_json::from_slice::<FromGateway>(bytes) {
        let text = serde_json::to_string(&message).expect("what was read can be written");
        let again: FromGateway = serde_json::from_str(&text).expect("and read again");
        assert_eq!(format!("{message:?}"), format!("{again:?}"));
    }
});
