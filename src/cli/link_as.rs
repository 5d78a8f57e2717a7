//! `tapline link-as`.
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow, bail};
use clap::{Args, ValueEnum};

use super::error::Failure;
use super::output;

/// Have tapline called as another tool: make a link to it under that tool's name
///
/// Under the name of slirp4netns or pasta tapline has that tool's options, texts and exit statuses; see
/// tapline-slirp4netns(1) and tapline-pasta(1). The link leads to the file of this very program. One that is there
/// already is renewed; anything else of that name is left alone.
#[derive(Args, Debug)]
pub struct LinkAsArgs {
    /// The tool
    #[arg(value_name = "TOOL", value_enum)]
    tool: Name,

    /// Where the link is made; the directory must exist
    #[arg(value_name = "DIR")]
    directory: PathBuf,
}

/// A tool whose place tapline can take.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "lower")]
enum Name {
    /// slirp4netns
    Slirp4netns,
    /// pasta, of passt
    Pasta,
}

impl Name {
    fn word(self) -> &'static str {
        match self {
            Name::Slirp4netns => "slirp4netns",
            Name::Pasta => "pasta",
        }
    }

    /// What there is to do next, for a link at `link` in `directory`.
    fn next(self, link: &Path, directory: &Path) -> String {
        let (quoted, shown) = (quoted(link), link.display());
        match self {
            Name::Slirp4netns => format!(
                "\
For Podman, in ~/.config/containers/containers.conf:

    [engine]
    network_cmd_path = {quoted}

(and with Podman 5, where pasta is usual: [network] default_rootless_network_cmd = \"slirp4netns\").
For Buildah, which looks for it in PATH:

    PATH={}:$PATH buildah ...

For RootlessKit:

    rootlesskit --net=slirp4netns --slirp4netns-binary={shown} ...
",
                directory.display()
            ),
            Name::Pasta => format!(
                "\
For Podman and Buildah, in ~/.config/containers/containers.conf:

    [engine]
    helper_binaries_dir = [{}, \"/usr/local/libexec/podman\", \"/usr/local/lib/podman\", \"/usr/libexec/podman\", \"/usr/lib/podman\"]

For scripts, which look for it in PATH:

    PATH={}:$PATH
",
                self::quoted(directory),
                directory.display()
            ),
        }
    }
}

/// A string of a TOML file.
fn quoted(path: &Path) -> String {
    toml::Value::String(path.to_string_lossy().into_owned()).to_string()
}

impl LinkAsArgs {
    /// Does it.
    pub fn execute(self) -> Result<i32, Failure> {
        let own = own_file()?;
        let directory = fs::canonicalize(&self.directory)
            .with_context(|| format!("cannot use the directory {}", self.directory.display()))?;
        let link = directory.join(self.tool.word());
        make(&own, &link)?;
        output::print(&format!("{} -> {}\n\n{}", link.display(), own.display(), self.tool.next(&link, &directory)))?;
        Ok(0)
    }
}

/// The file of this program.
fn own_file() -> anyhow::Result<PathBuf> {
    let own = fs::read_link("/proc/self/exe").context("cannot find this program's own file in /proc")?;
    // The kernel adds a word to the path of a file that is not there any more (proc(5)).
    if !fs::metadata(&own).is_ok_and(|meta| meta.is_file()) {
        bail!("this program's file has been removed or replaced since it was started: start it again by its path");
    }
    Ok(own)
}

/// Makes the link, or renews it.
fn make(own: &Path, link: &Path) -> anyhow::Result<()> {
    let shown = link.display();
    match fs::symlink_metadata(link) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(anyhow!("cannot look at {shown}: {error}")),
        Ok(_) if is_such_a_link(own, link) => {}
        Ok(_) => bail!("{shown} is there and is no link to tapline: remove it, or take another directory"),
    }
    // In one step, for those who are calling it just now.
    let new = link.with_extension(format!("new-{}", std::process::id()));
    std::os::unix::fs::symlink(own, &new)
        .with_context(|| format!("cannot make a link in {}", parent(link).display()))?;
    fs::rename(&new, link).or_else(|error| {
        let _ = fs::remove_file(&new);
        Err(error).with_context(|| format!("cannot make the link {shown}"))
    })
}

fn parent(link: &Path) -> &Path {
    link.parent().unwrap_or(link)
}

/// Does a link lead to this program, or did it to an earlier one of the same name?
fn is_such_a_link(own: &Path, link: &Path) -> bool {
    fs::read_link(link).is_ok_and(|to| to.file_name().is_some() && to.file_name() == own.file_name())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_link_to_us_stays() {
        let directory = std::env::temp_dir().join(format!("tapline-link-as-{}", std::process::id()));
        fs::create_dir(&directory).unwrap();
        let (own, link) = (Path::new("/opt/tapline/bin/tapline"), directory.join("pasta"));
        make(own, &link).unwrap();
        // An older one, and one that leads nowhere, are renewed.
        make(Path::new("/usr/bin/tapline"), &link).unwrap();
        assert_eq!(fs::read_link(&link).unwrap(), Path::new("/usr/bin/tapline"));
        fs::remove_file(&link).unwrap();
        std::os::unix::fs::symlink("/usr/bin/passt", &link).unwrap();
        assert!(make(own, &link).unwrap_err().to_string().contains("is no link to tapline"));
        fs::remove_file(&link).unwrap();
        fs::write(&link, "theirs").unwrap();
        assert!(make(own, &link).is_err());
        assert_eq!(fs::read_to_string(&link).unwrap(), "theirs");
        assert_eq!(fs::read_dir(&directory).unwrap().count(), 1);
        fs::remove_dir_all(&directory).unwrap();
    }

    #[test]
    fn paths_are_quoted_as_toml_wants_it() {
        assert_eq!(quoted(Path::new("/a b/slirp4netns")), "\"/a b/slirp4netns\"");
        for odd in ["/a\"b", "/a\\b"] {
            let parsed: toml::Table = format!("x = {}", quoted(Path::new(odd))).parse().unwrap();
            assert_eq!(parsed["x"].as_str(), Some(odd));
        }
    }
}
