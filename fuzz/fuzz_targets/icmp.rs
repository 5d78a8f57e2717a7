//! ICMP of both families: messages, and errors that the gateway makes about any packet at all.
#![no_main]
use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use tapline_fuzz::{World, host_error, icmp_error, place, router, sandbox};

#[derive(Arbitrary, Debug)]
struct Message<'a> {
    to: u8,
    hop_limit: u8,
    fail: Option<u8>,
    /// What comes back from the host for it.
    answer: Answer,
    bytes: &'a [u8],
}

#[derive(Arbitrary, Debug)]
enum Answer {
    None,
    Reply { hop_limit: u8, length: u16 },
    Error { kind: u8, mtu: u32, offender: Option<u8>, length: u16 },
}

fuzz_target!(|messages: Vec<Message<'_>>| {
    let mut world = World::new(1280);
    for message in messages {
        let dst = place(message.to);
        let protocol = if dst.is_ipv4() { 1 } else { 58 };
        world.host.fail = message.fail.map(host_error);
        let before = world.host.echo.len();
        world.packet(sandbox(dst), dst, protocol, message.hop_limit, message.bytes);
        let Some(&(flow, sequence)) = world.host.echo.get(before) else { continue };
        let data = vec![7; 65_507];
        match message.answer {
            Answer::None => {}
            Answer::Reply { hop_limit, length } => {
                let data = &data[..usize::from(length).min(data.len())];
                world.gateway.handle_echo_reply(world.now, flow, sequence, data, hop_limit, &mut world.link);
            }
            Answer::Error { kind, mtu, offender, length } => {
                let data = &data[..usize::from(length).min(data.len())];
                let (error, offender) = (icmp_error(kind, mtu), offender.map(router));
                world.gateway.handle_echo_error(world.now, flow, sequence, error, offender, data, &mut world.link);
            }
        }
    }
    world.finish();
});
