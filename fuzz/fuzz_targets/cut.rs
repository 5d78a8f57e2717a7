//! Frames for a port without virtio-net headers: whatever the header says of them, what is made of them is bounded and
//! loses no byte; and what a second parser reads before it reads afterwards, in pieces that are finished.
#![no_main]
use arbitrary::Arbitrary;
use etherparse::{NetSlice, SlicedPacket, TransportSlice};
use libfuzzer_sys::fuzz_target;
use tapline::datapath::cut::{Cut, MAX_HEADERS};
use tapline::fuzzing;
use tapline::gateway::link::{Gso, Offload};
use tapline::sys::vnet::VnetHeader;
use tapline_fuzz::{frame, pattern, place, sandbox};

#[derive(Arbitrary, Debug)]
enum Input<'a> {
    Any {
        header: [u8; 10],
        frame: &'a [u8],
    },
    /// A super-segment that says the truth.
    True {
        to: u8,
        udp: bool,
        options: u8,
        flags: u8,
        length: u16,
        size: u16,
        sequence: u32,
    },
}

fuzz_target!(|input: Input<'_>| {
    match input {
        Input::Any { header, frame } => {
            let Some(offload) = fuzzing::offload(&VnetHeader::decode(&header), frame.len()) else { return };
            let Some(cut) = Cut::new(frame, &offload) else { return };
            let mut carried = 0;
            for number in 0..cut.pieces() {
                let mut headers = [0; MAX_HEADERS];
                let (length, rest) = cut.piece(number, &mut headers);
                assert!(length <= MAX_HEADERS && length + rest.len() <= frame.len());
                assert!(!rest.is_empty() || cut.pieces() == 1);
                carried += rest.len();
            }
            assert!(carried <= frame.len());
        }
        Input::True { to, udp, options, flags, length, size, sequence } => {
            let dst = place(to);
            let size = size.clamp(1, 9000);
            let mut upper = vec![0x9c, 0x40, 0, 80];
            if udp {
                upper.extend_from_slice(&[0; 4]);
            } else {
                let options = usize::from(options % 11);
                upper.extend_from_slice(&sequence.to_be_bytes());
                upper.extend_from_slice(&[0, 0, 0, 9, (5 + options as u8) << 4, flags | 16, 1, 0, 0, 0, 0, 0]);
                upper.extend(vec![1; options * 4]);
            }
            let header = upper.len();
            let length = 1 + usize::from(length % 3000);
            upper.extend((0..length as u32).map(pattern));
            if udp {
                upper[4..6].copy_from_slice(&((8 + length) as u16).to_be_bytes());
            }
            let whole = frame::ip(sandbox(dst), dst, if udp { 17 } else { 6 }, 64, &upper);
            let start = (whole.len() - upper.len()) as u16;
            let gso = match (udp, dst.is_ipv4()) {
                (true, _) => Gso::UdpL4,
                (false, true) => Gso::TcpV4,
                (false, false) => Gso::TcpV6,
            };
            let csum_offset = if udp { 6 } else { 16 };
            let hdr_len = start + header as u16;
            let offload = Offload {
                needs_csum: true,
                csum_start: start,
                csum_offset,
                gso,
                gso_size: size,
                hdr_len,
                ..Offload::default()
            };
            check(&whole, &offload, length, usize::from(size), (sequence, flags));
        }
    }
});

fn check(whole: &[u8], offload: &Offload, length: usize, size: usize, tcp: (u32, u8)) {
    let cut = Cut::new(whole, offload).expect("it says the truth");
    assert_eq!(cut.pieces(), length.div_ceil(size));
    let mut at = 0;
    for number in 0..cut.pieces() {
        let mut headers = [0; MAX_HEADERS];
        let (head, rest) = cut.piece(number, &mut headers);
        let bytes = [&headers[..head], rest].concat();
        let packet = SlicedPacket::from_ethernet(&bytes).expect("the other parser takes it");
        let (pseudo, total): (Vec<u8>, usize) = match packet.net.as_ref().expect("IP") {
            NetSlice::Ipv4(ip) => {
                let header = ip.header();
                assert_eq!(header.header_checksum(), header.to_header().calc_header_checksum());
                let both = [header.source(), header.destination()].concat();
                (both, header.total_len().into())
            }
            NetSlice::Ipv6(ip) => {
                let header = ip.header();
                ([header.source(), header.destination()].concat(), 40 + usize::from(header.payload_length()))
            }
            other => panic!("{other:?}"),
        };
        assert_eq!(total, bytes.len() - frame::ETHERNET);
        let payload = match packet.transport.as_ref().expect("TCP or UDP") {
            TransportSlice::Udp(udp) => {
                assert_eq!(usize::from(udp.length()), 8 + udp.payload().len());
                assert_ne!(udp.checksum(), 0);
                udp.payload()
            }
            TransportSlice::Tcp(segment) => {
                let (sequence, flags) = tcp;
                let last = number + 1 == cut.pieces();
                assert_eq!(segment.sequence_number(), sequence.wrapping_add(at as u32));
                assert_eq!(segment.fin(), flags & 1 != 0 && last);
                assert_eq!(segment.psh(), flags & 8 != 0 && last);
                assert_eq!(segment.cwr(), flags & 0x80 != 0 && number == 0);
                segment.payload()
            }
            other => panic!("{other:?}"),
        };
        for (n, byte) in payload.iter().enumerate() {
            assert_eq!(*byte, pattern((at + n) as u32), "a byte in the wrong place");
        }
        at += payload.len();
        // The pseudo-header's sum and all behind it (RFC 9293, 3.1) come to nothing.
        let upper = &bytes[usize::from(offload.csum_start)..];
        let protocol = if offload.gso == Gso::UdpL4 { 17u64 } else { 6 };
        let words = |bytes: &[u8]| -> u64 {
            bytes.chunks(2).map(|w| u64::from(w[0]) << 8 | u64::from(*w.get(1).unwrap_or(&0))).sum()
        };
        let mut sum = words(&pseudo) + protocol + upper.len() as u64 + words(upper);
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        assert_eq!(sum, 0xffff, "a wrong checksum");
    }
    assert_eq!(at, length);
}
