//! What is shown, one function each.
use crate::harness::Case;

/// Lists the cases of a file by their names; after a semicolon, those that [`crate::world`] runs.
macro_rules! cases {
    ($($name:ident,)+ $(; $($inner:ident,)+)?) => {
        /// Every case with its name.
        pub fn all() -> Vec<(&'static str, $crate::harness::Case)> {
            vec![$((stringify!($name), $name as $crate::harness::Case),)+]
        }

        /// Those that run in a world.
        pub fn inner() -> Vec<(&'static str, $crate::harness::Case)> {
            vec![$($((stringify!($inner), $inner as $crate::harness::Case),)+)?]
        }
    };
}

mod attach;
mod bad_input;
mod death;
mod floods;
mod ground;
mod hostile;
mod names;
mod networks;
mod run;
mod share;
mod stages;
mod tcp;
mod udp;

/// Options with which the gateway's address leads to the host's loopback, where the servers are.
const OPEN: &[&str] = &["--host-loopback"];

/// Every case with its name.
pub fn all() -> Vec<(&'static str, Case)> {
    [
        run::all(),
        share::all(),
        attach::all(),
        death::all(),
        ground::all(),
        tcp::all(),
        udp::all(),
        hostile::all(),
        names::all(),
        networks::all(),
        bad_input::all(),
        stages::all(),
        floods::all(),
    ]
    .concat()
}

/// Those that run in a world.
pub fn inner() -> Vec<(&'static str, Case)> {
    [
        run::inner(),
        share::inner(),
        attach::inner(),
        death::inner(),
        ground::inner(),
        tcp::inner(),
        udp::inner(),
        hostile::inner(),
        names::inner(),
        networks::inner(),
        bad_input::inner(),
        stages::inner(),
        floods::inner(),
    ]
    .concat()
}
