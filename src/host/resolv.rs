//! The host's resolv.conf (resolv.conf(5)), read as glibc reads it.
//!
//! A keyword stands at the beginning of a line and is followed by white space. What cannot be read is passed over:
//! a line that makes no sense must not cost the others. Differences from glibc, on purpose: every `nameserver`
//! counts, not only the first three.
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};

/// The port of DNS.
const PORT: u16 = 53;

/// What resolv.conf says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ResolvConf {
    /// Name servers in their order; 127.0.0.1 where none is named, as resolv.conf(5) has it.
    pub nameservers: Vec<Nameserver>,
    /// Search domains, without a final dot; the last `search` or `domain` line counts.
    pub search: Vec<String>,
}

/// A name server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Nameserver {
    /// Its address; "this host" (0.0.0.0, ::) is the loopback address.
    pub ip: IpAddr,
    /// The scope of a link-local IPv6 address: an interface's name or number (`fe80::1%eth0`).
    pub scope: Option<String>,
}

impl Nameserver {
    fn parse(word: &str) -> Option<Nameserver> {
        let (ip, scope) = match word.split_once('%') {
            Some((ip, scope)) => (ip, Some(scope).filter(|s| !s.is_empty())),
            None => (word, None),
        };
        let ip = match ip.parse().ok()? {
            // A scope belongs to IPv6 alone.
            IpAddr::V4(_) if word.contains('%') => return None,
            IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
            ip => ip,
        };
        Some(Nameserver { ip, scope: scope.map(str::to_owned) })
    }

    /// Where to send queries; `index_of` knows interfaces by name. `None` when its interface is not there.
    pub fn address(&self, index_of: impl FnOnce(&str) -> Option<u32>) -> Option<SocketAddr> {
        match (self.ip, &self.scope) {
            (IpAddr::V6(ip), Some(scope)) => {
                let index = scope.parse().ok().or_else(|| index_of(scope))?;
                Some(SocketAddrV6::new(ip, PORT, 0, index).into())
            }
            (ip, _) => Some(SocketAddr::new(ip, PORT)),
        }
    }
}

impl ResolvConf {
    /// Read the text of a resolv.conf. Nothing is an error.
    pub fn parse(text: &str) -> ResolvConf {
        let mut conf = ResolvConf::default();
        for line in text.lines() {
            let mut words = line.split_ascii_whitespace();
            // A line that begins with white space has no keyword; one with # or ; is a comment.
            if line.starts_with(|c: char| c.is_ascii_whitespace() || matches!(c, '#' | ';')) {
                continue;
            }
            match words.next() {
                Some("nameserver") => conf.nameservers.extend(words.next().and_then(Nameserver::parse)),
                Some("domain") => conf.search = words.take(1).filter_map(search_domain).collect(),
                Some("search") => {
                    conf.search = words.take_while(|w| !w.starts_with(['#', ';'])).filter_map(search_domain).collect();
                }
                _ => {}
            }
        }
        if conf.nameservers.is_empty() {
            conf.nameservers.push(Nameserver { ip: Ipv4Addr::LOCALHOST.into(), scope: None });
        }
        conf
    }
}

/// A search domain that DNS can carry, in its ASCII form (RFC 5890); the root (`search .`) is none.
fn search_domain(word: &str) -> Option<String> {
    let name = word.strip_suffix('.').unwrap_or(word);
    let fits = name.len() <= 253
        && name.bytes().all(|b| b.is_ascii_graphic())
        && name.split('.').all(|label| (1..=63).contains(&label.len()));
    (fits && name.chars().all(|c| !c.is_control())).then(|| name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn servers(text: &str) -> Vec<String> {
        let index_of = |name: &str| (name == "eth0").then_some(7);
        ResolvConf::parse(text)
            .nameservers
            .iter()
            .filter_map(|n| n.address(index_of))
            .map(|address| address.to_string())
            .collect()
    }

    #[test]
    fn every_nameserver_counts_in_its_order() {
        let text = "# by somebody\nnameserver 192.0.2.1\nnameserver\t2001:db8::1 # near\nnameserver 127.0.0.53\n\
                    nameserver 198.51.100.1\n";
        assert_eq!(servers(text), ["192.0.2.1:53", "[2001:db8::1]:53", "127.0.0.53:53", "198.51.100.1:53"]);
    }

    #[test]
    fn a_scope_is_an_interface_by_name_or_number() {
        assert_eq!(servers("nameserver fe80::1%eth0\nnameserver fe80::2%3"), ["[fe80::1%7]:53", "[fe80::2%3]:53"]);
        assert_eq!(servers("nameserver fe80::1%gone\nnameserver 192.0.2.1"), ["192.0.2.1:53"]);
    }

    #[test]
    fn bad_lines_cost_only_themselves() {
        let text = "nameserver\nnameserver dns.example\n nameserver 192.0.2.9\n;nameserver 192.0.2.8\n\
                    nameserver 192.0.2.1%eth0\nnameservers 192.0.2.7\noptions ndots:2\n\u{fffd}\nnameserver 192.0.2.1";
        assert_eq!(servers(text), ["192.0.2.1:53"]);
        assert_eq!(servers("nameserver 0.0.0.0%x\nnameserver 192.0.2.1"), ["192.0.2.1:53"]);
    }

    #[test]
    fn without_a_nameserver_it_is_this_host() {
        assert_eq!(servers(""), ["127.0.0.1:53"]);
        assert_eq!(servers("nameserver 0.0.0.0\nnameserver ::\n"), ["127.0.0.1:53", "[::1]:53"]);
    }

    #[test]
    fn the_last_search_or_domain_counts() {
        let search = |text| ResolvConf::parse(text).search;
        assert_eq!(
            search("domain one.example\nsearch two.example. three.example # here\n"),
            ["two.example", "three.example"]
        );
        assert_eq!(search("search two.example\ndomain one.example other\n"), ["one.example"]);
        assert!(search("search .\n").is_empty());
        assert!(search("search a..b\n").is_empty());
        assert!(search("domain \u{a0}\n").is_empty(), "a space that is no ASCII is no name either");
    }

    proptest! {
        #[test]
        fn no_text_at_all_is_a_surprise(text in "(nameserver|search|domain|#|;)?[ \t\n%.:a-f0-9é\\PC]{0,60}") {
            let conf = ResolvConf::parse(&text);
            prop_assert!(!conf.nameservers.is_empty());
            for server in &conf.nameservers {
                server.address(|_| None);
            }
        }
    }
}
