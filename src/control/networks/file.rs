//! A network's definition as a file that a person can read and edit.
//!
//! # Theory of operation
//!
//! `NAME.toml` is the network NAME. Only a subnet must be there: everything else has a default, so that a file can be
//! written by hand. Whatever is not understood is refused with the file, the line and what to do, never passed over: a
//! network that silently has other rules than its file says would be worse than none.
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::IpAddr;
use std::ops::Range;
use std::path::{Path, PathBuf};

use ipnet::IpNet;
use toml::de::{DeTable, DeValue};
use toml::value::Offset;

use crate::plan::{DEFAULT_MTU, Definition, Ipv4Part, Ipv6Part, Sharing, date, subnet, words};

/// A definition that cannot be read: where, why, and what to do.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{path}:{line}: {problem}", path = path.display())]
pub struct FileError {
    /// The file.
    pub path: PathBuf,
    /// The line, from 1.
    pub line: usize,
    /// What is wrong there.
    pub problem: String,
}

/// What is wrong, and where in the text.
type Fault = (usize, String);

/// Reads the text of a network's file. A file without `created` was made at `modified`, in seconds since 1970.
pub fn read(path: &Path, name: &str, text: &str, modified: u64) -> Result<Definition, FileError> {
    definition(name, text, modified).map_err(|(offset, problem)| {
        let line = text.as_bytes().iter().take(offset).filter(|byte| **byte == b'\n').count() + 1;
        FileError { path: path.to_owned(), line, problem }
    })
}

fn definition(name: &str, text: &str, modified: u64) -> Result<Definition, Fault> {
    let document = DeTable::parse(text).map_err(|error| {
        let message = error.message().lines().collect::<Vec<_>>().join(", ");
        (error.span().map_or(0, |span| span.start), message)
    })?;
    let mut definition = Definition {
        name: name.to_owned(),
        id: id_of(name),
        v4: None,
        v6: None,
        mtu: DEFAULT_MTU,
        sharing: Sharing { internal: false, icc: true },
        dns: Vec::new(),
        dns_search: Vec::new(),
        labels: BTreeMap::new(),
        created: modified,
    };
    for (key, value) in document.get_ref() {
        let entry = Entry { key: key.get_ref(), at: key.span(), value: value.get_ref() };
        match entry.key {
            "id" => definition.id = entry.parsed("twelve hexadecimal digits", parse_id)?,
            "created" => definition.created = entry.time()?,
            "mtu" => definition.mtu = entry.mtu()?,
            "internal" => definition.sharing.internal = entry.boolean()?,
            "icc" => definition.sharing.icc = entry.boolean()?,
            "dns" => definition.dns = entry.list("addresses", words::parse_address)?,
            "dns-search" => definition.dns_search = entry.list("domains", words::parse_search_domain)?,
            "ipv4" => {
                let part = Part::read(&entry)?;
                let IpNet::V4(net) = part.subnet else { return entry.fault("`subnet` must be an IPv4 subnet here") };
                let gateway = part.gateway.map(|ip| v4_of(&entry, ip)).transpose()?;
                let range = part.range.map(|net| v4_net_of(&entry, net)).transpose()?;
                definition.v4 = Some(Ipv4Part::new(net, gateway, range).map_err(|e| (part.at, e.to_string()))?);
            }
            "ipv6" => {
                let part = Part::read(&entry)?;
                let IpNet::V6(net) = part.subnet else { return entry.fault("`subnet` must be an IPv6 subnet here") };
                let gateway = part.gateway.map(|ip| v6_of(&entry, ip)).transpose()?;
                let range = part.range.map(|net| v6_net_of(&entry, net)).transpose()?;
                definition.v6 = Some(Ipv6Part::new(net, gateway, range).map_err(|e| (part.at, e.to_string()))?);
            }
            "labels" => {
                for (key, value) in entry.table()? {
                    let label = Entry { key: key.get_ref(), at: key.span(), value: value.get_ref() };
                    definition.labels.insert(label.key.to_owned(), label.text()?.to_owned());
                }
            }
            _ => {
                return entry.unknown(
                    "`id`, `created`, `mtu`, `internal`, `icc`, `dns`, `dns-search`, `ipv4`, `ipv6`, `labels`",
                );
            }
        }
    }
    definition.check().map_err(|error| (0, error.to_string()))?;
    Ok(definition)
}

/// One of the tables `ipv4` and `ipv6`, not yet sorted by family.
struct Part {
    subnet: IpNet,
    gateway: Option<IpAddr>,
    range: Option<IpNet>,
    /// Where a mistake is shown that concerns more than one key.
    at: usize,
}

