//! `GET /metrics`: the counters in Prometheus' text format, version 0.0.4.
use std::fmt::Write as _;
use std::sync::Arc;

use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};

use super::{ApiError, ApiState, CountersInfo};
use crate::plan::Protocol;

/// The content type that Prometheus asks for.
const TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";

/// `GET /metrics`.
pub(super) async fn metrics(State(state): State<Arc<ApiState>>) -> Result<Response, ApiError> {
    let counters = state.counters(None).await?;
    let text = write(&counters, state.published(Protocol::Tcp), state.published(Protocol::Udp));
    Ok(([(CONTENT_TYPE, TEXT)], text).into_response())
}

/// All metrics, with the numbers of published ports.
fn write(counters: &CountersInfo, tcp_ports: u64, udp_ports: u64) -> String {
    let CountersInfo { networks, dns, .. } = counters;
    let mut page = Page::default();
    page.family("tapline_build_info", "gauge", "The version of the gateway's program; always 1.");
    page.sample(&[("version", env!("CARGO_PKG_VERSION"))], 1);
    page.family("tapline_frames_received_total", "counter", "Frames that came from sandboxes.");
    for (network, c) in networks {
        page.sample(&[("network", network)], c.frames_in);
    }
    page.family("tapline_received_bytes_total", "counter", "Bytes of those frames, Ethernet headers included.");
    for (network, c) in networks {
        page.sample(&[("network", network)], c.bytes_in);
    }
    page.family("tapline_frames_sent_total", "counter", "Frames sent to sandboxes.");
    for (network, c) in networks {
        page.sample(&[("network", network)], c.frames_out);
    }
    page.family("tapline_sent_bytes_total", "counter", "Bytes of those.");
    for (network, c) in networks {
        page.sample(&[("network", network)], c.bytes_out);
    }
    page.family("tapline_frames_dropped_total", "counter", "Frames dropped, by reason.");
    for (network, c) in networks {
        for (reason, count) in &c.dropped {
            page.sample(&[("network", network), ("reason", reason)], *count);
        }
    }
    page.family("tapline_flows", "gauge", "Flows through sandboxes' links now, by protocol.");
    for (network, c) in networks {
        page.sample(&[("network", network), ("protocol", "tcp")], c.tcp_flows);
        page.sample(&[("network", network), ("protocol", "udp")], c.udp_flows);
        page.sample(&[("network", network), ("protocol", "icmp")], c.echo_flows);
    }
    page.family("tapline_flows_started_total", "counter", "Flows begun, by protocol.");
    for (network, c) in networks {
        page.sample(&[("network", network), ("protocol", "tcp")], c.tcp_flows_total);
        page.sample(&[("network", network), ("protocol", "udp")], c.udp_flows_total);
    }
    page.family("tapline_published_ports", "gauge", "Sockets that serve published ports, by protocol.");
    page.sample(&[("protocol", "tcp")], tcp_ports);
    page.sample(&[("protocol", "udp")], udp_ports);
    page.family("tapline_published_connections_total", "counter", "Connections from outside or to the host, by way.");
    for (network, c) in networks {
        let tcp = &c.published.tcp;
        page.sample(&[("network", network), ("way", "spliced")], tcp.spliced);
        page.sample(&[("network", network), ("way", "link")], tcp.through_link);
        page.sample(&[("network", network), ("way", "reach")], tcp.reached);
    }
    page.family("tapline_published_connections_failed_total", "counter", "Connections that were reset, by reason.");
    for (network, c) in networks {
        let tcp = &c.published.tcp;
        page.sample(&[("network", network), ("reason", "not_allowed")], tcp.not_allowed);
        page.sample(&[("network", network), ("reason", "refused")], tcp.refused);
        page.sample(&[("network", network), ("reason", "dropped")], tcp.dropped);
    }
    page.family("tapline_spliced_bytes_total", "counter", "Bytes of connections past the link, by direction.");
    for (network, c) in networks {
        let tcp = &c.published.tcp;
        page.sample(&[("network", network), ("direction", "in")], tcp.bytes_in);
        page.sample(&[("network", network), ("direction", "out")], tcp.bytes_out);
    }
    page.family("tapline_published_datagrams_total", "counter", "Datagrams at published ports, by direction.");
    for (network, c) in networks {
        let udp = &c.published.udp;
        page.sample(&[("network", network), ("direction", "in")], udp.received);
        page.sample(&[("network", network), ("direction", "out")], udp.sent);
    }
    page.family("tapline_published_datagrams_dropped_total", "counter", "Datagrams that went no further, by reason.");
    for (network, c) in networks {
        let udp = &c.published.udp;
        page.sample(&[("network", network), ("reason", "not_allowed")], udp.not_allowed);
        page.sample(&[("network", network), ("reason", "dropped")], udp.dropped);
    }
    page.family("tapline_dns_queries_total", "counter", "DNS queries taken.");
    page.sample(&[], dns.queries);
    page.family("tapline_dns_local_total", "counter", "DNS queries answered on the spot.");
    page.sample(&[], dns.local);
    page.family("tapline_dns_malformed_total", "counter", "DNS queries that could not be read.");
    page.sample(&[], dns.malformed);
    page.family(
        "tapline_dns_overload_total",
        "counter",
        "DNS queries and streams turned away because of their number.",
    );
    page.sample(&[], dns.overload);
    page.family("tapline_dns_failed_total", "counter", "DNS queries to which no resolver had an answer.");
    page.sample(&[], dns.failed);
    page.text
}

#[derive(Default)]
struct Page {
    text: String,
    name: &'static str,
}

