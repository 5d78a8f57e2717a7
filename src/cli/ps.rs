//! `tapline ps`.
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::{Args, ValueEnum};
use comfy_table::{Table, presets};

use super::error::Failure;
use super::output;
use crate::control::state::{SandboxState, StateDir};
use crate::plan::{Mode, Protocol, Published, Shared};

/// List the sandboxes that run
#[derive(Args, Debug)]
pub struct PsArgs {
    /// A table for people, or a JSON object on each line
    #[arg(long, value_name = "FORMAT", value_enum, default_value_t = Format::Table)]
    format: Format,
}

/// How a list is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// Aligned columns
    Table,
    /// A JSON object on each line
    Json,
}

impl PsArgs {
    /// Does it.
    pub fn execute(self) -> Result<i32, Failure> {
        let mut sandboxes = StateDir::open()?.list()?;
        sandboxes.sort_by(|a, b| (a.since, &a.name).cmp(&(b.since, &b.name)));
        let text = match self.format {
            #[expect(clippy::disallowed_methods, reason = "ages are shown against the time of day at the start")]
            Format::Table => table(&sandboxes, SystemTime::now()),
            Format::Json => json(&sandboxes).map_err(anyhow::Error::from)?,
        };
        output::print(&text)?;
        Ok(0)
    }
}

/// The word that `--net` has for it.
pub fn mode_word(mode: Mode) -> &'static str {
    match mode {
        Mode::Private => "private",
        Mode::Bridge => "bridge",
        Mode::None => "none",
        Mode::Host => "host",
        Mode::Container => "container",
    }
}

fn json(sandboxes: &[SandboxState]) -> serde_json::Result<String> {
    let mut lines = String::new();
    for sandbox in sandboxes {
        let addresses: Vec<String> = addresses(sandbox);
        let line = serde_json::json!({
            "name": sandbox.name, "id": sandbox.id, "pid": sandbox.pid, "mode": sandbox.mode,
            "networks": networks(sandbox), "addresses": addresses, "ports": sandbox.ports, "since": sandbox.since, "command": sandbox.command,
        });
        lines.push_str(&serde_json::to_string(&line)?);
        lines.push('\n');
    }
    Ok(lines)
}

/// On every network that it is on; where none is known, those of its state.
fn addresses(sandbox: &SandboxState) -> Vec<String> {
    let own = [(sandbox.v4, sandbox.v6)];
    let seats: Vec<_> = sandbox.endpoints.iter().map(|seat| (seat.endpoint.v4, seat.endpoint.v6)).collect();
    let all = if seats.is_empty() { &own[..] } else { &seats };
    all.iter().flat_map(|(v4, v6)| [v4.map(|ip| ip.to_string()), v6.map(|ip| ip.to_string())]).flatten().collect()
}

/// The networks' names, in the order of the interfaces.
fn networks(sandbox: &SandboxState) -> Vec<&str> {
    sandbox.endpoints.iter().map(|seat| seat.network.name.as_str()).collect()
}

/// The networks' names, or the mode where there are none.
fn network_column(sandbox: &SandboxState) -> String {
    match (networks(sandbox), &sandbox.container) {
        (none, Some(Shared::Sandbox(name))) if none.is_empty() => format!("container:{name}"),
        // It has been disconnected from all.
        (none, _) if none.is_empty() && sandbox.mode == Mode::Bridge => mode_word(Mode::None).to_owned(),
        (none, _) if none.is_empty() => mode_word(sandbox.mode).to_owned(),
        (some, _) => some.join(","),
    }
}

fn table(sandboxes: &[SandboxState], now: SystemTime) -> String {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING);
    table.set_header(["NAME", "ID", "PID", "NETWORK", "ADDRESSES", "PORTS", "SINCE", "COMMAND"]);
    for sandbox in sandboxes {
        let addresses = match addresses(sandbox) {
            none if none.is_empty() => "-".to_owned(),
            some => some.join(","),
        };
        table.add_row([
            sandbox.name.clone(),
            sandbox.id.clone(),
            sandbox.pid.map_or("-".to_owned(), |pid| pid.to_string()),
            network_column(sandbox),
            addresses,
            ports(&sandbox.ports),
            age(sandbox.since, now),
            shortened(&sandbox.command.join(" ")),
        ]);
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table.trim_fmt() + "\n"
}

/// Most groups of ports that a row has room for.
const MOST_PORTS: usize = 6;