impl Part {
    fn read(entry: &Entry<'_>) -> Result<Part, Fault> {
        let (mut subnet, mut gateway, mut range, mut at) = (None, None, None, entry.at.start);
        for (key, value) in entry.table()? {
            let inner = Entry { key: key.get_ref(), at: key.span(), value: value.get_ref() };
            match inner.key {
                "subnet" => subnet = Some(inner.parsed("a subnet", subnet::parse_shared_subnet)?),
                "gateway" => gateway = Some(inner.parsed("an address", words::parse_address)?),
                "ip-range" => range = Some(inner.parsed("a part of the subnet", parse_range)?),
                _ => return inner.unknown("`subnet`, `gateway` and `ip-range`"),
            }
            if inner.key != "subnet" {
                at = inner.at.start;
            }
        }
        match subnet {
            Some(subnet) => Ok(Part { subnet, gateway, range, at }),
            None => entry.fault(&format!("`{}` needs a `subnet`: write one, or take the table out", entry.key)),
        }
    }
}

fn v4_of(entry: &Entry<'_>, ip: IpAddr) -> Result<std::net::Ipv4Addr, Fault> {
    match ip {
        IpAddr::V4(ip) => Ok(ip),
        IpAddr::V6(_) => entry.fault("`gateway` must be an IPv4 address here"),
    }
}

fn v6_of(entry: &Entry<'_>, ip: IpAddr) -> Result<std::net::Ipv6Addr, Fault> {
    match ip {
        IpAddr::V6(ip) => Ok(ip),
        IpAddr::V4(_) => entry.fault("`gateway` must be an IPv6 address here"),
    }
}

fn v4_net_of(entry: &Entry<'_>, net: IpNet) -> Result<ipnet::Ipv4Net, Fault> {
    match net {
        IpNet::V4(net) => Ok(net),
        IpNet::V6(_) => entry.fault("`ip-range` must be an IPv4 subnet here"),
    }
}

fn v6_net_of(entry: &Entry<'_>, net: IpNet) -> Result<ipnet::Ipv6Net, Fault> {
    match net {
        IpNet::V6(net) => Ok(net),
        IpNet::V4(_) => entry.fault("`ip-range` must be an IPv6 subnet here"),
    }
}

/// A part of a subnet that sandboxes' addresses are taken from.
pub fn parse_range(text: &str) -> Result<IpNet, subnet::SubnetError> {
    let malformed = || subnet::SubnetError::Malformed { family: "IPv4 or IPv6", example: "10.9.0.128/25" };
    let net: IpNet = text.parse().map_err(|_| malformed())?;
    match net.addr() == net.network() {
        true => Ok(net),
        false => Err(subnet::SubnetError::NotNetwork { network: net.trunc().to_string() }),
    }
}

fn parse_id(text: &str) -> Result<String, &'static str> {
    let is_id = text.len() == 12 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    is_id.then(|| text.to_owned()).ok_or("it is something else; take the line out to have one made of the name")
}

/// The id of a network whose file has none: made of its name, so that it stays the same (FNV-1a, 64 bits, cut).
fn id_of(name: &str) -> String {
    let hash = name
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3));
    format!("{:012x}", hash >> 16)
}

/// A key and its value.
struct Entry<'d> {
    key: &'d str,
    at: Range<usize>,
    value: &'d DeValue<'d>,
}

impl<'d> Entry<'d> {
    fn fault<T>(&self, problem: &str) -> Result<T, Fault> {
        Err((self.at.start, problem.to_owned()))
    }

    fn unknown<T>(&self, known: &str) -> Result<T, Fault> {
        self.fault(&format!("unknown key `{}`: there are {known}; mend it or take it out", self.key))
    }

    fn wrong_type<T>(&self, wanted: &str) -> Result<T, Fault> {
        self.fault(&format!("`{}` must be {wanted}, and is of type {}", self.key, self.value.type_str()))
    }

    fn table(&self) -> Result<&'d DeTable<'d>, Fault> {
        match self.value {
            DeValue::Table(table) => Ok(table),
            _ => self.wrong_type(&format!("a table, [{}]", self.key)),
        }
    }

