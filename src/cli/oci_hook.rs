//! `tapline oci-hook`.
use std::ffi::OsString;
use std::io::{ErrorKind, IsTerminal, Read};

use clap::{Arg, Args, Command, ValueEnum};

use super::error::Failure;
use super::{Verb, config, options, rooms};
use crate::compat::oci::{LONGEST_STATE, PREFIX, State, StateError, parts};
use crate::control::state::{StateDir, StateError as Missing};
use crate::plan::words;

/// Give a container of runc, crun or another OCI runtime its network
///
/// For the hooks of a container's configuration (config.json), or of Podman and CRI-O (--hooks-dir). The container's state
/// is read from standard input. Its annotations choose what options choose otherwise: `tapline.KEY` is the option --KEY
/// of `tapline attach`. An option that may be repeated takes a list, parted by commas or line ends; a flag takes `true`
/// or `false`. `tapline.net` with `none` leaves the container without a network.
///
/// Podman passes on the annotations of an image, so they may be somebody else's choice. None of them names a file or a
/// descriptor; but they give a container of `--network none` a network, publish ports, and open the host's loopback
/// (host-loopback, reach). Have this hook for images that you trust.
///
/// Nothing is said but errors, which crun shows nobody: its annotation run.oci.hooks.stderr names a file for them. The
/// container needs a network namespace of its own, and a resolv.conf that names the network's DNS address, 10.0.2.3
/// unless another subnet is chosen: mount a file there.
#[derive(Args, Debug)]
pub struct OciHookArgs {
    /// Which hook this is
    #[arg(value_name = "HOOK", value_enum)]
    stage: Stage,
}

/// A hook (OCI runtime specification, "POSIX-platform Hooks").
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "camelCase")]
enum Stage {
    /// The container's namespaces are there, its program does not run yet: attach
    #[value(alias = "prestart")]
    CreateRuntime,
    /// The container has gone: let go
    Poststop,
}

const VERB: &str = "oci-hook";

/// So many characters are said of an annotation that is wrong, which may be a whole document.
const MOST_SAID: usize = 500;

/// Besides what belongs to one call: who made the image may have made the annotation, and is to choose no file of the
/// user's.
const NOT_BY_ANNOTATION: [&str; 1] = ["pcap"];

impl OciHookArgs {
    /// Does it.
    pub fn execute(self) -> Result<i32, Failure> {
        let state = read()?;
        match self.stage {
            Stage::CreateRuntime => create(&state),
            Stage::Poststop => let_go(&state.sandbox_id()).map(|()| 0),
        }
    }
}

fn read() -> Result<State, Failure> {
    let input = std::io::stdin();
    if input.is_terminal() {
        return Err(Failure::Usage(VERB, StateError::Nothing.to_string()));
    }
    let mut bytes = Vec::new();
    input.lock().take(LONGEST_STATE as u64 + 1).read_to_end(&mut bytes)?;
    State::parse(&bytes).map_err(|error| Failure::Usage(VERB, error.to_string()))
}

fn create(state: &State) -> Result<i32, Failure> {
    let pid = state.process().map_err(|error| Failure::Usage(VERB, error.to_string()))?;
    let id = state.sandbox_id();
    let Some(chosen) = chosen(state, &super::command())? else { return Ok(0) };
    let mut words: Vec<OsString> = vec!["tapline".into(), "attach".into(), "--detach".into()];
    // A runtime shows what is said, whether it matters or not.
    words.extend((!chosen.is_talkative).then(|| "--quiet".into()));
    words.push(format!("--name={}", words::default_name(&state.id, &id)).into());
    words.extend(chosen.words);
    words.push(pid.to_string().into());
    let Some(Verb::Attach(args)) = super::parse(words)?.command else {
        return Err(anyhow::anyhow!("the options of the annotations are not those of attach").into());
    };
    check_visible(pid)?;
    // Of an earlier run of this container, whose end was not noticed yet.
    let_go(&id)?;
    args.execute_as(id)
}

/// Refuses a container's process whose namespaces its runtime does not show.
fn check_visible(pid: i32) -> Result<(), Failure> {
    match std::fs::File::open(format!("/proc/{pid}/ns/net")) {
        Err(error) if error.kind() == ErrorKind::PermissionDenied => Err(anyhow::anyhow!(
            "the runtime does not let the namespaces of the container's process {pid} be looked at (crun hides it until \
             the program runs): start the runtime in a user namespace, as Podman does, or with `unshare --map-root-user`; \
             or run this hook as `poststart`"
        )
        .into()),
        // Everything else is said by `attach`.
        _ => Ok(()),
    }
}

/// What annotations choose.
#[derive(Debug, PartialEq, Eq)]
struct Chosen {
    /// Options of `attach`.
    words: Vec<OsString>,
    /// How much is to be said is among them.
    is_talkative: bool,
}

