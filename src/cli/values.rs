//! The words that an option with a choice takes: clap's view of the plan's enums.
use clap::ValueEnum;
use clap::builder::PossibleValue;

use crate::plan::{LinkChoice, MapUser, PidMode, ProxyVersion};

macro_rules! choices {
    ($($kind:ident { $($word:literal => $variant:ident, $help:literal;)+ })+) => {$(
        impl ValueEnum for $kind {
            fn value_variants<'a>() -> &'a [Self] {
                &[$($kind::$variant,)+]
            }

            fn to_possible_value(&self) -> Option<PossibleValue> {
                Some(match self { $($kind::$variant => PossibleValue::new($word).help($help),)+ })
            }
        }
    )+};
}

choices! {
    MapUser {
        "root" => Root, "CMD sees itself as root";
        "keep" => Keep, "CMD keeps the caller's user and group ids";
        "auto" => Auto, "root, and the caller's whole range of subordinate ids (/etc/subuid, newuidmap)";
    }
    PidMode {
        "private" => Private, "a PID namespace of its own: whatever CMD started ends with it";
        "host" => Host, "the caller's PID namespace";
    }
    LinkChoice {
        "auto" => Auto, "a TAP device; without /dev/net/tun a packet socket";
        "tap" => Tap, "a TAP device or an error";
        "packet" => Packet, "a packet socket";
        "none" => None, "no interface but lo: ports published for clients on the host's loopback, and --reach";
    }
    ProxyVersion {
        "v1" => V1, "a line of text";
        "v2" => V2, "binary";
    }
}

/// How something is printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// Lines for people
    #[default]
    Text,
    /// A JSON object on each line
    Json,
}
