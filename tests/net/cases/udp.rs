//! UDP: sizes, mappings, errors.
use std::net::{SocketAddr, UdpSocket};

use super::OPEN;
use crate::harness::*;

cases! {
    udp_of_every_size_comes_back,
    udp_keeps_its_source_for_every_destination,
    udp_to_a_closed_port_is_told,
}

fn udp_of_every_size_comes_back() -> Result<(), Fault> {
    let mut servers = vec![udp_echo("127.0.0.1:0")];
    if host_has_ipv6() {
        servers.push(udp_echo("[::1]:0"));
    }
    for server in servers {
        for mtu in ["1500", "65520"] {
            for size in ["0", "1", "1400", "1473", "9000", "65507"] {
                if server.is_ipv6() && size == "65507" {
                    continue;
                }
                let options = ["--host-loopback", "--mtu", mtu];
                let said = probe(&options, &["udp-echo", &seen_from_inside(server), size])?;
                same(&format!("{server} MTU {mtu}"), said, format!("{size} bytes came back"))?;
            }
        }
    }
    Ok(())
}

fn udp_keeps_its_source_for_every_destination() -> Result<(), Fault> {
    let tell = || {
        let socket = UdpSocket::bind("127.0.0.1:0").expect("a loopback port is free");
        let address = socket.local_addr().expect("it is bound");
        std::thread::spawn(move || {
            let mut buffer = [0; 100];
            while let Ok((_, from)) = socket.recv_from(&mut buffer) {
                let _ = socket.send_to(from.to_string().as_bytes(), from);
            }
        });
        seen_from_inside(address)
    };
    let said = probe(OPEN, &["udp-source", &tell(), &tell()])?;
    let seen: Vec<&str> = said.split(' ').collect();
    same("the source that two servers saw (RFC 4787, REQ-1)", seen.first(), seen.get(1))
}

fn udp_to_a_closed_port_is_told() -> Result<(), Fault> {
    let closed: SocketAddr = UdpSocket::bind("127.0.0.1:0").and_then(|s| s.local_addr()).map_err(|e| e.to_string())?;
    let said = probe(OPEN, &["udp-error", &seen_from_inside(closed)])?;
    same("port unreachable", said.as_str(), "ConnectionRefused")
}