/// What the annotations choose; `None` for no network at all. Each is checked alone, so that a mistake can be told with
/// its annotation.
fn chosen(state: &State, description: &Command) -> Result<Option<Chosen>, Failure> {
    let attach = config::subcommand(description, "attach");
    let mut chosen = Chosen { words: Vec::new(), is_talkative: false };
    let mut seen: Vec<&str> = Vec::new();
    for (key, value) in state.annotations() {
        let wrong = |text: String| {
            // The runtime shows this on somebody's terminal.
            let text = format!("annotation {PREFIX}{key}: {text}");
            Failure::Usage(VERB, text.chars().take(MOST_SAID).map(|c| if c.is_control() { '?' } else { c }).collect())
        };
        let Some((option, arg)) = option(attach, key) else {
            if attach.get_arguments().any(|arg| arg.get_long() == Some(key)) {
                return Err(wrong(format!("--{key} is for the command line only")));
            }
            let nearest = match config::nearest(key, keys(attach)) {
                Some(nearest) => format!("; did you mean {PREFIX}{nearest}?"),
                None => "; the options of `tapline attach` can be chosen, without the hyphens in front".to_owned(),
            };
            return Err(wrong(format!("unknown{nearest}")));
        };
        if seen.contains(&option) {
            return Err(wrong(format!("another annotation already stands for --{option}: leave one of them out")));
        }
        seen.push(option);
        if option == "net" && value.trim() == "none" {
            return Ok(None);
        }
        let words = option_words(option, arg, value).map_err(|wanted| wrong(format!("it must be {wanted}")))?;
        config::check_alone(arg, &words).map_err(wrong)?;
        chosen.is_talkative |= ["verbose", "quiet"].contains(&option);
        chosen.words.extend(words);
    }
    Ok(Some(chosen))
}

/// The options of `attach` that a container's annotations choose, or why they cannot be had. For the fuzz target.
pub fn words_of(state: &State) -> Result<Option<Vec<OsString>>, String> {
    match chosen(state, &super::command()) {
        Ok(chosen) => Ok(chosen.map(|chosen| chosen.words)),
        Err(Failure::Usage(_, text)) => Err(text),
        Err(other) => Err(format!("{other:?}")),
    }
}

/// The option that a key means, by its name or another that help shows.
fn option<'c>(verb: &'c Command, key: &str) -> Option<(&'c str, &'c Arg)> {
    let is_alias = |arg: &&Arg| arg.get_visible_aliases().is_some_and(|all| all.contains(&key));
    let long = verb.get_arguments().find(is_alias).and_then(Arg::get_long).unwrap_or(key);
    let arg = config::option(verb, long)?;
    Some((arg.get_long()?, arg)).filter(|(long, _)| !NOT_BY_ANNOTATION.contains(long))
}

/// All options that an annotation may choose.
fn keys(attach: &Command) -> impl Iterator<Item = &str> {
    config::keys(attach).filter(|key| !NOT_BY_ANNOTATION.contains(key))
}

/// The words that an annotation stands for, or what its value must be.
fn option_words(option: &str, arg: &Arg, value: &str) -> Result<Vec<OsString>, &'static str> {
    let value = value.trim();
    let word = |value: &str| OsString::from(format!("--{option}={value}"));
    match arg.get_action() {
        _ if options::is_flag(arg) => match value {
            "true" | "false" => Ok(vec![word(value)]),
            _ => Err("`true` or `false`"),
        },
        clap::ArgAction::Count => match value.parse() {
            Ok(times @ 0..=9) => Ok((0..times).map(|_| format!("--{option}").into()).collect()),
            _ => Err("a number from 0 to 9"),
        },
        clap::ArgAction::Append => match parts(option, value) {
            none if none.is_empty() => Err("a value, or several with commas between them"),
            several => Ok(several.iter().map(|one| word(one)).collect()),
        },
        _ if value.is_empty() => Err("a value"),
        _ => Ok(vec![word(value)]),
    }
}

