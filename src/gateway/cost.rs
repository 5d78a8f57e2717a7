//! What a frame costs the gateway beyond being carried, in units of about a third of a microsecond as measured on one
//! machine: so that many cheap frames that are dear to us are seen for what they are. Whoever takes frames from several
//! sandboxes counts them ([`Gateway::handle_frame`](super::Gateway::handle_frame)); what is merely carried costs nothing here.

/// It went no further, or only an error, a reset or an address came of it.
pub const IN_VAIN: u32 = 4;
/// A fragment that has to be kept.
pub const FRAGMENT: u32 = 4;
/// A question to the DNS address.
pub const QUESTION: u32 = 16;
/// A new flow of datagrams or pings: a socket of the host.
pub const SOCKET: u32 = 32;
/// A new connection: a socket, a handshake, and an end.
pub const CONNECTION: u32 = 64;

#[cfg(test)]
mod tests {
    use super::super::link::Offload;
    use super::super::testing::{Test, echo_frame, syn_frame, udp_frame};
    use super::*;

    #[test]
    fn what_is_dear_is_told_and_what_is_carried_costs_nothing_more() {
        let mut test = Test::new();
        let own = "10.0.2.100:4000";
        let mut cost = |frame: &[u8]| {
            test.gateway.handle_frame(
                test.now,
                crate::gateway::emit::testing::PEER.port,
                Offload::default(),
                frame,
                &mut test.host,
                &mut test.link,
            )
        };
        let datagram = udp_frame(own, "192.0.2.1:7", 8, b"x");
        assert_eq!((cost(&datagram), cost(&datagram)), (SOCKET, 0));
        let ping = echo_frame("10.0.2.100", "192.0.2.1", 64, 7, 1, b"ping");
        assert_eq!((cost(&ping), cost(&ping)), (SOCKET, 0));
        let syn = syn_frame(own, "192.0.2.1:80", 64);
        assert_eq!((cost(&syn), cost(&syn)), (CONNECTION, 0));
        assert_eq!(cost(&udp_frame(own, "10.0.2.3:53", 64, b"a question")), QUESTION);
        assert_eq!(cost(&udp_frame("10.9.9.9:1", "192.0.2.1:7", 8, b"x")), IN_VAIN, "spoofed");
        assert_eq!(cost(&udp_frame(own, "127.0.0.1:7", 8, b"x")), IN_VAIN, "refused");
        assert_eq!(cost(&datagram[..20]), IN_VAIN);
        let mut arp = datagram.clone();
        arp[12..14].copy_from_slice(&[8, 6]);
        assert_eq!(cost(&arp), 2 * IN_VAIN);
        let mut part = datagram;
        part[20] = 0x20;
        part[24..26].fill(0);
        let sum = etherparse::Ipv4HeaderSlice::from_slice(&part[14..]).unwrap().to_header().calc_header_checksum();
        part[24..26].copy_from_slice(&sum.to_be_bytes());
        assert!(cost(&part) >= FRAGMENT);
    }
}