impl Page {
    /// The samples that follow belong to this metric.
    fn family(&mut self, name: &'static str, kind: &str, help: &str) {
        self.name = name;
        let help = help.replace('\\', "\\\\").replace('\n', "\\n");
        // Writing to a string cannot fail.
        let _ = writeln!(self.text, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn sample(&mut self, labels: &[(&str, &str)], value: u64) {
        self.text.push_str(self.name);
        for (at, (label, value)) in labels.iter().enumerate() {
            let value = value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
            let _ = write!(self.text, "{}{label}=\"{value}\"", if at == 0 { '{' } else { ',' });
        }
        let _ = writeln!(self.text, "{} {value}", if labels.is_empty() { "" } else { "}" });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::datapath::commands::Snapshot;
    use crate::gateway::counters::{Counters, DropReason};
    use crate::names::DnsStats;
    use std::collections::{HashMap, HashSet};

    /// What promtool insists on: HELP and TYPE once and in front of a metric's samples, samples of a metric together,
    /// names of the right letters, `_total` for counters and for nothing else, no sample twice, labels quoted.
    fn check(text: &str) -> Result<HashMap<String, f64>, String> {
        let name_ok = |name: &str| {
            name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
                && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
        };
        let (mut families, mut samples) = (HashSet::new(), HashMap::new());
        let (mut helped, mut current) = (None, None);
        if !text.ends_with('\n') {
            return Err("the last line has no end".into());
        }
        for line in text.lines() {
            let bad = |what: &str| Err(format!("{what}: {line}"));
            if let Some(rest) = line.strip_prefix("# HELP ") {
                let (name, help) = rest.split_once(' ').ok_or("HELP without a text")?;
                if help.trim().is_empty() || !name_ok(name) || !families.insert(name) {
                    return bad("HELP");
                }
                helped = Some(name);
            } else if let Some(rest) = line.strip_prefix("# TYPE ") {
                let (name, kind) = rest.split_once(' ').ok_or("TYPE without a kind")?;
                if helped != Some(name) || (kind == "counter") != name.ends_with("_total") {
                    return bad("TYPE");
                }
                if !["counter", "gauge"].contains(&kind) {
                    return bad("kind");
                }
                current = Some(name);
            } else {
                let (series, value) = line.rsplit_once(' ').ok_or("no value")?;
                let (name, labels) = series.split_once('{').unwrap_or((series, "}"));
                if current != Some(name) {
                    return bad("not of this metric");
                }
                let Some(mut labels) = labels.strip_suffix('}') else { return bad("brace") };
                while !labels.is_empty() {
                    let (label, rest) = labels.split_once("=\"").ok_or("label")?;
                    let mut escaped = false;
                    let end = rest.find(|c| {
                        let ends = c == '"' && !escaped;
                        escaped = c == '\\' && !escaped;
                        ends
                    });
                    let Some(end) = end else { return bad("quotes") };
                    if !name_ok(label) || label.starts_with("__") {
                        return bad("label's name");
                    }
                    labels = rest[end + 1..].trim_start_matches(',');
                }
                let value = value.parse().map_err(|e| format!("{e}: {line}"))?;
                if samples.insert(series.to_owned(), value).is_some() {
                    return bad("twice");
                }
            }
        }
        Ok(samples)
    }

    #[test]
    fn the_page_is_as_prometheus_wants_it() {
        let mut counters = Counters::default();
        counters.frames_in = 7;
        counters.drop_many(DropReason::Spoofed, 3);
        let datapath = Snapshot::new(&counters, (1, 2, 3), Default::default());
        let networks = [("bridge".into(), datapath.clone()), ("back".into(), Snapshot::default())].into();
        let dns = DnsStats { queries: 9, ..DnsStats::default() };
        let page = write(&CountersInfo { datapath, dns, networks }, 4, 5);
        let samples = check(&page).unwrap();
        assert_eq!(samples["tapline_frames_received_total{network=\"bridge\"}"], 7.0);
        assert_eq!(samples["tapline_frames_received_total{network=\"back\"}"], 0.0);
        assert_eq!(samples["tapline_frames_dropped_total{network=\"bridge\",reason=\"spoofed\"}"], 3.0);
        assert_eq!(samples["tapline_flows{network=\"bridge\",protocol=\"icmp\"}"], 3.0);
        assert_eq!(samples["tapline_published_ports{protocol=\"udp\"}"], 5.0);
        assert_eq!(samples["tapline_dns_queries_total"], 9.0);
        let of_network = "tapline_frames_dropped_total{network=\"bridge\"";
        let dropped = samples.keys().filter(|name| name.starts_with(of_network)).count();
        assert_eq!(dropped, DropReason::ALL.len());
    }

    #[test]
    fn labels_are_escaped_and_the_check_sees_what_is_wrong() {
        let mut page = Page::default();
        page.family("tapline_x", "gauge", "Back\\slash and\nline.");
        page.sample(&[("name", "a\"b\\c\nd"), ("other", "}")], 1);
        assert_eq!(page.text.lines().count(), 3);
        assert!(page.text.contains(r#"tapline_x{name="a\"b\\c\nd",other="}"} 1"#), "{}", page.text);
        check(&page.text).unwrap();
        for wrong in [
            "x 1\n",
            "# HELP x y\n# TYPE x counter\nx 1\n",
            "# HELP x y\n# TYPE x gauge\nx 1\nx 1\n",
            "# HELP x y\n# TYPE x gauge\nx one\n",
            "# HELP x y\n# TYPE x gauge\nx 1",
        ] {
            check(wrong).unwrap_err();
        }
    }
}
