use super::*;

/// A host with one interface.
struct Host;

impl Interfaces for Host {
    fn addresses(&self, name: &str) -> Vec<IpAddr> {
        match name {
            "eth0" => ["fe80::1", "192.0.2.7", "2001:db8::7"].map(|ip| ip.parse().unwrap()).to_vec(),
            _ => Vec::new(),
        }
    }
}

fn read_all(words: &str) -> (Result<Wanted, Mistake>, String) {
    let mut said = String::new();
    let words = words.split(' ').filter(|word| !word.is_empty()).map(OsString::from);
    (read("slirp4netns".as_ref(), words, &Host, &mut said), said)
}

fn options(words: &str) -> Options {
    match read_all(words).0 {
        Ok(Wanted::Network(options)) => *options,
        other => panic!("{words}: {other:?}"),
    }
}

/// Reason, and whether usage is shown.
fn mistake(words: &str) -> (String, bool) {
    let Mistake { reason, usage } = read_all(words).0.unwrap_err();
    (reason.unwrap_or_default(), usage)
}

#[test]
fn what_is_not_said_is_as_the_original_has_it() {
    let plain = options("42 tap0");
    let expected = Options {
        configure: false,
        exit_fd: None,
        ready_fd: None,
        mtu: 1500,
        ipv6: false,
        api_socket: None,
        cidr: "10.0.2.0/24".parse().unwrap(),
        disable_host_loopback: false,
        disable_dns: false,
        userns: None,
        sandbox: false,
        seccomp: false,
        outbound: None,
        outbound6: None,
        mac: None,
        netns: Netns::Pid(42),
        tap: "tap0".into(),
    };
    assert_eq!(plain, expected);
    assert_eq!(read_all("42 tap0").1, "");
}

#[test]
fn options_may_stand_anywhere_and_joined() {
    let joined = options("-c6m65520 -e3 42 -r 4 tap0 --api-socket=/tmp/s");
    assert!(joined.configure && joined.ipv6);
    assert_eq!((joined.mtu, joined.exit_fd, joined.ready_fd), (65520, Some(3), Some(4)));
    assert_eq!(joined.api_socket, Some("/tmp/s".into()));
    let podman = options(
        "--disable-host-loopback --mtu=65520 --enable-sandbox --enable-seccomp --enable-ipv6 -c -r 3 -e 4 \
         --netns-type=path /proc/self/ns/net tap0",
    );
    assert!(podman.disable_host_loopback && podman.sandbox && podman.seccomp);
    assert_eq!(podman.netns, Netns::Path("/proc/self/ns/net".into()));
}

#[test]
fn flags_that_are_new_or_old_are_warned_of() {
    let (_, said) = read_all(
        "-6 --outbound-addr=127.0.0.1 --outbound-addr6=::1 --enable-seccomp --create-sandbox --no-host-loopback 42 t x",
    );
    assert_eq!(
        said,
        "WARNING: Support for IPv6 is experimental\n\
         WARNING: Support for --outbound-addr is experimental\n\
         WARNING: Support for --outbound-addr6 is experimental\n\
         WARNING: Support for seccomp is experimental\n\
         WARNING: --create-sandbox is deprecated and will be removed in future releases, please use --enable-sandbox \
         instead.\n\
         WARNING: --no-host-loopback is deprecated and will be removed in future releases, please use \
         --disable-host-loopback instead.\n\
         WARNING: too many arguments\n"
    );
    let old = options("--create-sandbox --no-host-loopback 42 tap0");
    assert!(old.sandbox && old.disable_host_loopback);
    assert_eq!(
        mistake("--enable 42 t").0,
        "slirp4netns: option '--enable' is ambiguous; possibilities: '--enable-ipv6' '--enable-sandbox' \
         '--enable-seccomp'"
    );
}

#[test]
fn values_of_descriptors_and_mtu_are_checked() {
    for bad in ["x", "-1", "1x", "99999999999", "0x3"] {
        assert_eq!(mistake(&format!("-e {bad} 42 t")), ("exit-fd must be a non-negative integer".into(), true));
        assert_eq!(mistake(&format!("-r {bad} 42 t")), ("ready-fd must be a non-negative integer".into(), true));
    }
    for bad in ["0", "65522", "-1", "x", "1500x", "99999999999"] {
        assert_eq!(mistake(&format!("-m {bad} 42 t")), ("MTU must be a positive integer (< 65522)".into(), true));
    }
    assert_eq!((options("-m 1 42 t").mtu, options("-m 65521 42 t").mtu), (1, 65521));
}

#[test]
fn a_cidr_is_judged_in_the_original_order() {
    for (text, reason) in [
        ("foo", "invalid CIDR: foo"),
        ("", "invalid CIDR: "),
        ("10.0.2.0", "invalid CIDR: 10.0.2.0"),
        ("10.0.2.0/024", "invalid CIDR: 10.0.2.0/024"),
        ("10.0.2.0/-1", "invalid CIDR: 10.0.2.0/-1"),
        ("fd00::/64", "invalid CIDR: fd00::/64"),
        ("300.0.2.0/24", "invalid network address: 300.0.2.0"),
        ("10.0.2.0/0", "prefix length needs to be 1-25"),
        ("10.0.2.0/26", "prefix length needs to be 1-25"),
        ("10.0.2.100/26", "prefix length needs to be 1-25"),
        ("10.0.2.0/99", "prefix length needs to be 1-25"),
        ("10.5.0.7/16", "CIDR needs to be a network address like 10.0.2.0/24, not like 10.0.2.100/24"),
    ] {
        assert_eq!(mistake(&format!("--cidr={text} 42 t")), (reason.into(), false), "{text}");
    }
    for good in ["10.0.2.0/24", "192.168.128.0/25", "128.0.0.0/1"] {
        assert_eq!(options(&format!("--cidr {good} 42 t")).cidr.to_string(), good);
    }
}

