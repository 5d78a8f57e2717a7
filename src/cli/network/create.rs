//! `tapline network create`.
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use clap::Args;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::cli::error::{self, Failure};
use crate::cli::output;
use crate::control::networks::{Networks, file};
use crate::plan::subnet::parse_shared_subnet;
use crate::plan::{DEFAULT_MTU, Draft, Ipv4Part, Ipv6Part, Sharing, Wanted, parse_network_name, words};

/// Whose help would tell more.
const VERB: &str = "network create";

/// Make a network that sandboxes can share
///
/// It has an IPv4 and an IPv6 subnet: those asked for, or ones that overlap neither another network nor a route of the
/// host. Prints the network's id.
#[derive(Args, Debug)]
pub struct CreateArgs {
    /// What to call it: letters, digits and inner hyphens
    #[arg(value_name = "NAME", value_parser = parse_network_name)]
    name: String,

    /// Its subnet; twice for one of each family [default: free ones]
    #[arg(long, value_name = "CIDR", value_parser = parse_shared_subnet)]
    subnet: Vec<IpNet>,

    /// The gateway's address in the subnet, which answers DNS too; twice for both families [default: the first]
    #[arg(long, value_name = "IP", value_parser = words::parse_address)]
    gateway: Vec<IpAddr>,

    /// The part of the subnet that sandboxes' addresses are taken from; twice for both families [default: all of it]
    #[arg(long, value_name = "CIDR", value_parser = file::parse_range)]
    ip_range: Vec<IpNet>,

    /// Have an IPv4 subnet [default: true]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    ipv4: Option<bool>,

    /// Have none, as --ipv4=false
    #[arg(long, conflicts_with = "ipv4")]
    no_ipv4: bool,

    /// Have an IPv6 subnet [default: true]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    ipv6: Option<bool>,

    /// Have none, as --ipv6=false
    #[arg(long, conflicts_with = "ipv6")]
    no_ipv6: bool,

    /// IP MTU in bytes, 576 to 65520 (1280 at least with IPv6) [default: 65520]
    #[arg(long, value_name = "BYTES", value_parser = words::parse_mtu)]
    mtu: Option<u16>,

    /// No way out: sandboxes reach only each other, and find only each other's names
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    internal: Option<bool>,

    /// Let sandboxes on it reach each other; with false only along `tapline run --link` [default: true]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    icc: Option<bool>,

    /// Resolver for its sandboxes; may be repeated [default: the host's]
    #[arg(long, value_name = "IP", value_parser = words::parse_address)]
    dns: Vec<IpAddr>,

    /// Search domain; may be repeated [default: the host's]
    #[arg(long, value_name = "DOMAIN", value_parser = words::parse_search_domain)]
    dns_search: Vec<String>,

    /// A note for people and programs, shown by `tapline network inspect`; may be repeated
    #[arg(long, value_name = "KEY=VALUE", value_parser = parse_label)]
    label: Vec<(String, String)>,

    /// The kind of network; `bridge` is the only one
    #[arg(short, long, value_name = "DRIVER", value_parser = parse_driver)]
    driver: Option<String>,
}

/// Docker's other drivers, and why they cannot be had.
fn parse_driver(text: &str) -> Result<String, &'static str> {
    match text {
        "bridge" => Ok(text.to_owned()),
        "macvlan" | "ipvlan" => Err("an address on the host's own network cannot be had without privileges; \
             leave it out, and publish ports"),
        "overlay" => Err("there are no networks over several hosts; leave it out"),
        "host" | "none" => Err("that is a mode of a sandbox, see `tapline run --net`; leave it out"),
        _ => Err("bridge is the only one; leave it out"),
    }
}

/// `KEY=VALUE`; `KEY` alone has an empty value.
fn parse_label(text: &str) -> Result<(String, String), &'static str> {
    let (key, value) = text.split_once('=').unwrap_or((text, ""));
    if key.is_empty() {
        return Err("KEY=VALUE is needed, and the key is empty");
    }
    Ok((key.to_owned(), value.to_owned()))
}

/// What was typed for one family.
struct Family<N, A> {
    subnet: Option<N>,
    gateway: Option<A>,
    range: Option<N>,
}

