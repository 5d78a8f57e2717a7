//! pasta's port options, as a caller of the program writes them: lines, the first character of which says which option.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tapline::compat::pasta::ports::{Options, option_of, resolve};
use tapline::plan::PortRange;

fuzz_target!(|text: &str| {
    let mut options = Options { v4: true, v6: true, ..Options::default() };
    for line in text.lines().take(16) {
        let (letter, value) = line.split_at(line.chars().next().map_or(0, char::len_utf8));
        match letter {
            "t" => options.tcp.push(value.to_owned()),
            "u" => options.udp.push(value.to_owned()),
            "T" => options.tcp_ns.push(value.to_owned()),
            "U" => options.udp_ns.push(value.to_owned()),
            "4" => options.v6 = false,
            "6" => options.v4 = false,
            "f" => options.freebind = true,
            _ => return,
        }
    }
    let ephemeral = PortRange { first: 32_768, last: 60_999 };
    let ports = match resolve(&options, true, ephemeral) {
        Ok(ports) => ports,
        Err(error) => {
            assert!(!error.to_string().is_empty());
            return;
        }
    };
    for spec in &ports.publish {
        let host = spec.host.expect("which ports of the host is always said");
        assert!(host.first > 0 && host.first <= host.last);
        assert_eq!(host.count(), spec.sandbox.count());
        let (letter, value) = option_of(&spec.text).expect("the option");
        let given = if letter == 't' { &options.tcp } else { &options.udp };
        assert!(given.iter().any(|text| text == value));
        assert!(!spec.address.is_some_and(|ip| if ip.is_ipv4() { !options.v4 } else { !options.v6 }));
    }
    for reach in ports.reach.iter().chain(&ports.reach_following) {
        assert!(reach.host_port > 0 && reach.sandbox_port > 0);
    }
});
