//! Options the way getopt_long(3) of the C library reads them, for the command lines of programs that use it.
//!
//! # Theory of operation
//!
//! A program's options are a table of [`Opt`]s. [`Words`] walks through the words of a command line and gives one option
//! at a time, each with its argument, or one mistake, as its callers are used to it: what stands before a mistake has
//! been seen by then (`-h --nonsense` is a call for help). At the end [`Words::operands`] has what is no option.
//!
//! - A long option may be cut short as long as it means one thing: options that share key and argument are one. It takes
//!   its argument as `--mtu=1500` or `--mtu 1500`.
//! - Short ones may be joined, the argument of the last with them: `-c6m1500`.
//! - Operands may stand between options ([`Order::Permute`]), or end them ([`Order::Stop`]), as `POSIXLY_CORRECT` in the
//!   environment always wants it; `--` ends them in any case.
//!
//! The texts of mistakes are those of glibc in the C locale, without the program's name and the colon before them.
use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::os::unix::ffi::{OsStrExt, OsStringExt};

/// Has an option an argument?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arg {
    /// None.
    No,
    /// Always one.
    Needed,
}

/// An option of a program. One that has several names stands in the table several times, with the same key.
#[derive(Clone, Copy, Debug)]
pub struct Opt<K> {
    /// Its letter.
    pub short: Option<char>,
    /// Its name, without dashes.
    pub long: Option<&'static str>,
    /// Its argument.
    pub arg: Arg,
    /// What it means to the program.
    pub key: K,
}

/// What an operand means to the options behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Nothing: they are looked for everywhere.
    Permute,
    /// There are none.
    Stop,
}

impl Order {
    /// [`Order::Permute`], unless the environment says `POSIXLY_CORRECT`.
    pub fn usual() -> Order {
        match std::env::var_os("POSIXLY_CORRECT") {
            Some(_) => Order::Stop,
            None => Order::Permute,
        }
    }
}

/// Why a word is no option of the program.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OptError {
    /// No such long option; with what stands behind its `=`.
    #[error("unrecognized option '--{}'", Shown(.0))]
    Unrecognized(OsString),
    /// The beginning of several.
    #[error("option '--{}' is ambiguous; possibilities:{}", Shown(.0), Names(.1))]
    Ambiguous(OsString, Vec<&'static str>),
    /// A long option without its argument.
    #[error("option '--{0}' requires an argument")]
    Missing(&'static str),
    /// A long option with an argument that it does not have.
    #[error("option '--{0}' doesn't allow an argument")]
    Unwanted(&'static str),
    /// No such letter.
    #[error("invalid option -- '{}'", Shown(OsStr::from_bytes(&[*.0])))]
    InvalidShort(u8),
    /// A letter without its argument.
    #[error("option requires an argument -- '{0}'")]
    MissingShort(char),
}

struct Shown<'a>(&'a OsStr);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0.display())
    }
}

struct Names<'a>(&'a [&'static str]);

impl fmt::Display for Names<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|name| write!(f, " '--{name}'"))
    }
}

/// The words of a command line; gives its options in their order.
#[derive(Debug)]
pub struct Words<'a, K> {
    table: &'a [Opt<K>],
    order: Order,
    rest: VecDeque<OsString>,
    /// What is left of a word of short options.
    letters: Vec<u8>,
    operands: Vec<OsString>,
}

