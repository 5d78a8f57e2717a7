//! The command line from outside: what it says, where, and with which exit status.
use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU32, Ordering};

/// A directory of this test's own, gone with it; all XDG variables lead into it.
struct Home(PathBuf);

impl Home {
    fn new() -> Home {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("tapline-cli-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        fs::create_dir_all(path.join("tapline")).unwrap();
        Home(path)
    }

    fn with_config(text: &str) -> Home {
        let home = Home::new();
        fs::write(home.0.join("tapline/config.toml"), text).unwrap();
        home
    }

    fn tapline(&self, words: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tapline"));
        command.args(words).env_clear().env("PATH", "/usr/bin:/bin");
        for name in ["HOME", "XDG_CONFIG_HOME", "XDG_RUNTIME_DIR", "XDG_DATA_HOME"] {
            command.env(name, &self.0);
        }
        command.output().unwrap()
    }

    /// Standard output of a command line that must work.
    fn stdout(&self, words: &[&str]) -> String {
        let output = self.tapline(words);
        assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    fn plan(&self, words: &[&str]) -> serde_json::Value {
        let mut all = vec![words[0], "--dry-run=json"];
        all.extend(&words[1..]);
        serde_json::from_str(&self.stdout(&all)).unwrap()
    }

    /// The line on standard error of a command line that must fail with this status.
    fn refusal(&self, status: i32, words: &[&str]) -> String {
        let output = self.tapline(words);
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(status), "{words:?}: {stderr}");
        assert!(output.stdout.is_empty(), "{words:?}");
        let mut lines = stderr.lines();
        let line = lines.next().unwrap().to_owned();
        let rest: Vec<&str> = lines.collect();
        if status == 2 {
            assert!(rest.len() == 1 && rest[0].starts_with("try 'tapline "), "{words:?}: {stderr}");
        } else {
            assert!(rest.is_empty(), "{words:?}: {stderr}");
        }
        line
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[test]
fn a_command_line_that_makes_no_sense_is_one_line_and_2() {
    let home = Home::new();
    let cases: &[(&[&str], &str)] = &[
        (&["run", "--mtuu", "1"], "unknown option '--mtuu'; did you mean '--mtu'?"),
        (&["runn"], "unknown command 'runn'; did you mean 'run'?"),
        (&["run", "--net", "private", "--subnet", "10.1.2.3/24"], "did you mean 10.1.2.0/24?"),
        (&["run", "--net", "private", "--subnet", "10.1.2.0/26"], "too small"),
        (&["run", "--net", "private", "--subnet6", "fd00::/120"], "too small"),
        (&["run", "--net", "private", "--subnet", "127.0.0.0/24"], "loopback"),
        (&["run", "--net", "private", "--mac", "03:42:0a:00:02:64"], "multicast bit"),
        (&["run", "--net", "private", "--mac", "02:42:0a:00:02:02"], "the gateway has it"),
        (&["run", "--net", "private", "--mtu", "575"], "too small"),
        (&["run", "--net", "private", "--mtu", "65521"], "too large"),
        (&["run", "--net", "private", "--mtu", "1279"], "1280 bytes at least"),
        (&["run", "--net", "private", "--ipv4-only", "--ipv6-only"], "contradicts"),
        (&["run", "--net", "private", "--ipv4-only", "--subnet6", "fd00::/64"], "contradicts"),
        (&["run", "--ifname", "sixteen-bytes---"], "longer than 15 bytes"),
        (&["run", "--ifname", "a/b"], "not allowed"),
        (&["run", "--ifname", "lo"], "loopback interface"),
        (&["run", "--name", "a_b"], "not a name"),
        (&["run", "--hostname", "a..b"], "not a hostname"),
        (&["run", "--add-host", "db"], "there is no colon"),
        (&["run", "--dns", "nowhere"], "not an address"),
        (&["run", "--no-dns", "--dns", "192.0.2.1"], "contradicts"),
        (&["run", "--net", "private", "--udp-timeout", "0"], "at least a second"),
        (
            &["run", "--net", "private", "--outbound-addr", "192.0.2.1", "--outbound-addr", "192.0.2.2"],
            "second IPv4 address",
        ),
        (&["run", "--net", "what_now"], "it holds another character; possible are bridge, private, none, host"),
        (&["run", "--net", "container"], "container:web"),
        (&["run", "--net", "container:a/b"], "a sandbox's name or id"),
        (&["run", "--net", "ns:"], "ns:/proc/4711/ns/net"),
        (&["run", "--net", "ip=10.0.0.1"], "write name=NETWORK,ip=10.0.0.1"),
        (&["run", "--net", "host", "--net", "a"], "'--net host' goes with no other network"),
        (&["run", "--net", "a", "--net", "none"], "'--net none' goes with no other network"),
        (&["run", "--net", "a", "--net", "a"], "given twice"),
        (
            &["run", "--net", "a", "--mtu", "1500"],
            "take '--net private', or make a network with `tapline network create",
        ),
        (&["run", "--net", "a", "--subnet6", "fd01::/64"], "network create --subnet`"),
        (&["run", "--net", "a", "--outbound-interface", "eth0"], "as a whole, and `a` is shared: take '--net private'"),
        (&["run", "--net", "a", "--pcap", "a.pcap"], "'--pcap' belongs to a network as a whole"),
        (&["attach", "--net", "a", "--pcap", "a.pcap", "1"], "'--pcap' belongs to a network as a whole"),
        (&["run", "--net", "none", "--pcap", "a.pcap"], "'--pcap' has no effect with '--net none'"),
        (&["run", "--net", "a", "--link-kind", "none"], "leaves out the interface"),
        (&["attach", "--net", "a", "--link-kind", "none", "1"], "leaves out the interface"),
        (&["run", "--net", "a", "--network-alias", "localhost"], "what each sandbox calls itself"),
        (&["run", "--net", "a", "--link", "web:LocalHost"], "what each sandbox calls itself"),
        (&["run", "--net", "a", "--default-net", "b"], "not on: add '--net b'"),
        (&["run", "--net", "a", "--on", "b"], "not on: add '--net b'"),
        (&["run", "--net", "a", "--ip", "fd00::1"], "--ip6 is for those"),
        (&["run", "--net", "a", "--ip6", "10.0.0.1"], "--ip is for those"),
        (&["run", "--net", "name=a,ip=10.0.0.2", "--ip", "10.0.0.1"], "leave one of them out"),
        (&["run", "--net", "a", "--net", "name=b,ifname=x0", "--ifname", "x0"], "both be called x0"),
        (&["run", "--net", "private", "--link", "db"], "'--link' has no effect with '--net private', it is for shared"),
        (&["run", "--net", "none", "--network-alias", "db"], "it is for shared networks"),
        (&["run", "--net", "a", "--link", "db:x", "--link", "cache:x"], "x already leads to db"),
        (&["run", "--net", "a", "--name", "web", "--link", "db:web"], "take another alias"),
        (
            &["run", "--net", "container:web", "-p", "80"],
            "'-p' has no effect with '--net container:web': the ports there",
        ),
        (&["run", "--net", "container:web", "--hostname", "a"], "which takes it from the other sandbox"),
        (&["run", "--net", "container:web", "--add-host", "a:192.0.2.1"], "which takes it from the other sandbox"),
        (&["run", "--net", "container:web", "--dns", "192.0.2.1"], "no effect with '--net container:web'"),
        (&["run", "--net", "container:web", "--map-user", "keep"], "whose user ids are those"),
        (&["run", "--net", "container:web", "--net", "a"], "'--net container:web' goes with no other network"),
        (&["run", "--net", "ns:/x", "--mtu", "1500"], "no effect with '--net ns:/x'"),
        (&["run", "-v", "-q"], "contradicts"),
        (&["run", "--no-dns", "--dns-option", "rotate"], "contradicts"),
        (&["run", "--net", "none", "--mtu", "1500"], "'--mtu' has no effect with '--net none'"),
        (&["run", "--net", "none", "--dns-option", "rotate"], "no effect"),
        (&["run", "--net", "host", "--host-loopback=false"], "no effect"),
        (&["run", "--net", "host", "--dns", "192.0.2.1"], "no effect"),
        (&["run", "--host-loopback=maybe"], "'maybe' is no value"),
        (&["attach", "--dns-option", "rotate", "1"], "unknown option '--dns-option'"),
        (&["attach"], "something is missing"),
        (&["attach", "0"], "'0' is no value"),
        (&["attach", "1", "--netns", "/proc/1/ns/net"], "contradicts"),
        (&["exec", "name"], "something is missing"),
        (&["run", "-p", "8080:80", "-p", "127.0.0.1:8080:81"], "both want tcp port 8080 of the host"),
        (&["run", "-p", "auto", "-p", "auto:all"], "'-p auto' contradicts '-p auto:all'"),
        (&["run", "--proxy-protocol", "v1"], "'--proxy-protocol' has no effect"),
        (&["run", "--proxy-protocol", "v1", "-p", "53/udp"], "'--proxy-protocol' has no effect"),
        (&["run", "--proxy-protocol", "v3", "-p", "80"], "possible are v1, v2"),
        (&["run", "--reach", "1", "--reach", "2:1"], "both want tcp port 1 of the sandbox"),
        (&["run", "-p", ""], "'' is no port spec: it is empty"),
        (&["run", "--net", "host", "-p", "80"], "own ports are the host's: leave -p out"),
        (&["run", "--net", "none", "--reach", "80"], "'--reach' has no effect with '--net none': nothing leads"),
        (&["publish", "web", "80", "--proxy-protocol"], "needs a value"),
        (&["publish", "web", "8080:80", "8080:81"], "both want tcp port 8080"),
        (&["publish", "web"], "something is missing"),
        (&["network"], "a command is missing: create, ls"),
        (&["network", "creat"], "did you mean 'create'?"),
        (&["network", "create"], "something is missing"),
        (&["network", "create", "a_b"], "not a name"),
        (&["network", "create", "host"], "`host` means something else for --net"),
        (&["network", "create", "x", "--subnet", "10.9.0.1/24"], "did you mean 10.9.0.0/24?"),
        (&["network", "create", "x", "--subnet", "10.9.0.0/31"], "too small"),
        (&["network", "create", "x", "--subnet", "127.0.0.0/24"], "loopback"),
        (&["network", "create", "x", "--subnet", "10.9.0.0/24", "--subnet", "10.8.0.0/24"], "twice for one family"),
        (&["network", "create", "x", "--subnet", "10.9.0.0/24", "--no-ipv4"], "contradicts '--no-ipv4'"),
        (&["network", "create", "x", "--subnet", "10.9.0.0/24", "--gateway", "10.8.0.1"], "is outside of the subnet"),
        (&["network", "create", "x", "--subnet", "10.9.0.0/24", "--gateway", "10.9.0.255"], "broadcast address"),
        (&["network", "create", "x", "--subnet", "10.9.0.0/24", "--ip-range", "10.8.0.0/25"], "not within the subnet"),
        (&["network", "create", "x", "--gateway", "10.9.0.1"], "give --subnet too"),
        (&["network", "create", "x", "--ip-range", "fd00:9::/80"], "give --subnet too"),
        (&["network", "create", "x", "--no-ipv4", "--ipv6=false"], "needs an IPv4 subnet or an IPv6 subnet"),
        (&["network", "create", "x", "--mtu", "1000"], "1280 bytes at least"),
        (&["network", "create", "x", "--ipv6", "--no-ipv6"], "contradicts"),
        (&["network", "create", "x", "--label", "=y"], "the key is empty"),
        (&["network", "create", "x", "--driver", "macvlan"], "without privileges"),
        (&["network", "connect", "x"], "something is missing"),
        (&["network", "connect", "--ip", "::1", "x", "web"], "--ip6 is for those"),
        (&["network", "connect", "--mac", "03:42:0a:00:02:64", "x", "web"], "multicast bit"),
        (&["network", "rm"], "something is missing"),
        (&["inspect", "--get", "name", "--format", "table", "web"], "contradicts"),
        (&["unpublish", "web"], "something is missing"),
    ];
    for (words, expected) in cases {
        let line = home.refusal(2, words);
        assert!(line.starts_with("tapline: ") && line.contains(expected), "{words:?}: {line}");
    }
}

#[test]
fn a_bad_port_spec_is_shown_with_a_caret_and_2() {
    let home = Home::new();
    let cases: &[(&[&str], &str, &str)] = &[
        (&["run", "-p", "x8080:80"], "'x8080:80' is no port spec: 'x8080' is not a port number (1 to 65535)", "^^^^^"),
        (&["run", "-p", "0"], "'0' is not a port number", "^"),
        (&["run", "-p8080:65536"], "'65536' is not a port number", "     ^^^^^"),
        (&["attach", "-p", "89-80", "1"], "did you mean 80-89?", "^^^^^"),
        (&["run", "--publish=8000-8009:80-85"], "ranges of the same length", "^^^^^^^^^^^^^^^"),
        (&["run", "-p", "999.0.0.1:80:80"], "not an IPv4 address", "^^^^^^^^^"),
        (&["run", "-p", "[::1:80:80"], "not closed", "^^^^^^^^^^"),
        (&["run", "-p", "::1:8080:80"], "needs brackets: [::1]", "^^^"),
        (&["run", "-p", "80/sctp"], "tcp or udp", "   ^^^^"),
        (&["run", "-p", "80/udp,proxy=v1"], "not UDP", "       ^^^^^^^^"),
        (&["run", "--expose", "80:80"], "too many parts", "  ^^^"),
        (&["run", "--reach", "80-81"], "'80-81' is not a port number", "^^^^^"),
        (&["run", "--publish-from", "10.0.0.1/8"], "did you mean 10.0.0.0/8?", "^^^^^^^^^^"),
        (&["port", "web", "http"], "'http' is no port: ", "^^^^"),
        (&["publish", "web", "80", "x"], "'x' is no port spec", "^"),
        (&["unpublish", "web", "x"], "'x' is no port spec", "^"),
    ];
    for (words, fault, caret) in cases {
        let output = home.tapline(words);
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{words:?}: {stderr}");
        let lines: Vec<&str> = stderr.lines().collect();
        assert!(lines[0].starts_with("tapline: '") && lines[0].contains(fault), "{words:?}: {stderr}");
        assert_eq!(lines[2], format!("    {caret}"), "{words:?}: {stderr}");
        assert!(lines.len() == 4 && lines[3].starts_with("try 'tapline "), "{words:?}: {stderr}");
    }
}

#[test]
fn ports_are_in_the_plan() {
    let home = Home::new();
    let options = [
        "-p",
        "8080:80",
        "-p",
        "[::1]::53/udp",
        "-p",
        "81,proxy=v1",
        "-p",
        "auto",
        "--proxy-protocol",
        "v2",
        "-P",
        "--expose",
        "90-91",
        "--publish-from",
        "192.0.2.7",
        "--reach",
        "5432:15432",
        "--reach",
        "auto",
    ];
    for (verb, target) in [("run", "true"), ("attach", "1")] {
        let words: Vec<&str> = [verb].iter().chain(&options).chain(&[target]).copied().collect();
        let ports = home.plan(&words)["ports"].clone();
        assert_eq!(ports["publish"].as_array().unwrap().len(), 3);
        assert_eq!(ports["publish"][0]["text"], "8080:80");
        assert_eq!(ports["publish"][0]["host"], serde_json::json!({"first": 8080, "last": 8080}));
        let proxies: Vec<_> = ports["publish"].as_array().unwrap().iter().map(|spec| spec["proxy"].as_str()).collect();
        assert_eq!(proxies, [Some("v2"), None, Some("v1")]);
        assert_eq!(ports["auto"], "loopback");
        assert_eq!(ports["publish_exposed"], true);
        assert_eq!(ports["exposed_proxy"], "v2");
        assert_eq!(ports["from"], serde_json::json!(["192.0.2.7/32"]));
        assert_eq!(ports["reach"][0]["sandbox_port"], 15432);
        assert_eq!(ports["reach_auto"]["tcp"], true);
    }
    let words: Vec<&str> = ["run", "--dry-run"].iter().chain(&options).copied().collect();
    let text = home.stdout(&words);
    for expected in [
        "publish    port 8080 of all addresses of the host leads to 80/tcp, with a PROXY header (v2)",
        "publish    a free port of ::1 leads to 53/udp",
        "publish    free ports of all addresses of the host lead to 90-91/tcp",
        "publish    whatever the sandbox listens at, on the host's loopback",
        "clients    192.0.2.7/32 and the host's loopback",
        "reach      tcp port 5432 of the host's loopback, at 15432 of the sandbox's",
        "reach      whatever the host's loopback listens at, on the sandbox's",
    ] {
        assert!(text.contains(expected), "{expected}: {text}");
    }
    let text = home.stdout(&["run", "--dry-run", "-P"]);
    assert!(text.contains("warning    -P publishes what --expose names"), "{text}");
}

#[test]
fn ports_may_stand_in_the_file() {
    let home = Home::with_config("publish = [\"8080:80\", \"auto\"]\nexpose = 90\npublish-all = true\n");
    let ports = home.plan(&["run", "true"])["ports"].clone();
    assert_eq!((&ports["publish"][0]["text"], &ports["auto"]), (&"8080:80".into(), &"loopback".into()));
    assert_eq!(ports["publish_exposed"], true);
    let ports = home.plan(&["attach", "-p", "81", "--publish-all=false", "1"])["ports"].clone();
    assert_eq!(ports["publish"].as_array().unwrap().len(), 1);
    assert_eq!(ports["publish_exposed"], false);
    // For other calls, as everything of the network.
    let ports = home.plan(&["run", "--net", "host", "true"])["ports"].clone();
    assert_eq!(ports["publish"], serde_json::json!([]));
}

#[test]
fn a_private_network_without_options_is_slirps_layout() {
    let plan = Home::new().plan(&["run", "--net", "private", "--", "true"]);
    assert_eq!(plan["network"]["v4"]["subnet"], "10.0.2.0/24");
    assert_eq!(plan["network"]["v4"]["gateway"], "10.0.2.2");
    assert_eq!(plan["network"]["v6"]["sandbox"], "fd00::100");
    assert_eq!(plan["network"]["mtu"], 65520);
    assert_eq!(plan["network"]["host_loopback_allowed"], false);
    assert_eq!(plan["interface"]["mac"], "02:42:0a:00:02:64");
    let name = plan["name"].as_str().unwrap();
    assert_eq!(name, format!("true-{}", &plan["id"].as_str().unwrap()[..8]));
    assert_eq!(plan["names"]["hostname"], name);
}

#[test]
fn a_run_without_options_is_on_the_network_that_all_share() {
    let home = Home::new();
    let plan = home.plan(&["run", "true"]);
    assert_eq!((&plan["mode"], &plan["joins"][0]["network"]), (&"bridge".into(), &"bridge".into()));
    assert_eq!(plan["joins"].as_array().unwrap().len(), 1);
    let text = home.stdout(&["run", "--dry-run", "true"]);
    assert!(text.contains("network    bridge, shared: the lowest free addresses"), "{text}");
    let line = home.refusal(2, &["run", "--mtu", "1500", "true"]);
    assert!(line.contains("`bridge` is shared: take '--net private', or make a network with"), "{line}");
}

#[test]
fn shared_networks_are_in_the_plan() {
    let home = Home::new();
    let words = [
        "--net",
        "front",
        "--net",
        "name=back,ip=10.9.0.7,alias=store",
        "--ip",
        "10.8.0.7",
        "--ip6",
        "fd08::7",
        "--mac",
        "02:00:00:00:00:07",
        "--network-alias",
        "App",
        "--ifname",
        "front0",
        "--default-net",
        "back",
        "--on",
        "front",
        "--link",
        "db:sql",
        "--host-loopback",
        "-p",
        "8080:80",
    ];
    let plan = home.plan(&["run"].iter().chain(&words).chain(&["true"]).copied().collect::<Vec<_>>());
    assert_eq!(plan["mode"], "bridge");
    let join = |network, v4, v6, mac, aliases, ifname| serde_json::json!({"network": network, "v4": v4, "v6": v6, "mac": mac, "aliases": aliases, "ifname": ifname});
    let front =
        join("front", Some("10.8.0.7"), Some("fd08::7"), Some("02:00:00:00:00:07"), ["app"].as_slice(), Some("front0"));
    let back = join("back", Some("10.9.0.7"), None, None, ["app", "store"].as_slice(), None);
    assert_eq!(plan["joins"], serde_json::json!([front, back]));
    assert_eq!((&plan["default_net"], &plan["publish_on"]), (&"back".into(), &"front".into()));
    assert_eq!(plan["links"], serde_json::json!([{"sandbox": "db", "alias": "sql"}]));
    assert_eq!(plan["access"], serde_json::json!({"host_loopback": true, "metadata": false}));
    let text = home.stdout(&["run", "--dry-run"].iter().chain(&words).copied().collect::<Vec<_>>());
    for expected in [
        "network    front, shared: 10.8.0.7, fd08::7, 02:00:00:00:00:07, interface front0, also called app",
        "network    back, shared: 10.9.0.7, also called app, store",
        "route      through back",
        "link       to db, called sql",
        "published  towards its address on front",
    ] {
        assert!(text.contains(expected), "{expected}: {text}");
    }
}

#[test]
fn networks_may_stand_in_the_file_and_what_does_not_fit_a_call_is_for_others() {
    let home = Home::with_config(
        "[run]\nnet = [\"front\", \"back\"]\ndefault-net = \"back\"\nmtu = 576\nmap-user = \"keep\"\n",
    );
    let plan = home.plan(&["run", "true"]);
    assert_eq!((plan["joins"].as_array().unwrap().len(), &plan["default_net"]), (2, &"back".into()));
    let plan = home.plan(&["run", "--net", "side", "true"]);
    assert_eq!((&plan["joins"][0]["network"], plan["default_net"].is_null()), (&"side".into(), true));
    let plan = home.plan(&["run", "--net", "container:web", "true"]);
    assert_eq!((&plan["mode"], &plan["container"]), (&"container".into(), &serde_json::json!({"sandbox": "web"})));
    let text = home.stdout(&["run", "--dry-run", "--net", "ns:/run/netns/a"]);
    assert!(text.contains("network    the namespace at /run/netns/a"), "{text}");
}

#[test]
fn dockers_spellings_are_understood() {
    let plan = Home::new().plan(&["run", "--network", "a", "--net-alias", "db", "--network", "b", "true"]);
    let names: Vec<&str> = plan["joins"].as_array().unwrap().iter().map(|j| j["network"].as_str().unwrap()).collect();
    assert_eq!(names, ["a", "b"]);
    assert_eq!(plan["joins"][0]["aliases"], serde_json::json!(["db"]));
}

#[test]
fn a_namespace_can_get_a_network_of_its_own_or_shared_ones() {
    let home = Home::with_config("[run]\nnet = \"none\"\n");
    let plan = home.plan(&["attach", "1"]);
    assert_eq!((&plan["mode"], plan["joins"].as_array().unwrap().len()), (&"private".into(), 0));
    let plan = home.plan(&["attach", "--net", "front", "--net", "back", "--default-net", "back", "1"]);
    assert_eq!((&plan["mode"], &plan["joins"][1]["network"]), (&"bridge".into(), &"back".into()));
    assert_eq!(plan["default_net"], "back");
    for (words, part) in [
        (&["attach", "--net", "none", "1"][..], "'--net none' is for `tapline run`"),
        (&["attach", "--net", "container:web", "1"], "'--net container:web' is for `tapline run`"),
        (&["attach", "--ip", "192.0.2.7", "1"], "'--ip' has no effect with '--net private'"),
        (&["attach", "--net", "front", "--mtu", "1500", "1"], "'--mtu' belongs to a network as a whole"),
        (&["attach", "--net", "front", "--no-dns", "1"], "'--no-dns' has no effect on a shared network"),
    ] {
        let line = home.refusal(2, words);
        assert!(line.contains(part), "{words:?}: {line}");
    }
    // What a file says for all calls, and a namespace cannot be given, is for the others.
    assert_eq!(Home::with_config("net = \"none\"\n").plan(&["attach", "1"])["mode"], "private");
}

#[test]
fn the_way_out_names_the_command_that_was_typed() {
    for (words, verbs) in [
        (&["network", "create", "a_b"][..], "network create"),
        (&["network", "create", "--mtu", "7", "a"], "network create"),
        (&["network", "list", "--format", "x"], "network ls"),
        (&["run", "--ip", "nowhere"], "run"),
    ] {
        let output = Home::new().tapline(words);
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(stderr.lines().nth(1), Some(&*format!("try 'tapline {verbs} --help'")), "{words:?}");
    }
}

#[test]
fn options_after_the_command_are_the_commands() {
    let plan = Home::new().plan(&["run", "ls", "--mtu", "1"]);
    assert_eq!(plan["command"], serde_json::json!(["ls", "--mtu", "1"]));
}

#[test]
fn the_plan_for_people_names_the_addresses() {
    let text = Home::new().stdout(&["attach", "--dry-run", "--udp-timeout", "90s", "1"]);
    for expected in ["process 1", "10.0.2.100", "fd00::100", "tap0", "host.tapline.internal is 10.0.2.2", "RFC 4787"] {
        assert!(text.contains(expected), "{expected}: {text}");
    }
}

#[test]
fn the_file_says_where_frames_are_captured_and_that_there_is_no_interface_for_private_networks_only() {
    let home = Home::with_config("pcap = \"/tmp/a.pcap\"\nlink-kind = \"none\"\n");
    let plan = home.plan(&["run", "--net", "private", "true"]);
    assert_eq!((&plan["pcap"], &plan["interface"]["link"]), (&"/tmp/a.pcap".into(), &"none".into()));
    let plan = home.plan(&["run", "--net", "a", "true"]);
    assert_eq!((&plan["pcap"], &plan["interface"]["link"]), (&serde_json::Value::Null, &"auto".into()));
    let text = home.stdout(&["attach", "--dry-run", "1"]);
    for expected in ["every frame to /tmp/a.pcap", "no interface but lo"] {
        assert!(text.contains(expected), "{expected}: {text}");
    }
}

#[test]
fn the_command_line_wins_over_the_file() {
    let home = Home::with_config("mtu = 1500\nipv4-only = true\ndns = [\"192.0.2.1\"]\n[run]\nmtu = 1400\n");
    assert_eq!(home.plan(&["run", "--net", "private", "true"])["network"]["mtu"], 1400);
    assert_eq!(home.plan(&["attach", "1"])["network"]["mtu"], 1500);
    let plan = home.plan(&["run", "--net", "private", "--mtu", "9000", "--dns", "192.0.2.9", "true"]);
    assert_eq!(plan["network"]["mtu"], 9000);
    assert_eq!(plan["names"]["servers"], serde_json::json!(["192.0.2.9"]));
    let plan = home.plan(&["run", "--net", "private", "--ipv6-only", "true"]);
    assert!(plan["network"]["v4"].is_null() && plan["network"]["v6"].is_object());
}

#[test]
fn what_the_file_has_on_can_be_switched_off() {
    let home = Home::with_config("host-loopback = true\nipv4-only = true\nsubnet6 = \"fd01::/64\"\nquiet = true\n");
    // The file contradicts itself, which is not forgiven.
    let line = home.refusal(125, &["run", "--net", "private", "--dry-run", "true"]);
    assert!(line.contains("config.toml: ") && line.contains("contradicts"), "{line}");
    let plan =
        home.plan(&["run", "--net", "private", "--ipv4-only=false", "--host-loopback=false", "--quiet=false", "true"]);
    assert_eq!(plan["network"]["host_loopback_allowed"], false);
    assert_eq!(plan["network"]["v6"]["subnet"], "fd01::/64");
    assert!(plan["network"]["v4"].is_object());
    assert_eq!(plan["logging"]["verbosity"], 0);
    let plan = home.plan(&["run", "--net", "private", "--ipv6-only", "--host-loopback", "-v", "true"]);
    assert_eq!(plan["network"]["host_loopback_allowed"], true);
    assert!(plan["network"]["v4"].is_null());
    assert_eq!(plan["logging"]["verbosity"], 1);
}

#[test]
fn what_the_file_says_of_a_network_does_not_hinder_a_run_without() {
    let home = Home::with_config("mtu = 1500\ndns-option = \"rotate\"\n");
    assert_eq!(home.plan(&["run", "--net", "none", "true"])["mode"], "none");
    assert_eq!(home.plan(&["attach", "1"])["network"]["mtu"], 1500);
    let home = Home::with_config("[run]\nnet = \"none\"\n");
    assert!(home.refusal(2, &["run", "--mtu", "1500", "true"]).contains("no effect with '--net none'"));
}

#[test]
fn search_domains_are_those_asked_for_or_the_hosts() {
    let home = Home::new();
    for verb in [&["run", "true"][..], &["attach", "1"]] {
        let search = |options: &[&str]| {
            let words: Vec<&str> = verb[..1].iter().chain(options).chain(&verb[1..]).copied().collect();
            home.plan(&words)["names"]["search"].clone()
        };
        assert!(search(&[]).is_null());
        assert_eq!(search(&["--dns-search", "."]), serde_json::json!([]));
        assert_eq!(search(&["--dns-search", "example.org"]), serde_json::json!(["example.org"]));
    }
}

#[test]
fn the_gateway_is_nobodys_subcommand() {
    let home = Home::new();
    assert!(home.refusal(125, &["gateway"]).contains("started by tapline itself"));
    let completions = home.stdout(&["completions", "bash"]);
    assert!(completions.contains("tapline,run)") && !completions.contains("tapline,gateway)"));
}

#[test]
fn a_mistake_in_the_file_is_one_line_and_125() {
    let home = Home::with_config("# comment\nmtuu = 1500\n");
    let line = home.refusal(125, &["run", "--dry-run", "true"]);
    assert!(line.ends_with("config.toml:2: unknown key `mtuu`; did you mean `mtu`?"), "{line}");
}

#[test]
fn nobody_of_that_name_is_one_line_and_125() {
    for words in [
        &["stop", "nobody"][..],
        &["inspect", "nobody"],
        &["exec", "nobody", "--", "true"],
        &["port", "nobody"],
        &["publish", "nobody", "80"],
        &["unpublish", "nobody", "80"],
    ] {
        assert!(Home::new().refusal(125, words).contains("nobody"));
    }
}

#[test]
fn a_runtime_directory_that_is_set_to_nothing_is_none() {
    let home = Home::new();
    fs::write(home.0.join("tapline/file"), "the caller's own\n").unwrap();
    for (runtime, is_said) in [("", false), (".", true)] {
        let output = Command::new(env!("CARGO_BIN_EXE_tapline"))
            .args(["run", "--net", "none", "--", "cat", "tapline/file"])
            .current_dir(&home.0)
            .env("XDG_RUNTIME_DIR", runtime)
            .env("XDG_CONFIG_HOME", "/nonexistent")
            .output()
            .unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!(String::from_utf8_lossy(&output.stdout), "the caller's own\n", "{errors}");
        assert_eq!(errors.contains("XDG_RUNTIME_DIR"), is_said, "{errors}");
    }
}

#[test]
fn help_and_completions_are_printed() {
    let home = Home::new();
    assert!(home.stdout(&[]).contains("tapline run -- CMD"));
    let (short, long) = (home.stdout(&["run", "-h"]), home.stdout(&["run", "--help"]));
    assert!(long.len() > short.len() && long.contains("Exit status:"));
    for shell in ["bash", "zsh", "fish"] {
        assert!(home.stdout(&["completions", shell]).contains("host-loopback"), "{shell}");
    }
}

#[test]
fn a_network_is_made_shown_and_removed() {
    let home = Home::new();
    let id = home.stdout(&["network", "create", "--subnet", "10.9.0.0/24", "--internal", "--label", "a.b=c", "db"]);
    let options = ["--subnet", "fd00:9::/64", "--no-ipv4", "--icc=false", "--mtu", "1500", "six"];
    home.stdout(&[&["network", "create"], &options[..]].concat());
    assert_eq!(home.stdout(&["network", "inspect", "--get", "id", "db"]), id);
    assert_eq!(home.stdout(&["network", "inspect", "--get", "ipv4.gateway", id.trim()]), "10.9.0.1\n");
    assert_eq!(home.stdout(&["network", "inspect", "--get", "labels.a.b", "db"]), "c\n");
    assert_eq!(home.stdout(&["network", "inspect", "--get", "mtu", "six", "db"]), "1500\n65520\n");
    let both: serde_json::Value = serde_json::from_str(&home.stdout(&["network", "inspect", "db", "six"])).unwrap();
    assert_eq!((&both[0]["internal"], &both[1]["icc"]), (&true.into(), &false.into()));
    assert_eq!((&both[0]["driver"], &both[1]["ipv4"]), (&"bridge".into(), &serde_json::Value::Null));
    let rows = home.stdout(&["network", "ls"]);
    assert_eq!(rows.lines().count(), 3);
    assert!(rows.contains("10.9.0.0/24,fd") && rows.contains("internal") && rows.contains("no icc"), "{rows}");
    let cases: &[(&[&str], &str)] = &[
        (&["network", "create", "db"], "there is a network `db` already"),
        (&["network", "create", "--subnet", "10.0.0.0/8", "x"], "overlaps 10.9.0.0/24 of the network `db`"),
        (&["network", "inspect", "nobody"], "there is no network `nobody`"),
        (&["network", "inspect", "--get", "ipv4.mask", "db"], "there are gateway, ip_range, subnet"),
        (&["network", "rm", "nobody"], "there is no network `nobody`"),
        (&["network", "rm", "bridge"], "cannot be removed"),
        (&["network", "connect", "db", "nobody"], "no sandbox has the name or id `nobody`"),
        (&["network", "disconnect", "db", "nobody"], "no sandbox has the name or id `nobody`"),
    ];
    for (words, expected) in cases {
        let line = home.refusal(125, words);
        assert!(line.contains(expected), "{words:?}: {line}");
    }
    home.stdout(&["network", "rm", "--force", "nobody"]);
    // One that cannot be removed does not keep the others.
    let output = home.tapline(&["network", "rm", "nobody", "six"]);
    assert_eq!((output.status.code(), output.stdout.as_slice()), (Some(125), &b"six\n"[..]));
    assert_eq!(home.stdout(&["network", "prune"]), "db\n");
    assert_eq!(home.stdout(&["network", "ls", "-q"]), "");
}

#[test]
fn a_broken_network_is_named_with_its_line_and_the_others_are_listed() {
    let home = Home::new();
    home.stdout(&["network", "create", "good"]);
    let file = home.0.join("tapline/networks/bad.toml");
    fs::write(&file, "icc = true\n[ipv4]\nsubnet = \"10.9.0.0/24\"\ngateway = \"10.8.0.1\"\n").unwrap();
    let output = home.tapline(&["network", "ls", "--format", "json"]);
    assert!(output.status.success());
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(stderr.contains("bad.toml:4: the gateway 10.8.0.1 is outside of the subnet 10.9.0.0/24"), "{stderr}");
    assert_eq!(serde_json::from_slice::<serde_json::Value>(&output.stdout).unwrap()["name"], "good");
}

#[test]
fn many_who_make_and_remove_networks_at_once_lose_nothing() {
    let home = Home::new();
    std::thread::scope(|scope| {
        for n in 0..24 {
            let home = &home;
            scope.spawn(move || {
                let (kept, gone) = (format!("kept-{n}"), format!("gone-{n}"));
                home.stdout(&["network", "create", &kept]);
                home.stdout(&["network", "create", &gone]);
                home.stdout(&["network", "rm", &gone]);
                // Of all who want the same name one gets it.
                home.tapline(&["network", "create", "same"]).status.success()
            });
        }
    });
    let listed = home.tapline(&["network", "ls", "--format", "json"]);
    assert!(listed.status.success() && listed.stderr.is_empty(), "{}", String::from_utf8_lossy(&listed.stderr));
    let networks: Vec<serde_json::Value> =
        String::from_utf8(listed.stdout).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(networks.len(), 25);
    for family in ["ipv4", "ipv6"] {
        let mut subnets: Vec<&str> = networks.iter().map(|one| one[family]["subnet"].as_str().unwrap()).collect();
        subnets.sort_unstable();
        subnets.dedup();
        assert_eq!(subnets.len(), 25, "two have one subnet: {subnets:?}");
    }
    // Nothing half written is left.
    assert_eq!(fs::read_dir(home.0.join("tapline/networks")).unwrap().count(), 25);
}

#[test]
fn link_as_makes_a_link_that_is_called_and_says_what_to_do_next() {
    let home = Home::new();
    let directory = fs::canonicalize(&home.0).unwrap();
    let said = home.stdout(&["link-as", "slirp4netns", home.0.to_str().unwrap()]);
    let link = directory.join("slirp4netns");
    let own = fs::canonicalize(env!("CARGO_BIN_EXE_tapline")).unwrap();
    assert_eq!(fs::read_link(&link).unwrap(), own);
    for expected in [
        format!("network_cmd_path = \"{}\"", link.display()),
        format!("PATH={}:$PATH", directory.display()),
        format!("--slirp4netns-binary={}", link.display()),
    ] {
        assert!(said.contains(&expected), "{expected}: {said}");
    }
    let version = Command::new(&link).arg("--version").output().unwrap();
    assert!(String::from_utf8_lossy(&version.stdout).starts_with("slirp4netns version "));
    // Again, and through the link itself.
    home.stdout(&["link-as", "slirp4netns", home.0.to_str().unwrap()]);
    assert!(home.stdout(&["link-as", "pasta", home.0.to_str().unwrap()]).contains("helper_binaries_dir = ["));
    assert_eq!(fs::read_link(directory.join("pasta")).unwrap(), own);
}

#[test]
fn link_as_leaves_what_is_not_its_own() {
    let home = Home::new();
    fs::write(home.0.join("pasta"), "theirs").unwrap();
    let line = home.refusal(125, &["link-as", "pasta", home.0.to_str().unwrap()]);
    assert!(line.contains("is no link to tapline: remove it"), "{line}");
    assert_eq!(fs::read_to_string(home.0.join("pasta")).unwrap(), "theirs");
    let line = home.refusal(125, &["link-as", "pasta", home.0.join("nowhere").to_str().unwrap()]);
    assert!(line.contains("cannot use the directory"), "{line}");
    let line = home.refusal(2, &["link-as", "passt", home.0.to_str().unwrap()]);
    assert!(line.contains("slirp4netns"), "{line}");
}
