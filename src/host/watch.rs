//! What a gateway must know of the host, gathered and watched by the supervisor.
//!
//! # Theory of operation
//!
//! A gateway opens no file and asks no kernel about routes; its supervisor does, and tells it a [`HostView`]: the
//! host's own addresses, its resolvers and its search domains. [`HostWatch`] gathers a view and says when it has
//! changed. It blocks nowhere and needs no runtime: its descriptors go into the supervisor's poll, and
//! [`HostWatch::handle_ready`] gathers anew and gives the view if it is another one. Whatever the event was, the
//! view is gathered from what is there *then*: events may be lost or merged, the last one counts.
//!
//! *Addresses.* The host's own address of a family is what its connections come from: the preferred source of the
//! best default route, else the first global address on that route's interface, else the first global address
//! anywhere that is not the loopback's. Changes come from netlink groups.
//!
//! *resolv.conf* is rarely one file that is written to. It is replaced by rename, it becomes a link (to
//! systemd-resolved's file, to NetworkManager's), the link's target is replaced, or the target's directory does not
//! exist yet. So each link of the chain has its *directory* watched (inotify), the nearest directory that exists
//! stands in for one that does not, and the file at the end is watched itself, for those that are written in place
//! or bind-mounted. After each event the chain is walked anew.
//!
//! A user may have few inotify instances (fs.inotify.max_user_instances, 128). Without one the file is looked at
//! whenever the supervisor calls [`HostWatch::refresh`]: every [`HostWatch::refresh_interval`].
use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use nix::net::if_::if_nametoindex;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, WatchDescriptor};

use super::resolv::ResolvConf;
use crate::plan::HostView;
use crate::sys::netlink::{Address, Link, Netlink, NetlinkError, Route, Watch};

/// Where the host's resolvers are written down.
pub const RESOLV_CONF: &str = "/etc/resolv.conf";
/// Longest chain of links that is followed (the kernel's own limit is 40).
const MAX_LINKS: usize = 40;
/// How often the file is looked at when it cannot be watched.
const REFRESH: Duration = Duration::from_secs(5);

/// Gathers views of the host and says when they change.
pub struct HostWatch {
    resolv_conf: PathBuf,
    files: Option<Inotify>,
    watched: BTreeMap<PathBuf, WatchDescriptor>,
    /// Directories that somebody else wants to hear of.
    besides: Vec<PathBuf>,
    changes: Watch,
    netlink: Netlink,
    view: HostView,
}

impl HostWatch {
    /// Begin to watch the host: call it in the host's network and mount namespaces.
    pub fn new() -> Result<HostWatch, NetlinkError> {
        HostWatch::with_resolv_conf(Path::new(RESOLV_CONF))
    }

