//! A sandbox's packet written again from what is left of it, to be quoted in an ICMP error: a host's error queue
//! gives back the payload, in whose place on the wire there were the host's addresses and ports.
use std::net::IpAddr;

use smoltcp::wire::IpProtocol;

use super::emit;

/// The most that an ICMP error quotes (RFC 4443, 2.4 c).
const LARGEST: usize = 1280;

/// The beginning of a packet.
pub(super) struct Quote {
    bytes: [u8; LARGEST],
    len: usize,
}

impl Quote {
    /// A packet from `src` to `dst` with the eight bytes of its UDP or ICMP echo header (the checksum at
    /// `checksum_at` in them is computed here) and its payload. Addresses of different families give nothing.
    pub fn new(
        src: IpAddr,
        dst: IpAddr,
        protocol: IpProtocol,
        mut header: [u8; 8],
        checksum_at: usize,
        payload: &[u8],
    ) -> Option<Quote> {
        let upper_len = header.len() + payload.len();
        let pseudo = match protocol {
            IpProtocol::Icmp => 0,
            _ => emit::pseudo_header_sum(src, dst, protocol, upper_len as u32),
        };
        let sum = pseudo + u64::from(emit::sum_of(&header)) + u64::from(emit::sum_of(payload));
        let sum = match !emit::fold(sum) {
            0 => 0xffff,
            sum => sum,
        };
        header[checksum_at..checksum_at + 2].copy_from_slice(&sum.to_be_bytes());
        let mut bytes = [0; LARGEST];
        let at = match (src, dst) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => {
                let total = u16::try_from(20 + upper_len).unwrap_or(u16::MAX);
                bytes[0] = 0x45;
                bytes[2..4].copy_from_slice(&total.to_be_bytes());
                bytes[8] = 1;
                bytes[9] = protocol.into();
                bytes[12..16].copy_from_slice(&src.octets());
                bytes[16..20].copy_from_slice(&dst.octets());
                let sum = !emit::fold(u64::from(emit::sum_of(&bytes[..20])));
                bytes[10..12].copy_from_slice(&sum.to_be_bytes());
                20
            }
            (IpAddr::V6(src), IpAddr::V6(dst)) => {
                let total = u16::try_from(upper_len).unwrap_or(u16::MAX);
                bytes[0] = 0x60;
                bytes[4..6].copy_from_slice(&total.to_be_bytes());
                bytes[6] = protocol.into();
                bytes[7] = 1;
                bytes[8..24].copy_from_slice(&src.octets());
                bytes[24..40].copy_from_slice(&dst.octets());
                40
            }
            _ => return None,
        };
        bytes[at..at + 8].copy_from_slice(&header);
        let quoted = payload.len().min(LARGEST - at - 8);
        bytes[at + 8..at + 8 + quoted].copy_from_slice(&payload[..quoted]);
        Some(Quote { bytes, len: at + 8 + quoted })
    }

    /// From the first byte of the IP header on.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_parser_reads_what_was_quoted() {
        let header = [0x30, 0x39, 0, 53, 0, 8 + 3, 0, 0];
        for (src, dst) in [("10.0.2.100", "192.0.2.1"), ("fd00::100", "2001:db8::1")] {
            let quote = Quote::new(src.parse().unwrap(), dst.parse().unwrap(), IpProtocol::Udp, header, 6, b"abc");
            let quote = quote.unwrap();
            let packet = etherparse::SlicedPacket::from_ip(quote.bytes()).unwrap();
            let Some(etherparse::TransportSlice::Udp(udp)) = packet.transport else { panic!("{packet:?}") };
            assert_eq!((udp.source_port(), udp.destination_port(), udp.payload()), (12345, 53, &b"abc"[..]));
            let net = packet.net.unwrap();
            let expected = match &net {
                etherparse::NetSlice::Ipv4(ip) => {
                    assert_eq!(ip.header().to_header().calc_header_checksum(), ip.header().header_checksum());
                    udp.to_header().calc_checksum_ipv4(&ip.header().to_header(), b"abc").unwrap()
                }
                etherparse::NetSlice::Ipv6(ip) => {
                    udp.to_header().calc_checksum_ipv6(&ip.header().to_header(), b"abc").unwrap()
                }
                _ => panic!("{net:?}"),
            };
            assert_eq!(udp.checksum(), expected);
        }
    }

    #[test]
    fn what_is_larger_than_an_error_may_be_is_cut_but_its_length_stays_true() {
        let (src, dst) = ("10.0.2.100".parse().unwrap(), "192.0.2.1".parse().unwrap());
        let quote = Quote::new(src, dst, IpProtocol::Udp, [0; 8], 6, &[1; 5000]).unwrap();
        assert_eq!(quote.bytes().len(), LARGEST);
        assert_eq!(u16::from_be_bytes([quote.bytes()[2], quote.bytes()[3]]), 5028);
    }
}