/// The only one of these, if there is one.
fn single<T: std::fmt::Display + Copy>(what: &str, all: &[T]) -> Result<Option<T>, Failure> {
    match all {
        [] => Ok(None),
        [one] => Ok(Some(*one)),
        [one, two, ..] => Err(usage(format!("'{what}' is given twice for one family, {one} and {two}: leave one out"))),
    }
}

fn usage(text: String) -> Failure {
    Failure::Usage(VERB, text)
}

/// What one family is to have.
fn wanted<N: std::fmt::Display, A: std::fmt::Display, P, E: std::fmt::Display>(
    name: &str,
    is_on: bool,
    typed: Family<N, A>,
    make: impl Fn(N, Option<A>, Option<N>) -> Result<P, E>,
) -> Result<Wanted<P>, Failure> {
    match typed {
        Family { subnet: Some(subnet), .. } if !is_on => {
            Err(usage(format!("the subnet {subnet} contradicts '--no-{name}': give one of them")))
        }
        Family { subnet: Some(subnet), gateway, range } => {
            make(subnet, gateway, range).map(Wanted::This).map_err(|error| usage(error.to_string()))
        }
        Family { gateway: Some(gateway), .. } => {
            Err(usage(format!("the gateway {gateway} is in no subnet: give --subnet too, or leave it out")))
        }
        Family { range: Some(range), .. } => {
            Err(usage(format!("the ip-range {range} is in no subnet: give --subnet too, or leave it out")))
        }
        _ if is_on => Ok(Wanted::Any),
        _ => Ok(Wanted::No),
    }
}

impl CreateArgs {
    fn draft(&self) -> Result<Draft, Failure> {
        let v4_nets = |nets: &[IpNet]| -> Vec<Ipv4Net> {
            nets.iter().filter_map(|net| if let IpNet::V4(net) = net { Some(*net) } else { None }).collect()
        };
        let v6_nets = |nets: &[IpNet]| -> Vec<Ipv6Net> {
            nets.iter().filter_map(|net| if let IpNet::V6(net) = net { Some(*net) } else { None }).collect()
        };
        let v4_gateways: Vec<Ipv4Addr> =
            self.gateway.iter().filter_map(|ip| if let IpAddr::V4(ip) = ip { Some(*ip) } else { None }).collect();
        let v6_gateways: Vec<Ipv6Addr> =
            self.gateway.iter().filter_map(|ip| if let IpAddr::V6(ip) = ip { Some(*ip) } else { None }).collect();
        let v4 = Family {
            subnet: single("--subnet", &v4_nets(&self.subnet))?,
            gateway: single("--gateway", &v4_gateways)?,
            range: single("--ip-range", &v4_nets(&self.ip_range))?,
        };
        let v6 = Family {
            subnet: single("--subnet", &v6_nets(&self.subnet))?,
            gateway: single("--gateway", &v6_gateways)?,
            range: single("--ip-range", &v6_nets(&self.ip_range))?,
        };
        let v4 = wanted("ipv4", self.ipv4.unwrap_or(!self.no_ipv4), v4, Ipv4Part::new)?;
        let v6 = wanted("ipv6", self.ipv6.unwrap_or(!self.no_ipv6), v6, Ipv6Part::new)?;
        let draft = Draft {
            name: self.name.clone(),
            v4,
            v6,
            mtu: self.mtu.unwrap_or(DEFAULT_MTU),
            sharing: Sharing { internal: self.internal.unwrap_or(false), icc: self.icc.unwrap_or(true) },
            dns: self.dns.clone(),
            dns_search: self.dns_search.iter().filter(|domain| *domain != ".").cloned().collect(),
            labels: self.label.iter().cloned().collect(),
        };
        draft.check().map_err(|error| usage(error.to_string()))?;
        Ok(draft)
    }

    /// Does it.
    pub fn execute(self) -> Result<i32, Failure> {
        let (made, warnings) = Networks::open()?.create(&self.draft()?)?;
        for warning in warnings {
            error::say(&format!("warning: {warning}"));
        }
        output::print(&format!("{}\n", made.id))?;
        Ok(0)
    }
}
