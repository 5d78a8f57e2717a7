//! The command lines of slirp4netns and pasta, a word on each line: what they mean is a network that can be, and its
//! gateway speaks to whoever is there.
#![no_main]
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;

use libfuzzer_sys::fuzz_target;
use tapline::fuzzing;
use tapline::plan::{Endpoint, Interface, Network};
use tapline_fuzz::World;

fuzz_target!(|bytes: &[u8]| {
    let Some((tool, rest)) = bytes.split_first() else { return };
    let words = rest.split(|byte| *byte == b'\n').take(24);
    let words: Vec<OsString> = words.map(|word| OsString::from_vec(word.to_vec())).collect();
    let meant = match tool & 1 {
        0 => fuzzing::slirp4netns(words),
        _ => fuzzing::pasta(words).map(Some),
    };
    match meant {
        Ok(Some((network, interface))) => serve(network, &interface),
        Ok(None) => {}
        Err(said) => assert!(!said.is_empty()),
    }
});

fn serve(network: Network, interface: &Interface) {
    let endpoint = Endpoint {
        id: "0123456789ab".into(),
        ifname: interface.name.clone(),
        mac: interface.mac,
        v4: network.v4.map(|layout| layout.sandbox),
        v6: network.v6.map(|layout| layout.sandbox),
        ..Endpoint::default()
    };
    assert!((1..=15).contains(&interface.name.len()));
    fuzzing::check_network(&network, &endpoint).expect("a network that can be");
    let mut world = World::of(network, endpoint);
    world.greet();
    world.finish();
}
