//! Claims: names and addresses that a sandbox has for itself as long as it lives.
//!
//! # Theory of operation
//!
//! A claim is a file below the base, `names/web` or `networks/db/v4/10.9.0.2`, and there is at most one of each path:
//! whoever has the file has the name. It is a hard link to the lock file of the sandbox's entry, so that one lock on one
//! descriptor stands for everything a sandbox has, and all of it is free in the moment in which its supervisor ends,
//! however it ends. To see what is taken is to read a directory; nobody reads the state of two hundred sandboxes to
//! start another.
//!
//! Claims are made and given up under the base's lock ([`Locked`]). The lock file's text says whose it is (its first
//! line: id and name), and then which claims there are, a line for each: who meets the entry of a dead supervisor can
//! take them away with it. A claim of a dead one that nobody has met is taken over as if it were not there. The
//! directories of names and addresses may lie in several roots (see [`super`]): all are looked at, new claims are made
//! beside the sandbox's own entry.
use std::cell::RefCell;
use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::{DirEntryExt, FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use super::{Registration, Result, StateDir, failed, is_held, lock_base, make_private_dir, remove_entry};
use crate::sys::random;

/// So many entries are looked at with each registration, in case their supervisors are dead.
const SWEEP: usize = 8;

/// A lock file is no longer than this, in bytes.
const LONGEST: u64 = 1 << 20;

/// Who has a claim.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Holder {
    /// The sandbox's id.
    pub id: String,
    /// The sandbox's name.
    pub name: String,
}

/// The claim to a sandbox's name. Names are the same whatever the case of their letters, as in DNS.
pub(super) fn of_name(name: &str) -> String {
    format!("names/{}", name.to_ascii_lowercase())
}

/// Who has this claim; `None` when nobody who lives.
pub(super) fn holder(path: &Path) -> Option<Holder> {
    if !is_held(path) {
        return None;
    }
    let text = read_lock(path).unwrap_or_default();
    let (id, name) = text.lines().next().and_then(|line| line.split_once(' ')).unwrap_or(("?", "?"));
    Some(Holder { id: id.to_owned(), name: name.to_owned() })
}

fn read_lock(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    File::open(path)?.take(LONGEST).read_to_string(&mut text)?;
    Ok(text)
}

pub(super) fn is_same_file(path: &Path, file: &File) -> bool {
    match (fs::metadata(path), file.metadata()) {
        (Ok(there), Ok(ours)) => there.ino() == ours.ino() && there.dev() == ours.dev(),
        _ => false,
    }
}

/// A base's lock, held. While it is, nobody else makes claims there or gives them up.
#[derive(Debug)]
pub struct Locked {
    /// The base.
    base: PathBuf,
    /// All bases of this namespace.
    all: Vec<PathBuf>,
    _lock: File,
    /// Which lock files, by their base and inode, are those of the living: they have many names.
    alive: RefCell<HashMap<(usize, u64), bool>>,
}

impl Locked {
    pub(super) fn new(dir: &StateDir, base: PathBuf) -> Result<Locked> {
        let lock = lock_base(&base)?;
        Ok(Locked { all: dir.existing_bases().collect(), base, _lock: lock, alive: RefCell::default() })
    }

    /// The directory that is locked.
    pub fn base(&self) -> &Path {
        &self.base
    }

    /// The last parts of all claims of living sandboxes in a directory. Those of dead ones are removed on the way.
    pub fn living(&self, directory: &str) -> Result<Vec<String>> {
        let mut found = Vec::new();
        let mut alive = self.alive.borrow_mut();
        for (n, base) in self.all.iter().enumerate() {
            let path = base.join(directory);
            let entries = match fs::read_dir(&path) {
                Ok(entries) => entries,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(failed("read", path)(error)),
            };
            for entry in entries.flatten() {
                if *alive.entry((n, entry.ino())).or_insert_with(|| is_held(&entry.path())) {
                    found.extend(entry.file_name().into_string());
                } else if *base == self.base {
                    let _ = fs::remove_file(entry.path());
                }
            }
        }
        Ok(found)
    }

    /// Who has this claim. An error where that cannot be found out because this process may open no more files: it would
    /// look like somebody else's.
    pub fn holder(&self, claim: &str) -> Result<Option<Holder>> {
        for path in self.all.iter().map(|base| base.join(claim)) {
            if let Some(holder) = holder(&path) {
                return match File::open(&path) {
                    Err(error) if matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE)) => {
                        Err(failed("open", path)(error))
                    }
                    _ => Ok(Some(holder)),
                };
            }
        }
        Ok(None)
    }

    /// Looks at a few entries, and takes those away whose supervisor is dead: so leftovers do not pile up where nobody
    /// ever lists the sandboxes.
    pub(super) fn sweep(&self) {
        let Ok(entries) = fs::read_dir(self.base.join("sandboxes")) else { return };
        let entries: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
        let Some(start) = usize::from(random::u16()).checked_rem(entries.len()) else { return };
        for entry in entries.iter().cycle().skip(start).take(SWEEP.min(entries.len())) {
            self.remove_leftover(entry);
        }
    }

    /// Takes an entry of this base away, with its claims, unless its supervisor lives.
    pub(super) fn remove_leftover(&self, entry: &Path) {
        let lock = entry.join("lock");
        if is_held(&lock) {
            return;
        }
        if let (Ok(text), Ok(file)) = (read_lock(&lock), File::open(&lock)) {
            for claim in text.lines().skip(1).filter(|claim| !claim.contains("..") && !claim.starts_with('/')) {
                let claim = self.base.join(claim);
                if is_same_file(&claim, &file) {
                    let _ = fs::remove_file(claim);
                }
            }
        }
        remove_entry(entry);
    }
}

