//! Each command line of the README is run, each flag and address is one that there is.
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

const README: &str = include_str!("../README.md");

/// Addresses that are no part of the default network, and why they stand there.
const OTHER_ADDRESSES: [(&str, &str); 6] = [
    ("127.0.0.1", "the host's loopback"),
    ("::1", "the host's loopback"),
    ("169.254.169.254", "the metadata service of most clouds"),
    ("192.0.2.7", "for documentation (RFC 5737)"),
    ("192.0.2.53", "for documentation (RFC 5737)"),
    ("192.168.7.0", "a subnet that somebody may choose (RFC 1918)"),
];

/// The command lines of the console blocks, without the prompt.
fn command_lines() -> Vec<Vec<&'static str>> {
    let lines: Vec<_> = README
        .lines()
        .filter_map(|line| line.strip_prefix("$ tapline "))
        .map(|line| line.split_whitespace().collect())
        .collect();
    assert!(lines.len() >= 15, "the README has lost its examples");
    lines
}

/// A runtime directory of this test's own, gone with it.
struct Home(PathBuf);

impl Home {
    fn new() -> Home {
        use std::os::unix::fs::DirBuilderExt;
        let path = std::env::temp_dir().join(format!("tapline-readme-{}", std::process::id()));
        std::fs::DirBuilder::new().mode(0o700).create(&path).unwrap();
        Home(path)
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tapline"));
        for name in ["XDG_RUNTIME_DIR", "XDG_CONFIG_HOME", "XDG_DATA_HOME"] {
            command.env(name, &self.0);
        }
        command.args(words).stdin(Stdio::null());
        command
    }

    fn run(&self, words: &[&str]) -> String {
        let Output { status, stdout, stderr } = self.command(words).output().unwrap();
        assert!(status.success(), "tapline {words:?}: {status}: {}", String::from_utf8_lossy(&stderr));
        String::from_utf8(stdout).unwrap()
    }

