//! UDP, ICMP, and frames as they are: sizes, mappings, errors, nonsense.
use std::net::{SocketAddr, UdpSocket};

use super::OPEN;
use crate::harness::*;
use crate::world;

cases! {
    udp_of_every_size_comes_back,
    udp_keeps_its_source_for_every_destination,
    udp_to_a_closed_port_is_told,
    a_closed_port_costs_no_datagram_to_another,
    holes_are_punched_for_addresses_that_were_written_to,
    the_dont_fragment_bit_is_honoured,
    traceroute_sees_who_was_on_the_way,
    the_gateway_answers_pings,
    others_answer_pings_where_the_host_allows_it,
    without_ping_sockets_one_line_says_so,
    frames_that_make_no_sense_do_no_harm,
    overlapping_fragments_are_dropped,
    refused_destinations_are_counted,
    ;
    punches_holes,
    learns_path_mtu,
    traces_route,
    pings_outside,
    pings_forbidden,
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

fn a_closed_port_costs_no_datagram_to_another() -> Result<(), Fault> {
    let closed: SocketAddr = UdpSocket::bind("127.0.0.1:0").and_then(|s| s.local_addr()).map_err(|e| e.to_string())?;
    let open = udp_echo("127.0.0.1:0");
    let said = probe(OPEN, &["udp-two", &seen_from_inside(closed), &seen_from_inside(open), "50"])?;
    same("each round", said.as_str(), "50 answers")
}

fn holes_are_punched_for_addresses_that_were_written_to() -> Result<(), Fault> {
    world::run(&["--net", "none"], "punches_holes")
}

fn punches_holes() -> Result<(), Fault> {
    for (first, second) in [("192.0.2.1", "192.0.2.2"), ("2001:db8::1", "2001:db8::2")] {
        let bind = |ip: &str| {
            let ip: std::net::IpAddr = ip.parse().map_err(|e| format!("{e}"))?;
            UdpSocket::bind((ip, 0)).map_err(|e| e.to_string())
        };
        world::add_address(first)?;
        world::add_address(second)?;
        let (met, other_port, stranger) = (bind(first)?, bind(first)?, bind(second)?);
        let to = met.local_addr().map_err(|e| e.to_string())?.to_string();
        let mut console = sandbox("punches", &[])?;
        let words = ["udp-punch", &to];
        console.tell(&words)?;
        let mut buffer = [0; 100];
        let (_, mapping) = met.recv_from(&mut buffer).map_err(|e| e.to_string())?;
        for (socket, text) in [(&stranger, "stranger"), (&other_port, "port"), (&met, "met"), (&met, "end")] {
            socket.send_to(text.as_bytes(), mapping).map_err(|e| e.to_string())?;
        }
        let said = console.answer(&words)?;
        let other = other_port.local_addr().map_err(|e| e.to_string())?;
        same("what came, and from whom (RFC 4787 REQ-8)", said, format!("port@{other} met@{to}"))?;
        same("the stranger is counted", dropped("punches", "unsolicited")?, 1)?;
        same("CMD", console.end()?.code(), Some(0))?;
    }
    Ok(())
}

/// Where a world finds the port of a server on the machine itself.
const PORT: &str = "TAPLINE_TEST_PORT";

fn the_dont_fragment_bit_is_honoured() -> Result<(), Fault> {
    let server = udp_echo("127.0.0.1:0");
    let options = ["--subnet", "10.7.0.0/24", "--mtu", "1500", "--host-loopback"];
    world::run_with(&options, "learns_path_mtu", &[(PORT, server.port().to_string())])
}

fn learns_path_mtu() -> Result<(), Fault> {
    let to = format!("10.7.0.2:{}", std::env::var(PORT).map_err(|e| e.to_string())?);
    let said = probe(&[], &["udp-path-mtu", &to, "3000"])?;
    same(
        "an interface of 65520 bytes before a way of 1500",
        said.as_str(),
        "path MTU 65520, then 1500; 3000 bytes, right",
    )
}

fn traceroute_sees_who_was_on_the_way() -> Result<(), Fault> {
    world::run(&["--subnet", "10.7.0.0/24"], "traces_route")
}

fn traces_route() -> Result<(), Fault> {
    // Neither leaves the world's own gateway.
    same("one hop", probe(&[], &["udp-hops", "198.18.0.1:33434", "1"])?.as_str(), "type 11 code 0 from 10.0.2.2")?;
    same("two hops", probe(&[], &["udp-hops", "198.18.0.1:33434", "2"])?.as_str(), "type 11 code 0 from 10.7.0.2")
}

fn the_gateway_answers_pings() -> Result<(), Fault> {
    let mut console = sandbox("pings", &["--mtu", "1500"])?;
    for to in ["10.0.2.2", "10.0.2.3", "fd00::2", "fd00::3"] {
        for bytes in ["0", "56", "1452", "9000"] {
            same(to, console.ask(&["ping", to, bytes])?, format!("{bytes} bytes came back"))?;
        }
    }
    Ok(())
}

fn others_answer_pings_where_the_host_allows_it() -> Result<(), Fault> {
    world::run(&["--net", "none"], "pings_outside")
}

fn pings_outside() -> Result<(), Fault> {
    for ip in ["192.0.2.1", "2001:db8::1"] {
        world::add_address(ip)?;
        same(ip, probe(&[], &["ping", ip, "56"])?.as_str(), "56 bytes came back")?;
    }
    Ok(())
}

fn without_ping_sockets_one_line_says_so() -> Result<(), Fault> {
    world::run_bare("pings_forbidden")
}

fn pings_forbidden() -> Result<(), Fault> {
    // So it is in a new network namespace: nobody may.
    let said = crate::probe::probe(&["ping", "127.0.0.1", "0"]);
    holds(format!("nobody may: {said:?}"), said.is_err_and(|why| why.starts_with("no ping socket")))?;
    world::add_address("192.0.2.1")?;
    let mut command = probe_command(&[], &["ping", "192.0.2.1", "56"]);
    let out = command.output().map_err(|e| e.to_string())?;
    same("no answer", text(&out.stdout).trim_end(), "no answer")?;
    let errors = text(&out.stderr);
    holds(format!("one clear line: {errors}"), errors.lines().filter(|l| l.contains("ping_group_range")).count() == 1)
}

fn frames_that_make_no_sense_do_no_harm() -> Result<(), Fault> {
    let server = tcp_server("127.0.0.1:0", echo);
    let to = seen_from_inside(server);
    for link in ["tap", "packet"] {
        let name = format!("noise-{link}");
        let mut console = sandbox(&name, &["--link-kind", link, "--host-loopback"])?;
        let gateway = gateway_of(console.child.0.id())?;
        same("before", console.ask(&["tcp-echo", &to, "100000"])?.as_str(), "100000 bytes came back")?;
        same("noise", console.ask(&["frames", "20000"])?.as_str(), "20000 sent")?;
        same("after", console.ask(&["tcp-echo", &to, "1000000"])?.as_str(), "1000000 bytes came back")?;
        same("the same gateway", gateway_of(console.child.0.id())?, gateway)?;
        for reason in ["malformed", "ethertype", "spoofed"] {
            let count = dropped(&name, reason)?;
            holds(format!("{link}: {count} dropped as {reason}: {}", inspect(&name)?["counters"]), count > 0)?;
        }
        same("CMD", console.end()?.code(), Some(0))?;
    }
    Ok(())
}

fn overlapping_fragments_are_dropped() -> Result<(), Fault> {
    let mut console = sandbox("overlaps", &[])?;
    console.ask(&["overlap"])?;
    until("they are counted", 10, || dropped("overlaps", "fragment_overlap").is_ok_and(|n| n > 0))
}

fn refused_destinations_are_counted() -> Result<(), Fault> {
    let mut console = sandbox("refused", &[])?;
    let refused = [
        "169.254.169.254:80",
        "169.254.170.2:80",
        "100.100.100.200:80",
        "168.63.129.16:80",
        "[fd00:ec2::254]:80",
        "[fd20:ce::254]:80",
        "[::ffff:0:1]:80",
    ];
    for (so_far, to) in refused.iter().enumerate() {
        let before = dropped("refused", "refused")?;
        let said = console.ask(&["udp-error", to])?;
        holds(format!("{to} ({so_far} before it): told with ICMP: {said}"), said != "an answer")?;
        holds(format!("{to} is counted"), dropped("refused", "refused")? > before)?;
    }
    Ok(())
}