#[test]
fn outbound_addresses_are_addresses_or_an_interfaces() {
    assert_eq!(options("--outbound-addr=192.0.2.1 42 t").outbound, Some([192, 0, 2, 1].into()));
    assert_eq!(options("--outbound-addr=eth0 42 t").outbound, Some([192, 0, 2, 7].into()));
    assert_eq!(options("--outbound-addr6=::1 42 t").outbound6, Some(Ipv6Addr::LOCALHOST));
    assert_eq!(options("--outbound-addr6=eth0 42 t").outbound6, Some("2001:db8::7".parse().unwrap()));
    for bad in ["nope", "::1", "300.1.1.1", ""] {
        let (reason, usage) = mistake(&format!("--outbound-addr={bad} 42 t"));
        assert_eq!(reason, "outbound-addr has to be valid ipv4 address or interface name.");
        assert!(!usage);
    }
    assert!(mistake("--outbound-addr6=10.0.0.1 42 t").0.starts_with("outbound-addr6 has to be valid ipv6"));
}

#[test]
fn a_mac_address_is_for_an_interface_that_is_configured() {
    assert_eq!(options("-c --macaddress=02:11:22:33:44:AA 42 t").mac.unwrap().to_string(), "02:11:22:33:44:aa");
    assert_eq!(options("-c --macaddress=2:1:2:3:4:5 42 t").mac.unwrap().to_string(), "02:01:02:03:04:05");
    let (reason, usage) = mistake("--macaddress=02:11:22:33:44:55 42 t");
    assert!(usage && reason == "--macaddr cannot be specified when --configure or -c is not specified");
    for bad in ["zz:00:00:00:00:00", "", "02:11:22:33:44", "02:11:22:33:44:55:66", "01:11:22:33:44:55", "0:0:0:0:0:0"] {
        let (reason, usage) = mistake(&format!("-c --macaddress={bad} 42 t"));
        assert!(!usage && reason.contains("macaddress has to be a valid MAC address"), "{bad}: {reason}");
    }
}

#[test]
fn the_target_is_a_process_a_path_or_a_descriptor() {
    for bad in ["0", "abc", "999999999999", "4x"] {
        assert_eq!(mistake(&format!("{bad} t")), ("PID must be a positive integer".into(), true));
    }
    assert_eq!(options("--netns-type=pid 42 t").netns, Netns::Pid(42));
    assert_eq!(options("--netns-type=tapfd 7 t").netns, Netns::Tap(7));
    assert!(mistake("--netns-type=tapfd x t").1);
    let (reason, usage) = mistake("--netns-type=path /nonexistent t");
    assert!(usage && reason == "existing path expected when --netns-type=path: No such file or directory", "{reason}");
    let with_userns = options("--userns-path=/proc/self/ns/user 42 t");
    assert_eq!(with_userns.userns, Some("/proc/self/ns/user".into()));
    // Before everything else that is not an option's own mistake.
    let missing = ("userns path doesn't exist: /nonexistent".to_owned(), true);
    assert_eq!(mistake("--userns-path=/nonexistent --macaddress=02:11:22:33:44:55 x"), missing);
}

#[test]
fn what_is_missing_or_wrong_shows_the_usage() {
    assert_eq!(mistake(""), (String::new(), true));
    assert_eq!(mistake("42"), (String::new(), true));
    assert_eq!(mistake("--foo 42 t"), ("slirp4netns: unrecognized option '--foo'".into(), true));
    assert_eq!(mistake("--mtu"), ("slirp4netns: option '--mtu' requires an argument".into(), true));
    assert_eq!(mistake("--target-type=x 1 t"), ("--target-type must be either \"netns\" or \"bess\"".into(), true));
    assert!(mistake("--target-type=bess /tmp/bess.sock").0.contains("is not served"));
    assert!(mistake("42 name-that-is-too-long").0.contains("TAPNAME"));
}

#[test]
fn help_lists_every_option_that_is_not_an_old_name() {
    let text = usage("slirp4netns".as_ref());
    let old = ["no-host-loopback", "create-sandbox"];
    for flag in OPTIONS.iter().filter_map(|opt| opt.long).filter(|flag| !old.contains(flag)) {
        assert!(text.contains(&format!("--{flag}")), "{flag}");
    }
    assert!(text.starts_with("Usage: slirp4netns [OPTION]... PID|PATH [TAPNAME]\n"));
    // Help that was asked for before a mistake is given.
    assert_eq!(read_all("-h --nonsense").0, Ok(Wanted::Help));
    assert_eq!(read_all("-v").0, Ok(Wanted::Version));
}

#[test]
fn version_is_told_line_by_line() {
    let version = version();
    let lines: Vec<(&str, &str)> = version.lines().map(|line| line.split_once(": ").unwrap_or((line, ""))).collect();
    assert!(version.starts_with("slirp4netns version 1."));
    let names: Vec<&str> = lines[1..].iter().map(|(name, _)| *name).collect();
    assert_eq!(names, ["commit", "libslirp", "SLIRP_CONFIG_VERSION_MAX", "libseccomp"]);
    assert!(lines[3].1.parse::<u32>().unwrap() >= 3);
}