impl StateDir {
    /// Take the lock of the directory where sandboxes are registered.
    pub fn lock(&self) -> Result<Locked> {
        Locked::new(self, self.usable_base()?)
    }

    /// Everybody who has a claim in a directory, in whichever host network namespace of this user, by name.
    pub fn holders_everywhere(&self, directory: &str) -> Vec<Holder> {
        let mut found: Vec<Holder> = self
            .existing_roots()
            .filter_map(|root| fs::read_dir(root).ok())
            .flat_map(|bases| bases.flatten())
            .filter_map(|base| fs::read_dir(base.path().join(directory)).ok())
            .flat_map(|claims| claims.flatten())
            .filter_map(|claim| holder(&claim.path()))
            .collect();
        found.sort_by(|a, b| (&a.name, &a.id).cmp(&(&b.name, &b.id)));
        found.dedup();
        found
    }

    /// Takes away a directory of directories of claims that nobody will make any in, with the claims of the dead. Where
    /// that fails it stays, and is no harm.
    pub fn forget_claims(&self, directory: &str) {
        for base in self.existing_bases() {
            let Ok(locked) = Locked::new(self, base.clone()) else { continue };
            let kinds = fs::read_dir(base.join(directory)).into_iter().flatten().flatten();
            for kind in kinds.filter_map(|kind| kind.file_name().into_string().ok()) {
                let below = format!("{directory}/{kind}");
                let _ = locked.living(&below);
                let _ = fs::remove_dir(base.join(below));
            }
            let _ = fs::remove_dir(base.join(directory));
        }
    }
}

impl Registration {
    /// Take the lock that claims are made under.
    pub fn lock(&self) -> Result<Locked> {
        match self.entry.parent().and_then(Path::parent) {
            Some(base) if base.is_dir() => Locked::new(&self.dir, base.to_owned()),
            _ => self.dir.lock(),
        }
    }

    /// The sandbox, as a holder of claims.
    pub fn holder(&self) -> Holder {
        Holder { id: self.last.id.clone(), name: self.last.name.clone() }
    }

    /// Has it claims in this directory?
    pub fn has_claims_in(&self, directory: &str) -> bool {
        self.claims.iter().any(|claim| is_in(claim, directory))
    }

    /// Make a claim; when another sandbox has it already, who.
    pub fn claim(&mut self, locked: &Locked, claim: &str) -> Result<Option<Holder>> {
        if let Some(holder) = locked.holder(claim)?.filter(|holder| holder.id != self.last.id) {
            return Ok(Some(holder));
        }
        let path = locked.base.join(claim);
        let mut directory = locked.base.clone();
        for part in Path::new(claim).parent().into_iter().flat_map(Path::components) {
            directory.push(part);
            make_private_dir(&directory)?;
        }
        // What is there is a dead one's, or ours.
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed("replace", path)(error)),
            _ => {}
        }
        fs::hard_link(self.entry.join("lock"), &path).map_err(failed("claim", path))?;
        if !self.claims.iter().any(|other| other == claim) {
            self.claims.push(claim.to_owned());
        }
        self.write_claims()?;
        Ok(None)
    }

    /// Give up all claims in a directory.
    pub fn give_up(&mut self, locked: &Locked, directory: &str) -> Result<()> {
        let (gone, kept) = std::mem::take(&mut self.claims).into_iter().partition(|claim| is_in(claim, directory));
        self.claims = kept;
        self.remove_claims(&locked.base, &gone);
        self.write_claims()
    }

    /// Takes claims away that are still this sandbox's.
    pub(super) fn remove_claims(&self, base: &Path, claims: &[String]) {
        for path in claims.iter().map(|claim| base.join(claim)) {
            if is_same_file(&path, &self.lock) {
                let _ = fs::remove_file(path);
            }
        }
    }

    /// Writes to the lock file whose it is and what is claimed. The first line, which anybody may read at any time, stays
    /// as it is.
    pub(super) fn write_claims(&self) -> Result<()> {
        let mut text = format!("{} {}\n", self.last.id, self.last.name);
        for claim in &self.claims {
            text.push_str(claim);
            text.push('\n');
        }
        let write = || {
            self.lock.write_all_at(text.as_bytes(), 0)?;
            self.lock.set_len(text.len() as u64)
        };
        write().map_err(failed("write", self.entry.join("lock")))
    }
}

fn is_in(claim: &str, directory: &str) -> bool {
    claim.strip_prefix(directory).is_some_and(|rest| rest.starts_with('/'))
}
