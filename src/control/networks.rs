//! Shared networks: their definitions, and who has which address.
//!
//! # Theory of operation
//!
//! A definition is a file, `$XDG_DATA_HOME/tapline/networks/NAME.toml` ([`file`]): it survives reboots, and a person can
//! read and edit it. Definitions belong to the user; who is on a network belongs to (user, host network namespace) and is
//! told by claims in the runtime state directory ([`super::state::claims`]):
//!
//! ```text
//! networks/<name>/v4/<address>    one for each sandbox on the network, likewise v6/
//! networks/<name>/mac/<address>   one for each, whatever its families
//! networks/bridge/bridge.toml     see below
//! definitions/bridge.toml         likewise
//! ```
//!
//! Two locks, always taken in this order: the one of the definitions' directory (flock on the directory itself), then
//! the base's. Whoever makes or removes a definition holds the first exclusively; whoever takes addresses holds it
//! shared from the reading of the definition until the claims are there, so that `rm` either sees the claims or comes
//! before the reading. Files are replaced by rename after fsync: nobody ever reads half of one, a crash leaves the old
//! one. A file that cannot be read is reported with its line and is no obstacle for other networks; its subnet is
//! unknown, and may be chosen again.
//!
//! **Subnets** that nobody asked for overlap neither another definition nor a route of the host's main table (a route of
//! under four bits, such as a VPN's 0.0.0.0/1, is a way to everywhere and does not count). One that was asked for is
//! refused when it overlaps another network, and only warned of when it overlaps a route.
//!
//! **`bridge`** is made on first use. Two things can be in the way: the directory of the definitions cannot be written,
//! or the definition's subnet is in use in this host namespace (this may be a `tapline run` inside a sandbox that is on
//! `bridge` itself). Then a definition for this namespace alone is kept in the state directory. It counts where the
//! other cannot be used. While anybody is on `bridge` the definition that the first of them found stays the one that
//! counts, of which a copy is kept: whoever has another home, or none, is on the same network.
//!
//! **Addresses** are handed out lowest free first. What is free is seen by reading directories and trying the locks of
//! those who are there: no state file is read. The Ethernet address is made of the IP address; where somebody asked for
//! one by hand that another would be given, that other's address is passed over.
use std::cell::OnceCell;
use std::collections::HashSet;
use std::fmt;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use ipnet::IpNet;

use super::state::{Holder, Locked, Registration, StateDir, StateError};
use crate::plan::subnet::{self, Pool, overlap};
use crate::plan::{
    BRIDGE, Definition, DefinitionError, Draft, Ipv4Part, Ipv6Part, Join, MacAddr, Network, Wanted, parse_network_name,
};
use crate::sys::netlink::Netlink;
use crate::sys::random;

pub mod file;

use file::FileError;

/// Routes to more of the world than this many bits of prefix say are no sign that addresses are in use.
const SHORTEST_ROUTE: u8 = 4;

