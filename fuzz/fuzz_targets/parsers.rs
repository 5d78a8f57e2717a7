//! Our parsers of IP packets against etherparse's: where both take a packet they must agree on what it says.
#![no_main]
use std::net::IpAddr;

use etherparse::{IpNumber, Ipv4Slice, Ipv6Slice};
use libfuzzer_sys::fuzz_target;
use tapline::gateway::link::{Offload, Peer};
use tapline::gateway::packet::{self, Parsed};
use tapline_fuzz::{PORT, SANDBOX_MAC, frame};

fuzz_target!(|bytes: &[u8]| {
    let peer = Peer { port: PORT, mac: SANDBOX_MAC };
    let mut bytes = bytes.to_vec();
    match bytes.first().map(|b| b >> 4) {
        Some(4) => {
            frame::mend_ipv4(&mut bytes);
            v4(peer, &bytes);
        }
        Some(6) => v6(peer, &bytes),
        _ => {
            assert!(packet::parse_ipv4(peer, Offload::default(), &bytes).is_err());
            assert!(packet::parse_ipv6(peer, Offload::default(), &bytes).is_err());
        }
    }
});

fn v4(peer: Peer, bytes: &[u8]) {
    assert!(packet::parse_ipv6(peer, Offload::default(), bytes).is_err());
    let theirs = Ipv4Slice::from_slice(bytes);
    let ours = packet::parse_ipv4(peer, Offload::default(), bytes);
    let Ok(ours) = ours else {
        assert!(theirs.is_err(), "{ours:?} but {theirs:?}");
        return;
    };
    // They look into authentication headers, we refuse those later.
    let Ok(theirs) = theirs else {
        assert!(
            matches!(ours, Parsed::Whole(p) if p.protocol == smoltcp::wire::IpProtocol::IpSecAh)
                || matches!(ours, Parsed::Fragment(f) if f.protocol == smoltcp::wire::IpProtocol::IpSecAh)
        );
        return;
    };
    let header = theirs.header();
    let addresses: (IpAddr, IpAddr) = (header.source_addr().into(), header.destination_addr().into());
    let protocol = header.protocol();
    match ours {
        Parsed::Whole(p) => {
            assert!(!header.is_fragmenting_payload());
            assert_eq!((p.src, p.dst, u8::from(p.protocol)), (addresses.0, addresses.1, protocol.0));
            assert_eq!((p.hop_limit, p.dont_fragment), (header.ttl(), header.dont_fragment()));
            assert_eq!(p.tos, header.dcp().value() << 2 | header.ecn().value());
            assert_eq!(p.bytes.len(), usize::from(header.total_len()));
            if protocol != IpNumber::AUTHENTICATION_HEADER {
                assert_eq!(p.payload(), theirs.payload().payload);
            }
        }
        Parsed::Fragment(f) => {
            assert!(header.is_fragmenting_payload());
            assert_eq!((f.src, f.dst, f.id), (addresses.0, addresses.1, header.identification().into()));
            assert_eq!((f.offset, f.more), (header.fragments_offset().byte_offset() as u32, header.more_fragments()));
            if protocol != IpNumber::AUTHENTICATION_HEADER {
                assert_eq!(f.payload, theirs.payload().payload);
            }
        }
    }
}

fn v6(peer: Peer, bytes: &[u8]) {
    assert!(packet::parse_ipv4(peer, Offload::default(), bytes).is_err());
    let Ok(ours) = packet::parse_ipv6(peer, Offload::default(), bytes) else { return };
    let Ok(theirs) = Ipv6Slice::from_slice(bytes) else { return };
    let header = theirs.header();
    // A length of 0 is a jumbogram or "as long as it is" for them, and just empty for us.
    if header.payload_length() == 0 {
        return;
    }
    let addresses: (IpAddr, IpAddr) = (header.source_addr().into(), header.destination_addr().into());
    match ours {
        Parsed::Whole(p) => {
            assert_eq!((p.src, p.dst, p.hop_limit), (addresses.0, addresses.1, header.hop_limit()));
            assert_eq!(p.tos, header.traffic_class());
            assert_eq!(p.bytes.len(), 40 + usize::from(header.payload_length()));
            // They follow more kinds of extension headers than we do.
            let payload = theirs.payload();
            if u8::from(p.protocol) == payload.ip_number.0 {
                assert!(!payload.fragmented);
                assert_eq!(p.payload(), payload.payload);
            } else {
                assert!(IpNumber(u8::from(p.protocol)).is_ipv6_ext_header_value());
            }
        }
        Parsed::Fragment(f) => {
            assert_eq!((f.src, f.dst), addresses);
            let fragment = theirs.extensions().clone().into_iter().find_map(|e| match e {
                etherparse::Ipv6ExtensionSlice::Fragment(f) => Some(f),
                _ => None,
            });
            let Some(theirs) = fragment else { return };
            assert_eq!((f.id, f.more), (theirs.identification(), theirs.more_fragments()));
            assert_eq!(f.offset, theirs.fragment_offset().byte_offset() as u32);
            assert_eq!(u8::from(f.protocol), theirs.next_header().0);
        }
    }
}