impl<'a, K: Copy + PartialEq> Words<'a, K> {
    /// The words behind the program's name.
    pub fn new(table: &'a [Opt<K>], order: Order, words: impl IntoIterator<Item = OsString>) -> Words<'a, K> {
        Words { table, order, rest: words.into_iter().collect(), letters: Vec::new(), operands: Vec::new() }
    }

    /// What is no option, when all options have been taken.
    pub fn operands(self) -> Vec<OsString> {
        self.operands.into_iter().chain(self.rest).collect()
    }

    /// `body` is what stands behind the dashes.
    fn long(&mut self, body: &[u8]) -> Result<(K, Option<OsString>), OptError> {
        let (name, value) = match body.iter().position(|byte| *byte == b'=') {
            Some(at) => (&body[..at], Some(OsStr::from_bytes(&body[at + 1..]).to_owned())),
            None => (body, None),
        };
        let Opt { long, arg, key, .. } = *self.named(name, body)?;
        let long = long.unwrap_or_default();
        match (arg, value) {
            (Arg::No, None) => Ok((key, None)),
            (Arg::No, Some(_)) => Err(OptError::Unwanted(long)),
            (Arg::Needed, Some(value)) => Ok((key, Some(value))),
            (Arg::Needed, None) => match self.rest.pop_front() {
                Some(value) => Ok((key, Some(value))),
                None => Err(OptError::Missing(long)),
            },
        }
    }

    /// The long option that is called so, or the only one that begins so.
    fn named(&self, name: &[u8], body: &[u8]) -> Result<&'a Opt<K>, OptError> {
        let all = self.table.iter().filter_map(|opt| Some((opt, opt.long?)));
        if let Some((opt, _)) = all.clone().find(|(_, long)| long.as_bytes() == name) {
            return Ok(opt);
        }
        let mut candidates = all.filter(|(_, long)| long.as_bytes().starts_with(name));
        let typed = || OsStr::from_bytes(body).to_owned();
        let (first, long) = candidates.next().ok_or_else(|| OptError::Unrecognized(typed()))?;
        let others: Vec<&'static str> = candidates
            .filter(|(other, _)| (other.key, other.arg) != (first.key, first.arg))
            .map(|(_, long)| long)
            .collect();
        if others.is_empty() {
            return Ok(first);
        }
        Err(OptError::Ambiguous(typed(), std::iter::once(long).chain(others).collect()))
    }

    fn short(&mut self) -> Result<(K, Option<OsString>), OptError> {
        let letter = self.letters.remove(0);
        let wanted = Some(char::from(letter));
        let opt = self.table.iter().find(|opt| letter.is_ascii() && letter != b'-' && opt.short == wanted);
        let Opt { arg, key, .. } = *opt.ok_or(OptError::InvalidShort(letter))?;
        match arg {
            Arg::No => Ok((key, None)),
            Arg::Needed if !self.letters.is_empty() => {
                Ok((key, Some(OsString::from_vec(std::mem::take(&mut self.letters)))))
            }
            Arg::Needed => match self.rest.pop_front() {
                Some(value) => Ok((key, Some(value))),
                None => Err(OptError::MissingShort(char::from(letter))),
            },
        }
    }
}