/// Why a network cannot be used, made or removed. One sentence for the person.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// Nobody has defined it.
    #[error("there is no network `{0}`: `tapline network ls` lists those there are")]
    NotFound(String),
    /// Several ids begin so.
    #[error("`{prefix}` is the beginning of several networks' ids ({}): give more digits or the name", ids.join(", "))]
    Ambiguous {
        /// What was given.
        prefix: String,
        /// Which it could be.
        ids: Vec<String>,
    },
    /// Its file cannot be read.
    #[error(transparent)]
    File(#[from] FileError),
    /// It cannot be one.
    #[error(transparent)]
    Definition(#[from] DefinitionError),
    /// The name is taken.
    #[error("there is a network `{0}` already: choose another name, or remove it with `tapline network rm {0}`")]
    NameTaken(String),
    /// Likewise, and for good.
    #[error(
        "there is a network `{BRIDGE}` already, and it cannot be removed: to change it, edit {} while no sandbox is on it",
        .0.display()
    )]
    BridgeTaken(PathBuf),
    /// Its subnet overlaps another network's.
    #[error("the subnet {subnet} overlaps {other_subnet} of the network `{other}`: choose another, or leave it out")]
    Overlap {
        /// The subnet that was asked for.
        subnet: IpNet,
        /// The other network.
        other: String,
        /// The other subnet.
        other_subnet: IpNet,
    },
    /// No subnet is free.
    #[error("no {0} subnet is free that overlaps neither another network nor a route of the host: give one (--subnet)")]
    NoneFree(&'static str),
    /// Sandboxes are on it.
    #[error(
        "the network `{name}` is in use by {}: stop them, or disconnect them with `tapline network disconnect {name} SANDBOX`",
        Names(by)
    )]
    InUse {
        /// The network.
        name: String,
        /// Who is on it.
        by: Vec<Holder>,
    },
    /// It cannot be removed.
    #[error("the network `{BRIDGE}` is that of every sandbox that asks for no other, and cannot be removed")]
    Permanent,
    /// The address is somebody else's.
    #[error("{address} on the network `{network}` is taken by the sandbox `{}` ({}): ask for another, or for none", by.name, by.id)]
    Taken {
        /// The IP or Ethernet address.
        address: String,
        /// The network.
        network: String,
        /// Who has it.
        by: Holder,
    },
    /// Nobody can have the address.
    #[error(
        "{address} cannot be had on the network `{network}` ({subnet}), it {problem}: ask for another, or for none"
    )]
    Impossible {
        /// The IP or Ethernet address.
        address: String,
        /// What is wrong with it.
        problem: &'static str,
        /// The network.
        network: String,
        /// Its subnet.
        subnet: String,
    },
    /// The network has no addresses of this family.
    #[error("the network `{network}` has no {family}: {address} cannot be had there, leave it out")]
    NoFamily {
        /// The network.
        network: String,
        /// The family.
        family: &'static str,
        /// What was asked for.
        address: IpAddr,
    },
    /// A group address.
    #[error("{0} is a group's Ethernet address, no interface can have it: use an even first byte, like 02")]
    Group(MacAddr),
    /// All addresses are taken.
    #[error(
        "the network `{network}` has no free address left in {range}: end a sandbox on it, or make a network with a larger --subnet or --ip-range"
    )]
    Exhausted {
        /// The network.
        network: String,
        /// Where addresses are taken from.
        range: IpNet,
    },
    /// The sandbox is there already.
    #[error("the sandbox `{sandbox}` is on the network `{network}` already: name a network once")]
    Twice {
        /// The sandbox.
        sandbox: String,
        /// The network.
        network: String,
    },
    /// The sandbox could not tell two networks apart.
    #[error(
        "the subnet {subnet} of the network `{network}` overlaps {other} of the sandbox's network `{own}`: use networks that do not"
    )]
    Ambivalent {
        /// The network that was asked for.
        network: String,
        /// Its subnet.
        subnet: IpNet,
        /// One that the sandbox is on.
        own: String,
        /// That one's subnet.
        other: IpNet,
    },
    /// There is no place for definitions.
    #[error("neither XDG_DATA_HOME nor HOME names a directory: set one of them, networks are kept there")]
    NoHome,
    /// A file operation failed.
    #[error("cannot {what} {path}: {error}", path = path.display())]
    Io {
        /// What was tried, as a verb.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        error: io::Error,
    },
    /// The state directory.
    #[error(transparent)]
    State(#[from] StateError),
}

type Result<T, E = NetworkError> = std::result::Result<T, E>;

fn failed(what: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> NetworkError {
    move |error| NetworkError::Io { what, path: path.into(), error }
}

/// A few names, and how many more there are.
struct Names<'h>(&'h [Holder]);

impl fmt::Display for Names<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const MOST: usize = 5;
        for (n, holder) in self.0.iter().take(MOST).enumerate() {
            write!(f, "{}`{}`", if n == 0 { "" } else { ", " }, holder.name)?;
        }
        match self.0.len().saturating_sub(MOST) {
            0 => Ok(()),
            1 => f.write_str(" and one other"),
            more => write!(f, " and {more} others"),
        }
    }
}

