//! What one tapline writes and another reads: a sandbox's state, and what is asked of its supervisor.
#![no_main]
use std::fmt::Debug;

use libfuzzer_sys::fuzz_target;
use serde::{Serialize, de::DeserializeOwned};
use tapline::control::requests::{Reply, Request};
use tapline::control::state::SandboxState;

/// What is read means the same when it is written and read again.
fn again<T: Serialize + DeserializeOwned + PartialEq + Debug>(bytes: &[u8]) {
    let Ok(read) = serde_json::from_slice::<T>(bytes) else { return };
    let text = serde_json::to_vec_pretty(&read).expect("what was read can be written");
    assert_eq!(serde_json::from_slice::<T>(&text).expect("and read again"), read);
}

fuzz_target!(|bytes: &[u8]| {
    again::<SandboxState>(bytes);
    again::<Request>(bytes);
    again::<Reply>(bytes);
});
