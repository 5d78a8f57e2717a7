//! DHCPv6 messages, each with its length before it; the length's top bit says that it goes to the gateway alone.
#![no_main]
use std::net::IpAddr;

use libfuzzer_sys::fuzz_target;
use tapline::gateway::dhcpv6::{ALL_SERVERS, SERVER_PORT};
use tapline_fuzz::{GATEWAY_V6, SANDBOX_MAC, World, network};

/// An answer fits the least MTU of IPv6.
const LARGEST: usize = 14 + 1280;

fuzz_target!(|bytes: &[u8]| {
    let mut network = network(1500);
    network.behaviour.services.dhcpv6 = true;
    network.behaviour.announcements.fqdn = Some("fuzz.example.org".into());
    let mut world = World::with(network);
    let mut rest = bytes;
    while let Some((&[high, low], after)) = rest.split_first_chunk() {
        let length = usize::from(u16::from_be_bytes([high & 0x7f, low])).min(after.len());
        let (message, next) = after.split_at(length);
        rest = next;
        let mut udp = 546u16.to_be_bytes().to_vec();
        udp.extend_from_slice(&SERVER_PORT.to_be_bytes());
        udp.extend_from_slice(&(8 + message.len() as u16).to_be_bytes());
        udp.extend_from_slice(&[0, 0]);
        udp.extend_from_slice(message);
        let dst = if high & 0x80 == 0 { ALL_SERVERS } else { GATEWAY_V6 };
        let before = world.link.sent.len();
        world.packet(IpAddr::V6(SANDBOX_MAC.link_local()), dst.into(), 17, 64, &udp);
        let answers = &world.link.sent[before..];
        assert!(answers.len() <= 1 && answers.iter().all(|(_, frame)| frame.len() <= LARGEST));
    }
    world.finish();
});
