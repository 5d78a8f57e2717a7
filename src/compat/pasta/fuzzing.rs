//! What the fuzz target needs of this command line: words, and a host like any other.
use std::ffi::OsString;
use std::net::IpAddr;

use super::meaning::{Facts, Meaning};
use super::options::{Options, Stop};
use super::template::HostNet;
use super::{host, ports, ports_options};
use crate::host::resolv::ResolvConf;
use crate::plan::{Interface, MacAddr, Network};
use crate::sys::netlink::{Address, Link, Route};

/// The network and the interface that words behind the program's name ask for; a mistake's sentence.
pub(crate) fn network_of(words: Vec<OsString>) -> Result<(Network, Interface), String> {
    let text = |error: Stop| error.to_string();
    let options = Options::parse(words).map_err(text)?;
    let meaning = Meaning::of(&options, &facts()).map_err(text)?;
    ports::resolve(&ports_options(&options, &meaning), true, host::EPHEMERAL).map_err(|error| error.to_string())?;
    Ok((meaning.network, meaning.interface))
}

/// A host with one interface of both families.
fn facts() -> Facts {
    let link = |index, name: &str| Link {
        index,
        name: name.to_owned(),
        up: true,
        running: true,
        loopback: index == 1,
        mtu: 1500,
        mac: None,
        tx_queue_len: None,
    };
    let address =
        |ip: IpAddr, prefix| Address { index: 2, ip, prefix, global: true, tentative: false, deprecated: false };
    let default = |everywhere: IpAddr, gateway: IpAddr| Route {
        destination: everywhere,
        prefix: 0,
        gateway: Some(gateway),
        index: Some(2),
        preferred_source: None,
        priority: 0,
    };
    let v6 = |last| IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, last]);
    Facts {
        net: HostNet {
            links: vec![link(1, "lo"), link(2, "eth0")],
            addresses: vec![address([192, 0, 2, 2].into(), 24), address(v6(2), 64)],
            routes: vec![default([0; 4].into(), [192, 0, 2, 1].into()), default([0; 8].into(), v6(1))],
        },
        resolv_conf: Some(ResolvConf::parse("nameserver 127.0.0.53\nnameserver 198.51.100.1\nsearch host.example\n")),
        hostname: "host".to_owned(),
        has_ipv6: true,
        mac: MacAddr([2, 0, 0, 0, 0, 7]),
        id: "0123456789ab".to_owned(),
    }
}