    fn text(&self) -> Result<&'d str, Fault> {
        self.value.as_str().map_or_else(|| self.wrong_type("a string"), Ok)
    }

    fn boolean(&self) -> Result<bool, Fault> {
        self.value.as_bool().map_or_else(|| self.wrong_type("true or false"), Ok)
    }

    fn mtu(&self) -> Result<u16, Fault> {
        match self.value {
            DeValue::Integer(number) if number.radix() == 10 => {
                words::parse_mtu(number.as_str()).map_err(|error| (self.at.start, format!("`mtu`: {error}")))
            }
            _ => self.wrong_type("a number of bytes"),
        }
    }

    /// A date and time with an offset, or seconds since 1970.
    fn time(&self) -> Result<u64, Fault> {
        let wanted = "a time like 2026-11-21T16:05:00Z";
        match self.value {
            DeValue::Integer(number) => number.as_str().parse().or_else(|_| self.wrong_type(wanted)),
            DeValue::Datetime(at) => match (at.date, at.time, at.offset) {
                (Some(day), Some(time), Some(offset)) => {
                    let second = time.second.unwrap_or(0);
                    let local = date::seconds(day.year, day.month, day.day, time.hour, time.minute, second);
                    let minutes = match offset {
                        Offset::Z => 0,
                        Offset::Custom { minutes } => i64::from(minutes),
                    };
                    Ok(local.saturating_add_signed(-60 * minutes))
                }
                _ => self.wrong_type(wanted),
            },
            _ => self.wrong_type(wanted),
        }
    }

    fn parsed<T, E: std::fmt::Display>(&self, wanted: &str, parse: impl Fn(&str) -> Result<T, E>) -> Result<T, Fault> {
        let Some(text) = self.value.as_str() else { return self.wrong_type(&format!("a string, {wanted}")) };
        parse(text).map_err(|error| (self.at.start, format!("`{}`: '{text}' is not {wanted}: {error}", self.key)))
    }

    fn list<T, E: std::fmt::Display>(
        &self,
        wanted: &str,
        parse: impl Fn(&str) -> Result<T, E>,
    ) -> Result<Vec<T>, Fault> {
        let DeValue::Array(several) = self.value else { return self.wrong_type(&format!("a list of {wanted}")) };
        let mut all = Vec::new();
        for one in several.iter() {
            let Some(text) = one.get_ref().as_str() else {
                return self.wrong_type(&format!("a list of {wanted}, each a string"));
            };
            let fault = |error| (one.span().start, format!("`{}`: '{text}': {error}", self.key));
            all.push(parse(text).map_err(fault)?);
        }
        Ok(all)
    }
}

/// The file's text.
pub fn write(definition: &Definition) -> String {
    let name = &definition.name;
    let mut text = format!(
        "# The network `{name}`. Made by tapline, and free to be edited while no sandbox is on it:\n\
         # `tapline network inspect {name}` shows how it is read, tapline-network-create(1) says what the keys mean.\n\
         id = \"{}\"\ncreated = {}\nmtu = {}\ninternal = {}\nicc = {}\n",
        definition.id,
        date::rfc3339(definition.created),
        definition.mtu,
        definition.sharing.internal,
        definition.sharing.icc
    );
    // Writing to a String cannot fail.
    if !definition.dns.is_empty() {
        let _ = writeln!(text, "dns = {}", quoted_list(definition.dns.iter().map(IpAddr::to_string)));
    }
    if !definition.dns_search.is_empty() {
        let _ = writeln!(text, "dns-search = {}", quoted_list(definition.dns_search.iter().cloned()));
    }
    let mut part = |family: &str, subnet: String, gateway: String, range: Option<String>| {
        let _ = writeln!(text, "\n[{family}]\nsubnet = \"{subnet}\"\ngateway = \"{gateway}\"");
        if let Some(range) = range {
            let _ = writeln!(text, "ip-range = \"{range}\"");
        }
    };
    if let Some(v4) = definition.v4 {
        part("ipv4", v4.subnet.to_string(), v4.gateway.to_string(), v4.range.map(|net| net.to_string()));
    }
    if let Some(v6) = definition.v6 {
        part("ipv6", v6.subnet.to_string(), v6.gateway.to_string(), v6.range.map(|net| net.to_string()));
    }
    if !definition.labels.is_empty() {
        text.push_str("\n[labels]\n");
        for (key, value) in &definition.labels {
            let _ = writeln!(text, "{} = {}", quoted(key), quoted(value));
        }
    }
    text
}