    /// The same with another resolv.conf.
    pub fn with_resolv_conf(path: &Path) -> Result<HostWatch, NetlinkError> {
        // Subscribe before looking, so that nothing happens in between unseen.
        let changes = Watch::open()?;
        let files = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)
            .inspect_err(|error| {
                tracing::info!(
                    "cannot watch {} ({error}); it is looked at every {} seconds instead",
                    path.display(),
                    REFRESH.as_secs()
                );
            })
            .ok();
        let mut watch = HostWatch {
            resolv_conf: path.to_owned(),
            files,
            watched: BTreeMap::new(),
            besides: Vec::new(),
            changes,
            netlink: Netlink::open()?,
            view: HostView::default(),
        };
        watch.watch_files();
        watch.view = watch.gather()?;
        Ok(watch)
    }

    /// Have what disappears from these directories, or one of them itself, make a descriptor readable as well, instead of
    /// those before; who calls looks there himself. (A user may have few inotify instances, so this one is shared.)
    pub fn watch_too(&mut self, directories: Vec<PathBuf>) {
        self.besides = directories;
        self.watch_files();
    }

    /// The host as it was gathered last.
    pub fn view(&self) -> &HostView {
        &self.view
    }

    /// What to poll for being readable.
    pub fn fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        std::iter::once(self.changes.as_fd()).chain(self.files.iter().map(AsFd::as_fd))
    }

    /// One of the descriptors is readable: the view, if it has changed.
    pub fn handle_ready(&mut self) -> Option<HostView> {
        let mut changed = self.changes.drain().unwrap_or_else(|error| {
            tracing::warn!("the host's addresses and routes cannot be watched: {error}");
            false
        });
        if let Some(files) = &self.files {
            let mut touched = false;
            while files.read_events().is_ok_and(|events| !events.is_empty()) {
                touched = true;
            }
            if touched {
                self.watch_files();
            }
            changed |= touched;
        }
        if changed { self.refresh() } else { None }
    }

    /// Look again, whether there was an event or not: the view, if it has changed.
    pub fn refresh(&mut self) -> Option<HostView> {
        match self.gather() {
            Ok(view) if view != self.view => {
                self.view = view.clone();
                Some(view)
            }
            Ok(_) => None,
            Err(error) => {
                tracing::warn!("the host cannot be looked at: {error}");
                None
            }
        }
    }

    /// How often [`refresh`](Self::refresh) should be called; `None` where events tell all.
    pub fn refresh_interval(&self) -> Option<Duration> {
        self.files.is_none().then_some(REFRESH)
    }

    fn gather(&mut self) -> Result<HostView, NetlinkError> {
        let (links, addresses, routes) = (self.netlink.links()?, self.netlink.addresses()?, self.netlink.routes()?);
        let own = |v6| own_address(&links, &addresses, &routes, v6);
        let conf = read_resolv_conf(&self.resolv_conf);
        let index_of = |name: &str| if_nametoindex(name).ok();
        Ok(HostView {
            v4: own(false).and_then(|ip| if let IpAddr::V4(ip) = ip { Some(ip) } else { None }),
            v6: own(true).and_then(|ip| if let IpAddr::V6(ip) = ip { Some(ip) } else { None }),
            resolvers: conf.nameservers.iter().filter_map(|server| server.address(index_of)).collect(),
            search: conf.search,
        })
    }

    /// Watch what resolv.conf depends on now, and nothing else.
    fn watch_files(&mut self) {
        let Some(files) = &self.files else { return };
        let flags = AddWatchFlags::IN_CLOSE_WRITE
            | AddWatchFlags::IN_MODIFY
            | AddWatchFlags::IN_CREATE
            | AddWatchFlags::IN_DELETE
            | AddWatchFlags::IN_MOVE
            | AddWatchFlags::IN_ATTRIB
            | AddWatchFlags::IN_DELETE_SELF
            | AddWatchFlags::IN_MOVE_SELF;
        let mut wanted = places(&self.resolv_conf);
        let mut watched = BTreeMap::new();
        // What was made between the look and the watch was not seen: look again until nothing is new.
        for _ in 0..MAX_LINKS {
            watched.clear();
            for path in &wanted {
                // Watching the same file again gives the same descriptor; another file of this path, another one.
                match files.add_watch(path, flags) {
                    Ok(descriptor) => {
                        watched.insert(path.clone(), descriptor);
                    }
                    // Gone since, or not ours to look at. Its directory is watched as well.
                    Err(error) => tracing::debug!("cannot watch {}: {error}", path.display()),
                }
            }
            let now = places(&self.resolv_conf);
            if now == wanted {
                break;
            }
            wanted = now;
        }
        let flags = AddWatchFlags::IN_DELETE | AddWatchFlags::IN_DELETE_SELF | AddWatchFlags::IN_MOVE_SELF;
        for path in self.besides.iter().filter(|path| !watched.contains_key(*path)).cloned().collect::<Vec<_>>() {
            match files.add_watch(&path, flags) {
                Ok(descriptor) => drop(watched.insert(path, descriptor)),
                Err(error) => tracing::debug!("cannot watch {}: {error}", path.display()),
            }
        }
        for (_, old) in std::mem::replace(&mut self.watched, watched) {
            if !self.watched.values().any(|&new| new == old) {
                // The kernel has removed it already where the file is gone.
                let _ = files.rm_watch(old);
            }
        }
    }
}