    /// A sandbox that waits, and the PID of its first process.
    fn sandbox(&self, name: &str, options: &[&str]) -> (Sandbox, String) {
        let words: Vec<&str> =
            ["run", "--name", name].iter().chain(options).chain(&["--", "sleep", "1000"]).copied().collect();
        let sandbox = Sandbox(self.command(&words).stdout(Stdio::null()).spawn().unwrap());
        let mut pid = None;
        until(|| {
            let listed = self.run(&["ps", "--format", "json"]);
            let entries = listed.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
            pid = entries.filter(|entry| entry["name"] == name).find_map(|entry| entry["pid"].as_i64());
            // `exec` works once the sandbox is made.
            pid.is_some() && self.command(&["exec", name, "--", "true"]).output().unwrap().status.success()
        });
        (sandbox, pid.unwrap().to_string())
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

struct Sandbox(Child);

impl Drop for Sandbox {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn until(mut is_so: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(30);
    while !is_so() {
        assert!(Instant::now() < end, "not within 30 s");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn every_command_line_works() {
    let home = Home::new();
    let (mut web, _) = home.sandbox("web", &[]);
    let (mut bare, bare_pid) = home.sandbox("bare", &["--net", "none"]);
    let mut published = false;
    for words in command_lines() {
        match words[0] {
            // As it is, up to the command, which may need the internet; then with another.
            "run" => {
                let options = words.iter().position(|word| *word == "--").unwrap_or(words.len());
                let dry: Vec<&str> = ["run", "--dry-run"].iter().chain(&words[1..]).copied().collect();
                assert!(home.run(&dry).contains("sandbox "), "{words:?}");
                let real: Vec<&str> = words[..options].iter().chain(&["--", "true"]).copied().collect();
                if wanted_ports(&words).iter().all(|port| is_free(*port)) {
                    home.run(&real);
                }
            }
            "attach" => {
                assert!(!home.run(&["exec", "bare", "--", "cat", "/proc/net/dev"]).contains("tap0"));
                let words: Vec<&str> =
                    words.iter().map(|word| if *word == "4711" { &bare_pid } else { *word }).collect();
                home.run(&words);
                assert!(home.run(&["exec", "bare", "--", "cat", "/proc/net/dev"]).contains("tap0"));
            }
            "network" => {
                let said = home.run(&words);
                let places = home.run(&["inspect", "web", "--get", "endpoints"]);
                match words[1] {
                    "create" | "rm" => {
                        let names = words[2..].iter().filter(|word| !word.starts_with("--"));
                        let listed = home.run(&["network", "ls"]);
                        for name in names {
                            assert_eq!(
                                listed.contains(&format!("{name} ")),
                                words[1] == "create",
                                "{words:?}: {listed}"
                            );
                        }
                    }
                    "connect" | "disconnect" => {
                        assert_eq!(places.contains(&format!("\"{}\"", words[2])), words[1] == "connect", "{places}");
                    }
                    "ls" | "inspect" => assert!(said.contains("10.176."), "{said}"),
                    other => panic!("nobody knows how to try `tapline network {other}`"),
                }
            }
            "exec" => assert!(home.run(&words).contains("host.tapline.internal")),
            "ps" | "inspect" => assert!(home.run(&words).contains("web")),
            "port" => assert_eq!(home.run(&words), ""),
            "publish" => {
                published = is_free(8081);
                if published {
                    assert_eq!(home.run(&words).lines().next(), Some("81/tcp -> 0.0.0.0:8081"));
                }
            }
            "unpublish" if published => {
                home.run(&words);
                assert!(is_free(8081));
            }
            "unpublish" => {}
            "stop" => {
                home.run(&words);
                assert!(!web.0.wait().unwrap().success());
            }
            "link-as" => {
                let [_, tool, _] = words[..] else { panic!("{words:?}") };
                home.run(&["link-as", tool, home.0.to_str().unwrap()]);
                let version = Command::new(home.0.join(tool)).arg("--version").output().unwrap();
                assert!(version.status.success() && version.stdout.starts_with(tool.as_bytes()), "{version:?}");
            }
            "completions" => assert!(home.run(&words).contains("host-loopback")),
            other => panic!("nobody knows how to try `tapline {other}`"),
        }
    }
    // Whoever serves the other one ends with it.
    home.run(&["stop", "bare"]);
    bare.0.wait().unwrap();
    until(|| home.run(&["ps", "--format", "json"]).is_empty());
}

/// The host ports of a command line's `-p HOST:PORT`.
fn wanted_ports(words: &[&str]) -> Vec<u16> {
    let specs = words.windows(2).filter(|pair| pair[0] == "-p").map(|pair| pair[1]);
    specs.filter_map(|spec| spec.rsplit(':').nth(1)?.parse().ok()).collect()
}

/// Nobody on this machine has it, for either protocol.
fn is_free(port: u16) -> bool {
    std::net::TcpListener::bind(("0.0.0.0", port)).is_ok() && std::net::UdpSocket::bind(("0.0.0.0", port)).is_ok()
}

#[test]
fn every_flag_exists() {
    let description = tapline::cli::command();
    // cargo's, and the benchmark's; RootlessKit's and pasta's.
    let mut known: Vec<&str> = vec!["help", "release", "example", "path", "tool"];
    known.extend(["slirp4netns-binary", "disable-host-loopback", "config-net"]);
    assert!(include_str!("../bench/netbench.py").contains("\"--tool\""));
    let verbs = description.get_subcommands().flat_map(|verb| std::iter::once(verb).chain(verb.get_subcommands()));
    known.extend(verbs.flat_map(|verb| verb.get_arguments()).filter_map(|arg| arg.get_long()));
    // What stands behind `--` is other programs'.
    let ours = README.lines().map(|line| match line.split_once(" -- ") {
        Some((ours, _)) if line.starts_with("$ tapline ") => ours,
        _ => line,
    });
    for word in ours.flat_map(|line| line.split(|c: char| !c.is_ascii_alphanumeric() && c != '-')) {
        let Some(flag) = word.strip_prefix("--").filter(|flag| !flag.is_empty() && !flag.starts_with('-')) else {
            continue;
        };
        assert!(known.contains(&flag), "--{flag}");
    }
}

#[test]
fn every_address_is_the_plans_or_has_a_reason() {
    let v4 = tapline::plan::Ipv4Layout::slirp(tapline::plan::subnet::DEFAULT_SUBNET).unwrap();
    let v6 = tapline::plan::Ipv6Layout::slirp(tapline::plan::subnet::DEFAULT_SUBNET6).unwrap();
    let plans: [IpAddr; 6] =
        [v4.gateway.into(), v4.dns.into(), v4.sandbox.into(), v6.gateway.into(), v6.dns.into(), v6.sandbox.into()];
    let words = README.split(|c: char| !c.is_ascii_hexdigit() && !matches!(c, ':' | '.'));
    // `db:192.0.2.7` is a name and an address.
    let address = |word: &str| word.parse().or_else(|_| word.rsplit(':').next().unwrap_or_default().parse()).ok();
    let found: Vec<IpAddr> = words.filter_map(|word| address(word.trim_matches('.').trim_end_matches(':'))).collect();
    for address in plans {
        assert!(found.contains(&address), "the README does not name {address}");
    }
    for (other, why) in OTHER_ADDRESSES {
        assert!(found.contains(&other.parse().unwrap()), "{other} ({why}) is not in the README any more");
    }
    for address in found {
        let has_reason = OTHER_ADDRESSES.iter().any(|(other, _)| other.parse() == Ok(address));
        assert!(plans.contains(&address) || has_reason, "{address} is neither the plan's nor has it a reason");
    }
}

#[test]
fn every_path_of_the_project_exists() {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    for word in README.split(|c: char| c.is_whitespace() || c == '`') {
        let word = word.trim_end_matches(['.', ',', ';']);
        if ["man/", "examples/", "bench/"].iter().any(|directory| word.starts_with(directory)) {
            assert!(root.join(word).exists(), "{word}");
        }
    }
    assert!(README.contains("--example tour") && root.join("examples/tour.rs").exists());
}