/// A place on a network that a sandbox has taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The network, as the gateway is to know it.
    pub network: Network,
    /// The IPv4 address.
    pub v4: Option<Ipv4Addr>,
    /// The IPv6 address.
    pub v6: Option<Ipv6Addr>,
    /// The Ethernet address: the one asked for, or made of the IPv4 (else IPv6) address.
    pub mac: MacAddr,
    /// The network's resolvers, for an endpoint that names none itself; empty means the host's.
    pub dns_servers: Vec<IpAddr>,
}

/// The definitions there are.
#[derive(Debug, Default)]
pub struct Listing {
    /// Those that can be read, by name.
    pub definitions: Vec<Definition>,
    /// What is wrong with the others.
    pub broken: Vec<NetworkError>,
}

/// The definitions of this user's networks.
#[derive(Debug)]
pub struct Networks {
    /// Where they are; `None` when no variable says it.
    dir: Option<PathBuf>,
    states: StateDir,
    /// Routes of the host, once asked for.
    routes: OnceCell<Vec<IpNet>>,
}

/// The directory's lock, held.
struct Guard(#[expect(dead_code, reason = "open is locked")] File);

impl Networks {
    /// The definitions of the caller's user. Call it in the host's network namespace.
    pub fn open() -> Result<Networks> {
        // The XDG base directory specification: relative paths are to be ignored.
        let absolute = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
        let data = absolute("XDG_DATA_HOME").or_else(|| Some(absolute("HOME")?.join(".local/share")));
        Ok(Networks::at(data.map(|data| data.join("tapline/networks")), StateDir::open()?, None))
    }

    /// The same with everything given: the definitions' directory, the state directory, and the host's routes unless
    /// they are to be asked for.
    pub fn at(dir: Option<PathBuf>, states: StateDir, routes: Option<Vec<IpNet>>) -> Networks {
        Networks { dir, states, routes: routes.map_or_else(OnceCell::new, OnceCell::from) }
    }

    /// All of them.
    pub fn list(&self) -> Result<Listing> {
        let mut listing = self.kept()?;
        // One that is broken is in the listing as such.
        if let Ok(Some(bridge)) = self.usable_bridge(&self.states.lock()?) {
            listing.definitions.retain(|other| other.name != bridge.name);
            listing.definitions.push(bridge);
        }
        listing.definitions.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(listing)
    }

    /// The network of this name, this id, or the only one whose id begins so. `bridge` is made when it is asked for.
    pub fn find(&self, name_or_id: &str) -> Result<Definition> {
        Ok(self.hold(name_or_id, || self.states.lock())?.definition)
    }

    /// Everybody who is on a network, in whichever host network namespace, by name.
    pub fn users(&self, name: &str) -> Vec<Holder> {
        self.states.holders_everywhere(&format!("{}/mac", claims_of(name)))
    }

    /// Makes a network. What is odd about it and no reason to refuse it comes back beside it, for the person.
    pub fn create(&self, draft: &Draft) -> Result<(Definition, Vec<String>)> {
        parse_network_name(&draft.name)?;
        let _guard = self.lock_exclusively()?;
        let dir = self.dir()?;
        let listing = self.kept()?;
        let same = |path: &Path| path.file_stem().is_some_and(|stem| stem.eq_ignore_ascii_case(draft.name.as_str()));
        if files(dir)?.iter().any(|path| same(path)) {
            return Err(match draft.name.as_str() {
                BRIDGE => NetworkError::BridgeTaken(path_of(dir, BRIDGE)),
                name => NetworkError::NameTaken(name.to_owned()),
            });
        }
        let mut others = listing.definitions;
        if draft.name != BRIDGE {
            others.extend(self.usable_bridge(&self.states.lock()?).ok().flatten());
        }
        let (definition, mut warnings) = self.complete(draft, &others)?;
        warnings.extend(listing.broken.iter().map(|error| format!("{error} (its subnet may be chosen again)")));
        write_definition(dir, &definition)?;
        Ok((definition, warnings))
    }

    /// Removes a network that nobody is on; its name.
    pub fn remove(&self, name_or_id: &str) -> Result<String> {
        let dir = self.dir()?;
        let guard = self.lock_shared()?;
        // A file that cannot be read can be removed all the same.
        let name = match self.kept_definition(name_or_id) {
            Ok(Some(found)) => found.name,
            Err(NetworkError::File(_)) => name_or_id.to_owned(),
            Ok(None) if name_or_id == BRIDGE => BRIDGE.to_owned(),
            Ok(None) => return Err(NetworkError::NotFound(name_or_id.to_owned())),
            Err(error) => return Err(error),
        };
        drop(guard);
        if name == BRIDGE {
            return Err(NetworkError::Permanent);
        }
        let _guard = self.lock_exclusively()?;
        let by = self.users(&name);
        if !by.is_empty() {
            return Err(NetworkError::InUse { name, by });
        }
        let path = path_of(dir, &name);
        match fs::remove_file(&path) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(NetworkError::NotFound(name)),
            Err(error) => return Err(failed("remove", path)(error)),
        }
        sync(dir)?;
        self.states.forget_claims(&claims_of(&name));
        Ok(name)
    }

    /// Removes every network that nobody is on, but `bridge`: the names of those removed, and what went wrong.
    pub fn prune(&self) -> Result<(Vec<String>, Vec<NetworkError>)> {
        let listing = self.kept()?;
        let (mut removed, mut errors) = (Vec::new(), listing.broken);
        for name in listing.definitions.into_iter().map(|definition| definition.name) {
            match self.remove(&name) {
                Ok(name) => removed.push(name),
                // Somebody else was quicker.
                Err(NetworkError::Permanent | NetworkError::InUse { .. } | NetworkError::NotFound(_)) => {}
                Err(error) => errors.push(error),
            }
        }
        Ok((removed, errors))
    }

    /// Take addresses on a network for a registered sandbox: those asked for, or the lowest free ones. They are kept
    /// as long as the registration, or until [`give_back`](Self::give_back). `join` may name the network by its id.
    pub fn take(&self, registration: &mut Registration, join: &Join) -> Result<Place> {
        registration.mend()?;
        let held = self.hold(&join.network, || registration.lock())?;
        let definition = &held.definition;
        let claims = claims_of(&definition.name);
        if registration.has_claims_in(&claims) {
            let sandbox = registration.holder().name;
            return Err(NetworkError::Twice { sandbox, network: definition.name.clone() });
        }
        check_other_networks(registration, definition)?;
        if definition.name == BRIDGE {
            keep_in_use(&held.locked, definition)?;
        }
        let place = Choice::new(definition, &held.locked)?.place(join)?;
        let addresses = [place.v4.map(|ip| format!("v4/{ip}")), place.v6.map(|ip| format!("v6/{ip}"))];
        for address in addresses.into_iter().flatten().chain([format!("mac/{}", place.mac)]) {
            let taken = match registration.claim(&held.locked, &format!("{claims}/{address}")) {
                Ok(None) => continue,
                Ok(Some(by)) => NetworkError::Taken { address, network: definition.name.clone(), by },
                Err(error) => error.into(),
            };
            registration.give_up(&held.locked, &claims)?;
            return Err(taken);
        }
        Ok(place)
    }

    /// Give the addresses on a network back.
    pub fn give_back(&self, registration: &mut Registration, network: &str) {
        let given = registration.lock().and_then(|locked| registration.give_up(&locked, &claims_of(network)));
        if let Err(error) = given {
            tracing::warn!("the addresses on the network `{network}` stay taken: {error}");
        }
    }

    /// The definition of a network, and the locks under which it cannot change; `bridge` is made when it must be.
    fn hold(&self, name: &str, lock: impl Fn() -> Result<Locked, StateError>) -> Result<Held> {
        let guard = self.lock_shared()?;
        let locked = lock()?;
        if name != BRIDGE {
            let definition = self.kept_definition(name)?.ok_or_else(|| NetworkError::NotFound(name.to_owned()))?;
            return Ok(Held { definition, locked, _guard: guard });
        }
        if let Some(definition) = self.usable_bridge(&locked)? {
            return Ok(Held { definition, locked, _guard: guard });
        }
        drop((locked, guard));
        // Without the lock the definition is this namespace's alone, and the base's lock is enough.
        let guard = self.lock_exclusively().ok();
        let locked = lock()?;
        let definition = match self.usable_bridge(&locked)? {
            Some(definition) => definition,
            None => self.make_bridge(&locked, guard.is_some())?,
        };
        Ok(Held { definition, locked, _guard: guard })
    }

    /// The definition of `bridge` that counts here; `None` when there is none that can be used.
    fn usable_bridge(&self, locked: &Locked) -> Result<Option<Definition>> {
        let in_use = !locked.living(&format!("{}/mac", claims_of(BRIDGE)))?.is_empty();
        if in_use && let Ok(Some(definition)) = bridge_in_use(locked) {
            return Ok(Some(definition));
        }
        let is_usable = |candidate: &Definition| in_use || self.route_in(candidate.subnets()).is_none();
        if let Some(kept) = self.kept_definition(BRIDGE)?.filter(is_usable) {
            return Ok(Some(kept));
        }
        Ok(self.local_bridge(locked)?.filter(is_usable))
    }

    fn make_bridge(&self, locked: &Locked, dir_is_locked: bool) -> Result<Definition> {
        let mut others = self.kept()?.definitions;
        let is_kept = others.iter().any(|other| other.name == BRIDGE);
        others.retain(|other| other.name != BRIDGE || self.route_in(other.subnets()).is_some());
        let (definition, _) = self.complete(&Draft::new(BRIDGE), &others)?;
        if dir_is_locked && !is_kept && self.dir().and_then(|dir| write_definition(dir, &definition)).is_ok() {
            return Ok(definition);
        }
        let dir = locked.base().join(LOCAL);
        make_dir(&dir)?;
        write_definition(&dir, &definition)?;
        Ok(definition)
    }

    fn local_bridge(&self, locked: &Locked) -> Result<Option<Definition>> {
        read_definition(&path_of(&locked.base().join(LOCAL), BRIDGE), BRIDGE)
    }

    /// Fills in what was not asked for, and checks the rest against the other networks and the host's routes.
    fn complete(&self, draft: &Draft, others: &[Definition]) -> Result<(Definition, Vec<String>)> {
        let mut warnings = Vec::new();
        let mut check = |subnet: IpNet| {
            for other in others {
                if let Some(other_subnet) = other.subnets().find(|net| overlap(*net, subnet)) {
                    return Err(NetworkError::Overlap { subnet, other: other.name.clone(), other_subnet });
                }
            }
            if let Some(route) = self.route_in([subnet]) {
                warnings.push(format!(
                    "the subnet {subnet} overlaps the host's route to {route}: what lies there cannot be reached from the network"
                ));
            }
            Ok(())
        };
        let taken: Vec<IpNet> =
            others.iter().flat_map(Definition::subnets).chain(self.routes().iter().copied()).collect();
        let v4 = match draft.v4 {
            Wanted::No => None,
            Wanted::This(part) => {
                check(part.subnet.into())?;
                Some(part)
            }
            Wanted::Any => {
                let subnet = subnet::free_ipv4(&taken).ok_or(NetworkError::NoneFree("IPv4"))?;
                Some(Ipv4Part::new(subnet, None, None)?)
            }
        };
        let v6 = match draft.v6 {
            Wanted::No => None,
            Wanted::This(part) => {
                check(part.subnet.into())?;
                Some(part)
            }
            Wanted::Any => {
                let tries = (0..8).find_map(|_| subnet::free_ipv6(random::bytes(), &taken));
                Some(Ipv6Part::new(tries.ok_or(NetworkError::NoneFree("IPv6"))?, None, None)?)
            }
        };
        let definition = Definition {
            name: draft.name.clone(),
            id: random::bytes::<6>().iter().map(|byte| format!("{byte:02x}")).collect(),
            v4,
            v6,
            mtu: draft.mtu,
            sharing: draft.sharing,
            dns: draft.dns.clone(),
            dns_search: draft.dns_search.clone(),
            labels: draft.labels.clone(),
            #[expect(clippy::disallowed_methods, reason = "shown, not waited for")]
            created: since_1970(SystemTime::now()),
        };
        definition.check()?;
        Ok((definition, warnings))
    }

    /// A route of the host that one of these subnets overlaps.
    fn route_in(&self, subnets: impl IntoIterator<Item = IpNet>) -> Option<IpNet> {
        let subnets: Vec<IpNet> = subnets.into_iter().collect();
        self.routes().iter().copied().find(|route| subnets.iter().any(|subnet| overlap(*subnet, *route)))
    }

    /// The host's routes that count. Where they cannot be had there are none to be careful of.
    fn routes(&self) -> &[IpNet] {
        self.routes.get_or_init(|| {
            let routes = Netlink::open().and_then(|mut netlink| netlink.routes()).unwrap_or_else(|error| {
                tracing::warn!("{error}: subnets are chosen without knowing the host's routes");
                Vec::new()
            });
            let long = routes.iter().filter(|route| route.prefix >= SHORTEST_ROUTE);
            // Every link has a route to fe80::/64; no network can have that.
            long.filter_map(|route| IpNet::new(route.destination, route.prefix).ok()).collect()
        })
    }

    fn dir(&self) -> Result<&Path> {
        self.dir.as_deref().ok_or(NetworkError::NoHome)
    }

    /// The definitions in the directory, unlocked: each file is whole at any time.
    fn kept(&self) -> Result<Listing> {
        let mut listing = Listing::default();
        let Some(dir) = &self.dir else { return Ok(listing) };
        for path in files(dir)? {
            let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            match read_definition(&path, &name) {
                Ok(Some(definition)) => listing.definitions.push(definition),
                Ok(None) => {}
                Err(error) => listing.broken.push(error),
            }
        }
        Ok(listing)
    }

    /// The definition in the directory with this name, this id, or the only one whose id begins so.
    fn kept_definition(&self, name_or_id: &str) -> Result<Option<Definition>> {
        let Some(dir) = &self.dir else { return Ok(None) };
        parse_network_name(name_or_id)?;
        if let Some(found) = read_definition(&path_of(dir, name_or_id), name_or_id)? {
            return Ok(Some(found));
        }
        if name_or_id == BRIDGE || !name_or_id.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Ok(None);
        }
        let mut matching = self.kept()?.definitions;
        matching.retain(|definition| definition.id.starts_with(name_or_id));
        if matching.len() > 1 {
            let ids = matching.into_iter().map(|definition| definition.id).collect();
            return Err(NetworkError::Ambiguous { prefix: name_or_id.to_owned(), ids });
        }
        Ok(matching.pop())
    }

    /// The directory's lock, as long as it may be read with others; `None` without a directory.
    fn lock_shared(&self) -> Result<Option<Guard>> {
        let Some(dir) = &self.dir else { return Ok(None) };
        match File::open(dir) {
            Ok(file) => {
                file.lock_shared().map_err(failed("lock", dir))?;
                Ok(Some(Guard(file)))
            }
            Err(error) if is_no_place(&error) => Ok(None),
            Err(error) => Err(failed("open", dir)(error)),
        }
    }

    /// The directory's lock for a change; makes the directory.
    fn lock_exclusively(&self) -> Result<Guard> {
        let dir = self.dir()?;
        make_dir(dir)?;
        let file = File::open(dir).map_err(failed("open", dir))?;
        file.lock().map_err(failed("lock", dir))?;
        Ok(Guard(file))
    }
}

