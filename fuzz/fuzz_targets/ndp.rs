//! Neighbor discovery: the first byte says who writes to whom, the rest is the ICMPv6 message.
#![no_main]
use std::net::{IpAddr, Ipv6Addr};

use libfuzzer_sys::fuzz_target;
use tapline_fuzz::{GATEWAY_V6, SANDBOX_MAC, SANDBOX_V6, World};

fuzz_target!(|bytes: &[u8]| {
    let Some((&choice, message)) = bytes.split_first() else { return };
    let mut world = World::new(1500);
    let group = |last| IpAddr::V6(Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, last));
    let solicited = IpAddr::V6(Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00, 2));
    let src = [SANDBOX_V6, SANDBOX_MAC.link_local(), Ipv6Addr::UNSPECIFIED][usize::from(choice & 15) % 3];
    let dst = [group(1), group(2), solicited, GATEWAY_V6.into()][usize::from(choice >> 4) % 4];
    world.packet(src.into(), dst, 58, 255, message);
    // A large echo request to all nodes is answered in fragments.
    assert!(world.link.sent.len() <= 1 + message.len() / 1024);
    world.pass(std::time::Duration::from_secs(600));
    world.finish();
});
