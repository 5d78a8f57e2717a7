//! The header of the PROXY protocol: who the client is, for services that cannot see it (haproxy's
//! `doc/proxy-protocol.txt`, versions 1 and 2).
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use crate::plan::ProxyVersion;

/// What version 2 begins with (2.2).
const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
/// Version 2, command PROXY.
const V2_PROXY: u8 = 0x21;
/// TCP over IPv4, and over IPv6.
const V2_TCP4: u8 = 0x11;
const V2_TCP6: u8 = 0x21;

/// The header for a connection that `client` made to `server`. Both are written in one family: where only one of them
/// is IPv4, it is mapped into IPv6.
pub fn header(version: ProxyVersion, client: SocketAddr, server: SocketAddr) -> Vec<u8> {
    let ports = (client.port(), server.port());
    match (client.ip().to_canonical(), server.ip().to_canonical(), version) {
        (IpAddr::V4(from), IpAddr::V4(to), ProxyVersion::V1) => {
            format!("PROXY TCP4 {from} {to} {} {}\r\n", ports.0, ports.1).into_bytes()
        }
        (IpAddr::V4(from), IpAddr::V4(to), ProxyVersion::V2) => binary(V2_TCP4, &from.octets(), &to.octets(), ports),
        (from, to, ProxyVersion::V1) => {
            let (from, to) = (text(mapped(from)), text(mapped(to)));
            format!("PROXY TCP6 {from} {to} {} {}\r\n", ports.0, ports.1).into_bytes()
        }
        (from, to, ProxyVersion::V2) => binary(V2_TCP6, &mapped(from).octets(), &mapped(to).octets(), ports),
    }
}

fn mapped(address: IpAddr) -> Ipv6Addr {
    match address {
        IpAddr::V4(ip) => ip.to_ipv6_mapped(),
        IpAddr::V6(ip) => ip,
    }
}

/// An address as version 1 has it (2.1): hexadecimal groups only, no IPv4 notation at its end.
fn text(address: Ipv6Addr) -> String {
    match (address.to_ipv4_mapped(), address.segments()) {
        (Some(_), [.., high, low]) => format!("::ffff:{high:x}:{low:x}"),
        _ => address.to_string(),
    }
}

fn binary(family: u8, client: &[u8], server: &[u8], ports: (u16, u16)) -> Vec<u8> {
    let length = (client.len() + server.len() + 4) as u16; // 12 or 36
    let mut header = SIGNATURE.to_vec();
    header.extend_from_slice(&[V2_PROXY, family]);
    header.extend_from_slice(&length.to_be_bytes());
    header.extend_from_slice(client);
    header.extend_from_slice(server);
    header.extend_from_slice(&ports.0.to_be_bytes());
    header.extend_from_slice(&ports.1.to_be_bytes());
    header
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAIRS: [(&str, &str); 6] = [
        ("192.168.0.1:56324", "192.168.0.11:443"),
        ("255.255.255.255:65535", "255.255.255.255:65535"),
        ("[2001:db8::1]:1", "[fd00::100]:8080"),
        ("[ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff]:65535", "[ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff]:65535"),
        ("[::ffff:192.0.2.1]:5", "192.0.2.2:6"),
        ("192.0.2.1:5", "[2001:db8::1]:6"),
    ];

    fn of(version: ProxyVersion, (client, server): (&str, &str)) -> Vec<u8> {
        header(version, client.parse().unwrap(), server.parse().unwrap())
    }

    #[test]
    fn version_1_is_a_line() {
        let lines = PAIRS.map(|pair| String::from_utf8(of(ProxyVersion::V1, pair)).unwrap());
        assert_eq!(
            lines,
            [
                "PROXY TCP4 192.168.0.1 192.168.0.11 56324 443\r\n",
                "PROXY TCP4 255.255.255.255 255.255.255.255 65535 65535\r\n",
                "PROXY TCP6 2001:db8::1 fd00::100 1 8080\r\n",
                "PROXY TCP6 ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff \
                 ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff 65535 65535\r\n",
                "PROXY TCP4 192.0.2.1 192.0.2.2 5 6\r\n",
                "PROXY TCP6 ::ffff:c000:201 2001:db8::1 5 6\r\n",
            ]
        );
        // The longest that a receiver must take: 107 bytes with UNKNOWN, 104 of TCP6.
        assert_eq!(lines[3].len(), 104);
    }

    #[test]
    fn version_2_is_sixteen_bytes_and_the_addresses() {
        let signature = [0x0d, 0x0a, 0x0d, 0x0a, 0x00, 0x0d, 0x0a, 0x51, 0x55, 0x49, 0x54, 0x0a];
        let v4 = [0x21, 0x11, 0, 12, 192, 168, 0, 1, 192, 168, 0, 11, 0xdc, 0x04, 0x01, 0xbb];
        assert_eq!(of(ProxyVersion::V2, PAIRS[0]), [&signature[..], &v4].concat());
        let v6 = of(ProxyVersion::V2, PAIRS[5]);
        assert_eq!(v6[..16], [&signature[..], &[0x21, 0x21, 0, 36]].concat());
        assert_eq!(v6[16..28], [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff]);
        assert_eq!((v6.len(), &v6[28..32], &v6[48..]), (52, &[192, 0, 2, 1][..], &[0, 5, 0, 6][..]));
    }

    #[test]
    fn another_implementation_reads_both() {
        for pair in PAIRS {
            let [client, server]: [SocketAddr; 2] = [pair.0.parse().unwrap(), pair.1.parse().unwrap()];
            let canonical = |at: SocketAddr| SocketAddr::new(at.ip().to_canonical(), at.port());
            let expected = (canonical(client), canonical(server));
            let line = of(ProxyVersion::V1, pair);
            let read = match ppp::v1::Header::try_from(&line[..]).unwrap().addresses {
                ppp::v1::Addresses::Tcp4(a) => {
                    ((a.source_address, a.source_port).into(), (a.destination_address, a.destination_port).into())
                }
                ppp::v1::Addresses::Tcp6(a) => {
                    ((a.source_address, a.source_port).into(), (a.destination_address, a.destination_port).into())
                }
                other => panic!("{other:?}"),
            };
            assert_eq!((canonical(read.0), canonical(read.1)), expected);
            let bytes = of(ProxyVersion::V2, pair);
            let header = ppp::v2::Header::try_from(&bytes[..]).unwrap();
            assert_eq!((header.command, header.protocol), (ppp::v2::Command::Proxy, ppp::v2::Protocol::Stream));
            let read = match header.addresses {
                ppp::v2::Addresses::IPv4(a) => {
                    ((a.source_address, a.source_port).into(), (a.destination_address, a.destination_port).into())
                }
                ppp::v2::Addresses::IPv6(a) => {
                    ((a.source_address, a.source_port).into(), (a.destination_address, a.destination_port).into())
                }
                other => panic!("{other:?}"),
            };
            assert_eq!((canonical(read.0), canonical(read.1)), expected);
        }
    }
}
