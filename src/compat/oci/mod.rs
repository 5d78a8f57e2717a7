//! `tapline oci-hook`: a network for containers of OCI runtimes.
//!
//! # Theory of operation
//!
//! An OCI runtime (runc, crun, youki) runs hooks and gives each the container's state as JSON on standard input (OCI
//! runtime specification, "State" and "POSIX-platform Hooks"). `createRuntime` comes when the container's namespaces are
//! there and its program is not: a supervisor is attached to the process in the state, goes to the background, and the
//! hook returns when the network works; an exit status other than 0 ends the start, and the runtime shows what was said
//! on standard error. `poststop` comes when the container has gone; the supervisor has noticed that by itself, as a
//! rule, and the hook sees that it has let go of everything.
//!
//! What the container is to get stands in its annotations: `tapline.KEY` is the option `--KEY` of `attach`, with the
//! same rules as a key of the configuration file. An annotation is one string, so an option that may be repeated takes a
//! list, parted by commas or line ends ([`parts`]). Annotations of others are not looked at.
//!
//! The two hooks find each other by [`State::sandbox_id`], which is made of what both are told: the container's id and
//! its bundle. Nothing is written down besides what `attach` writes.
//!
//! Here is what the state and its annotations say, without a system call; [`crate::cli`] makes options of them.
use std::collections::BTreeMap;

use serde::Deserialize;

/// Longest state that is read, in bytes: annotations may hold whole documents.
pub const LONGEST_STATE: usize = 1 << 20;

/// What our annotations begin with.
pub const PREFIX: &str = "tapline.";

/// Longest id of a container, in bytes. Those of runtimes are file names (NAME_MAX).
const LONGEST_ID: usize = 255;

/// Options whose values may have commas of their own: a part that begins so belongs to the one before it.
const CONTINUED: [(&str, &[&str]); 2] =
    [("net", &["ip=", "ip6=", "mac=", "mac-address=", "alias=", "ifname="]), ("publish", &["proxy="])];

/// Why a state cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// Too long.
    #[error("the container's state on standard input is longer than a mebibyte: nothing was done")]
    TooLong,
    /// Nothing there.
    #[error(
        "there is no container's state on standard input: this command is for the hooks of an OCI runtime, which writes \
         it there"
    )]
    Nothing,
    /// Not JSON, or not a state.
    #[error("what stands on standard input is no container's state (OCI runtime specification): {0}")]
    Format(serde_json::Error),
    /// A part of it is out of bounds.
    #[error("the container's state has {0}")]
    Value(&'static str),
    /// The process is needed and not there.
    #[error("the container's state names no process (`pid`): createRuntime is for a container that has been created")]
    NoProcess,
}

/// A container's state, as far as it matters here.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct State {
    /// The container's id, unique for its runtime.
    pub id: String,
    /// Its process, in the runtime's PID namespace; runtimes leave it out, or say 0, where there is none.
    #[serde(default)]
    pid: Option<i64>,
    /// Absolute path of its bundle.
    #[serde(default)]
    bundle: String,
    /// What its maker has noted.
    #[serde(default)]
    annotations: Option<BTreeMap<String, String>>,
}

impl State {
    /// From what the runtime writes.
    pub fn parse(bytes: &[u8]) -> Result<State, StateError> {
        if bytes.len() > LONGEST_STATE {
            return Err(StateError::TooLong);
        }
        if bytes.trim_ascii().is_empty() {
            return Err(StateError::Nothing);
        }
        let state: State = serde_json::from_slice(bytes).map_err(StateError::Format)?;
        match () {
            _ if state.id.is_empty() => Err(StateError::Value("an empty id")),
            _ if state.id.len() > LONGEST_ID => Err(StateError::Value("an id of more than 255 bytes")),
            _ if state.id.contains(['/', '\0']) => Err(StateError::Value("an id that is no file name")),
            _ => Ok(state),
        }
    }

    /// The container's process.
    pub fn process(&self) -> Result<i32, StateError> {
        match self.pid {
            None | Some(0) => Err(StateError::NoProcess),
            Some(pid) => i32::try_from(pid).ok().filter(|pid| *pid > 0).ok_or(StateError::Value("a pid out of range")),
        }
    }

    /// The annotations that are ours: key without the prefix, and value.
    pub fn annotations(&self) -> impl Iterator<Item = (&str, &str)> {
        let all = self.annotations.iter().flatten();
        all.filter_map(|(key, value)| Some((key.strip_prefix(PREFIX)?, value.as_str())))
    }

    /// The id of the sandbox that this container is to tapline: 12 hexadecimal digits, the same for both hooks.
    pub fn sandbox_id(&self) -> String {
        let words = [self.id.as_bytes(), b"\0", self.bundle.as_bytes()];
        let hash = words
            .into_iter()
            .flatten()
            .fold(FNV_OFFSET, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(FNV_PRIME));
        // The upper bits depend on all bytes.
        format!("{:012x}", hash >> 16)
    }
}