impl<K: Copy + PartialEq> Iterator for Words<'_, K> {
    type Item = Result<(K, Option<OsString>), OptError>;

    fn next(&mut self) -> Option<Self::Item> {
        if !self.letters.is_empty() {
            return Some(self.short());
        }
        loop {
            let word = self.rest.pop_front()?;
            match word.as_bytes() {
                b"--" => {
                    self.operands.extend(self.rest.drain(..));
                    return None;
                }
                [b'-', b'-', body @ ..] => return Some(self.long(body)),
                [b'-', letters @ ..] if !letters.is_empty() => {
                    self.letters = letters.to_vec();
                    return Some(self.short());
                }
                _ if self.order == Order::Permute => self.operands.push(word),
                _ => {
                    self.rest.push_front(word);
                    self.operands.extend(self.rest.drain(..));
                    return None;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    enum Key {
        Configure,
        Mtu,
        V6,
        Outbound,
        Outbound6,
        Sandbox,
        Seccomp,
        Netns,
        Cidr,
    }

    const fn opt(short: Option<char>, long: &'static str, arg: Arg, key: Key) -> Opt<Key> {
        Opt { short, long: Some(long), arg, key }
    }

    const TABLE: &[Opt<Key>] = &[
        opt(Some('c'), "configure", Arg::No, Key::Configure),
        opt(Some('m'), "mtu", Arg::Needed, Key::Mtu),
        Opt { short: Some('6'), long: None, arg: Arg::No, key: Key::V6 },
        opt(None, "outbound-addr", Arg::Needed, Key::Outbound),
        opt(None, "outbound-addr6", Arg::Needed, Key::Outbound6),
        opt(None, "enable-sandbox", Arg::No, Key::Sandbox),
        opt(None, "create-sandbox", Arg::No, Key::Sandbox),
        opt(None, "enable-seccomp", Arg::No, Key::Seccomp),
        opt(None, "netns-type", Arg::Needed, Key::Netns),
        opt(None, "create-cidr", Arg::Needed, Key::Cidr),
    ];

    /// `options | operands`, a mistake in its place.
    fn read_in(order: Order, words: &[&str]) -> String {
        let mut words = Words::new(TABLE, order, words.iter().map(OsString::from));
        let mut seen = Vec::new();
        for found in &mut words {
            seen.push(match found {
                Ok((key, None)) => format!("{key:?}"),
                Ok((key, Some(value))) => format!("{key:?}={}", value.display()),
                Err(error) => format!("<{error}>"),
            });
        }
        let operands: Vec<String> = words.operands().iter().map(|word| word.display().to_string()).collect();
        format!("{} | {}", seen.join(" "), operands.join(" "))
    }

    fn read(words: &[&str]) -> String {
        read_in(Order::Permute, words)
    }

    #[test]
    fn long_options_take_their_argument_with_and_without_an_equals_sign() {
        assert_eq!(
            read(&["--mtu=1500", "--mtu", "9000", "--mtu=", "--mtu", "--configure"]),
            "Mtu=1500 Mtu=9000 Mtu= Mtu=--configure | "
        );
    }

    #[test]
    fn short_options_are_joined_and_the_last_has_the_argument() {
        assert_eq!(read(&["-c6m1500", "-m", "9000", "-m=1"]), "Configure V6 Mtu=1500 Mtu=9000 Mtu==1 | ");
    }

    #[test]
    fn a_long_option_may_be_cut_short_while_it_means_one_thing() {
        assert_eq!(
            read(&["--conf", "--m=1", "--outbound-addr=a", "--net", "x"]),
            "Configure Mtu=1 Outbound=a Netns=x | "
        );
        assert_eq!(
            read(&["--out=1"]),
            "<option '--out=1' is ambiguous; possibilities: '--outbound-addr' '--outbound-addr6'> | "
        );
        assert_eq!(
            read(&["--create"]),
            "<option '--create' is ambiguous; possibilities: '--create-sandbox' '--create-cidr'> | "
        );
        // Two names of one option are one.
        let table = &TABLE[5..7];
        let cut: &[Opt<Key>] = &[Opt { long: Some("enable-sand"), ..table[0] }, table[0]];
        let mut words = Words::new(cut, Order::Permute, ["--enable".into()]);
        assert_eq!(words.next(), Some(Ok((Key::Sandbox, None))));
    }

    #[test]
    fn mistakes_are_told_as_glibc_tells_them() {
        for (words, text) in [
            (&["--foo"][..], "<unrecognized option '--foo'> | "),
            (&["--foo=bar"], "<unrecognized option '--foo=bar'> | "),
            (&["--mtu"], "<option '--mtu' requires an argument> | "),
            (&["--mt"], "<option '--mtu' requires an argument> | "),
            (&["--conf=1"], "<option '--configure' doesn't allow an argument> | "),
            (&["-z"], "<invalid option -- 'z'> | "),
            (&["-m"], "<option requires an argument -- 'm'> | "),
            (&["-cm"], "Configure <option requires an argument -- 'm'> | "),
            (&["-c-"], "Configure <invalid option -- '-'> | "),
            (&["-zc", "7"], "<invalid option -- 'z'> Configure | 7"),
        ] {
            assert_eq!(read(words), text, "{words:?}");
        }
    }

    #[test]
    fn operands_stand_anywhere_or_end_the_options() {
        let words = ["12", "-c", "tap0", "-", "--mtu=1", "--", "-6", "--"];
        assert_eq!(read(&words), "Configure Mtu=1 | 12 tap0 - -6 --");
        assert_eq!(read_in(Order::Stop, &words), " | 12 -c tap0 - --mtu=1 -- -6 --");
        assert_eq!(read_in(Order::Stop, &["-c", "--", "-6", "x"]), "Configure | -6 x");
        assert_eq!(read_in(Order::Stop, &["-c", "sh", "-c", "true"]), "Configure | sh -c true");
        assert_eq!(read(&[]), " | ");
    }

    #[test]
    fn bytes_that_are_no_text_pass_through() {
        let odd = OsString::from_vec(b"--mtu=\xff".to_vec());
        let mut words = Words::new(TABLE, Order::Permute, [odd, OsString::from_vec(b"-\xff".to_vec())]);
        assert_eq!(words.next(), Some(Ok((Key::Mtu, Some(OsString::from_vec(b"\xff".to_vec()))))));
        assert_eq!(words.next(), Some(Err(OptError::InvalidShort(0xff))));
    }
}