/// A definition, and the locks that keep it as it is, in the order in which they are let go.
struct Held {
    definition: Definition,
    locked: Locked,
    _guard: Option<Guard>,
}

/// The definition of `bridge` as those who are on it found it.
fn bridge_in_use(locked: &Locked) -> Result<Option<Definition>> {
    read_definition(&path_of(&locked.base().join(claims_of(BRIDGE)), BRIDGE), BRIDGE)
}

/// Somebody is about to be on `bridge`: who comes later is to find the same definition.
fn keep_in_use(locked: &Locked, definition: &Definition) -> Result<()> {
    if bridge_in_use(locked).is_ok_and(|kept| kept.as_ref() == Some(definition)) {
        return Ok(());
    }
    let dir = locked.base().join(claims_of(BRIDGE));
    make_dir(&dir)?;
    write_definition(&dir, definition)
}

/// Below a base: definitions for this namespace alone.
const LOCAL: &str = "definitions";

/// Below a base: the claims on a network.
fn claims_of(network: &str) -> String {
    format!("networks/{network}")
}

fn path_of(dir: &Path, name: &str) -> PathBuf {
    dir.join(format!("{name}.toml"))
}

fn since_1970(at: SystemTime) -> u64 {
    at.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// Is there no directory, or one that is somebody else's? Then there are no definitions of ours in it.
fn is_no_place(error: &io::Error) -> bool {
    use io::ErrorKind::{NotADirectory, NotFound, PermissionDenied};
    matches!(error.kind(), NotFound | NotADirectory | PermissionDenied)
}

/// The files that should be definitions.
fn files(dir: &Path) -> Result<Vec<PathBuf>> {
    match fs::read_dir(dir) {
        Ok(entries) => {
            let paths = entries.flatten().map(|entry| entry.path());
            let is_shown =
                |path: &PathBuf| !path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
            Ok(paths.filter(|path| path.extension().is_some_and(|end| end == "toml") && is_shown(path)).collect())
        }
        Err(error) if is_no_place(&error) => Ok(Vec::new()),
        Err(error) => Err(failed("read", dir)(error)),
    }
}

/// A definition; `None` when there is no such file.
fn read_definition(path: &Path, name: &str) -> Result<Option<Definition>> {
    let modified = match fs::metadata(path) {
        Ok(meta) => meta.modified().map_or(0, since_1970),
        Err(error) if is_no_place(&error) => return Ok(None),
        Err(error) => return Err(failed("read", path)(error)),
    };
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed("read", path)(error)),
    };
    if let Err(error) = parse_network_name(name) {
        return Err(FileError { path: path.to_owned(), line: 1, problem: format!("{error}; rename the file") }.into());
    }
    Ok(Some(file::read(path, name, &text, modified)?))
}