// FNV-1a with 64 bits. It must be the same in every version: a container may outlive an update.
const FNV_OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
const FNV_PRIME: u64 = 0x0100_0000_01b3;

/// The values in the list that an annotation is, for an option that may be repeated. Line ends part them always, commas
/// where what follows is not a continuation, as in `name=front,ip=10.9.0.7` for `net`.
pub fn parts(key: &str, value: &str) -> Vec<String> {
    let continued = CONTINUED.iter().find(|(option, _)| *option == key).map_or(&[][..], |(_, begins)| begins);
    let mut all = Vec::new();
    for line in value.lines() {
        let mut of_line: Vec<String> = Vec::new();
        for part in line.split(',').map(str::trim) {
            match of_line.last_mut() {
                Some(last) if continued.iter().any(|begin| part.starts_with(begin)) => {
                    last.push(',');
                    last.push_str(part);
                }
                _ => of_line.push(part.to_owned()),
            }
        }
        all.extend(of_line.into_iter().filter(|part| !part.is_empty()));
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(text: &str) -> Result<State, String> {
        State::parse(text.as_bytes()).map_err(|error| error.to_string())
    }

    #[test]
    fn what_runtimes_write_is_understood() {
        let of_runc = r#"{"ociVersion":"1.0.2-dev","id":"web","status":"creating","pid":4711,"bundle":"/b",
            "annotations":{"tapline.publish":"8080:80","org.example":"x"}}"#;
        let of_crun = r#"{"ociVersion":"1.0","id":"web","pid":0,"root":"rootfs","bundle":"/b","status":"stopped"}"#;
        let created = state(of_runc).unwrap();
        assert_eq!((created.id.as_str(), created.process().unwrap()), ("web", 4711));
        assert_eq!(created.annotations().collect::<Vec<_>>(), [("publish", "8080:80")]);
        let stopped = state(of_crun).unwrap();
        assert!(matches!(stopped.process(), Err(StateError::NoProcess)));
        assert_eq!(stopped.sandbox_id(), created.sandbox_id());
    }

    #[test]
    fn what_is_no_state_is_refused() {
        assert!(state(" \n").unwrap_err().contains("no container's state"));
        for (text, why) in [
            ("[]", "no container's state"),
            ("{", "EOF"),
            (r#"{"pid":1}"#, "missing field `id`"),
            (r#"{"id":""}"#, "empty id"),
            (r#"{"id":"a/b"}"#, "no file name"),
            (r#"{"id":"a","annotations":{"tapline.net":7}}"#, "expected a string"),
        ] {
            let error = state(text).unwrap_err();
            assert!(error.contains(why), "{text}: {error}");
        }
        assert!(state(&format!(r#"{{"id":"{}"}}"#, "x".repeat(256))).unwrap_err().contains("255"));
        assert!(matches!(State::parse(&vec![b' '; LONGEST_STATE + 1]), Err(StateError::TooLong)));
        for pid in ["-1", "4294967297"] {
            let odd = state(&format!(r#"{{"id":"a","pid":{pid}}}"#)).unwrap();
            assert!(matches!(odd.process(), Err(StateError::Value(_))), "{pid}");
        }
    }

    #[test]
    fn containers_of_one_id_in_two_bundles_are_two_sandboxes() {
        let id = |bundle: &str| state(&format!(r#"{{"id":"a","bundle":"{bundle}"}}"#)).unwrap().sandbox_id();
        assert_ne!(id("/one"), id("/two"));
        // As every version has it.
        assert_eq!(id("/one"), "1e526a52f646");
    }

    #[test]
    fn a_list_is_parted_by_commas_and_line_ends() {
        assert_eq!(parts("dns", "192.0.2.1, 192.0.2.2"), ["192.0.2.1", "192.0.2.2"]);
        assert_eq!(parts("dns", "192.0.2.1\n192.0.2.2\n"), ["192.0.2.1", "192.0.2.2"]);
        assert_eq!(parts("publish", "8080:80,proxy=v1,53/udp"), ["8080:80,proxy=v1", "53/udp"]);
        assert_eq!(parts("net", "name=front,ip=10.9.0.7,back"), ["name=front,ip=10.9.0.7", "back"]);
        assert_eq!(parts("net", "front,name=back,alias=a"), ["front", "name=back,alias=a"]);
        assert_eq!(parts("add-host", "a=192.0.2.1,b=192.0.2.2"), ["a=192.0.2.1", "b=192.0.2.2"]);
        assert_eq!(parts("dns", " ,"), [""; 0]);
    }
}