/// What resolv.conf says; as if it were empty where it cannot be read, which means a resolver on this host.
fn read_resolv_conf(path: &Path) -> ResolvConf {
    let text = std::fs::read(path).unwrap_or_else(|error| {
        if error.kind() != io::ErrorKind::NotFound {
            tracing::warn!("cannot read {}: {error}; asking a resolver on 127.0.0.1", path.display());
        }
        Vec::new()
    });
    ResolvConf::parse(&String::from_utf8_lossy(&text))
}

/// The directories and the file that decide what `path` leads to, each link of the chain considered.
fn places(path: &Path) -> Vec<PathBuf> {
    let mut places = Vec::new();
    let mut at = path.to_owned();
    for _ in 0..MAX_LINKS {
        let directory = at.parent().unwrap_or(Path::new("/"));
        // The directory itself, or as much of its way as there is: it may be made later.
        places.extend(directory.ancestors().find(|d| d.exists()).map(Path::to_owned));
        match std::fs::read_link(&at) {
            Ok(target) => at = normal(&directory.join(target)),
            Err(_) => break,
        }
    }
    if at.exists() {
        places.push(at);
    }
    places.sort();
    places.dedup();
    places
}

/// Without `.` and `..`, where that can be said without following links: only at the root, `..` leads nowhere else.
fn normal(path: &Path) -> PathBuf {
    let mut normal = PathBuf::new();
    for part in path.components() {
        match part {
            Component::CurDir => {}
            // A directory that is a link has another parent than its path says: leave that to the kernel.
            Component::ParentDir if normal.parent().is_none() => {}
            Component::ParentDir if !normal.is_symlink() && !normal.ends_with("..") => {
                normal.pop();
            }
            part => normal.push(part),
        }
    }
    normal
}

