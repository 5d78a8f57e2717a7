//! Names that people give: sandboxes, hosts, interfaces, and addresses beside them. What is accepted here can
//! be written to resolv.conf, hosts and the kernel as it is.
use std::net::IpAddr;
use std::time::Duration;

use super::HostTarget;

/// Why a word cannot be used; the text says what is wrong and what would do.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum WordError {
    /// Not a DNS label.
    #[error("not a name: {0}; letters, digits and inner hyphens are allowed, 63 at most, like web-1")]
    Label(&'static str),
    /// Not a hostname.
    #[error("not a hostname: {0}; names of letters, digits and inner hyphens joined by dots, {1} bytes at most")]
    Hostname(&'static str, usize),
    /// Not an interface name (dev_valid_name in the kernel's net/core/dev.c).
    #[error("not an interface name: {0}; take 1 to 15 letters and digits, like tap0")]
    Interface(&'static str),
    /// Not NAME:ADDRESS.
    #[error("NAME:ADDRESS is needed, like db:192.0.2.7, db:[2001:db8::7] or db:host-gateway; {0}")]
    AddHost(String),
    /// Not an address of a host.
    #[error("{0}; an IPv4 or IPv6 address of a host is needed, like 192.0.2.53 or 2001:db8::53")]
    Address(&'static str),
    /// Not a duration.
    #[error("{0}; a number of seconds or one with s, m or h is needed, like 90, 90s or 5m")]
    Duration(&'static str),
    /// Not a word of resolv.conf.
    #[error("{0}; one option of resolv.conf(5) is needed, like ndots:2")]
    ResolverOption(&'static str),
    /// Not an MTU.
    #[error("{0}; 576 to 65520 bytes are possible (1280 at least with IPv6)")]
    Mtu(&'static str),
}

/// Is it one DNS label? `Err` says what is wrong.
pub fn check_label(text: &str) -> Result<(), &'static str> {
    match text.as_bytes() {
        [] => Err("it is empty"),
        long if long.len() > 63 => Err("it is longer than 63 bytes"),
        [b'-', ..] | [.., b'-'] => Err("it begins or ends with a hyphen"),
        bytes if bytes.iter().all(|b| b.is_ascii_alphanumeric() || *b == b'-') => Ok(()),
        _ => Err("it holds another character"),
    }
}

/// A sandbox's name: one DNS label (RFC 1123, 2.1).
pub fn parse_name(text: &str) -> Result<String, WordError> {
    check_label(text).map_err(WordError::Label)?;
    Ok(text.to_owned())
}

fn parse_dotted(text: &str, longest: usize) -> Result<String, WordError> {
    let refuse = |why| Err(WordError::Hostname(why, longest));
    if text.is_empty() {
        return refuse("it is empty");
    }
    if text.len() > longest {
        return refuse("it is too long");
    }
    match text.split('.').try_for_each(check_label) {
        Ok(()) => Ok(text.to_owned()),
        Err(why) => refuse(why),
    }
}

/// A hostname: labels joined by dots, at most 64 bytes (HOST_NAME_MAX, sethostname(2)).
pub fn parse_hostname(text: &str) -> Result<String, WordError> {
    parse_dotted(text, 64)
}

/// A search domain of resolv.conf(5), without its final dot; `.` alone means none and stays.
pub fn parse_search_domain(text: &str) -> Result<String, WordError> {
    if text == "." {
        return Ok(text.to_owned());
    }
    parse_dotted(text.strip_suffix('.').unwrap_or(text), 253)
}

/// An interface that may exist on the host, `lo` too.
pub fn parse_host_interface(text: &str) -> Result<String, WordError> {
    let refuse = |why| Err(WordError::Interface(why));
    match text {
        "" => refuse("it is empty"),
        "." | ".." => refuse("the kernel reserves it"),
        long if long.len() > 15 => refuse("it is longer than 15 bytes"),
        odd if odd.chars().any(|c| c.is_whitespace() || c.is_control() || matches!(c, '/' | ':' | '%')) => {
            refuse("white space, '/', ':' and '%' are not allowed")
        }
        name => Ok(name.to_owned()),
    }
}

/// An interface to be made inside: not `lo`, which is there already, and not a word that sysctl has taken.
pub fn parse_interface(text: &str) -> Result<String, WordError> {
    match text {
        "lo" => Err(WordError::Interface("lo is the loopback interface, which every sandbox has")),
        "all" | "default" => Err(WordError::Interface("under /proc/sys/net it means all interfaces")),
        name => parse_host_interface(name),
    }
}

/// `NAME:ADDRESS`, `NAME:[IPv6]` or `NAME:host-gateway`; `=` may stand for the colon. Names become lower case.
pub fn parse_add_host(text: &str) -> Result<(String, HostTarget), WordError> {
    let Some((name, target)) = text.split_once([':', '=']) else {
        return Err(WordError::AddHost("there is no colon".into()));
    };
    let name = parse_dotted(name, 253).map_err(|e| WordError::AddHost(e.to_string()))?.to_ascii_lowercase();
    if target == "host-gateway" {
        return Ok((name, HostTarget::Gateway));
    }
    match unbracketed(target).parse() {
        Ok(address) => Ok((name, HostTarget::Address(address))),
        Err(_) => Err(WordError::AddHost(format!("`{target}` is no address"))),
    }
}

fn unbracketed(text: &str) -> &str {
    text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text)
}

/// The address of one host, IPv6 with or without brackets: neither unspecified nor multicast.
pub fn parse_address(text: &str) -> Result<IpAddr, WordError> {
    match unbracketed(text).parse::<IpAddr>() {
        Err(_) => Err(WordError::Address("not an address")),
        Ok(ip) if ip.is_unspecified() => Err(WordError::Address("the unspecified address is no host")),
        Ok(ip) if ip.is_multicast() || ip == IpAddr::from([255; 4]) => {
            Err(WordError::Address("a multicast or broadcast address is no host"))
        }
        Ok(ip) => Ok(ip),
    }
}

/// One word of resolv.conf's `options` line.
pub fn parse_resolver_option(text: &str) -> Result<String, WordError> {
    if text.is_empty() {
        return Err(WordError::ResolverOption("it is empty"));
    }
    if text.chars().any(|c| c.is_whitespace() || c.is_control()) {
        return Err(WordError::ResolverOption("it holds white space"));
    }
    Ok(text.to_owned())
}

/// Seconds, or a number with `s`, `m` or `h`: at least a second, at most a day.
pub fn parse_timeout(text: &str) -> Result<Duration, WordError> {
    let (digits, unit) = match text.as_bytes().last() {
        Some(b's') => (&text[..text.len() - 1], 1),
        Some(b'm') => (&text[..text.len() - 1], 60),
        Some(b'h') => (&text[..text.len() - 1], 3600),
        _ => (text, 1),
    };
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return Err(WordError::Duration("not a duration"));
    }
    match digits.parse::<u64>().ok().and_then(|n| n.checked_mul(unit)) {
        Some(0) => Err(WordError::Duration("it must be at least a second")),
        Some(seconds @ 1..=86_400) => Ok(Duration::from_secs(seconds)),
        Some(_) | None => Err(WordError::Duration("it is longer than a day")),
    }
}

/// The segment's MTU in bytes: 576 (RFC 791) to 65520, the largest that slirp's users are used to.
pub fn parse_mtu(text: &str) -> Result<u16, WordError> {
    match text.parse::<u16>() {
        Ok(mtu @ 576..=65520) => Ok(mtu),
        Ok(0..576) => Err(WordError::Mtu("too small")),
        Ok(_) => Err(WordError::Mtu("too large")),
        Err(_) if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) => Err(WordError::Mtu("too large")),
        Err(_) => Err(WordError::Mtu("not a number of bytes")),
    }
}

/// A name for a sandbox that was given none: the command's, made a label, and the first eight digits of the id: with four,
/// one of a hundred sandboxes of the same command would now and then get another's name, and not start.
pub fn default_name(command: &str, id: &str) -> String {
    let base = command.rsplit('/').next().unwrap_or(command);
    let kept: String =
        base.chars().map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' }).take(40).collect();
    let kept = kept.trim_matches('-');
    format!("{}-{}", if kept.is_empty() { "sandbox" } else { kept }, &id[..id.len().min(8)])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_dns_labels() {
        assert_eq!(parse_name("web-1").unwrap(), "web-1");
        for bad in ["", "-a", "a-", "a.b", "a_b", "a/b", &"x".repeat(64), "ü"] {
            assert!(parse_name(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn hostnames_may_have_dots_and_64_bytes() {
        assert!(parse_hostname("web.example.org").is_ok());
        assert!(parse_hostname(&"x".repeat(63)).is_ok());
        assert!(parse_hostname(&format!("{}.{}", "x".repeat(32), "y".repeat(32))).is_err());
        assert!(parse_hostname("web..org").is_err());
        assert!(parse_hostname("a b").is_err());
    }

    #[test]
    fn interface_names_are_what_the_kernel_takes() {
        assert!(parse_interface("tap0").is_ok());
        assert!(parse_interface("fifteen-bytes--").is_ok());
        for bad in ["", ".", "..", "lo", "all", "a/b", "a b", "a:b", "tap%d", "sixteen-bytes---"] {
            assert!(parse_interface(bad).is_err(), "{bad}");
        }
        assert!(parse_host_interface("lo").is_ok());
    }

    #[test]
    fn add_host_takes_ipv6_with_and_without_brackets() {
        let address = HostTarget::Address("2001:db8::7".parse().unwrap());
        assert_eq!(parse_add_host("DB:2001:db8::7").unwrap(), ("db".into(), address));
        assert_eq!(parse_add_host("db:[2001:db8::7]").unwrap(), ("db".into(), address));
        assert_eq!(parse_add_host("db:host-gateway").unwrap(), ("db".into(), HostTarget::Gateway));
        for bad in ["db", "db:", ":1.2.3.4", "db:1.2.3", "d b:1.2.3.4", "db:[1::2"] {
            assert!(parse_add_host(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn durations_have_units() {
        assert_eq!(parse_timeout("90").unwrap(), Duration::from_secs(90));
        assert_eq!(parse_timeout("90s").unwrap(), Duration::from_secs(90));
        assert_eq!(parse_timeout("5m").unwrap(), Duration::from_secs(300));
        for bad in ["", "s", "0", "0m", "-5", "1d", "1.5", "25h", "99999999999999999999"] {
            assert!(parse_timeout(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn mtu_has_bounds() {
        assert_eq!(parse_mtu("576"), Ok(576));
        assert_eq!(parse_mtu("65520"), Ok(65520));
        assert_eq!(parse_mtu("575"), Err(WordError::Mtu("too small")));
        assert_eq!(parse_mtu("65521"), Err(WordError::Mtu("too large")));
        assert_eq!(parse_mtu("70000"), Err(WordError::Mtu("too large")));
        assert_eq!(parse_mtu("big"), Err(WordError::Mtu("not a number of bytes")));
    }

    #[test]
    fn addresses_are_of_hosts() {
        assert!(parse_address("[2001:db8::53]").is_ok());
        for bad in ["", "0.0.0.0", "::", "224.0.0.1", "ff02::1", "255.255.255.255", "dns.example.org"] {
            assert!(parse_address(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_default_name_is_a_name() {
        assert_eq!(default_name("/bin/bash", "3f9a00000000"), "bash-3f9a0000");
        assert_eq!(default_name("./[", "3f9a00000000"), "sandbox-3f9a0000");
        assert!(parse_name(&default_name("/opt/Ünder_scored thing.sh", "3f9a00000000")).is_ok());
        assert!(parse_name(&default_name(&"long".repeat(40), "3f9a00000000")).is_ok());
        // Ids that begin alike are common among many, and their names are to differ.
        assert_ne!(default_name("sh", "3f9a00000000"), default_name("sh", "3f9a00010000"));
    }
}
