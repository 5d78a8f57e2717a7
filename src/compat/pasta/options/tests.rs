//! What is typed, and what is understood.
use super::*;
use proptest::prelude::*;

fn parse(words: &str) -> Result<Options, Stop> {
    Options::parse(words.split_whitespace().map(OsString::from))
}

fn ok(words: &str) -> Options {
    parse(words).unwrap_or_else(|stop| panic!("{words}: {stop}"))
}

fn refusal(words: &str) -> String {
    parse(words).unwrap_err().to_string()
}

#[test]
fn three_forms_are_told_apart() {
    assert_eq!(ok("").whose, Whose::Command(Vec::new()));
    assert_eq!(ok("-q sh -c true").whose, Whose::Command(vec!["sh".into(), "-c".into(), "true".into()]));
    assert_eq!(ok("-q -- -x").whose, Whose::Command(vec!["-x".into()]));
    assert_eq!(ok("4711").whose, Whose::Pid(4711));
    assert_eq!(ok("4711 x").whose, Whose::Command(vec!["4711".into(), "x".into()]));
    assert_eq!(ok("--netns /proc/7/ns/net").whose, Whose::Netns("/proc/7/ns/net".into()));
    assert_eq!(ok("--netns=blue").whose, Whose::Netns("/run/netns/blue".into()));
    assert_eq!(refusal("--netns blue 12"), "Both --netns and PID or command given");
    assert_eq!(refusal("-- -12"), "Invalid PID -12");
    assert_eq!(refusal("99999999999"), "Invalid PID 99999999999");
}

#[test]
fn podmans_argv_is_understood() {
    let options = ok("--config-net -t 0.0.0.0/8080-8080:80-80 -t ::1/5000-5000:5000-5000 -u none --dns-forward \
                      169.254.1.1 -T none -U none --no-map-gw --quiet --netns /run/user/1/netns/netns-1 \
                      --map-guest-addr 169.254.1.2");
    assert!(options.configure && options.quiet && !options.map_gateway && !options.foreground);
    assert_eq!(options.tcp_ports, ["0.0.0.0/8080-8080:80-80", "::1/5000-5000:5000-5000"]);
    assert_eq!((&options.udp_ports[..], &options.tcp_ns[..]), (&["none".to_owned()][..], &["none".to_owned()][..]));
    assert_eq!(options.dns_forward.v4, Some([169, 254, 1, 1].into()));
    assert_eq!(options.guest.v4, Some([169, 254, 1, 2].into()));
    assert_eq!(options.whose, Whose::Netns("/run/user/1/netns/netns-1".into()));
}

#[test]
fn an_unknown_option_is_glibcs_text() {
    assert_eq!(refusal("--foo"), "unrecognized option '--foo'");
    assert_eq!(refusal("-Z"), "invalid option -- 'Z'");
    assert_eq!(refusal("--mtu"), "option '--mtu' requires an argument");
    assert!(matches!(parse("--foo"), Err(Stop::Words(_))));
    assert_eq!(parse("-h --foo"), Err(Stop::Help));
    assert_eq!(parse("--version --foo"), Err(Stop::Version));
}

#[test]
fn every_long_option_is_taken_with_a_value_that_fits() {
    let fitting = |key: Key| match key {
        Key::Stats => "-f --stats 3".to_owned(),
        Key::Netns | Key::NoCopyRoutes | Key::NoCopyAddrs => "--config-net".to_owned(),
        _ => String::new(),
    };
    for opt in TABLE {
        let long = opt.long.unwrap();
        let before = fitting(opt.key);
        let value = match opt.key {
            Key::Mtu => "1500",
            Key::LogSize => "65536",
            Key::Address | Key::Gateway | Key::Outbound | Key::Dns | Key::DnsForward | Key::DnsHost => "192.0.2.9",
            Key::MapHostLoopback | Key::MapGuest => "192.0.2.9",
            Key::Netmask => "24",
            Key::Mac | Key::NsMac => "02:00:00:00:00:09",
            Key::Stats => "3",
            _ => "eth9",
        };
        let words = match opt.arg {
            Arg::No => format!("{before} --{long}"),
            Arg::Needed => format!("{before} --{long} {value}"),
        };
        match (opt.key, parse(&words)) {
            (Key::Foreign(name), Err(Stop::Value(text))) => {
                assert_eq!(text, format!("{name} is for passt mode only"))
            }
            (Key::Help, Err(Stop::Help)) | (Key::Version, Err(Stop::Version)) => {}
            (key, Ok(options)) => {
                let changed = options != ok(&before);
                assert!(
                    changed
                        || matches!(
                            key,
                            Key::Stderr
                                | Key::ChrootFallback
                                | Key::Stats
                                | Key::DhcpDns(false)
                                | Key::DhcpSearch(false)
                        ),
                    "{words}"
                );
            }
            (_, other) => panic!("{words}: {other:?}"),
        }
    }
}