/// Ends the sandbox of this id, if there is one; returns when it has let go of everything.
fn let_go(id: &str) -> Result<(), Failure> {
    match StateDir::open()?.find(id) {
        Ok(state) if state.id == id => Ok(rooms::stop(&state)?),
        Ok(_) | Err(Missing::NotFound(_)) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen_by(annotations: &str) -> Result<Option<Vec<String>>, String> {
        let state = State::parse(format!(r#"{{"id":"a","pid":1,"annotations":{annotations}}}"#).as_bytes()).unwrap();
        match chosen(&state, &crate::cli::command()) {
            Ok(chosen) => Ok(chosen.map(|c| c.words.into_iter().map(|w| w.into_string().unwrap()).collect())),
            Err(Failure::Usage(VERB, text)) => Err(text),
            Err(other) => panic!("{other:?}"),
        }
    }

    #[test]
    fn annotations_become_options_of_attach() {
        let words = chosen_by(
            r#"{"tapline.publish":"8080:80,127.0.0.1:53:53/udp", "tapline.network":"front", "tapline.ip":"10.9.0.7",
                "tapline.ip6":"fd09::7", "tapline.mac":"02:00:00:00:00:07", "tapline.mtu":"1400", "tapline.name":"web",
                "tapline.dns":"192.0.2.1,192.0.2.2", "tapline.network-alias":"a,b", "tapline.add-host":"x:192.0.2.9",
                "tapline.host-loopback":"true", "tapline.ipv4-only":"false", "tapline.verbose":"2", "other.net":"y"}"#,
        );
        let mut words = words.unwrap().unwrap();
        words.sort();
        assert_eq!(
            words,
            [
                "--add-host=x:192.0.2.9",
                "--dns=192.0.2.1",
                "--dns=192.0.2.2",
                "--host-loopback=true",
                "--ip6=fd09::7",
                "--ip=10.9.0.7",
                "--ipv4-only=false",
                "--mac=02:00:00:00:00:07",
                "--mtu=1400",
                "--name=web",
                "--net=front",
                "--network-alias=a",
                "--network-alias=b",
                "--publish=127.0.0.1:53:53/udp",
                "--publish=8080:80",
                "--verbose",
                "--verbose",
            ]
        );
    }

    #[test]
    fn no_annotation_is_a_network_of_its_own_and_none_is_none() {
        assert_eq!(chosen_by("{}"), Ok(Some(Vec::new())));
        assert_eq!(chosen_by("null"), Ok(Some(Vec::new())));
        assert_eq!(chosen_by(r#"{"tapline.net":"none"}"#), Ok(None));
    }

    #[test]
    fn a_mistake_is_told_with_its_annotation() {
        for (annotations, sentence) in [
            (r#"{"tapline.publsh":"80"}"#, "annotation tapline.publsh: unknown; did you mean tapline.publish?"),
            (r#"{"tapline.detach":"true"}"#, "annotation tapline.detach: --detach is for the command line only"),
            (r#"{"tapline.pcap":"/home/me/.profile"}"#, "annotation tapline.pcap: --pcap is for the command line only"),
            (r#"{"tapline.\u001b[2Jx":"true"}"#, "annotation tapline.?[2Jx: unknown"),
            (r#"{"tapline.name":"a\n\u001b[2J"}"#, "annotation tapline.name: 'a??[2J' is no value"),
            (r#"{"tapline.hostname":"a"}"#, "annotation tapline.hostname: unknown; the options of `tapline attach`"),
            (r#"{"tapline.mtu":"70000"}"#, "annotation tapline.mtu: '70000' is no value for '--mtu"),
            (r#"{"tapline.publish":"89-80"}"#, "annotation tapline.publish: "),
            (r#"{"tapline.dns":" "}"#, "annotation tapline.dns: it must be a value"),
            (r#"{"tapline.ipv4-only":"yes"}"#, "annotation tapline.ipv4-only: it must be `true` or `false`"),
            (r#"{"tapline.net":"a","tapline.network":"b"}"#, "annotation tapline.network: another annotation"),
        ] {
            let error = chosen_by(annotations).unwrap_err();
            assert!(error.starts_with(sentence), "{annotations}: {error}");
        }
    }

    #[test]
    fn a_long_mistake_is_cut_short() {
        let long = "x".repeat(1 << 16);
        for annotation in [format!(r#"{{"tapline.{long}":""}}"#), format!(r#"{{"tapline.name":"{long}"}}"#)] {
            assert_eq!(chosen_by(&annotation).unwrap_err().len(), MOST_SAID);
        }
    }

    /// Whoever adds an option to `attach` decides here whether an image may choose it: none that names a file, a
    /// descriptor, a process or a namespace.
    #[test]
    fn an_annotation_chooses_neither_files_nor_descriptors() {
        let description = crate::cli::command();
        let attach = config::subcommand(&description, "attach");
        let mut may: Vec<&str> = keys(attach).collect();
        may.sort();
        let wanted = "add-host allow-metadata default-net dns dns-search expose host-loopback ifname ip ip6 ipv4-only \
                      ipv6-only link-kind log-format mac mtu name net network-alias no-configure no-dns on outbound-addr \
                      outbound-interface proxy-protocol publish publish-all publish-from quiet reach require-confinement subnet \
                      subnet6 udp-timeout verbose";
        assert_eq!(may.join(" "), wanted);
        for key in ["pcap", "pid-file", "ready-fd", "exit-fd", "netns", "userns", "detach", "dry-run"] {
            assert!(option(attach, key).is_none(), "{key}");
        }
    }
}
