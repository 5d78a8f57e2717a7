//! The text of a resolv.conf.
#![no_main]
use libfuzzer_sys::fuzz_target;
use tapline::host::resolv::ResolvConf;

fuzz_target!(|text: &str| {
    let conf = ResolvConf::parse(text);
    assert!(!conf.nameservers.is_empty());
    for server in &conf.nameservers {
        assert!(!server.ip.is_unspecified() && (server.ip.is_ipv6() || server.scope.is_none()));
        if let Some(address) = server.address(|_| Some(7)) {
            assert_eq!((address.ip(), address.port()), (server.ip, 53));
        }
    }
    for name in &conf.search {
        assert!((1..=253).contains(&name.len()) && !name.contains(char::is_whitespace));
    }
});