/// As TOML's basic string.
fn quoted(text: &str) -> String {
    let mut quoted = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => quoted.extend(['\\', c]),
            c if c.is_control() => {
                let _ = write!(quoted, "\\u{:04X}", u32::from(c));
            }
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

fn quoted_list(words: impl Iterator<Item = String>) -> String {
    format!("[{}]", words.map(|word| quoted(&word)).collect::<Vec<_>>().join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_text(text: &str) -> Result<Definition, String> {
        read(Path::new("db.toml"), "db", text, 7).map_err(|error| error.to_string())
    }

    #[test]
    fn what_is_written_is_read_again() {
        let full = Definition {
            name: "db".into(),
            id: "0123456789ab".into(),
            v4: Some(
                Ipv4Part::new(
                    "10.9.0.0/24".parse().unwrap(),
                    Some([10, 9, 0, 254].into()),
                    Some("10.9.0.128/25".parse().unwrap()),
                )
                .unwrap(),
            ),
            v6: Some(Ipv6Part::new("fd00:9::/64".parse().unwrap(), None, None).unwrap()),
            mtu: 1500,
            sharing: Sharing { internal: true, icc: false },
            dns: vec!["192.0.2.53".parse().unwrap(), "2001:db8::53".parse().unwrap()],
            dns_search: vec!["example.org".into()],
            labels: [("a \"key\"".to_owned(), "line\nand \\ \u{1f}".to_owned())].into(),
            created: 1_795_276_800,
        };
        assert_eq!(read_text(&write(&full)).unwrap(), full);
        let small = Definition {
            v4: None,
            dns: Vec::new(),
            dns_search: Vec::new(),
            labels: BTreeMap::new(),
            sharing: Sharing { internal: false, icc: true },
            ..full
        };
        assert_eq!(read_text(&write(&small)).unwrap(), small);
    }

    #[test]
    fn a_subnet_is_enough_for_a_file_written_by_hand() {
        let found = read_text("[ipv4]\nsubnet = \"10.9.0.0/24\"\n").unwrap();
        assert_eq!(found.v4.unwrap().gateway.to_string(), "10.9.0.1");
        assert_eq!((found.mtu, found.created, found.v6), (DEFAULT_MTU, 7, None));
        assert_eq!(found.sharing, Sharing { internal: false, icc: true });
        assert_eq!(parse_id(&found.id).unwrap(), found.id);
    }

    #[test]
    fn a_time_may_have_an_offset_or_be_a_number() {
        let of = |text: &str| {
            read_text(&format!("created = {text}\nipv4.subnet = \"10.9.0.0/24\"\n")).map(|found| found.created)
        };
        assert_eq!(of("2001-09-09T01:46:40Z"), Ok(1_000_000_000));
        assert_eq!(of("2001-09-09T03:46:40+02:00"), Ok(1_000_000_000));
        assert_eq!(of("1000000000"), Ok(1_000_000_000));
        for bad in ["2001-09-09", "\"yesterday\"", "-1"] {
            assert!(of(bad).unwrap_err().starts_with("db.toml:1: `created` must be a time like"), "{bad}");
        }
    }

    #[test]
    fn mistakes_name_file_line_and_what_to_do() {
        let of = |text| read_text(text).unwrap_err();
        assert!(of("").contains("needs an IPv4 subnet or an IPv6 subnet"));
        assert!(of("\nmtuu = 1500\n").starts_with("db.toml:2: unknown key `mtuu`: there are `id`"));
        assert!(of("[ipv4]\nsub = 1\n").starts_with("db.toml:2: unknown key `sub`: there are `subnet`"));
        assert!(of("mtu = \"big\"\n").starts_with("db.toml:1: `mtu` must be a number of bytes, and is of type string"));
        assert!(of("mtu = 70000\n").starts_with("db.toml:1: `mtu`: too large"));
        assert!(of("icc = 1\n").contains("must be true or false"));
        assert!(of("ipv4 = 1\n").contains("must be a table"));
        assert!(of("[ipv4]\ngateway = \"10.9.0.1\"\n").starts_with("db.toml:1: `ipv4` needs a `subnet`"));
        assert!(of("[ipv4]\nsubnet = \"10.9.0.1/24\"\n").contains("did you mean 10.9.0.0/24?"));
        assert!(of("[ipv4]\nsubnet = \"fd00:9::/64\"\n").contains("IPv4 subnet here"));
        let outside = of("[ipv4]\nsubnet = \"10.9.0.0/24\"\ngateway = \"10.8.0.1\"\n");
        assert!(outside.starts_with("db.toml:3: the gateway 10.8.0.1 is outside of the subnet"), "{outside}");
        let outside = of("[ipv4]\nsubnet = \"10.9.0.0/24\"\nip-range = \"10.8.0.0/24\"\n");
        assert!(outside.starts_with("db.toml:3: the ip-range 10.8.0.0/24 is not within"), "{outside}");
        assert!(of("dns = [\n\"192.0.2.1\",\n\"x\"]\n").starts_with("db.toml:3: `dns`: 'x': not an address"));
        assert!(of("id = \"x\"\n").contains("twelve hexadecimal digits"));
        assert!(of("[labels]\na = 1\n").contains("`a` must be a string"));
        assert!(of("mtu = 1\nmtu = 2\n").starts_with("db.toml:2: "));
        assert!(of("mtu = 1000\n[ipv6]\nsubnet = \"fd00:9::/64\"\n").contains("1280 bytes"));
    }
}
