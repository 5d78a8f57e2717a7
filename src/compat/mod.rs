//! Other tools' command lines, and the hook of OCI runtimes, turned into the plans of `run` and `attach`.
//!
//! # Theory of operation
//!
//! The program looks at the name it was called by: the last part of `argv[0]`. `slirp4netns` is that tool's command line, a
//! name with `pasta` in it is pasta's; everything else is tapline's own ([`crate::cli`]). Each of these command lines keeps
//! its own words, texts and exit statuses, and ends in the same [`crate::plan`] that `run` and `attach` end in; nobody
//! behind the plan knows by which name the program was called.
//!
//! | module | what |
//! | --- | --- |
//! | [`getopt`] | options as getopt_long(3) reads them |
//! | [`slirp4netns`] | slirp4netns 1.3.3 |
//! | [`pasta`] | pasta of passt |
//! | [`manual`] | what their manual pages are made of |
//! | [`oci`] | `tapline oci-hook`, for runc, crun and their like |
use std::ffi::{OsStr, OsString};
use std::path::Path;
use std::process::ExitCode;

pub mod getopt;
pub mod manual;
pub mod oci;
pub mod pasta;
pub mod slirp4netns;

/// A command line of another tool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tool {
    /// slirp4netns.
    Slirp4netns,
    /// pasta.
    Pasta,
}

impl Tool {
    /// The tool that a program is called as, by its `argv[0]`.
    pub fn of(called: &OsStr) -> Option<Tool> {
        let name = Path::new(called).file_name()?.to_string_lossy();
        if name == "slirp4netns" {
            Some(Tool::Slirp4netns)
        } else if name.contains("pasta") {
            Some(Tool::Pasta)
        } else {
            None
        }
    }

    /// Runs its command line, `argv[0]` first; the process's exit status.
    pub fn main(self, words: Vec<OsString>) -> ExitCode {
        match self {
            Tool::Slirp4netns => slirp4netns::main(words),
            Tool::Pasta => pasta::main(words),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_decides() {
        for (called, tool) in [
            ("slirp4netns", Some(Tool::Slirp4netns)),
            ("/usr/bin/slirp4netns", Some(Tool::Slirp4netns)),
            ("slirp4netns-old", None),
            ("pasta", Some(Tool::Pasta)),
            ("/usr/libexec/podman/pasta.avx2", Some(Tool::Pasta)),
            ("tapline", None),
            ("/home/pasta/tapline", None),
            ("", None),
        ] {
            assert_eq!(Tool::of(called.as_ref()), tool, "{called}");
        }
    }
}