/// Puts a definition in its place in one step that survives a crash.
fn write_definition(dir: &Path, definition: &Definition) -> Result<()> {
    let path = path_of(dir, &definition.name);
    let new = dir.join(format!(".{}.toml.new", definition.name));
    let write = || {
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
        file.write_all(file::write(definition).as_bytes())?;
        file.sync_all()?;
        fs::rename(&new, &path)
    };
    write().map_err(|error| {
        let _ = fs::remove_file(&new);
        failed("write", &path)(error)
    })?;
    sync(dir)
}

fn sync(dir: &Path) -> Result<()> {
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(failed("write", dir))
}

fn make_dir(dir: &Path) -> Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(failed("make the directory", dir))
}

/// A sandbox that is on two networks must know which one an address is on.
fn check_other_networks(registration: &Registration, definition: &Definition) -> Result<()> {
    for own in registration.seats().iter().map(|seat| &seat.network) {
        let v4 = own.v4.map(|layout| IpNet::from(layout.subnet));
        for other in v4.into_iter().chain(own.v6.map(|layout| layout.subnet.into())) {
            if let Some(subnet) = definition.subnets().find(|subnet| overlap(*subnet, other)) {
                let (network, own) = (definition.name.clone(), own.name.clone());
                return Err(NetworkError::Ambivalent { network, subnet, own, other });
            }
        }
    }
    Ok(())
}

