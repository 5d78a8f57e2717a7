//! DHCP messages, each with its length before it; the length's top bit says that its sender has an address.
#![no_main]
use std::net::Ipv4Addr;

use libfuzzer_sys::fuzz_target;
use tapline_fuzz::{GATEWAY_V4, SANDBOX_V4, World};

fuzz_target!(|bytes: &[u8]| {
    let mut world = World::new(1500);
    let mut rest = bytes;
    while let Some((&[high, low], after)) = rest.split_first_chunk() {
        let length = usize::from(u16::from_be_bytes([high & 0x7f, low])).min(after.len());
        let (message, next) = after.split_at(length);
        rest = next;
        let mut udp = vec![0, 68, 0, 67];
        udp.extend_from_slice(&(8 + message.len() as u16).to_be_bytes());
        udp.extend_from_slice(&[0, 0]);
        udp.extend_from_slice(message);
        let (src, dst) = match high & 0x80 {
            0 => (Ipv4Addr::UNSPECIFIED, Ipv4Addr::BROADCAST),
            _ => (SANDBOX_V4, GATEWAY_V4),
        };
        let before = world.link.sent.len();
        world.packet(src.into(), dst.into(), 17, 64, &udp);
        assert!(world.link.sent.len() <= before + 1);
    }
    world.finish();
});
