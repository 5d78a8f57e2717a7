//! The configuration file: `$XDG_CONFIG_HOME/tapline/config.toml`.
//!
//! # Theory of operation
//!
//! There is one description of the options, clap's. A key of the file is the long name of an option; at the top it
//! counts for `run` and `attach` both, in the table `[run]` or `[attach]` for that subcommand, where it takes the
//! place of the one at the top. A list stands for an option given several times, `true` for a flag that is given,
//! `false` for one that is not; `--flag=false` on the command line switches off what the file has on.
//!
//! Each key is looked up in the subcommand's description and turned into words, `--mtu=1500`. The words are checked
//! one key at a time by clap's own parsers, so that a mistake is told with the file, the line and the key, and the
//! whole file is checked whichever subcommand runs. Then they are put in front of what was typed, and all is parsed
//! anew. A key is left out when the same option was typed (lists are replaced, not lengthened), or one that
//! contradicts it: whoever types --ipv6-only does not want the file's --ipv4-only.
//!
//! What belongs to one call only (a dry run, a descriptor, a path of a namespace) has no place in the file. No file
//! is no error; one that cannot be read is.
use std::ffi::OsString;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use clap::{Arg, ArgAction, ArgMatches, Command};
use toml::de::{DeTable, DeValue};

use super::error::{self, Failure};
use super::options;

/// Options of one call, which the file cannot hold.
const NOT_IN_FILE: [&str; 9] =
    ["dry-run", "netns", "userns", "ready-fd", "exit-fd", "pid-file", "detach", "help", "version"];

/// The subcommands that the file has a table for.
const TABLES: [&str; 2] = ["run", "attach"];

/// A key that counts: its option's name, and the words it stands for.
#[derive(Debug, PartialEq, Eq)]
pub struct Entry {
    key: String,
    words: Vec<OsString>,
}

/// What the file says for a subcommand, as words of the command line, less what was typed; `None` without a file.
pub fn words(verb: &str, given: &ArgMatches) -> Result<Option<Vec<OsString>>> {
    let Some(path) = path() else { return Ok(None) };
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => return Ok(None),
        Err(error) => {
            return Err(error).with_context(|| format!("cannot read {}; mend or remove it", path.display()));
        }
    };
    let description = super::command();
    let entries = read(&path, &text, verb, &description)?;
    let kept = entries.into_iter().filter(|entry| !is_overruled(given, &entry.key));
    Ok(Some(kept.flat_map(|entry| entry.words).collect()))
}

fn path() -> Option<PathBuf> {
    // The XDG base directory specification: relative paths are to be ignored.
    let absolute = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let base = absolute("XDG_CONFIG_HOME").or_else(|| Some(absolute("HOME")?.join(".config")))?;
    Some(base.join("tapline/config.toml"))
}

/// The matches of the file's words and the typed ones together.
pub fn merge(mut typed: Vec<OsString>, verb: &str, found: Vec<OsString>) -> Result<ArgMatches, Failure> {
    // The program itself may be called like a subcommand.
    if let Some(at) = typed.iter().skip(1).position(|word| word == verb) {
        typed.splice(at + 2..at + 2, found);
    }
    let both = super::command().try_get_matches_from(typed)?;
    // What contradicts something typed has been left out: the contradiction is the file's own.
    if let Some(text) = both.subcommand().and_then(|(_, both)| options::contradiction(both)) {
        let path = path().unwrap_or_default();
        return Err(anyhow!("{}: {text}", path.display()).into());
    }
    Ok(both)
}

/// A subcommand's description.
pub fn subcommand<'c>(description: &'c Command, verb: &str) -> &'c Command {
    // Asked only for the names in TABLES and those that clap has matched.
    description.find_subcommand(verb).unwrap_or(description)
}

/// Was the option, or one that contradicts it, typed?
fn is_overruled(given: &ArgMatches, key: &str) -> bool {
    options::is_given(given, key) || options::is_contradicted(given, key)
}

/// The option that a key means.
pub fn option<'c>(verb: &'c Command, key: &str) -> Option<&'c Arg> {
    verb.get_arguments().find(|arg| arg.get_long() == Some(key)).filter(|_| !NOT_IN_FILE.contains(&key))
}

/// All keys of a subcommand.
pub fn keys(verb: &Command) -> impl Iterator<Item = &str> {
    verb.get_arguments().filter_map(|arg| arg.get_long()).filter(|key| !NOT_IN_FILE.contains(key))
}

/// The words that a file with this text adds to a subcommand's. For the fuzz target.
pub fn words_of(text: &str, verb: &str) -> Result<Vec<OsString>> {
    let entries = read(Path::new("config.toml"), text, verb, &super::command())?;
    Ok(entries.into_iter().flat_map(|entry| entry.words).collect())
}