/// The host's own address of a family, see the theory of operation.
fn own_address(links: &[Link], addresses: &[Address], routes: &[Route], v6: bool) -> Option<IpAddr> {
    let usable = |a: &&Address| a.ip.is_ipv6() == v6 && a.global && !a.tentative && !a.ip.is_loopback();
    // The kernel, too, takes a deprecated address only when there is no other (RFC 6724, 5, rule 3).
    let first = |of: &dyn Fn(&Address) -> bool| {
        let fitting = || addresses.iter().filter(usable).filter(|a| of(a));
        fitting().find(|a| !a.deprecated).or_else(|| fitting().next()).map(|a| a.ip)
    };
    let default = routes.iter().filter(|r| r.prefix == 0 && r.destination.is_ipv6() == v6).min_by_key(|r| r.priority);
    let is_loopback = |index| links.iter().any(|l| l.index == index && l.loopback);
    default
        .and_then(|route| route.preferred_source)
        .or_else(|| default.and_then(|route| route.index).and_then(|index| first(&|a| a.index == index)))
        .or_else(|| first(&|a| !is_loopback(a.index)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    use std::fs;
    use std::net::SocketAddr;
    use std::os::unix::fs::symlink;
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::time::Instant;

    /// A directory that goes away with the test.
    struct Scratch(PathBuf);

    impl Scratch {
        fn new() -> Scratch {
            static NEXT: AtomicU32 = AtomicU32::new(0);
            let n = NEXT.fetch_add(1, Ordering::Relaxed);
            let path = std::env::temp_dir().join(format!("tapline-watch-{}-{n}", std::process::id()));
            fs::create_dir_all(path.join("etc")).unwrap();
            Scratch(fs::canonicalize(path).unwrap())
        }

        fn at(&self, path: &str) -> PathBuf {
            self.0.join(path)
        }

        fn write(&self, path: &str, server: &str) {
            fs::write(self.at(path), format!("nameserver {server}\n")).unwrap();
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    /// Wait until the watch says that the first resolver is this one.
    fn until(watch: &mut HostWatch, server: &str) {
        let server: SocketAddr = format!("{server}:53").parse().unwrap();
        let end = Instant::now() + Duration::from_secs(10);
        while watch.view().resolvers.first() != Some(&server) {
            assert!(Instant::now() < end, "{:?} instead of {server}", watch.view().resolvers);
            {
                let mut fds: Vec<_> = watch.fds().map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
                poll(&mut fds, PollTimeout::from(1000u16)).unwrap();
            }
            watch.handle_ready();
        }
    }

    #[test]
    fn a_file_that_is_written_replaced_or_removed_is_read_anew() {
        let scratch = Scratch::new();
        scratch.write("etc/resolv.conf", "192.0.2.1");
        let mut watch = HostWatch::with_resolv_conf(&scratch.at("etc/resolv.conf")).unwrap();
        until(&mut watch, "192.0.2.1");
        scratch.write("etc/resolv.conf", "192.0.2.2");
        until(&mut watch, "192.0.2.2");
        for n in 3..6 {
            scratch.write("etc/new", &format!("192.0.2.{n}"));
            fs::rename(scratch.at("etc/new"), scratch.at("etc/resolv.conf")).unwrap();
            until(&mut watch, &format!("192.0.2.{n}"));
        }
        fs::remove_file(scratch.at("etc/resolv.conf")).unwrap();
        until(&mut watch, "127.0.0.1");
        scratch.write("etc/resolv.conf", "192.0.2.7");
        until(&mut watch, "192.0.2.7");
    }

    #[test]
    fn a_link_is_followed_wherever_it_leads_next() {
        let scratch = Scratch::new();
        fs::create_dir_all(scratch.at("run/resolve")).unwrap();
        scratch.write("run/resolve/stub", "192.0.2.1");
        scratch.write("etc/resolv.conf", "192.0.2.9");
        let mut watch = HostWatch::with_resolv_conf(&scratch.at("etc/resolv.conf")).unwrap();
        // The file becomes a link, as when systemd-resolved is installed.
        symlink("../run/resolve/stub", scratch.at("etc/link")).unwrap();
        fs::rename(scratch.at("etc/link"), scratch.at("etc/resolv.conf")).unwrap();
        until(&mut watch, "192.0.2.1");
        // The link's target is replaced, in its own directory.
        scratch.write("run/resolve/new", "192.0.2.2");
        fs::rename(scratch.at("run/resolve/new"), scratch.at("run/resolve/stub")).unwrap();
        until(&mut watch, "192.0.2.2");
        // The link leads to somewhere that does not exist yet, and then does.
        fs::remove_file(scratch.at("etc/resolv.conf")).unwrap();
        symlink(scratch.at("run/other/deep/conf"), scratch.at("etc/resolv.conf")).unwrap();
        until(&mut watch, "127.0.0.1");
        fs::create_dir_all(scratch.at("run/other/deep")).unwrap();
        watch.handle_ready();
        scratch.write("run/other/deep/conf", "192.0.2.3");
        until(&mut watch, "192.0.2.3");
        scratch.write("run/other/deep/conf", "192.0.2.4");
        until(&mut watch, "192.0.2.4");
    }

    #[test]
    fn what_changes_nothing_says_nothing() {
        let scratch = Scratch::new();
        scratch.write("etc/resolv.conf", "192.0.2.1");
        let mut watch = HostWatch::with_resolv_conf(&scratch.at("etc/resolv.conf")).unwrap();
        scratch.write("etc/other", "192.0.2.2");
        scratch.write("etc/resolv.conf", "192.0.2.1");
        let before = watch.view().clone();
        let said = watch.handle_ready();
        // The machine's own addresses may change under the test, its resolvers may not.
        assert!(said.is_none_or(|view| view.resolvers == before.resolvers));
    }

    #[test]
    fn the_chain_of_links_is_watched_to_its_end() {
        let scratch = Scratch::new();
        fs::create_dir(scratch.at("a")).unwrap();
        fs::create_dir(scratch.at("b")).unwrap();
        symlink("../a/second", scratch.at("etc/resolv.conf")).unwrap();
        symlink("../b/./third", scratch.at("a/second")).unwrap();
        scratch.write("b/third", "192.0.2.1");
        let mut expected = vec![scratch.at("a"), scratch.at("b"), scratch.at("b/third"), scratch.at("etc")];
        expected.sort();
        assert_eq!(places(&scratch.at("etc/resolv.conf")), expected);
        // A link to itself ends somewhere.
        symlink("loop", scratch.at("etc/loop")).unwrap();
        assert_eq!(places(&scratch.at("etc/loop")), [scratch.at("etc")]);
    }

    #[test]
    fn new_addresses_and_routes_change_the_view() {
        crate::sys::testing::in_namespace(|| {
            let text = |error: NetlinkError| error.to_string();
            let mut watch = HostWatch::with_resolv_conf(Path::new("/nonexistent/resolv.conf")).map_err(text)?;
            if (watch.view().v4, watch.view().v6) != (None, None) {
                return Err(format!("{:?} in an empty namespace", watch.view()));
            }
            let mut netlink = Netlink::open().map_err(text)?;
            let lo = netlink.link("lo").map_err(text)?.index;
            let up = crate::sys::netlink::LinkChange { up: Some(true), ..Default::default() };
            netlink.change_link(lo, &up).map_err(text)?;
            netlink.add_address(lo, "192.0.2.5".parse().unwrap(), 24).map_err(text)?;
            netlink.add_route(lo, "0.0.0.0".parse().unwrap(), 0, None).map_err(text)?;
            let ready = {
                let mut fds: Vec<_> = watch.fds().map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
                poll(&mut fds, PollTimeout::from(5000u16)).map_err(|e| e.to_string())?
            };
            match watch.handle_ready() {
                Some(view) if view.v4 == Some([192, 0, 2, 5].into()) => Ok(()),
                other => Err(format!("{other:?} after {ready} were ready")),
            }
        });
    }

    fn link(index: u32, loopback: bool) -> Link {
        let name = format!("if{index}");
        Link { index, name, up: true, running: true, loopback, mtu: 1500, mac: None, tx_queue_len: None }
    }

    fn address(index: u32, ip: &str) -> Address {
        let ip: IpAddr = ip.parse().unwrap();
        Address { index, ip, prefix: 24, global: true, tentative: false, deprecated: false }
    }

    fn default_route(index: u32, priority: u32, v6: bool) -> Route {
        let destination: IpAddr = if v6 { "::" } else { "0.0.0.0" }.parse().unwrap();
        Route { destination, prefix: 0, gateway: None, index: Some(index), preferred_source: None, priority }
    }

    #[test]
    fn the_hosts_own_address_is_where_its_default_route_leads_from() {
        let links = [link(1, true), link(2, false), link(3, false)];
        let addresses = [
            address(1, "127.0.0.1"),
            address(1, "192.0.2.99"),
            address(2, "192.0.2.2"),
            address(3, "192.0.2.3"),
            address(3, "192.0.2.4"),
        ];
        let own = |routes: &[Route]| own_address(&links, &addresses, routes, false).map(|ip| ip.to_string());
        assert_eq!(own(&[default_route(2, 100, false), default_route(3, 50, false)]).as_deref(), Some("192.0.2.3"));
        let mut preferring = default_route(3, 0, false);
        preferring.preferred_source = Some("192.0.2.4".parse().unwrap());
        assert_eq!(own(&[preferring]).as_deref(), Some("192.0.2.4"));
        // Without a default route of the family: the first that is not on the loopback.
        assert_eq!(own(&[default_route(3, 0, true)]).as_deref(), Some("192.0.2.2"));
        assert_eq!(own_address(&links, &addresses, &[], true), None);
    }

    #[test]
    fn an_address_that_cannot_be_used_is_not_the_hosts_own() {
        let mut tentative = address(2, "2001:db8::1");
        tentative.tentative = true;
        let mut link_local = address(2, "fe80::1");
        link_local.global = false;
        let mut deprecated = address(2, "2001:db8::3");
        deprecated.deprecated = true;
        let own = |addresses: &[Address]| own_address(&[link(2, false)], addresses, &[default_route(2, 0, true)], true);
        assert_eq!(own(&[tentative, link_local]), None);
        assert_eq!(own(&[deprecated]), Some(deprecated.ip));
        let fresh = address(2, "2001:db8::4");
        assert_eq!(own(&[deprecated, fresh]), Some(fresh.ip));
    }
}