#[test]
fn an_address_has_one_prefix() {
    let options = ok("-a 192.0.2.7/28 -a 2001:db8::7/56");
    assert_eq!((options.address.v4, options.prefix4), (Some([192, 0, 2, 7].into()), Some(28)));
    assert_eq!((options.address.v6, options.prefix6), (Some("2001:db8::7".parse().unwrap()), Some(56)));
    assert_eq!(ok("-a 192.0.2.7 -n 255.255.255.240").prefix4, Some(28));
    assert_eq!(ok("-n 24").prefix4, Some(24));
    assert_eq!(refusal("-a 192.0.2.7/28 -n 24"), "Redundant prefix length specification");
    assert_eq!(refusal("-n 24 -a 192.0.2.7/28"), "Redundant prefix length specification");
    for wrong in ["255.0.255.0", "33", "-1", "x", ""] {
        assert_eq!(refusal(&format!("-n={wrong}")), format!("Invalid prefix length: ={wrong}"));
        let words = vec![OsString::from("-n"), wrong.into()];
        assert_eq!(Options::parse(words).unwrap_err().to_string(), format!("Invalid prefix length: {wrong}"));
    }
    for wrong in
        ["127.0.0.1", "0.0.0.0", "224.0.0.1", "::", "::1", "ff02::1", "::192.0.2.1", "x", "192.0.2.1/33", "192.0.2.1/"]
    {
        assert_eq!(refusal(&format!("-a {wrong}")), format!("Invalid address: {wrong}"));
    }
}

#[test]
fn values_that_cannot_be_are_told_as_the_original_tells_them() {
    for (words, text) in [
        ("-m 65521", "MTU 65521 too large (max 65520)"),
        ("-m 1500x", "Invalid MTU: 1500x"),
        ("-M 9a:55", "Invalid MAC address: 9a:55"),
        ("--ns-mac-addr 9a-55-9a-55-9a-55", "Invalid MAC address: 9a-55-9a-55-9a-55"),
        ("-g 127.0.0.1", "Invalid gateway address: 127.0.0.1"),
        ("-g 255.255.255.255", "Invalid gateway address: 255.255.255.255"),
        ("-o 0.0.0.0", "Invalid or redundant outbound address: 0.0.0.0"),
        ("-D x", "Cannot use DNS address x"),
        ("--dns-forward ::1", "Invalid DNS forwarding address: ::1"),
        ("--dns-host 0.0.0.0", "Invalid host nameserver address: 0.0.0.0"),
        ("--map-host-loopback 127.0.0.1", "Invalid address to remap to host: 127.0.0.1"),
        ("--map-guest-addr x", "Invalid address to remap to host: x"),
        ("-I 0123456789abcdef", "Invalid interface name: 0123456789abcdef"),
        ("--log-size 100", "Invalid --log-size: 100"),
        ("--stats 1", "Can't display statistics if not running in foreground"),
        ("--no-copy-routes", "--no-copy-routes needs --config-net"),
        ("--no-copy-addrs", "--no-copy-addrs needs --config-net"),
        ("--splice-only --no-splice", "--splice-only is incompatible with --no-splice"),
        ("--no-tcp -t 80", "TCP port forwarding requested but TCP is disabled"),
        ("--no-udp -U 53", "UDP port forwarding requested but UDP is disabled"),
        ("-s x", "-s is for passt mode only"),
    ] {
        assert_eq!(refusal(words), text, "{words}");
    }
}

proptest::proptest! {
    #[test]
    fn no_words_are_more_than_a_mistake(
        words in proptest::collection::vec(
            proptest::prop_oneof![
                proptest::sample::select(TABLE).prop_map(|opt| format!("--{}", opt.long.unwrap())),
                proptest::sample::select(TABLE).prop_filter_map("short", |opt| opt.short.map(|c| format!("-{c}"))),
                "[0-9a-f:./%~,-]{0,40}",
                "\\PC{0,12}",
            ],
            0..8,
        )
    ) {
        let _ = Options::parse(words.into_iter().map(OsString::from));
    }
}

#[test]
fn numbers_are_read_in_three_bases() {
    assert_eq!((ok("-m 0x5dc").mtu, ok("-m 02734").mtu, ok("-m 0").mtu), (1500, 1500, 0));
}

#[test]
fn the_last_one_counts() {
    let options = ok("--ns-mac-addr 02:00:00:00:00:01 --ns-mac-addr 02:00:00:00:00:02 -m 1400 -m 1500 -4 -6 -q -d");
    assert_eq!((options.mac, options.mtu), (Some(MacAddr([2, 0, 0, 0, 0, 2])), 1500));
    assert_eq!((options.v4, options.v6, options.quiet, options.verbosity), (false, true, false, 2));
    assert!(ok("-d -q").quiet && ok("-d -q").verbosity == 0);
    assert_eq!(ok("--userns /u --netns-only").userns, None);
    assert!(!ok("--netns-only --userns /u").netns_only);
}

#[test]
fn none_takes_back() {
    let options = ok("--dns-forward 192.0.2.1 -D 192.0.2.2 -D none --map-guest-addr 192.0.2.3 --map-guest-addr none \
                      --map-host-loopback 192.0.2.4 --map-host-loopback none -S a.example -S none");
    assert_eq!((options.dns, options.dns_forward), (Some(Vec::new()), Pair::default()));
    assert_eq!((options.guest, options.host_loopback, options.map_gateway), (Pair::default(), Pair::default(), false));
    assert_eq!(options.search, Some(Vec::new()));
}

#[test]
fn search_domains_stand_in_one_word_or_in_several() {
    let words = ["-S", "a.example b.example", "-S", "c.example"].map(OsString::from);
    assert_eq!(Options::parse(words).unwrap().search.unwrap(), ["a.example", "b.example", "c.example"]);
}