/// Reads and checks the whole file; the entries for `verb`.
fn read(path: &Path, text: &str, verb: &str, description: &Command) -> Result<Vec<Entry>> {
    let at = |offset: usize| {
        let line = text.as_bytes().iter().take(offset).filter(|byte| **byte == b'\n').count() + 1;
        format!("{}:{line}", path.display())
    };
    let document = DeTable::parse(text).map_err(|error| {
        let message = error.message().lines().collect::<Vec<_>>().join(", ");
        anyhow!("{}: {message}", at(error.span().map_or(0, |span| span.start)))
    })?;
    let mut entries: Vec<Entry> = Vec::new();
    for (key, value) in document.get_ref() {
        let name = key.get_ref().as_ref();
        let place = at(key.span().start);
        if let (Some(table), true) = (value.get_ref().as_table(), TABLES.contains(&name)) {
            for (key, value) in table {
                let place = at(key.span().start);
                let entry = entry(&place, key.get_ref(), value.get_ref(), &[name], description)?;
                if name == verb {
                    entries.retain(|other| other.key != entry.key);
                    entries.push(entry);
                }
            }
            continue;
        }
        let entry = entry(&place, name, value.get_ref(), &TABLES, description)?;
        let in_table = entries.iter().any(|other| other.key == entry.key);
        if !in_table && option(subcommand(description, verb), name).is_some() {
            entries.push(entry);
        }
    }
    Ok(entries)
}

/// Checks one key, which may be an option of any of `verbs`.
fn entry(place: &str, key: &str, value: &DeValue<'_>, verbs: &[&str], description: &Command) -> Result<Entry> {
    let commands = verbs.iter().map(|verb| subcommand(description, verb));
    let Some((verb, arg)) = commands.clone().find_map(|verb| Some((verb, option(verb, key)?))) else {
        let tables = if verbs.len() > 1 { &TABLES[..] } else { &[] };
        let known = commands.flat_map(keys).chain(tables.iter().copied());
        let nearest = match nearest(key, known) {
            Some(nearest) => format!("; did you mean `{nearest}`?"),
            None => "; a key is the long name of an option, without the hyphens in front".to_owned(),
        };
        bail!("{place}: unknown key `{key}`{nearest}");
    };
    let words = option_words(key, arg, value)
        .map_err(|wanted| anyhow!("{place}: `{key}` is {} and must be {wanted}", article(value.type_str())))?;
    check_alone(arg, &words).map_err(|reason| anyhow!("{place}: `{key}`: {reason}"))?;
    debug_assert!(verb.get_arguments().any(|other| other.get_id() == arg.get_id()));
    Ok(Entry { key: key.to_owned(), words })
}

/// Checks an option's words by its own parser; why they are wrong.
pub fn check_alone(arg: &Arg, words: &[OsString]) -> Result<(), String> {
    // Only this option's own parser is of interest: a command of that one argument has no other rule.
    let alone = Command::new("tapline").no_binary_name(true).args_override_self(true).arg(lone(arg));
    alone.try_get_matches_from(words).map(drop).map_err(|error| error::one_line(&error))
}

/// The option without its relations to others.
fn lone(arg: &Arg) -> Arg {
    let mut lone = Arg::new(arg.get_id().clone()).action(arg.get_action().clone());
    if let Some(long) = arg.get_long() {
        lone = lone.long(long.to_owned());
    }
    if let Some(names) = arg.get_value_names() {
        lone = lone.value_names(names.to_vec());
    }
    if options::is_flag(arg) {
        return options::with_off_switch(lone.value_parser(arg.get_value_parser().clone()));
    }
    if arg.get_action().takes_values() { lone.value_parser(arg.get_value_parser().clone()) } else { lone }
}

/// Lets every flag that the file may hold be switched off on the command line.
pub fn with_off_switches(mut description: Command) -> Command {
    let may_be_in_file = |arg: &Arg| arg.get_long().is_some_and(|key| !NOT_IN_FILE.contains(&key));
    for verb in TABLES {
        description = description.mut_subcommand(verb, |command| {
            command.mut_args(|arg| match arg.get_action() {
                ArgAction::SetTrue if may_be_in_file(&arg) => options::with_off_switch(arg),
                _ => arg,
            })
        });
    }
    description
}

/// The words that a key and its value stand for, or what the value must be.
fn option_words(key: &str, arg: &Arg, value: &DeValue<'_>) -> Result<Vec<OsString>, &'static str> {
    let word = |value: &DeValue<'_>| match value {
        DeValue::String(text) => Some(OsString::from(format!("--{key}={text}"))),
        DeValue::Integer(number) if number.radix() == 10 => {
            Some(OsString::from(format!("--{key}={}", number.as_str())))
        }
        _ => None,
    };
    match arg.get_action() {
        _ if options::is_flag(arg) => match value {
            DeValue::Boolean(true) => Ok(vec![format!("--{key}").into()]),
            DeValue::Boolean(false) => Ok(Vec::new()),
            _ => Err("true or false"),
        },
        ArgAction::Count => match value.as_integer().and_then(|number| number.as_str().parse::<u8>().ok()) {
            Some(times @ 0..=9) => Ok((0..times).map(|_| format!("--{key}").into()).collect()),
            _ => Err("a number from 0 to 9"),
        },
        ArgAction::Append => match value {
            DeValue::Array(several) => {
                several.iter().map(|one| word(one.get_ref())).collect::<Option<_>>().ok_or("a list of strings")
            }
            one => word(one).map(|word| vec![word]).ok_or("a string or a list of strings"),
        },
        _ => word(value).map(|word| vec![word]).ok_or("a string or a whole number"),
    }
}