/// As Docker writes them, neighbours as a range: `0.0.0.0:8000-8009->80-89/tcp`. A socket of both families counts as
/// two.
fn ports(published: &[Published]) -> String {
    let any = |v6: bool| if v6 { IpAddr::V6(Ipv6Addr::UNSPECIFIED) } else { IpAddr::V4(Ipv4Addr::UNSPECIFIED) };
    let mut all: Vec<(IpAddr, Protocol, u16, u16)> = published
        .iter()
        .flat_map(|p| {
            let also = p.dual_stack.then(|| any(!p.host.is_ipv6()));
            let place = |ip| (ip, p.protocol, p.host.port(), p.sandbox_port);
            std::iter::once(p.host.ip()).chain(also).map(place)
        })
        .collect();
    all.sort_unstable();
    let mut groups: Vec<Vec<(IpAddr, Protocol, u16, u16)>> = Vec::new();
    for port in all {
        let follows = |last: &(IpAddr, Protocol, u16, u16)| {
            (last.0, last.1, last.2.checked_add(1), last.3.checked_add(1))
                == (port.0, port.1, Some(port.2), Some(port.3))
        };
        match groups.last_mut() {
            Some(group) if group.last().is_some_and(follows) => group.push(port),
            _ => groups.push(vec![port]),
        }
    }
    let range = |first: u16, last: u16| if first == last { first.to_string() } else { format!("{first}-{last}") };
    let mut words: Vec<String> = groups
        .iter()
        .take(MOST_PORTS)
        .filter_map(|group| {
            let (first, last) = (group.first()?, group.last()?);
            let at = match first.0 {
                IpAddr::V4(ip) => ip.to_string(),
                IpAddr::V6(ip) => format!("[{ip}]"),
            };
            Some(format!("{at}:{}->{}/{}", range(first.2, last.2), range(first.3, last.3), first.1))
        })
        .collect();
    if groups.len() > MOST_PORTS {
        words.push("…".to_owned());
    }
    if words.is_empty() { "-".to_owned() } else { words.join(",") }
}

/// How long ago, in the largest unit that says something.
fn age(since: u64, now: SystemTime) -> String {
    let seconds = now.duration_since(UNIX_EPOCH + Duration::from_secs(since)).unwrap_or_default().as_secs();
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m", seconds / 60),
        3600..86_400 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// What fits beside the other columns, without anything that could move the terminal's cursor.
fn shortened(command: &str) -> String {
    let clean = command.chars().map(|c| if c.is_control() { ' ' } else { c });
    let mut text: String = clean.clone().take(40).collect();
    if clean.count() > 40 {
        text.push('…');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::Origin;

    fn sandbox() -> SandboxState {
        SandboxState {
            id: "0123456789ab".into(),
            name: "web".into(),
            pid: Some(42),
            supervisor_pid: 41,
            mode: Mode::Private,
            v4: Some([10, 0, 2, 100].into()),
            v6: None,
            since: 1000,
            command: vec!["sh".into(), "-c".into(), "echo \x1b[2J".into()],
            endpoints: Vec::new(),
            ports: Vec::new(),
            names: None,
            container: None,
            locked: false,
        }
    }

    #[test]
    fn a_row_shows_what_a_person_looks_for() {
        let text = table(&[sandbox()], UNIX_EPOCH + Duration::from_secs(1000 + 7200));
        let rows: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(rows[0], ["NAME", "ID", "PID", "NETWORK", "ADDRESSES", "PORTS", "SINCE", "COMMAND"]);
        let row = ["web", "0123456789ab", "42", "private", "10.0.2.100", "-", "2h", "sh", "-c", "echo", "[2J"];
        assert_eq!(rows[1], row);
        assert!(!text.contains('\x1b'));
    }

    #[test]
    fn who_was_disconnected_from_all_is_on_none() {
        let lonely = SandboxState { mode: Mode::Bridge, v4: None, ..sandbox() };
        assert_eq!(network_column(&lonely), "none");
        assert_eq!(network_column(&sandbox()), "private");
    }

    #[test]
    fn ports_are_written_as_docker_does() {
        let port = |host: &str, dual_stack, sandbox_port, protocol| Published {
            sandbox: "0123456789ab".into(),
            protocol,
            host: host.parse().unwrap(),
            dual_stack,
            sandbox_port,
            sandbox_address: None,
            device: 0,
            proxy: None,
            from: Vec::new(),
            spec: String::new(),
            origin: Origin::Option,
        };
        assert_eq!(ports(&[]), "-");
        let both = port("[::]:8080", true, 80, Protocol::Tcp);
        assert_eq!(ports(&[both]), "0.0.0.0:8080->80/tcp,[::]:8080->80/tcp");
        let udp = port("127.0.0.1:53", false, 5353, Protocol::Udp);
        let mut range: Vec<Published> =
            (0..10).map(|n| port(&format!("127.0.0.1:{}", 8000 + n), false, 80 + n, Protocol::Tcp)).collect();
        range.push(udp);
        assert_eq!(ports(&range), "127.0.0.1:8000-8009->80-89/tcp,127.0.0.1:53->5353/udp");
        let many: Vec<Published> =
            (0..10).map(|n| port(&format!("127.0.0.1:{}", 8000 + 2 * n), false, 80, Protocol::Tcp)).collect();
        assert!(ports(&many).ends_with(",…"));
    }

    #[test]
    fn json_is_an_object_on_each_line() {
        let text = json(&[sandbox(), sandbox()]).unwrap();
        assert_eq!(text.lines().count(), 2);
        let first: serde_json::Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
        assert_eq!(first["addresses"][0], "10.0.2.100");
        assert_eq!(first["mode"], "private");
    }

    #[test]
    fn a_clock_that_went_back_is_no_error() {
        assert_eq!(age(2000, UNIX_EPOCH + Duration::from_secs(1000)), "0s");
    }
}