/// Chooses addresses on a network while its claims cannot change.
struct Choice<'d> {
    definition: &'d Definition,
    network: Network,
    locked: &'d Locked,
    addresses: HashSet<IpAddr>,
    macs: HashSet<MacAddr>,
}

impl<'d> Choice<'d> {
    fn new(definition: &'d Definition, locked: &'d Locked) -> Result<Choice<'d>> {
        let claims = claims_of(&definition.name);
        let living = |kind| locked.living(&format!("{claims}/{kind}"));
        let addresses = living("v4")?.iter().chain(&living("v6")?).filter_map(|text| text.parse().ok()).collect();
        let macs = living("mac")?.iter().filter_map(|text| text.parse().ok()).collect();
        Ok(Choice { definition, network: definition.network(), locked, addresses, macs })
    }

    fn place(self, join: &Join) -> Result<Place> {
        let free = |mac| self.network.gateway_mac != mac && !self.macs.contains(&mac);
        let derives = join.mac.is_none();
        let v4 = self.address(
            "IPv4",
            self.definition.v4.map(|part| part.pool()),
            join.v4.map(IpAddr::from),
            |ip| matches!(ip, IpAddr::V4(ip) if !derives || free(MacAddr::from_ipv4(ip))),
        )?;
        let derives = derives && v4.is_none();
        let v6 = self.address(
            "IPv6",
            self.definition.v6.map(|part| part.pool()),
            join.v6.map(IpAddr::from),
            |ip| matches!(ip, IpAddr::V6(ip) if !derives || free(MacAddr::from_ipv6(ip))),
        )?;
        let (v4, v6) = match (v4, v6) {
            (Some(IpAddr::V4(v4)), Some(IpAddr::V6(v6))) => (Some(v4), Some(v6)),
            (Some(IpAddr::V4(v4)), _) => (Some(v4), None),
            (_, Some(IpAddr::V6(v6))) => (None, Some(v6)),
            _ => return Err(DefinitionError::NoFamily.into()),
        };
        let made = v4.map(MacAddr::from_ipv4).or_else(|| v6.map(MacAddr::from_ipv6)).unwrap_or_default();
        let mac = join.mac.unwrap_or(made);
        self.check_mac(mac)?;
        Ok(Place { v4, v6, mac, dns_servers: self.definition.dns.clone(), network: self.network })
    }

    /// The address asked for, or the lowest free one that `suits`.
    fn address(
        &self,
        family: &'static str,
        pool: Option<Pool>,
        asked: Option<IpAddr>,
        suits: impl Fn(IpAddr) -> bool,
    ) -> Result<Option<IpAddr>> {
        let network = || self.definition.name.clone();
        let (pool, address) = match (pool, asked) {
            (None, None) => return Ok(None),
            (None, Some(address)) => return Err(NetworkError::NoFamily { network: network(), family, address }),
            (Some(pool), None) => {
                let free = pool.lowest_free(|ip| self.addresses.contains(&ip) || !suits(ip));
                let exhausted = || NetworkError::Exhausted { network: network(), range: pool.range };
                return free.ok_or_else(exhausted).map(Some);
            }
            (Some(pool), Some(address)) => (pool, address),
        };
        if let Some(problem) = pool.refusal(address) {
            let subnet = pool.subnet.to_string();
            return Err(NetworkError::Impossible { address: address.to_string(), problem, network: network(), subnet });
        }
        if self.addresses.contains(&address) {
            let kind = if address.is_ipv4() { "v4" } else { "v6" };
            self.check_free(kind, &address.to_string())?;
        }
        Ok(Some(address))
    }

    fn check_mac(&self, mac: MacAddr) -> Result<()> {
        if mac.is_group() {
            return Err(NetworkError::Group(mac));
        }
        if mac == self.network.gateway_mac {
            let (address, network) = (mac.to_string(), self.definition.name.clone());
            let subnet = self.definition.subnets().map(|net| net.to_string()).collect::<Vec<_>>().join(", ");
            return Err(NetworkError::Impossible { address, problem: "is the gateway's", network, subnet });
        }
        self.check_free("mac", &mac.to_string())
    }

    fn check_free(&self, kind: &str, address: &str) -> Result<()> {
        match self.locked.holder(&format!("{}/{kind}/{address}", claims_of(&self.definition.name)))? {
            None => Ok(()),
            Some(by) => {
                Err(NetworkError::Taken { address: address.to_owned(), network: self.definition.name.clone(), by })
            }
        }
    }
}

#[cfg(test)]
mod tests;