fn article(kind: &str) -> String {
    let vowel = kind.starts_with(['a', 'e', 'i', 'o', 'u']);
    format!("{} {kind}", if vowel { "an" } else { "a" })
}

/// The known word that is fewest letters away, if it is not far.
pub fn nearest<'k>(word: &str, known: impl Iterator<Item = &'k str>) -> Option<&'k str> {
    let scored = known.map(|other| (distance(word, other), other));
    scored.min().filter(|(distance, _)| *distance <= 1 + word.len() / 4).map(|(_, other)| other)
}

/// Levenshtein's distance in bytes; `_` counts as `-`.
fn distance(a: &str, b: &str) -> usize {
    let a: Vec<u8> = a.bytes().map(|byte| if byte == b'_' { b'-' } else { byte.to_ascii_lowercase() }).collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.bytes().enumerate() {
            let substituted = diagonal + usize::from(*x != y);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_for(verb: &str, text: &str) -> Result<Vec<String>, String> {
        let entries = read(Path::new("c.toml"), text, verb, &crate::cli::command()).map_err(|e| e.to_string())?;
        let words = entries.into_iter().flat_map(|entry| entry.words);
        let mut words: Vec<String> = words.map(|word| word.into_string().unwrap()).collect();
        words.sort();
        Ok(words)
    }

    #[test]
    fn keys_become_words() {
        let text =
            "mtu = 1500\nipv4-only = true\nhost-loopback = false\ndns = [\"192.0.2.1\", \"192.0.2.2\"]\nverbose = 2\n";
        let words = read_for("run", text).unwrap();
        assert_eq!(
            words,
            ["--dns=192.0.2.1", "--dns=192.0.2.2", "--ipv4-only", "--mtu=1500", "--verbose", "--verbose"]
        );
    }

    #[test]
    fn a_subcommands_table_takes_the_place_of_the_top() {
        let text = "mtu = 1500\n[run]\nmtu = 1400\nnet = \"none\"\n[attach]\nmtu = 1300\nno-configure = true\n";
        assert_eq!(read_for("run", text).unwrap(), ["--mtu=1400", "--net=none"]);
        assert_eq!(read_for("attach", text).unwrap(), ["--mtu=1300", "--no-configure"]);
    }

    #[test]
    fn a_key_of_one_subcommand_at_the_top_leaves_the_other_alone() {
        assert_eq!(read_for("run", "no-configure = true\n").unwrap(), [""; 0]);
        assert_eq!(read_for("attach", "no-configure = true\n").unwrap(), ["--no-configure"]);
    }

    #[test]
    fn mistakes_name_file_line_and_key() {
        let of = |text| read_for("run", text).unwrap_err();
        assert_eq!(of("\nmtuu = 1500\n"), "c.toml:2: unknown key `mtuu`; did you mean `mtu`?");
        assert_eq!(
            of("[run]\nhost_loopback = true\n"),
            "c.toml:2: unknown key `host_loopback`; did you mean `host-loopback`?"
        );
        assert_eq!(of("[rum]\nmtu = 1\n"), "c.toml:1: unknown key `rum`; did you mean `run`?");
        assert_eq!(of("mtu = true\n"), "c.toml:1: `mtu` is a boolean and must be a string or a whole number");
        assert_eq!(of("ipv4-only = 1\n"), "c.toml:1: `ipv4-only` is an integer and must be true or false");
        assert!(of("# comment\nmtu = 70000\n").starts_with("c.toml:2: `mtu`: '70000' is no value for"));
        assert!(of("[attach]\nsubnet = \"10.0.2.1/24\"\n").contains("did you mean 10.0.2.0/24?"));
        assert!(of("mtu = 1\nmtu = 2\n").starts_with("c.toml:2: "));
        assert!(of("dry-run = true\n").starts_with("c.toml:1: unknown key `dry-run`"));
    }

    #[test]
    fn every_key_of_every_subcommand_can_be_checked_alone() {
        let description = crate::cli::command();
        for verb in TABLES {
            let verb = subcommand(&description, verb);
            for key in keys(verb) {
                let alone = Command::new("x").arg(lone(option(verb, key).unwrap()));
                alone.debug_assert();
            }
        }
    }
}
