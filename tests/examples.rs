//! The examples are shell that parses, and those that need nothing but this package and Debian's essential programs do
//! what they say.
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn examples() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("examples")
}

/// A program that finds tapline, with directories of its own for configuration and state.
fn command(program: impl AsRef<std::ffi::OsStr>) -> (Command, Scratch) {
    let scratch = Scratch::new();
    let mut command = Command::new(program);
    command
        .env("TAPLINE", env!("CARGO_BIN_EXE_tapline"))
        .env("XDG_RUNTIME_DIR", &scratch.0)
        .env("XDG_CONFIG_HOME", &scratch.0)
        .env("XDG_DATA_HOME", &scratch.0);
    (command, scratch)
}

struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Scratch {
        use std::os::unix::fs::DirBuilderExt;
        use std::sync::atomic::{AtomicU32, Ordering};
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("tapline-examples-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        std::fs::DirBuilder::new().mode(0o700).create(&path).unwrap();
        Scratch(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// What a program that must succeed has printed.
fn said(output: &Output) -> String {
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {errors}", output.status);
    String::from_utf8(output.stdout.clone()).unwrap()
}

#[test]
fn every_script_is_executable_and_parses() {
    use std::os::unix::fs::PermissionsExt;
    let scripts: Vec<PathBuf> = std::fs::read_dir(examples())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "sh"))
        .collect();
    assert_eq!(scripts.len(), 6);
    for script in scripts {
        let checked = Command::new("sh").arg("-n").arg(&script).output().unwrap();
        assert!(checked.status.success(), "{}: {}", script.display(), String::from_utf8_lossy(&checked.stderr));
        assert!(script.metadata().unwrap().permissions().mode() & 0o111 == 0o111, "{}", script.display());
    }
}

#[test]
fn a_test_suite_finds_nothing_but_lo() {
    let (mut script, _scratch) = command(examples().join("offline-tests.sh"));
    let text = said(&script.args(["cat", "/proc/net/dev"]).output().unwrap());
    let interfaces: Vec<&str> = text.lines().filter_map(|line| Some(line.split_once(':')?.0.trim())).collect();
    assert_eq!(interfaces, ["lo"]);
    let (mut script, _scratch) = command(examples().join("offline-tests.sh"));
    assert_eq!(script.args(["sh", "-c", "exit 7"]).status().unwrap().code(), Some(7));
}

#[test]
fn a_namespace_of_unshare_gets_an_interface_and_a_route() {
    let (mut script, _scratch) = command(examples().join("attach-to-unshare.sh"));
    let text = said(&script.output().unwrap());
    assert!(text.lines().any(|line| line.trim_start().starts_with("tap0:")), "{text}");
    // The default route: gateway 10.0.2.2, as the kernel prints it.
    let number = format!("{:08X}", u32::from_ne_bytes([10, 0, 2, 2]));
    assert!(text.lines().any(|line| line.contains(&format!("tap0\t00000000\t{number}"))), "{text}");
}

#[test]
fn the_tour_shows_three_networks() {
    // target/debug/deps/examples-… stands beside target/debug/examples/tour, which `cargo test` builds too.
    let built = std::env::current_exe().unwrap();
    let tour = built.ancestors().nth(2).unwrap().join("examples/tour");
    assert!(tour.exists(), "{} is missing: cargo build --examples", tour.display());
    let (mut tour, _scratch) = command(tour);
    let text = said(&tour.output().unwrap());
    let stops: Vec<&str> = text.split("$ tapline run").skip(1).collect();
    let [closed, open, none] = stops[..] else { panic!("{text}") };
    // A kernel without IPv6 has none inside either.
    let v6 = if Path::new("/proc/sys/net/ipv6").exists() { "fd00::100\n" } else { "IPv6" };
    for stop in [closed, open] {
        for part in ["interfaces  lo, tap0\n", "10.0.2.100\n", v6, "DNS         10.0.2.3, fd00::3\n"] {
            assert!(stop.contains(part), "{part}: {text}");
        }
    }
    assert!(none.contains("interfaces  lo\n") && none.contains("DNS         none\n"), "{text}");
    let has_page = |stop: &str| stop.contains("hello from the host");
    assert_eq!([closed, open, none].map(has_page), [false, true, false], "{text}");
}
