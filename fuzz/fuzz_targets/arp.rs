//! ARP packets, one behind another.
#![no_main]
use libfuzzer_sys::fuzz_target;
use tapline_fuzz::{World, frame};

fuzz_target!(|bytes: &[u8]| {
    let mut world = World::new(1500);
    for packet in bytes.chunks(32) {
        world.frame(Default::default(), &frame::ethernet(frame::ARP, packet));
    }
    assert!(world.link.sent.len() <= bytes.len().div_ceil(32), "more answers than questions");
    world.finish();
});
